//! Training for rounds with this crate's engine, on rows in files: what a headless device does, and
//! an app whose rows are files too.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;

use super::device_memory::DeviceMemory;
use super::round::{ClientError, RoundOutcome, Task, TrainingDevice, train_round};
use super::trainer::{LocalTrainer, TrainerError, Work};
use crate::adapter::{Adapter, LoraConfig};
use crate::data::{Dataset, Encoder, RowOrder};
use crate::device::{default_budget, pass_cost};
use crate::kernels::Precision;
use crate::memory::{MemoryPlan, Workload, plan};
use crate::model::{CancelToken, Decoder, LoadedModel};
use crate::protocol::{BlobId, Capabilities, Conditions};
use crate::train::{
    AnswerLearner, Learner, PreferenceLearner, Reference, SampleLengths, StepReport,
};
use crate::update::Codec;

/// Highest rank that the engine trains.
const MAX_RANK: u32 = 256;

/// What a device computes with, and how much of it.
#[derive(Debug, Clone)]
pub struct EngineSettings {
    /// Where to compute.
    pub device: Device,
    /// How matrix products round.
    pub precision: Precision,
    /// The most memory to take, base model included, bytes; what is fast where absent.
    pub memory_budget: Option<u64>,
    /// What the device can take at most, bytes, for the server's choice of devices.
    pub memory_bytes: u64,
    /// The highest rank to train, where it shall not be as high as the engine goes.
    pub max_rank: Option<u32>,
    /// The app and its version.
    pub app_version: String,
    /// Ends a running step within one layer's time.
    pub cancel: CancelToken,
    /// The file that keeps what the reference of preference training says of the device's pairs, so
    /// that no later round computes it again; each round computes it where absent.
    pub references: Option<PathBuf>,
}

/// How the device is at the moment of the call.
pub type ConditionsNow = Box<dyn Fn() -> Conditions + Send>;

/// Trains on a data set with the engine.
pub struct EngineTrainer {
    settings: EngineSettings,
    dataset: Dataset,
    model: Option<(BlobId, Arc<OpenModel>)>,
    conditions: ConditionsNow,
    last: Option<Adapter>,
}

/// A base model, ready to compute; one serves training and writing text at once.
#[derive(Debug)]
pub struct OpenModel {
    /// Its files.
    pub files: LoadedModel,
    /// Its decoder.
    pub decoder: Decoder,
}

impl OpenModel {
    /// Opens the base model at `path` on `device`.
    ///
    /// # Errors
    /// When it cannot be read or the device has no room for it.
    pub fn open(path: &Path, device: &Device, precision: Precision) -> Result<Self, TrainerError> {
        let files = LoadedModel::open(path).map_err(TrainerError::device)?;
        let decoder = Decoder::new(files.config.clone(), &files.weights, device, precision);
        let decoder = decoder.map_err(TrainerError::device)?;
        Ok(Self { files, decoder })
    }

    /// Its name: the SHA-256 of its files, which the first call reads.
    ///
    /// # Errors
    /// When they cannot be read any more.
    pub fn id(&self) -> Result<BlobId, TrainerError> {
        let id = self.files.content_hash().map_err(TrainerError::device)?;
        id.parse().map_err(TrainerError::device)
    }
}

impl EngineTrainer {
    /// Trains on `dataset`. A base model is opened by [`EngineTrainer::use_model`], or when a round
    /// needs one that was fetched.
    pub fn new(settings: EngineSettings, dataset: Dataset, conditions: ConditionsNow) -> Self {
        Self { settings, dataset, model: None, conditions, last: None }
    }

    /// Opens the base model at `path` and tells its name: the SHA-256 of its files.
    ///
    /// # Errors
    /// When it cannot be read or the device has no room for it.
    pub fn use_model(&mut self, path: &Path) -> Result<BlobId, TrainerError> {
        let EngineSettings { device, precision, .. } = &self.settings;
        self.share_model(Arc::new(OpenModel::open(path, device, *precision)?))
    }

    /// Trains on a base model that is open already, and tells its name.
    ///
    /// # Errors
    /// When its files cannot be read any more.
    pub fn share_model(&mut self, model: Arc<OpenModel>) -> Result<BlobId, TrainerError> {
        let id = model.id()?;
        self.model = Some((id, model));
        Ok(id)
    }

    /// What the federation ended with, once it has.
    pub fn final_adapter(&self) -> Option<&Adapter> {
        self.last.as_ref()
    }

    /// What a device of these settings can do, whatever its model, its rows and its state are.
    pub(crate) fn abilities(settings: &EngineSettings) -> Capabilities {
        Capabilities {
            app_version: settings.app_version.clone(),
            models: Vec::new(),
            memory_bytes: settings.memory_bytes,
            max_rank: settings.max_rank.unwrap_or(MAX_RANK).min(MAX_RANK),
            codecs: Codec::known_ids().collect(),
            rows_log2: 0,
            conditions: Conditions { charging: false, unmetered: false, idle: false },
        }
    }

    /// What the device kept, as the adapter's shape in this round reads it. What is of another shape
    /// is from an earlier configuration of the federation and counts for nothing.
    fn kept(work: &Work<'_>, model: &OpenModel) -> Result<DeviceMemory, TrainerError> {
        let Some(bytes) = work.memory else { return Ok(DeviceMemory::default()) };
        let lora = work.instructions.plan.lora.clone();
        let layout = Adapter::new(lora, &model.files.config, 0).map_err(TrainerError::round)?;
        Ok(DeviceMemory::from_bytes(bytes, &layout.parameters).unwrap_or_default())
    }

    fn opened(&self) -> Result<&OpenModel, TrainerError> {
        let model = self.model.as_ref().map(|(_, model)| &**model);
        model.ok_or_else(|| TrainerError::device("no model is open"))
    }

    fn learn<L: Learner>(
        &self,
        learner: &mut L,
        model: &OpenModel,
        work: &Work<'_>,
        watch: &mut dyn FnMut(&StepReport) -> ControlFlow<()>,
    ) -> Result<RoundOutcome, TrainerError> {
        let instructions = work.instructions;
        let plan = &instructions.plan;
        let seq_len = instructions.seq_len;
        let tokenizer = model.files.tokenizer().map_err(TrainerError::device)?;
        let encoder = Encoder::new(instructions.template, tokenizer, seq_len);
        let encoder = encoder.map_err(TrainerError::round)?;
        let rows_per_round = (plan.steps * plan.batch_size) as u64;
        let rows = u32::try_from(self.dataset.len()).unwrap_or(u32::MAX);
        let mut order = RowOrder::new(rows, Some(instructions.order_seed));
        let start = u64::from(plan.round - 1).saturating_mul(rows_per_round);
        let drawn = (start..start.saturating_add(rows_per_round)).map(|at| order.row(at));
        let samples = drawn.filter_map(|row| L::sample(&self.dataset, row, &encoder).transpose());
        let memory = self.memory::<L>(model, &plan.lora, &encoder, plan.batch_size)?;
        let cancel = self.settings.cancel.clone();
        let device = TrainingDevice { decoder: &model.decoder, memory, cancel };
        let kept = Self::kept(work, model)?;
        let outcome = train_round(&device, plan, work.download, kept, learner, samples, watch);
        outcome.map_err(|error| match error {
            ClientError::Stopped => TrainerError::Stopped,
            ClientError::Data(_) | ClientError::NothingToLearn => TrainerError::device(error),
            other => TrainerError::round(other),
        })
    }

    fn memory<L: Learner>(
        &self,
        model: &OpenModel,
        lora: &LoraConfig,
        encoder: &Encoder<'_>,
        batch_size: usize,
    ) -> Result<MemoryPlan, TrainerError> {
        let lengths = SampleLengths::probe::<L>(&self.dataset, encoder);
        let lengths = lengths.map_err(TrainerError::device)?;
        let workload = Workload {
            model: &model.files.config,
            model_bytes: model.files.stored_bytes(),
            lora,
            // What FedProx or SCAFFOLD keeps beside the adapter.
            extra_adapters: 2,
            shortest: lengths.shortest,
            longest: lengths.longest,
            batch: lengths.mean.saturating_mul(batch_size),
            target_share: lengths.target_share,
            clients: 1,
            pass_cost: pass_cost(model.decoder.device()),
            threads: rayon::current_num_threads(),
        };
        let device = model.decoder.device();
        let budget = self.settings.memory_budget;
        let budget = budget.or_else(|| default_budget(device, workload.model_bytes));
        plan(&workload, budget).map_err(TrainerError::round)
    }
}

impl LocalTrainer for EngineTrainer {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            models: self.model.iter().map(|(id, _)| id.0).collect(),
            // Below 64.
            rows_log2: self.dataset.len().max(1).ilog2() as u8,
            conditions: (self.conditions)(),
            ..Self::abilities(&self.settings)
        }
    }

    fn has_model(&self, model: BlobId) -> bool {
        self.model.as_ref().is_some_and(|(id, _)| *id == model)
    }

    fn open_model(&mut self, _model: BlobId, path: &Path) -> Result<(), TrainerError> {
        self.use_model(path).map(drop)
    }

    fn train(
        &mut self,
        work: &Work<'_>,
        watch: &mut dyn FnMut(&StepReport) -> ControlFlow<()>,
    ) -> Result<RoundOutcome, TrainerError> {
        let model = self.opened()?;
        match work.instructions.plan.task {
            Task::Sft if self.dataset.is_preference() => {
                Err(TrainerError::device("the federation learns answers; the rows are preferences"))
            }
            Task::Dpo { .. } if !self.dataset.is_preference() => {
                Err(TrainerError::device("the federation learns preferences; the rows are none"))
            }
            Task::Sft => self.learn(&mut AnswerLearner, model, work, watch),
            Task::Dpo { loss, beta } => {
                let hash = model.files.content_hash().map_err(TrainerError::device)?;
                let mut reference = Reference::new(hash, self.settings.precision, None);
                if let Some(path) = &self.settings.references {
                    reference = reference.kept_in(path).map_err(TrainerError::device)?;
                }
                self.learn(&mut PreferenceLearner { loss, beta, reference }, model, work, watch)
            }
        }
    }

    fn receive(&mut self, last: &Work<'_>) -> Result<(), TrainerError> {
        self.last = Some(last.adapter(&self.opened()?.files.config)?);
        Ok(())
    }
}
