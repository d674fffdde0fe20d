//! One connection: who it is, and its requests one beside the other.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fleetune_core::protocol::{ALPN, ErrorCode};
use quinn::crypto::rustls::HandshakeData;
use quinn::{Connection, Incoming, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::sync::Semaphore;

use super::limits::Connections;
use super::{Shared, request};
use crate::identity::Fingerprint;

/// Time for a handshake.
const HANDSHAKE: Duration = Duration::from_secs(20);
/// Chunks that one connection sends at once; the others of its streams wait.
const CHUNKS_AT_ONCE: usize = 2;

/// Who is at the other end.
#[derive(Debug, Clone, Copy)]
pub enum Peer {
    /// Somebody who wants to enrol.
    Stranger,
    /// Who shows this certificate, issued by the authority.
    Device(Fingerprint),
}

/// A connection as its requests see it.
pub struct Link {
    pub shared: Arc<Shared>,
    pub peer: Peer,
    /// Held by those of the connection's requests that send a chunk.
    pub chunks: Semaphore,
}

/// Lets a connection in, once its address has proved to be its own.
pub fn admit(incoming: Incoming, shared: &Arc<Shared>) {
    if !incoming.remote_address_validated() {
        // Before anything is remembered of it: whoever forges addresses gets nowhere. An address
        // that may not be retried has been.
        if let Err(error) = incoming.retry() {
            error.into_incoming().refuse();
        }
        return;
    }
    let Some(place) = Connections::enter(shared, incoming.remote_address().ip()) else {
        shared.coordinator.metrics().connections_refused.fetch_add(1, Ordering::Relaxed);
        incoming.refuse();
        return;
    };
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let _place = place;
        let connecting = match incoming.accept() {
            Ok(connecting) => connecting,
            Err(error) => return tracing::debug!("no handshake: {error}"),
        };
        match tokio::time::timeout(HANDSHAKE, connecting).await {
            Ok(Ok(connection)) => serve(connection, shared).await,
            Ok(Err(error)) => tracing::debug!("no handshake: {error}"),
            Err(_) => tracing::debug!("no handshake in time"),
        }
    });
}

async fn serve(connection: Connection, shared: Arc<Shared>) {
    let Some(peer) = peer_of(&connection) else {
        let code = VarInt::from_u32(ErrorCode::NotAllowed.close_code());
        connection.close(code, b"show a certificate, or enrol");
        return;
    };
    let coordinator = Arc::clone(&shared.coordinator);
    coordinator.metrics().connections.fetch_add(1, Ordering::Relaxed);
    let link = Arc::new(Link { shared, peer, chunks: Semaphore::new(CHUNKS_AT_ONCE) });
    loop {
        match connection.accept_bi().await {
            Ok((send, recv)) => {
                let link = Arc::clone(&link);
                tokio::spawn(async move { request::serve(&link, send, recv).await });
            }
            Err(error) => {
                tracing::debug!("connection ended: {error}");
                break;
            }
        }
    }
    coordinator.metrics().connections.fetch_sub(1, Ordering::Relaxed);
    if let Peer::Device(certificate) = peer {
        // The look-up may wait for the disk.
        let forget = move || {
            if let Ok(device) = coordinator.device(certificate) {
                coordinator.disconnected(device);
            }
        };
        tokio::task::spawn_blocking(forget);
    }
}

/// Who is there; `None` where a device shows no certificate.
fn peer_of(connection: &Connection) -> Option<Peer> {
    let handshake = connection.handshake_data()?.downcast::<HandshakeData>().ok()?;
    if handshake.protocol.as_deref() != Some(ALPN) {
        return Some(Peer::Stranger);
    }
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    chain.first().map(|certificate| Peer::Device(Fingerprint::of(certificate)))
}
