//! What distinguishes the families of decoders, one file each.
//!
//! A new family is one file with a [`FamilySpec`], a variant of [`Family`] and a line in
//! [`FAMILIES`].

mod llama;
mod mistral;
mod qwen2;
mod qwen3;

use super::error::ModelError;
use super::hf::HfConfig;
use super::names::{LayerTensor as L, Naming, Tensor};
use super::tensors::TensorIndex;
use super::weights::{DecoderWeights, LayerWeights};
use crate::config::{Family, ModelConfig};
use crate::weight::RowOrder;

/// A family of decoders: what its files are called and how its layers differ from Llama's.
#[derive(Debug)]
pub(super) struct FamilySpec {
    pub family: Family,
    /// Values of `model_type` in `config.json`.
    pub model_types: &'static [&'static str],
    /// Values of `general.architecture` in GGUF files.
    pub gguf_architectures: &'static [&'static str],
    /// Whether query, key and value projections have biases.
    pub qkv_bias: bool,
    /// Whether queries and keys pass an RMSNorm per head.
    pub qk_norm: bool,
    /// Whether GGUF files hold query and key rows in [`RowOrder::InterleavedHeads`].
    pub gguf_interleaves_heads: bool,
    /// Width of a head where `config.json` is silent; `None` divides the hidden size by the heads.
    pub default_head_dim: Option<usize>,
    /// Context length where `config.json` is silent.
    pub default_context: usize,
    /// The sliding window that `config.json` asks for.
    pub sliding_window: fn(&HfConfig) -> Option<SlidingWindow>,
}

/// A sliding attention window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SlidingWindow {
    /// Tokens a token attends to, itself included.
    pub tokens: usize,
    /// First layer with the window.
    pub from_layer: usize,
}

/// All families, in the order in which errors list them.
static FAMILIES: &[&FamilySpec] = &[&llama::SPEC, &mistral::SPEC, &qwen2::SPEC, &qwen3::SPEC];

impl FamilySpec {
    /// The family that `config.json` calls `model_type`.
    pub fn by_model_type(model_type: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|spec| spec.model_types.contains(&model_type)).copied()
    }

    /// What sets the models of `family` apart.
    pub fn of(family: Family) -> Option<&'static Self> {
        FAMILIES.iter().find(|spec| spec.family == family).copied()
    }

    /// The family that GGUF files call `architecture`.
    pub fn by_gguf_architecture(architecture: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|spec| spec.gguf_architectures.contains(&architecture)).copied()
    }

    /// The values of `model_type` that can be loaded, for people.
    pub fn known_model_types() -> String {
        join(FAMILIES.iter().flat_map(|spec| spec.model_types))
    }

    /// The GGUF architectures that can be loaded, for people.
    pub fn known_gguf_architectures() -> String {
        join(FAMILIES.iter().flat_map(|spec| spec.gguf_architectures))
    }

    /// Gives every tensor its place in the decoder.
    ///
    /// # Errors
    /// When a tensor is missing, has another shape or format, is cut off, or is left over.
    pub fn assemble(
        &self,
        config: &ModelConfig,
        naming: Naming,
        mut tensors: TensorIndex,
    ) -> Result<DecoderWeights, ModelError> {
        let (hidden, vocab) = (config.hidden_size, config.vocab_size);
        let embedding = tensors.take_matrix(&naming.name(Tensor::Embedding), (vocab, hidden))?;
        // No capacity is reserved: a hostile layer count ends at the first missing tensor.
        let mut layers = Vec::new();
        for layer in 0..config.num_layers {
            layers.push(self.assemble_layer(config, naming, layer, &mut tensors)?);
        }
        let final_norm = tensors.take_vector(&naming.name(Tensor::FinalNorm), hidden)?;
        let head_name = naming.name(Tensor::Head);
        let head = if config.tie_word_embeddings {
            tensors.discard(&head_name);
            embedding.clone()
        } else {
            tensors.take_matrix(&head_name, (vocab, hidden))?
        };
        let leftover = tensors.remaining().find(|(name, _)| !naming.is_derived(name));
        if let Some((tensor, entry)) = leftover {
            return Err(ModelError::UnexpectedTensor {
                path: entry.file.path().to_owned(),
                tensor: tensor.to_owned(),
                family: self.family.name(),
            });
        }
        Ok(DecoderWeights { embedding, layers, final_norm, head })
    }

    fn assemble_layer(
        &self,
        config: &ModelConfig,
        naming: Naming,
        layer: usize,
        tensors: &mut TensorIndex,
    ) -> Result<LayerWeights, ModelError> {
        let (hidden, query, kv) = (config.hidden_size, config.query_size(), config.kv_size());
        let (intermediate, head_dim) = (config.intermediate_size, config.head_dim);
        let heads = if naming == Naming::Gguf && self.gguf_interleaves_heads {
            RowOrder::InterleavedHeads { head_dim }
        } else {
            RowOrder::Natural
        };
        let name = |tensor| naming.name(Tensor::Layer(layer, tensor));
        let mut matrix = |tensor, shape| tensors.take_matrix(&name(tensor), shape);
        let q_proj = matrix(L::QProj, (query, hidden))?.with_row_order(heads);
        let k_proj = matrix(L::KProj, (kv, hidden))?.with_row_order(heads);
        let v_proj = matrix(L::VProj, (kv, hidden))?;
        let o_proj = matrix(L::OProj, (hidden, query))?;
        let gate_proj = matrix(L::GateProj, (intermediate, hidden))?;
        let up_proj = matrix(L::UpProj, (intermediate, hidden))?;
        let down_proj = matrix(L::DownProj, (hidden, intermediate))?;
        let mut vector = |tensor, len| tensors.take_vector(&name(tensor), len);
        let mut optional = |present: bool, tensor, len| {
            if present { vector(tensor, len).map(Some) } else { Ok(None) }
        };
        Ok(LayerWeights {
            q_bias: optional(self.qkv_bias, L::QBias, query)?,
            k_bias: optional(self.qkv_bias, L::KBias, kv)?,
            v_bias: optional(self.qkv_bias, L::VBias, kv)?,
            q_norm: optional(self.qk_norm, L::QNorm, head_dim)?,
            k_norm: optional(self.qk_norm, L::KNorm, head_dim)?,
            attention_norm: vector(L::AttentionNorm, hidden)?,
            mlp_norm: vector(L::MlpNorm, hidden)?,
            q_proj,
            k_proj,
            v_proj,
            o_proj,
            gate_proj,
            up_proj,
            down_proj,
        })
    }
}

fn join<'a>(names: impl Iterator<Item = &'a &'static str>) -> String {
    let names: Vec<_> = names.copied().collect();
    names.join(", ")
}
