//! A run's configuration: one flat table, every key with a default, `--batch-size` on the command
//! line being `batch_size` in the file.
//!
//! What is written to the run folder is complete: it names every value the run used, and reads back
//! as the same configuration.

mod by_name;
mod combination;
mod origin;
pub mod ranks;
#[cfg(test)]
mod tests;

use std::fmt::{self, Display};
use std::ops::Range;
use std::path::{Path, PathBuf};

use fleetune_core::adapter::{LoraConfig, LoraConfigError, Target, TrainedFactors};
use fleetune_core::client::{self, RoundPlan};
use fleetune_core::data::{FieldMap, FieldMapError, Partition, Template};
use fleetune_core::update::Codec;
use serde::{Deserialize, Serialize};

pub use self::origin::{ConfigError, Origin, read_toml};
use self::ranks::RankClass;
use super::schedule::{LearningRateSchedule, RowSchedule, Sampling};
use crate::aggregate::{Algorithm, Combine, Hyperparameters, Robust, Variant, Weighting};
use crate::evaluate::judge::check_address;
use crate::evaluate::suite::Wrapping;
use crate::evaluate::{federated, suites};
use crate::seed::{Choice, derived};
use crate::training::{ComputePrecision, LossName, Task};

/// Everything that decides what a run computes, and where it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// Base model: a built-in name or a path.
    pub model: String,
    /// Data set, by name.
    pub dataset: String,
    /// Folder that holds the data sets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    /// Files in place of a named data set.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<PathBuf>,
    /// Names of the fields in those files, such as `instruction=question,response=answer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fields: Option<String>,
    /// What clients learn from.
    pub task: Task,
    /// The text around a row; the task's own where absent.
    #[serde(with = "by_name::optional", skip_serializing_if = "Option::is_none")]
    pub template: Option<Template>,
    /// Longest sequence, tokens.
    pub seq_len: usize,
    /// Share of the rows held out for evaluation, where the data set has no held-out part.
    pub holdout: f64,

    /// Clients in the federation.
    pub clients: u32,
    /// Clients that train in a round.
    pub sample: u32,
    /// How rows are dealt to clients.
    #[serde(with = "by_name")]
    pub partition: Partition,
    /// How clients and their rows are drawn.
    pub sampling: Sampling,

    /// How clients' adapters become one.
    pub algorithm: Algorithm,
    /// Algorithms to run one after another and compare, in place of `algorithm`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub compare: Vec<Algorithm>,
    /// Which reading of the algorithm.
    pub variant: Variant,
    /// How much each client counts; the algorithm's own way where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weighting: Option<Weighting>,
    /// FedProx: weight of the pull towards the shared adapter.
    pub prox_mu: f64,
    /// Server learning rate of FedAdagrad, FedYogi and FedAdam.
    pub server_lr: f64,
    /// Decay of the server's momentum.
    pub beta1: f64,
    /// Decay of the server's second moment.
    pub beta2: f64,
    /// Adaptivity of the server's optimiser.
    pub tau: f64,
    /// What is averaged: A and B apart, or their products.
    pub combine: Combine,
    /// How far-off updates are kept from mattering.
    pub robust: Robust,
    /// Longest change of a client's products (Frobenius norm); 0 does not clip.
    pub clip_norm: f64,
    /// Classes of devices by rank; all have `lora_rank` where there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ranks: Vec<RankClass>,
    /// How clients send their changes.
    pub codec: Codec,
    /// How the server hands out the shared adapter: in full (f32), or as differences.
    pub codec_down: Codec,

    /// Rounds.
    pub rounds: u32,
    /// Optimiser steps of a client in a round.
    pub steps: usize,
    /// Rows of a step, or of each of its parts when gradients are accumulated.
    pub batch_size: usize,
    /// Parts whose gradients make one step.
    pub grad_accum: usize,
    /// Clients that train at once, sharing the threads; 0 finds out whether that is faster.
    pub clients_at_once: usize,
    /// Clients whose batches go through the model in one pass; 0 finds out whether that is faster.
    pub clients_per_pass: usize,
    /// Learning rate of the first round.
    pub lr: f64,
    /// How the learning rate changes over rounds.
    pub lr_schedule: LearningRateSchedule,
    /// Where the cosine schedule ends.
    pub lr_min: f64,
    /// AdamW's weight decay.
    pub weight_decay: f64,
    /// Longest gradient (L2 norm); 0 does not clip.
    pub max_grad_norm: f64,

    /// Preferences: strength β.
    pub dpo_beta: f64,
    /// Preferences: the loss.
    pub dpo_loss: LossName,
    /// Preferences: the share of wrong labels that the loss `robust` reckons with.
    pub dpo_label_smoothing: f64,
    /// Preferences: a PEFT adapter as the frozen reference; the base model where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference_adapter: Option<PathBuf>,

    /// A PEFT adapter to start from, of the shape that the keys below say; a fresh one where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_adapter: Option<PathBuf>,
    /// LoRA rank.
    pub lora_rank: usize,
    /// LoRA strength.
    pub lora_alpha: f64,
    /// Adapted projections.
    pub lora_targets: Vec<Target>,
    /// Dropout before A.
    pub lora_dropout: f64,

    /// Rounds between two evaluations; 0 evaluates only before and after.
    pub eval_every: u32,
    /// Held-out rows an evaluation reads, spread over their sources; 0 reads all.
    pub eval_rows: usize,
    /// Held-out prompts answered before and after training.
    pub answers: usize,
    /// Longest answer, tokens.
    pub answer_tokens: usize,

    /// Checkpoints kept; 0 keeps all.
    pub keep_checkpoints: usize,
    /// How matrix products round.
    pub precision: ComputePrecision,
    /// Seed of every random choice.
    pub seed: u64,
    /// The run's folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out: Option<PathBuf>,

    /// Suites of questions for the shared adapter.
    #[serde(skip_serializing_if = "EvaluationConfig::is_empty")]
    pub evaluation: EvaluationConfig,
}

/// The table `[evaluation]`: what the shared adapter is asked whenever it is measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvaluationConfig {
    /// Suites and families of suites.
    pub suites: Vec<String>,
    /// Questions of each suite at most, a seeded sample; 0 asks all.
    pub limit: usize,
    /// Wrap prompts in this template; absent, each suite has its own way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<Wrapping>,
    /// Examples in prompts; absent, each suite has its own number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shots: Option<usize>,
    /// Who judges open-ended answers: an endpoint's model, or a local one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub judge_model: Option<String>,
    /// The endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub judge_url: Option<String>,
}

impl Default for EvaluationConfig {
    fn default() -> Self {
        let (template, shots) = (None, None);
        let (judge_model, judge_url) = (None, None);
        Self { suites: Vec::new(), limit: 100, template, shots, judge_model, judge_url }
    }
}

impl EvaluationConfig {
    /// Whether nothing is asked.
    pub fn is_empty(&self) -> bool {
        self.suites.is_empty()
    }

    /// The first wrong value: its key, and what is wrong.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        if self.suites.iter().any(|suite| suite == federated::NAME) {
            let problem = "federated is measured after a run, by fleetune eval --suite federated";
            return Some(("eval", problem.into()));
        }
        if let Err(error) = suites::named(&self.suites) {
            return Some(("eval", error.to_string()));
        }
        if self.judge_url.is_some() && self.judge_model.is_none() {
            let problem = "the endpoint needs a judge_model (--judge-model)";
            return Some(("judge_url", problem.into()));
        }
        if let Some(Err(error)) = self.judge_url.as_deref().map(check_address) {
            return Some(("judge_url", error.to_string()));
        }
        None
    }
}

impl Default for RunConfig {
    fn default() -> Self {
        let Hyperparameters { prox_mu, server_lr, beta1, beta2, tau } = Hyperparameters::default();
        Self {
            model: "smollm2-135m-instruct".into(),
            dataset: "demo".into(),
            data_dir: None,
            data: Vec::new(),
            fields: None,
            task: Task::Sft,
            template: None,
            seq_len: 512,
            holdout: 0.1,
            clients: 8,
            sample: 4,
            partition: Partition::Iid,
            sampling: Sampling::Seeded,
            algorithm: Algorithm::FedAvg,
            compare: Vec::new(),
            variant: Variant::default(),
            weighting: None,
            prox_mu,
            server_lr,
            beta1,
            beta2,
            tau,
            combine: Combine::Factors,
            robust: Robust::None,
            clip_norm: 0.0,
            ranks: Vec::new(),
            codec: Codec::F16,
            codec_down: Codec::F32,
            rounds: 20,
            steps: 10,
            batch_size: 8,
            grad_accum: 1,
            clients_at_once: 0,
            clients_per_pass: 0,
            lr: 5e-4,
            lr_schedule: LearningRateSchedule::Cosine,
            lr_min: 1e-6,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            dpo_beta: 0.1,
            dpo_loss: LossName::Sigmoid,
            dpo_label_smoothing: 0.1,
            reference_adapter: None,
            init_adapter: None,
            lora_rank: 8,
            lora_alpha: 16.0,
            lora_targets: vec![Target::QProj, Target::VProj],
            lora_dropout: 0.0,
            eval_every: 5,
            eval_rows: 200,
            answers: 3,
            answer_tokens: 64,
            keep_checkpoints: 3,
            precision: ComputePrecision::F32,
            seed: 0,
            out: None,
            evaluation: EvaluationConfig::default(),
        }
    }
}

/// Keys that say where and how long things are kept and what suites are asked, not what is trained: a
/// run may resume with other values.
const FREE_ON_RESUME: [&str; 5] =
    ["out", "keep_checkpoints", "clients_at_once", "clients_per_pass", "evaluation"];

impl RunConfig {
    /// Reads a configuration file; absent keys have their defaults.
    ///
    /// # Errors
    /// When the file cannot be read, is no TOML, or has an unknown key or a value of the wrong kind.
    pub fn read(path: &Path) -> Result<(Self, Origin), ConfigError> {
        read_toml(path)
    }

    /// Checks every value.
    ///
    /// # Errors
    /// Names the first value that is out of range and where it was given.
    pub fn check(&self, origin: &Origin) -> Result<(), ConfigError> {
        let too_many = (self.sample > self.clients && origin.gives("sample")).then(|| {
            (
                "sample",
                format!("{} a round are more than the {} clients", self.sample, self.clients),
            )
        });
        match self.problem().or(too_many) {
            None => Ok(()),
            Some((key, problem)) => Err(origin.wrong(key, problem)),
        }
    }

    /// The configuration as TOML, every key with its value.
    ///
    /// # Errors
    /// When a value has no TOML form.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        Ok(toml::to_string(self)?)
    }

    /// The text around a row.
    pub fn template(&self) -> Template {
        self.template.unwrap_or(self.task.template())
    }

    /// What clients are asked to learn.
    pub fn client_task(&self) -> client::Task {
        match self.task {
            Task::Sft => client::Task::Sft,
            Task::Dpo => client::Task::Dpo {
                loss: self.dpo_loss.with_smoothing(self.dpo_label_smoothing),
                beta: self.dpo_beta,
            },
        }
    }

    /// The algorithms to run, one after another.
    pub fn algorithms(&self) -> &[Algorithm] {
        if self.compare.is_empty() { std::slice::from_ref(&self.algorithm) } else { &self.compare }
    }

    /// The adapter's shape.
    ///
    /// # Errors
    /// When a value is out of range.
    pub fn lora(&self) -> Result<LoraConfig, LoraConfigError> {
        let config = LoraConfig::new(self.lora_rank, self.lora_alpha, &self.lora_targets)?;
        let config = LoraConfig { dropout: self.lora_dropout, ..config };
        config.check()?;
        Ok(config)
    }

    /// The algorithms' constants.
    pub fn hyperparameters(&self) -> Hyperparameters {
        let &Self { prox_mu, server_lr, beta1, beta2, tau, .. } = self;
        Hyperparameters { prox_mu, server_lr, beta1, beta2, tau }
    }

    /// The learning rate of round `round`, from 1.
    pub fn learning_rate(&self, round: u32) -> f64 {
        let Self { lr_schedule, rounds, lr, lr_min, .. } = *self;
        lr_schedule.rate(round.saturating_sub(1), rounds, lr, lr_min)
    }

    /// What client `client` is asked to do in round `round`, from 1, to the factors `trained` of an
    /// adapter of shape `lora`.
    pub fn round_plan(
        &self,
        lora: LoraConfig,
        trained: TrainedFactors,
        round: u32,
        client: u64,
    ) -> RoundPlan {
        RoundPlan {
            round,
            task: self.client_task(),
            lora,
            steps: self.steps,
            batch_size: self.batch_size * self.grad_accum,
            learning_rate: self.learning_rate(round),
            weight_decay: self.weight_decay,
            max_grad_norm: (self.max_grad_norm > 0.0).then_some(self.max_grad_norm),
            prox_mu: (self.algorithm == Algorithm::FedProx).then_some(self.prox_mu),
            trained,
            codec: self.codec,
            seed: derived(self.seed, Choice::Training, &[u64::from(round), client]),
        }
    }

    /// The clients' row schedule.
    pub fn row_schedule(&self) -> RowSchedule {
        let rows_per_round = self.steps * self.batch_size * self.grad_accum;
        RowSchedule { sampling: self.sampling, seed: self.seed, rows_per_round }
    }

    /// The first key whose value differs between two configurations of the same run, with both
    /// values.
    ///
    /// # Errors
    /// When a configuration has no TOML form.
    pub fn difference(&self, other: &Self) -> Result<Option<Difference>, ConfigError> {
        let tables = [toml::Table::try_from(self)?, toml::Table::try_from(other)?];
        let keys = tables.iter().flat_map(toml::Table::keys);
        let differs = |key: &&String| tables[0].get(*key) != tables[1].get(*key);
        let mut keys = keys.filter(|key| !FREE_ON_RESUME.contains(&key.as_str()));
        Ok(keys.find(differs).map(|key| Difference {
            key: key.clone(),
            values: tables.each_ref().map(|table| table.get(key).map(ToString::to_string)),
        }))
    }

    /// The data set's field mapping.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn field_map(&self) -> Result<Option<FieldMap>, FieldMapError> {
        self.fields.as_deref().map(str::parse).transpose()
    }

    fn problem(&self) -> Option<(&'static str, String)> {
        let counts = [
            ("clients", self.clients as usize),
            ("sample", self.sample as usize),
            ("rounds", self.rounds as usize),
            ("steps", self.steps),
            ("batch_size", self.batch_size),
            ("grad_accum", self.grad_accum),
            ("answer_tokens", self.answer_tokens),
        ];
        if let Some(&(key, _)) = counts.iter().find(|&&(_, count)| count == 0) {
            return Some((key, "0 is too few, use at least 1".into()));
        }
        let factors = [self.steps, self.batch_size, self.grad_accum];
        let rows = factors.into_iter().try_fold(1_usize, usize::checked_mul);
        if rows.is_none_or(|rows| rows > MAX_ROWS_PER_ROUND) {
            let problem = "steps × batch_size × grad_accum is more than a client can train on";
            return Some(("steps", problem.into()));
        }
        if self.seq_len < 8 {
            return Some((
                "seq_len",
                format!("{} tokens hold no example, use at least 8", self.seq_len),
            ));
        }
        let ranges = [
            ("holdout", self.holdout, 0.0..0.95),
            ("lr", self.lr, f64::MIN_POSITIVE..f64::MAX),
            ("lr_min", self.lr_min, 0.0..f64::MAX),
            ("weight_decay", self.weight_decay, 0.0..f64::MAX),
            ("max_grad_norm", self.max_grad_norm, 0.0..f64::MAX),
            ("dpo_beta", self.dpo_beta, f64::MIN_POSITIVE..f64::MAX),
            ("dpo_label_smoothing", self.dpo_label_smoothing, 0.0..0.5),
        ];
        if let Some((key, value, range)) =
            ranges.into_iter().find(|(_, value, range)| !range.contains(value))
        {
            return Some((key, out_of_range(value, &range)));
        }
        if self.lr_schedule == LearningRateSchedule::Cosine && self.lr_min > self.lr {
            let problem = format!("{} is above the learning rate {}", self.lr_min, self.lr);
            return Some(("lr_min", problem));
        }
        if let Err(error) = self.lora() {
            let key = match error {
                LoraConfigError::Rank { .. } => "lora_rank",
                LoraConfigError::Alpha { .. } => "lora_alpha",
                LoraConfigError::Dropout { .. } => "lora_dropout",
                _ => "lora_targets",
            };
            return Some((key, error.to_string()));
        }
        if let Err(error) = self.field_map() {
            return Some(("fields", error.to_string()));
        }
        if let Err(error) = self.hyperparameters().check() {
            return Some((error.name, error.to_string()));
        }
        if let Some(problem) = self.evaluation.problem() {
            return Some(problem);
        }
        if let Some(problem) = ranks::problem(&self.ranks, self.lora_rank) {
            return Some(("ranks", problem));
        }
        self.algorithm_problem().or_else(|| self.combination_problem())
    }

    fn algorithm_problem(&self) -> Option<(&'static str, String)> {
        let key = if self.compare.is_empty() { "algorithm" } else { "compare" };
        for (i, algorithm) in self.algorithms().iter().enumerate() {
            if let Algorithm::Local { client } = *algorithm
                && client >= self.clients as usize
            {
                let last = self.clients - 1;
                return Some((
                    key,
                    format!("there is no client {client}, the clients are 0 to {last}"),
                ));
            }
            if self.compare[..i.min(self.compare.len())].contains(algorithm) {
                return Some((key, format!("{algorithm} is named twice")));
            }
        }
        None
    }
}

/// Rows of one client's work in a round; far more than any plan needs, few enough to number.
const MAX_ROWS_PER_ROUND: usize = 100_000_000;

fn out_of_range(value: f64, range: &Range<f64>) -> String {
    if range.start == 0.0 && range.end == f64::MAX {
        format!("{value} is out of range, use 0 or a positive number")
    } else if range.end == f64::MAX {
        format!("{value} is out of range, use a positive number")
    } else {
        format!(
            "{value} is out of range, use {} up to, but not including, {}",
            range.start, range.end
        )
    }
}

/// Two configurations differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The key.
    pub key: String,
    /// Its value on either side, where it has one.
    pub values: [Option<String>; 2],
}

impl Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [was, is] = self.values.each_ref().map(|value| value.as_deref().unwrap_or("absent"));
        write!(f, "{} was {was} and is now {is}", self.key)
    }
}
