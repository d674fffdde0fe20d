//! The messages: what a device asks and what a server answers.
//!
//! Each request has a bidirectional stream of its own: the device writes one frame
//! ([`super::encode_frame`]), after [`Request::UploadChunk`] also the chunk's bytes, and finishes the
//! stream; the server answers with one frame, after [`Response::Bytes`] also the bytes.
//!
//! New variants are added at the end: an older side refuses what it does not know.

use serde::{Deserialize, Serialize};

use super::{
    AttemptToken, Blob, BlobId, ChunkSet, DeviceId, InviteId, MAX_NAME, MAX_TEXT, MAX_UPLOAD_CHUNKS,
};

/// What a device asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Be admitted. Only on a connection of [`super::ALPN_ENROL`], all others only on one of
    /// [`super::ALPN`]. Asking again with the same key and invitation gives the same device.
    Enrol(EnrolRequest),
    /// Get a fresh certificate for the same device before the present one expires.
    Renew {
        /// The certificate signing request, DER.
        csr: Vec<u8>,
    },
    /// Ask for work. A device that has work which it has not committed gets the same work again.
    CheckIn(CheckIn),
    /// Ask for the hashes of a blob's chunks, at most [`super::MANIFEST_PAGE`] of them from `first`.
    Manifest {
        /// The blob.
        blob: BlobId,
        /// The first chunk asked for.
        first: u32,
    },
    /// Ask for the bytes of `count` chunks from `first`.
    Fetch {
        /// The blob.
        blob: BlobId,
        /// The first chunk.
        first: u32,
        /// How many chunks.
        count: u32,
    },
    /// Announce an update, or ask what the server lacks of it.
    UploadBegin(Box<UploadOffer>),
    /// Send one chunk of an announced update; its bytes follow.
    UploadChunk {
        /// The update.
        blob: BlobId,
        /// Which chunk.
        index: u32,
    },
    /// Hand in an update of which the server has every chunk. Asking again gives the same answer,
    /// whatever happened in between.
    Commit(UploadKey),
    /// Leave for good: the device's certificate is revoked.
    Leave,
}

/// What a server answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Response {
    /// To [`Request::Enrol`] and [`Request::Renew`].
    Enrolled(Enrolment),
    /// To [`Request::CheckIn`].
    Assignment(Assignment),
    /// To [`Request::Manifest`].
    Manifest {
        /// Bytes of the whole blob.
        size: u64,
        /// SHA-256 of each chunk from the one asked for, at most [`super::MANIFEST_PAGE`].
        hashes: Vec<[u8; 32]>,
    },
    /// To [`Request::Fetch`]: this many bytes follow.
    Bytes {
        /// Bytes that follow.
        len: u64,
    },
    /// To [`Request::UploadBegin`], and to a [`Request::Commit`] that comes too early: the chunks
    /// that the server lacks.
    Missing(ChunkSet),
    /// To [`Request::UploadChunk`]: it is on the server's disk.
    Stored,
    /// To [`Request::UploadChunk`]: it arrived damaged and is to be sent again.
    Corrupt,
    /// To [`Request::Commit`], and to a [`Request::UploadBegin`] of an update that was committed
    /// before.
    Committed(CommitStatus),
    /// To [`Request::Leave`].
    Left,
    /// To any request: it was not done.
    Error(Refusal),
}

/// A device asks to be admitted.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolRequest {
    /// The invitation of the join code.
    pub invite: InviteId,
    /// Its secret. The connection is encrypted to the server that the join code names.
    pub secret: [u8; 16],
    /// The certificate signing request, DER; only its key counts.
    pub csr: Vec<u8>,
    /// The app and its version, for the operator's list.
    pub app: String,
}

impl std::fmt::Debug for EnrolRequest {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { invite, app, .. } = self;
        f.debug_struct("EnrolRequest")
            .field("invite", invite)
            .field("app", app)
            .finish_non_exhaustive()
    }
}

/// A device was admitted, or its certificate renewed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolment {
    /// The device's name.
    pub device: DeviceId,
    /// Its certificate (DER), then the authority's.
    pub chain: Vec<Vec<u8>>,
    /// From when on the device shall ask for a new certificate, seconds since 1970.
    pub renew_after: u64,
    /// When the certificate expires, seconds since 1970.
    pub not_after: u64,
}

/// What a device can do and how it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckIn {
    /// The federation to serve; any where absent.
    pub federation: Option<String>,
    /// What the device can do.
    pub capabilities: Capabilities,
}

/// What a device can do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Version of the app.
    pub app_version: String,
    /// Base models that the device holds, by the SHA-256 that names them.
    pub models: Vec<[u8; 32]>,
    /// Memory that training may take, bytes.
    pub memory_bytes: u64,
    /// Highest rank that the device trains.
    pub max_rank: u32,
    /// Codecs of updates that the device writes.
    pub codecs: Vec<u8>,
    /// Base-2 logarithm of how many rows the device holds, rounded down: a coarse number tells
    /// nothing about a person.
    pub rows_log2: u8,
    /// How the device is at this moment.
    pub conditions: Conditions,
}

/// How a device is at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conditions {
    /// It has power from outside.
    pub charging: bool,
    /// Its network does not cost by the byte.
    pub unmetered: bool,
    /// Nobody is using it.
    pub idle: bool,
}

/// What a device that checked in is to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Assignment {
    /// Nothing now: ask again.
    Wait {
        /// When to ask again, milliseconds from now.
        milliseconds: u32,
    },
    /// Train.
    Round(Box<RoundAssignment>),
    /// Nothing, as long as the device is as it is; asking again later is welcome.
    Ineligible {
        /// Why, in a sentence.
        reason: String,
        /// When to ask again, milliseconds from now.
        milliseconds: u32,
    },
    /// Nothing ever again: the federation is done, and ended with this.
    Finished(Box<FinalAdapter>),
}

/// What a federation ended with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinalAdapter {
    /// Instructions of the round that would have followed, as JSON (`client::Instructions`): they
    /// tell the adapter's shape and the text around a row.
    pub instructions: String,
    /// The base model.
    pub model: ModelOffer,
    /// The shared adapter.
    pub adapter: Blob,
}

/// A device's part in a round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundAssignment {
    /// The federation.
    pub federation: String,
    /// The round, from 1.
    pub round: u32,
    /// This assignment.
    pub attempt: AttemptToken,
    /// What to do, as JSON (`client::Instructions`), at most [`MAX_TEXT`] bytes. A text
    /// that names its fields can grow without a new version of the messages.
    pub instructions: String,
    /// The base model.
    pub model: ModelOffer,
    /// The shared adapter.
    pub adapter: Blob,
    /// SCAFFOLD: the server's control variate.
    pub control: Option<Blob>,
    /// What is left of the round's time, milliseconds.
    pub milliseconds_left: u64,
}

/// The base model of a federation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelOffer {
    /// Its name, for people.
    pub name: String,
    /// Its file; a model is recognised by the SHA-256 of its bytes.
    pub blob: Blob,
    /// Whether the server hands it out.
    pub offered: bool,
}

/// Which update: of one device, which the connection names, in one round, with this content.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct UploadKey {
    /// The federation.
    pub federation: String,
    /// The round.
    pub round: u32,
    /// The assignment that it answers.
    pub attempt: AttemptToken,
    /// The content.
    pub blob: BlobId,
}

/// An update that is ready to be sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UploadOffer {
    /// Which update.
    pub key: UploadKey,
    /// Its bytes.
    pub size: u64,
    /// SHA-256 of each chunk.
    pub chunks: Vec<[u8; 32]>,
    /// Codec of its values ([`crate::update::Codec`]).
    pub codec: u8,
    /// Rows that it was trained on.
    pub rows: u64,
    /// What training did, as JSON ([`crate::client::TrainingReport`]), at most [`MAX_TEXT`] bytes.
    pub report: String,
}

/// What became of an update. Final: asking again gives the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommitStatus {
    /// It is on the server's disk and counts in its round.
    Accepted,
    /// It came after the round was closed.
    Late {
        /// Whether it counts in a later round.
        folded: bool,
    },
    /// It does not count.
    Refused {
        /// Why, in a sentence.
        reason: String,
    },
}

impl CommitStatus {
    /// Whether the update counts, in whichever round.
    pub fn counts(&self) -> bool {
        matches!(self, Self::Accepted | Self::Late { folded: true })
    }
}

/// A request was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Why, for programs.
    pub code: ErrorCode,
    /// Why, for people.
    pub message: String,
    /// When asking again may help, milliseconds from now.
    pub retry_milliseconds: Option<u32>,
}

/// Who is at fault when a request is not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The device: the same request will fail again.
    Device,
    /// The server: its operator has to do something; the device may try again later.
    Server,
    /// Nobody: it is the wrong moment.
    Moment,
}

/// Why a request was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorCode {
    /// The request is no message of this version, or contradicts itself.
    Malformed,
    /// The request or what it announces is larger than the server takes.
    TooLarge,
    /// The request does not belong on this connection.
    NotAllowed,
    /// The invitation does not exist, has expired or is used up.
    Invite,
    /// The device's certificate was revoked.
    Revoked,
    /// There is no such federation, round, assignment or blob for this device.
    Unknown,
    /// The server failed inside.
    Internal,
    /// The server's disk is full or broken.
    Storage,
    /// The server has too much to do.
    Busy,
    /// The operator has paused the federation.
    Paused,
}

impl ErrorCode {
    /// Who is at fault.
    pub fn blame(self) -> Blame {
        match self {
            Self::Malformed
            | Self::TooLarge
            | Self::NotAllowed
            | Self::Invite
            | Self::Revoked
            | Self::Unknown => Blame::Device,
            Self::Internal | Self::Storage => Blame::Server,
            Self::Busy | Self::Paused => Blame::Moment,
        }
    }
}

const ALL_CODES: [ErrorCode; 10] = [
    ErrorCode::Malformed,
    ErrorCode::TooLarge,
    ErrorCode::NotAllowed,
    ErrorCode::Invite,
    ErrorCode::Revoked,
    ErrorCode::Unknown,
    ErrorCode::Internal,
    ErrorCode::Storage,
    ErrorCode::Busy,
    ErrorCode::Paused,
];

impl ErrorCode {
    /// The application's code with which a server closes a connection for this reason; zero is a
    /// close without one.
    pub fn close_code(self) -> u32 {
        self as u32 + 1
    }

    /// The reason behind a close code.
    pub fn from_close_code(code: u64) -> Option<Self> {
        let index = usize::try_from(code).ok()?.checked_sub(1)?;
        ALL_CODES.get(index).copied()
    }
}

impl Request {
    /// Checks what the types do not: lengths of lists and texts. A server calls it before it looks
    /// at the request.
    ///
    /// # Errors
    /// Names what is too long.
    pub fn check(&self) -> Result<(), Refusal> {
        let too_large = match self {
            Self::Enrol(request) if request.app.len() > MAX_NAME => "the app's name",
            Self::CheckIn(CheckIn { federation: Some(name), .. }) if name.len() > MAX_NAME => {
                "the federation's name"
            }
            Self::CheckIn(request) if request.capabilities.app_version.len() > MAX_NAME => {
                "the app's version"
            }
            Self::UploadBegin(offer) if offer.chunks.len() > MAX_UPLOAD_CHUNKS => "the update",
            Self::UploadBegin(offer) if offer.report.len() > MAX_TEXT => "the report",
            Self::UploadBegin(offer) if offer.key.federation.len() > MAX_NAME => {
                "the federation's name"
            }
            Self::Commit(key) if key.federation.len() > MAX_NAME => "the federation's name",
            _ => return Ok(()),
        };
        Err(Refusal {
            code: ErrorCode::TooLarge,
            message: format!("{too_large} is longer than this server takes"),
            retry_milliseconds: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::{
        FRAME_PREFIX, MANIFEST_PAGE, MAX_FRAME, decode_frame, encode_frame, frame_len,
    };

    fn offer(chunks: usize) -> UploadOffer {
        UploadOffer {
            key: UploadKey {
                federation: "f".repeat(MAX_NAME),
                round: u32::MAX,
                attempt: AttemptToken([255; 16]),
                blob: BlobId([255; 32]),
            },
            size: u64::MAX,
            chunks: vec![[255; 32]; chunks],
            codec: 255,
            rows: u64::MAX,
            report: "r".repeat(1024),
        }
    }

    #[test]
    fn the_largest_messages_fit_in_a_frame() {
        let largest = Request::UploadBegin(Box::new(UploadOffer {
            report: "r".repeat(MAX_TEXT),
            ..offer(MAX_UPLOAD_CHUNKS)
        }));
        largest.check().unwrap();
        assert!(encode_frame(&largest).unwrap().len() <= FRAME_PREFIX + MAX_FRAME);
        let page = Response::Manifest { size: u64::MAX, hashes: vec![[255; 32]; MANIFEST_PAGE] };
        encode_frame(&page).unwrap();
    }

    #[test]
    fn what_is_too_long_is_refused_by_name() {
        let request = Request::UploadBegin(Box::new(offer(MAX_UPLOAD_CHUNKS + 1)));
        assert_eq!(request.check().unwrap_err().code, ErrorCode::TooLarge);
        assert!(frame_len((MAX_FRAME as u32 + 1).to_le_bytes()).is_err());
        assert!(encode_frame(&vec![0_u8; MAX_FRAME]).is_err());
    }

    #[test]
    fn a_message_reads_back_and_nothing_may_follow_it() {
        let request = Request::UploadBegin(Box::new(offer(2)));
        let frame = encode_frame(&request).unwrap();
        let (prefix, body) = frame.split_first_chunk().unwrap();
        assert_eq!(frame_len(*prefix).unwrap(), body.len());
        assert_eq!(decode_frame::<Request>(body).unwrap(), request);
        let longer = [body, &[0]].concat();
        assert!(decode_frame::<Request>(&longer).is_err());
        assert!(decode_frame::<Request>(&body[..body.len() - 1]).is_err());
    }

    #[test]
    fn the_bytes_of_a_message_are_those_of_version_one() {
        let fetch = Request::Fetch { blob: BlobId([1; 32]), first: 300, count: 1 };
        let expected = [&[36, 0, 0, 0, 4][..], &[1; 32], &[0xac, 2, 1]].concat();
        assert_eq!(encode_frame(&fetch).unwrap(), expected);
    }

    #[test]
    fn a_connection_closes_with_the_reason() {
        for code in ALL_CODES {
            assert_eq!(ErrorCode::from_close_code(code.close_code().into()), Some(code));
        }
        assert_eq!(ErrorCode::from_close_code(0), None);
        assert_eq!(ErrorCode::from_close_code(u64::MAX), None);
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_decoder(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode_frame::<Request>(&bytes);
            let _ = decode_frame::<Response>(&bytes);
        }
    }
}
