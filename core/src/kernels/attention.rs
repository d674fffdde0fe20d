//! Causal attention of packed sequences, without a matrix of all scores.
//!
//! For one head and a query `q` of position `p`, over the keys `j` it sees:
//! `s_j = scale·q·k_j`, `a = softmax(s)`, `o = Σ a_j·v_j`. The forward pass saves
//! `L = log Σ exp s_j`, from which the backward pass recomputes `a_j = exp(s_j - L)`. With
//! `D = dO·o`: `dv_j = Σ a_j·dO`, `ds_j = a_j·(dO·v_j - D)`, `dq = scale·Σ ds_j·k_j` and
//! `dk_j = scale·Σ ds_j·q`.

use std::ops::Range;

use rayon::prelude::*;

use super::isa::{Isa, multiversion};
use super::lanes::{dot, exp, mul_add};
use super::shared::Shared;

/// What all heads of a layer share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` neighbouring query heads.
    pub kv_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// Factor of the scores, commonly `1/sqrt(head_dim)`.
    pub scale: f32,
    /// How many positions back a query sees, its own included; `None` for all.
    pub window: Option<usize>,
}

/// A run of queries and the keys they see: all of `context`, which comes first in their sequence,
/// and of `keys` those up to each query's own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Segment {
    /// Rows of the queries.
    pub queries: Range<usize>,
    /// Rows of the keys of earlier positions, in order: a shared prompt, or a cache.
    pub context: Vec<Range<usize>>,
    /// Rows of the keys of the queries themselves; as many as queries.
    pub keys: Range<usize>,
}

impl Segment {
    /// A sequence of its own, in the same rows of queries and keys.
    pub fn sequence(rows: Range<usize>) -> Self {
        Self { queries: rows.clone(), context: Vec::new(), keys: rows }
    }

    /// The rows of the keys that query `i` of the segment sees, as runs in order of position.
    fn visible(&self, i: usize, window: Option<usize>) -> impl Iterator<Item = Range<usize>> {
        let position = self.context.iter().map(Range::len).sum::<usize>() + i;
        let hidden = window.map_or(0, |window| (position + 1).saturating_sub(window));
        let own = self.keys.start..self.keys.start + i + 1;
        let mut passed = 0;
        self.context.iter().cloned().chain([own]).filter_map(move |run| {
            let skip = hidden.saturating_sub(passed).min(run.len());
            passed += run.len();
            (skip < run.len()).then(|| run.start + skip..run.end)
        })
    }
}

/// Causal attention: `q` and `out` are `[query rows, heads, head_dim]`, `k` and `v`
/// `[key rows, kv_heads, head_dim]`, `log_sum_exp` is `[query rows, heads]`. Rows of queries that
/// are in no segment keep what they hold.
///
/// # Panics
/// When lengths do not fit, a segment names rows that do not exist or has not as many keys as
/// queries, or queries are in two segments.
pub fn attention(
    shape: &AttentionShape,
    segments: &[Segment],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &mut [f32],
    log_sum_exp: &mut [f32],
) {
    check(shape, segments, q, k, v);
    assert_eq!(out.len(), q.len(), "attention output");
    assert_eq!(log_sum_exp.len() * shape.head_dim, q.len(), "attention log-sum-exp");
    let isa = Isa::active();
    let (out, log_sum_exp) = (Shared::new(out), Shared::new(log_sum_exp));
    let tasks =
        segments.par_iter().flat_map(|s| (0..shape.heads).into_par_iter().map(move |h| (s, h)));
    tasks.for_each(|(segment, head)| {
        let mut scores = Vec::new();
        for (i, row) in segment.queries.clone().enumerate() {
            let at = row * shape.heads + head;
            let place = at * shape.head_dim..(at + 1) * shape.head_dim;
            // SAFETY: each query row is in one segment, and each of its heads is one task's.
            let (out, log_sum_exp) =
                unsafe { (out.part(place.clone()), log_sum_exp.part(at..at + 1)) };
            scores.clear();
            let kv_head = head / (shape.heads / shape.kv_heads);
            let keys: Vec<_> = segment.visible(i, shape.window).collect();
            log_sum_exp[0] = attend(isa, shape, kv_head, &keys, &q[place], k, v, &mut scores, out);
        }
    });
}

/// The gradients of [`attention`], from its inputs, its output, its saved `log_sum_exp` and the
/// gradient `d_out` of its output. `dq`, `dk` and `dv` are overwritten; rows in no segment become 0.
///
/// # Panics
/// As [`attention`], and when the gradients do not have the lengths of what they belong to.
#[allow(clippy::too_many_arguments)]
pub fn attention_backward(
    shape: &AttentionShape,
    segments: &[Segment],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &[f32],
    log_sum_exp: &[f32],
    d_out: &[f32],
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
) {
    check(shape, segments, q, k, v);
    assert_eq!(out.len(), q.len(), "attention output");
    assert_eq!(d_out.len(), q.len(), "gradient of the attention output");
    assert_eq!(log_sum_exp.len() * shape.head_dim, q.len(), "attention log-sum-exp");
    assert_eq!(dq.len(), q.len(), "gradient of the queries");
    assert_eq!((dk.len(), dv.len()), (k.len(), v.len()), "gradients of keys and values");
    for gradient in [&mut *dq, dk, dv] {
        gradient.fill(0.0);
    }
    let isa = Isa::active();
    let dim = shape.head_dim;
    let (dq, dk, dv) = (Shared::new(dq), Shared::new(dk), Shared::new(dv));
    (0..shape.kv_heads).into_par_iter().for_each(|kv_head| {
        let group = shape.heads / shape.kv_heads;
        for (segment, head) in segments
            .iter()
            .flat_map(|s| (kv_head * group..(kv_head + 1) * group).map(move |head| (s, head)))
        {
            for (i, row) in segment.queries.clone().enumerate() {
                let at = row * shape.heads + head;
                let place = at * dim..(at + 1) * dim;
                let (q, d_out) = (&q[place.clone()], &d_out[place.clone()]);
                let difference = inner(isa, d_out, &out[place.clone()]);
                // SAFETY: this head of this row belongs to this task alone.
                let dq = unsafe { dq.part(place) };
                for key in segment.visible(i, shape.window).flatten() {
                    let at = key * shape.kv_heads + kv_head;
                    let place = at * dim..(at + 1) * dim;
                    // SAFETY: this head of all keys belongs to this task alone.
                    let (dk, dv) = unsafe { (dk.part(place.clone()), dv.part(place.clone())) };
                    let (k, v) = (&k[place.clone()], &v[place]);
                    let score = shape.scale * inner(isa, q, k);
                    let weight = (score - log_sum_exp[row * shape.heads + head]).exp();
                    let slope = shape.scale * weight * (inner(isa, d_out, v) - difference);
                    add_scaled(isa, dv, weight, d_out);
                    add_scaled(isa, dq, slope, k);
                    add_scaled(isa, dk, slope, q);
                }
            }
        }
    });
}

fn check(shape: &AttentionShape, segments: &[Segment], q: &[f32], k: &[f32], v: &[f32]) {
    let &AttentionShape { heads, kv_heads, head_dim, .. } = shape;
    assert!(
        kv_heads > 0 && head_dim > 0 && heads.is_multiple_of(kv_heads),
        "{heads} heads of {head_dim} values over {kv_heads}"
    );
    assert!(q.len().is_multiple_of(heads * head_dim), "rows of whole query heads");
    assert!(k.len().is_multiple_of(kv_heads * head_dim), "rows of whole key heads");
    assert_eq!(k.len(), v.len(), "keys and values");
    let (q_rows, k_rows) = (q.len() / (heads * head_dim), k.len() / (kv_heads * head_dim));
    for segment in segments {
        assert_eq!(segment.queries.len(), segment.keys.len(), "a key for each query");
        assert!(segment.queries.end <= q_rows, "queries {:?} of {q_rows}", segment.queries);
        for keys in segment.context.iter().chain([&segment.keys]) {
            assert!(keys.end <= k_rows, "keys {keys:?} of {k_rows}");
        }
    }
    let mut queries: Vec<_> = segments.iter().map(|s| s.queries.clone()).collect();
    queries.retain(|q| !q.is_empty());
    queries.sort_by_key(|q| q.start);
    assert!(queries.windows(2).all(|w| w[0].end <= w[1].start), "queries in two segments");
}

multiversion! {
    fn attend(shape: &AttentionShape, kv_head: usize, keys: &[Range<usize>], q: &[f32], k: &[f32],
        v: &[f32], scores: &mut Vec<f32>, out: &mut [f32]) -> f32 = attend_row
}

/// One query of one head; returns the log-sum-exp of its scores.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn attend_row<const FMA: bool>(
    shape: &AttentionShape,
    kv_head: usize,
    keys: &[Range<usize>],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    scores: &mut Vec<f32>,
    out: &mut [f32],
) -> f32 {
    let dim = shape.head_dim;
    let place = |key: usize| (key * shape.kv_heads + kv_head) * dim;
    for key in keys.iter().cloned().flatten() {
        scores.push(shape.scale * dot::<FMA>(q, &k[place(key)..place(key) + dim]));
    }
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for score in scores.iter_mut() {
        *score = exp::<FMA>(*score - largest);
        sum += *score;
    }
    out.fill(0.0);
    for (key, score) in keys.iter().cloned().flatten().zip(scores.iter()) {
        let weight = score / sum;
        for (out, v) in out.iter_mut().zip(&v[place(key)..place(key) + dim]) {
            *out = mul_add::<FMA>(weight, *v, *out);
        }
    }
    largest + sum.ln()
}

multiversion! {
    fn inner(a: &[f32], b: &[f32]) -> f32 = dot
}

multiversion! {
    fn add_scaled(y: &mut [f32], factor: f32, x: &[f32]) = add_scaled_values
}

#[inline(always)]
fn add_scaled_values<const FMA: bool>(y: &mut [f32], factor: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = mul_add::<FMA>(factor, *x, *y);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{central_difference, close, random};
    use super::*;

    /// Attention in f64, as its definition says.
    fn exact(
        shape: &AttentionShape,
        segments: &[Segment],
        q: &[f64],
        k: &[f64],
        v: &[f64],
    ) -> Vec<f64> {
        let (dim, group) = (shape.head_dim, shape.heads / shape.kv_heads);
        let mut out = vec![0.0; q.len()];
        for segment in segments {
            let before: Vec<usize> = segment.context.iter().cloned().flatten().collect();
            for (i, row) in segment.queries.clone().enumerate() {
                let mut seen = before.clone();
                seen.extend(segment.keys.start..=segment.keys.start + i);
                let first = shape.window.map_or(0, |w| seen.len().saturating_sub(w));
                for head in 0..shape.heads {
                    let at = (row * shape.heads + head) * dim;
                    let place = |key: usize| (key * shape.kv_heads + head / group) * dim;
                    let scores: Vec<f64> = seen[first..]
                        .iter()
                        .map(|&key| {
                            let products = (0..dim).map(|d| q[at + d] * k[place(key) + d]);
                            (f64::from(shape.scale) * products.sum::<f64>()).exp()
                        })
                        .collect();
                    let sum: f64 = scores.iter().sum();
                    for (&key, score) in seen[first..].iter().zip(&scores) {
                        for d in 0..dim {
                            out[at + d] += score / sum * v[place(key) + d];
                        }
                    }
                }
            }
        }
        out
    }

    fn cases() -> Vec<(AttentionShape, Vec<Segment>, usize, usize)> {
        let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 6, scale: 0.4, window: None };
        let prompt = Segment::sequence(0..5);
        let reply = |rows: Range<usize>| Segment {
            context: vec![prompt.keys.clone()],
            ..Segment::sequence(rows)
        };
        let cached = Segment { queries: 0..1, context: vec![3..9, 0..2], keys: 9..10 };
        vec![
            (shape, vec![Segment::sequence(0..1)], 1, 1),
            (shape, vec![Segment::sequence(0..7), Segment::sequence(7..9)], 9, 9),
            (shape, vec![prompt.clone(), reply(5..9), reply(9..16)], 16, 16),
            (AttentionShape { window: Some(3), ..shape }, vec![prompt.clone(), reply(5..9)], 9, 9),
            (shape, vec![cached.clone()], 1, 10),
            (AttentionShape { window: Some(4), kv_heads: 1, ..shape }, vec![cached], 1, 10),
            (
                AttentionShape { heads: 3, kv_heads: 3, ..shape },
                vec![Segment::sequence(0..40)],
                40,
                40,
            ),
        ]
    }

    fn wide(values: &[f32]) -> Vec<f64> {
        values.iter().map(|&v| f64::from(v)).collect()
    }

    #[test]
    fn outputs_and_gradients_match_the_definition() {
        for (case, (shape, segments, q_rows, k_rows)) in cases().into_iter().enumerate() {
            let q = random(q_rows * shape.heads * shape.head_dim, 1);
            let k = random(k_rows * shape.kv_heads * shape.head_dim, 2);
            let v = random(k.len(), 3);
            let d_out = random(q.len(), 4);
            let mut out = vec![0.0; q.len()];
            let mut saved = vec![0.0; q_rows * shape.heads];
            attention(&shape, &segments, &q, &k, &v, &mut out, &mut saved);
            let expected = exact(&shape, &segments, &wide(&q), &wide(&k), &wide(&v));
            let expected: Vec<f32> = expected.iter().map(|&v| v as f32).collect();
            close(&out, &expected, 1e-5);

            let mut gradients = [vec![f32::NAN; q.len()], vec![9.0; k.len()], vec![9.0; k.len()]];
            let [dq, dk, dv] = &mut gradients;
            attention_backward(&shape, &segments, &q, &k, &v, &out, &saved, &d_out, dq, dk, dv);
            let loss = |q: &[f64], k: &[f64], v: &[f64]| -> f64 {
                let out = exact(&shape, &segments, q, k, v);
                out.iter().zip(&d_out).map(|(o, d)| o * f64::from(*d)).sum()
            };
            let (q64, k64, v64) = (wide(&q), wide(&k), wide(&v));
            for at in (0..q.len()).step_by(5) {
                let slope = central_difference(&q, at, |q| loss(q, &k64, &v64));
                assert!((f64::from(gradients[0][at]) - slope).abs() < 2e-5, "case {case} dq {at}");
            }
            for at in (0..k.len()).step_by(5) {
                let slope = central_difference(&k, at, |k| loss(&q64, k, &v64));
                assert!((f64::from(gradients[1][at]) - slope).abs() < 2e-5, "case {case} dk {at}");
                let slope = central_difference(&v, at, |v| loss(&q64, &k64, v));
                assert!((f64::from(gradients[2][at]) - slope).abs() < 2e-5, "case {case} dv {at}");
            }
        }
    }
}
