//! Attention and its gradients against the definition in f64.

use super::*;
use crate::kernels::testing::{central_difference, close, random};

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
        (AttentionShape { heads: 3, kv_heads: 3, ..shape }, vec![Segment::sequence(0..40)], 40, 40),
    ]
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

/// Runs a case on every path and compares outputs and some slopes with the definition.
fn check_case(case: usize, shape: AttentionShape, segments: &[Segment], rows: (usize, usize)) {
    let (q_rows, k_rows) = rows;
    let q = random(q_rows * shape.heads * shape.head_dim, 1);
    let k = random(k_rows * shape.kv_heads * shape.head_dim, 2);
    let v = random(k.len(), 3);
    let d_out = random(q.len(), 4);
    let (q64, k64, v64) = (wide(&q), wide(&k), wide(&v));
    let expected = exact(&shape, segments, &q64, &k64, &v64);
    let expected: Vec<f32> = expected.iter().map(|&v| v as f32).collect();
    let loss = |q: &[f64], k: &[f64], v: &[f64]| -> f64 {
        let out = exact(&shape, segments, q, k, v);
        out.iter().zip(&d_out).map(|(o, d)| o * f64::from(*d)).sum()
    };
    let probes = |len: usize| (0..len).step_by(len / 12 + 1);
    let dq_slopes: Vec<_> = probes(q.len())
        .map(|at| (at, central_difference(&q, at, |q| loss(q, &k64, &v64))))
        .collect();
    let dk_slopes: Vec<_> = probes(k.len())
        .map(|at| (at, central_difference(&k, at, |k| loss(&q64, k, &v64))))
        .collect();
    let dv_slopes: Vec<_> = probes(v.len())
        .map(|at| (at, central_difference(&v, at, |v| loss(&q64, &k64, v))))
        .collect();
    let inputs = Inputs { shape: &shape, q: &q, k: &k, v: &v };
    for isa in Isa::all() {
        let mut out = vec![0.0; q.len()];
        let mut log_sum_exp = vec![0.0; q_rows * shape.heads];
        forward::run(isa, &inputs, segments, &mut out, &mut log_sum_exp);
        close(&out, &expected, 1e-5);
        let (mut dq, mut dk, mut dv) =
            (vec![f32::NAN; q.len()], vec![9.0; k.len()], vec![9.0; k.len()]);
        let saved = backward::Saved { out: &out, log_sum_exp: &log_sum_exp, d_out: &d_out };
        backward::run(isa, &inputs, &saved, segments, &mut dq, &mut dk, &mut dv);
        for (found, slopes) in [(&dq, &dq_slopes), (&dk, &dk_slopes), (&dv, &dv_slopes)] {
            for &(at, slope) in slopes {
                let off = (f64::from(found[at]) - slope).abs();
                assert!(off < 3e-5, "case {case}, {isa:?}, {at}: {}, slope {slope}", found[at]);
            }
        }
    }
}

#[test]
fn outputs_and_gradients_match_the_definition_on_every_path() {
    for (case, (shape, segments, q_rows, k_rows)) in cases().into_iter().enumerate() {
        check_case(case, shape, &segments, (q_rows, k_rows));
    }
}

#[test]
fn sequences_of_many_tiles_match_the_definition_on_every_path() {
    let shape = AttentionShape { heads: 2, kv_heads: 1, head_dim: 20, scale: 0.7, window: None };
    let whole = [Segment::sequence(0..201)];
    check_case(0, shape, &whole, (201, 201));
    let windowed = AttentionShape { window: Some(37), ..shape };
    check_case(1, windowed, &whole, (201, 201));
    let reply = |rows: Range<usize>| Segment {
        context: vec![whole[0].keys.clone()],
        ..Segment::sequence(rows)
    };
    let pair = [whole[0].clone(), reply(201..251), reply(251..260)];
    check_case(2, shape, &pair, (260, 260));
    check_case(3, windowed, &pair, (260, 260));
}

#[test]
fn results_do_not_depend_on_the_threads() {
    let shape = AttentionShape { heads: 6, kv_heads: 2, head_dim: 16, scale: 0.25, window: None };
    let segments: Vec<_> = [0..70, 70..75, 75..280].map(Segment::sequence).into();
    let q = random(280 * 96, 1);
    let (k, v) = (random(280 * 32, 2), random(280 * 32, 3));
    let results = [1, 3].map(|threads| {
        let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; 280 * 6]);
        let (mut dq, mut dk, mut dv) = (out.clone(), vec![0.0; k.len()], vec![0.0; k.len()]);
        crate::kernels::Threads::new(threads).unwrap().run(|| {
            attention(&shape, &segments, &q, &k, &v, &mut out, &mut lse);
            attention_backward(
                &shape, &segments, &q, &k, &v, &out, &lse, &q, &mut dq, &mut dk, &mut dv,
            );
        });
        [out, lse, dq, dk, dv]
    });
    assert!(results[0] == results[1]);
}
