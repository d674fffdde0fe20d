//! Decoder-only language models: files, configuration, tokenizer, forward and backward pass.

mod config;
mod weights;

pub use config::{Family, ModelConfig, RopeScaling};
pub use weights::{DecoderWeights, LayerWeights};
