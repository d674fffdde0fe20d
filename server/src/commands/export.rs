//! `fleetune export`: an adapter, or a model with the adapter folded in, for other programs.

use std::cell::Cell;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use fleetune_core::adapter::{Adapter, CONFIG_FILE, base_model};
use fleetune_core::model::LoadedModel;
use fleetune_core::model::export::{self, ExportError, FloatFormat};
use serde::Serialize;

use super::engine::find_model;
use super::{CommandError, CommandResult, Context};
use crate::progress::{Progress, Unit};

const EXAMPLE: &str = "\
Examples:
  # The model with the adapter folded in, for transformers
  fleetune export --format hf --model smollm2-135m-instruct --adapter adapter \\
      --out merged

  # The adapter for llama.cpp: llama-cli -m model.gguf --lora adapter.gguf
  fleetune export --format gguf-lora --model smollm2-135m-instruct --adapter adapter \\
      --out adapter.gguf

  # One GGUF file with the adapter folded in
  fleetune export --format gguf --model smollm2-135m-instruct --adapter adapter \\
      --out merged.gguf";

/// Arguments of `fleetune export`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
pub struct ExportArgs {
    /// peft (adapter folder), hf (merged Hugging Face folder), gguf-lora (adapter for llama.cpp) or
    /// gguf (merged model, of a GGUF base)
    #[arg(long, value_name = "FORMAT")]
    format: Format,
    /// The adapter: a PEFT folder
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// The base model; every format but peft needs it, gguf one that is a GGUF file
    #[arg(long, value_name = "PATH_OR_NAME")]
    model: Option<String>,
    /// How values are written: f32, f16 or bf16. In a merged GGUF file this concerns the adapted
    /// matrices; the others stay as they are. A PEFT folder is always in f32
    #[arg(long, value_name = "TYPE", default_value_t)]
    dtype: FloatFormat,
    /// The folder or file to write
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// Replace what --out holds; never the base model or the adapter themselves
    #[arg(long)]
    overwrite: bool,
}

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Format {
    Peft,
    Hf,
    GgufLora,
    Gguf,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "peft" => Ok(Format::Peft),
            "hf" => Ok(Format::Hf),
            "gguf-lora" => Ok(Format::GgufLora),
            "gguf" => Ok(Format::Gguf),
            _ => Err("use peft, hf, gguf-lora or gguf".into()),
        }
    }
}

/// What the command reports.
#[derive(Debug, Serialize)]
struct Report {
    format: Format,
    tensors: usize,
    out: PathBuf,
}

/// Runs `fleetune export`.
///
/// # Errors
/// When the flags make no sense, model or adapter cannot be read or do not fit each other, or the
/// result cannot be written.
pub fn run(args: ExportArgs, ctx: &Context) -> CommandResult {
    let write = match args.format {
        Format::Peft => return write_peft(args, ctx),
        Format::Hf => export::hugging_face,
        Format::GgufLora => export::gguf_adapter,
        Format::Gguf => export::merged_gguf,
    };
    let ExportArgs { format, adapter: folder, model, dtype, out, overwrite } = args;
    let Some(model) = model else {
        return Err(CommandError::usage("this format needs the base model: add --model"));
    };
    check_free(&out, overwrite)?;
    let adapter = Adapter::load(&folder)?;
    let interrupt = ctx.interrupt();
    let model = LoadedModel::open(&find_model(&model, &interrupt)?)?;
    check_apart(&out, &folder, Some(&model))?;
    let progress = Progress::new("exporting", None, Unit::Items("tensors"));
    let written = Cell::new(0);
    let on_tensor = |done: usize, _: usize| {
        progress.advance(1);
        written.set(done);
        !interrupt.is_set()
    };
    match write(&model, &adapter, dtype, &out, &on_tensor) {
        Err(ExportError::File { source, .. }) if source.kind() == io::ErrorKind::Interrupted => {
            return Err(CommandError::Interrupted(
                "the export is not complete; run it again".into(),
            ));
        }
        Err(error @ ExportError::NotGguf { .. }) => return Err(CommandError::usage(error)),
        outcome => outcome?,
    }
    progress.finish();
    report(Report { format, tensors: written.get(), out }, ctx)
}

/// Writes the adapter as it would have been saved here.
fn write_peft(args: ExportArgs, ctx: &Context) -> CommandResult {
    let ExportArgs { format, adapter: folder, model, dtype, out, overwrite } = args;
    if dtype != FloatFormat::F32 {
        return Err(CommandError::usage("a PEFT folder is written in f32: leave --dtype out"));
    }
    check_free(&out, overwrite)?;
    let adapter = Adapter::load(&folder)?;
    let base = match model {
        Some(name) => {
            let model = LoadedModel::open(&find_model(&name, &ctx.interrupt())?)?;
            check_apart(&out, &folder, Some(&model))?;
            adapter.check_against(&model.config)?;
            Some(name)
        }
        None => {
            check_apart(&out, &folder, None)?;
            base_model(&folder)?
        }
    };
    adapter.save_for_base(&out, base.as_deref())?;
    report(Report { format, tensors: adapter.parameters.len(), out }, ctx)
}

/// An error where `out` holds something that is not to be replaced.
fn check_free(out: &Path, overwrite: bool) -> CommandResult {
    let taken = match fs::read_dir(out) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => out.exists(),
    };
    if !taken || overwrite {
        return Ok(());
    }
    Err(CommandError::Usage(format!(
        "{} is there already: choose another --out, or replace it with --overwrite",
        out.display()
    )))
}

/// An error where `out` is the adapter or the model that is read, or holds it.
fn check_apart(out: &Path, adapter: &Path, model: Option<&LoadedModel>) -> CommandResult {
    // What does not exist is nothing that is read.
    let Ok(target) = out.canonicalize() else { return Ok(()) };
    let adapter = [adapter.join(CONFIG_FILE)];
    let inputs = [("adapter", &adapter[..]), ("base model", model.map_or(&[], LoadedModel::files))];
    for (what, files) in inputs {
        if files.iter().filter_map(|file| file.canonicalize().ok()).any(|f| f.starts_with(&target))
        {
            let out = out.display();
            return Err(CommandError::Usage(format!(
                "{out} is the {what} itself: choose another --out"
            )));
        }
    }
    Ok(())
}

fn report(report: Report, ctx: &Context) -> CommandResult {
    ctx.result(&report, || {
        format!("wrote {} tensors to {}", report.tensors, report.out.display())
    })?;
    Ok(())
}
