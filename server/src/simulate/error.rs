//! Why a simulation ends early.

use std::io;
use std::path::{Path, PathBuf};

use fleetune_core::adapter::{AdapterError, LayoutMismatch};
use fleetune_core::client::{ClientError, MessageError};
use fleetune_core::data::{DatasetError, EncodeError};
use fleetune_core::kernels::ThreadsError;
use fleetune_core::model::{EngineError, TokenizerError};

use fleetune_core::train::ReferenceError;

use super::checkpoint::CheckpointError;
use super::client_store::ClientStoreError;
use super::config::{ConfigError, Difference};
use super::fleet::FleetError;
use super::journal::JournalError;
use super::workers::WorkerError;
use crate::aggregate::{AggregateError, StateFileError};
use crate::evaluate::run::RunError;

/// Why a simulation ends early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SimulateError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The folder holds a run, and resuming was not asked for.
    #[error(
        "{folder} holds a run already: add --resume to continue it, or choose another folder with --out"
    )]
    Exists {
        /// The run's folder.
        folder: PathBuf,
    },
    /// The folder holds a run of another configuration.
    #[error(
        "{folder} holds a run of another configuration ({difference}): resume with the same values, or choose another folder with --out"
    )]
    OtherRun {
        /// The run's folder.
        folder: PathBuf,
        /// What differs.
        difference: Difference,
    },
    /// Clients cannot train at once.
    #[error(transparent)]
    Threads(#[from] ThreadsError),
    /// Another process works on the run.
    #[error(
        "another process is working on {folder}: wait for it, or choose another folder with --out"
    )]
    Locked {
        /// The run's folder.
        folder: PathBuf,
    },
    /// A file or folder of the run cannot be used.
    #[error("cannot use {path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The clients have no data.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// A row cannot be read.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// A prompt cannot be tokenised.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A client failed.
    #[error("round {round}, client {client}: {source}")]
    Client {
        /// The round.
        round: u32,
        /// The client.
        client: u32,
        /// What went wrong.
        source: ClientError,
    },
    /// A device other than the run's first failed.
    #[error("round {round}: {source}")]
    Worker {
        /// The round.
        round: u32,
        /// What went wrong.
        source: WorkerError,
    },
    /// The reference's log-probabilities cannot be had.
    #[error(transparent)]
    Reference(ReferenceError),
    /// An update or a download cannot be read or written.
    #[error("round {round}: {source}")]
    Message {
        /// The round.
        round: u32,
        /// What went wrong.
        source: MessageError,
    },
    /// Updates cannot be aggregated.
    #[error("round {round}: {source}")]
    Aggregate {
        /// The round.
        round: u32,
        /// What went wrong.
        source: AggregateError,
    },
    /// The server's state cannot be read or written.
    #[error(transparent)]
    State(#[from] StateFileError),
    /// A checkpoint cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A checkpoint lacks the server's state.
    #[error(
        "the checkpoint of round {round} lacks the server's state: delete it to continue from the one before"
    )]
    NoState {
        /// The checkpoint's round.
        round: u32,
    },
    /// What a client keeps cannot be read or written.
    #[error(transparent)]
    ClientStore(#[from] ClientStoreError),
    /// The metrics cannot be read or written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The adapter does not fit the model.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// Two sets of parameters differ in layout.
    #[error(transparent)]
    Layout(#[from] LayoutMismatch),
    /// The model cannot be asked.
    #[error("cannot ask the model: {0}")]
    Model(anyhow::Error),
    /// A suite of questions failed.
    #[error(transparent)]
    Suites(RunError),
    /// The engine failed.
    #[error(transparent)]
    Engine(EngineError),
    /// The observer, or someone on its behalf, asked to stop.
    #[error("stopped")]
    Stopped,
}

impl From<EngineError> for SimulateError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Cancelled => Self::Stopped,
            failed => Self::Engine(failed),
        }
    }
}

impl From<ReferenceError> for SimulateError {
    fn from(error: ReferenceError) -> Self {
        match error {
            ReferenceError::Engine(error) => error.into(),
            failed => Self::Reference(failed),
        }
    }
}

impl From<RunError> for SimulateError {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Stopped => Self::Stopped,
            failed => Self::Suites(failed),
        }
    }
}

impl SimulateError {
    /// Whether the user's files or flags are at fault, rather than the work.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Config(_) | Self::Exists { .. } | Self::OtherRun { .. })
    }

    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        |source| Self::Io { path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cancelled_pass_stops_the_run_whoever_asked_for_it() {
        for error in
            [EngineError::Cancelled.into(), ReferenceError::from(EngineError::Cancelled).into()]
        {
            assert!(matches!(error, SimulateError::Stopped));
        }
        let failed = SimulateError::from(ReferenceError::from(EngineError::NotFinite));
        assert!(matches!(failed, SimulateError::Engine(EngineError::NotFinite)));
    }
}
