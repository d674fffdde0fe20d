//! What an app needs besides the engine and the protocol: its user's examples, when the device may
//! train, and a federation that is served by one and yields to the other.
//!
//! [`ExampleStore`] holds what the user gave, on this device alone, and erases it. [`Requirements`]
//! say when training is welcome; a [`Gate`] holds work up while they are not met. [`take_part`]
//! drives a [`Participant`](crate::client::Participant) between the two, and [`train_locally`] is a
//! round of a federation of one. [`KeptAdapters`] are what both leave behind for [`write_text`].

mod adapters;
mod examples;
mod gate;
mod local;
mod participation;
mod policy;
mod trainer;
mod writer;

pub use adapters::{AdapterKind, KeptAdapter, KeptAdapters};
pub use examples::{Example, ExampleError, ExampleLimits, ExampleStore, StoredExample};
pub use gate::{Gate, POLL_INTERVAL, ReadDevice};
pub use local::{LocalTraining, train_locally};
pub use participation::{Fate, ParticipationError, ParticipationEvent, Place, take_part};
pub use policy::{DeviceState, PauseReason, Requirements, ThermalState};
pub use trainer::ExampleTrainer;
pub use writer::{WriteError, WriteOptions, WrittenText, template_of, write_text};
