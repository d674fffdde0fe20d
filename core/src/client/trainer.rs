//! What a participant asks of whoever trains: the engine, or a stand-in of a test.

use std::error::Error;
use std::ops::ControlFlow;
use std::path::Path;

use super::instructions::Instructions;
use super::messages::Download;
use super::round::RoundOutcome;
use crate::adapter::Adapter;
use crate::config::ModelConfig;
use crate::protocol::{BlobId, Capabilities};
use crate::train::StepReport;

/// One round's work.
#[derive(Debug, Clone, Copy)]
pub struct Work<'a> {
    /// What to do.
    pub instructions: &'a Instructions,
    /// The shared adapter, and for SCAFFOLD the server's control variate.
    pub download: &'a Download,
    /// What the device kept of earlier rounds ([`super::DeviceMemory::to_bytes`]); `None` where there
    /// is nothing.
    pub memory: Option<&'a [u8]>,
}

impl Work<'_> {
    /// The shared adapter, for the base model of this configuration.
    ///
    /// # Errors
    /// When the bytes are not an adapter of the shape that the instructions give.
    pub fn adapter(&self, model: &ModelConfig) -> Result<Adapter, TrainerError> {
        let config = self.instructions.plan.lora.clone();
        let layout = Adapter::new(config.clone(), model, 0).map_err(TrainerError::round)?;
        let decoded = self.download.decode(&layout.parameters);
        let (parameters, _) = decoded.map_err(TrainerError::round)?;
        Ok(Adapter { config, parameters })
    }
}

/// Why a round was not trained.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainerError {
    /// The caller asked to stop.
    #[error("stopped before the round was done")]
    Stopped,
    /// This round cannot be trained; another one may.
    #[error("cannot train this round: {0}")]
    Round(#[source] Box<dyn Error + Send + Sync>),
    /// This device can train no round until its user does something.
    #[error("this device cannot train: {0}")]
    Device(#[source] Box<dyn Error + Send + Sync>),
}

impl TrainerError {
    /// An error of this round alone.
    pub fn round(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Round(error.into())
    }

    /// An error of this device.
    pub fn device(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Device(error.into())
    }
}

/// Trains on a device's own rows.
///
/// The same work must give the same update, so that training again after a crash changes nothing.
pub trait LocalTrainer {
    /// What the device can do and how it is at this moment.
    fn capabilities(&self) -> Capabilities;

    /// Whether this base model is open.
    fn has_model(&self, model: BlobId) -> bool;

    /// Opens a base model that was fetched.
    ///
    /// # Errors
    /// When it cannot be read.
    fn open_model(&mut self, model: BlobId, path: &Path) -> Result<(), TrainerError>;

    /// Trains for a round. `watch` sees each step and may end the round, which then leaves no trace.
    ///
    /// # Errors
    /// Says whether the round, the device or the caller ended it.
    fn train(
        &mut self,
        work: &Work<'_>,
        watch: &mut dyn FnMut(&StepReport) -> ControlFlow<()>,
    ) -> Result<RoundOutcome, TrainerError>;

    /// Takes in what the federation ended with: the instructions and the adapter of a round that
    /// will not be trained.
    ///
    /// # Errors
    /// When it cannot be read or kept.
    fn receive(&mut self, last: &Work<'_>) -> Result<(), TrainerError>;
}
