//! The shared adapter of a live federation on the server's own held-out rows.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use fleetune_core::adapter::Adapter;
use fleetune_core::client::TrainingDevice;
use fleetune_core::data::{Dataset, Encoder};
use fleetune_core::memory::MemoryPlan;
use fleetune_core::model::{CancelToken, Decoder, LoadedModel};

use super::CommandError;
use super::simulate::{open_dataset, plan_memory};
use crate::coordinator::Evaluate;
use crate::simulate::config::RunConfig;
use crate::simulate::environment::Environment;
use crate::simulate::evaluation::measure;
use crate::simulate::fleet::Fleet;
use crate::simulate::journal::EvaluationRecord;
use crate::simulate::observer::Event;
use crate::simulate::references::References;

/// Measures as a simulation of the same configuration does.
pub struct HeldOut {
    config: RunConfig,
    model: Arc<LoadedModel>,
    decoder: Arc<Decoder>,
    memory: MemoryPlan,
    fleet: Fleet,
    /// Keeps what the reference model says of preference pairs.
    references: PathBuf,
    cancel: CancelToken,
}

impl HeldOut {
    /// Opens the rows that `config` names, of which only those held out are read.
    ///
    /// # Errors
    /// When they cannot be read or do not fit the task.
    pub fn new(
        config: RunConfig,
        model: Arc<LoadedModel>,
        decoder: Arc<Decoder>,
        references: PathBuf,
        cancel: CancelToken,
    ) -> Result<Self, CommandError> {
        let dataset: Dataset = open_dataset(&config)?;
        let memory = plan_memory(&model, decoder.device(), &config)?;
        // The server trains nobody: all rows that are not held out are one client's.
        let config = RunConfig { clients: 1, ..config };
        let fleet = Fleet::new(dataset, &config).map_err(CommandError::usage)?;
        Ok(Self { config, model, decoder, memory, fleet, references, cancel })
    }
}

impl Evaluate for HeldOut {
    fn evaluate(
        &mut self,
        adapter: &Adapter,
        round: u32,
    ) -> anyhow::Result<Option<EvaluationRecord>> {
        let tokenizer = self.model.tokenizer()?;
        let encoder = Encoder::new(self.config.template(), tokenizer, self.config.seq_len)?;
        let references = References {
            folder: self.references.clone(),
            model_hash: self.model.content_hash()?.to_owned(),
            precision: self.config.precision.into(),
            adapter: None,
        };
        let environment = Environment {
            device: TrainingDevice {
                decoder: &self.decoder,
                memory: self.memory,
                cancel: self.cancel.clone(),
            },
            workers: &[],
            tokenizer,
            answer_tokens: self.config.answer_tokens,
            encoder: &encoder,
            task: self.config.client_task(),
            fleet: &self.fleet,
            initial_adapter: None,
            references: &references,
            suites: None,
            base_name: &self.config.model,
            notice: None,
        };
        let mut watch = |_: &Event<'_>| ControlFlow::Continue(());
        Ok(measure(&environment, adapter, round, 0, &mut watch)?)
    }
}
