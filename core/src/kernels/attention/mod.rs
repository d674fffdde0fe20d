//! Causal attention of packed sequences, without a matrix of all scores.
//!
//! For one head and a query `q` of position `p`, over the keys `j` it sees:
//! `s_j = scale·q·k_j`, `a = softmax(s)`, `o = Σ a_j·v_j`. The forward pass saves
//! `L = log Σ exp s_j`, from which the backward pass recomputes `a_j = exp(s_j - L)`. With
//! `D = dO·o`: `dv_j = Σ a_j·dO`, `ds_j = a_j·(dO·v_j - D)`, `dq = scale·Σ ds_j·k_j` and
//! `dk_j = scale·Σ ds_j·q`.
//!
//! Scores exist for a block of queries and a block of keys at a time. The products are f32.

mod backward;
mod forward;
#[cfg(test)]
mod tests;

use std::ops::Range;

use super::isa::Isa;
use super::product::View;

pub use backward::HEADS_PER_THREAD;

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

    /// The positions of the queries in their text.
    pub fn positions(&self) -> impl Iterator<Item = u32> + use<> {
        let first = self.first_position();
        (first..first + self.queries.len()).map(|position| position as u32)
    }

    /// The position of the first query.
    fn first_position(&self) -> usize {
        self.context.iter().map(Range::len).sum()
    }

    /// The rows of the keys at these positions, as runs in order.
    fn key_runs(&self, positions: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let mut passed = 0;
        self.context.iter().chain([&self.keys]).filter_map(move |run| {
            let start = positions.start.saturating_sub(passed).min(run.len());
            let end = positions.end.saturating_sub(passed).min(run.len());
            passed += run.len();
            (start < end).then(|| run.start + start..run.start + end)
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
    forward::run(Isa::active(), &Inputs { shape, q, k, v }, segments, out, log_sum_exp);
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
    let saved = backward::Saved { out, log_sum_exp, d_out };
    let inputs = Inputs { shape, q, k, v };
    backward::run(Isa::active(), &inputs, &saved, segments, dq, dk, dv);
}

/// What attention reads in both directions.
struct Inputs<'a> {
    shape: &'a AttentionShape,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
}

impl Inputs<'_> {
    /// The key head that serves a query head.
    fn kv_head(&self, head: usize) -> usize {
        head / (self.shape.heads / self.shape.kv_heads)
    }

    /// Some rows of one query head of `values`, which has the shape of `q`; at least one row.
    fn query_head<'v>(&self, values: &'v [f32], rows: &Range<usize>, head: usize) -> View<'v> {
        let &AttentionShape { heads, head_dim, .. } = self.shape;
        let values = &values[(rows.start * heads + head) * head_dim..];
        View::strided(values, rows.len(), head_dim, heads * head_dim)
    }

    /// Copies one key head of `values`, which has the shape of `k`, at these positions of a segment.
    fn gather(
        &self,
        values: &[f32],
        kv_head: usize,
        segment: &Segment,
        positions: Range<usize>,
        out: &mut Vec<f32>,
    ) {
        let &AttentionShape { kv_heads, head_dim, .. } = self.shape;
        out.clear();
        for row in segment.key_runs(positions).flatten() {
            let start = (row * kv_heads + kv_head) * head_dim;
            out.extend_from_slice(&values[start..start + head_dim]);
        }
    }

    /// The first position that the query at `position` sees.
    fn first_visible(&self, position: usize) -> usize {
        self.shape.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

fn check(shape: &AttentionShape, segments: &[Segment], q: &[f32], k: &[f32], v: &[f32]) {
    let &AttentionShape { heads, kv_heads, head_dim, window, .. } = shape;
    assert!(
        heads > 0 && kv_heads > 0 && head_dim > 0 && heads.is_multiple_of(kv_heads),
        "{heads} heads of {head_dim} values over {kv_heads}"
    );
    assert!(window != Some(0), "a window of no keys");
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
