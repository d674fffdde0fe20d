//! Training for this device alone.

use std::ops::ControlFlow;
use std::sync::Arc;

use fleetune_core::adapter::{LoraConfig, Target};
use fleetune_core::app::{AdapterKind, LocalTraining, template_of, train_locally};
use fleetune_core::client::EngineSettings;
use fleetune_core::model::CancelToken;
use fleetune_core::train::StepReport;

use crate::error::TrainError;
use crate::fleetune::{Fleetune, Opened, now};
use crate::generate::{AdapterChoice, chosen};
use crate::platform::PlatformError;

/// How this device trains for itself.
#[derive(Debug, Clone, PartialEq, uniffi::Record)]
pub struct TrainOptions {
    /// Optimiser steps.
    #[uniffi(default = 20)]
    pub steps: u32,
    /// Examples of a step.
    #[uniffi(default = 4)]
    pub batch_size: u32,
    /// Longest sequence in tokens; longer examples are cut. At most the model's context.
    #[uniffi(default = 512)]
    pub sequence_length: u32,
    /// Learning rate.
    #[uniffi(default = 0.0002)]
    pub learning_rate: f64,
    /// Rank of a fresh adapter.
    #[uniffi(default = 8)]
    pub rank: u32,
    /// Strength of a fresh adapter, which counts alpha / rank times.
    #[uniffi(default = 16.0)]
    pub alpha: f64,
    /// The adapter to go on from; a fresh one where absent.
    #[uniffi(default = None)]
    pub start: Option<AdapterChoice>,
    /// Seed of a fresh adapter and of the order of the examples.
    #[uniffi(default = 0)]
    pub seed: u64,
}

/// A step of training, taken.
#[derive(Debug, Clone, PartialEq, uniffi::Record)]
pub struct TrainStep {
    /// The step, from 1.
    pub step: u32,
    /// All steps.
    pub of: u32,
    /// The loss before the step, nats per token.
    pub loss: f64,
    /// Tokens of the step.
    pub tokens: u64,
}

/// What training did.
#[derive(Debug, Clone, PartialEq, uniffi::Record)]
pub struct TrainReport {
    /// Steps taken.
    pub steps: u32,
    /// Examples that they took.
    pub rows: u64,
    /// Loss of the first step, nats per token.
    pub first_loss: f64,
    /// Loss of the last step, nats per token.
    pub last_loss: f64,
    /// The adapter's folder, as Hugging Face PEFT writes it.
    pub adapter_folder: String,
}

/// Hears of each step, on a thread of the library. What throws ends the training.
#[uniffi::export(with_foreign)]
pub trait TrainListener: Send + Sync {
    /// A step was taken.
    fn on_step(&self, step: TrainStep) -> Result<(), PlatformError>;
}

#[uniffi::export]
impl Fleetune {
    /// Trains an adapter on this device's examples and keeps it. Cancelled, it leaves no trace.
    #[uniffi::method(default(listener = None))]
    pub async fn train(
        &self,
        options: TrainOptions,
        listener: Option<Arc<dyn TrainListener>>,
    ) -> Result<TrainReport, TrainError> {
        let opened = self.shared.opened()?;
        let cancel = CancelToken::default();
        let control = Arc::new(cancel.clone());
        let settings = EngineSettings { cancel, ..opened.settings.clone() };
        let work = move || train(&opened, settings, &options, listener.as_deref());
        self.shared.tasks.run("train", control, work).await
    }
}

fn train(
    opened: &Opened,
    settings: EngineSettings,
    options: &TrainOptions,
    listener: Option<&dyn TrainListener>,
) -> Result<TrainReport, TrainError> {
    opened.examples.expire(now())?;
    let rows = opened.examples.dataset()?;
    let context = opened.model.files.config.max_context;
    let lora =
        LoraConfig::new(options.rank as usize, options.alpha, &[Target::QProj, Target::VProj]);
    let start = match options.start {
        None | Some(AdapterChoice::Base) => None,
        choice => chosen(opened, choice).map_err(|error| TrainError::Adapter(error.to_string()))?,
    };
    let (start, template) = match start {
        Some(kept) => (Some(kept.adapter), kept.template),
        None => (None, template_of(&opened.model)),
    };
    let training = LocalTraining {
        steps: at_least_one("steps", options.steps)?,
        batch_size: at_least_one("batch_size", options.batch_size)?,
        seq_len: at_least_one("sequence_length", options.sequence_length)?.min(context),
        learning_rate: positive("learning_rate", options.learning_rate)?,
        lora: lora.map_err(|error| TrainError::Options(error.to_string()))?,
        template,
        start,
        seed: options.seed,
    };
    let (mut step, mut thrown) = (0, None);
    let mut watch = |report: &StepReport| {
        step += 1;
        let (of, loss, tokens) = (options.steps, report.loss, report.tokens as u64);
        match listener.map(|l| l.on_step(TrainStep { step, of, loss, tokens })) {
            Some(Err(error)) => {
                thrown = Some(error);
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        }
    };
    let trained = train_locally(settings, opened.model.clone(), rows, training, &mut watch);
    if let Some(error) = thrown {
        return Err(TrainError::Listener(error.to_string()));
    }
    let (kept, report) = trained?;
    opened.adapters.keep(AdapterKind::Local, &kept)?;
    Ok(TrainReport {
        steps: step,
        rows: report.rows,
        first_loss: report.first_loss,
        last_loss: report.last_loss,
        adapter_folder: opened.adapters.path(AdapterKind::Local).to_string_lossy().into_owned(),
    })
}

fn at_least_one(what: &str, value: u32) -> Result<usize, TrainError> {
    match value {
        0 => Err(TrainError::Options(format!("{what} is 0: use at least 1"))),
        value => Ok(value as usize),
    }
}

fn positive(what: &str, value: f64) -> Result<f64, TrainError> {
    if value.is_finite() && value > 0.0 {
        return Ok(value);
    }
    Err(TrainError::Options(format!("{what} is {value}: use a number above 0")))
}
