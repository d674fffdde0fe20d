//! What the server remembers: one SQLite file and content-addressed blobs beside it.
//!
//! The invariant: what was acknowledged to a device is on the disk. A blob is written, flushed and
//! moved into place before the transaction that names it; the transaction is flushed
//! (`synchronous = FULL`) before anybody is told. A kill between the two leaves a blob that nothing
//! names, which the next start removes ([`Store::sweep`]).

mod blobs;
mod devices;
mod error;
mod federations;
mod incoming;
mod members;
mod orders;
mod rounds;
mod schema;
#[cfg(test)]
mod tests;

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, Transaction, TransactionBehavior};

pub use blobs::{Blobs, read_range};
pub use devices::{Admission, DeviceRecord};
pub use error::StoreError;
pub use federations::{EvaluationRow, FederationRow, Status};
pub use incoming::{Incoming, Upload, UploadError, lock as lock_upload};
pub use members::{Ended, MemberRow, Outcome, OutcomeCount};
pub use orders::{Order, OrderKind};
pub use rounds::{RoundRow, SummaryRow};

const DATABASE_FILE: &str = "fleetune.sqlite";
const LOCK_FILE: &str = ".lock";
/// How long a writer waits for another process (the operator's commands) to finish writing.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// The server's memory.
#[derive(Debug)]
pub struct Store {
    writer: Mutex<Connection>,
    /// Reading does not wait for a writer whose transaction is being flushed.
    reader: Mutex<Connection>,
    folder: PathBuf,
    blobs: Blobs,
}

/// Held by the one server that works on a folder; the system lets go of it when the process ends.
#[derive(Debug)]
pub struct ServerLock(#[allow(dead_code, reason = "held, never read")] File);

impl Store {
    /// Opens the store in `folder`, or makes a new one.
    ///
    /// # Errors
    /// When the folder cannot be written, or the database is damaged or of another version.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let blobs = Blobs::open(&folder.join("blobs"))?;
        let path = folder.join(DATABASE_FILE);
        let connect = || Connection::open(&path).map_err(StoreError::database(&path));
        let (mut writer, mut reader) = (connect()?, connect()?);
        schema::prepare(&mut writer, &path, BUSY_TIMEOUT)?;
        schema::connect(&mut reader, BUSY_TIMEOUT).map_err(StoreError::database(&path))?;
        let (writer, reader) = (Mutex::new(writer), Mutex::new(reader));
        Ok(Self { writer, reader, folder: folder.to_owned(), blobs })
    }

    /// Makes this process the folder's one server.
    ///
    /// # Errors
    /// When another server works on the folder.
    pub fn lock(&self) -> Result<ServerLock, StoreError> {
        let path = self.folder.join(LOCK_FILE);
        let file = File::create(&path).map_err(StoreError::io("write", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::InUse { folder: self.folder.clone() });
            }
            // Some network file systems have no locks; two servers on one folder are rare enough.
            Err(TryLockError::Error(error)) => {
                tracing::warn!("cannot lock {}: {error}", path.display());
            }
        }
        Ok(ServerLock(file))
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The content-addressed files.
    pub fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// The uploads that are under way.
    ///
    /// # Errors
    /// When their folder cannot be made.
    pub fn incoming(&self) -> Result<Incoming, StoreError> {
        Incoming::open(&self.folder.join("incoming"))
    }

    /// A value that a server leaves for the operator's commands.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn note(&self, key: &str) -> Result<Option<String>, StoreError> {
        self.read(|db| {
            let mut query = db.prepare_cached("SELECT value FROM notes WHERE key = ?1")?;
            let mut rows = query.query([key])?;
            rows.next()?.map(|row| row.get(0)).transpose()
        })
    }

    /// Leaves a value for the operator's commands.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn set_note(&self, key: &str, value: &str) -> Result<(), StoreError> {
        self.write(|db| {
            db.execute("INSERT OR REPLACE INTO notes (key, value) VALUES (?1, ?2)", [key, value])?;
            Ok(())
        })
    }

    /// Removes what nothing names: blobs of a commit that was cut off, uploads of rounds that are
    /// over.
    ///
    /// # Errors
    /// When the store cannot be read. What cannot be removed is left.
    pub fn sweep(&self) -> Result<(), StoreError> {
        let mut kept = self.named_blobs()?;
        kept.extend(self.incoming()?.announced()?);
        self.blobs.retain(|id| kept.contains(id))
    }

    fn read<T>(
        &self,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        read(&locked(&self.reader)).map_err(StoreError::database(&self.folder.join(DATABASE_FILE)))
    }

    /// One transaction: all of it is on the disk when this returns, or none.
    fn write<T>(
        &self,
        write: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let mut connection = locked(&self.writer);
        let attempt = || {
            // Immediate: a reader that becomes a writer midway may find that it is too late.
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let written = write(&transaction)?;
            transaction.commit()?;
            Ok(written)
        };
        attempt().map_err(StoreError::database(&self.folder.join(DATABASE_FILE)))
    }
}

fn locked(connection: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    // A panic in a transaction rolled it back: the connection is as good as before.
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Flushes a folder, so that names made in it survive a loss of power.
fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(StoreError::io("write", folder))
}

fn make_folder(folder: &Path) -> Result<(), StoreError> {
    fs::create_dir_all(folder).map_err(StoreError::io("make", folder))
}
