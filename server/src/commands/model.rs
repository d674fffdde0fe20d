//! `fleetune model`: the models of this machine.

use clap::{Args, Subcommand};
use indicatif::HumanBytes;

use super::{CommandResult, Context};
use crate::hub::Cache;

/// Arguments of `fleetune model`.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub struct ModelArgs {
    #[command(subcommand)]
    command: ModelCommand,
}

#[derive(Debug, Subcommand)]
enum ModelCommand {
    /// List the models in the cache
    #[command(after_help = "Example:\n  fleetune model list --json")]
    List,
}

/// Runs `fleetune model`.
///
/// # Errors
/// When the cache cannot be read.
pub fn run(args: ModelArgs, ctx: &Context) -> CommandResult {
    match args.command {
        ModelCommand::List => list(ctx),
    }
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
