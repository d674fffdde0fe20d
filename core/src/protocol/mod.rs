//! How a device and a server speak: messages, blobs in chunks, join codes, and the device's side of
//! a conversation as a state machine.
//!
//! Nothing here opens a socket, reads a clock or draws a random number: time and randomness are
//! arguments, so that every path can be tested without a network. What arrives is not trusted: sizes
//! are checked before memory is taken, and whatever decodes is within the limits below.
//! `docs/formats/protocol.md` describes the bytes.

mod backoff;
mod blob;
mod frame;
mod id;
mod join_code;
mod message;
mod session;

pub use backoff::Backoff;
pub use blob::{Blob, BlobId, CHUNK_LEN, ChunkRange, ChunkSet, Manifest, ManifestError, hash};
pub use frame::{FRAME_PREFIX, FrameError, MAX_FRAME, decode_frame, encode_frame, frame_len};
pub use id::{AttemptToken, DeviceId, InviteId, ParseIdError};
pub use join_code::{JoinCode, JoinCodeError, MAX_ADDRESSES};
pub use message::{
    Assignment, Blame, Capabilities, CheckIn, CommitStatus, Conditions, EnrolRequest, Enrolment,
    ErrorCode, FinalAdapter, ModelOffer, Refusal, Request, Response, RoundAssignment, UploadKey,
    UploadOffer,
};
pub use session::{Action, Ending, Event, Session, Time};

/// The version of the messages. It is part of [`ALPN`] and [`ALPN_ENROL`]: two sides that do not
/// speak the same version find out in the handshake.
pub const PROTOCOL_VERSION: u16 = 1;
/// The application protocol of devices that have a certificate.
pub const ALPN: &[u8] = b"fleetune/1";
/// The application protocol of devices that have none yet; only [`Request::Enrol`] is answered.
pub const ALPN_ENROL: &[u8] = b"fleetune-enrol/1";
/// The name that a server's certificate carries, wherever it runs: devices know their server by its
/// authority, not by its address.
pub const SERVER_NAME: &str = "fleetune-server";

/// Silence after which a connection is taken for dead, milliseconds.
pub const IDLE_TIMEOUT_MS: u64 = 20_000;
/// Silence after which a device says that it is still there, milliseconds.
pub const KEEP_ALIVE_MS: u64 = 6_000;
/// Requests that a device has under way at once.
pub const MAX_STREAMS: u32 = 4;

/// Chunks that one upload may have: the list of their hashes fits in a frame.
pub const MAX_UPLOAD_CHUNKS: usize = 1536;
/// Chunk hashes in one answer to [`Request::Manifest`].
pub const MANIFEST_PAGE: usize = 1024;
/// Longest text that describes a plan or a report, bytes.
pub const MAX_TEXT: usize = 8 << 10;
/// Longest name of a federation or an app, bytes.
pub const MAX_NAME: usize = 128;
