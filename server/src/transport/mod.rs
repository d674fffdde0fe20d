//! QUIC: connections of devices, their streams, and the limits on both.
//!
//! Nothing is decided here. A stream carries one request, which the [`Coordinator`] answers on a
//! thread where it may wait for the disk. Every limit is set, none left to a default: connections in
//! all and from one address, streams, windows, the size of messages and chunks, the time for each.

mod connection;
mod limits;
mod request;
mod reset;
mod tls;

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::{Endpoint, VarInt};
use rustls::pki_types::PrivateKeyDer;
use tokio::sync::Semaphore;

use crate::coordinator::Coordinator;
use crate::identity::AuthorityError;
use crate::interrupt::Interrupt;
use limits::Connections;

/// Application close code: nothing is wrong.
pub const CLOSE_OK: VarInt = VarInt::from_u32(0);

/// How often the server takes a new certificate.
const CERTIFICATE_RENEWAL: Duration = Duration::from_secs(24 * 3600);
/// How often the server looks whether it is to stop.
const TICK: Duration = Duration::from_millis(200);
/// How long connections have to close when the server stops.
const CLOSING: Duration = Duration::from_secs(2);
/// Chunks in memory at once, of all connections: a quarter of a MiB each.
const CHUNKS_IN_MEMORY: usize = 64;

/// Memory for updates that are read and checked at once, KiB. An update whose check takes more than
/// all of it is checked alone.
const CHECKED_KIB: u32 = 16 << 10;

/// Why the server does not listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The address cannot be had.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// There is no certificate for the server.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// TLS refuses the certificates.
    #[error("the authority's certificate cannot be used: {0}")]
    Tls(String),
}

/// A listening server.
#[derive(Debug)]
pub struct Server {
    endpoint: Endpoint,
    shared: Arc<Shared>,
    hosts: Vec<String>,
}

/// What all connections share.
#[derive(Debug)]
struct Shared {
    coordinator: Arc<Coordinator>,
    connections: Connections,
    chunks: Semaphore,
    /// KiB of [`CHECKED_KIB`] that are free.
    checked: Semaphore,
}

impl Server {
    /// Listens on `address`, with a certificate that is good for `hosts` too. `reset_secret` is the
    /// same in every run. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the address cannot be had, or a host is no name.
    pub fn bind(
        coordinator: Arc<Coordinator>,
        address: SocketAddr,
        hosts: Vec<String>,
        reset_secret: &[u8],
    ) -> Result<Self, TransportError> {
        let server = server_config(&coordinator, &hosts)?;
        let config = reset::endpoint_config(reset_secret);
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = UdpSocket::bind(address)
            .and_then(|socket| Endpoint::new(config, Some(server), socket, runtime))
            .map_err(|source| TransportError::Listen { address, source })?;
        let connections = Connections::new(*coordinator.limits());
        let chunks = Semaphore::new(CHUNKS_IN_MEMORY);
        let checked = Semaphore::new(CHECKED_KIB as usize);
        let shared = Arc::new(Shared { coordinator, connections, chunks, checked });
        Ok(Self { endpoint, shared, hosts })
    }

    /// The address it listens on.
    ///
    /// # Errors
    /// When the system does not know.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Serves devices until `interrupt` is set.
    pub async fn run(self, interrupt: Interrupt) {
        let mut tick = tokio::time::interval(TICK);
        let mut renewal = tokio::time::interval(CERTIFICATE_RENEWAL);
        renewal.reset();
        loop {
            tokio::select! {
                incoming = self.endpoint.accept() => match incoming {
                    Some(incoming) => connection::admit(incoming, &self.shared),
                    None => break,
                },
                _ = tick.tick() => if interrupt.is_set() { break },
                _ = renewal.tick() => self.renew_certificate(),
            }
        }
        self.endpoint.close(CLOSE_OK, b"the server stops");
        // Who does not hear of it finds out by the silence.
        let _ = tokio::time::timeout(CLOSING, self.endpoint.wait_idle()).await;
    }

    fn renew_certificate(&self) {
        match server_config(&self.shared.coordinator, &self.hosts) {
            Ok(config) => self.endpoint.set_server_config(Some(config)),
            Err(error) => tracing::error!("the server keeps its old certificate: {error}"),
        }
    }
}

fn server_config(
    coordinator: &Coordinator,
    hosts: &[String],
) -> Result<quinn::ServerConfig, TransportError> {
    let authority = coordinator.authority();
    let certificate = authority.issue_server(hosts, coordinator.clock().date())?;
    let key: PrivateKeyDer<'static> = certificate.key;
    tls::server_config(authority.certificate(), certificate.chain, key)
        .map_err(|error| TransportError::Tls(error.to_string()))
}
