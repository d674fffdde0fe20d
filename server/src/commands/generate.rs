//! `fleetune generate`: writes text with a model, with or without an adapter.

use std::io::Read;
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use fleetune_core::data::{Message, Role};
use fleetune_core::generate::{GenerateOptions, generate};
use fleetune_core::model::{EngineError, PassOptions, TextTokenizer};
use serde::Serialize;

use super::engine::{EngineArgs, load_adapter};
use super::{CommandError, CommandResult, Context, values};
use crate::output::{self, OutputError};
use crate::progress::note;

/// Arguments of `fleetune generate`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  fleetune generate --prompt 'The capital of France is' --max-tokens 20
  fleetune generate --chat --prompt 'Why is the sky blue?' --adapter adapters/demo
  fleetune generate --chat --prompt - --temperature 0.7 --top-p 0.9 --seed 1 < question.txt")]
pub struct GenerateArgs {
    #[command(flatten)]
    engine: EngineArgs,
    /// A PEFT adapter to write with
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// The text to go on from; - reads it from stdin
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: String,
    /// Ask the prompt as a question, by the model's chat template
    #[arg(long)]
    chat: bool,
    /// What the chat begins with: who the assistant is
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Most tokens to write
    #[arg(long, value_name = "N", default_value_t = 128)]
    max_tokens: usize,
    /// 0 takes the likeliest token each time; larger values draw more freely
    #[arg(long, value_name = "F", default_value_t = 0.0, value_parser = values::not_negative)]
    temperature: f64,
    /// Draw among the likeliest tokens whose probabilities reach this sum
    #[arg(long, value_name = "P", value_parser = values::share)]
    top_p: Option<f64>,
    /// Seed of the draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

/// What was written.
#[derive(Debug, Serialize)]
struct Written {
    text: String,
    prompt_tokens: usize,
    tokens: usize,
    /// Whether the model came to an end by itself.
    ended: bool,
    seconds: f64,
}

/// Runs `fleetune generate`.
///
/// # Errors
/// When the arguments make no sense, the model or the adapter cannot be used, or stdout is gone.
pub fn run(args: GenerateArgs, ctx: &Context) -> CommandResult {
    let interrupt = ctx.interrupt();
    let prompt = args.prompt()?;
    let engine = args.engine.open(ctx)?;
    let adapter =
        args.adapter.as_deref().map(|folder| load_adapter(&engine.model, folder)).transpose()?;
    let tokenizer = engine.model.tokenizer()?;
    let ids = args.encode(&prompt, tokenizer)?;
    if ids.is_empty() {
        return Err(CommandError::Usage("the prompt is empty: give some text".to_owned()));
    }
    let context = engine.model.config.max_context;
    if ids.len() >= context {
        return Err(CommandError::Usage(format!(
            "the prompt has {} tokens and fills the model's context of {context}: shorten it",
            ids.len()
        )));
    }
    let max_tokens = args.max_tokens.min(context - ids.len());
    let lora = adapter.as_ref().map(|adapter| engine.decoder.lora_tensors(adapter)).transpose()?;
    let pass = PassOptions {
        lora: lora.as_ref(),
        cancel: interrupt.cancel_token(),
        ..PassOptions::default()
    };
    let options = GenerateOptions {
        max_tokens,
        temperature: args.temperature,
        top_p: args.top_p,
        seed: args.seed,
        stop_ids: tokenizer.stop_ids().to_vec(),
    };

    let started = Instant::now();
    let mut stream = tokenizer.stream(true);
    let mut text = String::new();
    let mut failure: Option<CommandError> = None;
    let written = generate(&engine.decoder, &ids, &options, &pass, |token| {
        let piece = match stream.push(token) {
            Ok(piece) => piece,
            Err(error) => {
                failure = Some(error.into());
                return false;
            }
        };
        text += &piece;
        if let Err(error) = show(ctx, &piece) {
            failure = Some(error.into());
        }
        failure.is_none()
    });
    if let Some(error) = failure {
        return Err(error);
    }
    let written = match written {
        Err(EngineError::Cancelled) => {
            return Err(CommandError::Interrupted("the text is not finished".to_owned()));
        }
        other => other?,
    };
    let rest = stream.finish()?;
    text += &rest;
    show(ctx, &rest)?;
    let ended = written.len() < max_tokens;
    if !ctx.json {
        output::line("")?;
    }
    if !ended && max_tokens < args.max_tokens {
        note(format!("the text stops where the model's context of {context} tokens is full"));
    }
    if !ctx.json {
        return Ok(());
    }
    let written = Written {
        text,
        prompt_tokens: ids.len(),
        tokens: written.len(),
        ended,
        seconds: started.elapsed().as_secs_f64(),
    };
    Ok(output::json(&written)?)
}

/// Streams a piece of text, unless the result is to be JSON.
fn show(ctx: &Context, piece: &str) -> Result<(), OutputError> {
    if ctx.json || piece.is_empty() { Ok(()) } else { output::text(piece) }
}

impl GenerateArgs {
    fn prompt(&self) -> Result<String, CommandError> {
        if self.prompt != "-" {
            return Ok(self.prompt.clone());
        }
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(|error| anyhow::anyhow!("cannot read the prompt from stdin: {error}"))?;
        Ok(text)
    }

    fn encode(&self, prompt: &str, tokenizer: &TextTokenizer) -> Result<Vec<u32>, CommandError> {
        if !self.chat {
            let text = tokenizer.encode(prompt)?;
            return Ok(tokenizer.bos().into_iter().chain(text).collect());
        }
        let template = tokenizer.chat_template().ok_or_else(|| {
            CommandError::Usage("the model has no chat template: leave --chat out".to_owned())
        })?;
        let message = |role, text: &str| Message { role, content: text.to_owned() };
        let system = self.system.iter().map(|text| message(Role::System, text));
        let turns: Vec<_> = system.chain([message(Role::User, prompt)]).collect();
        // The template writes the begin token itself, where the model wants one.
        Ok(tokenizer.encode(&template.render(&turns, true)?)?)
    }
}
