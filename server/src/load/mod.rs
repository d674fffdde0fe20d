//! Devices that train nothing: real QUIC, real TLS, real updates. They measure a server, and test it
//! without an engine.

mod device;

pub use device::{Identity, LoadDevice, LoadError, Site, offer};
