//! Orders to a server that may run now or start later.

use fleetune_core::protocol::DeviceId;

use super::OperatorError;
use crate::coordinator::Clock;
use crate::store::{FederationRow, OrderKind, Store};

/// Leaves an order for a federation.
///
/// # Errors
/// When the federation or the round is not known, or the store fails.
pub fn order(store: &Store, federation: &str, kind: OrderKind) -> Result<(), OperatorError> {
    let row = known(store, federation)?;
    if let OrderKind::Rollback { round } = kind
        && (round >= row.round || store.round(federation, row.epoch, round)?.is_none())
    {
        return Err(OperatorError::Round { federation: federation.to_owned(), round });
    }
    Ok(store.order(federation, kind)?)
}

/// Shuts a device out for good.
///
/// # Errors
/// When there is none of that name that was not revoked before, or the store fails.
pub fn revoke(store: &Store, device: DeviceId) -> Result<(), OperatorError> {
    match store.revoke(device, Clock::start().now())? {
        true => Ok(()),
        false => Err(OperatorError::Device(device)),
    }
}

/// A federation that began here.
pub(super) fn known(store: &Store, federation: &str) -> Result<FederationRow, OperatorError> {
    store.federation(federation)?.ok_or_else(|| OperatorError::Federation(federation.to_owned()))
}
