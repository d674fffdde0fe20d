//! Qwen3 (dense): RMSNorm of queries and keys per head, no biases, heads wider than
//! `hidden_size / num_heads`.

use super::qwen2::upper_layers_window;
use super::{Family, FamilySpec};

pub(super) static SPEC: FamilySpec = FamilySpec {
    family: Family::Qwen3,
    model_types: &["qwen3"],
    gguf_architectures: &["qwen3"],
    qkv_bias: false,
    qk_norm: true,
    gguf_interleaves_heads: false,
    default_head_dim: Some(128),
    default_context: 32768,
    sliding_window: upper_layers_window,
};
