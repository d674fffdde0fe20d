//! The names of devices and certificates.

use fleetune_core::protocol::DeviceId;
use sha2::{Digest, Sha256};

/// The name of the device that enrols with this public key: the first 16 bytes of the key's SHA-256.
/// Who enrols again with the same key (an answer got lost) is the same device. It keeps its name when
/// a renewal changes the key.
pub fn device_of_key(public_key: &[u8]) -> DeviceId {
    let digest: [u8; 32] = Sha256::digest(public_key).into();
    let mut id = [0; 16];
    id.copy_from_slice(&digest[..16]);
    DeviceId(id)
}

/// The SHA-256 of a certificate in DER.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// The fingerprint of a certificate in DER.
    pub fn of(der: &[u8]) -> Self {
        Self(Sha256::digest(der).into())
    }
}
