//! TLS 1.3 and QUIC's parameters.

use std::sync::Arc;
use std::time::Duration;

use fleetune_core::protocol::{ALPN, ALPN_ENROL, IDLE_TIMEOUT_MS, MAX_STREAMS};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{IdleTimeout, TransportConfig, VarInt};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};

/// Bytes that a connection may send before the server has read them. With many devices this, not
/// what they send, bounds the server's memory; it lets one send 1.25 MB/s at 50 ms.
const RECEIVE_WINDOW: u32 = 64 << 10;
/// Bytes that wait for a connection's acknowledgement.
const SEND_WINDOW: u64 = 256 << 10;

/// The server's side of every connection: TLS 1.3, devices known by certificates of the one
/// authority or (to enrol) by none.
pub fn server_config(
    root: &CertificateDer<'static>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<quinn::ServerConfig, Box<dyn std::error::Error + Send + Sync>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(root.clone())?;
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    tls.alpn_protocols = vec![ALPN.to_vec(), ALPN_ENROL.to_vec()];
    // A certificate is checked on every connection: no session outlives the one it was made on.
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    tls.send_tls13_tickets = 0;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config.transport_config(Arc::new(transport()?));
    // Handshakes wait in memory that is bounded, too.
    config.max_incoming(4096).incoming_buffer_size(16 << 10).incoming_buffer_size_total(32 << 20);
    Ok(config)
}

fn transport() -> Result<TransportConfig, quinn::VarIntBoundsExceeded> {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(MAX_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(RECEIVE_WINDOW))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW))
        .send_window(SEND_WINDOW)
        // With it quinn keeps a buffer of ten datagrams for every connection, and it doubles: as much
        // as all else that it knows of an idle device.
        .enable_segmentation_offload(false)
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(IdleTimeout::try_from(Duration::from_millis(IDLE_TIMEOUT_MS))?));
    Ok(transport)
}
