//! `fleetune join`: a device without a screen.

use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::Args;
use fleetune_core::client::{
    DeviceFolder, EngineSettings, EngineTrainer, FileKeyStore, LinkError, Participant,
    ParticipantError, Progress,
};
use fleetune_core::protocol::{CommitStatus, Conditions, JoinCode};
use fleetune_core::train::StepReport;
use serde::Serialize;

use super::engine::find_model;
use super::rows::RowsArgs;
use super::{CommandError, CommandResult, Context, values};
use crate::conditions::{available_memory, of_this_machine};
use crate::progress::note;
use crate::training::ComputePrecision;

/// What the reference of preference training says of the device's pairs, in its folder.
const REFERENCES: &str = "reference_log_probs.bin";

/// Arguments of `fleetune join`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  fleetune join ft1-... --dataset instruction --data notes.jsonl
  fleetune join --state fleetune-device --dataset instruction --data notes.jsonl
  fleetune join --state fleetune-device --leave

The first call needs the join code that the operator made with `fleetune admin invite`. Everything
that must outlive this process is in --state: stopped or killed at any moment, the same command
without the code goes on, and sends first what was not acknowledged.")]
pub struct JoinArgs {
    /// The join code, on the first call
    #[arg(value_name = "CODE")]
    code: Option<JoinCode>,
    /// The device's folder: key, certificate, what is fetched and what is to be sent
    #[arg(long, value_name = "DIR", default_value = "fleetune-device")]
    state: PathBuf,
    /// The base model, a name or a path, where this machine has it [default: what the server hands
    /// out]
    #[arg(long, value_name = "NAME_OR_PATH")]
    model: Option<String>,
    /// How matrix products round their inputs; sums are f32 either way
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    precision: ComputePrecision,
    #[command(flatten)]
    rows: RowsArgs,
    /// The most memory to take, base model included, such as 512MiB or 2GiB
    #[arg(long, value_name = "SIZE", value_parser = values::bytes)]
    memory_budget: Option<u64>,
    /// The highest LoRA rank that this machine trains, where a federation has several
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(1..))]
    max_rank: Option<u32>,
    /// What the server is told of this machine: system (power, network and load as Linux has them),
    /// or any of charging, unmetered, idle, or none
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "system")]
    conditions: Vec<ConditionArg>,
    /// Stop after this many rounds
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Leave for good: the server revokes this device's certificate
    #[arg(long, conflicts_with = "code")]
    leave: bool,
}

/// A word of `--conditions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ConditionArg {
    System,
    Charging,
    Unmetered,
    Idle,
    None,
}

/// What a device did.
#[derive(Debug, Default, Serialize)]
struct Summary {
    device: String,
    accepted: u32,
    late: u32,
    refused: u32,
    /// What the federation ended with, a PEFT folder.
    adapter: Option<PathBuf>,
}

/// Runs `fleetune join`.
///
/// # Errors
/// When the server refuses the device, or the rows, the model or the folder fail. Failures of the
/// network are waited out.
pub fn run(args: JoinArgs, ctx: &Context) -> CommandResult {
    let interrupt = ctx.interrupt();
    let folder = DeviceFolder::open(&args.state)?;
    let keys = FileKeyStore::new(folder.key_path());
    let mut teller = Teller::default();
    // Rows and model that cannot be read are found before an invitation is used up.
    let trainer = if args.leave { None } else { Some(args.trainer(ctx)?) };
    let app = concat!("fleetune ", env!("CARGO_PKG_VERSION"));
    let stop = interrupt.cancel_token();
    let mut tell = |progress: Progress<'_>| teller.tell(&progress);
    let opened = Participant::open(folder, &keys, args.code.as_ref(), app, stop, &mut tell);
    let mut participant = opened.map_err(|error| args.explain(error))?;
    let device = participant.identity().device().to_string();
    let Some(mut trainer) = trainer else {
        participant.leave().map_err(|error| match error {
            LinkError::Refused(refusal) => anyhow::anyhow!("{}", refusal.message),
            other => other.into(),
        })?;
        return Ok(ctx.result(&Summary { device, ..Summary::default() }, || {
            format!("left; {} can be removed", args.state.display())
        })?);
    };
    note(format!("device {device}"));
    let outcome = participant.run(&mut trainer, args.rounds, &mut tell);
    outcome.map_err(|error| args.explain(error))?;
    let adapter = args.state.join("adapter");
    let adapter = match trainer.final_adapter() {
        Some(last) => {
            last.save(&adapter)?;
            Some(adapter)
        }
        None => None,
    };
    let summary = Summary { device, adapter, ..teller.summary };
    Ok(ctx.result(&summary, || {
        let Summary { accepted, late, refused, .. } = &summary;
        let ended = summary.adapter.as_ref().map(|path| format!("\nadapter: {}", path.display()));
        let ended = ended.unwrap_or_default();
        format!("done: {accepted} updates accepted, {late} late, {refused} refused{ended}")
    })?)
}

impl JoinArgs {
    fn trainer(&self, ctx: &Context) -> Result<EngineTrainer, CommandError> {
        let dataset = self.rows.open()?;
        let settings = EngineSettings {
            device: ctx.open_device()?,
            precision: self.precision.into(),
            memory_budget: self.memory_budget,
            memory_bytes: self.memory_budget.or_else(available_memory).unwrap_or(u64::MAX),
            max_rank: self.max_rank,
            app_version: env!("CARGO_PKG_VERSION").to_owned(),
            cancel: ctx.interrupt().cancel_token(),
            references: Some(self.state.join(REFERENCES)),
        };
        let words = self.conditions.clone();
        let conditions = Box::new(move || conditions(&words));
        let mut trainer = EngineTrainer::new(settings, dataset, conditions);
        if let Some(model) = &self.model {
            trainer.use_model(&find_model(model, &ctx.interrupt())?)?;
        }
        Ok(trainer)
    }

    fn explain(&self, error: ParticipantError) -> CommandError {
        let state = self.state.display();
        match error {
            ParticipantError::Stopped => CommandError::Interrupted(format!(
                "what was begun is kept in {state}; the same command goes on"
            )),
            ParticipantError::NotEnrolled => CommandError::Usage(format!(
                "{state} holds no device that has joined: give the join code that \
                 `fleetune admin invite` printed"
            )),
            other => other.into(),
        }
    }
}

fn conditions(words: &[ConditionArg]) -> Conditions {
    let has = |word| words.contains(&word);
    let system = match has(ConditionArg::System) {
        true => of_this_machine(),
        false => Conditions { charging: false, unmetered: false, idle: false },
    };
    Conditions {
        charging: system.charging || has(ConditionArg::Charging),
        unmetered: system.unmetered || has(ConditionArg::Unmetered),
        idle: system.idle || has(ConditionArg::Idle),
    }
}

/// Tells the user what the device does, a line for each thing that changes.
#[derive(Debug, Default)]
struct Teller {
    summary: Summary,
    /// The last thing said of waiting or trouble, which is not said twice in a row.
    last: String,
    steps: usize,
}

impl Teller {
    fn tell(&mut self, progress: &Progress<'_>) -> ControlFlow<()> {
        match progress {
            Progress::Trouble(problem) => self.once(format!("{problem}; trying again")),
            Progress::Idle(None) => self.once("waiting for a round".into()),
            Progress::Idle(Some(reason)) => self.once(format!("waiting: {reason}")),
            Progress::Assigned(work) => {
                self.steps = 0;
                self.once(format!("round {} of {}", work.round, work.federation));
            }
            Progress::Fetching { done, size } => tracing::debug!("fetched {done} of {size} bytes"),
            Progress::Step(StepReport { loss, tokens, .. }) => {
                self.steps += 1;
                tracing::info!("step {}: loss {loss:.4}, {tokens} tokens", self.steps);
            }
            Progress::Trained(report) => self.once(format!(
                "trained {} steps on {} rows, loss {:.4}; sending",
                report.steps, report.rows, report.loss
            )),
            Progress::Sent { chunk, chunks } => {
                tracing::debug!("chunk {chunk} of {chunks} is on the server");
            }
            Progress::Settled(key, status) => {
                let round = key.round;
                let (count, text) = match status {
                    CommitStatus::Accepted => {
                        (&mut self.summary.accepted, format!("round {round}: accepted"))
                    }
                    CommitStatus::Late { folded } => {
                        let fate = if *folded { "counts in a later one" } else { "not counted" };
                        (&mut self.summary.late, format!("round {round}: too late, {fate}"))
                    }
                    CommitStatus::Refused { reason } => {
                        (&mut self.summary.refused, format!("round {round}: refused, {reason}"))
                    }
                };
                *count += 1;
                self.once(text);
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn once(&mut self, text: String) {
        if self.last != text {
            note(&text);
            self.last = text;
        }
    }
}
