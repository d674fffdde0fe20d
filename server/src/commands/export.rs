//! `fleetune export`: an adapter, or a model with the adapter folded in, for other programs.

use std::cell::Cell;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use fleetune_core::adapter::Adapter;
use fleetune_core::model::LoadedModel;
use fleetune_core::model::export::{self, ExportError, FloatFormat};
use serde::Serialize;

use super::{CommandError, CommandResult, Context};
use crate::hub::resolve_model;
use crate::progress::{Progress, Unit};

const EXAMPLE: &str = "\
Examples:
  # The model with the adapter folded in, for transformers
  fleetune export --format hf --model smollm2-135m-instruct --adapter adapter --out merged

  # The adapter for llama.cpp: llama-cli -m model.gguf --lora adapter.gguf
  fleetune export --format gguf-lora --model smollm2-135m-instruct --adapter adapter --out adapter.gguf

  # One GGUF file with the adapter folded in
  fleetune export --format gguf --model smollm2-135m-instruct --adapter adapter --out merged.gguf";

/// Arguments of `fleetune export`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
pub struct ExportArgs {
    /// peft (adapter folder), hf (merged Hugging Face folder), gguf-lora (adapter for llama.cpp) or
    /// gguf (merged model)
    #[arg(long, value_name = "FORMAT")]
    format: Format,
    /// The adapter: a PEFT folder
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// The base model; every format but peft needs it
    #[arg(long, value_name = "PATH_OR_NAME")]
    model: Option<String>,
    /// How values are written: f32, f16 or bf16. In a merged GGUF file this concerns the adapted
    /// matrices; the others stay as they are. A PEFT folder is always in f32
    #[arg(long, value_name = "TYPE", default_value_t)]
    dtype: FloatFormat,
    /// The folder or file to write
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
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
    let ExportArgs { format, adapter, model, dtype, out } = args;
    let Some(model) = model else {
        return Err(CommandError::usage("this format needs the base model: add --model"));
    };
    let adapter = Adapter::load(&adapter)?;
    let interrupt = ctx.interrupt();
    let model = LoadedModel::open(&resolve_model(&model, &interrupt)?)?;
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
        outcome => outcome?,
    }
    progress.finish();
    report(Report { format, tensors: written.get(), out }, ctx)
}

/// Writes the adapter as it would have been saved here.
fn write_peft(args: ExportArgs, ctx: &Context) -> CommandResult {
    let ExportArgs { format, adapter, model, dtype, out } = args;
    if dtype != FloatFormat::F32 {
        return Err(CommandError::usage("a PEFT folder is written in f32: leave --dtype out"));
    }
    let adapter = Adapter::load(&adapter)?;
    if let Some(model) = &model {
        let path = resolve_model(model, &ctx.interrupt())?;
        adapter.check_against(&LoadedModel::open(&path)?.config)?;
    }
    adapter.save_for_base(&out, model.as_deref())?;
    report(Report { format, tensors: adapter.parameters.len(), out }, ctx)
}

fn report(report: Report, ctx: &Context) -> CommandResult {
    ctx.result(&report, || {
        format!("wrote {} tensors to {}", report.tensors, report.out.display())
    })?;
    Ok(())
}
