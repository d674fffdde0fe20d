//! A device's connection to its server: QUIC underneath, requests and answers on top.
//!
//! A [`Link`] connects when it is first asked something and again after a failure. It tries nothing
//! twice by itself: what to do about a failure is the session's decision.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{
    ClientConfig, Connection, ConnectionError, Endpoint, RecvStream, SendStream, TransportConfig,
    VarInt,
};
use tokio::net::lookup_host;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::protocol::{
    Blob, BlobId, ChunkRange, ErrorCode, FRAME_PREFIX, FrameError, IDLE_TIMEOUT_MS, KEEP_ALIVE_MS,
    Refusal, Request, Response, SERVER_NAME, decode_frame, encode_frame, frame_len,
};

/// What one stream may have under way: a few chunks.
const STREAM_WINDOW: u32 = 1 << 20;
/// What a whole connection may have under way.
const CONNECTION_WINDOW: u32 = 4 << 20;

/// Chunks that are sent at once: while the server writes one to its disk, the next one travels. On a
/// slow line more of them would only make each take longer.
const CHUNKS_UNDER_WAY: usize = 2;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// No address leads to a server.
    #[error("no server answers at {addresses}: {problem}")]
    Unreachable {
        /// The addresses tried.
        addresses: String,
        /// The last failure.
        problem: String,
    },
    /// The connection was lost.
    #[error("the connection to the server was lost: {0}")]
    Lost(String),
    /// The server closed the connection and said why.
    #[error("the server closed the connection: {}", .0.message)]
    Closed(Refusal),
    /// The server's bytes are no answer.
    #[error("the server's answer cannot be read: {0}")]
    Answer(#[from] FrameError),
    /// The server refused the request.
    #[error("the server refused: {}", .0.message)]
    Refused(Refusal),
    /// The server's answer belongs to another request.
    #[error("the server's answer does not belong to the request")]
    Unexpected,
    /// This device's disk failed while bytes came or went.
    #[error("this device's disk failed: {0}")]
    Disk(#[from] io::Error),
}

impl LinkError {
    /// What the server said about the failure, where it said something.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Closed(refusal) | Self::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }
}

impl From<ConnectionError> for LinkError {
    fn from(error: ConnectionError) -> Self {
        if let ConnectionError::ApplicationClosed(close) = &error
            && let Some(code) = ErrorCode::from_close_code(close.error_code.into_inner())
        {
            let message = String::from_utf8_lossy(&close.reason).into_owned();
            return Self::Closed(Refusal { code, message, retry_milliseconds: None });
        }
        Self::Lost(error.to_string())
    }
}

/// Errors of a stream: those of the connection where that is the cause.
macro_rules! stream_errors {
    ($($error:ident),*) => {$(
        impl From<quinn::$error> for LinkError {
            fn from(error: quinn::$error) -> Self {
                match error {
                    quinn::$error::ConnectionLost(cause) => cause.into(),
                    other => Self::Lost(other.to_string()),
                }
            }
        }
    )*};
}
stream_errors!(ReadError, WriteError);

impl From<quinn::ReadExactError> for LinkError {
    fn from(error: quinn::ReadExactError) -> Self {
        match error {
            quinn::ReadExactError::ReadError(error) => error.into(),
            early => Self::Lost(early.to_string()),
        }
    }
}

/// A connection to a server that is made when it is needed.
#[derive(Debug)]
pub struct Link {
    addresses: Vec<String>,
    config: ClientConfig,
    open: Option<(Endpoint, Connection)>,
    /// The open connection's socket, for whoever tells of a change of network.
    current: Arc<Mutex<Option<Endpoint>>>,
}

/// Tells a [`Link`], from any thread, that the device has changed its network.
#[derive(Debug, Clone)]
pub struct NetworkWatch {
    current: Arc<Mutex<Option<Endpoint>>>,
    runtime: Handle,
}

impl NetworkWatch {
    /// Moves an open connection to a fresh socket: nothing that is under way is lost. Without an open
    /// connection there is nothing to do.
    ///
    /// # Errors
    /// When the system gives no socket.
    pub fn changed(&self) -> io::Result<()> {
        // One value is replaced by another: a panic leaves it whole.
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(endpoint) = current else { return Ok(()) };
        let _inside = self.runtime.enter();
        endpoint.rebind(UdpSocket::bind(any_port(endpoint.local_addr()?))?)
    }
}

impl Link {
    /// A link to the first of `addresses` that answers; nothing is sent yet.
    pub(super) fn new(addresses: Vec<String>, tls: QuicClientConfig) -> Self {
        let mut config = ClientConfig::new(Arc::new(tls));
        config.transport_config(Arc::new(transport()));
        Self { addresses, config, open: None, current: Arc::default() }
    }

    /// Uses other TLS settings from the next connection on.
    pub(super) fn set_tls(&mut self, tls: QuicClientConfig) {
        self.config = ClientConfig::new(Arc::new(tls));
        self.config.transport_config(Arc::new(transport()));
    }

    /// Who tells of changes of the network; `runtime` is the one that requests run in.
    pub(super) fn watch_network(&self, runtime: Handle) -> NetworkWatch {
        NetworkWatch { current: self.current.clone(), runtime }
    }

    fn set_open(&mut self, open: Option<(Endpoint, Connection)>) {
        let endpoint = open.as_ref().map(|(endpoint, _)| endpoint.clone());
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = endpoint;
        self.open = open;
    }

    /// Ends the connection, if there is one; the next request makes a new one.
    pub fn close(&mut self) {
        if let Some((_, connection)) = &self.open {
            connection.close(VarInt::from_u32(0), b"");
        }
        self.set_open(None);
    }

    /// Ends the connection and waits until the server has been told.
    pub async fn finish(&mut self) {
        if let Some((endpoint, connection)) = self.open.take() {
            connection.close(VarInt::from_u32(0), b"");
            endpoint.wait_idle().await;
        }
        self.set_open(None);
    }

    /// Sends a request and returns the answer, which may be a refusal.
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn ask(&mut self, request: &Request) -> Result<Response, LinkError> {
        let connection = self.connection().await?;
        let outcome = ask(&connection, request, &[]).await.map(|(response, _)| response);
        self.watch(outcome)
    }

    /// Brings the chunks of `range`, each given to `keep` as it comes, in order.
    ///
    /// # Errors
    /// When the server refuses, the connection breaks, or `keep` fails. Chunks that came are kept.
    pub async fn fetch(
        &mut self,
        blob: &Blob,
        range: ChunkRange,
        mut keep: impl FnMut(u32, &[u8]) -> io::Result<()>,
    ) -> Result<(), LinkError> {
        let connection = self.connection().await?;
        let ChunkRange { first, count } = range;
        let outcome = async {
            let request = Request::Fetch { blob: blob.id, first, count };
            let (response, mut bytes) = ask(&connection, &request, &[]).await?;
            let chunks = first..first.saturating_add(count);
            let sizes = chunks.map(|index| (index, blob.chunk_range(index)));
            let sizes = sizes.map(|(index, range)| (index, range.end - range.start));
            let total: u64 = sizes.clone().map(|(_, len)| len).sum();
            match response {
                Response::Bytes { len } if len == total => {}
                Response::Error(refusal) => return Err(LinkError::Refused(refusal)),
                _ => return Err(LinkError::Unexpected),
            }
            let mut chunk = Vec::new();
            for (index, len) in sizes {
                // A chunk's length fits.
                chunk.resize(len as usize, 0);
                bytes.read_exact(&mut chunk).await?;
                keep(index, &chunk)?;
            }
            Ok(())
        };
        let outcome = outcome.await;
        self.watch(outcome)
    }

    /// Sends chunks of a blob, several at a time; `read` gives the bytes of a chunk,
    /// and `stored` hears of each that is on the server's disk and may end the sending. A chunk that
    /// arrives damaged counts as sent: the server will ask for it again.
    ///
    /// # Errors
    /// When the server refuses, the connection breaks, or `read` fails. What was stored stays.
    pub async fn send_chunks(
        &mut self,
        blob: BlobId,
        chunks: impl Iterator<Item = u32>,
        mut read: impl FnMut(u32) -> io::Result<Vec<u8>>,
        mut stored: impl FnMut(u32) -> ControlFlow<()>,
    ) -> Result<(), LinkError> {
        let connection = self.connection().await?;
        let mut under_way: JoinSet<Result<(u32, Response), LinkError>> = JoinSet::new();
        let outcome = async {
            let mut chunks = chunks.fuse();
            loop {
                while under_way.len() < CHUNKS_UNDER_WAY
                    && let Some(index) = chunks.next()
                {
                    let (bytes, connection) = (read(index)?, connection.clone());
                    under_way.spawn(async move {
                        let request = Request::UploadChunk { blob, index };
                        let (response, _) = ask(&connection, &request, &bytes).await?;
                        Ok((index, response))
                    });
                }
                match under_way.join_next().await {
                    None => return Ok(()),
                    Some(Err(stopped)) => return Err(LinkError::Lost(stopped.to_string())),
                    Some(Ok(answer)) => match answer? {
                        (index, Response::Stored) => {
                            if stored(index).is_break() {
                                return Ok(());
                            }
                        }
                        (_, Response::Corrupt) => {}
                        (_, Response::Error(refusal)) => return Err(LinkError::Refused(refusal)),
                        _ => return Err(LinkError::Unexpected),
                    },
                }
            }
        };
        let outcome = outcome.await;
        self.watch(outcome)
    }

    /// Lets go of a connection on which something failed other than the request itself.
    fn watch<T>(&mut self, outcome: Result<T, LinkError>) -> Result<T, LinkError> {
        if matches!(&outcome, Err(error) if !matches!(error, LinkError::Refused(_))) {
            self.close();
        }
        outcome
    }

    async fn connection(&mut self) -> Result<Connection, LinkError> {
        if let Some((_, connection)) = &self.open
            && connection.close_reason().is_none()
        {
            return Ok(connection.clone());
        }
        self.set_open(None);
        let mut problem = "there is none".to_owned();
        for address in &self.addresses.clone() {
            let found = match lookup_host(address).await {
                Ok(found) => found,
                Err(error) => {
                    problem = format!("{address}: {error}");
                    continue;
                }
            };
            for server in found {
                match connect(server, &self.config).await {
                    Ok(open) => {
                        let connection = open.1.clone();
                        self.set_open(Some(open));
                        return Ok(connection);
                    }
                    Err(closed @ LinkError::Closed(_)) => return Err(closed),
                    Err(error) => problem = error.to_string(),
                }
            }
        }
        Err(LinkError::Unreachable { addresses: self.addresses.join(", "), problem })
    }
}

/// Connects from a fresh socket: one that was bound on another network may lead nowhere.
async fn connect(
    server: SocketAddr,
    config: &ClientConfig,
) -> Result<(Endpoint, Connection), LinkError> {
    let endpoint = Endpoint::client(any_port(server))?;
    let connecting = endpoint.connect_with(config.clone(), server, SERVER_NAME);
    let connection = connecting.map_err(|error| LinkError::Lost(error.to_string()))?.await?;
    Ok((endpoint, connection))
}

/// Any port of the address family of `peer`.
fn any_port(peer: SocketAddr) -> SocketAddr {
    match peer {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

fn transport() -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(VarInt::from_u32(IDLE_TIMEOUT_MS as u32).into()))
        .keep_alive_interval(Some(Duration::from_millis(KEEP_ALIVE_MS)))
        // The server opens no streams and sends no datagrams.
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(CONNECTION_WINDOW.into());
    config
}

/// One request on a stream of its own. What follows the answer can be read from the stream.
async fn ask(
    connection: &Connection,
    request: &Request,
    bytes: &[u8],
) -> Result<(Response, RecvStream), LinkError> {
    let (mut to, mut from) = connection.open_bi().await?;
    let sent = send(&mut to, request, bytes).await;
    // A server that refuses may stop reading before everything is sent: its answer says why.
    let answer = receive(&mut from).await;
    match (sent, answer) {
        (_, Ok(response)) => Ok((response, from)),
        (Err(error), Err(_)) | (Ok(()), Err(error)) => Err(error),
    }
}

async fn send(to: &mut SendStream, request: &Request, bytes: &[u8]) -> Result<(), LinkError> {
    to.write_all(&encode_frame(request)?).await?;
    to.write_all(bytes).await?;
    // An error means that the server has stopped the stream already.
    let _ = to.finish();
    Ok(())
}

async fn receive(from: &mut RecvStream) -> Result<Response, LinkError> {
    let mut prefix = [0; FRAME_PREFIX];
    from.read_exact(&mut prefix).await?;
    let mut body = vec![0; frame_len(prefix)?];
    from.read_exact(&mut body).await?;
    Ok(decode_frame(&body)?)
}
