//! One layer of a decoder, forward and backward.
//!
//! The backward pass is written by hand: it starts from what the forward pass kept, or computes that
//! again from the layer's input, and yields the gradients of the adapter and of that input, never of a
//! frozen weight. Both ways give the same bits.

use std::ops::Range;

use candle_core::{DType, Device, Error, Result, Tensor};

use super::lora::{AdaptedPass, Dropout, LoraLayer};
use super::selection::Selection;
use super::{LayerWeights, ModelConfig};
use crate::adapter::Target;
use crate::ops::{Attended, AttentionShape, Frozen, Ops, Rotation, Segment};
use crate::weight::FrozenWeight;

/// A layer's frozen tensors where the engine computes.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    index: usize,
    eps: f64,
    attention: AttentionShape,
    /// By target, in forward order.
    projections: [Frozen; Target::ALL.len()],
    q_bias: Option<Tensor>,
    k_bias: Option<Tensor>,
    v_bias: Option<Tensor>,
    attention_norm: Tensor,
    q_norm: Option<Tensor>,
    k_norm: Option<Tensor>,
    mlp_norm: Tensor,
}

/// Keys and values of tokens, `[rows, kv_heads · head_dim]` each.
#[derive(Debug, Clone)]
pub(super) struct KeysAndValues {
    pub keys: Tensor,
    pub values: Tensor,
}

/// Keys and values of earlier tokens, and where those of a pass go.
#[derive(Debug, Clone, Copy)]
pub(super) enum Earlier<'a> {
    /// Behind the earlier ones, in a copy of them.
    Copied(&'a KeysAndValues),
    /// Into the same tensors, into the rows that the segments of the pass name as keys.
    InPlace(&'a KeysAndValues, &'a [Segment]),
}

impl Earlier<'_> {
    /// All keys and values that the pass may see: the earlier ones with its own.
    pub fn with(self, own: KeysAndValues) -> Result<KeysAndValues> {
        match self {
            Self::Copied(earlier) => Ok(KeysAndValues {
                keys: Tensor::cat(&[&earlier.keys, &own.keys], 0)?,
                values: Tensor::cat(&[&earlier.values, &own.values], 0)?,
            }),
            Self::InPlace(all, segments) => {
                for Segment { queries, keys, .. } in segments {
                    let part = |t: &Tensor| t.narrow(0, queries.start, queries.len());
                    all.keys.slice_set(&part(&own.keys)?, 0, keys.start)?;
                    all.values.slice_set(&part(&own.values)?, 0, keys.start)?;
                }
                Ok(all.clone())
            }
        }
    }
}

/// What a pass through a layer is given besides its input.
#[derive(Clone, Copy)]
pub(super) struct LayerPass<'a> {
    pub ops: &'a dyn Ops,
    pub rotation: &'a Rotation,
    pub segments: &'a [Segment],
    /// The rows whose output is wanted; `None` for all.
    pub selection: Option<&'a Selection>,
    pub lora: Option<&'a LoraLayer>,
    /// Rows of each adapter.
    pub adapters: &'a [Range<usize>],
    pub scale: f64,
    /// One for each adapter, or none.
    pub dropout: &'a [Dropout],
}

impl<'a> LayerPass<'a> {
    /// The wanted rows of a tensor that has all of them.
    fn wanted(&self, x: &Tensor) -> Result<Tensor> {
        self.selection.map_or_else(|| Ok(x.clone()), |selection| selection.of(x))
    }

    /// All `rows` rows from the wanted ones; the others are zero.
    fn spread(&self, x: Tensor, rows: usize) -> Result<Tensor> {
        self.selection.map_or(Ok(x.clone()), |selection| selection.spread(&x, rows))
    }

    /// How the wanted rows are rotated.
    fn query_rotation(&self) -> &Rotation {
        self.selection.map_or(self.rotation, |selection| &selection.rotation)
    }

    /// Rows of each adapter in the input of a projection: keys and values are those of all rows.
    fn adapter_rows(&self, target: Target) -> &'a [Range<usize>] {
        match (self.selection, target) {
            (Some(_), Target::KProj | Target::VProj) | (None, _) => self.adapters,
            (Some(selection), _) => &selection.adapters,
        }
    }

    /// How the wanted rows attend.
    fn query_segments(&self) -> &[Segment] {
        self.selection.map_or(self.segments, |selection| &selection.segments)
    }
}

/// Everything a layer's backward pass needs that took a matrix product to compute. Norms and SwiGLU
/// are computed again: they cost little and would double what is kept.
#[derive(Debug)]
pub(super) struct LayerState {
    attention: AttentionState,
    gate: Tensor,
    up: Tensor,
}

/// The same of a layer's first half. Only `x`, `k` and `v` have all rows where some are selected.
#[derive(Debug)]
struct AttentionState {
    /// The layer's input.
    x: Tensor,
    /// Queries and keys after the projection, before their norm; only where the family has one.
    raw: Option<(Tensor, Tensor)>,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attended: Attended,
    /// The residual stream after attention.
    stream: Tensor,
}

impl Layer {
    pub fn new(
        index: usize,
        config: &ModelConfig,
        weights: &LayerWeights,
        device: &Device,
        dtype: DType,
        frozen: impl Fn(&FrozenWeight) -> Result<Frozen>,
    ) -> Result<Self> {
        let vector = |values: &Vec<f32>| vector(values, device, dtype);
        let optional = |values: &Option<Vec<f32>>| values.as_ref().map(vector).transpose();
        Ok(Self {
            index,
            eps: config.rms_norm_eps,
            attention: AttentionShape {
                heads: config.num_heads,
                kv_heads: config.num_kv_heads,
                head_dim: config.head_dim,
                scale: (1.0 / (config.head_dim as f64).sqrt()) as f32,
                window: config.window(index),
            },
            projections: [
                frozen(&weights.q_proj)?,
                frozen(&weights.k_proj)?,
                frozen(&weights.v_proj)?,
                frozen(&weights.o_proj)?,
                frozen(&weights.gate_proj)?,
                frozen(&weights.up_proj)?,
                frozen(&weights.down_proj)?,
            ],
            q_bias: optional(&weights.q_bias)?,
            k_bias: optional(&weights.k_bias)?,
            v_bias: optional(&weights.v_bias)?,
            attention_norm: vector(&weights.attention_norm)?,
            q_norm: optional(&weights.q_norm)?,
            k_norm: optional(&weights.k_norm)?,
            mlp_norm: vector(&weights.mlp_norm)?,
        })
    }

    /// The layer's output `[T, hidden]`, of the selected rows if some are, and the keys and values of all
    /// tokens so far, for a cache.
    pub fn output(
        &self,
        pass: LayerPass,
        x: Tensor,
        earlier: Option<Earlier>,
    ) -> Result<(Tensor, KeysAndValues)> {
        let AttentionState { k, v, stream, .. } = self.attend(pass, x, earlier)?;
        let adapted = |target| self.adapted(pass, target).is_some();
        let hidden = if adapted(Target::GateProj) || adapted(Target::UpProj) {
            let [gate, up] = self.widen(pass, &stream)?;
            pass.ops.swiglu(&gate, &up)?
        } else {
            let normed = pass.ops.rms_norm(&stream, &self.mlp_norm, self.eps)?;
            let [gate, up] = [Target::GateProj, Target::UpProj].map(|target| self.frozen(target));
            pass.ops.gated(&normed, gate, up)?
        };
        Ok((self.narrow(pass, &hidden, &stream)?, KeysAndValues { keys: k, values: v }))
    }

    /// The layer's output as [`Layer::output`] has it, bit by bit, and what its backward pass needs.
    pub fn forward(&self, pass: LayerPass, x: Tensor) -> Result<(Tensor, LayerState)> {
        let state = self.state(pass, x)?;
        let hidden = pass.ops.swiglu(&state.gate, &state.up)?;
        Ok((self.narrow(pass, &hidden, &state.attention.stream)?, state))
    }

    /// The first part of [`Layer::forward`], up to the last projection.
    pub fn state(&self, pass: LayerPass, x: Tensor) -> Result<LayerState> {
        let attention = self.attend(pass, x, None)?;
        let [gate, up] = self.widen(pass, &attention.stream)?;
        Ok(LayerState { attention, gate, up })
    }

    /// The inputs of SwiGLU.
    fn widen(&self, pass: LayerPass, stream: &Tensor) -> Result<[Tensor; 2]> {
        let normed = pass.ops.rms_norm(stream, &self.mlp_norm, self.eps)?;
        self.project(pass, [Target::GateProj, Target::UpProj], &normed)
    }

    /// The stream with what SwiGLU's output adds to it.
    fn narrow(&self, pass: LayerPass, hidden: &Tensor, stream: &Tensor) -> Result<Tensor> {
        let [y] = self.project(pass, [Target::DownProj], hidden)?;
        pass.ops.add(y, stream)
    }

    /// The first half of the layer, to the stream after attention.
    fn attend(
        &self,
        pass: LayerPass,
        x: Tensor,
        earlier: Option<Earlier>,
    ) -> Result<AttentionState> {
        let ops = pass.ops;
        let normed = ops.rms_norm(&x, &self.attention_norm, self.eps)?;
        let [q, k, v] = match pass.selection {
            None => self.project(pass, [Target::QProj, Target::KProj, Target::VProj], &normed)?,
            Some(selection) => {
                let [q] = self.project(pass, [Target::QProj], &selection.of(&normed)?)?;
                let [k, v] = self.project(pass, [Target::KProj, Target::VProj], &normed)?;
                [q, k, v]
            }
        };
        drop(normed);
        let biased = |y, bias: &Option<Tensor>| match bias {
            Some(bias) => ops.add(y, bias),
            None => Ok(y),
        };
        let (mut q, mut k) = (biased(q, &self.q_bias)?, biased(k, &self.k_bias)?);
        let mut v = biased(v, &self.v_bias)?;
        let mut raw = None;
        if let (Some(q_norm), Some(k_norm)) = (&self.q_norm, &self.k_norm) {
            let normed = (ops.rms_norm(&q, q_norm, self.eps)?, ops.rms_norm(&k, k_norm, self.eps)?);
            raw = Some((q, k));
            (q, k) = normed;
        }
        let q = ops.rotate(q, self.attention.head_dim, pass.query_rotation(), false)?;
        k = ops.rotate(k, self.attention.head_dim, pass.rotation, false)?;
        if let Some(earlier) = earlier {
            KeysAndValues { keys: k, values: v } =
                earlier.with(KeysAndValues { keys: k, values: v })?;
        }
        let attended = ops.attend(&q, &k, &v, self.attention, pass.query_segments())?;
        let [stream] = self.project(pass, [Target::OProj], &attended.output)?;
        let stream = ops.add(stream, &pass.wanted(&x)?)?;
        Ok(AttentionState { x, raw, q, k, v, attended, stream })
    }

    /// Gradients of the layer's adapter and of its input, given that of its output, which has the rows
    /// that [`Layer::forward`] yields.
    pub fn backward(
        &self,
        pass: LayerPass,
        state: LayerState,
        dy: Tensor,
    ) -> Result<(LoraLayer, Tensor)> {
        let mut gradients = LoraLayer::default();
        let ops = pass.ops;
        let LayerState { attention, gate, up } = state;
        let AttentionState { x, raw, q, k, v, attended, stream } = attention;

        let hidden = || ops.swiglu(&gate, &up);
        let hidden = self.adapter_input(pass, &[Target::DownProj], hidden)?;
        let d_hidden =
            self.project_back(pass, Target::DownProj, &hidden, &dy, None, &mut gradients)?;
        drop(hidden);
        let (d_gate, d_up) = ops.swiglu_back(gate, up, &d_hidden)?;
        drop(d_hidden);
        let norm = &self.mlp_norm;
        let normed = || ops.rms_norm(&stream, norm, self.eps);
        let normed = self.adapter_input(pass, &[Target::GateProj, Target::UpProj], normed)?;
        let d_normed =
            self.project_back(pass, Target::GateProj, &normed, &d_gate, None, &mut gradients)?;
        drop(d_gate);
        let sum = Some(d_normed);
        let d_normed =
            self.project_back(pass, Target::UpProj, &normed, &d_up, sum, &mut gradients)?;
        drop((d_up, normed));
        let d_stream = ops.rms_norm_back(&stream, norm, self.eps, &d_normed, Some(dy))?;
        drop((stream, d_normed));

        let output = Some(attended.output.clone());
        let d_output =
            self.project_back(pass, Target::OProj, &output, &d_stream, None, &mut gradients)?;
        drop(output);
        let segments = pass.query_segments();
        let (dq, dk, dv) =
            ops.attend_back(&q, &k, &v, &attended, &d_output, self.attention, segments)?;
        let head_dim = self.attention.head_dim;
        let mut dq = ops.rotate(dq, head_dim, pass.query_rotation(), true)?;
        let mut dk = ops.rotate(dk, head_dim, pass.rotation, true)?;
        if let (Some((raw_q, raw_k)), Some(q_norm), Some(k_norm)) =
            (&raw, &self.q_norm, &self.k_norm)
        {
            dq = ops.rms_norm_back(raw_q, q_norm, self.eps, &dq, None)?;
            dk = ops.rms_norm_back(raw_k, k_norm, self.eps, &dk, None)?;
        }
        drop((q, k, v, attended));
        let normed = || ops.rms_norm(&x, &self.attention_norm, self.eps);
        let targets = [Target::QProj, Target::KProj, Target::VProj];
        let normed = self.adapter_input(pass, &targets, normed)?;
        let queries = normed.as_ref().map(|normed| pass.wanted(normed)).transpose()?;
        let d_queries =
            self.project_back(pass, Target::QProj, &queries, &dq, None, &mut gradients)?;
        drop((queries, dq));
        let rows = x.dims2()?.0;
        let mut d_normed = pass.spread(d_queries, rows)?;
        for (target, dy) in [(Target::KProj, dk), (Target::VProj, dv)] {
            let sum = Some(d_normed);
            d_normed = self.project_back(pass, target, &normed, &dy, sum, &mut gradients)?;
        }
        let d_stream = Some(pass.spread(d_stream, rows)?);
        let dx = ops.rms_norm_back(&x, &self.attention_norm, self.eps, &d_normed, d_stream)?;
        Ok((gradients, dx))
    }

    /// Projections of one input, with their adapters.
    fn project<const N: usize>(
        &self,
        pass: LayerPass,
        targets: [Target; N],
        x: &Tensor,
    ) -> Result<[Tensor; N]> {
        let weights = targets.map(|target| self.frozen(target));
        let outputs = targets.into_iter().zip(pass.ops.project(x, &weights)?);
        let adapted = outputs.map(|(target, y)| match self.adapted(pass, target) {
            Some(adapted) => adapted.forward(x, y),
            None => Ok(y),
        });
        let adapted: Vec<Tensor> = adapted.collect::<Result<_>>()?;
        adapted.try_into().map_err(|_| Error::msg("a projection has no output"))
    }

    /// The input of projections, computed where the adapter of one of them needs it for its gradient.
    fn adapter_input(
        &self,
        pass: LayerPass,
        targets: &[Target],
        compute: impl FnOnce() -> Result<Tensor>,
    ) -> Result<Option<Tensor>> {
        let adapted = targets.iter().any(|&target| self.adapted(pass, target).is_some());
        adapted.then(compute).transpose()
    }

    /// The gradient of a projection's input, added to `sum`; the adapter's goes into `gradients`. An
    /// adapter needs the input `x` itself.
    fn project_back(
        &self,
        pass: LayerPass,
        target: Target,
        x: &Option<Tensor>,
        dy: &Tensor,
        sum: Option<Tensor>,
        gradients: &mut LoraLayer,
    ) -> Result<Tensor> {
        let dx = pass.ops.project_back(dy, self.frozen(target), sum)?;
        let (Some(adapted), Some(x)) = (self.adapted(pass, target), x) else { return Ok(dx) };
        let (pair, dx) = adapted.backward(x, dy, dx)?;
        gradients[target as usize] = Some(pair);
        Ok(dx)
    }

    fn frozen(&self, target: Target) -> &Frozen {
        &self.projections[target as usize]
    }

    fn adapted<'a>(&self, pass: LayerPass<'a>, target: Target) -> Option<AdaptedPass<'a>> {
        let lora = pass.lora?[target as usize].as_ref()?;
        let LayerPass { ops, scale, dropout, .. } = pass;
        let rows = pass.adapter_rows(target);
        Some(AdaptedPass { ops, lora, rows, scale, dropout, layer: self.index, target })
    }
}

/// A short frozen vector on a device.
pub(super) fn vector(values: &[f32], device: &Device, dtype: DType) -> Result<Tensor> {
    Tensor::from_slice(values, values.len(), device)?.to_dtype(dtype)
}
