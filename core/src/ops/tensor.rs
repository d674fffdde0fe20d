//! Every operation in ordinary candle operations: any device, any float type.

use std::ops::Range;

use candle_core::{D, DType, Device, IndexOp, Result, Tensor};

use super::{Attended, AttentionShape, Frozen, Ops, Rotation, Segment, TargetScores, Transpose};

/// The operations on a candle device, in candle's own operations. The oracle of the kernels, and
/// the engine of every device that has no kernels of ours.
#[derive(Debug, Clone)]
pub struct TensorOps {
    device: Device,
}

impl TensorOps {
    /// Operations on `device`.
    pub fn new(device: &Device) -> Self {
        Self { device: device.clone() }
    }

    fn indices(&self, rows: impl Iterator<Item = usize>) -> Result<Tensor> {
        let rows: Vec<u32> = rows.map(|row| row as u32).collect();
        let len = rows.len();
        Tensor::from_vec(rows, len, &self.device)
    }
}

/// Half-precision values are summed in f32; wider types keep theirs.
fn wide(t: &Tensor) -> Result<Tensor> {
    match t.dtype() {
        DType::F32 | DType::F64 => Ok(t.clone()),
        _ => t.to_dtype(DType::F32),
    }
}

fn onto(sum: Option<Tensor>, term: Tensor) -> Result<Tensor> {
    match sum {
        Some(sum) => sum + term,
        None => Ok(term),
    }
}

/// Parts of one matrix, their rows end to end.
fn end_to_end(mut parts: Vec<Tensor>) -> Result<Tensor> {
    if parts.len() == 1 { Ok(parts.remove(0)) } else { Tensor::cat(&parts, 0) }
}

/// `[T, heads · d]` rows as `[heads, T, d]`.
fn by_head(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (tokens, width) = x.dims2()?;
    x.reshape((tokens, heads, width / heads))?.transpose(0, 1)?.contiguous()
}

/// `[heads, T, d]` back to `[T, heads · d]`.
fn by_token(x: &Tensor) -> Result<Tensor> {
    let (heads, tokens, width) = x.dims3()?;
    x.transpose(0, 1)?.contiguous()?.reshape((tokens, heads * width))
}

/// Repeats each of `[kv_heads, K, d]` for the query heads that read it.
fn for_queries(x: &Tensor, groups: usize) -> Result<Tensor> {
    let (kv_heads, keys, width) = x.dims3()?;
    x.unsqueeze(1)?.expand((kv_heads, groups, keys, width))?.contiguous()?.reshape((
        kv_heads * groups,
        keys,
        width,
    ))
}

/// Sums the gradients of a key head over the query heads that read it.
fn over_queries(x: &Tensor, groups: usize) -> Result<Tensor> {
    let (heads, keys, width) = x.dims3()?;
    x.reshape((heads / groups, groups, keys, width))?.sum(1)
}

/// Queries whose scores exist at once.
const TILE: usize = 256;

/// Segments of at most [`TILE`] queries that see the same keys: those before a tile's own are its
/// context.
fn tiles(segments: &[Segment]) -> Vec<Segment> {
    let tile = |segment: &Segment, start: usize| {
        let len = TILE.min(segment.queries.len() - start);
        let (query, key) = (segment.queries.start + start, segment.keys.start + start);
        let earlier = (start > 0).then_some(segment.keys.start..key);
        Segment {
            queries: query..query + len,
            context: segment.context.iter().cloned().chain(earlier).collect(),
            keys: key..key + len,
        }
    };
    let starts = |segment: &Segment| (0..segment.queries.len()).step_by(TILE);
    segments.iter().flat_map(|segment| starts(segment).map(move |at| tile(segment, at))).collect()
}

/// One segment's tensors, by head, and its softmax.
struct SegmentPass {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    probs: Tensor,
    log_sum_exp: Tensor,
    keys: Tensor,
    scale: f64,
    groups: usize,
}

impl TensorOps {
    fn segment_pass(
        &self,
        (q, k, v): (&Tensor, &Tensor, &Tensor),
        shape: AttentionShape,
        segment: &Segment,
    ) -> Result<SegmentPass> {
        let groups = shape.heads / shape.kv_heads;
        let scale = f64::from(shape.scale);
        let rows = segment.context.iter().cloned().flatten().chain(segment.keys.clone());
        let keys = self.indices(rows)?;
        let q = q.narrow(0, segment.queries.start, segment.queries.len())?;
        let q = wide(&by_head(&q, shape.heads)?)?;
        let k = wide(&by_head(&k.index_select(&keys, 0)?, shape.kv_heads)?)?;
        let v = wide(&by_head(&v.index_select(&keys, 0)?, shape.kv_heads)?)?;
        let (k, v) = (for_queries(&k, groups)?, for_queries(&v, groups)?);
        let scores = (q.matmul(&k.t()?)? * scale)?;
        let mask = self.mask(segment, shape.window, scores.dtype())?;
        let scores = scores.broadcast_add(&mask)?;
        let log_sum_exp = scores.log_sum_exp(D::Minus1)?;
        let probs = scores.broadcast_sub(&log_sum_exp.unsqueeze(D::Minus1)?)?.exp()?;
        Ok(SegmentPass { q, k, v, probs, log_sum_exp, keys, scale, groups })
    }

    /// 0 where a query may look, minus infinity elsewhere: `[queries, keys]`.
    fn mask(&self, segment: &Segment, window: Option<usize>, dtype: DType) -> Result<Tensor> {
        let before: usize = segment.context.iter().map(|rows| rows.len()).sum();
        let queries = segment.queries.len();
        let keys = before + queries;
        let mut mask = Vec::with_capacity(queries * keys);
        for query in before..before + queries {
            mask.extend((0..keys).map(|key| {
                let seen = key <= query && window.is_none_or(|window| query - key < window);
                if seen { 0f32 } else { f32::NEG_INFINITY }
            }));
        }
        Tensor::from_vec(mask, (queries, keys), &self.device)?.to_dtype(dtype)
    }
}

impl Ops for TensorOps {
    fn embed(&self, table: &Frozen, ids: &[u32]) -> Result<Tensor> {
        table.device()?.index_select(&Tensor::new(ids, &self.device)?, 0)
    }

    fn project(&self, x: &Tensor, weights: &[&Frozen]) -> Result<Vec<Tensor>> {
        weights.iter().map(|w| x.matmul(&w.device()?.t()?)).collect()
    }

    fn project_back(&self, dy: &Tensor, w: &Frozen, sum: Option<Tensor>) -> Result<Tensor> {
        onto(sum, dy.matmul(&w.device()?)?)
    }

    fn adapt(
        &self,
        x: &Tensor,
        groups: &[Range<usize>],
        (factors, transpose): (&Tensor, Transpose),
        scale: f64,
        sum: Option<Tensor>,
    ) -> Result<Tensor> {
        let products = groups.iter().enumerate().map(|(g, rows)| {
            let factor = factors.get(g)?;
            let factor = if transpose == Transpose::Yes { factor.t()? } else { factor };
            x.narrow(0, rows.start, rows.len())?.matmul(&factor)
        });
        let product = end_to_end(products.collect::<Result<Vec<_>>>()?)?;
        onto(sum, if scale == 1.0 { product } else { (product * scale)? })
    }

    fn adapt_gradient(
        &self,
        dy: &Tensor,
        x: &Tensor,
        groups: &[Range<usize>],
        scale: f64,
    ) -> Result<Tensor> {
        let gradients = groups.iter().map(|rows| {
            let part = |t: &Tensor| wide(&t.narrow(0, rows.start, rows.len())?);
            part(dy)?.t()?.matmul(&part(x)?)? * scale
        });
        Tensor::stack(&gradients.collect::<Result<Vec<_>>>()?, 0)
    }

    fn add(&self, a: Tensor, b: &Tensor) -> Result<Tensor> {
        a.broadcast_add(b)
    }

    fn rms_norm(&self, x: &Tensor, gain: &Tensor, eps: f64) -> Result<Tensor> {
        let rows = wide(x)?.reshape(((), gain.elem_count()))?;
        let inverse = inverse_rms(&rows, eps)?;
        let y = rows.broadcast_mul(&inverse)?.broadcast_mul(&wide(gain)?)?;
        y.reshape(x.shape())?.to_dtype(x.dtype())
    }

    fn rms_norm_back(
        &self,
        x: &Tensor,
        gain: &Tensor,
        eps: f64,
        dy: &Tensor,
        sum: Option<Tensor>,
    ) -> Result<Tensor> {
        let width = gain.elem_count();
        let rows = wide(x)?.reshape(((), width))?;
        let inverse = inverse_rms(&rows, eps)?;
        let g = wide(dy)?.reshape(((), width))?.broadcast_mul(&wide(gain)?)?;
        let along = ((&g * &rows)?.sum_keepdim(1)? / width as f64)?;
        let along = (along * inverse.powf(3.0)?)?;
        let dx = (g.broadcast_mul(&inverse)? - rows.broadcast_mul(&along)?)?;
        onto(sum, dx.reshape(x.shape())?.to_dtype(x.dtype())?)
    }

    fn rotate(
        &self,
        x: Tensor,
        head_dim: usize,
        rotation: &Rotation,
        inverse: bool,
    ) -> Result<Tensor> {
        let (tokens, width) = x.dims2()?;
        let half = head_dim / 2;
        let halves = wide(&x)?.reshape((tokens, width / head_dim, 2, half))?;
        let (first, second) = (halves.i((.., .., 0, ..))?, halves.i((.., .., 1, ..))?);
        let (cos, sin) = (rotation.cos.unsqueeze(1)?, rotation.sin.unsqueeze(1)?);
        let sin = if inverse { sin.neg()? } else { sin };
        let turned = [
            (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?,
            (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?,
        ];
        Tensor::stack(&turned, 2)?.reshape((tokens, width))?.to_dtype(x.dtype())
    }

    fn attend(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        shape: AttentionShape,
        segments: &[Segment],
    ) -> Result<Attended> {
        let mut outputs = Vec::with_capacity(segments.len());
        let mut log_sum_exps = Vec::with_capacity(segments.len());
        for segment in &tiles(segments) {
            let pass = self.segment_pass((q, k, v), shape, segment)?;
            outputs.push(by_token(&pass.probs.matmul(&pass.v)?)?.to_dtype(q.dtype())?);
            log_sum_exps.push(pass.log_sum_exp.t()?.contiguous()?);
        }
        Ok(Attended {
            output: Tensor::cat(&outputs, 0)?,
            log_sum_exp: Tensor::cat(&log_sum_exps, 0)?,
        })
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
        let mut dqs = Vec::with_capacity(segments.len());
        let (mut dk, mut dv) = (wide(k)?.zeros_like()?, wide(v)?.zeros_like()?);
        for segment in &tiles(segments) {
            let pass = self.segment_pass((q, k, v), shape, segment)?;
            let rows = (segment.queries.start, segment.queries.len());
            let heads = |t: &Tensor| by_head(&wide(&t.narrow(0, rows.0, rows.1)?)?, shape.heads);
            let (output, d_output) = (heads(&attended.output)?, heads(d_output)?);
            let delta = (&d_output * output)?.sum_keepdim(D::Minus1)?;
            let ds = d_output.matmul(&pass.v.t()?)?.broadcast_sub(&delta)?;
            let ds = (ds * &pass.probs)?;
            dqs.push(by_token(&(ds.matmul(&pass.k)? * pass.scale)?)?.to_dtype(q.dtype())?);
            let segment_dk = (ds.t()?.contiguous()?.matmul(&pass.q)? * pass.scale)?;
            let segment_dv = pass.probs.t()?.contiguous()?.matmul(&d_output)?;
            let segment_dk = by_token(&over_queries(&segment_dk, pass.groups)?)?;
            let segment_dv = by_token(&over_queries(&segment_dv, pass.groups)?)?;
            dk = dk.index_add(&pass.keys, &segment_dk, 0)?;
            dv = dv.index_add(&pass.keys, &segment_dv, 0)?;
        }
        Ok((Tensor::cat(&dqs, 0)?, dk.to_dtype(k.dtype())?, dv.to_dtype(v.dtype())?))
    }

    fn swiglu(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        (wide(gate)?.silu()? * wide(up)?)?.to_dtype(gate.dtype())
    }

    fn swiglu_back(&self, gate: Tensor, up: Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
        let (g, u, dy) = (wide(&gate)?, wide(&up)?, wide(dy)?);
        let sigmoid = (g.neg()?.exp()? + 1.0)?.recip()?;
        let slope = (&sigmoid * ((&g * (1.0 - &sigmoid)?)? + 1.0)?)?;
        let d_up = (&dy * (g * sigmoid)?)?;
        let d_gate = ((dy * u)? * slope)?;
        Ok((d_gate.to_dtype(gate.dtype())?, d_up.to_dtype(gate.dtype())?))
    }

    fn score(
        &self,
        x: &Tensor,
        head: &Frozen,
        targets: &[u32],
        with_gradient: bool,
    ) -> Result<TargetScores> {
        let head = head.device()?;
        let logits = wide(&x.matmul(&head.t()?)?)?;
        let at = Tensor::new(targets, &self.device)?.unsqueeze(1)?;
        let log_sum_exp = logits.log_sum_exp(D::Minus1)?.unsqueeze(1)?;
        let chosen = (logits.gather(&at, 1)? - &log_sum_exp)?;
        let log_probs = chosen.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        let best = logits.argmax(D::Minus1)?.to_vec1::<u32>()?;
        let correct = best.iter().zip(targets).map(|(best, token)| best == token).collect();
        let mut gradient = None;
        if with_gradient {
            let probs = logits.broadcast_sub(&log_sum_exp)?.exp()?;
            let mean = probs.to_dtype(head.dtype())?.matmul(&head)?;
            gradient = Some((head.index_select(&at.squeeze(1)?, 0)? - mean)?);
        }
        Ok(TargetScores { log_probs, correct, gradient })
    }
}

/// `1/√(mean(x²) + eps)` per row: `[rows, 1]`.
fn inverse_rms(rows: &Tensor, eps: f64) -> Result<Tensor> {
    (rows.sqr()?.mean_keepdim(1)? + eps)?.sqrt()?.recip()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_of_queries_see_what_their_segment_sees() {
        let cached = 0..5;
        let prefix = Vec::from_iter([cached]);
        let segments = [
            Segment::sequence(0..TILE),
            Segment { queries: TILE..2 * TILE + 9, context: prefix, keys: 700..709 + TILE },
        ];
        let tiled = tiles(&segments);
        assert_eq!(tiled[0], segments[0]);
        assert_eq!((&tiled[1].queries, &tiled[1].keys), (&(TILE..2 * TILE), &(700..700 + TILE)));
        assert_eq!(tiled[2].context, [0..5, 700..700 + TILE]);
        assert_eq!((tiled[2].queries.len(), &tiled[2].keys), (9, &(700 + TILE..709 + TILE)));
        assert_eq!(tiled.len(), 3);
    }

    #[test]
    fn a_long_sequence_in_tiles_attends_as_the_kernels_do() {
        let shape =
            AttentionShape { heads: 2, kv_heads: 1, head_dim: 4, scale: 0.5, window: Some(300) };
        let tokens = TILE + 90;
        let random = |width: usize, seed: f32| {
            let values = (0..tokens * width).map(|i| (seed * (i + 1) as f32).sin());
            Tensor::from_vec(values.collect::<Vec<f32>>(), (tokens, width), &Device::Cpu).unwrap()
        };
        let (q, k, v, dy) = (random(8, 0.3), random(4, 1.7), random(4, 2.9), random(8, 0.7));
        let segments = [Segment::sequence(0..tokens)];
        let all: [Box<dyn Ops>; 2] = [
            Box::new(TensorOps::new(&Device::Cpu)),
            Box::new(super::super::HostOps::new(crate::kernels::Precision::F32)),
        ];
        let [tensor, host] = all.map(|ops| {
            let attended = ops.attend(&q, &k, &v, shape, &segments).unwrap();
            let (dq, dk, dv) =
                ops.attend_back(&q, &k, &v, &attended, &dy, shape, &segments).unwrap();
            [attended.output, attended.log_sum_exp, dq, dk, dv]
        });
        for (a, b) in tensor.iter().zip(&host) {
            let off = (a - b).unwrap().abs().unwrap().max_all().unwrap();
            assert!(off.to_scalar::<f32>().unwrap() < 1e-4, "{off:?}");
        }
    }
}
