//! A client's part of a round: the same code on a phone, on a desktop and in the simulator.
//!
//! The server sends a [`RoundPlan`] and a [`Download`]; the client trains on its own rows and
//! answers with an [`Upload`]. Where the bytes travel and where rows come from is the caller's
//! affair; nothing here touches a network or a disk.

mod instructions;
mod messages;
mod round;

pub use instructions::{Instructions, InstructionsError};
pub use messages::{Download, MessageError, Upload};
pub use round::{
    ClientError, RoundOutcome, RoundPlan, Task, TrainingDevice, TrainingReport, train_round,
};
