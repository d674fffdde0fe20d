//! Llama 2 and 3, and what shares their architecture: SmolLM2, TinyLlama.

use super::{Family, FamilySpec};

pub(super) static SPEC: FamilySpec = FamilySpec {
    family: Family::Llama,
    model_types: &["llama"],
    gguf_architectures: &["llama"],
    qkv_bias: false,
    qk_norm: false,
    gguf_interleaves_heads: true,
    default_head_dim: None,
    default_context: 2048,
    sliding_window: |_| None,
};
