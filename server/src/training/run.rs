//! The training loop and its folder.
//!
//! The folder holds `metrics.jsonl`, the latest checkpoint, and at the end the adapter as PEFT
//! writes it (`adapter_config.json`, `adapter_model.safetensors`).

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Instant;

use fleetune_core::adapter::{Adapter, AdapterError};
use fleetune_core::data::{Dataset, DatasetError, Encoder, RowOrder};
use fleetune_core::device::{default_budget, pass_cost};
use fleetune_core::memory::{BudgetTooSmall, MemoryPlan, Workload, plan};
use fleetune_core::model::{Decoder, EngineError, LoadedModel};
use fleetune_core::train::{
    AdamWOptions, Learner, SampleLengths, StepReport, TrainError, TrainOptions, Trainer,
};
use serde::Serialize;
use serde_json::Value;

use super::metrics::Metrics;
use super::{Checkpoint, CheckpointError, MetricsError, StepRecord};
use crate::interrupt::Interrupt;
use crate::progress::{Progress, Unit};
use crate::system::peak_rss_bytes;

/// What is trained, and on what.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The base model's files.
    pub model: &'a LoadedModel,
    /// The base model, ready to compute.
    pub decoder: &'a Decoder,
    /// The rows.
    pub dataset: &'a Dataset,
    /// How rows become tokens.
    pub encoder: &'a Encoder<'a>,
}

/// How to train.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// The folder.
    pub out: PathBuf,
    /// Rows whose gradients make one optimiser step.
    pub rows_per_step: usize,
    /// Optimiser steps in all.
    pub max_steps: u64,
    /// The learning rate.
    pub learning_rate: f64,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// Longest gradient (L2 norm).
    pub max_grad_norm: Option<f64>,
    /// The most memory to take, in bytes.
    pub memory_budget: Option<u64>,
    /// Steps between two checkpoints.
    pub save_every: u64,
    /// Seed of the row order, or `None` for the order of the files.
    pub shuffle: Option<u64>,
    /// Seed of the dropout.
    pub seed: u64,
    /// The base model's name, for the adapter's configuration.
    pub base_model: String,
    /// What must not change when the run resumes.
    pub settings: Value,
}

/// How the run ended.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// Optimiser steps taken in all.
    pub steps: u64,
    /// Whether all steps were taken; otherwise the run was interrupted and resumes.
    pub finished: bool,
    /// Loss of the first step that this process took.
    pub first_loss: Option<f64>,
    /// Loss of the last step.
    pub last_loss: Option<f64>,
    /// Tokens that this process trained on.
    pub tokens: usize,
    /// Time that its steps took.
    pub seconds: f64,
    /// Tokens per second.
    pub tokens_per_second: f64,
    /// The most memory this process held.
    pub peak_rss_bytes: Option<u64>,
    /// What the memory plan foresaw.
    pub planned_bytes: u64,
    /// Different rows that this process drew and the sequence length left nothing to learn from.
    pub rows_skipped: u64,
    /// Rows of the data that cannot be learnt from, such as pairs of two equal answers.
    pub rows_unusable: u64,
}

/// Why training failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// A step failed.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The memory budget cannot be met.
    #[error("{0}: raise --memory-budget, or lower --lora-rank or --seq-len")]
    Budget(#[from] BudgetTooSmall),
    /// A row cannot be read or tokenised.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The state cannot be kept.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The metrics cannot be kept.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The adapter cannot be written.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// No row has anything to learn.
    #[error(
        "none of the {rows} rows has anything left to learn within {seq_len} tokens: use a longer --seq-len"
    )]
    NothingToLearn {
        /// Rows.
        rows: u64,
        /// Longest sequence.
        seq_len: usize,
    },
}

/// Trains `adapter`, or goes on from `resume`, until all steps are taken or the user interrupts.
///
/// # Errors
/// When a row, a step or the folder fails; the last checkpoint stays.
pub fn train<L: Learner>(
    subject: Subject<'_>,
    adapter: Adapter,
    learner: &mut L,
    options: &RunOptions,
    resume: Option<Checkpoint>,
    interrupt: &Interrupt,
) -> Result<Outcome, RunError> {
    let mut run = Run::start(subject, adapter, learner, options, resume, interrupt)?;
    let progress = Progress::new("train", Some(options.max_steps), Unit::Items("steps"));
    progress.resume_at(run.trainer.steps());
    while run.trainer.steps() < options.max_steps {
        if interrupt.is_set() {
            break;
        }
        let record = match run.step()? {
            Some(record) => record,
            // Interrupted within the step, which then changed nothing.
            None => break,
        };
        progress.message(format!(
            "loss {:.4}, {:.0} tokens/s",
            record.loss,
            record.tokens as f64 / record.seconds.max(1e-9)
        ));
        progress.advance(1);
        if record.step % options.save_every == 0 && record.step < options.max_steps {
            run.save()?;
        }
    }
    progress.finish();
    run.save()?;
    let finished = run.trainer.steps() >= options.max_steps;
    if finished {
        run.trainer.adapter().save_for_base(&options.out, Some(&options.base_model))?;
    }
    let mut outcome = run.outcome;
    outcome.steps = run.trainer.steps();
    outcome.finished = finished;
    outcome.rows_skipped = run.skipped.len() as u64;
    outcome.tokens_per_second = outcome.tokens as f64 / outcome.seconds.max(1e-9);
    outcome.peak_rss_bytes = peak_rss_bytes();
    Ok(outcome)
}

struct Run<'a, L> {
    subject: Subject<'a>,
    learner: &'a mut L,
    options: &'a RunOptions,
    trainer: Trainer<'a>,
    order: RowOrder,
    position: u64,
    metrics: Metrics,
    /// Rows that were drawn and have nothing to learn.
    skipped: HashSet<u32>,
    outcome: Outcome,
}

impl<'a, L: Learner> Run<'a, L> {
    fn start(
        subject: Subject<'a>,
        adapter: Adapter,
        learner: &'a mut L,
        options: &'a RunOptions,
        resume: Option<Checkpoint>,
        interrupt: &Interrupt,
    ) -> Result<Self, RunError> {
        let rows = u32::try_from(subject.dataset.len()).unwrap_or(u32::MAX);
        let order = RowOrder::new(rows, options.shuffle);
        let plan = memory_plan::<L>(&subject, &adapter, options)?;
        tracing::info!("memory plan: {plan:?}");
        let train_options = TrainOptions {
            optimizer: AdamWOptions {
                weight_decay: options.weight_decay,
                ..AdamWOptions::default()
            },
            max_grad_norm: options.max_grad_norm,
            seed: options.seed,
            ..TrainOptions::default()
        }
        .with_plan(&plan);
        let mut trainer = Trainer::new(subject.decoder, adapter, train_options)?
            .with_cancel(interrupt.cancel_token());
        let mut position = 0;
        if let Some(checkpoint) = resume {
            position = checkpoint.position;
            trainer.restore(checkpoint.trainer)?;
        }
        let metrics = Metrics::open(&options.out.join("metrics.jsonl"), trainer.steps())?;
        Ok(Self {
            subject,
            learner,
            options,
            trainer,
            order,
            position,
            metrics,
            skipped: HashSet::new(),
            outcome: Outcome {
                steps: 0,
                finished: false,
                first_loss: None,
                last_loss: None,
                tokens: 0,
                seconds: 0.0,
                tokens_per_second: 0.0,
                peak_rss_bytes: None,
                planned_bytes: plan.peak_bytes,
                rows_skipped: 0,
                rows_unusable: subject.dataset.skipped().total() as u64,
            },
        })
    }

    /// Takes one optimiser step. `None` where the user interrupted it.
    fn step(&mut self) -> Result<Option<StepRecord>, RunError> {
        let started = Instant::now();
        let (samples, position) = self.draw()?;
        let rate = self.options.learning_rate;
        let report = match self.learner.step(&mut self.trainer, &samples, rate) {
            Err(TrainError::Engine(EngineError::Cancelled)) => return Ok(None),
            other => other?,
        };
        self.position = position;
        let record = self.record(&report, started.elapsed().as_secs_f64());
        self.metrics.write(&record)?;
        self.outcome.first_loss.get_or_insert(record.loss);
        self.outcome.last_loss = Some(record.loss);
        self.outcome.tokens += record.tokens;
        self.outcome.seconds += record.seconds;
        Ok(Some(record))
    }

    /// The next rows that have something to learn, and the position after them.
    fn draw(&mut self) -> Result<(Vec<L::Sample>, u64), RunError> {
        let subject = self.subject;
        let rows = subject.dataset.len() as u64;
        let mut samples = Vec::new();
        let (mut position, mut in_vain) = (self.position, 0);
        while samples.len() < self.options.rows_per_step {
            let row = self.order.row(position);
            position += 1;
            match L::sample(subject.dataset, row, subject.encoder)? {
                Some(sample) => {
                    samples.push(sample);
                    in_vain = 0;
                }
                None => {
                    self.skipped.insert(row);
                    in_vain += 1;
                }
            }
            // Two epochs' worth of positions hold every row, wherever they begin.
            if in_vain >= 2 * rows {
                return Err(RunError::NothingToLearn { rows, seq_len: subject.encoder.seq_len() });
            }
        }
        Ok((samples, position))
    }

    fn record(&self, report: &StepReport, seconds: f64) -> StepRecord {
        StepRecord {
            step: self.trainer.steps(),
            loss: report.loss,
            tokens: report.tokens,
            supervised_tokens: report.supervised_tokens,
            learning_rate: self.options.learning_rate,
            grad_norm: report.grad_norm,
            seconds,
            peak_rss_bytes: peak_rss_bytes(),
            preference: report.preference,
        }
    }

    fn save(&self) -> Result<(), RunError> {
        let checkpoint = Checkpoint {
            trainer: self.trainer.state(),
            lora: self.trainer.adapter().config.clone(),
            position: self.position,
            settings: self.options.settings.clone(),
        };
        Ok(checkpoint.save(&self.options.out)?)
    }
}

/// Lays training out in memory for batches and sequences as long as those of the data set.
fn memory_plan<L: Learner>(
    subject: &Subject<'_>,
    adapter: &Adapter,
    options: &RunOptions,
) -> Result<MemoryPlan, RunError> {
    let lengths = SampleLengths::probe::<L>(subject.dataset, subject.encoder)?;
    let device = subject.decoder.device();
    let workload = Workload {
        model: &subject.model.config,
        model_bytes: subject.model.stored_bytes(),
        lora: &adapter.config,
        extra_adapters: 0,
        shortest: lengths.shortest,
        longest: lengths.longest,
        batch: lengths.mean.saturating_mul(options.rows_per_step),
        target_share: lengths.target_share,
        clients: 1,
        pass_cost: pass_cost(device),
        threads: rayon::current_num_threads(),
    };
    let budget = options.memory_budget;
    let budget = budget.or_else(|| default_budget(device, workload.model_bytes));
    Ok(plan(&workload, budget)?)
}
