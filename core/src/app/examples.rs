//! What a user gave the app to learn from: a SQLite file on this device, and nowhere else.
//!
//! The store is bounded twice, in bytes and in age; the oldest examples go first. What is removed is
//! overwritten inside the file (`secure_delete`), and erasing everything shrinks the file as well.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OptionalExtension, params};
use serde::Serialize;

use crate::data::{Dataset, DatasetError};

/// The form of the file; another one is refused.
const FORMAT: i64 = 1;
/// What a row costs besides its text, bytes.
const ROW_OVERHEAD: u64 = 32;

/// Something to learn: an answer that the user would have liked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Example {
    /// What is asked.
    pub instruction: String,
    /// What the instruction is about, where there is something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    /// The answer to learn.
    pub response: String,
}

impl Example {
    fn bytes(&self) -> u64 {
        let input = self.input.as_ref().map_or(0, String::len);
        (self.instruction.len() + input + self.response.len()) as u64 + ROW_OVERHEAD
    }
}

/// An example with its place in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredExample {
    /// Its number, which no other example of the store ever has.
    pub id: i64,
    /// When it was added, seconds since 1970.
    pub added: u64,
    /// The example.
    pub example: Example,
}

/// How much a store holds, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExampleLimits {
    /// Most bytes of examples; the oldest make room for new ones.
    pub max_bytes: u64,
    /// What is older is removed.
    pub max_age: Option<Duration>,
}

impl Default for ExampleLimits {
    /// 16 MiB, for ever.
    fn default() -> Self {
        Self { max_bytes: 16 << 20, max_age: None }
    }
}

/// Why examples cannot be kept or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExampleError {
    /// There is nothing to learn from it.
    #[error("an example needs an instruction and a response: its {field} is empty")]
    Empty {
        /// The empty part.
        field: &'static str,
    },
    /// It is larger than the whole store may be.
    #[error("an example of {bytes} bytes is larger than the store, which holds {most}")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The store's.
        most: u64,
    },
    /// The file is no store of examples, or a damaged one.
    #[error("{path} is damaged or no store of examples ({problem}): remove it to begin anew")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The disk failed, or is full.
    #[error("cannot use {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// There is nothing to train on.
    #[error("there are no examples yet: add some before training")]
    NoExamples,
    /// The examples cannot be read as rows.
    #[error(transparent)]
    Rows(#[from] DatasetError),
}

/// The examples of one app. All methods may be called from any thread.
#[derive(Debug)]
pub struct ExampleStore {
    path: PathBuf,
    limits: ExampleLimits,
    connection: Mutex<Connection>,
}

impl ExampleStore {
    /// The store at `path`, made where there is none, without what is too old at the moment `now`
    /// (seconds since 1970).
    ///
    /// # Errors
    /// When the file cannot be made or is no store.
    pub fn open(path: &Path, limits: ExampleLimits, now: u64) -> Result<Self, ExampleError> {
        make_private(path).map_err(|source| ExampleError::File {
            path: path.to_owned(),
            source: source.into(),
        })?;
        let failed = |error| explain(path, error);
        let connection = Connection::open(path).map_err(failed)?;
        prepare(&connection).map_err(failed)?;
        let format: i64 =
            connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
        if format != FORMAT {
            let problem = format!("its format is {format}, not {FORMAT}");
            return Err(ExampleError::Damaged { path: path.to_owned(), problem });
        }
        let store = Self { path: path.to_owned(), limits, connection: Mutex::new(connection) };
        store.expire(now)?;
        Ok(store)
    }

    /// Keeps an example and tells its number. The oldest ones go where there is no room.
    ///
    /// # Errors
    /// When there is nothing in it, it is larger than the store, or the disk fails.
    pub fn add(&self, example: &Example, now: u64) -> Result<i64, ExampleError> {
        let parts = [("instruction", &example.instruction), ("response", &example.response)];
        if let Some((field, _)) = parts.iter().find(|(_, text)| text.trim().is_empty()) {
            return Err(ExampleError::Empty { field });
        }
        let (bytes, most) = (example.bytes(), self.limits.max_bytes);
        if bytes > most {
            return Err(ExampleError::TooLarge { bytes, most });
        }
        self.expire(now)?;
        self.with(|connection| {
            let transaction = connection.transaction()?;
            let mut held = total(&transaction)?;
            while held.saturating_add(bytes) > most {
                let oldest = "SELECT id, bytes FROM examples ORDER BY id LIMIT 1";
                let (id, freed): (i64, u64) =
                    transaction.query_row(oldest, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
                transaction.execute("DELETE FROM examples WHERE id = ?1", [id])?;
                held = held.saturating_sub(freed);
            }
            let Example { instruction, input, response } = example;
            transaction.execute(
                "INSERT INTO examples (added, bytes, instruction, input, response) \
                 VALUES (?1, ?2, ?3, ?4, ?5)",
                params![now, bytes, instruction, input, response],
            )?;
            let id = transaction.last_insert_rowid();
            transaction.commit()?;
            Ok(id)
        })
    }

    /// Up to `limit` examples whose number is above `after`, the oldest first.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn page(&self, after: i64, limit: u32) -> Result<Vec<StoredExample>, ExampleError> {
        self.with(|connection| {
            let mut query = connection.prepare_cached(
                "SELECT id, added, instruction, input, response FROM examples \
                 WHERE id > ?1 ORDER BY id LIMIT ?2",
            )?;
            let rows = query.query_map(params![after, limit], |row| {
                let example =
                    Example { instruction: row.get(2)?, input: row.get(3)?, response: row.get(4)? };
                Ok(StoredExample { id: row.get(0)?, added: row.get(1)?, example })
            })?;
            rows.collect()
        })
    }

    /// Number of examples.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn len(&self) -> Result<u64, ExampleError> {
        self.with(|connection| {
            connection.query_row("SELECT count(*) FROM examples", [], |row| row.get(0))
        })
    }

    /// Whether there are none.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn is_empty(&self) -> Result<bool, ExampleError> {
        Ok(self.len()? == 0)
    }

    /// Bytes of all examples.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn bytes(&self) -> Result<u64, ExampleError> {
        self.with(|connection| total(connection))
    }

    /// Removes an example; `false` where there is none with this number.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn remove(&self, id: i64) -> Result<bool, ExampleError> {
        self.with(|connection| {
            Ok(connection.execute("DELETE FROM examples WHERE id = ?1", [id])? > 0)
        })
    }

    /// Removes everything: no text of it is left in the file.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn erase_all(&self) -> Result<(), ExampleError> {
        self.with(|connection| {
            connection.execute("DELETE FROM examples", [])?;
            // What else lies in pages that are no longer used goes with them.
            connection.execute_batch("VACUUM")
        })
    }

    /// Removes what is too old at the moment `now`.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn expire(&self, now: u64) -> Result<(), ExampleError> {
        let Some(age) = self.limits.max_age else { return Ok(()) };
        let oldest = now.saturating_sub(age.as_secs());
        self.with(|connection| {
            connection.execute("DELETE FROM examples WHERE added < ?1", [oldest]).map(drop)
        })
    }

    /// All examples, to train on. They stay in memory: nothing of them is written elsewhere.
    ///
    /// # Errors
    /// When there are none, or the file cannot be read.
    pub fn dataset(&self) -> Result<Dataset, ExampleError> {
        let mut rows = Vec::new();
        let mut last = 0;
        loop {
            let page = self.page(last, 256)?;
            let Some(end) = page.last() else { break };
            last = end.id;
            for stored in &page {
                serde_json::to_writer(&mut rows, &stored.example).map_err(|error| {
                    ExampleError::File { path: self.path.clone(), source: error.into() }
                })?;
                rows.push(b'\n');
            }
        }
        if rows.is_empty() {
            return Err(ExampleError::NoExamples);
        }
        Ok(Dataset::from_rows("examples", rows)?)
    }

    fn with<T>(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>,
    ) -> Result<T, ExampleError> {
        work(&mut self.lock()).map_err(|error| explain(&self.path, error))
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A transaction that a panic cut short was rolled back when it was dropped.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::from_secs(5))?;
    // The journal holds old pages: it is cut off after each change instead of being kept.
    connection.execute_batch(
        "PRAGMA journal_mode = TRUNCATE; PRAGMA secure_delete = ON; PRAGMA synchronous = FULL;",
    )?;
    let made: Option<String> = connection
        .query_row("SELECT name FROM sqlite_master WHERE name = 'examples'", [], |row| row.get(0))
        .optional()?;
    if made.is_none() {
        connection.execute_batch(&format!(
            "BEGIN IMMEDIATE;
             CREATE TABLE IF NOT EXISTS examples (
                 id INTEGER PRIMARY KEY AUTOINCREMENT,
                 added INTEGER NOT NULL,
                 bytes INTEGER NOT NULL,
                 instruction TEXT NOT NULL,
                 input TEXT,
                 response TEXT NOT NULL
             );
             PRAGMA user_version = {FORMAT};
             COMMIT;"
        ))?;
    }
    Ok(())
}

fn total(connection: &Connection) -> rusqlite::Result<u64> {
    connection.query_row("SELECT coalesce(sum(bytes), 0) FROM examples", [], |row| row.get(0))
}

/// Makes the file where there is none, for its owner alone.
fn make_private(path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn explain(path: &Path, error: rusqlite::Error) -> ExampleError {
    let path = path.to_owned();
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            ExampleError::Damaged { path, problem: error.to_string() }
        }
        _ => ExampleError::File { path, source: error.into() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "the cat is called Mowgli";

    fn example(text: &str) -> Example {
        Example { instruction: "Say it.".into(), input: None, response: text.into() }
    }

    fn store(folder: &Path, limits: ExampleLimits) -> ExampleStore {
        ExampleStore::open(&folder.join("examples.db"), limits, 0).unwrap()
    }

    #[test]
    fn examples_outlive_the_process_and_become_rows() {
        let folder = tempfile::tempdir().unwrap();
        let first = store(folder.path(), ExampleLimits::default());
        assert!(matches!(first.dataset(), Err(ExampleError::NoExamples)));
        first.add(&example("one"), 5).unwrap();
        let asked = Example { input: Some("about \"it\"\n".into()), ..example("two") };
        first.add(&asked, 6).unwrap();
        drop(first);
        let again = store(folder.path(), ExampleLimits::default());
        let all = again.page(0, 10).unwrap();
        assert_eq!(all.iter().map(|stored| stored.added).collect::<Vec<_>>(), [5, 6]);
        assert_eq!(all[1].example, asked);
        assert_eq!(again.page(all[0].id, 10).unwrap(), all[1..]);
        assert_eq!(again.dataset().unwrap().len(), 2);
    }

    #[test]
    fn the_oldest_make_room_and_one_that_never_fits_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let limits = ExampleLimits { max_bytes: 3 * example("0").bytes(), max_age: None };
        let store = store(folder.path(), limits);
        for i in 0..5 {
            store.add(&example(&i.to_string()), i).unwrap();
            assert!(store.bytes().unwrap() <= limits.max_bytes);
        }
        let left = store.page(0, 10).unwrap();
        assert_eq!(left.iter().map(|s| s.example.response.as_str()).collect::<String>(), "234");
        let large = example(&"x".repeat(200));
        assert!(matches!(store.add(&large, 9), Err(ExampleError::TooLarge { .. })));
        assert_eq!(store.len().unwrap(), 3);
    }

    #[test]
    fn what_is_too_old_goes() {
        let folder = tempfile::tempdir().unwrap();
        let max_age = Some(Duration::from_secs(100));
        let limits = ExampleLimits { max_age, ..ExampleLimits::default() };
        let store = store(folder.path(), limits);
        store.add(&example("old"), 1000).unwrap();
        store.add(&example("new"), 1101).unwrap();
        assert_eq!(store.len().unwrap(), 1);
        store.expire(1202).unwrap();
        assert!(store.is_empty().unwrap());
    }

    #[test]
    fn nothing_of_what_was_erased_is_left_in_any_file() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path(), ExampleLimits::default());
        let holds_secret = || {
            let files = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
            let mut texts = files.map(|file| fs::read(file).unwrap());
            texts.any(|text| text.windows(SECRET.len()).any(|part| part == SECRET.as_bytes()))
        };
        for _ in 0..50 {
            store.add(&example(SECRET), 0).unwrap();
        }
        let id = store.add(&example("other"), 0).unwrap();
        assert!(holds_secret());
        for stored in store.page(0, 50).unwrap() {
            assert!(store.remove(stored.id).unwrap());
        }
        assert!(!holds_secret(), "after removing one by one");
        assert!(store.remove(id).unwrap() && !store.remove(id).unwrap());
        store.add(&example(SECRET), 0).unwrap();
        store.erase_all().unwrap();
        assert!(!holds_secret() && store.is_empty().unwrap());
    }

    #[test]
    fn examples_without_words_and_files_that_are_no_store_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path(), ExampleLimits::default());
        assert!(matches!(store.add(&example(" \n"), 0), Err(ExampleError::Empty { .. })));
        let path = folder.path().join("other.db");
        fs::write(&path, "this is no database, however long it is. ".repeat(60)).unwrap();
        let opened = ExampleStore::open(&path, ExampleLimits::default(), 0);
        assert!(matches!(opened, Err(ExampleError::Damaged { .. })), "{opened:?}");
    }

    #[cfg(unix)]
    #[test]
    fn the_file_is_the_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        store(folder.path(), ExampleLimits::default());
        let mode = fs::metadata(folder.path().join("examples.db")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
