//! A client's part of a federation: the same code on a phone, on a desktop and in the simulator.
//!
//! The server sends a [`RoundPlan`] and a [`Download`]; [`train_round`] trains on the client's own
//! rows and answers with an [`Upload`]. Where bytes travel and where rows come from is its caller's
//! affair: the simulator passes them on in memory, a [`Participant`] over QUIC.
//!
//! [`Participant`] drives the protocol's session with a [`Link`] to the server, a [`DeviceFolder`]
//! for what outlives the process, and a [`LocalTrainer`], which is [`EngineTrainer`] where the rows
//! are files.

mod blob_file;
mod device_memory;
mod engine_trainer;
mod folder;
mod identity;
mod instructions;
mod link;
mod messages;
mod participant;
mod round;
mod route;
mod tls;
mod trainer;

pub use device_memory::DeviceMemory;
pub use engine_trainer::{ConditionsNow, EngineSettings, EngineTrainer, OpenModel};
pub use folder::{DeviceFolder, FolderError};
pub use identity::{FileKeyStore, Identity, IdentityError, KeyStore};
pub use instructions::{Difference, Instructions, InstructionsError, MAX_DIFFERENCES};
pub use link::{Link, LinkError, NetworkWatch};
pub use messages::{Download, MessageError, Upload};
pub use participant::{Observer, Participant, ParticipantError, Progress};
pub use round::{
    ClientError, RoundOutcome, RoundPart, RoundPlan, Task, TrainingDevice, TrainingReport,
    train_round, train_rounds,
};
pub use tls::TlsError;
pub use trainer::{LocalTrainer, TrainerError, Work};
