//! Where the values of an exported tensor come from, and how they are written.

use std::io::Write;

use candle_core::quantized::GgmlDType;
use half::{bf16, f16};
use rayon::prelude::*;

use super::{ExportError, FloatFormat, WriteError};
use crate::adapter::{Adapter, Parameter, Target};
use crate::kernels::dequantize_row;
use crate::model::names::{LayerTensor as L, Naming, Tensor};
use crate::model::{LayerWeights, LoadedModel};
use crate::weight::{FrozenWeight, RowOrder};

/// Rows that are computed before they are written: enough to keep all cores busy.
const ROWS_AT_ONCE: usize = 256;

/// A tensor to be written.
#[derive(Debug)]
pub(super) struct Planned<'a> {
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    pub content: Content<'a>,
}

/// Where values come from.
#[derive(Debug)]
pub(super) enum Content<'a> {
    /// The bytes of the base model's file.
    AsItIs(FrozenWeight),
    /// Rows computed in f32, written in a float format and in the order of the file.
    Rows { source: Source<'a>, format: FloatFormat, order: RowOrder },
}

/// The rows of a matrix; a vector is one row.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source<'a> {
    /// Values in memory, in rows of this many.
    Values(&'a [f32], usize),
    /// A matrix of the base model, with what the adapter adds to it.
    Weight(&'a FrozenWeight, Option<Fold<'a>>),
}

/// What an adapter adds to a matrix: `scale · B A`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fold<'a> {
    a: &'a Parameter,
    b: &'a Parameter,
    scale: f32,
}

impl<'a> Fold<'a> {
    /// What `adapter`, which was checked against the model, adds to a projection.
    pub fn of(adapter: &'a Adapter, layer: usize, target: Target) -> Option<Self> {
        let (a, b) = target.tensor_names(layer);
        let (a, b) = (adapter.parameters.get(&a)?, adapter.parameters.get(&b)?);
        Some(Self { a, b, scale: adapter.config.scale() as f32 })
    }

    /// Adds row `row` of `scale · B A`.
    fn add_row(&self, row: usize, out: &mut [f32]) {
        let rank = self.a.shape[0];
        let coefficients = &self.b.values[row * rank..(row + 1) * rank];
        for (coefficient, a) in coefficients.iter().zip(self.a.values.chunks_exact(out.len())) {
            let factor = self.scale * coefficient;
            out.iter_mut().zip(a).for_each(|(out, a)| *out += factor * a);
        }
    }
}

impl Source<'_> {
    fn rows(&self) -> usize {
        match self {
            Source::Values(values, cols) => values.len() / cols,
            Source::Weight(weight, _) => weight.rows(),
        }
    }

    fn cols(&self) -> usize {
        match self {
            Source::Values(_, cols) => *cols,
            Source::Weight(weight, _) => weight.cols(),
        }
    }

    fn fill_row(&self, row: usize, out: &mut [f32]) {
        match self {
            Source::Values(values, cols) => {
                out.copy_from_slice(&values[row * cols..(row + 1) * cols]);
            }
            Source::Weight(weight, fold) => {
                dequantize_row(weight, row, out);
                if let Some(fold) = fold {
                    fold.add_row(row, out);
                }
            }
        }
    }
}

impl Planned<'_> {
    /// The format of the written values.
    pub fn format(&self) -> GgmlDType {
        match &self.content {
            Content::AsItIs(weight) => weight.format(),
            Content::Rows { format: FloatFormat::F32, .. } => GgmlDType::F32,
            Content::Rows { format: FloatFormat::F16, .. } => GgmlDType::F16,
            Content::Rows { format: FloatFormat::Bf16, .. } => GgmlDType::BF16,
        }
    }

    /// Bytes that [`Planned::write`] writes.
    pub fn byte_len(&self) -> usize {
        match &self.content {
            Content::AsItIs(weight) => weight.byte_len(),
            Content::Rows { source, format, .. } => source.rows() * source.cols() * format.size(),
        }
    }

    pub fn write(&self, out: &mut impl Write) -> Result<(), WriteError> {
        match &self.content {
            Content::AsItIs(weight) => {
                (0..weight.rows()).try_for_each(|row| out.write_all(weight.row_bytes(row)))?;
                Ok(())
            }
            Content::Rows { source, format, order } => {
                self.write_rows(out, source, *format, *order)
            }
        }
    }

    fn write_rows(
        &self,
        out: &mut impl Write,
        source: &Source<'_>,
        format: FloatFormat,
        order: RowOrder,
    ) -> Result<(), WriteError> {
        let mut row_at = vec![0; source.rows()];
        for row in 0..source.rows() {
            row_at[order.file_row(row)] = row;
        }
        let cols = source.cols();
        let mut values = vec![0.0; ROWS_AT_ONCE.min(source.rows()) * cols];
        for rows in row_at.chunks(ROWS_AT_ONCE) {
            let values = &mut values[..rows.len() * cols];
            let buffers = values.par_chunks_exact_mut(cols).zip(rows);
            buffers.for_each(|(buffer, &row)| source.fill_row(row, buffer));
            if !fits(values, format) {
                let name = self.name.clone();
                return Err(WriteError::Export(ExportError::Range { name, format }));
            }
            out.write_all(&encode(values, format))?;
        }
        Ok(())
    }
}

fn fits(values: &[f32], format: FloatFormat) -> bool {
    values.iter().all(|&value| match format {
        FloatFormat::F32 => value.is_finite(),
        FloatFormat::F16 => f16::from_f32(value).is_finite(),
        FloatFormat::Bf16 => bf16::from_f32(value).is_finite(),
    })
}

fn encode(values: &[f32], format: FloatFormat) -> Vec<u8> {
    match format {
        FloatFormat::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        FloatFormat::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        FloatFormat::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
    }
}

/// All tensors of a model under Hugging Face's names, with the adapter folded in.
pub(super) fn folded<'a>(
    model: &'a LoadedModel,
    adapter: &'a Adapter,
    format: FloatFormat,
) -> Vec<Planned<'a>> {
    let mut tensors = Vec::new();
    let mut add = |tensor, shape: Vec<usize>, source| {
        let name = Naming::HuggingFace.name(tensor);
        let content = Content::Rows { source, format, order: RowOrder::Natural };
        tensors.push(Planned { name, shape, content });
    };
    let weights = &model.weights;
    let matrix = |weight: &'a FrozenWeight, fold| {
        (vec![weight.rows(), weight.cols()], Source::Weight(weight, fold))
    };
    let vector = |values: &'a [f32]| (vec![values.len()], Source::Values(values, values.len()));
    let (shape, source) = matrix(&weights.embedding, None);
    add(Tensor::Embedding, shape, source);
    for (i, layer) in weights.layers.iter().enumerate() {
        for target in Target::ALL {
            let fold = Fold::of(adapter, i, target);
            let (shape, source) = matrix(projection(layer, target), fold);
            add(Tensor::Layer(i, target.into()), shape, source);
        }
        for (tensor, values) in layer_vectors(layer) {
            let (shape, source) = vector(values);
            add(Tensor::Layer(i, tensor), shape, source);
        }
    }
    let (shape, source) = vector(&weights.final_norm);
    add(Tensor::FinalNorm, shape, source);
    if !model.config.tie_word_embeddings {
        let (shape, source) = matrix(&weights.head, None);
        add(Tensor::Head, shape, source);
    }
    tensors
}

/// The matrix of a layer that an adapter on `target` adapts.
pub(super) fn projection(layer: &LayerWeights, target: Target) -> &FrozenWeight {
    match target {
        Target::QProj => &layer.q_proj,
        Target::KProj => &layer.k_proj,
        Target::VProj => &layer.v_proj,
        Target::OProj => &layer.o_proj,
        Target::GateProj => &layer.gate_proj,
        Target::UpProj => &layer.up_proj,
        Target::DownProj => &layer.down_proj,
    }
}

fn layer_vectors(layer: &LayerWeights) -> impl Iterator<Item = (L, &[f32])> {
    [
        (L::AttentionNorm, Some(&layer.attention_norm)),
        (L::QBias, layer.q_bias.as_ref()),
        (L::KBias, layer.k_bias.as_ref()),
        (L::VBias, layer.v_bias.as_ref()),
        (L::QNorm, layer.q_norm.as_ref()),
        (L::KNorm, layer.k_norm.as_ref()),
        (L::MlpNorm, Some(&layer.mlp_norm)),
    ]
    .into_iter()
    .filter_map(|(tensor, values)| Some((tensor, values?.as_slice())))
}
