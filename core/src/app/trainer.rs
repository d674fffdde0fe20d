//! Training for a federation on the examples of an app.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use super::adapters::{AdapterKind, KeptAdapter, KeptAdapters};
use super::examples::ExampleStore;
use super::gate::Gate;
use crate::client::{
    EngineSettings, EngineTrainer, LocalTrainer, OpenModel, RoundOutcome, TrainerError, Work,
};
use crate::model::CancelToken;
use crate::protocol::{BlobId, Capabilities};
use crate::train::StepReport;

/// Trains on whatever examples there are when a round begins, and keeps the shared adapter that each
/// round begins with.
pub struct ExampleTrainer {
    settings: EngineSettings,
    model: Arc<OpenModel>,
    id: BlobId,
    examples: Arc<ExampleStore>,
    adapters: KeptAdapters,
    gate: Arc<Gate>,
}

impl ExampleTrainer {
    /// Trains `model` on `examples` while `gate` is open.
    ///
    /// # Errors
    /// When the model's files cannot be read any more.
    pub fn new(
        settings: EngineSettings,
        model: Arc<OpenModel>,
        examples: Arc<ExampleStore>,
        adapters: KeptAdapters,
        gate: Arc<Gate>,
    ) -> Result<Self, TrainerError> {
        let id = model.id()?;
        Ok(Self { settings, model, id, examples, adapters, gate })
    }

    /// The base model.
    pub(super) fn model(&self) -> BlobId {
        self.id
    }

    /// The examples.
    pub(super) fn examples(&self) -> &ExampleStore {
        &self.examples
    }

    /// What holds training up.
    pub(super) fn gate(&self) -> Arc<Gate> {
        self.gate.clone()
    }

    /// What ends the next trainings.
    pub(super) fn set_cancel(&mut self, cancel: CancelToken) {
        self.settings.cancel = cancel;
    }

    fn engine(&self) -> Result<EngineTrainer, TrainerError> {
        let dataset = self.examples.dataset().map_err(TrainerError::device)?;
        let gate = self.gate.clone();
        let conditions = Box::new(move || gate.conditions());
        let mut engine = EngineTrainer::new(self.settings.clone(), dataset, conditions);
        engine.share_model(self.model.clone())?;
        Ok(engine)
    }

    /// Keeps the shared adapter of a round for writing text.
    fn keep_shared(&self, work: &Work<'_>) -> Result<(), TrainerError> {
        let adapter = work.adapter(&self.model.files.config)?;
        let (template, round) = (work.instructions.template, work.instructions.plan.round);
        let kept = KeptAdapter { adapter, template, round: Some(round) };
        self.adapters.keep(AdapterKind::Shared, &kept).map_err(TrainerError::device)
    }
}

impl LocalTrainer for ExampleTrainer {
    fn capabilities(&self) -> Capabilities {
        let examples = self.examples.len().unwrap_or(0);
        let fixed = EngineTrainer::abilities(&self.settings);
        Capabilities {
            models: vec![self.id.0],
            // Below 64.
            rows_log2: examples.max(1).ilog2() as u8,
            conditions: self.gate.conditions(),
            ..fixed
        }
    }

    fn has_model(&self, model: BlobId) -> bool {
        model == self.id
    }

    fn open_model(&mut self, _model: BlobId, _path: &Path) -> Result<(), TrainerError> {
        Err(TrainerError::device("the federation trains another base model than this app's"))
    }

    fn train(
        &mut self,
        work: &Work<'_>,
        watch: &mut dyn FnMut(&StepReport) -> ControlFlow<()>,
    ) -> Result<RoundOutcome, TrainerError> {
        self.keep_shared(work)?;
        let _training = self.gate.training();
        self.engine()?.train(work, watch)
    }

    fn receive(&mut self, last: &Work<'_>) -> Result<(), TrainerError> {
        self.keep_shared(last)
    }
}
