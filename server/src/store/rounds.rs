//! What rounds left and did.

use fleetune_core::protocol::{Blob, BlobId};
use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::{Store, StoreError};

/// What a round left, as long as it is kept for a rollback.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoundRow {
    /// The round; 0 is the beginning.
    pub round: u32,
    /// The shared adapter after it, as devices receive it.
    pub adapter: Blob,
    /// SCAFFOLD: the server's control variate after it, as devices receive it.
    pub control: Option<Blob>,
    /// The aggregator's state after it.
    pub state: BlobId,
    /// What devices of each rank hold after it, where that is not the shared adapter itself.
    pub versions: Option<BlobId>,
}

/// What a round did, for people. It stays when what the round left is pruned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SummaryRow {
    /// The round; 0 is the beginning.
    pub round: u32,
    /// What happened in it, JSON.
    pub summary: String,
    /// When it was closed, milliseconds since 1970.
    pub closed_at: u64,
    /// Whether what it left is kept.
    pub kept: bool,
}

impl Store {
    /// What a round left; `None` where it has not been closed or was pruned.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn round(
        &self,
        name: &str,
        epoch: u32,
        round: u32,
    ) -> Result<Option<RoundRow>, StoreError> {
        self.read(|db| {
            db.prepare_cached(
                "SELECT round, adapter, adapter_size, control, control_size, state, versions
                 FROM rounds WHERE federation = ?1 AND epoch = ?2 AND round = ?3",
            )?
            .query_row(params![name, epoch, round], round_row)
            .optional()
        })
    }

    /// What the rounds of an epoch did, oldest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn summaries(&self, name: &str, epoch: u32) -> Result<Vec<SummaryRow>, StoreError> {
        self.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT round, summary, closed_at, adapter IS NOT NULL
                 FROM summaries LEFT JOIN rounds USING (federation, epoch, round)
                 WHERE federation = ?1 AND epoch = ?2 ORDER BY round",
            )?;
            let rows = query.query_map(params![name, epoch], |row| {
                Ok(SummaryRow {
                    round: row.get(0)?,
                    summary: row.get(1)?,
                    closed_at: row.get::<_, i64>(2)?.max(0) as u64,
                    kept: row.get(3)?,
                })
            })?;
            rows.collect()
        })
    }

    /// Forgets what rounds of an epoch left that are older than `before`, but for the beginning. The
    /// blobs that nothing names any more.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn prune_rounds(
        &self,
        name: &str,
        epoch: u32,
        before: u32,
    ) -> Result<Vec<BlobId>, StoreError> {
        const OLD: &str = "federation = ?1 AND epoch = ?2 AND round > 0 AND round < ?3";
        let old: Vec<RoundRow> = self.read(|db| {
            let mut query = db.prepare_cached(&format!(
                "SELECT round, adapter, adapter_size, control, control_size, state, versions
                 FROM rounds WHERE {OLD}"
            ))?;
            query.query_map(params![name, epoch, before], round_row)?.collect()
        })?;
        self.write(|db| {
            db.execute(&format!("DELETE FROM rounds WHERE {OLD}"), params![name, epoch, before])
        })?;
        let named = self.named_blobs()?;
        let blobs = old.into_iter().flat_map(|row| {
            [Some(row.adapter.id), Some(row.state), row.control.map(|blob| blob.id), row.versions]
        });
        Ok(blobs.flatten().filter(|blob| !named.contains(blob)).collect())
    }
}

/// Adds a round that was closed.
pub(super) fn insert_round(
    db: &Transaction<'_>,
    name: &str,
    epoch: u32,
    row: &RoundRow,
    summary: &SummaryRow,
) -> rusqlite::Result<()> {
    db.execute(
        "INSERT INTO rounds (federation, epoch, round, adapter, adapter_size, control, control_size,
                             state, versions)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        params![
            name,
            epoch,
            row.round,
            row.adapter.id.0,
            row.adapter.size as i64,
            row.control.map(|blob| blob.id.0),
            row.control.map(|blob| blob.size as i64),
            row.state.0,
            row.versions.map(|id| id.0),
        ],
    )?;
    db.execute(
        "INSERT INTO summaries (federation, epoch, round, summary, closed_at)
         VALUES (?1, ?2, ?3, ?4, ?5)",
        params![name, epoch, summary.round, summary.summary, summary.closed_at as i64],
    )?;
    Ok(())
}

fn round_row(row: &Row<'_>) -> rusqlite::Result<RoundRow> {
    let blob = |id: [u8; 32], size: i64| Blob { id: BlobId(id), size: size.max(0) as u64 };
    let control: (Option<[u8; 32]>, Option<i64>) = (row.get(3)?, row.get(4)?);
    Ok(RoundRow {
        round: row.get(0)?,
        adapter: blob(row.get(1)?, row.get(2)?),
        control: control.0.zip(control.1).map(|(id, size)| blob(id, size)),
        state: BlobId(row.get(5)?),
        versions: row.get::<_, Option<[u8; 32]>>(6)?.map(BlobId),
    })
}
