//! Worker processes: one for each further device of a run, which trains the clients that it is given.
//!
//! The run's own process coordinates, measures, and trains on the first device. For every other one it
//! starts a [`Worker`]: the same program, which opens model and data as the run did and then does what
//! [`Orders`] say. What a worker computes follows from its orders alone and comes back in full, so
//! that a run ends with the same bits however many devices of a kind it has. A worker keeps nothing:
//! where one fails, the run ends and resumes from its last checkpoint. Workers read their orders from
//! the run's process, and the end of those orders, however it comes about, ends them.

mod message;
mod orders;
mod process;

use std::io;

use fleetune_core::device::DeviceChoice;

pub use self::message::{Job, LinkError};
pub use self::orders::{Orders, OrdersError, Workplace};
pub use self::process::{StartOptions, Starting, Worker};

/// Why a worker process cannot train.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// There is no process.
    #[error("cannot start a process for {device}: {source}")]
    Start {
        /// Its device.
        device: DeviceChoice,
        /// What the system said.
        source: io::Error,
    },
    /// The process says why it cannot go on.
    #[error("{device}: {problem}")]
    Failed {
        /// Its device.
        device: DeviceChoice,
        /// What it says.
        problem: String,
    },
    /// A client's training failed there.
    #[error("client {client} on {device}: {problem}")]
    Client {
        /// The client.
        client: u32,
        /// The process's device.
        device: DeviceChoice,
        /// What went wrong.
        problem: String,
    },
    /// The process is gone.
    #[error(
        "the process for {device} ended before its work was done ({how}); --resume continues the run"
    )]
    Died {
        /// Its device.
        device: DeviceChoice,
        /// Its exit status.
        how: String,
    },
    /// The process cannot be understood.
    #[error("the process for {device} cannot be understood: {source}")]
    Link {
        /// Its device.
        device: DeviceChoice,
        /// What is wrong.
        source: LinkError,
    },
}
