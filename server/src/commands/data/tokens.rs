//! `fleetune data tokens`: rows as training reads them.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use fleetune_core::data::{Dataset, Encoder, Template};
use fleetune_core::files::stream_atomically;
use fleetune_core::model::LoadedModel;
use serde::Serialize;
use serde_json::{Value, json};

use crate::commands::engine::{check_context, find_model};
use crate::commands::rows::RowsArgs;
use crate::commands::{CommandError, CommandResult, Context, values};
use crate::hub::BUILT_IN;
use crate::training::Task;

/// What a token that is not learnt has for its label, in PyTorch's convention.
const NOT_LEARNT: i64 = -100;

#[derive(Debug, Args)]
pub(super) struct TokensArgs {
    /// A model, whose tokenizer reads the rows
    #[arg(long, value_name = "NAME_OR_PATH", default_value = BUILT_IN.name)]
    model: String,
    #[command(flatten)]
    rows: RowsArgs,
    /// The text around a row: alpaca, vicuna or chat [default: alpaca; preferences: vicuna]
    #[arg(long)]
    template: Option<Template>,
    /// Longest sequence in tokens; longer rows are cut
    #[arg(long, value_name = "N", default_value_t = 512)]
    seq_len: usize,
    /// Rows to write at most [default: all]
    #[arg(long, value_name = "N", value_parser = values::at_least_one)]
    limit: Option<usize>,
    /// The file to write, JSON Lines: input_ids and labels, or prompt, chosen and rejected
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// What the command reports.
#[derive(Debug, Serialize)]
struct Report {
    rows: usize,
    tokens: usize,
    out: PathBuf,
}

/// Writes the rows in their order; those that have nothing to learn are passed over, as in training.
pub(super) fn run(args: &TokensArgs, ctx: &Context) -> CommandResult {
    let dataset = args.rows.open()?;
    let model = LoadedModel::open(&find_model(&args.model, &ctx.interrupt())?)?;
    check_context(&model, args.seq_len)?;
    let task = if dataset.is_preference() { Task::Dpo } else { Task::Sft };
    let template = args.template.unwrap_or(task.template());
    let encoder =
        Encoder::new(template, model.tokenizer()?, args.seq_len).map_err(CommandError::usage)?;
    let limit = args.limit.unwrap_or(usize::MAX);
    let mut report = Report { rows: 0, tokens: 0, out: args.out.clone() };
    stream_atomically(&args.out, |file| {
        for row in dataset.rows() {
            if report.rows == limit {
                break;
            }
            let Some((row, tokens)) = tokens_of(&dataset, row, &encoder)? else { continue };
            writeln!(file, "{row}")?;
            report.rows += 1;
            report.tokens += tokens;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    Ok(ctx.result(&report, || {
        format!("{} rows, {} tokens: {}", report.rows, report.tokens, report.out.display())
    })?)
}

/// A row and its tokens; `None` where it has nothing to learn.
fn tokens_of(
    dataset: &Dataset,
    row: u32,
    encoder: &Encoder<'_>,
) -> Result<Option<(Value, usize)>, anyhow::Error> {
    if dataset.is_preference() {
        let pair = dataset.pair(row, encoder)?;
        return Ok(pair.map(|pair| {
            let tokens = 2 * pair.prompt.len() + pair.chosen.len() + pair.rejected.len();
            let pair = json!({
                "prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected,
            });
            (pair, tokens)
        }));
    }
    Ok(dataset.example(row, encoder)?.map(|example| {
        let labels = example.ids.iter().zip(&example.supervised);
        let labels: Vec<i64> =
            labels.map(|(&id, &learnt)| if learnt { id.into() } else { NOT_LEARNT }).collect();
        (json!({ "input_ids": example.ids, "labels": labels }), example.ids.len())
    }))
}
