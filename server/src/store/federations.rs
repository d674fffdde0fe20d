//! Federations and what evaluations found.

use fleetune_core::protocol::{AttemptToken, BlobId, DeviceId};
use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::rounds::insert_round;
use super::{RoundRow, Store, StoreError, SummaryRow};

/// Whether a federation goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It selects devices.
    Running,
    /// The operator said to select no more.
    Paused,
    /// All rounds are done, or evaluation got no better.
    Finished,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Finished => "finished",
        }
    }

    fn from_name(name: &str) -> Self {
        match name {
            "paused" => Self::Paused,
            "finished" => Self::Finished,
            _ => Self::Running,
        }
    }
}

/// Where a federation stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FederationRow {
    /// Its name.
    pub name: String,
    /// The training configuration it began with, TOML.
    pub training: String,
    /// Counts rollbacks: rounds of another epoch never happened.
    pub epoch: u32,
    /// The round that collects updates, from 1.
    pub round: u32,
    /// Whether it goes on.
    pub status: Status,
    /// Why it is not running.
    pub reason: Option<String>,
    /// When the round's time is over, milliseconds since 1970; absent before devices are selected.
    pub deadline: Option<u64>,
}

/// What an evaluation found after a round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvaluationRow {
    /// The round.
    pub round: u32,
    /// What was found, JSON.
    pub found: String,
}

impl Store {
    /// A federation's row.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn federation(&self, name: &str) -> Result<Option<FederationRow>, StoreError> {
        self.read(|db| {
            db.prepare_cached(
                "SELECT name, training, epoch, round, status, reason, deadline
                 FROM federations WHERE name = ?1",
            )?
            .query_row([name], federation_row)
            .optional()
        })
    }

    /// All federations that ever began here.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn federations(&self) -> Result<Vec<FederationRow>, StoreError> {
        self.read(|db| {
            let mut query = db.prepare(
                "SELECT name, training, epoch, round, status, reason, deadline
                 FROM federations ORDER BY name",
            )?;
            let rows = query.query_map([], federation_row)?;
            rows.collect()
        })
    }

    /// Begins a federation with its round 0.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn begin_federation(
        &self,
        name: &str,
        training: &str,
        beginning: &RoundRow,
        summary: &SummaryRow,
    ) -> Result<(), StoreError> {
        self.write(|db| {
            db.execute(
                "INSERT INTO federations (name, training, epoch, round, status)
                 VALUES (?1, ?2, 0, 1, 'running')",
                [name, training],
            )?;
            insert_round(db, name, 0, beginning, summary)
        })
    }

    /// Keeps the configuration that a federation goes on with.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn set_training(&self, name: &str, training: &str) -> Result<(), StoreError> {
        self.write(|db| {
            db.execute("UPDATE federations SET training = ?2 WHERE name = ?1", [name, training])?;
            Ok(())
        })
    }

    /// Changes whether a federation goes on.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn set_status(
        &self,
        name: &str,
        status: Status,
        reason: Option<&str>,
    ) -> Result<(), StoreError> {
        self.write(|db| {
            db.execute(
                "UPDATE federations SET status = ?2, reason = ?3 WHERE name = ?1",
                params![name, status.name(), reason],
            )?;
            Ok(())
        })
    }

    /// Gives devices their part in the current round and the round its deadline.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn select(
        &self,
        federation: &FederationRow,
        members: &[(DeviceId, AttemptToken)],
        deadline: u64,
        now: u64,
    ) -> Result<(), StoreError> {
        let FederationRow { name, epoch, round, .. } = federation;
        self.write(|db| {
            set_deadline(db, name, deadline)?;
            let mut insert = db.prepare_cached(
                "INSERT INTO members (attempt, federation, epoch, round, device, assigned_at, outcome)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, 'training')",
            )?;
            for (device, attempt) in members {
                insert.execute(params![attempt.0, name, epoch, round, device.0, now as i64])?;
            }
            Ok(())
        })
    }

    /// Gives the current round more time.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn extend(&self, name: &str, deadline: u64) -> Result<(), StoreError> {
        self.write(|db| set_deadline(db, name, deadline))
    }

    /// Closes the current round: what it left, the next round, and who of its members (and of
    /// earlier ones, from before `oldest`) came too late. One transaction: the round advances wholly
    /// or not at all.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn close_round(
        &self,
        name: &str,
        epoch: u32,
        closed: &RoundRow,
        summary: &SummaryRow,
        oldest: u32,
        finished: Option<&str>,
    ) -> Result<(), StoreError> {
        self.write(|db| {
            insert_round(db, name, epoch, closed, summary)?;
            db.execute(
                "UPDATE members SET outcome = 'dropped', ended_at = ?4
                 WHERE federation = ?1 AND epoch = ?2 AND round < ?3 AND outcome = 'training'",
                params![name, epoch, oldest, summary.closed_at as i64],
            )?;
            db.execute(
                "UPDATE federations SET round = ?2, deadline = NULL WHERE name = ?1",
                params![name, closed.round + 1],
            )?;
            if let Some(reason) = finished {
                db.execute(
                    "UPDATE federations SET status = 'finished', reason = ?2 WHERE name = ?1",
                    [name, reason],
                )?;
            }
            Ok(())
        })
    }

    /// Goes back to what round `round` left, in a new epoch.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn roll_back(
        &self,
        name: &str,
        epoch: u32,
        round: u32,
        now: u64,
    ) -> Result<(), StoreError> {
        let next = epoch + 1;
        self.write(|db| {
            for (table, columns) in [
                ("rounds", "adapter, adapter_size, control, control_size, state, versions"),
                ("summaries", "summary, closed_at"),
                ("evaluations", "found"),
                ("suites", "found"),
            ] {
                db.execute(
                    &format!(
                        "INSERT INTO {table} (federation, epoch, round, {columns})
                         SELECT federation, ?3, round, {columns} FROM {table}
                         WHERE federation = ?1 AND epoch = ?2 AND round <= ?4"
                    ),
                    params![name, epoch, next, round],
                )?;
                db.execute(
                    &format!("DELETE FROM {table} WHERE federation = ?1 AND epoch = ?2"),
                    params![name, epoch],
                )?;
            }
            db.execute(
                "UPDATE members SET outcome = 'dropped', ended_at = ?3
                 WHERE federation = ?1 AND epoch = ?2 AND outcome = 'training'",
                params![name, epoch, now as i64],
            )?;
            db.execute(
                "UPDATE federations
                 SET epoch = ?2, round = ?3, deadline = NULL, reason = NULL,
                     status = CASE status WHEN 'finished' THEN 'running' ELSE status END
                 WHERE name = ?1",
                params![name, next, round + 1],
            )?;
            Ok(())
        })
    }

    /// Keeps what the evaluation after a round found on held-out rows.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn set_evaluation(
        &self,
        name: &str,
        epoch: u32,
        evaluation: &EvaluationRow,
    ) -> Result<(), StoreError> {
        self.set_found("evaluations", name, epoch, evaluation)
    }

    /// What evaluations of an epoch found on held-out rows, oldest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn evaluations(&self, name: &str, epoch: u32) -> Result<Vec<EvaluationRow>, StoreError> {
        self.found("evaluations", name, epoch)
    }

    /// Keeps what suites of questions found after a round.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn set_suites(
        &self,
        name: &str,
        epoch: u32,
        suites: &EvaluationRow,
    ) -> Result<(), StoreError> {
        self.set_found("suites", name, epoch, suites)
    }

    /// What suites of questions found in an epoch, oldest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn suites(&self, name: &str, epoch: u32) -> Result<Vec<EvaluationRow>, StoreError> {
        self.found("suites", name, epoch)
    }

    fn set_found(
        &self,
        table: &str,
        name: &str,
        epoch: u32,
        row: &EvaluationRow,
    ) -> Result<(), StoreError> {
        self.write(|db| {
            db.execute(
                &format!(
                    "INSERT OR REPLACE INTO {table} (federation, epoch, round, found)
                     VALUES (?1, ?2, ?3, ?4)"
                ),
                params![name, epoch, row.round, row.found],
            )?;
            Ok(())
        })
    }

    fn found(&self, table: &str, name: &str, epoch: u32) -> Result<Vec<EvaluationRow>, StoreError> {
        self.read(|db| {
            let mut query = db.prepare(&format!(
                "SELECT round, found FROM {table}
                 WHERE federation = ?1 AND epoch = ?2 ORDER BY round"
            ))?;
            let rows = query.query_map(params![name, epoch], |row| {
                Ok(EvaluationRow { round: row.get(0)?, found: row.get(1)? })
            })?;
            rows.collect()
        })
    }

    /// All blobs that something needs: what rounds left, and updates of rounds that are open.
    pub(super) fn named_blobs(&self) -> Result<std::collections::HashSet<BlobId>, StoreError> {
        self.read(|db| {
            let mut query = db.prepare(
                "SELECT adapter FROM rounds
                 UNION SELECT control FROM rounds WHERE control IS NOT NULL
                 UNION SELECT state FROM rounds
                 UNION SELECT versions FROM rounds WHERE versions IS NOT NULL
                 UNION SELECT blob FROM members JOIN federations ON name = federation
                 WHERE blob IS NOT NULL AND members.epoch = federations.epoch
                   AND counts_in >= federations.round",
            )?;
            let rows = query.query_map([], |row| Ok(BlobId(row.get(0)?)))?;
            rows.collect()
        })
    }
}

fn set_deadline(db: &Transaction<'_>, name: &str, deadline: u64) -> rusqlite::Result<()> {
    db.execute(
        "UPDATE federations SET deadline = ?2 WHERE name = ?1",
        params![name, deadline as i64],
    )?;
    Ok(())
}

fn federation_row(row: &Row<'_>) -> rusqlite::Result<FederationRow> {
    Ok(FederationRow {
        name: row.get(0)?,
        training: row.get(1)?,
        epoch: row.get(2)?,
        round: row.get(3)?,
        status: Status::from_name(row.get_ref(4)?.as_str()?),
        reason: row.get(5)?,
        deadline: row.get::<_, Option<i64>>(6)?.map(|at| at.max(0) as u64),
    })
}
