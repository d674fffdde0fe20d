//! What can go wrong, and what devices are told of it.

use fleetune_core::adapter::{AdapterError, LayoutMismatch, LoraConfigError};
use fleetune_core::client::{InstructionsError, MessageError};
use fleetune_core::protocol::{ErrorCode, Refusal};

use crate::aggregate::{AggregateError, StateFileError};
use crate::identity::AuthorityError;
use crate::simulate::config::{ConfigError, Difference};
use crate::store::{StoreError, UploadError};

/// When a device may ask again after a fault of the server, milliseconds.
const RETRY_AFTER_FAULT: u32 = 10_000;
/// When a device may ask again that came at a busy moment, milliseconds.
const RETRY_WHEN_BUSY: u32 = 1_000;

/// Why a request of a device is not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The invite does not admit the device.
    #[error("the join code is unknown, used up or too old: ask the operator for a new one")]
    NotInvited,
    /// The device was shut out.
    #[error("this device was revoked: ask the operator")]
    Revoked,
    /// The request does not belong on this connection.
    #[error("this request needs {0}")]
    NotAllowed(&'static str),
    /// The request contradicts itself.
    #[error("{0}")]
    Malformed(String),
    /// What is announced is larger than this server takes.
    #[error("the update has {size} bytes, at most {limit} are taken")]
    TooLarge {
        /// Its bytes.
        size: u64,
        /// Bytes taken.
        limit: u64,
    },
    /// There is no such thing for this device.
    #[error("there is no such {0} for this device")]
    Unknown(&'static str),
    /// There is too much to do.
    #[error("the server has too much to do: ask again")]
    Busy,
    /// A certificate cannot be issued.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// An upload cannot go on.
    #[error(transparent)]
    Upload(#[from] UploadError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The server failed inside.
    #[error("{0}")]
    Internal(String),
}

impl RequestError {
    /// What the device is told: who is at fault, and when to ask again. The one place where errors
    /// become codes. Of the server's own faults devices learn no more than that there is one.
    pub fn refusal(&self) -> Refusal {
        let (code, retry_milliseconds) = match self {
            Self::NotInvited => (ErrorCode::Invite, None),
            Self::Revoked => (ErrorCode::Revoked, None),
            Self::NotAllowed(_) => (ErrorCode::NotAllowed, None),
            Self::Malformed(_) | Self::Authority(AuthorityError::Request(_)) => {
                (ErrorCode::Malformed, None)
            }
            Self::Upload(UploadError::Offer(_) | UploadError::NoSuchChunk { .. }) => {
                (ErrorCode::Malformed, None)
            }
            Self::TooLarge { .. } => (ErrorCode::TooLarge, None),
            Self::Unknown(_) => (ErrorCode::Unknown, None),
            Self::Busy => (ErrorCode::Busy, Some(RETRY_WHEN_BUSY)),
            Self::Store(_) | Self::Upload(UploadError::Store(_)) => {
                (ErrorCode::Storage, Some(RETRY_AFTER_FAULT))
            }
            Self::Authority(_) | Self::Internal(_) => {
                (ErrorCode::Internal, Some(RETRY_AFTER_FAULT))
            }
        };
        let message = match (code, self.store_error()) {
            (ErrorCode::Storage, Some(error)) if error.is_disk_full() => {
                "the server's disk is full: try again later".into()
            }
            (ErrorCode::Storage | ErrorCode::Internal, _) => {
                "the server failed inside and has told its operator: try again later".into()
            }
            _ => self.to_string(),
        };
        Refusal { code, message, retry_milliseconds }
    }

    /// Whether the operator should know.
    pub fn is_ours(&self) -> bool {
        matches!(self.refusal().code, ErrorCode::Storage | ErrorCode::Internal)
    }

    fn store_error(&self) -> Option<&StoreError> {
        match self {
            Self::Store(error) | Self::Upload(UploadError::Store(error)) => Some(error),
            _ => None,
        }
    }
}

/// Why a federation cannot begin or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FederationError {
    /// The configuration was changed under way.
    #[error(
        "the federation {name} has begun with other settings ({difference}): set them back, or give the changed federation another name"
    )]
    Changed {
        /// Its name.
        name: String,
        /// What differs.
        difference: Difference,
    },
    /// The configuration cannot be read or written.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The configuration that the federation began with cannot be read.
    #[error("the settings that the federation {name} began with cannot be read: {problem}")]
    Began {
        /// Its name.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// The adapter's shape is out of range.
    #[error(transparent)]
    Lora(#[from] LoraConfigError),
    /// The adapter does not fit the model, or cannot be written.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// Adapters of rounds do not fit together.
    #[error(transparent)]
    Layout(#[from] LayoutMismatch),
    /// What a round left is not there.
    #[error(
        "what round {round} of the federation {name} left is not in the store: roll back to a round that is"
    )]
    NoRound {
        /// The federation.
        name: String,
        /// The round.
        round: u32,
    },
    /// Updates cannot be aggregated.
    #[error(transparent)]
    Aggregate(#[from] AggregateError),
    /// The aggregator's state is damaged.
    #[error(transparent)]
    State(#[from] StateFileError),
    /// An adapter cannot be packed or unpacked.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// Instructions do not fit in a message.
    #[error(transparent)]
    Instructions(#[from] InstructionsError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The evaluation failed.
    #[error("the evaluation failed: {0}")]
    Evaluation(String),
    /// The system gives no random numbers or threads.
    #[error("the system does not give what is needed: {0}")]
    System(String),
}
