//! Qwen2 and Qwen2.5: biases on the query, key and value projections; an optional sliding window
//! in the upper layers.

use super::super::hf::HfConfig;
use super::{Family, FamilySpec, SlidingWindow};

/// Defaults of transformers' `Qwen2Config`.
const DEFAULT_WINDOW: usize = 4096;
const DEFAULT_MAX_WINDOW_LAYERS: usize = 28;

pub(super) static SPEC: FamilySpec = FamilySpec {
    family: Family::Qwen2,
    model_types: &["qwen2"],
    gguf_architectures: &["qwen2"],
    qkv_bias: true,
    qk_norm: false,
    gguf_interleaves_heads: false,
    default_head_dim: None,
    default_context: 32768,
    sliding_window: upper_layers_window,
};

/// The window counts only where `use_sliding_window` is set, and not in the first
/// `max_window_layers` layers (the name in the files notwithstanding, those attend to everything).
pub(super) fn upper_layers_window(config: &HfConfig) -> Option<SlidingWindow> {
    if !config.use_sliding_window.unwrap_or(false) {
        return None;
    }
    let tokens = config.sliding_window.unwrap_or(Some(DEFAULT_WINDOW))?;
    let from_layer = config.max_window_layers.unwrap_or(DEFAULT_MAX_WINDOW_LAYERS);
    Some(SlidingWindow { tokens, from_layer })
}
