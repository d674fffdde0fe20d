//! Join codes for new devices.

use std::path::{Path, PathBuf};

use fleetune_core::protocol::{InviteId, JoinCode};

use super::OperatorError;
use super::orders::known;
use crate::coordinator::{Clock, random};
use crate::duration::Span;
use crate::identity::{Authority, Invite, secret_hash};
use crate::store::{Store, StoreError};

/// Where a server leaves its addresses for join codes.
const ADDRESSES_NOTE: &str = "addresses";
/// Where a server leaves its authority's fingerprint for join codes.
const AUTHORITY_NOTE: &str = "authority";

/// What an invite is good for.
#[derive(Debug, Clone)]
pub struct InviteTerms {
    /// Devices that may join with it.
    pub uses: u32,
    /// How long.
    pub expires: Span,
    /// The federation that the devices shall serve; any where absent.
    pub federation: Option<String>,
    /// Where devices reach the server, `host:port`; empty: as the server was started with.
    pub addresses: Vec<String>,
}

/// Leaves a server's addresses for join codes.
///
/// # Errors
/// When the store cannot be written.
pub fn leave_addresses(store: &Store, addresses: &[String]) -> Result<(), StoreError> {
    store.set_note(ADDRESSES_NOTE, &addresses.join(","))
}

/// Leaves the fingerprint of a server's authority for join codes.
///
/// # Errors
/// When the store cannot be written.
pub fn leave_authority(store: &Store, authority: &Authority) -> Result<(), StoreError> {
    let fingerprint = data_encoding::HEXLOWER.encode(&authority.fingerprint().0);
    store.set_note(AUTHORITY_NOTE, &fingerprint)
}

/// Makes an invite and the code that goes to the devices. The server keeps a hash of the code's
/// secret only.
///
/// # Errors
/// When the federation is not known, no address of the server is, or the store fails.
pub fn invite(store: &Store, terms: InviteTerms) -> Result<JoinCode, OperatorError> {
    if let Some(federation) = &terms.federation {
        known(store, federation)?;
    }
    let addresses = match terms.addresses.is_empty() {
        false => terms.addresses,
        true => {
            let noted = store.note(ADDRESSES_NOTE)?.ok_or(OperatorError::Address)?;
            noted.split(',').map(str::to_owned).collect()
        }
    };
    let authority = match store.note(AUTHORITY_NOTE)? {
        Some(fingerprint) => data_encoding::HEXLOWER
            .decode(fingerprint.as_bytes())
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(OperatorError::Note)?,
        None => {
            Authority::open(&identity_folder(store.folder()), Clock::start().date())?
                .fingerprint()
                .0
        }
    };
    let (id, secret): (InviteId, [u8; 16]) = (InviteId(random()?), random()?);
    let code = JoinCode { addresses, authority, invite: id, secret, federation: terms.federation };
    // What devices will not read is not given to them.
    code.to_string().parse::<JoinCode>()?;
    store.add_invite(&Invite {
        id,
        secret_hash: secret_hash(&id, &secret),
        uses_left: terms.uses,
        expires_at: Clock::start().now().saturating_add(terms.expires.as_millis()),
        federation: code.federation.clone(),
    })?;
    Ok(code)
}

/// Where the authority and the server's other secrets lie in a state folder.
pub fn identity_folder(state: &Path) -> PathBuf {
    state.join("identity")
}
