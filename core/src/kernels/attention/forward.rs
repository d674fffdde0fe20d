//! The forward pass: for each block of queries, the blocks of keys one after the other, with a
//! running maximum and sum (on-line softmax).

use std::ops::Range;

use rayon::prelude::*;

use super::{AttentionShape, Inputs, Segment};
use crate::kernels::Output;
use crate::kernels::isa::{Isa, multiversion};
use crate::kernels::lanes::{LANES, dot, exp, max, mul_add, sum_lanes};
use crate::kernels::product::{Tiles, View};
use crate::kernels::shared::Shared;

/// Queries that one task handles with the keys it packs.
const TASK_QUERIES: usize = 192;
/// Queries of a tile of scores.
const QUERIES: usize = 48;
/// Keys of a tile of scores.
const KEYS: usize = 128;
/// For fewer queries than this, as when generating, packing keys does not pay.
const FEW: usize = 4;

/// Part of a segment, for one key head.
struct Task<'a> {
    segment: &'a Segment,
    /// Numbers of the queries within the segment.
    queries: Range<usize>,
    kv_head: usize,
}

pub(super) fn run(
    isa: Isa,
    inputs: &Inputs,
    segments: &[Segment],
    out: &mut [f32],
    log_sum_exp: &mut [f32],
) {
    let mut tasks = Vec::new();
    for segment in segments {
        for start in (0..segment.queries.len()).step_by(TASK_QUERIES) {
            let queries = start..(start + TASK_QUERIES).min(segment.queries.len());
            tasks.extend((0..inputs.shape.kv_heads).map(|kv_head| Task {
                segment,
                queries: queries.clone(),
                kv_head,
            }));
        }
    }
    let (out, log_sum_exp) = (Shared::new(out), Shared::new(log_sum_exp));
    tasks.par_iter().with_max_len(1).for_each_init(Scratch::default, |scratch, task| {
        if task.segment.queries.len() < FEW {
            few(isa, inputs, task, &mut scratch.scores, out, log_sum_exp);
        } else {
            many(isa, inputs, task, scratch, out, log_sum_exp);
        }
    });
}

/// Buffers that tasks reuse.
#[derive(Default)]
struct Scratch {
    gathered: Vec<f32>,
    /// For each block of keys, their transposed keys and their values as right factors.
    blocks: Vec<(Vec<f32>, Vec<f32>)>,
    scores: Vec<f32>,
    sums: Vec<f32>,
}

/// A few queries, each straight from the keys where they lie.
fn few(
    isa: Isa,
    inputs: &Inputs,
    task: &Task,
    scores: &mut Vec<f32>,
    out: Shared,
    log_sum_exp: Shared,
) {
    let &AttentionShape { heads, kv_heads, head_dim, .. } = inputs.shape;
    let group = heads / kv_heads;
    for query in task.queries.clone() {
        let position = task.segment.first_position() + query;
        let visible = inputs.first_visible(position)..position + 1;
        let runs: Vec<_> = task.segment.key_runs(visible).collect();
        for head in task.kv_head * group..(task.kv_head + 1) * group {
            let at = (task.segment.queries.start + query) * heads + head;
            let place = at * head_dim..(at + 1) * head_dim;
            // SAFETY: each query is in one segment and one task, and each of its heads is
            // visited once.
            let (out, log_sum_exp) =
                unsafe { (out.part(place.clone()), log_sum_exp.part(at..at + 1)) };
            let query = &inputs.q[place];
            log_sum_exp[0] = attend(isa, inputs, task.kv_head, &runs, query, scores, out);
        }
    }
}

multiversion! {
    fn attend(inputs: &Inputs, kv_head: usize, runs: &[Range<usize>], query: &[f32],
        scores: &mut Vec<f32>, out: &mut [f32]) -> f32 = attend_rows
}

/// One query of one head; returns the log-sum-exp of its scores.
#[inline(always)]
fn attend_rows<const FMA: bool>(
    inputs: &Inputs,
    kv_head: usize,
    runs: &[Range<usize>],
    query: &[f32],
    scores: &mut Vec<f32>,
    out: &mut [f32],
) -> f32 {
    let &AttentionShape { kv_heads, head_dim, scale, .. } = inputs.shape;
    let place = |key: usize| {
        let start = (key * kv_heads + kv_head) * head_dim;
        start..start + head_dim
    };
    scores.clear();
    for key in runs.iter().cloned().flatten() {
        scores.push(scale * dot::<FMA>(query, &inputs.k[place(key)]));
    }
    let largest = max(scores);
    let sum = exponentiate::<FMA>(scores, largest);
    let values = || {
        let keys = runs.iter().cloned().flatten();
        keys.zip(scores.iter()).map(|(key, score)| (*score, &inputs.v[place(key)]))
    };
    let (wide, rest) = out.as_chunks_mut::<{ 4 * LANES }>();
    let last = wide.len() * 4 * LANES;
    for (i, out) in wide.iter_mut().enumerate() {
        *out = weighted_sum::<FMA, _>(values(), i * 4 * LANES, sum);
    }
    for (i, out) in rest.iter_mut().enumerate() {
        [*out] = weighted_sum::<FMA, 1>(values(), last + i, sum);
    }
    largest + sum.ln()
}

/// `Σ score·value / sum` of `N` neighbouring values from `first` on, which stay in registers.
#[inline(always)]
fn weighted_sum<'a, const FMA: bool, const N: usize>(
    values: impl Iterator<Item = (f32, &'a [f32])>,
    first: usize,
    sum: f32,
) -> [f32; N] {
    let mut sums = [0.0; N];
    for (score, values) in values {
        for (sum, value) in sums.iter_mut().zip(&values[first..first + N]) {
            *sum = mul_add::<FMA>(score, *value, *sum);
        }
    }
    sums.map(|value| value / sum)
}

/// Replaces each score by `exp(score - largest)` and returns the sum.
#[inline(always)]
fn exponentiate<const FMA: bool>(scores: &mut [f32], largest: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = scores.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            chunk[i] = exp::<FMA>(chunk[i] - largest);
            lanes[i] += chunk[i];
        }
    }
    for (lane, score) in lanes.iter_mut().zip(rest) {
        *score = exp::<FMA>(*score - largest);
        *lane += *score;
    }
    sum_lanes(lanes)
}

/// Many queries, tile by tile, with the keys packed for the micro-kernel.
fn many(
    isa: Isa,
    inputs: &Inputs,
    task: &Task,
    scratch: &mut Scratch,
    out: Shared,
    log_sum_exp: Shared,
) {
    let &AttentionShape { heads, kv_heads, head_dim, scale, .. } = inputs.shape;
    let (segment, kv_head, tiles) = (task.segment, task.kv_head, Tiles::new(isa));
    let position = segment.first_position() + task.queries.start;
    let visible = inputs.first_visible(position)..position + task.queries.len();
    let key_blocks = visible.len().div_ceil(KEYS);
    if scratch.blocks.len() < key_blocks {
        scratch.blocks.resize_with(key_blocks, Default::default);
    }
    let blocks: Vec<_> =
        visible.clone().step_by(KEYS).map(|start| start..(start + KEYS).min(visible.end)).collect();
    for (block, (keys, values)) in blocks.iter().zip(&mut scratch.blocks) {
        inputs.gather(inputs.k, kv_head, segment, block.clone(), &mut scratch.gathered);
        let view = View::new(&scratch.gathered, block.len(), head_dim);
        tiles.pack(view.t(), scale, keys);
        inputs.gather(inputs.v, kv_head, segment, block.clone(), &mut scratch.gathered);
        tiles.pack(View::new(&scratch.gathered, block.len(), head_dim), 1.0, values);
    }
    scratch.scores.resize(QUERIES * KEYS, 0.0);
    scratch.sums.resize(QUERIES * head_dim, 0.0);
    let group = heads / kv_heads;
    for head in kv_head * group..(kv_head + 1) * group {
        for first in task.queries.clone().step_by(QUERIES) {
            let count = QUERIES.min(task.queries.end - first);
            let rows = segment.queries.start + first..segment.queries.start + first + count;
            let q = inputs.query_head(inputs.q, &rows, head);
            let position = segment.first_position() + first;
            let sums = &mut scratch.sums[..count * head_dim];
            sums.fill(0.0);
            let mut running = [Running::default(); QUERIES];
            for (block, (keys, values)) in blocks.iter().zip(&scratch.blocks) {
                // No query of the tile sees a later key.
                let seen = block.start..block.end.min(position + count);
                if seen.is_empty() || seen.end <= inputs.first_visible(position) {
                    continue;
                }
                let width = seen.len();
                let keys = &keys[..tiles.packed_len(head_dim, width)];
                let scores = &mut scratch.scores[..count * width];
                tiles.multiply(q, (keys, width), scores, width, Output::Overwrite);
                soften(isa, inputs, scores, &seen, position, &mut running[..count], sums);
                let weights = View::new(scores, count, width);
                tiles.multiply(weights, (values, head_dim), sums, head_dim, Output::Accumulate);
            }
            for (i, (row, sums)) in rows.zip(sums.chunks_exact(head_dim)).enumerate() {
                let at = row * heads + head;
                // SAFETY: each query is in one segment and one task, and each of its heads is
                // visited once.
                let (out, log_sum_exp) = unsafe {
                    (out.part(at * head_dim..(at + 1) * head_dim), log_sum_exp.part(at..at + 1))
                };
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = sum / running[i].sum;
                }
                log_sum_exp[0] = running[i].largest + running[i].sum.ln();
            }
        }
    }
}

/// What the softmax of a query has seen.
#[derive(Clone, Copy)]
struct Running {
    largest: f32,
    /// `Σ exp(score - largest)`.
    sum: f32,
}

impl Default for Running {
    fn default() -> Self {
        Self { largest: f32::NEG_INFINITY, sum: 0.0 }
    }
}

multiversion! {
    /// Replaces the scores of a tile, whose rows are the queries from `position` on and whose
    /// columns are the keys `block`, by weights relative to the largest score of each query so far,
    /// and scales the sums of values to that. Keys that a query does not see get weight zero.
    fn soften(inputs: &Inputs, scores: &mut [f32], block: &Range<usize>, position: usize,
        running: &mut [Running], sums: &mut [f32]) = soften_rows
}

#[inline(always)]
fn soften_rows<const FMA: bool>(
    inputs: &Inputs,
    scores: &mut [f32],
    block: &Range<usize>,
    position: usize,
    running: &mut [Running],
    sums: &mut [f32],
) {
    let rows = scores.chunks_exact_mut(block.len());
    let rows = rows.zip(sums.chunks_exact_mut(inputs.shape.head_dim)).zip(running);
    for (i, ((scores, sums), running)) in rows.enumerate() {
        let start = inputs.first_visible(position + i).clamp(block.start, block.end) - block.start;
        let end = (position + i + 1).clamp(block.start, block.end) - block.start;
        if start >= end {
            scores.fill(0.0);
            continue;
        }
        let largest = max(&scores[start..end]).max(running.largest);
        let factor = exp::<FMA>(running.largest - largest);
        let sum = exponentiate::<FMA>(&mut scores[start..end], largest);
        scores[..start].fill(0.0);
        scores[end..].fill(0.0);
        *running = Running { largest, sum: mul_add::<FMA>(running.sum, factor, sum) };
        if factor != 1.0 {
            for sum in sums {
                *sum *= factor;
            }
        }
    }
}
