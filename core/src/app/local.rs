//! Training for this device alone: a round of a federation of one.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::adapters::KeptAdapter;
use crate::adapter::{Adapter, LoraConfig, TrainedFactors};
use crate::client::{
    Download, EngineSettings, EngineTrainer, Instructions, LocalTrainer, OpenModel, RoundOutcome,
    RoundPlan, Task, TrainerError, TrainingReport, Work,
};
use crate::data::{Dataset, Template};
use crate::protocol::Conditions;
use crate::train::StepReport;
use crate::update::Codec;

/// What to train, and how long.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalTraining {
    /// Optimiser steps.
    pub steps: usize,
    /// Rows of a step.
    pub batch_size: usize,
    /// Longest sequence, tokens.
    pub seq_len: usize,
    /// Learning rate.
    pub learning_rate: f64,
    /// Shape of a fresh adapter.
    pub lora: LoraConfig,
    /// The text around an example.
    pub template: Template,
    /// The adapter to go on from, in place of a fresh one.
    pub start: Option<Adapter>,
    /// Seed of the fresh adapter and of the order of the examples.
    pub seed: u64,
}

/// Trains an adapter on `rows`. `watch` sees each step and may end the training, which then leaves no
/// trace; the same training on the same rows gives the same adapter.
///
/// # Errors
/// When the rows teach nothing, training fails, or it is ended.
pub fn train_locally(
    settings: EngineSettings,
    model: Arc<OpenModel>,
    rows: Dataset,
    training: LocalTraining,
    watch: &mut dyn FnMut(&StepReport) -> ControlFlow<()>,
) -> Result<(KeptAdapter, TrainingReport), TrainerError> {
    let LocalTraining { steps, batch_size, seq_len, learning_rate, template, seed, .. } = training;
    let adapter = match training.start {
        Some(adapter) => adapter,
        None => {
            Adapter::new(training.lora, &model.files.config, seed).map_err(TrainerError::round)?
        }
    };
    let instructions = Instructions {
        plan: RoundPlan {
            round: 1,
            task: Task::Sft,
            lora: adapter.config.clone(),
            steps,
            batch_size,
            learning_rate,
            weight_decay: 0.0,
            max_grad_norm: Some(1.0),
            prox_mu: None,
            trained: TrainedFactors::Both,
            codec: Codec::F32,
            seed,
        },
        template,
        seq_len,
        order_seed: seed,
        differences: None,
    };
    let download = Download::encode(&adapter.parameters, None).map_err(TrainerError::round)?;
    let nobody_asks = Conditions { charging: false, unmetered: false, idle: false };
    let mut engine = EngineTrainer::new(settings, rows, Box::new(move || nobody_asks));
    engine.share_model(model)?;
    let work = Work { instructions: &instructions, download: &download, memory: None };
    let RoundOutcome { adapter: parameters, report, .. } = engine.train(&work, watch)?;
    let adapter = Adapter { config: instructions.plan.lora, parameters };
    Ok((KeptAdapter { adapter, template, round: None }, report))
}
