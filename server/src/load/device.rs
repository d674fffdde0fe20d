//! One such device.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use fleetune_core::client::TrainingReport;
use fleetune_core::protocol::{
    ALPN, ALPN_ENROL, Assignment, Blob, Capabilities, CheckIn, CommitStatus, Conditions, DeviceId,
    EnrolRequest, FRAME_PREFIX, IDLE_TIMEOUT_MS, InviteId, KEEP_ALIVE_MS, Manifest, Refusal,
    Request, Response, RoundAssignment, SERVER_NAME, UploadKey, UploadOffer, decode_frame,
    encode_frame, frame_len, hash,
};
use fleetune_core::update::Codec;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, Endpoint, IdleTimeout, RecvStream, TransportConfig, VarInt};
use rcgen::{CertificateParams, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

/// Why a device does not get what it asks for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The system gives no socket.
    #[error("cannot open a socket: {0}")]
    Socket(#[from] io::Error),
    /// Keys or certificates cannot be made or used.
    #[error("cannot use a certificate: {0}")]
    Certificate(String),
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Connection(String),
    /// The server refused.
    #[error("the server refused: {}", .0.message)]
    Refused(Refusal),
    /// The server answered something else.
    #[error("the server answered {0:?}")]
    Unexpected(Box<Response>),
    /// Bytes arrived damaged.
    #[error("a blob arrived damaged")]
    Damaged,
}

macro_rules! connection_errors {
    ($($error:ty),*) => {$(
        impl From<$error> for LoadError {
            fn from(error: $error) -> Self {
                Self::Connection(error.to_string())
            }
        }
    )*};
}
connection_errors!(
    quinn::ConnectError,
    quinn::ConnectionError,
    quinn::WriteError,
    quinn::ReadExactError,
    quinn::ClosedStream,
    fleetune_core::protocol::FrameError
);

/// Where the server is, and one socket for all devices.
#[derive(Debug, Clone)]
pub struct Site {
    endpoint: Endpoint,
    server: SocketAddr,
    roots: Arc<RootCertStore>,
}

/// A device's key and certificates.
#[derive(Debug)]
pub struct Identity {
    /// Its name.
    pub id: DeviceId,
    key: Vec<u8>,
    chain: Vec<CertificateDer<'static>>,
}

/// A device that is connected.
#[derive(Debug)]
pub struct LoadDevice {
    /// Its name.
    pub id: DeviceId,
    /// Its connection.
    pub connection: Connection,
}

impl Site {
    /// The server at `server`, which shows a certificate of `authority`. Must be called within a
    /// tokio runtime.
    ///
    /// # Errors
    /// When the system gives no socket, or the authority's certificate is none.
    pub fn new(server: SocketAddr, authority: CertificateDer<'static>) -> Result<Self, LoadError> {
        let any: SocketAddr = match server {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let mut roots = RootCertStore::empty();
        roots.add(authority).map_err(certificate)?;
        Ok(Self { endpoint: Endpoint::client(any)?, server, roots: Arc::new(roots) })
    }

    /// Enrols a new device.
    ///
    /// # Errors
    /// When the server does not answer or does not admit it.
    pub async fn enrol(&self, invite: InviteId, secret: [u8; 16]) -> Result<Identity, LoadError> {
        let key = KeyPair::generate().map_err(certificate)?;
        let csr = CertificateParams::default().serialize_request(&key).map_err(certificate)?;
        let connection = self.open(None).await?;
        let request =
            EnrolRequest { invite, secret, csr: csr.der().to_vec(), app: "load 1".into() };
        let (answer, _) = ask(&connection, &Request::Enrol(request), &[]).await?;
        connection.close(VarInt::from_u32(0), b"");
        let enrolment = match answer {
            Response::Enrolled(enrolment) => enrolment,
            other => return Err(unexpected(other)),
        };
        let chain = enrolment.chain.into_iter().map(CertificateDer::from).collect();
        Ok(Identity { id: enrolment.device, key: key.serialize_der(), chain })
    }

    /// Connects a device.
    ///
    /// # Errors
    /// When the server does not let it in.
    pub async fn connect(&self, identity: &Identity) -> Result<LoadDevice, LoadError> {
        Ok(LoadDevice { id: identity.id, connection: self.open(Some(identity)).await? })
    }

    async fn open(&self, identity: Option<&Identity>) -> Result<Connection, LoadError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(certificate)?
            .with_root_certificates(Arc::clone(&self.roots));
        let mut tls = match identity {
            None => builder.with_no_client_auth(),
            Some(Identity { key, chain, .. }) => {
                let key = PrivatePkcs8KeyDer::from(key.clone());
                builder.with_client_auth_cert(chain.clone(), key.into()).map_err(certificate)?
            }
        };
        tls.alpn_protocols = vec![if identity.is_some() { ALPN } else { ALPN_ENROL }.to_vec()];
        tls.resumption = rustls::client::Resumption::disabled();
        let crypto = QuicClientConfig::try_from(tls).map_err(certificate)?;
        let mut config = ClientConfig::new(Arc::new(crypto));
        let mut transport = TransportConfig::default();
        let idle = IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MS as u32));
        transport
            .max_idle_timeout(Some(idle))
            .keep_alive_interval(Some(Duration::from_millis(KEEP_ALIVE_MS)));
        config.transport_config(Arc::new(transport));
        Ok(self.endpoint.connect_with(config, self.server, SERVER_NAME)?.await?)
    }
}

impl LoadDevice {
    /// Sends a request, with `bytes` after it.
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn ask(&self, request: &Request, bytes: &[u8]) -> Result<Response, LoadError> {
        Ok(ask(&self.connection, request, bytes).await?.0)
    }

    /// Asks for work, as a device that has everything.
    ///
    /// # Errors
    /// When no answer comes, or a refusal.
    pub async fn check_in(&self, federation: Option<&str>) -> Result<Assignment, LoadError> {
        let capabilities = Capabilities {
            app_version: "1".into(),
            models: Vec::new(),
            memory_bytes: 8 << 30,
            max_rank: 256,
            codecs: Codec::known_ids().collect(),
            rows_log2: 10,
            conditions: Conditions { charging: true, unmetered: true, idle: true },
        };
        let request = CheckIn { federation: federation.map(str::to_owned), capabilities };
        match self.ask(&Request::CheckIn(request), &[]).await? {
            Response::Assignment(assignment) => Ok(assignment),
            other => Err(unexpected(other)),
        }
    }

    /// Fetches a whole blob and checks it against its name.
    ///
    /// # Errors
    /// When it does not come, or damaged.
    pub async fn fetch(&self, blob: &Blob) -> Result<Vec<u8>, LoadError> {
        let request = Request::Fetch { blob: blob.id, first: 0, count: blob.chunks() };
        let (answer, mut stream) = ask(&self.connection, &request, &[]).await?;
        let len = match answer {
            Response::Bytes { len } => len,
            other => return Err(unexpected(other)),
        };
        if len != blob.size {
            return Err(LoadError::Damaged);
        }
        let mut bytes = vec![0; len as usize];
        stream.read_exact(&mut bytes).await?;
        if hash(&bytes) == blob.id.0 { Ok(bytes) } else { Err(LoadError::Damaged) }
    }

    /// Hands in an update: announces it, sends what the server lacks, commits.
    ///
    /// # Errors
    /// When the connection fails or the server refuses the request.
    pub async fn hand_in(
        &self,
        assignment: &RoundAssignment,
        update: &[u8],
        rows: u64,
    ) -> Result<CommitStatus, LoadError> {
        let offer = offer(assignment, update, rows);
        let manifest = Manifest::of(update);
        let blob = manifest.blob();
        let begin = Request::UploadBegin(Box::new(offer.clone()));
        let mut answer = self.ask(&begin, &[]).await?;
        loop {
            let missing = match answer {
                Response::Committed(status) => return Ok(status),
                Response::Missing(missing) => missing,
                other => return Err(unexpected(other)),
            };
            for index in missing.of_blob(&blob) {
                let range = blob.chunk_range(index);
                let chunk = &update[range.start as usize..range.end as usize];
                let request = Request::UploadChunk { blob: blob.id, index };
                match self.ask(&request, chunk).await? {
                    Response::Stored | Response::Corrupt => {}
                    other => return Err(unexpected(other)),
                }
            }
            answer = self.ask(&Request::Commit(offer.key.clone()), &[]).await?;
        }
    }
}

/// The announcement of an update.
pub fn offer(assignment: &RoundAssignment, update: &[u8], rows: u64) -> UploadOffer {
    let manifest = Manifest::of(update);
    let report = TrainingReport { steps: 1, rows, supervised_tokens: rows, ..Default::default() };
    UploadOffer {
        key: UploadKey {
            federation: assignment.federation.clone(),
            round: assignment.round,
            attempt: assignment.attempt,
            blob: manifest.blob().id,
        },
        size: manifest.blob().size,
        chunks: manifest.chunks().to_vec(),
        codec: Codec::F16.id(),
        rows,
        // A report is numbers and has a JSON form.
        report: serde_json::to_string(&report).unwrap_or_default(),
    }
}

async fn ask(
    connection: &Connection,
    request: &Request,
    bytes: &[u8],
) -> Result<(Response, RecvStream), LoadError> {
    let (mut to, mut from) = connection.open_bi().await?;
    to.write_all(&encode_frame(request)?).await?;
    // A server that refuses what follows stops reading it, and answers.
    let _ = to.write_all(bytes).await;
    let _ = to.finish();
    let mut prefix = [0; FRAME_PREFIX];
    from.read_exact(&mut prefix).await?;
    let mut body = vec![0; frame_len(prefix)?];
    from.read_exact(&mut body).await?;
    Ok((decode_frame(&body)?, from))
}

fn unexpected(answer: Response) -> LoadError {
    match answer {
        Response::Error(refusal) => LoadError::Refused(refusal),
        other => LoadError::Unexpected(Box::new(other)),
    }
}

fn certificate(error: impl std::fmt::Display) -> LoadError {
    LoadError::Certificate(error.to_string())
}
