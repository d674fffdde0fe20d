//! Decoder-only language models: files, configuration, tokenizer, forward and backward pass.

mod config;
mod decoder;
mod layer;
mod lora;
mod packed;
mod weights;

pub use config::{Family, ModelConfig, RopeScaling};
pub use decoder::{Cache, CancelToken, Decoder, EngineError, ForwardState, PassOptions};
pub use lora::{Dropout, LoraLayer, LoraPair, LoraTensors};
pub use packed::{PackedBatch, TargetToken};
pub use weights::{DecoderWeights, LayerWeights};
