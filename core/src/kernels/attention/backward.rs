//! The backward pass: for each block of queries, the blocks of keys they see.
//!
//! Tiles have keys as rows and queries as columns, so that weights and their slopes are left factors
//! of the gradients of values and keys, and right factors of that of the queries, as they are.

use std::ops::Range;

use rayon::prelude::*;

use super::{AttentionShape, Inputs, Segment};
use crate::kernels::Output;
use crate::kernels::isa::{Isa, multiversion};
use crate::kernels::lanes::{dot_product, exp};
use crate::kernels::product::{Tiles, View};
use crate::kernels::shared::Shared;

/// Keys of a tile.
const KEYS: usize = 128;

/// Heads whose gradients are computed at once, per thread: each holds its own until the wave is done.
pub const HEADS_PER_THREAD: usize = 2;

/// What the forward pass saved and the gradient of its output.
pub(super) struct Saved<'a> {
    pub(super) out: &'a [f32],
    pub(super) log_sum_exp: &'a [f32],
    pub(super) d_out: &'a [f32],
}

/// Heads of segments are computed in parallel, a wave at a time; each has gradients of its keys and
/// values of its own, which are added to `dk` and `dv` in order. So sums do not depend on the number
/// of threads, and little memory is held.
pub(super) fn run(
    isa: Isa,
    inputs: &Inputs,
    saved: &Saved,
    segments: &[Segment],
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
) {
    for gradient in [&mut *dq, dk, dv] {
        gradient.fill(0.0);
    }
    let &AttentionShape { heads, kv_heads, head_dim, .. } = inputs.shape;
    let tasks: Vec<_> = segments
        .iter()
        .filter(|segment| !segment.queries.is_empty())
        .flat_map(|segment| (0..heads).map(move |head| (segment, head)))
        .collect();
    let wave = HEADS_PER_THREAD * rayon::current_num_threads();
    let mut scratch: Vec<Scratch> = Vec::new();
    scratch.resize_with(wave.min(tasks.len()), Scratch::default);
    let dq = Shared::new(dq);
    for tasks in tasks.chunks(wave) {
        tasks.par_iter().zip(&mut scratch).with_max_len(1).for_each(
            |(&(segment, head), scratch)| {
                head_gradients(isa, inputs, saved, segment, head, dq, scratch);
            },
        );
        for (&(segment, head), scratch) in tasks.iter().zip(&scratch) {
            let end = segment.first_position() + segment.keys.len();
            let rows = segment.key_runs(0..end).flatten();
            let gradients =
                scratch.dk.chunks_exact(head_dim).zip(scratch.dv.chunks_exact(head_dim));
            for (row, (from_k, from_v)) in rows.zip(gradients) {
                let at = (row * kv_heads + inputs.kv_head(head)) * head_dim;
                add(&mut dk[at..at + head_dim], from_k);
                add(&mut dv[at..at + head_dim], from_v);
            }
        }
    }
}

fn add(sum: &mut [f32], term: &[f32]) {
    for (sum, term) in sum.iter_mut().zip(term) {
        *sum += term;
    }
}

/// Buffers of one task.
#[derive(Default)]
struct Scratch {
    /// Keys and values of one head by position, the keys also transposed.
    keys: Vec<f32>,
    keys_turned: Vec<f32>,
    values: Vec<f32>,
    /// Right factors made of a block of queries and of the gradient of their outputs.
    q_turned: Vec<f32>,
    d_out_turned: Vec<f32>,
    q: Vec<f32>,
    d_out: Vec<f32>,
    /// Tiles `[keys, queries]`.
    weights: Vec<f32>,
    slopes: Vec<f32>,
    /// `[head_dim, queries]`.
    dq_turned: Vec<f32>,
    /// Gradients by position.
    dk: Vec<f32>,
    dv: Vec<f32>,
}

/// The gradients of one head of a segment: `dq` in place, those of keys and values in `scratch`.
fn head_gradients(
    isa: Isa,
    inputs: &Inputs,
    saved: &Saved,
    segment: &Segment,
    head: usize,
    dq: Shared,
    scratch: &mut Scratch,
) {
    let &AttentionShape { heads, head_dim, scale, .. } = inputs.shape;
    let tiles = Tiles::new(isa);
    let (lanes, kv_head) = (tiles.lanes(), inputs.kv_head(head));
    let s = scratch;
    let positions = segment.first_position() + segment.keys.len();
    inputs.gather(inputs.k, kv_head, segment, 0..positions, &mut s.keys);
    inputs.gather(inputs.v, kv_head, segment, 0..positions, &mut s.values);
    s.keys_turned.resize(positions * head_dim, 0.0);
    for (position, key) in s.keys.chunks_exact(head_dim).enumerate() {
        for (value, place) in
            key.iter().zip(s.keys_turned[position..].iter_mut().step_by(positions))
        {
            *place = *value;
        }
    }
    for gradient in [&mut s.dk, &mut s.dv] {
        gradient.clear();
        gradient.resize(positions * head_dim, 0.0);
    }
    for tile in [&mut s.weights, &mut s.slopes] {
        tile.resize(KEYS * lanes, 0.0);
    }
    s.dq_turned.resize(head_dim * lanes, 0.0);

    for first in (0..segment.queries.len()).step_by(lanes) {
        let count = lanes.min(segment.queries.len() - first);
        let rows = segment.queries.start + first..segment.queries.start + first + count;
        let q = inputs.query_head(inputs.q, &rows, head);
        let d_out = inputs.query_head(saved.d_out, &rows, head);
        tiles.pack(q.t(), scale, &mut s.q_turned);
        tiles.pack(d_out.t(), 1.0, &mut s.d_out_turned);
        tiles.pack(q, scale, &mut s.q);
        tiles.pack(d_out, 1.0, &mut s.d_out);
        let first_position = segment.first_position() + first;
        let mut block = Block::new(first_position, inputs.shape.window);
        for (lane, row) in rows.clone().enumerate() {
            let at = row * heads + head;
            let place = at * head_dim..(at + 1) * head_dim;
            block.log_sum_exp[lane] = saved.log_sum_exp[at];
            block.differences[lane] =
                dot_product(isa, &saved.d_out[place.clone()], &saved.out[place]);
        }
        let start = inputs.first_visible(first_position);
        let end = first_position + count;
        for key in (start..end).step_by(KEYS) {
            let keys = key..(key + KEYS).min(end);
            let at = keys.start * head_dim..keys.end * head_dim;
            let size = keys.len();
            let weights = &mut s.weights[..size * lanes];
            let slopes = &mut s.slopes[..size * lanes];
            let k = View::new(&s.keys[at.clone()], size, head_dim);
            let v = View::new(&s.values[at.clone()], size, head_dim);
            let to = Output::Overwrite;
            tiles.multiply(k, (&s.q_turned, lanes), weights, lanes, to);
            tiles.multiply(v, (&s.d_out_turned, lanes), slopes, lanes, to);
            differentiate(isa, &block, lanes, keys.clone(), weights, slopes);
            let (a, ds) = (
                View::strided(weights, size, count, lanes),
                View::strided(slopes, size, count, lanes),
            );
            let to = Output::Accumulate;
            tiles.multiply(a, (&s.d_out, head_dim), &mut s.dv[at.clone()], head_dim, to);
            tiles.multiply(ds, (&s.q, head_dim), &mut s.dk[at], head_dim, to);
            let turned = View::strided(&s.keys_turned[keys.start..], head_dim, size, positions);
            let to = if key == start { Output::Overwrite } else { Output::Accumulate };
            tiles.multiply(turned, (slopes, lanes), &mut s.dq_turned, lanes, to);
        }
        for (lane, row) in rows.enumerate() {
            let at = (row * heads + head) * head_dim;
            // SAFETY: each query is in one segment, and this head of it belongs to this task.
            let dq = unsafe { dq.part(at..at + head_dim) };
            for (dq, turned) in dq.iter_mut().zip(s.dq_turned[lane..].iter().step_by(lanes)) {
                *dq = scale * turned;
            }
        }
    }
}

/// Most columns of a tile.
const LANES: usize = 32;

/// A block of queries, one a lane.
struct Block {
    first_position: usize,
    window: usize,
    /// Infinite in lanes without a query, where weights become zero.
    log_sum_exp: [f32; LANES],
    /// `D = dO·o`.
    differences: [f32; LANES],
}

impl Block {
    fn new(first_position: usize, window: Option<usize>) -> Self {
        Self {
            first_position,
            window: window.unwrap_or(usize::MAX),
            log_sum_exp: [f32::INFINITY; LANES],
            differences: [0.0; LANES],
        }
    }

    /// The lanes whose queries see the key at `position`.
    fn lanes_that_see(&self, position: usize) -> Range<usize> {
        let from = position.saturating_sub(self.first_position);
        from..position.saturating_add(self.window).saturating_sub(self.first_position)
    }
}

multiversion! {
    /// Turns a tile of scores into weights `a`, and the tile of products `dO·v` into slopes
    /// `a·(dO·v - D)`; both are zero where the query does not see the key.
    fn differentiate(block: &Block, lanes: usize, keys: Range<usize>, weights: &mut [f32],
        slopes: &mut [f32]) = differentiate_any
}

#[inline(always)]
fn differentiate_any<const FMA: bool>(
    block: &Block,
    lanes: usize,
    keys: Range<usize>,
    weights: &mut [f32],
    slopes: &mut [f32],
) {
    match lanes {
        32 => differentiate_lanes::<FMA, 32>(block, keys, weights, slopes),
        16 => differentiate_lanes::<FMA, 16>(block, keys, weights, slopes),
        _ => differentiate_lanes::<FMA, 8>(block, keys, weights, slopes),
    }
}

#[inline(always)]
fn differentiate_lanes<const FMA: bool, const COLS: usize>(
    block: &Block,
    keys: Range<usize>,
    weights: &mut [f32],
    slopes: &mut [f32],
) {
    let (weights, _) = weights.as_chunks_mut::<COLS>();
    let (slopes, _) = slopes.as_chunks_mut::<COLS>();
    for (position, (weights, slopes)) in keys.zip(weights.iter_mut().zip(slopes)) {
        let seen = block.lanes_that_see(position);
        let (from, to) = (seen.start.min(COLS) as u32, seen.end.min(COLS) as u32);
        for lane in 0..COLS {
            let sees = (from..to).contains(&(lane as u32));
            let weight = exp::<FMA>(weights[lane] - block.log_sum_exp[lane]);
            weights[lane] = if sees { weight } else { 0.0 };
            slopes[lane] = weights[lane] * (slopes[lane] - block.differences[lane]);
        }
    }
}
