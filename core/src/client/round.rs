//! Training for one round.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::device_memory::DeviceMemory;
use super::messages::{Download, MessageError, Upload};
use crate::adapter::{Adapter, LoraConfig, ParameterSet, TrainedFactors};
use crate::memory::MemoryPlan;
use crate::model::{CancelToken, Decoder, EngineError};
use crate::train::{
    AdamWOptions, Learner, LocalObjective, PreferenceLoss, PreferenceReport, Step, StepReport,
    TrainError, TrainOptions, Trainer, step_together, update_control_variate,
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    Train(TrainError),
    /// What the server sent cannot be read, or the answer cannot be written.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The caller asked to stop.
    #[error("stopped before the round was done")]
    Stopped,
}

impl From<TrainError> for ClientError {
    /// A cancelled step is a stopped round.
    fn from(error: TrainError) -> Self {
        match error {
            TrainError::Engine(EngineError::Cancelled) => Self::Stopped,
            other => Self::Train(other),
        }
    }
}

/// A client's part of a round.
#[derive(Debug)]
pub struct RoundPart<'a, L, R> {
    /// What the server asks.
    pub plan: &'a RoundPlan,
    /// What the client starts from.
    pub download: &'a Download,
    /// What the client kept of earlier rounds. A residual of another layout, of a time when the
    /// federation had adapters of another shape, is dropped.
    pub memory: DeviceMemory,
    /// The one of the plan's task.
    pub learner: &'a mut L,
    /// Taken in order until the plan's steps are done or rows run out.
    pub rows: R,
}

/// Trains for one round. `watch` sees each step and may end the round, which then leaves no trace.
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
    let part = RoundPart { plan, download, memory, learner, rows: rows.into_iter() };
    let outcomes = train_rounds(device, vec![part], |_, step| watch(step));
    // One part has one outcome.
    outcomes.into_iter().next().unwrap_or(Err(ClientError::NothingToLearn))
}

/// Trains several clients, each for one round, step by step through common passes
/// ([`step_together`]): what comes of each is what training alone makes of it. All of them have
/// adapters of one shape. `watch` sees each step and whose it was, and may end the round of all.
///
/// What one client meets alone ends its part; where the engine fails, the first client says so and
/// the others say that they were stopped.
pub fn train_rounds<L, R, E>(
    device: &TrainingDevice<'_>,
    parts: Vec<RoundPart<'_, L, R>>,
    mut watch: impl FnMut(usize, &StepReport) -> ControlFlow<()>,
) -> Vec<Result<RoundOutcome, ClientError>>
where
    L: Learner,
    R: Iterator<Item = Result<L::Sample, E>>,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let begin = |part| Training::begin(device, part);
    let mut trainings: Vec<Result<_, ClientError>> = parts.into_iter().map(begin).collect();
    loop {
        let mut batches = Vec::new();
        for (i, training) in trainings.iter_mut().enumerate() {
            match training.as_mut().map(Training::next_batch) {
                Ok(Ok(Some(batch))) => batches.push((i, batch)),
                Ok(Err(error)) => *training = Err(error),
                Ok(Ok(None)) | Err(_) => {}
            }
        }
        if batches.is_empty() {
            break;
        }
        for (i, taken) in take_steps(&mut trainings, &batches) {
            let go_on = match (taken, &mut trainings[i]) {
                (Ok(step), Ok(training)) => {
                    training.observe(&step);
                    watch(i, &step)
                }
                (Err(error), training) => {
                    *training = Err(error);
                    ControlFlow::Continue(())
                }
                (Ok(_), Err(_)) => ControlFlow::Continue(()),
            };
            if go_on.is_break() {
                return trainings.iter().map(|_| Err(ClientError::Stopped)).collect();
            }
        }
    }
    trainings.into_iter().map(|training| training.and_then(Training::finish)).collect()
}

/// One step of each training that has a batch.
fn take_steps<L: Learner, R>(
    trainings: &mut [Result<Training<'_, '_, L, R>, ClientError>],
    batches: &[(usize, Vec<L::Sample>)],
) -> Vec<(usize, Result<StepReport, ClientError>)> {
    let (mut taken, mut steps, mut learning) = (Vec::new(), Vec::new(), Vec::new());
    let mut batches = batches.iter().peekable();
    for (i, training) in trainings.iter_mut().enumerate() {
        let batch = batches.next_if(|(owner, _)| *owner == i);
        let (Ok(training), Some((_, batch))) = (training, batch) else { continue };
        match training.part.learner.lesson(&training.trainer, batch) {
            Ok(lesson) => {
                let (trainer, learning_rate) =
                    (&mut training.trainer, training.part.plan.learning_rate);
                steps.push(Step { trainer, lesson, learning_rate });
                learning.push(i);
            }
            Err(error) => taken.push((i, Err(error.into()))),
        }
    }
    match step_together(steps) {
        Ok(steps) => {
            let steps = steps.into_iter().map(|step| step.map_err(ClientError::from));
            taken.extend(learning.into_iter().zip(steps));
        }
        Err(error) => {
            let first = Err(ClientError::from(error));
            let stopped = std::iter::repeat_with(|| Err(ClientError::Stopped));
            taken.extend(learning.into_iter().zip(std::iter::once(first).chain(stopped)));
        }
    }
    taken
}

/// A client's round in progress.
struct Training<'d, 'p, L, R> {
    trainer: Trainer<'d>,
    part: RoundPart<'p, L, R>,
    global: ParameterSet,
    control: Option<ControlPair>,
    report: TrainingReport,
    loss_sum: f64,
}

impl<'d, 'p, L, R, E> Training<'d, 'p, L, R>
where
    L: Learner,
    R: Iterator<Item = Result<L::Sample, E>>,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn begin(
        device: &TrainingDevice<'d>,
        mut part: RoundPart<'p, L, R>,
    ) -> Result<Self, ClientError> {
        let plan = part.plan;
        // Only the layout of this adapter counts.
        let layout = Adapter::new(plan.lora.clone(), device.decoder.config(), 0)
            .map_err(TrainError::from)?;
        let held = part.memory.held.take();
        let (global, control) = part.download.decode_onto(&layout.parameters, held.as_ref())?;
        let own = part.memory.control.take();
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
        let trainer = trainer.with_cancel(device.cancel.clone());
        let report = TrainingReport::default();
        Ok(Self { trainer, part, global, control, report, loss_sum: 0.0 })
    }

    /// The rows of the next step; `None` once the steps are done or no rows are left.
    fn next_batch(&mut self) -> Result<Option<Vec<L::Sample>>, ClientError> {
        let RoundPart { plan, rows, .. } = &mut self.part;
        if self.report.steps == plan.steps {
            return Ok(None);
        }
        let batch = rows.by_ref().take(plan.batch_size).collect::<Result<Vec<_>, E>>();
        let batch = batch.map_err(|error| ClientError::Data(error.into()))?;
        Ok(Some(batch).filter(|batch| !batch.is_empty()))
    }

    fn observe(&mut self, step: &StepReport) {
        let report = &mut self.report;
        let loss = step.loss - step.proximal;
        if report.steps == 0 {
            report.first_loss = loss;
        }
        report.last_loss = loss;
        report.steps += 1;
        report.rows += step.rows as u64;
        report.tokens += step.tokens as u64;
        report.supervised_tokens += step.supervised_tokens as u64;
        self.loss_sum += loss * step.loss_terms() as f64;
        if let Some(judged) = step.preference {
            report.preference.get_or_insert_default().add(&judged, step.rows as f64);
        }
    }

    fn finish(self) -> Result<RoundOutcome, ClientError> {
        let Self { trainer, part, global, control, mut report, loss_sum } = self;
        let RoundPart { plan, memory, .. } = part;
        if report.steps == 0 {
            return Err(ClientError::NothingToLearn);
        }
        report.loss = loss_sum / report.loss_terms() as f64;
        report.preference = report.preference.map(|sum| sum.scaled(1.0 / report.rows as f64));

        let local = trainer.into_adapter().parameters;
        report.update_norm = local.difference(&global).map_err(TrainError::from)?.l2_norm();
        let change = |pair: &ControlPair| pair.change(&global, &local, &report, plan.learning_rate);
        let control_change = control.as_ref().map(change).transpose()?;
        let mut residual = memory.residual.filter(|set| set.check_layout(&global).is_ok());
        let (codec, seed) = (plan.codec, plan.seed);
        let change = control_change.as_ref();
        let upload = Upload::encode_with(&global, &local, change, codec, seed, &mut residual)?;
        let (_, sent) = upload.decode(&global)?;
        let control = match (control, sent) {
            (Some(pair), Some(sent)) => Some(pair.moved(&sent)?),
            _ => None,
        };
        let memory = DeviceMemory { control, residual, held: Some(global) };
        Ok(RoundOutcome { upload, adapter: local, report, memory })
    }
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
