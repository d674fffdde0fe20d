//! Invites: what an operator gives to those who may join.

use fleetune_core::protocol::InviteId;
use sha2::{Digest, Sha256};

/// An invite as the server keeps it. The secret itself is known only to who was invited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invite {
    /// Its name.
    pub id: InviteId,
    /// [`secret_hash`] of its secret.
    pub secret_hash: [u8; 32],
    /// Devices that may still enrol with it.
    pub uses_left: u32,
    /// When it ends, milliseconds since 1970.
    pub expires_at: u64,
    /// The federation it is for; any where absent.
    pub federation: Option<String>,
}

impl Invite {
    /// Whether `secret` belongs to this invite. Takes the same time for every wrong secret: hashes
    /// are compared, and who does not know the secret cannot choose the hash.
    pub fn admits(&self, secret: &[u8]) -> bool {
        secret_hash(&self.id, secret) == self.secret_hash
    }
}

/// What the server keeps of an invite's secret. The secret is 128 random bits, so that no slow hash
/// is needed against guessing.
pub fn secret_hash(id: &InviteId, secret: &[u8]) -> [u8; 32] {
    let hash = Sha256::new().chain_update(b"fleetune invite\0").chain_update(id.0);
    hash.chain_update(secret).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invite_admits_its_own_secret_only() {
        let invite = Invite {
            id: InviteId([1; 8]),
            secret_hash: secret_hash(&InviteId([1; 8]), b"open sesame"),
            uses_left: 1,
            expires_at: 0,
            federation: None,
        };
        assert!(invite.admits(b"open sesame"));
        assert!(!invite.admits(b"open sesam"));
        assert!(!Invite { id: InviteId([2; 8]), ..invite }.admits(b"open sesame"));
    }
}
