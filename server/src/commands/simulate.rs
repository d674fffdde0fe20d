//! `fleetune simulate`: a whole federation on one machine.

mod memory;
pub mod worker;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use fleetune_core::adapter::{Adapter, LoraConfig, Target};
use fleetune_core::client::TrainingDevice;
use fleetune_core::data::{DataSource, Dataset, Encoder, Partition, Template};
use fleetune_core::model::{Decoder, LoadedModel};
use fleetune_core::train::{AnswerLearner, PreferenceLearner};
use fleetune_core::update::Codec;
use serde_json::json;

pub(super) use self::memory::plan_memory;
use super::engine::{check_context, find_model as find, load_adapter};
use super::questions::suite_questions;
use super::{CommandError, CommandResult, Context};
use crate::aggregate::{Algorithm, Combine, Robust, Variant, Weighting};
use crate::evaluate::result::shown;
use crate::hub::{Cache, HubError};
use crate::interrupt::Interrupt;
use crate::progress::{Progress, Unit, note};
use crate::simulate::SimulateError;
use crate::simulate::config::ranks::RankClass;
use crate::simulate::config::{Origin, RunConfig};
use crate::simulate::environment::Environment;
use crate::simulate::fleet::{Fleet, FleetError};
use crate::simulate::observer::{Event, Observer};
use crate::simulate::references::References;
use crate::simulate::run::{Finished, RunFolder, config_of, holds_run, run as run_simulation};
use crate::simulate::schedule::{LearningRateSchedule, Sampling};
use crate::simulate::stand_in;
use crate::training::{ComputePrecision, LossName, Task};

/// What `fleetune simulate` takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  fleetune simulate configs/quickstart.toml
  fleetune simulate --dataset fingpt --data-dir data --clients 8 \\
      --partition dirichlet:0.5 --rounds 20
  fleetune simulate --out runs/quickstart --resume
  fleetune simulate configs/fingpt.toml --data-dir data --device cuda:0,1,2,3

A run's folder holds config.toml (every value it used), metrics.jsonl, checkpoints/ and report.html.")]
pub struct SimulateArgs {
    /// Configuration file; flags override what it says
    #[arg(value_name = "CONFIG.toml")]
    config: Option<PathBuf>,
    /// Continue the run in the folder where it was left
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    overrides: Overrides,
}

/// Declares one optional flag per key of the configuration, and how flags override a file.
macro_rules! overrides {
    ($($(#[$attribute:meta])* $field:ident: $type:ty => $set:expr;)*) => {
        /// Flags that override the configuration file.
        #[derive(Debug, Args)]
        struct Overrides {
            $($(#[$attribute])* #[arg(long)] $field: Option<$type>,)*
        }

        impl Overrides {
            fn apply(self, config: &mut RunConfig, origin: &mut Origin) {
                $(if let Some(value) = self.$field {
                    let set: fn(&mut RunConfig, $type) = $set;
                    set(config, value);
                    origin.add_flag(stringify!($field));
                })*
            }
        }
    };
}

overrides! {
    /// Base model: a name or a path; `stand-in` is a tiny one with random weights
    #[arg(value_name = "NAME_OR_PATH")]
    model: String => |c, v| c.model = v;
    /// Data set by name; several joined by commas are mixed
    #[arg(value_name = "NAME")]
    dataset: String => |c, v| c.dataset = v;
    /// Folder that holds the data sets [default: the cache]
    #[arg(value_name = "DIR")]
    data_dir: PathBuf => |c, v| c.data_dir = Some(v);
    /// Files with the rows, in place of the data set's own
    #[arg(value_name = "FILE", value_delimiter = ',')]
    data: Vec<PathBuf> => |c, v| c.data = v;
    /// Names of the fields in those files, such as instruction=question,response=answer
    #[arg(value_name = "NAME=FIELD,...")]
    fields: String => |c, v| c.fields = Some(v);
    /// What clients learn from: sft (answers) or dpo (preferences)
    #[arg(value_parser = by_serde::<Task>)]
    task: Task => |c, v| c.task = v;
    /// The text around a row: alpaca, vicuna or chat [default: alpaca; dpo: vicuna]
    template: Template => |c, v| c.template = Some(v);
    /// Longest sequence, tokens
    #[arg(value_name = "N")]
    seq_len: usize => |c, v| c.seq_len = v;
    /// Share of the rows held out for evaluation
    #[arg(value_name = "SHARE")]
    holdout: f64 => |c, v| c.holdout = v;
    /// Clients in the federation
    #[arg(value_name = "N")]
    clients: u32 => |c, v| c.clients = v;
    /// Clients that train in a round
    #[arg(value_name = "N")]
    sample: u32 => |c, v| c.sample = v;
    /// How rows are dealt to clients: iid, dirichlet:ALPHA, by-source or by-field:FIELD
    partition: Partition => |c, v| c.partition = v;
    /// How clients and rows are drawn: seeded or openfedllm
    #[arg(value_parser = by_serde::<Sampling>)]
    sampling: Sampling => |c, v| c.sampling = v;
    /// fedavg, fedprox, scaffold, fedavgm, fedadagrad, fedyogi, fedadam, or local:K for client K
    /// alone; local is local:0
    #[arg(conflicts_with = "compare")]
    algorithm: Algorithm => |c, v| { c.algorithm = v; c.compare.clear(); };
    /// Algorithms to run one after another and compare
    #[arg(value_name = "ALGORITHM,...", value_delimiter = ',')]
    compare: Vec<Algorithm> => |c, v| c.compare = v;
    /// Reading of the server optimisers: openfedllm or paper
    variant: Variant => |c, v| c.variant = v;
    /// How much each client counts: samples or uniform
    weighting: Weighting => |c, v| c.weighting = Some(v);
    /// FedProx: weight of the pull towards the shared adapter
    #[arg(value_name = "MU")]
    prox_mu: f64 => |c, v| c.prox_mu = v;
    /// Server learning rate of fedadagrad, fedyogi and fedadam
    #[arg(value_name = "RATE")]
    server_lr: f64 => |c, v| c.server_lr = v;
    /// Decay of the server's momentum
    beta1: f64 => |c, v| c.beta1 = v;
    /// Decay of the server's second moment
    beta2: f64 => |c, v| c.beta2 = v;
    /// Adaptivity of the server's optimiser
    tau: f64 => |c, v| c.tau = v;
    /// What is averaged: factors (A and B apart), ffa (A frozen), alternate (in turn), or product
    /// (exact, also over ranks)
    combine: Combine => |c, v| c.combine = v;
    /// How hostile updates are kept out: none, median, trimmed:SHARE or krum:HOSTILE
    robust: Robust => |c, v| c.robust = v;
    /// Longest change of a client's products (Frobenius norm); 0 does not clip
    #[arg(value_name = "NORM")]
    clip_norm: f64 => |c, v| c.clip_norm = v;
    /// Ranks of the devices, such as 4,8,32 or 4:0.5,32:0.5 with shares; --lora-rank is the largest
    #[arg(value_name = "RANK[:SHARE],...", value_delimiter = ',')]
    ranks: Vec<RankClass> => |c, v| c.ranks = v;
    /// How changes are sent: f32, f16, int8, int4, int2, or the largest alone: top-k:0.1+int4
    codec: Codec => |c, v| c.codec = v;
    /// How the shared adapter is handed out: in full (f32), or as differences in another codec
    #[arg(value_name = "CODEC")]
    codec_down: Codec => |c, v| c.codec_down = v;
    /// Rounds
    #[arg(value_name = "N")]
    rounds: u32 => |c, v| c.rounds = v;
    /// Optimiser steps of a client in a round
    #[arg(value_name = "N")]
    steps: usize => |c, v| c.steps = v;
    /// Rows of a step
    #[arg(value_name = "N")]
    batch_size: usize => |c, v| c.batch_size = v;
    /// Batches whose gradients make one step
    #[arg(value_name = "N")]
    grad_accum: usize => |c, v| c.grad_accum = v;
    /// Clients that train at once, sharing the threads; 0 finds out whether that is faster
    #[arg(value_name = "N")]
    clients_at_once: usize => |c, v| c.clients_at_once = v;
    /// Clients whose batches go through the model in one pass; 0 finds out whether that is faster
    #[arg(value_name = "N")]
    clients_per_pass: usize => |c, v| c.clients_per_pass = v;
    /// Learning rate of the first round
    #[arg(value_name = "RATE")]
    lr: f64 => |c, v| c.lr = v;
    /// Learning rate over rounds: constant or cosine
    #[arg(value_parser = by_serde::<LearningRateSchedule>)]
    lr_schedule: LearningRateSchedule => |c, v| c.lr_schedule = v;
    /// Where the cosine schedule ends
    #[arg(value_name = "RATE")]
    lr_min: f64 => |c, v| c.lr_min = v;
    /// AdamW's weight decay
    weight_decay: f64 => |c, v| c.weight_decay = v;
    /// Longest gradient (L2 norm); 0 does not clip
    #[arg(value_name = "NORM")]
    max_grad_norm: f64 => |c, v| c.max_grad_norm = v;
    /// Preferences: strength; larger values keep closer to the reference
    #[arg(value_name = "BETA")]
    dpo_beta: f64 => |c, v| c.dpo_beta = v;
    /// Preferences: sigmoid, ipo, hinge, robust, or orpo, which needs no reference
    dpo_loss: LossName => |c, v| c.dpo_loss = v;
    /// Preferences: share of labels taken to be wrong, for the loss robust
    #[arg(value_name = "SHARE")]
    dpo_label_smoothing: f64 => |c, v| c.dpo_label_smoothing = v;
    /// Preferences: a PEFT adapter as the reference [default: the base model]
    #[arg(value_name = "DIR")]
    reference_adapter: PathBuf => |c, v| c.reference_adapter = Some(v);
    /// Start from this PEFT adapter, whose shape the run must have
    #[arg(value_name = "DIR")]
    init_adapter: PathBuf => |c, v| c.init_adapter = Some(v);
    /// LoRA rank
    #[arg(value_name = "R")]
    lora_rank: usize => |c, v| c.lora_rank = v;
    /// LoRA strength
    #[arg(value_name = "A")]
    lora_alpha: f64 => |c, v| c.lora_alpha = v;
    /// Adapted projections, such as q_proj,v_proj
    #[arg(value_name = "NAME,...", value_delimiter = ',')]
    lora_targets: Vec<Target> => |c, v| c.lora_targets = v;
    /// Dropout before A
    lora_dropout: f64 => |c, v| c.lora_dropout = v;
    /// Rounds between two evaluations; 0 evaluates only before and after
    #[arg(value_name = "N")]
    eval_every: u32 => |c, v| c.eval_every = v;
    /// Held-out rows an evaluation reads; 0 reads all
    #[arg(value_name = "N")]
    eval_rows: usize => |c, v| c.eval_rows = v;
    /// Held-out prompts answered before and after training
    #[arg(value_name = "N")]
    answers: usize => |c, v| c.answers = v;
    /// Longest answer, tokens
    #[arg(value_name = "N")]
    answer_tokens: usize => |c, v| c.answer_tokens = v;
    /// Suites to ask the shared adapter whenever it is measured (`fleetune eval --list`)
    #[arg(value_name = "SUITES", value_delimiter = ',')]
    eval: Vec<String> => |c, v| c.evaluation.suites = v;
    /// Questions of each suite; 0 asks all
    #[arg(value_name = "N")]
    eval_limit: usize => |c, v| c.evaluation.limit = v;
    /// Who judges open-ended answers: a local model, or the model of --judge-url
    #[arg(value_name = "NAME")]
    judge_model: String => |c, v| c.evaluation.judge_model = Some(v);
    /// Judge at this endpoint of OpenAI's interface
    #[arg(value_name = "URL")]
    judge_url: String => |c, v| c.evaluation.judge_url = Some(v);
    /// Checkpoints kept; 0 keeps all
    #[arg(value_name = "N")]
    keep_checkpoints: usize => |c, v| c.keep_checkpoints = v;
    /// How matrix products round: f32 or bf16
    #[arg(value_parser = by_serde::<ComputePrecision>)]
    precision: ComputePrecision => |c, v| c.precision = v;
    /// Seed of every random choice
    #[arg(value_name = "N")]
    seed: u64 => |c, v| c.seed = v;
    /// The run's folder
    #[arg(value_name = "RUN")]
    out: PathBuf => |c, v| c.out = Some(v);
}

/// Reads a value as a configuration file does.
fn by_serde<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(json!(text)).map_err(|error| error.to_string())
}

/// Runs the command.
///
/// # Errors
/// When the configuration is wrong, the run fails or is interrupted.
pub fn run(args: SimulateArgs, ctx: &Context) -> CommandResult {
    let interrupt = ctx.interrupt();
    let (mut config, out, origin) = configure(args.config.as_deref(), args.resume, args.overrides)?;
    // Before the model and the data are read: a folder in use is told at once.
    RunFolder::check(&out, &config, args.resume).map_err(explain)?;
    let device = ctx.open_device()?;
    let (model_path, notice) = find_model(&mut config, args.resume, &interrupt)?;

    let model = Arc::new(LoadedModel::open(&model_path)?);
    check_context(&model, config.seq_len)?;
    let tokenizer = model.tokenizer()?;
    let dataset = open_dataset(&config)?;
    let encoder =
        Encoder::new(config.template(), tokenizer, config.seq_len).map_err(CommandError::usage)?;
    let fleet = Fleet::new(dataset, &config).map_err(fleet_error)?;
    let checked = match config.task {
        Task::Sft => fleet.check::<AnswerLearner>(&config, &encoder),
        Task::Dpo => fleet.check::<PreferenceLearner>(&config, &encoder),
    };
    checked.map_err(fleet_error)?;
    let initial_adapter = match &config.init_adapter {
        Some(folder) => Some(initial_adapter(folder, &model, &config)?),
        None => None,
    };
    // Hashing a large model takes seconds, and supervised tuning asks no reference.
    let model_hash = match config.task {
        Task::Sft => String::new(),
        Task::Dpo => model.content_hash()?.to_owned(),
    };
    let references = references(&config, &out, model_hash, &model)?;
    // They open the model while this process does.
    let starting = worker::start(&config, &model_path, &references.model_hash, ctx)?;
    let decoder =
        Decoder::new(model.config.clone(), &model.weights, &device, config.precision.into())?;
    let decoder = Arc::new(decoder);
    let seen = || Ok(fleet.training_texts()?);
    let asked = (&config.evaluation, &origin);
    let suites = suite_questions(&config, asked, (&model, &decoder), seen, ctx)?;
    let memory = memory::plan_shared_memory(&model, &device, &config, &fleet, &encoder)?;
    let workers = starting.into_iter().map(|worker| worker.ready(memory));
    let workers = workers.collect::<Result<Vec<_>, _>>()?;
    let environment = Environment {
        device: TrainingDevice { decoder: &decoder, memory, cancel: interrupt.cancel_token() },
        workers: &workers,
        tokenizer,
        answer_tokens: config.answer_tokens,
        encoder: &encoder,
        task: config.client_task(),
        fleet: &fleet,
        initial_adapter: initial_adapter.as_ref(),
        references: &references,
        suites: suites.as_ref(),
        base_name: &config.model,
        notice: notice.as_deref(),
    };
    let folder = RunFolder::open(&out, &config, args.resume).map_err(explain)?;
    let mut watcher = Watcher::new(&config, interrupt);
    let finished = run_simulation(&environment, &config, &folder, &mut watcher);
    watcher.close();
    let finished = finished.map_err(|error| match error {
        SimulateError::Stopped => CommandError::Interrupted(format!(
            "the rounds that are done are kept; continue with: fleetune simulate --out {} --resume",
            out.display()
        )),
        other => explain(other),
    })?;
    ctx.result(
        &json!({ "out": out, "report": finished.report, "notice": notice, "rows": finished.comparison.rows }),
        || describe(&finished, notice.as_deref()),
    )?;
    Ok(())
}

/// The configuration out of file, run folder and flags, the run's folder, and where values stand.
fn configure(
    file: Option<&Path>,
    resume: bool,
    overrides: Overrides,
) -> Result<(RunConfig, PathBuf, Origin), CommandError> {
    let wrong = |error: crate::simulate::config::ConfigError| CommandError::usage(error);
    let out = overrides.out.clone();
    let (mut config, mut origin) = match (file, &out) {
        (Some(file), _) => RunConfig::read(file).map_err(wrong)?,
        // A run knows its own configuration.
        (None, Some(out)) if resume && holds_run(out) => {
            (config_of(out).map_err(explain)?, Origin::default())
        }
        (None, _) => (RunConfig::default(), Origin::default()),
    };
    overrides.apply(&mut config, &mut origin);
    if !origin.gives("sample") {
        config.sample = config.sample.min(config.clients);
    }
    config.check(&origin).map_err(wrong)?;
    let out = config.out.clone().unwrap_or_else(|| {
        let name = file.and_then(Path::file_stem).unwrap_or("simulate".as_ref());
        Path::new("runs").join(name)
    });
    if resume && !holds_run(&out) {
        return Err(CommandError::Usage(format!(
            "{} holds no run to resume: name its folder with --out, or leave --resume out",
            out.display()
        )));
    }
    config.out = Some(out.clone());
    Ok((config, out, origin))
}

/// The base model's place. Where the built-in model cannot be fetched for a new run, the stand-in
/// takes its place, in the configuration too, with a notice.
fn find_model(
    config: &mut RunConfig,
    resume: bool,
    interrupt: &Interrupt,
) -> Result<(PathBuf, Option<String>), CommandError> {
    let path = match find(&config.model, interrupt) {
        Ok(path) => path,
        Err(error @ HubError::NoSource { .. }) if !resume => {
            note(format!("{error}\nA tiny stand-in with random weights takes its place."));
            config.model = stand_in::NAME.into();
            find(stand_in::NAME, interrupt)?
        }
        Err(HubError::Interrupted) => {
            return Err(CommandError::Interrupted("no model yet: run the command again".into()));
        }
        Err(error) => return Err(error.into()),
    };
    if config.model != stand_in::NAME {
        return Ok((path, None));
    }
    let notice = "The base model is the stand-in: tiny, with random weights. Its answers are \
                  nonsense; the numbers show the federation at work, and nothing about language.";
    Ok((path, Some(notice.into())))
}

/// The folder of data sets.
pub(super) fn data_dir(config: &RunConfig) -> Result<PathBuf, CommandError> {
    match &config.data_dir {
        Some(folder) => Ok(folder.clone()),
        None => Ok(Cache::of_user()?.data()),
    }
}

/// What preferences are measured against in the run in folder `out`.
fn references(
    config: &RunConfig,
    out: &Path,
    model_hash: String,
    model: &LoadedModel,
) -> Result<References, CommandError> {
    let adapter = config.reference_adapter.as_deref();
    Ok(References {
        folder: out.join("reference"),
        model_hash,
        precision: config.precision.into(),
        adapter: adapter.map(|folder| load_adapter(model, folder)).transpose()?,
    })
}

/// The adapter in `folder`, which must have the shape that the configuration says.
fn initial_adapter(
    folder: &Path,
    model: &LoadedModel,
    config: &RunConfig,
) -> Result<Adapter, CommandError> {
    let mut adapter = load_adapter(model, folder)?;
    let wanted = config.lora().map_err(CommandError::usage)?;
    adapter.config.dropout = wanted.dropout;
    if adapter.config != wanted {
        let LoraConfig { rank, alpha, targets, .. } = &adapter.config;
        let targets: Vec<_> = targets.iter().map(|target| target.name()).collect();
        return Err(CommandError::Usage(format!(
            "the adapter in {} has lora_rank {rank}, lora_alpha {alpha} and lora_targets {}{}: set \
             the same in the configuration",
            folder.display(),
            targets.join(","),
            if adapter.config.rslora {
                ", scaled by rsLoRA, which simulations have not"
            } else {
                ""
            },
        )));
    }
    Ok(adapter)
}

pub(super) fn open_dataset(config: &RunConfig) -> Result<Dataset, CommandError> {
    let files = config.data.clone();
    let source = DataSource { data_dir: Some(data_dir(config)?), files, temp_dir: None };
    let fields = config.field_map().map_err(CommandError::usage)?;
    let dataset = Dataset::open(&config.dataset, &source, fields.as_ref())?;
    if dataset.skipped().total() > 0 {
        note(dataset.skipped());
    }
    Ok(dataset)
}

/// A file that is at fault is a failure; what was asked of it is the user's choice.
fn fleet_error(error: FleetError) -> CommandError {
    match error {
        FleetError::Dataset(error) => error.into(),
        other => CommandError::usage(other),
    }
}

fn explain(error: SimulateError) -> CommandError {
    if error.is_usage() { CommandError::usage(error) } else { error.into() }
}

/// What the terminal shows at the end.
fn describe(finished: &Finished, notice: Option<&str>) -> String {
    let Finished { comparison, report } = finished;
    let mut text = format!("{}\n", comparison.table());
    if let Some(groups) = comparison.group_table() {
        text += &format!("\n{groups}\n");
    }
    if let Some(suites) = comparison.suite_table() {
        text += &format!("\n{suites}\n");
    }
    let answers = comparison.answers(1);
    if !answers.is_empty() {
        text += &format!("\n{answers}\n");
    }
    if let Some(notice) = notice {
        text += &format!("\n{notice}\n");
    }
    text + &format!("\nReport: {}", report.display())
}

/// Shows a run's progress and carries Ctrl-C into it.
struct Watcher {
    interrupt: Interrupt,
    /// Steps of one client in a round.
    steps: u64,
    rounds: u32,
    progress: Option<Progress>,
    /// Held-out rows that the progress has counted.
    rows: u64,
    /// When the training at hand began, and its tokens since.
    since: Instant,
    tokens: u64,
}

impl Watcher {
    fn new(config: &RunConfig, interrupt: Interrupt) -> Self {
        Self {
            interrupt,
            steps: config.steps as u64,
            rounds: config.rounds,
            progress: None,
            rows: 0,
            since: Instant::now(),
            tokens: 0,
        }
    }

    fn close(&mut self) {
        if let Some(progress) = self.progress.take() {
            progress.finish();
        }
    }

    fn say(&self, message: String) {
        if let Some(progress) = &self.progress {
            progress.message(message);
        }
    }

    fn show(&mut self, event: &Event<'_>) {
        match event {
            Event::Started { algorithm, clients, done, rounds } => {
                self.close();
                let steps_per_round = u64::from(*clients) * self.steps;
                let total = u64::from(*rounds) * steps_per_round;
                let progress = Progress::new(algorithm, Some(total), Unit::Items("steps"));
                progress.resume_at(u64::from(*done) * steps_per_round);
                self.progress = Some(progress);
                (self.since, self.tokens) = (Instant::now(), 0);
            }
            Event::Evaluating { round: 0, done, rows } => {
                let (done, rows) = (*done as u64, *rows as u64);
                if done == 0 {
                    self.rows = 0;
                    self.progress =
                        Some(Progress::new("base model", Some(rows), Unit::Items("rows")));
                }
                if let Some(progress) = &self.progress {
                    progress.advance(done - self.rows);
                }
                self.rows = done;
            }
            Event::Evaluating { round, done, rows } => {
                self.say(format!("round {round}: scoring held-out rows, {done} of {rows}"));
            }
            Event::Answering { done, prompts, .. } => {
                self.say(format!("answering held-out prompts, {done} of {prompts}"));
            }
            Event::Asking { round, suite, work, done, total } => {
                self.say(format!("round {round}: {suite}, {done} of {total} {work}"));
            }
            Event::Asked(suite) => {
                if let Some(metric) = suite.result.overall().next() {
                    let (name, round) = (&suite.result.suite, suite.round);
                    note(format!("round {round}: {name} {} {}", metric.name, shown(metric)));
                }
            }
            Event::Evaluated(evaluation) => note(format!(
                "round {}: held-out loss {:.4}, {} {:.1} %",
                evaluation.round,
                evaluation.score.loss,
                evaluation.score.accuracy().0,
                100.0 * evaluation.score.accuracy().1
            )),
            Event::Stepped { round, client, step } => {
                self.tokens += step.tokens as u64;
                let seconds = self.since.elapsed().as_secs_f64().max(1e-3);
                self.say(format!(
                    "round {round}/{}, client {client}, loss {:.3}, {:.0} tokens/s",
                    self.rounds,
                    step.loss,
                    self.tokens as f64 / seconds
                ));
                if let Some(progress) = &self.progress {
                    progress.advance(1);
                }
            }
            Event::Aggregated(round) => {
                tracing::info!(
                    "round {}: {} clients, training loss {:.4}",
                    round.round,
                    round.clients.len(),
                    round.loss.unwrap_or(f64::NAN)
                );
            }
            _ => {}
        }
    }
}

impl Observer for Watcher {
    fn see(&mut self, event: &Event<'_>) -> ControlFlow<()> {
        self.show(event);
        if self.interrupt.is_set() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}
