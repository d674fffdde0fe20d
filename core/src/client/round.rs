//! Training for one round.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::device_memory::DeviceMemory;
use super::messages::{Download, MessageError, Upload};
use crate::adapter::{Adapter, LoraConfig, ParameterSet, TrainedFactors};
use crate::memory::MemoryPlan;
use crate::model::{CancelToken, Decoder, EngineError};
use crate::train::{
    AdamWOptions, Learner, LocalObjective, PreferenceLoss, PreferenceReport, StepReport,
    TrainError, TrainOptions, Trainer, update_control_variate,
};
use crate::update::Codec;

/// What a client computes with.
#[derive(Debug, Clone)]
pub struct TrainingDevice<'a> {
    /// The frozen base model.
    pub decoder: &'a Decoder,
    /// How training is laid out in memory; it changes nothing but the order of sums.
    pub memory: MemoryPlan,
    /// Ends a running step within one layer's time.
    pub cancel: CancelToken,
}

/// What clients learn from their rows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "task", rename_all = "lowercase")]
pub enum Task {
    /// Answers to instructions ([`crate::train::AnswerLearner`]).
    Sft,
    /// Which of two answers is better ([`crate::train::PreferenceLearner`]).
    Dpo {
        /// The loss.
        loss: PreferenceLoss,
        /// Strength β.
        beta: f64,
    },
}

/// What the server asks of a client in one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundPlan {
    /// The round, from 1.
    pub round: u32,
    /// What is learnt.
    pub task: Task,
    /// The adapter's shape.
    pub lora: LoraConfig,
    /// Optimiser steps; fewer where rows run out.
    pub steps: usize,
    /// Rows of a step.
    pub batch_size: usize,
    /// Learning rate, constant inside the round.
    pub learning_rate: f64,
    /// AdamW's weight decay.
    pub weight_decay: f64,
    /// Longest gradient (L2 norm).
    pub max_grad_norm: Option<f64>,
    /// FedProx: weight of the pull towards the shared adapter.
    pub prox_mu: Option<f64>,
    /// Which of an adapter's factors are trained.
    #[serde(default)]
    pub trained: TrainedFactors,
    /// How the change is sent back.
    #[serde(default)]
    pub codec: Codec,
    /// Seed of dropout and of stochastic rounding.
    pub seed: u64,
}

/// What training did, in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainingReport {
    /// Optimiser steps taken.
    pub steps: usize,
    /// Rows that they took.
    pub rows: u64,
    /// Tokens processed.
    pub tokens: u64,
    /// Tokens the loss counted.
    pub supervised_tokens: u64,
    /// Mean loss over all steps, nats, per supervised token (SFT) or pair (DPO); what an algorithm
    /// adds is left out.
    pub loss: f64,
    /// Loss of the first step.
    pub first_loss: f64,
    /// Loss of the last step.
    pub last_loss: f64,
    /// L2 norm of the adapter's change.
    pub update_norm: f64,
    /// How pairs were judged, mean over all steps, in preference training.
    pub preference: Option<PreferenceReport>,
}

impl TrainingReport {
    /// What the loss is a mean over: supervised tokens, or pairs of answers.
    pub fn loss_terms(&self) -> u64 {
        if self.preference.is_some() { self.rows } else { self.supervised_tokens }
    }
}

/// A client's round, done.
#[derive(Debug, Clone, PartialEq)]
pub struct RoundOutcome {
    /// What the server gets.
    pub upload: Upload,
    /// The adapter as trained here, exactly; what the server reads from the upload is rounded.
    pub adapter: ParameterSet,
    /// What training did.
    pub report: TrainingReport,
    /// What to keep for the next round. Control variate and residual count once the server has
    /// taken the upload; where it has not, the ones before stay.
    pub memory: DeviceMemory,
}

/// Why a client cannot finish its round.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The rows cannot be read.
    #[error("cannot read the client's rows: {0}")]
    Data(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No row has anything to learn.
    #[error("none of the client's rows has anything to learn within the sequence length")]
    NothingToLearn,
    /// Training failed.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// What the server sent cannot be read, or the answer cannot be written.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The caller asked to stop.
    #[error("stopped before the round was done")]
    Stopped,
}

/// Trains for one round on `rows`, taken in order until the plan's steps are done or rows run out.
/// `learner` is the one of the plan's task.
///
/// `memory` is what the client kept of earlier rounds. A residual of another layout, of a time when
/// the federation had adapters of another shape, is dropped. `watch` sees each step and may end the round, which then leaves no trace.
///
/// The control variate to keep moves by exactly the change that the server decodes from the upload,
/// so that the server's variate stays the mean of the clients'.
///
/// # Errors
/// When the download does not fit the plan or the model, rows cannot be read or teach nothing,
/// training diverges or fails, or `watch` or the device's `cancel` asks to stop.
pub fn train_round<L: Learner, E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    device: &TrainingDevice<'_>,
    plan: &RoundPlan,
    download: &Download,
    memory: DeviceMemory,
    learner: &mut L,
    rows: impl IntoIterator<Item = Result<L::Sample, E>>,
    mut watch: impl FnMut(&StepReport) -> ControlFlow<()>,
) -> Result<RoundOutcome, ClientError> {
    // Only the layout of this adapter counts.
    let layout =
        Adapter::new(plan.lora.clone(), device.decoder.config(), 0).map_err(TrainError::from)?;
    let DeviceMemory { control: own, residual, held } = memory;
    let (global, control) = download.decode_onto(&layout.parameters, held.as_ref())?;
    let control = control.map(|server| {
        let own = own.unwrap_or_else(|| server.zeros_like());
        ControlPair { server, own }
    });
    let options = TrainOptions {
        optimizer: AdamWOptions { weight_decay: plan.weight_decay, ..AdamWOptions::default() },
        max_grad_norm: plan.max_grad_norm,
        objective: objective(plan, &global, control.as_ref())?,
        trained: plan.trained,
        seed: plan.seed,
        ..TrainOptions::default()
    }
    .with_plan(&device.memory);
    let adapter = Adapter { config: plan.lora.clone(), parameters: global.clone() };
    let trainer = Trainer::new(device.decoder, adapter, options)?;
    let mut trainer = trainer.with_cancel(device.cancel.clone());

    let mut report = TrainingReport::default();
    let mut loss_sum = 0.0;
    let mut rows = rows.into_iter();
    for _ in 0..plan.steps {
        let batch = rows.by_ref().take(plan.batch_size).collect::<Result<Vec<_>, E>>();
        let batch = batch.map_err(|error| ClientError::Data(error.into()))?;
        if batch.is_empty() {
            break;
        }
        let step = match learner.step(&mut trainer, &batch, plan.learning_rate) {
            Err(TrainError::Engine(EngineError::Cancelled)) => return Err(ClientError::Stopped),
            step => step?,
        };
        let loss = step.loss - step.proximal;
        if report.steps == 0 {
            report.first_loss = loss;
        }
        report.last_loss = loss;
        report.steps += 1;
        report.rows += step.rows as u64;
        report.tokens += step.tokens as u64;
        report.supervised_tokens += step.supervised_tokens as u64;
        loss_sum += loss * step.loss_terms() as f64;
        if let Some(judged) = step.preference {
            report.preference.get_or_insert_default().add(&judged, step.rows as f64);
        }
        if watch(&step).is_break() {
            return Err(ClientError::Stopped);
        }
    }
    if report.steps == 0 {
        return Err(ClientError::NothingToLearn);
    }
    report.loss = loss_sum / report.loss_terms() as f64;
    report.preference = report.preference.map(|sum| sum.scaled(1.0 / report.rows as f64));

    let local = trainer.into_adapter().parameters;
    report.update_norm = local.difference(&global).map_err(TrainError::from)?.l2_norm();
    let change = |pair: &ControlPair| pair.change(&global, &local, &report, plan.learning_rate);
    let control_change = control.as_ref().map(change).transpose()?;
    let mut residual = residual.filter(|set| set.check_layout(&global).is_ok());
    let (codec, seed) = (plan.codec, plan.seed);
    let control_change = control_change.as_ref();
    let upload = Upload::encode_with(&global, &local, control_change, codec, seed, &mut residual)?;
    let (_, sent) = upload.decode(&global)?;
    let control = match (control, sent) {
        (Some(pair), Some(sent)) => Some(pair.moved(&sent)?),
        _ => None,
    };
    let memory = DeviceMemory { control, residual, held: Some(global) };
    Ok(RoundOutcome { upload, adapter: local, report, memory })
}

/// SCAFFOLD's control variates as a client meets them in a round.
struct ControlPair {
    /// The server's, c.
    server: ParameterSet,
    /// The client's own, c_i.
    own: ParameterSet,
}

impl ControlPair {
    /// How training moved c_i.
    fn change(
        &self,
        global: &ParameterSet,
        local: &ParameterSet,
        report: &TrainingReport,
        learning_rate: f64,
    ) -> Result<ParameterSet, TrainError> {
        let Self { server, own } = self;
        let (_, change) =
            update_control_variate(global, local, server, own, report.steps, learning_rate)?;
        Ok(change)
    }

    /// c_i after the change that was sent.
    fn moved(self, sent: &ParameterSet) -> Result<ParameterSet, TrainError> {
        let mut own = self.own;
        own.zip_apply(sent, |own, change| *own += change)?;
        Ok(own)
    }
}

/// What the algorithm adds to the client's loss.
fn objective(
    plan: &RoundPlan,
    global: &ParameterSet,
    control: Option<&ControlPair>,
) -> Result<LocalObjective, TrainError> {
    if let Some(ControlPair { server, own }) = control {
        let mut correction = server.clone();
        correction.zip_apply(own, |c, own| *c -= own)?;
        return Ok(LocalObjective::Scaffold { correction });
    }
    Ok(match plan.prox_mu {
        Some(mu) => LocalObjective::Prox { mu, global: global.clone() },
        None => LocalObjective::Plain,
    })
}
