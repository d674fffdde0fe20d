//! Devices of the real client whose training is a fixed nudge of the adapter.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fleetune_core::client::{
    DeviceFolder, DeviceMemory, FileKeyStore, LocalTrainer, Participant, ParticipantError,
    Progress, RoundOutcome, TrainerError, TrainingReport, Upload, Work,
};
use fleetune_core::model::{CancelToken, LoadedModel, ModelConfig};
use fleetune_core::protocol::{BlobId, Capabilities, Conditions, DeviceId, JoinCode};
use fleetune_core::train::StepReport;
use fleetune_core::update::Codec;

use super::server::nudged;

/// A device: a folder, and a number that decides what it makes of adapters.
#[derive(Debug, Clone)]
pub struct Device {
    pub folder: PathBuf,
    pub number: u32,
    /// How long it trains.
    pub training: Duration,
    /// Highest rank that it trains.
    pub max_rank: u32,
    /// Codecs that it knows.
    pub codecs: Vec<u8>,
}

impl Device {
    /// The device of this number in a place's folder.
    pub fn new(place: &Path, number: u32) -> Self {
        let folder = place.join(format!("device-{number}"));
        let codecs = Codec::known_ids().collect();
        Self { folder, number, training: Duration::ZERO, max_rank: 256, codecs }
    }

    /// Joins, or goes on, until the federation is done, `stop` is set or `watch` breaks off, which
    /// leaves the folder as a kill would.
    pub fn run(
        &self,
        model: &Path,
        code: &JoinCode,
        rounds: Option<u32>,
        stop: &CancelToken,
        watch: &mut dyn FnMut(&Progress<'_>) -> ControlFlow<()>,
    ) -> Result<DeviceId, ParticipantError> {
        let folder = DeviceFolder::open(&self.folder)?;
        let keys = FileKeyStore::new(folder.key_path());
        let mut observer = |progress: Progress<'_>| watch(&progress);
        let (code, stop) = (Some(code), stop.clone());
        let mut participant =
            Participant::open(folder, &keys, code, "test 1.0.0", stop, &mut observer)?;
        let id = participant.identity().device();
        if rounds != Some(0) {
            participant.run(&mut self.trainer(model), rounds, &mut observer)?;
        }
        Ok(id)
    }

    fn trainer(&self, model: &Path) -> Nudge {
        let model = LoadedModel::open(model).unwrap();
        Nudge {
            id: model.content_hash().unwrap().parse().unwrap(),
            config: model.config,
            device: self.clone(),
        }
    }
}

/// A change that depends on the device and the round alone, and hardly compresses.
struct Nudge {
    id: BlobId,
    config: ModelConfig,
    device: Device,
}

impl LocalTrainer for Nudge {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            app_version: "1.0.0".into(),
            models: vec![self.id.0],
            memory_bytes: 1 << 30,
            max_rank: self.device.max_rank,
            codecs: self.device.codecs.clone(),
            rows_log2: 6,
            conditions: Conditions { charging: true, unmetered: true, idle: true },
        }
    }

    fn has_model(&self, model: BlobId) -> bool {
        model == self.id
    }

    fn open_model(&mut self, _model: BlobId, _path: &Path) -> Result<(), TrainerError> {
        Err(TrainerError::device("there is one model only"))
    }

    fn train(
        &mut self,
        work: &Work<'_>,
        _watch: &mut dyn FnMut(&StepReport) -> ControlFlow<()>,
    ) -> Result<RoundOutcome, TrainerError> {
        std::thread::sleep(self.device.training);
        let plan = &work.instructions.plan;
        let global = work.adapter(&self.config)?.parameters;
        let local = nudged(&global, self.device.number, plan.round);
        let upload = Upload::encode(&global, &local, None).map_err(TrainerError::round)?;
        let rows = u64::from(self.device.number) + 3;
        let report = TrainingReport { steps: 1, rows, ..TrainingReport::default() };
        let memory = DeviceMemory { held: Some(global), ..DeviceMemory::default() };
        Ok(RoundOutcome { upload, adapter: local, report, memory })
    }

    fn receive(&mut self, last: &Work<'_>) -> Result<(), TrainerError> {
        last.adapter(&self.config).map(drop)
    }
}
