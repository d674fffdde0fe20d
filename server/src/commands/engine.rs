//! Opening a model to compute with: flags and steps that many commands share.

use std::path::{Path, PathBuf};

use clap::Args;
use fleetune_core::adapter::Adapter;
use fleetune_core::model::{Decoder, LoadedModel};

use super::{CommandError, CommandResult, Context};
use crate::hub::{BUILT_IN, Cache, HubError, resolve_model};
use crate::interrupt::Interrupt;
use crate::simulate::stand_in;
use crate::training::ComputePrecision;

/// Which model computes, and how exactly.
#[derive(Debug, Clone, Args)]
pub struct EngineArgs {
    /// A GGUF file, a Hugging Face folder, or a model's name (`fleetune model list`); stand-in is a
    /// tiny one with random weights [default: the built-in smollm2-135m-instruct]
    #[arg(long, value_name = "NAME_OR_PATH")]
    pub model: Option<String>,
    /// How matrix products round their inputs; sums are f32 either way
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    pub precision: ComputePrecision,
}

/// A model, ready to compute.
#[derive(Debug)]
pub struct Engine {
    /// Its files and tokenizer.
    pub model: LoadedModel,
    /// Its layers on the device.
    pub decoder: Decoder,
}

impl EngineArgs {
    /// The model as the user names it.
    pub fn model(&self) -> &str {
        self.model.as_deref().unwrap_or(BUILT_IN.name)
    }

    /// Finds the model (pulling the built-in one on first use) and puts it on the device.
    ///
    /// # Errors
    /// When there is no such model, it cannot be read, or the device has no room.
    pub fn open(&self, ctx: &Context) -> Result<Engine, CommandError> {
        let device = ctx.open_device()?;
        let path = find_model(self.model(), &ctx.interrupt())?;
        let model = LoadedModel::open(&path)?;
        let decoder =
            Decoder::new(model.config.clone(), &model.weights, &device, self.precision.into())?;
        Ok(Engine { model, decoder })
    }
}

/// Where the model that a user names lies. The stand-in is written when it is asked for.
///
/// # Errors
/// When there is no such model, or it cannot be pulled or written.
pub fn find_model(name_or_path: &str, interrupt: &Interrupt) -> Result<PathBuf, HubError> {
    if name_or_path != stand_in::NAME {
        return resolve_model(name_or_path, interrupt);
    }
    let path = Cache::of_user()?.models().join(stand_in::NAME);
    stand_in::write_model(&path).map_err(HubError::file("write", &path))?;
    Ok(path)
}

/// An error where training sequences are longer than the model's context.
///
/// # Errors
/// A usage error that names both.
pub fn check_context(model: &LoadedModel, seq_len: usize) -> CommandResult {
    let context = model.config.max_context;
    if seq_len <= context {
        return Ok(());
    }
    Err(CommandError::Usage(format!(
        "--seq-len {seq_len} is more than the model's context of {context} tokens: lower it"
    )))
}

/// Reads an adapter that must fit `engine`'s model.
///
/// # Errors
/// When it cannot be read or belongs to another model.
pub fn load_adapter(model: &LoadedModel, folder: &Path) -> Result<Adapter, CommandError> {
    let adapter = Adapter::load(folder)?;
    adapter.check_against(&model.config).map_err(|error| {
        CommandError::Usage(format!("{} does not fit the model: {error}", folder.display()))
    })?;
    Ok(adapter)
}
