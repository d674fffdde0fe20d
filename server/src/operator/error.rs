//! Why an operator's order is not carried out.

use fleetune_core::protocol::{DeviceId, JoinCodeError};

use crate::coordinator::RequestError;
use crate::identity::AuthorityError;
use crate::store::StoreError;

/// Why an operator's order is not carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OperatorError {
    /// There is no such federation.
    #[error("no federation named {0} has begun here: see `fleetune admin status`")]
    Federation(String),
    /// A rollback to a round that is not over or was pruned.
    #[error(
        "round {round} of {federation} is not kept: `fleetune admin rounds {federation}` lists those \
         that are"
    )]
    Round {
        /// The federation.
        federation: String,
        /// The round.
        round: u32,
    },
    /// There is no such device, or it was revoked before.
    #[error("there is no device {0} that could be revoked: see `fleetune admin devices`")]
    Device(DeviceId),
    /// No server has noted where it listens.
    #[error("where is the server? Start it once, or name its address with --address host:port")]
    Address,
    /// A join code that devices would not read.
    #[error(transparent)]
    Code(#[from] JoinCodeError),
    /// A note in the state folder is not what a server leaves there.
    #[error("the state folder's note of its authority is damaged: start the server once")]
    Note,
    /// The authority cannot be had.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The store fails.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The system gives no random numbers.
    #[error(transparent)]
    Random(#[from] RequestError),
}

impl OperatorError {
    /// Whether the order makes no sense, rather than that something failed.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Federation(_)
                | Self::Round { .. }
                | Self::Device(_)
                | Self::Address
                | Self::Code(_)
        )
    }
}
