//! The engine: a frozen decoder that runs forward, keeps each layer's input, and runs backward layer
//! by layer to the gradients of a LoRA adapter.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use super::cache::{Branches, Cache, after_cache};
use super::cancel::CancelToken;
use super::layer::{Earlier, KeysAndValues, Layer, LayerPass, LayerState, vector};
use super::lora::{Dropout, LoraLayer, LoraTensors, gradients_by_name};
use super::packed::{PackedBatch, TargetToken};
use super::selection::Selection;
use super::{DecoderWeights, ModelConfig};
use crate::adapter::{Adapter, ParameterSet};
use crate::kernels::Precision;
#[cfg(feature = "cuda")]
use crate::kernels::cuda::Card;
#[cfg(feature = "cuda")]
use crate::ops::CudaOps;
use crate::ops::{Frozen, HostOps, Ops, Rotation, Segment, TargetScores, TensorOps};

/// Rows of logits that exist at once where nobody planned otherwise.
pub const SCORE_ROWS: usize = 256;

/// Why a pass through the decoder ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A token that the model does not have.
    #[error("token {token} is outside the model's vocabulary of {vocabulary}")]
    UnknownToken {
        /// The token id.
        token: u32,
        /// Tokens the model has.
        vocabulary: usize,
    },
    /// The model computes NaN or infinities.
    #[error(
        "the model's logits are not finite numbers: its weights, or the adapter's, are damaged"
    )]
    NotFinite,
    /// Someone asked to stop, through [`CancelToken`].
    #[error("cancelled")]
    Cancelled,
    /// The device failed, most often for lack of memory.
    #[error("the device failed: {0}")]
    Device(#[from] candle_core::Error),
}

/// A frozen decoder, ready to compute. Cheap to share: it holds the weights' mapping, not a copy.
pub struct Decoder {
    config: ModelConfig,
    device: Device,
    dtype: DType,
    precision: Precision,
    ops: Box<dyn Ops>,
    /// For tokens that follow a cache, which may be few.
    writing_ops: Box<dyn Ops>,
    embedding: Frozen,
    head: Frozen,
    final_norm: Tensor,
    layers: Vec<Layer>,
    inverse_frequencies: Vec<f64>,
}

/// What stays of a forward pass for the backward pass.
#[derive(Debug)]
pub struct ForwardState {
    rotation: Rotation,
    /// The rows that predict a target.
    selection: Selection,
    layers: Vec<Kept>,
    /// The residual stream after the last layer, of the selected rows.
    last: Tensor,
}

/// What is kept of a layer for its backward pass.
#[derive(Debug)]
enum Kept {
    /// Its input alone; the rest is computed again.
    Input(Tensor),
    /// All that took a matrix product.
    State(Box<LayerState>),
}

/// The tokens of a pass and how they attend.
struct Tokens<'a> {
    ids: &'a [u32],
    rotation: &'a Rotation,
    segments: &'a [Segment],
    /// The rows whose final state is wanted; `None` for all.
    selection: Option<&'a Selection>,
    /// Rows of each adapter.
    adapters: Vec<Range<usize>>,
    /// Keys and values of earlier tokens, layer by layer; none for a pass of its own.
    earlier: Vec<Earlier<'a>>,
}

impl<'a> Tokens<'a> {
    /// Those of a batch, with nothing before them.
    fn of(
        batch: &'a PackedBatch,
        rotation: &'a Rotation,
        selection: Option<&'a Selection>,
    ) -> Self {
        let adapters = batch.rows_of_adapters();
        let (ids, segments) = (&batch.ids, &batch.segments);
        Self { ids, rotation, segments, selection, adapters, earlier: Vec::new() }
    }
}

/// What varies between passes besides the tokens.
#[derive(Clone)]
pub struct PassOptions<'a> {
    /// The adapter, if any; where adapters share the pass, as many as the batch names rows for.
    pub lora: Option<&'a LoraTensors>,
    /// Dropout of the adapters' inputs, in training: one for each, or none.
    pub dropout: &'a [Dropout],
    /// Layers, counted from the last, whose activations are kept for the backward pass; the others
    /// keep their input and compute the rest again. Changes time and memory, not a bit of the result.
    pub kept_layers: usize,
    /// Rows of logits that exist at once. Changes time and memory, not a bit of the result.
    pub score_rows: usize,
    /// Where to look for the wish to stop.
    pub cancel: CancelToken,
}

impl Default for PassOptions<'_> {
    fn default() -> Self {
        Self {
            lora: None,
            dropout: &[],
            kept_layers: 0,
            score_rows: SCORE_ROWS,
            cancel: CancelToken::default(),
        }
    }
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Decoder {
    /// A decoder on `device`. On the processor the weights stay as they are in their file and
    /// `precision` says how products with them round. Elsewhere quantised ones are kept as they are and
    /// decoded for each product, others are converted once, to f32 or bf16, in which it computes.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn new(
        config: ModelConfig,
        weights: &DecoderWeights,
        device: &Device,
        precision: Precision,
    ) -> Result<Self, EngineError> {
        if device.is_cpu() {
            let ops: [Box<dyn Ops>; 2] =
                [Box::new(HostOps::new(precision)), Box::new(HostOps::for_writing(precision))];
            let numbers = (DType::F32, precision);
            return Self::build(config, weights, device, numbers, ops, |weight| {
                Ok(Frozen::Host(weight.clone()))
            });
        }
        let ops = [device_ops(device)?, device_ops(device)?];
        Self::on_device(config, weights, device, precision, ops)
    }

    /// A decoder whose weights are on a device and in the type that `precision` names.
    fn on_device(
        config: ModelConfig,
        weights: &DecoderWeights,
        device: &Device,
        precision: Precision,
        ops: [Box<dyn Ops>; 2],
    ) -> Result<Self, EngineError> {
        let dtype = match precision {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
        };
        Self::build(config, weights, device, (dtype, precision), ops, |weight| {
            Frozen::packed(weight, device, dtype)
        })
    }

    /// A decoder that computes with candle's own operations in float type `dtype`, to which all
    /// weights are decoded: in f64 the reference that tests compare with.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn plain(
        config: ModelConfig,
        weights: &DecoderWeights,
        device: &Device,
        dtype: DType,
    ) -> Result<Self, EngineError> {
        let ops = TensorOps::new(device);
        let ops: [Box<dyn Ops>; 2] = [Box::new(ops.clone()), Box::new(ops)];
        Self::build(config, weights, device, (dtype, Precision::F32), ops, |weight| {
            Frozen::on_device(weight, device, dtype)
        })
    }

    fn build(
        config: ModelConfig,
        weights: &DecoderWeights,
        device: &Device,
        (dtype, precision): (DType, Precision),
        [ops, writing_ops]: [Box<dyn Ops>; 2],
        frozen: impl Fn(&crate::weight::FrozenWeight) -> candle_core::Result<Frozen>,
    ) -> Result<Self, EngineError> {
        let layers = weights.layers.iter().enumerate();
        let layers = layers.map(|(i, layer)| Layer::new(i, &config, layer, device, dtype, &frozen));
        let layers = layers.collect::<candle_core::Result<Vec<_>>>()?;
        let embedding = frozen(&weights.embedding)?;
        let head = match config.tie_word_embeddings {
            true => embedding.clone(),
            false => frozen(&weights.head)?,
        };
        Ok(Self {
            final_norm: vector(&weights.final_norm, device, dtype)?,
            inverse_frequencies: config.inverse_frequencies(),
            device: device.clone(),
            config,
            dtype,
            precision,
            ops,
            writing_ops,
            embedding,
            head,
            layers,
        })
    }

    /// Shape and constants of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// How products with frozen weights round.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Where the decoder computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Copies an adapter to where the decoder computes.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn lora_tensors(&self, adapter: &Adapter) -> Result<LoraTensors, EngineError> {
        self.stacked_lora_tensors(&[adapter])
    }

    /// Copies adapters that share a pass to where the decoder computes.
    ///
    /// # Errors
    /// When their shapes or strengths differ, or the device has no room.
    pub fn stacked_lora_tensors(&self, adapters: &[&Adapter]) -> Result<LoraTensors, EngineError> {
        Ok(LoraTensors::new(adapters, self.config.num_layers, &self.device, self.dtype)?)
    }

    /// Runs all layers and keeps what [`Decoder::score`] and [`Decoder::backward`] need. In the last
    /// layer only the rows that predict a target are computed.
    ///
    /// # Errors
    /// When a token is unknown, on cancellation, or when the device fails.
    pub fn forward(
        &self,
        batch: &PackedBatch,
        options: &PassOptions,
    ) -> Result<ForwardState, EngineError> {
        let rotation = self.rotation(&batch.positions)?;
        let selection = self.selection(batch, &batch.segments, &rotation)?;
        let tokens = Tokens::of(batch, &rotation, Some(&selection));
        let mut layers = Vec::with_capacity(self.layers.len());
        let recomputed = self.layers.len().saturating_sub(options.kept_layers);
        let last = self.run(&tokens, options, |layer, pass, x, _| {
            let (y, kept) = if layers.len() < recomputed {
                (layer.output(pass, x.clone(), None)?.0, Kept::Input(x))
            } else {
                let (y, state) = layer.forward(pass, x)?;
                (y, Kept::State(Box::new(state)))
            };
            layers.push(kept);
            Ok(y)
        })?;
        Ok(ForwardState { rotation, selection, layers, last })
    }

    /// Runs all layers for their output alone; `keep` is given each layer's keys and values in turn.
    /// Yields the stream after the last.
    fn run_to_end(
        &self,
        tokens: &Tokens,
        options: &PassOptions,
        mut keep: impl FnMut(KeysAndValues),
    ) -> Result<Tensor, EngineError> {
        self.run(tokens, options, |layer, pass, x, earlier| {
            let (y, keys_and_values) = layer.output(pass, x, earlier)?;
            keep(keys_and_values);
            Ok(y)
        })
    }

    /// Runs all layers, each by `step`, which is given its input and yields its output.
    fn run(
        &self,
        tokens: &Tokens,
        options: &PassOptions,
        mut step: impl FnMut(&Layer, LayerPass, Tensor, Option<Earlier>) -> candle_core::Result<Tensor>,
    ) -> Result<Tensor, EngineError> {
        if options.lora.is_some_and(|lora| lora.adapters != tokens.adapters.len()) {
            return Err(
                candle_core::Error::msg("the batch is for another number of adapters").into()
            );
        }
        let mut x = self.embed(tokens.ids)?;
        for (i, layer) in self.layers.iter().enumerate() {
            options.cancel.check()?;
            let pass = self.layer_pass(i, tokens, options);
            x = step(layer, pass, x, tokens.earlier.get(i).copied())?;
        }
        Ok(x)
    }

    /// Log-probabilities of a batch's targets, with at most [`PassOptions::score_rows`] rows of logits
    /// at once, so that no `[tokens, vocabulary]` matrix exists; `with_gradient` also computes what
    /// [`Decoder::backward`] needs of the head. `state` must come from [`Decoder::forward`] over a
    /// batch with these targets.
    ///
    /// # Errors
    /// On cancellation, which it looks for between chunks, or when the device fails.
    pub fn score(
        &self,
        state: &ForwardState,
        targets: &[TargetToken],
        with_gradient: bool,
        options: &PassOptions,
    ) -> Result<TargetScores, EngineError> {
        self.score_rows(&state.last, &state.selection, targets, with_gradient, options)
    }

    /// [`Decoder::score`] from the stream after the last layer.
    fn score_rows(
        &self,
        last: &Tensor,
        selection: &Selection,
        targets: &[TargetToken],
        with_gradient: bool,
        options: &PassOptions,
    ) -> Result<TargetScores, EngineError> {
        self.check_tokens(targets.iter().map(|target| target.token))?;
        let tokens: Vec<u32> = targets.iter().map(|target| target.token).collect();
        let rows = last.index_select(&self.places(selection, targets)?, 0)?;
        let normed = self.ops.rms_norm(&rows, &self.final_norm, self.config.rms_norm_eps)?;
        let mut scores = TargetScores { log_probs: vec![], correct: vec![], gradient: None };
        let mut gradients = Vec::new();
        let chunk = options.score_rows.max(1);
        for (i, tokens) in tokens.chunks(chunk).enumerate() {
            options.cancel.check()?;
            let rows = normed.narrow(0, i * chunk, tokens.len())?;
            let part = self.ops.score(&rows, &self.head, tokens, with_gradient)?;
            scores.log_probs.extend(part.log_probs);
            scores.correct.extend(part.correct);
            gradients.extend(part.gradient);
        }
        if with_gradient {
            scores.gradient = Some(match gradients.is_empty() {
                true => normed.zeros_like()?,
                false => Tensor::cat(&gradients, 0)?,
            });
        }
        Ok(scores)
    }

    /// Gradients of the adapters for `loss = Σ weights[i] · log p(targets[i])`, of each in the order
    /// of their rows, by PEFT's tensor names.
    ///
    /// `scores` must come from [`Decoder::score`] with its gradient, over the same targets.
    ///
    /// # Errors
    /// On cancellation or when the device fails.
    pub fn backward(
        &self,
        batch: &PackedBatch,
        state: ForwardState,
        scores: TargetScores,
        weights: &[f64],
        options: &PassOptions,
    ) -> Result<Vec<ParameterSet>, EngineError> {
        let ForwardState { rotation, selection, layers: mut kept, last } = state;
        let mut dx = self.head_backward(batch, &last, &selection, scores, weights)?;
        drop(last);
        let tokens = Tokens::of(batch, &rotation, Some(&selection));
        let mut gradients: Vec<LoraLayer> = Vec::with_capacity(self.layers.len());
        for (i, layer) in self.layers.iter().enumerate().rev() {
            options.cancel.check()?;
            let pass = self.layer_pass(i, &tokens, options);
            let state = match kept.pop() {
                Some(Kept::State(state)) => *state,
                Some(Kept::Input(x)) => layer.state(pass, x)?,
                None => return Err(candle_core::Error::msg("the pass kept too few layers").into()),
            };
            let (layer_gradients, next) = layer.backward(pass, state, dx)?;
            gradients.push(layer_gradients);
            dx = next;
        }
        gradients.reverse();
        Ok(gradients_by_name(&gradients, tokens.adapters.len())?)
    }

    /// Gradient of the loss with respect to the selected rows of the stream after the last layer.
    fn head_backward(
        &self,
        batch: &PackedBatch,
        last: &Tensor,
        selection: &Selection,
        scores: TargetScores,
        weights: &[f64],
    ) -> Result<Tensor, EngineError> {
        let Some(gradient) = scores.gradient else {
            return Err(candle_core::Error::msg("the scores carry no gradient").into());
        };
        let weights = Tensor::new(weights, &self.device)?.to_dtype(self.dtype)?.unsqueeze(1)?;
        let d_normed = gradient.broadcast_mul(&weights)?;
        let at = self.places(selection, &batch.targets)?;
        let rows = last.index_select(&at, 0)?;
        let (norm, eps) = (&self.final_norm, self.config.rms_norm_eps);
        let d_rows = self.ops.rms_norm_back(&rows, norm, eps, &d_normed, None)?;
        Ok(last.zeros_like()?.index_add(&at, &d_rows, 0)?)
    }

    /// Logits of every row of a batch: `[tokens, vocabulary]`. For generation and tests; training
    /// uses [`Decoder::score`], which never holds such a matrix.
    ///
    /// # Errors
    /// When a token is unknown, on cancellation, or when the device fails.
    pub fn logits(
        &self,
        batch: &PackedBatch,
        options: &PassOptions,
    ) -> Result<Tensor, EngineError> {
        let rotation = self.rotation(&batch.positions)?;
        let tokens = Tokens::of(batch, &rotation, None);
        let last = self.run_to_end(&tokens, options, drop)?;
        self.head_logits(&last)
    }

    /// Runs tokens that follow what `cache` holds and appends them to it; yields the logits after
    /// the last of them: `[vocabulary]`.
    ///
    /// # Errors
    /// When there are no tokens or one is unknown, on cancellation, or when the device fails.
    pub fn extend(
        &self,
        cache: &mut Cache,
        ids: &[u32],
        options: &PassOptions,
    ) -> Result<Tensor, EngineError> {
        let before = cache.len()?;
        let positions: Vec<u32> = (before..before + ids.len()).map(|p| p as u32).collect();
        let segments = [after_cache(before, &Segment::sequence(0..ids.len()))];
        let rotation = self.rotation(&positions)?;
        let end = ids.len().saturating_sub(1) as u32;
        let all = 0..ids.len();
        let adapters = Vec::from_iter([all]);
        let selection = Selection::new([end], &segments, &adapters, &rotation, &self.device)?;
        let tokens = Tokens {
            ids,
            rotation: &rotation,
            segments: &segments,
            selection: Some(&selection),
            adapters,
            earlier: cache.earlier(),
        };
        let mut layers = Vec::with_capacity(self.layers.len());
        let last = self.run_to_end(&tokens, options, |layer| layers.push(layer))?;
        // Only a whole pass changes the cache, so that a cancelled one leaves it as it was.
        cache.layers = layers;
        Ok(self.head_logits(&last)?.squeeze(0)?)
    }

    /// Places for `places` texts at a time that go on from what `cache` holds.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn branches(&self, cache: &Cache, places: usize) -> Result<Branches, EngineError> {
        let shape = (self.layers.len(), self.config.num_kv_heads * self.config.head_dim);
        Ok(Branches::new(cache, places, shape, (self.dtype, &self.device))?)
    }

    /// Runs more tokens of some of the texts in one pass; yields the logits after the last token of
    /// each, in the order of `more`, which names a place at most once: `[more, vocabulary]`.
    ///
    /// # Errors
    /// When a text has no more tokens, a token is unknown, on cancellation, or when the device fails.
    ///
    /// # Panics
    /// When `more` names a place that is not there.
    pub fn extend_branches(
        &self,
        branches: &mut Branches,
        more: &[(usize, &[u32])],
        options: &PassOptions,
    ) -> Result<Tensor, EngineError> {
        if more.iter().any(|(_, ids)| ids.is_empty()) {
            return Err(candle_core::Error::msg("a text goes on with no token").into());
        }
        let lengths = || more.iter().map(|(place, ids)| (*place, ids.len()));
        branches.reserve(lengths())?;
        let segments = branches.segments(lengths());
        let ids = more.iter().flat_map(|(_, ids)| ids.iter().copied()).collect::<Vec<_>>();
        let positions: Vec<u32> = segments.iter().flat_map(Segment::positions).collect();
        let rotation = self.rotation(&positions)?;
        let ends = segments.iter().map(|segment| segment.queries.end as u32 - 1);
        let all = 0..ids.len();
        let adapters = Vec::from_iter([all]);
        let selection = Selection::new(ends, &segments, &adapters, &rotation, &self.device)?;
        let tokens = Tokens {
            ids: &ids,
            rotation: &rotation,
            segments: &segments,
            selection: Some(&selection),
            adapters,
            earlier: branches.earlier(&segments),
        };
        let last = self.run_to_end(&tokens, options, drop)?;
        branches.grow(lengths());
        self.head_logits(&last)
    }

    /// Log-probabilities of continuations of what `cache` holds, all in one pass; the cache stays as
    /// it is. `batch` holds the continuations as sequences of their own, its positions and rows
    /// counted from zero; the prefix is put before each of them.
    ///
    /// # Errors
    /// When a token is unknown, on cancellation, or when the device fails.
    pub fn score_after(
        &self,
        cache: &Cache,
        batch: &PackedBatch,
        options: &PassOptions,
    ) -> Result<TargetScores, EngineError> {
        let before = cache.len()?;
        let positions: Vec<u32> =
            batch.positions.iter().map(|&position| position + before as u32).collect();
        let segments: Vec<Segment> =
            batch.segments.iter().map(|segment| after_cache(before, segment)).collect();
        let rotation = self.rotation(&positions)?;
        let selection = self.selection(batch, &segments, &rotation)?;
        let tokens = Tokens {
            ids: &batch.ids,
            rotation: &rotation,
            segments: &segments,
            selection: Some(&selection),
            adapters: batch.rows_of_adapters(),
            earlier: cache.earlier(),
        };
        let last = self.run_to_end(&tokens, options, drop)?;
        self.score_rows(&last, &selection, &batch.targets, false, options)
    }

    /// Logits of rows of the stream after the last layer: `[rows, vocabulary]`.
    fn head_logits(&self, last: &Tensor) -> Result<Tensor, EngineError> {
        let normed = self.ops.rms_norm(last, &self.final_norm, self.config.rms_norm_eps)?;
        let mut logits = self.writing_ops.project(&normed, &[&self.head])?;
        Ok(logits.swap_remove(0))
    }

    /// The rows that predict a batch's targets, which attends by `segments`.
    fn selection(
        &self,
        batch: &PackedBatch,
        segments: &[Segment],
        rotation: &Rotation,
    ) -> Result<Selection, EngineError> {
        let rows = batch.targets.iter().map(|target| target.row);
        let adapters = batch.rows_of_adapters();
        Ok(Selection::new(rows, segments, &adapters, rotation, &self.device)?)
    }

    fn layer_pass<'a>(
        &'a self,
        layer: usize,
        tokens: &'a Tokens<'_>,
        options: &PassOptions<'a>,
    ) -> LayerPass<'a> {
        LayerPass {
            ops: if tokens.earlier.is_empty() { &*self.ops } else { &*self.writing_ops },
            rotation: tokens.rotation,
            segments: tokens.segments,
            selection: tokens.selection.filter(|_| layer + 1 == self.layers.len()),
            lora: options.lora.and_then(|lora| lora.layers.get(layer)),
            adapters: &tokens.adapters,
            scale: options.lora.map_or(1.0, |lora| lora.scale),
            dropout: options.dropout,
        }
    }

    fn embed(&self, ids: &[u32]) -> Result<Tensor, EngineError> {
        self.check_tokens(ids.iter().copied())?;
        Ok(self.ops.embed(&self.embedding, ids)?)
    }

    fn check_tokens(&self, mut ids: impl Iterator<Item = u32>) -> Result<(), EngineError> {
        let vocabulary = self.embedding.rows().min(self.head.rows());
        match ids.find(|&id| id as usize >= vocabulary) {
            Some(token) => Err(EngineError::UnknownToken { token, vocabulary }),
            None => Ok(()),
        }
    }

    /// Where the rows of `targets` stand among the selected ones.
    fn places(
        &self,
        selection: &Selection,
        targets: &[TargetToken],
    ) -> Result<Tensor, EngineError> {
        let places = targets.iter().map(|target| selection.place(target.row));
        let Some(places) = places.collect::<Option<Vec<u32>>>() else {
            return Err(candle_core::Error::msg("a target's row was not computed").into());
        };
        let len = places.len();
        Ok(Tensor::from_vec(places, len, &self.device)?)
    }

    fn rotation(&self, positions: &[u32]) -> Result<Rotation, EngineError> {
        let half = self.inverse_frequencies.len();
        let angles = positions.iter().flat_map(|&position| {
            self.inverse_frequencies.iter().map(move |frequency| f64::from(position) * frequency)
        });
        let (sin, cos): (Vec<f64>, Vec<f64>) = angles.map(f64::sin_cos).unzip();
        // Half-precision angles would blur long contexts; `rotate` computes in f32 or wider.
        let dtype = if self.dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let table = |values: Vec<f64>| match dtype {
            DType::F64 => Tensor::from_vec(values, (positions.len(), half), &self.device),
            _ => {
                let values: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
                Tensor::from_vec(values, (positions.len(), half), &self.device)
            }
        };
        Ok(Rotation { cos: table(cos)?, sin: table(sin)? })
    }
}

/// The operations of a device that is not the processor.
fn device_ops(device: &Device) -> candle_core::Result<Box<dyn Ops>> {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        return Ok(Box::new(CudaOps::new(Card::new(device)?)));
    }
    Ok(Box::new(TensorOps::new(device)))
}

#[cfg(test)]
mod tests;
