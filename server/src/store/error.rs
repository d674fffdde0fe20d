//! What can go wrong with files and the database.

use std::io;
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

/// Why the store does not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A file or folder cannot be read or written.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The database failed.
    #[error("the database {path} failed: {source}")]
    Database {
        /// Its file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The database's file is damaged.
    #[error(
        "the database {path} is damaged ({problem}): put a copy of it back (with its -wal file), or begin with a new state folder, whose server no device knows"
    )]
    Damaged {
        /// Its file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The database was written by another version.
    #[error(
        "the database {path} has version {found}, this build knows {supported}: use the newer build"
    )]
    Version {
        /// Its file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The version known here.
        supported: i64,
    },
    /// Another server works on the folder.
    #[error(
        "another server works on {folder}: stop it, or give this one a state folder of its own"
    )]
    InUse {
        /// The folder.
        folder: PathBuf,
    },
    /// A blob does not have the content that its name says.
    #[error("{path} is damaged or missing: roll back to a round before it, or restore it")]
    Blob {
        /// Its file.
        path: PathBuf,
    },
}

impl StoreError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    pub(super) fn database(path: &Path) -> impl FnOnce(rusqlite::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| match source.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::Damaged { path, problem: source.to_string() }
            }
            _ => Self::Database { path, source },
        }
    }

    /// Whether the disk has no room.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => {
                matches!(
                    source.kind(),
                    io::ErrorKind::StorageFull
                        | io::ErrorKind::QuotaExceeded
                        | io::ErrorKind::FileTooLarge
                )
            }
            Self::Database { source, .. } => {
                source.sqlite_error_code() == Some(ErrorCode::DiskFull)
            }
            _ => false,
        }
    }
}
