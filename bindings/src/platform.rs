//! What the platform implements: storage, key store, the state of the device.

use std::io;
use std::sync::Arc;

use fleetune_core::app;

/// A platform's own failure: what an implementation of [`DeviceConditions`], [`KeyStore`] or
/// [`StorageLocation`], or a listener, throws.
#[derive(Debug, Clone, thiserror::Error, uniffi::Error)]
pub enum PlatformError {
    /// It failed, for this reason.
    #[error("{reason}")]
    Failed {
        /// Why, in a sentence.
        reason: String,
    },
}

impl From<uniffi::UnexpectedUniFFICallbackError> for PlatformError {
    /// Anything else that is thrown.
    fn from(error: uniffi::UnexpectedUniFFICallbackError) -> Self {
        Self::Failed { reason: error.reason }
    }
}

/// How warm a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, uniffi::Enum)]
pub enum ThermalState {
    /// As cool as can be.
    Nominal,
    /// Slightly warm.
    Fair,
    /// Warm: the system slows things down.
    Serious,
    /// Hot: the system stops things.
    Critical,
}

impl From<ThermalState> for app::ThermalState {
    fn from(state: ThermalState) -> Self {
        match state {
            ThermalState::Nominal => Self::Nominal,
            ThermalState::Fair => Self::Fair,
            ThermalState::Serious => Self::Serious,
            ThermalState::Critical => Self::Critical,
        }
    }
}

/// How a device is at one moment.
#[derive(Debug, Clone, PartialEq, Eq, uniffi::Record)]
pub struct DeviceState {
    /// It has power from outside.
    pub charging: bool,
    /// Its network does not cost by the byte.
    pub unmetered: bool,
    /// Nobody is using it.
    pub idle: bool,
    /// How warm it is.
    pub thermal: ThermalState,
    /// Charge of the battery in percent; none where there is no battery.
    #[uniffi(default = None)]
    pub battery_percent: Option<u8>,
    /// The system has asked for memory back.
    #[uniffi(default = false)]
    pub low_memory: bool,
}

impl From<DeviceState> for app::DeviceState {
    fn from(state: DeviceState) -> Self {
        let DeviceState { charging, unmetered, idle, thermal, battery_percent, low_memory } = state;
        Self { charging, unmetered, idle, thermal: thermal.into(), battery_percent, low_memory }
    }
}

/// Tells how the device is. Asked about once a second while a federation is served, from a thread of
/// the library; answer quickly. What throws counts as a device that must not train.
#[uniffi::export(with_foreign)]
pub trait DeviceConditions: Send + Sync {
    /// How the device is now.
    fn current(&self) -> Result<DeviceState, PlatformError>;
}

/// Keeps the device's private key, from which nobody else may read it. What was stored must come back
/// as it was, byte for byte.
#[uniffi::export(with_foreign)]
pub trait KeyStore: Send + Sync {
    /// The key that was stored; none where none was.
    fn load(&self) -> Result<Option<Vec<u8>>, PlatformError>;

    /// Keeps a key, in place of the one before.
    fn store(&self, key: Vec<u8>) -> Result<(), PlatformError>;
}

/// Says where the library may keep its files: a folder of the app's own, which is not backed up.
#[uniffi::export(with_foreign)]
pub trait StorageLocation: Send + Sync {
    /// The folder's path; it is made where there is none.
    fn folder(&self) -> Result<String, PlatformError>;
}

/// What the platform brings.
#[derive(Clone, uniffi::Record)]
pub struct Platform {
    /// Where files are kept.
    pub storage: Arc<dyn StorageLocation>,
    /// How the device is; a machine that is always ready where absent.
    #[uniffi(default = None)]
    pub conditions: Option<Arc<dyn DeviceConditions>>,
    /// The key store; a file that only its owner may read where absent.
    #[uniffi(default = None)]
    pub keys: Option<Arc<dyn KeyStore>>,
}

impl Platform {
    /// How the device is, as the library asks.
    pub(crate) fn read_device(&self) -> app::ReadDevice {
        let conditions = self.conditions.clone();
        Box::new(move || match &conditions {
            None => Ok(app::DeviceState::ALWAYS_READY),
            Some(conditions) => {
                conditions.current().map(Into::into).map_err(|error| error.to_string())
            }
        })
    }
}

/// A key store of the platform, as the library uses it.
pub(crate) struct ForeignKeys(pub(crate) Arc<dyn KeyStore>);

impl fleetune_core::client::KeyStore for ForeignKeys {
    fn load(&self) -> io::Result<Option<Vec<u8>>> {
        self.0.load().map_err(io::Error::other)
    }

    fn store(&self, key: &[u8]) -> io::Result<()> {
        self.0.store(key.to_vec()).map_err(io::Error::other)
    }
}
