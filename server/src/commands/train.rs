//! `fleetune train`: fine-tunes an adapter on this device.

use std::path::{Path, PathBuf};

use clap::Args;
use fleetune_core::adapter::{Adapter, LoraConfig, Target};
use fleetune_core::data::{Dataset, Encoder, Template};
use fleetune_core::train::{
    AnswerLearner, PreferenceLearner, PreferenceLoss, Reference, ReferenceError,
};
use indicatif::HumanBytes;
use serde_json::{Value, json};

use super::engine::{Engine, EngineArgs, check_context, load_adapter};
use super::rows::RowsArgs;
use super::{CommandError, CommandResult, Context, values};
use crate::progress::note;
use crate::report::text::plural;
use crate::training::{Checkpoint, LossName, Outcome, RunError, RunOptions, Subject, Task, train};

const DEFAULT_SEQ_LEN: usize = 512;

/// What the reference of preference training says of each pair, in the folder of the training.
const REFERENCES: &str = "reference_log_probs.bin";

/// Arguments of `fleetune train`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  fleetune train --dataset demo --max-steps 20 --out adapters/demo
  fleetune train --model Qwen/Qwen2.5-0.5B-Instruct --dataset instruction --data notes.jsonl \\
      --template chat --lora-targets q_proj,v_proj --lr 1e-4 --out adapters/notes
  fleetune train --task dpo --dataset preference --data pairs.jsonl.gz --out adapters/taste

DIR holds metrics.jsonl (one object a step), the latest checkpoint and, at the end, the adapter as a
PEFT folder. After Ctrl-C the same command with --resume goes on; --max-steps, --lr, --save-every
and --memory-budget may then differ, everything else must be as it was.")]
pub struct TrainArgs {
    #[command(flatten)]
    engine: EngineArgs,
    /// What is learnt: sft (answers) or dpo (preferences)
    #[arg(long, value_name = "TASK", default_value = "sft")]
    task: Task,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    lora: LoraArgs,
    #[command(flatten)]
    steps: StepArgs,
    #[command(flatten)]
    preference: PreferenceArgs,
    /// The folder for the adapter and the metrics
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Continue the training in --out where it was left
    #[arg(long, conflicts_with = "overwrite")]
    resume: bool,
    /// Throw away what an earlier training left in --out
    #[arg(long)]
    overwrite: bool,
    /// Seed of the fresh adapter, the order of rows and the dropout
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

/// Which rows.
#[derive(Debug, Args)]
#[command(next_help_heading = "Data")]
struct DataArgs {
    #[command(flatten)]
    rows: RowsArgs,
    /// The text around a row: alpaca, vicuna or chat (the model's own) [default: alpaca; dpo: vicuna]
    #[arg(long)]
    template: Option<Template>,
    /// Longest sequence in tokens; longer rows are cut [default: 512, or the model's context where
    /// that is shorter]
    #[arg(long, value_name = "N")]
    seq_len: Option<usize>,
    /// Take the rows in the order of the files
    #[arg(long)]
    no_shuffle: bool,
}

/// Which adapter.
#[derive(Debug, Args)]
#[command(next_help_heading = "Adapter")]
struct LoraArgs {
    /// Rank [default: 8]
    #[arg(long, value_name = "R")]
    lora_rank: Option<usize>,
    /// Strength: the adapter counts alpha / rank times [default: 16]
    #[arg(long, value_name = "A", value_parser = values::positive)]
    lora_alpha: Option<f64>,
    /// Adapted projections: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj
    /// [default: q_proj,v_proj]
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    lora_targets: Vec<Target>,
    /// Share of the adapter's inputs dropped in training
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = values::below_one)]
    lora_dropout: f64,
    /// Strength alpha / √rank in place of alpha / rank
    #[arg(long)]
    lora_rslora: bool,
    /// Start from this PEFT adapter; it brings rank, strength and targets
    #[arg(long, value_name = "DIR")]
    init_adapter: Option<PathBuf>,
}

/// Which steps.
#[derive(Debug, Args)]
#[command(next_help_heading = "Steps")]
struct StepArgs {
    /// Rows of a batch; a step takes no more than there are
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = values::at_least_one)]
    batch_size: usize,
    /// Batches whose gradients make one step; the loss is the mean over all their tokens
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = values::at_least_one)]
    grad_accum: usize,
    /// Optimiser steps; 0 writes the fresh adapter [default: one pass over the rows]
    #[arg(long, value_name = "N")]
    max_steps: Option<u64>,
    /// Learning rate, constant
    #[arg(long, value_name = "RATE", default_value_t = 2e-4, value_parser = values::positive)]
    lr: f64,
    /// AdamW's decoupled weight decay
    #[arg(long, value_name = "F", default_value_t = 0.0, value_parser = values::not_negative)]
    weight_decay: f64,
    /// Longest gradient (L2 norm); 0 does not clip
    #[arg(long, value_name = "NORM", default_value_t = 0.0, value_parser = values::not_negative)]
    max_grad_norm: f64,
    /// The most memory to take, base model included, such as 512MiB or 2GiB
    /// [default: what is fast, about half a GiB besides the model]
    #[arg(long, value_name = "SIZE", value_parser = values::bytes)]
    memory_budget: Option<u64>,
    /// Steps between two checkpoints
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    save_every: u64,
}

/// How preferences are learnt.
#[derive(Debug, Args)]
#[command(next_help_heading = "Preferences (--task dpo)")]
struct PreferenceArgs {
    /// Strength: larger values keep closer to the reference [default: 0.1]
    #[arg(long, value_name = "F", value_parser = values::positive)]
    dpo_beta: Option<f64>,
    /// The loss: sigmoid, ipo, hinge, robust, or orpo, which needs no reference [default: sigmoid]
    #[arg(long, value_name = "LOSS")]
    dpo_loss: Option<LossName>,
    /// Share of labels taken to be wrong, for --dpo-loss robust [default: 0.1]
    #[arg(long, value_name = "E", value_parser = values::below_half)]
    dpo_label_smoothing: Option<f64>,
    /// A PEFT adapter as the reference [default: the base model]
    #[arg(long, value_name = "DIR")]
    reference_adapter: Option<PathBuf>,
}

/// Runs `fleetune train`.
///
/// # Errors
/// When the arguments make no sense together, or model, data, a step or the folder fails.
pub fn run(args: TrainArgs, ctx: &Context) -> CommandResult {
    let interrupt = ctx.interrupt();
    match args.task {
        Task::Sft => args.preference.check_unused()?,
        Task::Dpo => args.preference.check_loss()?,
    }
    let checkpoint = args.checkpoint()?;
    let dataset = args.open_dataset()?;
    let engine = args.engine.open(ctx)?;
    let seq_len = args.data.seq_len.unwrap_or(DEFAULT_SEQ_LEN.min(engine.model.config.max_context));
    check_context(&engine.model, seq_len)?;
    let encoder = Encoder::new(args.template(), engine.model.tokenizer()?, seq_len)
        .map_err(CommandError::usage)?;
    let options = args.run_options(&dataset, engine.model.content_hash()?, seq_len);
    if let Some(checkpoint) = &checkpoint {
        check_settings(&checkpoint.settings, &options.settings)?;
    }
    let adapter = args.initial_adapter(&engine, checkpoint.as_ref())?;
    args.prepare_folder()?;
    let Engine { model, decoder } = &engine;
    let subject = Subject { model, decoder, dataset: &dataset, encoder: &encoder };
    let outcome = match args.task {
        Task::Sft => train(subject, adapter, &mut AnswerLearner, &options, checkpoint, &interrupt),
        Task::Dpo => {
            let mut learner = args.preference_learner(&engine)?;
            train(subject, adapter, &mut learner, &options, checkpoint, &interrupt)
        }
    };
    let outcome = outcome.map_err(|error| match error {
        RunError::Budget(_) | RunError::NothingToLearn { .. } => CommandError::usage(error),
        other => other.into(),
    })?;
    if !outcome.finished {
        return Err(CommandError::Interrupted(format!(
            "{} of {} steps are done and kept in {}; the same command with --resume goes on",
            outcome.steps,
            options.max_steps,
            args.out.display()
        )));
    }
    Ok(ctx.result(&outcome, || summary(&outcome, &args.out))?)
}

fn summary(outcome: &Outcome, out: &Path) -> String {
    let mut text = format!("{} steps", outcome.steps);
    if let (Some(first), Some(last)) = (outcome.first_loss, outcome.last_loss) {
        text += &format!(", loss {first:.4} at the first and {last:.4} at the last");
    }
    text += &format!(", {:.0} tokens/s", outcome.tokens_per_second);
    if let Some(peak) = outcome.peak_rss_bytes {
        text += &format!(", peak memory {}", HumanBytes(peak));
    }
    if outcome.rows_skipped > 0 {
        let skipped = plural(outcome.rows_skipped, "row");
        text += &format!("\n{skipped} had nothing left to learn after the cut");
    }
    text + &format!("\nadapter: {}", out.display())
}

impl LoraArgs {
    /// An error where flags contradict the adapter that training starts from, which is `whose`.
    fn check_agrees(&self, config: &LoraConfig, whose: &str) -> CommandResult {
        let mut targets = self.lora_targets.clone();
        targets.sort_unstable();
        targets.dedup();
        let differs = if self.lora_rank.is_some_and(|rank| rank != config.rank) {
            Some(("--lora-rank", format!("rank {}", config.rank)))
        } else if self.lora_alpha.is_some_and(|alpha| alpha != config.alpha) {
            Some(("--lora-alpha", format!("alpha {}", config.alpha)))
        } else if !targets.is_empty() && targets != config.targets {
            let names: Vec<_> = config.targets.iter().map(|target| target.name()).collect();
            Some(("--lora-targets", format!("targets {}", names.join(","))))
        } else if self.lora_rslora && !config.rslora {
            Some(("--lora-rslora", "the classic scaling".to_owned()))
        } else {
            None
        };
        match differs {
            None => Ok(()),
            Some((flag, has)) => Err(CommandError::Usage(format!(
                "{flag} contradicts {whose}, which has {has}: leave the flag out"
            ))),
        }
    }
}

impl PreferenceArgs {
    /// An error where a flag was given.
    fn check_unused(&self) -> CommandResult {
        let given = [
            ("--dpo-beta", self.dpo_beta.is_some()),
            ("--dpo-loss", self.dpo_loss.is_some()),
            ("--dpo-label-smoothing", self.dpo_label_smoothing.is_some()),
            ("--reference-adapter", self.reference_adapter.is_some()),
        ];
        match given.into_iter().find(|&(_, given)| given) {
            None => Ok(()),
            Some((flag, _)) => Err(CommandError::Usage(format!(
                "{flag} belongs to --task dpo: add that, or leave the flag out"
            ))),
        }
    }

    /// An error where a flag means nothing to the loss.
    fn check_loss(&self) -> CommandResult {
        let loss = self.dpo_loss.unwrap_or_default();
        let wrong = |flag: &str, why: &str| {
            Err(CommandError::Usage(format!("{flag} {why}: leave the flag out")))
        };
        if self.dpo_label_smoothing.is_some() && loss != LossName::Robust {
            return wrong("--dpo-label-smoothing", "is for --dpo-loss robust alone");
        }
        if self.reference_adapter.is_some() && loss == LossName::Orpo {
            return wrong("--reference-adapter", "means nothing to --dpo-loss orpo");
        }
        Ok(())
    }

    fn beta(&self) -> f64 {
        self.dpo_beta.unwrap_or(0.1)
    }

    fn loss(&self) -> PreferenceLoss {
        let smoothing = self.dpo_label_smoothing.unwrap_or(0.1);
        self.dpo_loss.unwrap_or_default().with_smoothing(smoothing)
    }
}

impl TrainArgs {
    /// What an earlier training left in the folder, if it is to go on.
    fn checkpoint(&self) -> Result<Option<Checkpoint>, CommandError> {
        if self.overwrite {
            return Ok(None);
        }
        let out = self.out.display();
        match (self.resume, Checkpoint::latest(&self.out)?) {
            (true, None) => Err(CommandError::Usage(format!(
                "{out} has no checkpoint to resume from: leave --resume out"
            ))),
            (false, Some(found)) => Err(CommandError::Usage(format!(
                "{out} holds a training of {} steps: go on with --resume, replace it with \
                 --overwrite, or choose another --out",
                found.trainer.steps
            ))),
            (_, checkpoint) => Ok(checkpoint),
        }
    }

    fn prepare_folder(&self) -> CommandResult {
        let out = &self.out;
        std::fs::create_dir_all(out).map_err(|error| {
            anyhow::anyhow!("cannot make the folder {}: {error}", out.display())
        })?;
        if self.overwrite {
            Checkpoint::clear(out)?;
            match std::fs::remove_file(out.join(REFERENCES)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(anyhow::anyhow!("cannot empty {}: {error}", out.display()).into());
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn open_dataset(&self) -> Result<Dataset, CommandError> {
        let dataset = self.data.rows.open()?;
        self.task.check(&dataset).map_err(CommandError::usage)?;
        dataset.check_template(self.template()).map_err(CommandError::usage)?;
        Ok(dataset)
    }

    fn template(&self) -> Template {
        self.data.template.unwrap_or(self.task.template())
    }

    /// The adapter to start from. A checkpoint's own parameters replace its values.
    fn initial_adapter(
        &self,
        engine: &Engine,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<Adapter, CommandError> {
        if let Some(Checkpoint { trainer, lora, .. }) = checkpoint {
            self.lora.check_agrees(lora, "the interrupted training")?;
            return Ok(Adapter { config: lora.clone(), parameters: trainer.parameters.clone() });
        }
        let lora = &self.lora;
        if let Some(folder) = &lora.init_adapter {
            let mut adapter = load_adapter(&engine.model, folder)?;
            adapter.config.dropout = lora.lora_dropout;
            adapter.config.check().map_err(CommandError::usage)?;
            lora.check_agrees(&adapter.config, "--init-adapter")?;
            return Ok(adapter);
        }
        let targets = match lora.lora_targets.as_slice() {
            [] => &[Target::QProj, Target::VProj],
            named => named,
        };
        let (rank, alpha) = (lora.lora_rank.unwrap_or(8), lora.lora_alpha.unwrap_or(16.0));
        let mut config = LoraConfig::new(rank, alpha, targets).map_err(CommandError::usage)?;
        config.dropout = lora.lora_dropout;
        config.rslora = lora.lora_rslora;
        Adapter::new(config, &engine.model.config, self.seed).map_err(CommandError::usage)
    }

    fn preference_learner(&self, engine: &Engine) -> Result<PreferenceLearner, CommandError> {
        let how = &self.preference;
        let adapter = how.reference_adapter.as_deref();
        let adapter = adapter.map(|folder| load_adapter(&engine.model, folder)).transpose()?;
        let precision = self.engine.precision.into();
        let reference = Reference::new(engine.model.content_hash()?, precision, adapter);
        let reference =
            reference.kept_in(&self.out.join(REFERENCES)).map_err(ReferenceError::from)?;
        Ok(PreferenceLearner { loss: how.loss(), beta: how.beta(), reference })
    }

    fn run_options(&self, dataset: &Dataset, model_hash: &str, seq_len: usize) -> RunOptions {
        let steps = &self.steps;
        let wanted = steps.batch_size.saturating_mul(steps.grad_accum);
        let rows_per_step = wanted.min(dataset.len());
        if rows_per_step < wanted {
            note(format!("each step takes all {rows_per_step} rows: there are no {wanted}"));
        }
        let one_epoch = (dataset.len() as u64).div_ceil(rows_per_step as u64);
        RunOptions {
            out: self.out.clone(),
            rows_per_step,
            max_steps: steps.max_steps.unwrap_or(one_epoch),
            learning_rate: steps.lr,
            weight_decay: steps.weight_decay,
            max_grad_norm: Some(steps.max_grad_norm).filter(|&norm| norm > 0.0),
            memory_budget: steps.memory_budget,
            save_every: steps.save_every,
            shuffle: (!self.data.no_shuffle).then_some(self.seed),
            seed: self.seed,
            base_model: self.engine.model().to_owned(),
            settings: self.settings(dataset, model_hash, seq_len, rows_per_step),
        }
    }

    /// What a resumed run must have in common with the one that was interrupted. Learning rate,
    /// steps and checkpoints may change.
    fn settings(
        &self,
        dataset: &Dataset,
        model_hash: &str,
        seq_len: usize,
        rows_per_step: usize,
    ) -> Value {
        let preference = (self.task == Task::Dpo).then(|| {
            let how = &self.preference;
            json!({ "beta": how.beta(), "loss": how.loss(), "reference": how.reference_adapter })
        });
        json!({
            "model": self.engine.model(),
            "model_sha256": model_hash,
            "precision": self.engine.precision,
            "dataset": dataset.name(),
            "rows": dataset.len(),
            "rows_sha256": dataset.content_hash(),
            "template": self.template().name(),
            "seq_len": seq_len,
            "shuffle": !self.data.no_shuffle,
            "rows_per_step": rows_per_step,
            "weight_decay": self.steps.weight_decay,
            "max_grad_norm": self.steps.max_grad_norm,
            "init_adapter": self.lora.init_adapter,
            "lora_dropout": self.lora.lora_dropout,
            "preference": preference,
            "seed": self.seed,
        })
    }
}

/// An error that names the first setting that differs from those of the interrupted run.
fn check_settings(before: &Value, now: &Value) -> CommandResult {
    let Some(settings) = now.as_object() else { return Ok(()) };
    let differing = settings.iter().find(|(name, value)| before.get(name.as_str()) != Some(*value));
    match differing {
        None => Ok(()),
        Some((name, value)) => {
            let was = before.get(name.as_str()).unwrap_or(&Value::Null);
            Err(CommandError::Usage(format!(
                "the interrupted training had {name} {was}, not {value}: resume with the same \
                 flags, or choose another --out"
            )))
        }
    }
}
