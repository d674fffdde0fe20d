//! LoRA adapters: what is trained, shared and stored.
//!
//! An [`Adapter`] is a [`LoraConfig`] and a [`ParameterSet`] that carries the names PEFT gives to
//! its tensors, so that files, updates and aggregation speak of the same things.

mod lora;
mod parameters;
mod peft;
mod peft_config;
mod tensor_file;

pub use lora::{LoraConfig, LoraConfigError, Target, TrainedFactors};
pub use parameters::{Layout, LayoutMismatch, Parameter, ParameterSet};
pub use peft::{
    Adapter, AdapterError, CONFIG_FILE, TENSORS_FILE, base_model, read_parameters, write_folder,
};
pub use peft_config::PeftConfigError;
pub use tensor_file::TensorFileError;
pub(crate) use tensor_file::misplaced;
