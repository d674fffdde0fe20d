//! Who takes part in which round, and what became of it.

use fleetune_core::protocol::{AttemptToken, BlobId, CommitStatus, DeviceId};
use rusqlite::{OptionalExtension, Row, params};

use super::{FederationRow, Store, StoreError};

/// What became of a device's part in a round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The device is at it.
    Training,
    /// The round ended without its update.
    Dropped,
    /// Its update counts in its own round.
    Accepted,
    /// Its update came late and counts in a later round.
    Folded,
    /// Its update came late and does not count.
    Late,
    /// Its update does not count, for this reason.
    Refused(String),
}

impl Outcome {
    fn name(&self) -> &'static str {
        match self {
            Self::Training => "training",
            Self::Dropped => "dropped",
            Self::Accepted => "accepted",
            Self::Folded => "folded",
            Self::Late => "late",
            Self::Refused(_) => "refused",
        }
    }

    fn from_name(name: &str, reason: Option<String>) -> Self {
        match name {
            "training" => Self::Training,
            "accepted" => Self::Accepted,
            "folded" => Self::Folded,
            "late" => Self::Late,
            "refused" => Self::Refused(reason.unwrap_or_default()),
            _ => Self::Dropped,
        }
    }

    /// What the device is told, now and whenever it asks again. `None` while it may still hand in.
    pub fn answer(&self) -> Option<CommitStatus> {
        match self {
            Self::Training | Self::Dropped => None,
            Self::Accepted => Some(CommitStatus::Accepted),
            Self::Folded => Some(CommitStatus::Late { folded: true }),
            Self::Late => Some(CommitStatus::Late { folded: false }),
            Self::Refused(reason) => Some(CommitStatus::Refused { reason: reason.clone() }),
        }
    }
}

/// A device's part in a round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberRow {
    /// The assignment.
    pub attempt: AttemptToken,
    /// The federation.
    pub federation: String,
    /// Its epoch.
    pub epoch: u32,
    /// The round whose adapter the device trains on.
    pub round: u32,
    /// The device.
    pub device: DeviceId,
    /// What became of it.
    pub outcome: Outcome,
    /// The update that was handed in.
    pub blob: Option<BlobId>,
    /// Rows it was trained on.
    pub samples: u64,
    /// What training did, JSON.
    pub report: Option<String>,
    /// The round that the update counts in.
    pub counts_in: Option<u32>,
}

/// How many parts in a round ended in one way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutcomeCount {
    /// The round.
    pub round: u32,
    /// What became of them; a reason is left out.
    pub outcome: Outcome,
    /// How many.
    pub parts: u64,
}

/// A part in a round that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The part.
    pub member: MemberRow,
    /// When it ended, milliseconds since 1970.
    pub at: u64,
}

const COLUMNS: &str =
    "attempt, federation, epoch, round, device, outcome, reason, blob, samples, report, counts_in";

impl Store {
    /// The part in a round that an assignment stands for.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn member(&self, attempt: AttemptToken) -> Result<Option<MemberRow>, StoreError> {
        self.read(|db| {
            db.prepare_cached(&format!("SELECT {COLUMNS} FROM members WHERE attempt = ?1"))?
                .query_row([attempt.0], member_row)
                .optional()
        })
    }

    /// The parts in rounds `from` and later, in order of device and round.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn members_since(
        &self,
        federation: &str,
        epoch: u32,
        from: u32,
    ) -> Result<Vec<MemberRow>, StoreError> {
        self.read(|db| {
            let mut query = db.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM members
                 WHERE federation = ?1 AND epoch = ?2 AND round >= ?3 ORDER BY device, round"
            ))?;
            let rows = query.query_map(params![federation, epoch, from], member_row)?;
            rows.collect()
        })
    }

    /// The parts whose updates count in a round, in order of device and round: the order in which
    /// they are summed, whatever the order in which they came.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn counting(
        &self,
        federation: &str,
        epoch: u32,
        round: u32,
    ) -> Result<Vec<MemberRow>, StoreError> {
        self.read(|db| {
            let mut query = db.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM members
                 WHERE federation = ?1 AND epoch = ?2 AND counts_in = ?3 ORDER BY device, round"
            ))?;
            let rows = query.query_map(params![federation, epoch, round], member_row)?;
            rows.collect()
        })
    }

    /// What became of the parts in a federation's rounds, by round. Rounds that a rollback kept count
    /// as they went in their own epoch; those that it forgot do not.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn outcomes(&self, federation: &FederationRow) -> Result<Vec<OutcomeCount>, StoreError> {
        let FederationRow { name, epoch, round, .. } = federation;
        self.read(|db| {
            let mut query = db.prepare_cached(
                "WITH last AS (
                     SELECT round, MAX(epoch) AS epoch FROM members
                     WHERE federation = ?1 AND (round < ?3 OR epoch = ?2) GROUP BY round
                 )
                 SELECT round, outcome, COUNT(*) FROM members JOIN last USING (round, epoch)
                 WHERE federation = ?1 GROUP BY round, outcome ORDER BY round",
            )?;
            let rows = query.query_map(params![name, epoch, round], |row| {
                Ok(OutcomeCount {
                    round: row.get(0)?,
                    outcome: Outcome::from_name(row.get_ref(1)?.as_str()?, None),
                    parts: row.get::<_, i64>(2)?.max(0) as u64,
                })
            })?;
            rows.collect()
        })
    }

    /// The newest parts of a federation that ended without counting, newest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn failures(&self, federation: &str, limit: u32) -> Result<Vec<Ended>, StoreError> {
        self.read(|db| {
            let mut query = db.prepare_cached(&format!(
                "SELECT {COLUMNS}, ended_at FROM members
                 WHERE federation = ?1 AND outcome IN ('dropped', 'late', 'refused')
                 ORDER BY ended_at DESC, attempt LIMIT ?2"
            ))?;
            let rows = query.query_map(params![federation, limit], |row| {
                let at = row.get::<_, Option<i64>>(11)?.unwrap_or(0).max(0) as u64;
                Ok(Ended { member: member_row(row)?, at })
            })?;
            rows.collect()
        })
    }

    /// Records what became of a part that was still open.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn settle(&self, row: &MemberRow, now: u64) -> Result<(), StoreError> {
        let reason = match &row.outcome {
            Outcome::Refused(reason) => Some(reason),
            _ => None,
        };
        self.write(|db| {
            db.prepare_cached(
                "UPDATE members SET outcome = ?2, reason = ?3, blob = ?4, samples = ?5, report = ?6,
                                    counts_in = ?7, ended_at = ?8
                 WHERE attempt = ?1",
            )?
            .execute(params![
                row.attempt.0,
                row.outcome.name(),
                reason,
                row.blob.map(|blob| blob.0),
                row.samples as i64,
                row.report,
                row.counts_in,
                now as i64
            ])?;
            Ok(())
        })
    }

    /// How many rounds, of all federations, a device was given since `since`.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn rounds_since(&self, device: DeviceId, since: u64) -> Result<u32, StoreError> {
        self.read(|db| {
            db.prepare_cached(
                "SELECT COUNT(*) FROM members WHERE device = ?1 AND assigned_at > ?2",
            )?
            .query_row(params![device.0, since as i64], |row| row.get(0))
        })
    }
}

fn member_row(row: &Row<'_>) -> rusqlite::Result<MemberRow> {
    let reason = row.get(6)?;
    Ok(MemberRow {
        attempt: AttemptToken(row.get(0)?),
        federation: row.get(1)?,
        epoch: row.get(2)?,
        round: row.get(3)?,
        device: DeviceId(row.get(4)?),
        outcome: Outcome::from_name(row.get_ref(5)?.as_str()?, reason),
        blob: row.get::<_, Option<[u8; 32]>>(7)?.map(BlobId),
        samples: row.get::<_, Option<i64>>(8)?.unwrap_or(0).max(0) as u64,
        report: row.get(9)?,
        counts_in: row.get(10)?,
    })
}
