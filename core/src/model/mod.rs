//! Decoder-only language models: files, configuration, tokenizer, forward and backward pass.

mod cache;
mod cancel;
mod chat;
mod decoder;
mod error;
pub mod export;
mod families;
mod gguf;
mod hf;
mod layer;
mod loaded;
mod lora;
mod names;
mod packed;
mod selection;
mod summary;
mod tensors;
mod tokenizer;
mod weights;

pub use crate::config::{Family, ModelConfig, RopeScaling};
pub use cache::{Branches, Cache};
pub use cancel::CancelToken;
pub use chat::{ChatTemplate, ChatTemplateError};
pub use decoder::{Decoder, EngineError, ForwardState, PassOptions, SCORE_ROWS};
pub use error::ModelError;
pub use loaded::LoadedModel;
pub use lora::{Dropout, LoraLayer, LoraPair, LoraTensors};
pub use packed::{PackedBatch, TargetToken};
pub use summary::ModelSummary;
pub use tokenizer::{TextStream, TextTokenizer, TokenizerError};
pub use weights::{DecoderWeights, LayerWeights};
