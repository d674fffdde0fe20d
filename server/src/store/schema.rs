//! The tables, `docs/formats/server-store.md`.

use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

use super::StoreError;

/// The version of the tables, in SQLite's `user_version`.
const VERSION: i64 = 4;

const SUMMARIES: &str = "
CREATE TABLE summaries (
    federation TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    round INTEGER NOT NULL,
    summary TEXT NOT NULL,
    closed_at INTEGER NOT NULL,
    PRIMARY KEY (federation, epoch, round)
) STRICT, WITHOUT ROWID;
";

/// From version 1, which forgot what a round did when it pruned what the round left.
const FROM_1: &str = "
INSERT INTO summaries SELECT federation, epoch, round, summary, closed_at FROM rounds;
ALTER TABLE rounds DROP COLUMN summary;
ALTER TABLE rounds DROP COLUMN closed_at;
";

/// From version 2, whose devices all held the shared adapter itself.
const FROM_2: &str = "ALTER TABLE rounds ADD COLUMN versions BLOB;";

/// New in version 4, whose servers ask suites of questions.
const SUITES: &str = "
CREATE TABLE suites (
    federation TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    round INTEGER NOT NULL,
    found TEXT NOT NULL,
    PRIMARY KEY (federation, epoch, round)
) STRICT, WITHOUT ROWID;
";

const TABLES: &str = "
CREATE TABLE notes (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;

CREATE TABLE invites (
    id BLOB PRIMARY KEY,
    secret_hash BLOB NOT NULL,
    uses_left INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    federation TEXT
) STRICT, WITHOUT ROWID;

CREATE TABLE devices (
    id BLOB PRIMARY KEY,
    invite BLOB NOT NULL,
    app TEXT NOT NULL,
    federation TEXT,
    enrolled_at INTEGER NOT NULL,
    revoked_at INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE certificates (
    fingerprint BLOB PRIMARY KEY,
    device BLOB NOT NULL REFERENCES devices (id),
    not_after INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE federations (
    name TEXT PRIMARY KEY,
    training TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    round INTEGER NOT NULL,
    status TEXT NOT NULL,
    reason TEXT,
    deadline INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE rounds (
    federation TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    round INTEGER NOT NULL,
    adapter BLOB NOT NULL,
    adapter_size INTEGER NOT NULL,
    control BLOB,
    control_size INTEGER,
    state BLOB NOT NULL,
    versions BLOB,
    PRIMARY KEY (federation, epoch, round)
) STRICT, WITHOUT ROWID;

CREATE TABLE members (
    attempt BLOB PRIMARY KEY,
    federation TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    round INTEGER NOT NULL,
    device BLOB NOT NULL,
    assigned_at INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    ended_at INTEGER,
    blob BLOB,
    samples INTEGER,
    report TEXT,
    counts_in INTEGER,
    reason TEXT,
    UNIQUE (federation, epoch, round, device)
) STRICT, WITHOUT ROWID;
CREATE INDEX members_of_device ON members (device, assigned_at);
CREATE INDEX members_counting ON members (federation, epoch, counts_in);

CREATE TABLE evaluations (
    federation TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    round INTEGER NOT NULL,
    found TEXT NOT NULL,
    PRIMARY KEY (federation, epoch, round)
) STRICT, WITHOUT ROWID;

CREATE TABLE orders (
    id INTEGER PRIMARY KEY,
    federation TEXT NOT NULL,
    kind TEXT NOT NULL,
    round INTEGER
) STRICT;
";

/// Sets a connection up.
pub fn connect(connection: &mut Connection, busy_timeout: Duration) -> rusqlite::Result<()> {
    connection.busy_timeout(busy_timeout)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

/// Sets the writing connection up and makes the tables where there are none.
pub fn prepare(
    connection: &mut Connection,
    path: &Path,
    busy_timeout: Duration,
) -> Result<(), StoreError> {
    let mut prepare = || -> rusqlite::Result<Result<(), StoreError>> {
        connect(connection, busy_timeout)?;
        // A file that was cut short is found now, not in the middle of a round.
        let check: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if check != "ok" {
            return Ok(Err(StoreError::Damaged { path: path.to_owned(), problem: check }));
        }
        let transaction =
            connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        match transaction.query_row("PRAGMA user_version", [], |row| row.get(0))? {
            0 => transaction.execute_batch(&[TABLES, SUMMARIES, SUITES].concat())?,
            1 => transaction.execute_batch(&[SUMMARIES, FROM_1, FROM_2, SUITES].concat())?,
            2 => transaction.execute_batch(&[FROM_2, SUITES].concat())?,
            3 => transaction.execute_batch(SUITES)?,
            VERSION => return Ok(Ok(())),
            found => {
                return Ok(Err(StoreError::Version {
                    path: path.to_owned(),
                    found,
                    supported: VERSION,
                }));
            }
        }
        transaction.pragma_update(None, "user_version", VERSION)?;
        transaction.commit()?;
        Ok(Ok(()))
    };
    prepare().map_err(StoreError::database(path))?
}
