//! Bindings of fleetune for Kotlin, Swift and Python.
//!
//! Thin: what an app does lives in `fleetune_core::app`. Here it gets threads of its own, so that no
//! call blocks the caller's; callbacks; errors that are one enum per operation; and types that UniFFI
//! carries across. A panic becomes an error, and so does a callback that throws.
#![deny(missing_docs)]

mod error;
mod examples;
mod federation;
mod fleetune;
mod generate;
mod platform;
mod train;
mod work;

pub use error::{ExamplesError, FederationError, GenerateError, JoinError, OpenError, TrainError};
pub use examples::{Example, Examples, StoredExample};
pub use federation::{
    Federation, FederationEvent, FederationListener, PauseReason, Requirements, Subscription,
    TakePartOptions, UpdateFate, background_requirements,
};
pub use fleetune::{Fleetune, ModelSource, OpenOptions};
pub use generate::{AdapterChoice, GenerateOptions, GeneratedText, TokenListener};
pub use platform::{
    DeviceConditions, DeviceState, KeyStore, Platform, PlatformError, StorageLocation, ThermalState,
};
pub use train::{TrainListener, TrainOptions, TrainReport, TrainStep};

uniffi::setup_scaffolding!("fleetune");

/// The library's version.
#[uniffi::export]
pub fn library_version() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}
