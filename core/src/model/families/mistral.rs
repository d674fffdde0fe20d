//! Mistral: Llama with a sliding attention window in every layer.
//!
//! GGUF converters write Mistral models as architecture `llama`; files that say `mistral` hold the
//! same.

use super::{Family, FamilySpec, SlidingWindow};

/// The window of transformers' `MistralConfig` where `config.json` does not name the field at all.
const DEFAULT_WINDOW: usize = 4096;

pub(super) static SPEC: FamilySpec = FamilySpec {
    family: Family::Mistral,
    model_types: &["mistral"],
    gguf_architectures: &["mistral"],
    qkv_bias: false,
    qk_norm: false,
    gguf_interleaves_heads: true,
    default_head_dim: None,
    default_context: 4096 * 32,
    sliding_window: |config| {
        let tokens = config.sliding_window.unwrap_or(Some(DEFAULT_WINDOW))?;
        Some(SlidingWindow { tokens, from_layer: 0 })
    },
};
