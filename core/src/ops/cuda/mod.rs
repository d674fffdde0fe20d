//! The operations on an NVIDIA card, through the kernels in [`crate::kernels::cuda`].

mod tables;
#[cfg(test)]
mod tests;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Result, Shape, Tensor};

use super::{
    Attended, AttentionShape, Frozen, Ops, Rotation, Segment, TargetScores, TensorOps, Transpose,
};
use crate::kernels::cuda::{Arg, Launch, Runner};
use tables::{BlockRows, GroupTables, Recent, SegmentTables};

/// The operations on a card in f32 or bf16: kernels of ours where candle would need several
/// operations, or memory for what stands between them; candle's own for products with frozen weights
/// and for the rest.
#[derive(Debug)]
pub struct CudaOps<R> {
    runner: R,
    rest: TensorOps,
    groups: Recent<Vec<Range<usize>>, GroupTables>,
    segments: Recent<SegmentKey, SegmentTables>,
}

/// What [`SegmentTables`] depend on: segments, rows of queries and keys, rows of a block.
type SegmentKey = (Vec<Segment>, (usize, usize), BlockRows);

/// Threads of a block that works on single values.
const THREADS: usize = 256;

/// Threads that a warp has.
const WARP: usize = 32;

/// Rows of at least this width are that of a block rather than of a warp.
const WIDE_ROW: usize = 2048;

/// Columns of a block of an adapter's product, and its threads, as in `grouped.cuh`.
const GROUP_COLUMNS: usize = 64;
const GROUP_THREADS: u32 = 128;

/// Rows of a block of an adapter's gradient.
const GRADIENT_ROWS: usize = 64;

/// Threads of a row of logits.
const LOGIT_THREADS: u32 = 512;

impl<R: Runner> CudaOps<R> {
    /// Operations where `runner` runs kernels.
    pub fn new(runner: R) -> Self {
        let rest = TensorOps::new(runner.device());
        Self { runner, rest, groups: Recent::new(), segments: Recent::new() }
    }

    fn empty(&self, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        self.runner.empty(shape.into(), dtype)
    }

    fn group_tables(&self, groups: &[Range<usize>], rows: usize) -> Result<Arc<GroupTables>> {
        self.groups.get(
            |known| known == groups,
            || Ok((groups.to_vec(), GroupTables::new(groups, rows, self.runner.device())?)),
        )
    }

    fn segment_tables(
        &self,
        segments: &[Segment],
        rows: (usize, usize),
        of_block: BlockRows,
    ) -> Result<Arc<SegmentTables>> {
        self.segments.get(
            |known| known.0 == segments && (known.1, known.2) == (rows, of_block),
            || {
                let tables = SegmentTables::new(segments, rows, of_block, self.runner.device())?;
                Ok(((segments.to_vec(), rows, of_block), tables))
            },
        )
    }

    /// A tensor whose values are written where `complete`, and zero elsewhere.
    fn output(&self, like: &Tensor, complete: bool) -> Result<Tensor> {
        if complete { self.empty(like.shape(), like.dtype()) } else { like.zeros_like() }
    }

    /// Runs a kernel with enough threads for `count` values of a type, 16 bytes to each.
    fn over_values(
        &self,
        kernel: &'static str,
        dtype: DType,
        count: usize,
        args: &[Arg],
    ) -> Result<()> {
        let of_block = THREADS * 16 / dtype.size_in_bytes();
        let grid = [count.div_ceil(of_block), 1, 1];
        self.runner.launch(Launch { kernel, dtype, grid, threads: THREADS as u32 }, args)
    }

    /// Runs a kernel over `rows` rows of `width` values; the last argument of the kernel is how many
    /// threads a row has.
    fn over_rows(
        &self,
        kernel: &'static str,
        dtype: DType,
        (rows, width): (usize, usize),
        args: &[Arg],
    ) -> Result<()> {
        let lanes = if width < WIDE_ROW { WARP } else { THREADS };
        let grid = [rows.div_ceil(THREADS / lanes), 1, 1];
        let args = [args, &[Arg::U32(lanes as u32)]].concat();
        self.runner.launch(Launch { kernel, dtype, grid, threads: THREADS as u32 }, &args)
    }
}

/// The kernels of attention for heads of some size, with the rows that each warp of theirs has.
struct HeadKernels {
    forward: &'static str,
    queries_back: &'static str,
    keys_back: &'static str,
    rows: BlockRows,
}

/// Rows of a warp.
const WARP_ROWS: usize = 16;

impl HeadKernels {
    /// Those for heads of `head_dim` values; `None` where there are none. Rows are as `Shape` in
    /// `attention.cuh` says.
    fn of(head_dim: usize, dtype: DType) -> Option<Self> {
        let wide = dtype == DType::F32;
        match head_dim {
            1..=64 => Some(Self {
                forward: "attend_head64",
                queries_back: "attend_queries_back_head64",
                keys_back: "attend_keys_back_head64",
                rows: BlockRows { forward: 64, back: if wide { 32 } else { 64 } },
            }),
            65..=128 => Some(Self {
                forward: "attend_head128",
                queries_back: "attend_queries_back_head128",
                keys_back: "attend_keys_back_head128",
                rows: match wide {
                    true => BlockRows { forward: 32, back: 16 },
                    false => BlockRows { forward: 64, back: 32 },
                },
            }),
            _ => None,
        }
    }
}

/// Threads of a block that has so many rows of attention.
fn threads_of(rows: usize) -> u32 {
    (rows / WARP_ROWS * WARP) as u32
}

/// The numbers that all kernels of attention end with.
fn sizes(shape: &AttentionShape) -> Result<[Arg<'static>; 5]> {
    Ok([
        number(shape.heads)?,
        number(shape.kv_heads)?,
        number(shape.head_dim)?,
        number(shape.window.unwrap_or(0))?,
        Arg::F32(shape.scale),
    ])
}

/// A number that kernels take in 32 bits.
fn number(value: usize) -> Result<Arg<'static>> {
    match u32::try_from(value) {
        Ok(value) => Ok(Arg::U32(value)),
        Err(_) => {
            candle_core::bail!("a pass with {value} values is too large for a card's kernels")
        }
    }
}

impl<R: Runner> Ops for CudaOps<R> {
    fn embed(&self, table: &Frozen, ids: &[u32]) -> Result<Tensor> {
        self.rest.embed(table, ids)
    }

    fn project(&self, x: &Tensor, weights: &[&Frozen]) -> Result<Vec<Tensor>> {
        self.rest.project(x, weights)
    }

    fn project_back(&self, dy: &Tensor, w: &Frozen, onto: Option<Tensor>) -> Result<Tensor> {
        self.rest.project_back(dy, w, onto)
    }

    fn adapt(
        &self,
        x: &Tensor,
        groups: &[Range<usize>],
        (factors, transpose): (&Tensor, Transpose),
        scale: f64,
        onto: Option<Tensor>,
    ) -> Result<Tensor> {
        let ((rows, inner), (_, first, second)) = (x.dims2()?, factors.dims3()?);
        let transposed = transpose == Transpose::Yes;
        let (factor_inner, outer) = if transposed { (second, first) } else { (first, second) };
        if factor_inner != inner || factors.dims()[0] < groups.len() {
            candle_core::bail!("an adapter's factor does not fit its input")
        }
        let tables = self.group_tables(groups, rows)?;
        let accumulate = u32::from(onto.is_some());
        let y = onto.map_or_else(|| self.empty((rows, outer), x.dtype()), Ok)?;
        let args = [
            Arg::Read(x),
            Arg::Read(factors),
            Arg::Write(&y),
            Arg::Read(&tables.tiles.numbers),
            number(inner)?,
            number(outer)?,
            Arg::U32(u32::from(transposed)),
            Arg::F32(scale as f32),
            Arg::U32(accumulate),
        ];
        let grid = [tables.tiles.rows, outer.div_ceil(GROUP_COLUMNS), 1];
        let launch = Launch { kernel: "adapt", dtype: x.dtype(), grid, threads: GROUP_THREADS };
        self.runner.launch(launch, &args)?;
        Ok(y)
    }

    fn adapt_gradient(
        &self,
        dy: &Tensor,
        x: &Tensor,
        groups: &[Range<usize>],
        scale: f64,
    ) -> Result<Tensor> {
        let ((rows, outer), (_, inner)) = (dy.dims2()?, x.dims2()?);
        let tables = self.group_tables(groups, rows)?;
        let chunks = tables.chunks.rows;
        let parts = self.empty((chunks, outer, inner), DType::F32)?;
        let args = [
            Arg::Read(dy),
            Arg::Read(x),
            Arg::Write(&parts),
            Arg::Read(&tables.chunks.numbers),
            number(outer)?,
            number(inner)?,
            Arg::F32(scale as f32),
        ];
        let grid = [outer.div_ceil(GRADIENT_ROWS), inner.div_ceil(GROUP_COLUMNS), chunks];
        let (kernel, dtype) = ("adapt_gradient", x.dtype());
        self.runner.launch(Launch { kernel, dtype, grid, threads: GROUP_THREADS }, &args)?;
        if chunks == groups.len() {
            return Ok(parts);
        }
        let sums = self.empty((groups.len(), outer, inner), DType::F32)?;
        let args = [
            Arg::Read(&parts),
            Arg::Read(&tables.ends.numbers),
            Arg::Write(&sums),
            number(outer * inner)?,
        ];
        let grid = [(outer * inner).div_ceil(THREADS), groups.len(), 1];
        let launch =
            Launch { kernel: "sum_chunks", dtype: DType::F32, grid, threads: THREADS as u32 };
        self.runner.launch(launch, &args)?;
        Ok(sums)
    }

    fn add(&self, a: Tensor, b: &Tensor) -> Result<Tensor> {
        self.rest.add(a, b)
    }

    fn rms_norm(&self, x: &Tensor, gain: &Tensor, eps: f64) -> Result<Tensor> {
        let width = gain.elem_count();
        let rows = x.elem_count() / width.max(1);
        let y = self.empty(x.shape(), x.dtype())?;
        let args = [Arg::Read(x), Arg::Read(gain), Arg::Write(&y), number(rows)?, number(width)?];
        let args = [&args[..], &[Arg::F32(eps as f32)]].concat();
        self.over_rows("rms_norm", x.dtype(), (rows, width), &args)?;
        Ok(y)
    }

    fn rms_norm_back(
        &self,
        x: &Tensor,
        gain: &Tensor,
        eps: f64,
        dy: &Tensor,
        onto: Option<Tensor>,
    ) -> Result<Tensor> {
        let width = gain.elem_count();
        let rows = x.elem_count() / width.max(1);
        let accumulate = u32::from(onto.is_some());
        let dx = onto.map_or_else(|| self.empty(x.shape(), x.dtype()), Ok)?;
        let args = [
            Arg::Read(x),
            Arg::Read(gain),
            Arg::Read(dy),
            Arg::Write(&dx),
            number(rows)?,
            number(width)?,
            Arg::F32(eps as f32),
            Arg::U32(accumulate),
        ];
        self.over_rows("rms_norm_back", x.dtype(), (rows, width), &args)?;
        Ok(dx)
    }

    fn rotate(
        &self,
        x: Tensor,
        head_dim: usize,
        rotation: &Rotation,
        inverse: bool,
    ) -> Result<Tensor> {
        let (pairs, half) = (x.elem_count() / 2, head_dim / 2);
        let args = [
            Arg::Write(&x),
            Arg::Read(&rotation.cos),
            Arg::Read(&rotation.sin),
            number(pairs)?,
            number(half)?,
            number(x.dims2()?.1 / head_dim)?,
            Arg::F32(if inverse { -1.0 } else { 1.0 }),
        ];
        self.over_values("rotate", x.dtype(), pairs, &args)?;
        Ok(x)
    }

    fn attend(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        shape: AttentionShape,
        segments: &[Segment],
    ) -> Result<Attended> {
        let Some(kernels) = HeadKernels::of(shape.head_dim, q.dtype()) else {
            return self.rest.attend(q, k, v, shape, segments);
        };
        let (tokens, keys) = (q.dims2()?.0, k.dims2()?.0);
        let tables = self.segment_tables(segments, (tokens, keys), kernels.rows)?;
        let output = self.output(q, tables.complete)?;
        let log_sum_exp = match tables.complete {
            true => self.empty((tokens, shape.heads), DType::F32)?,
            false => Tensor::zeros((tokens, shape.heads), DType::F32, q.device())?,
        };
        let args = [
            Arg::Read(q),
            Arg::Read(k),
            Arg::Read(v),
            Arg::Write(&output),
            Arg::Write(&log_sum_exp),
            Arg::Read(&tables.forward.numbers),
            Arg::Read(&tables.key_rows.numbers),
        ];
        let args = [&args[..], &sizes(&shape)?].concat();
        let launch = Launch {
            kernel: kernels.forward,
            dtype: q.dtype(),
            grid: [tables.forward.rows, shape.heads, 1],
            threads: threads_of(kernels.rows.forward),
        };
        self.runner.launch(launch, &args)?;
        Ok(Attended { output, log_sum_exp })
    }

    fn attend_back(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        attended: &Attended,
        d_output: &Tensor,
        shape: AttentionShape,
        segments: &[Segment],
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let dtype = q.dtype();
        let Some(kernels) = HeadKernels::of(shape.head_dim, dtype) else {
            return self.rest.attend_back(q, k, v, attended, d_output, shape, segments);
        };
        let (tokens, keys) = (q.dims2()?.0, k.dims2()?.0);
        let tables = self.segment_tables(segments, (tokens, keys), kernels.rows)?;
        let (threads, count) = (threads_of(kernels.rows.back), tokens * shape.heads);
        let (output, log_sum_exp) = (&attended.output, &attended.log_sum_exp);

        let delta = self.empty((tokens, shape.heads), DType::F32)?;
        let args = [
            Arg::Read(output),
            Arg::Read(d_output),
            Arg::Write(&delta),
            number(count)?,
            number(shape.head_dim)?,
        ];
        let grid = [count.div_ceil(THREADS / WARP), 1, 1];
        let launch = Launch { kernel: "attend_delta", dtype, grid, threads: THREADS as u32 };
        self.runner.launch(launch, &args)?;

        let sizes = sizes(&shape)?;
        let read = [q, k, v, d_output, log_sum_exp, &delta].map(Arg::Read);
        let dq = self.output(q, tables.complete)?;
        let own = [Arg::Write(&dq), Arg::Read(&tables.back.numbers)];
        let args = [&read[..], &own, &[Arg::Read(&tables.key_rows.numbers)], &sizes].concat();
        let grid = [tables.back.rows, shape.heads, 1];
        self.runner.launch(Launch { kernel: kernels.queries_back, dtype, grid, threads }, &args)?;

        // The tiles of keys are all rows.
        let (dk, dv) = (self.output(k, true)?, self.output(v, true)?);
        let own = [Arg::Write(&dk), Arg::Write(&dv)];
        let lists = [Arg::Read(&tables.keys.numbers), Arg::Read(&tables.visits.numbers)];
        let args = [&read[..], &own, &lists, &sizes].concat();
        let grid = [tables.keys.rows, shape.kv_heads, 1];
        self.runner.launch(Launch { kernel: kernels.keys_back, dtype, grid, threads }, &args)?;
        Ok((dq, dk, dv))
    }

    fn swiglu(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        let (count, y) = (gate.elem_count(), self.empty(gate.shape(), gate.dtype())?);
        let args = [Arg::Read(gate), Arg::Read(up), Arg::Write(&y), number(count)?];
        self.over_values("swiglu", gate.dtype(), count, &args)?;
        Ok(y)
    }

    fn swiglu_back(&self, gate: Tensor, up: Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
        let count = gate.elem_count();
        let args = [Arg::Write(&gate), Arg::Write(&up), Arg::Read(dy), number(count)?];
        self.over_values("swiglu_back", gate.dtype(), count, &args)?;
        Ok((gate, up))
    }

    fn score(
        &self,
        x: &Tensor,
        head: &Frozen,
        targets: &[u32],
        with_gradient: bool,
    ) -> Result<TargetScores> {
        let vocabulary = head.rows();
        if targets.iter().any(|&target| target as usize >= vocabulary) {
            candle_core::bail!("a target is outside the vocabulary of {vocabulary}")
        }
        let head = head.device()?;
        let logits = x.matmul(&head.t()?)?;
        let at = Tensor::new(targets, self.runner.device())?;
        let scores = self.empty((targets.len(), 2), DType::F32)?;
        let args = [
            Arg::Write(&logits),
            Arg::Read(&at),
            Arg::Write(&scores),
            number(vocabulary)?,
            Arg::U32(u32::from(with_gradient)),
        ];
        let grid = [targets.len(), 1, 1];
        let dtype = logits.dtype();
        self.runner
            .launch(Launch { kernel: "score", dtype, grid, threads: LOGIT_THREADS }, &args)?;
        let gradient = with_gradient.then(|| logits.matmul(&head)).transpose()?;
        let scores = scores.to_vec2::<f32>()?;
        Ok(TargetScores {
            log_probs: scores.iter().map(|score| f64::from(score[0])).collect(),
            correct: scores.iter().map(|score| score[1] == 1.0).collect(),
            gradient,
        })
    }
}
