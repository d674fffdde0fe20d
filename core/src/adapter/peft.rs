//! Adapters as Hugging Face PEFT folders: `adapter_config.json` and `adapter_model.safetensors`.

use super::{LoraConfig, ParameterSet};

/// A LoRA adapter: configuration and parameters under PEFT's names.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// Rank, strength and targets.
    pub config: LoraConfig,
    /// `…lora_A.weight` `[rank, in]` and `…lora_B.weight` `[out, rank]` per layer and target.
    pub parameters: ParameterSet,
}

/// Why an adapter cannot be read, made or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {}
