//! What the operator's commands ask of the server, which may run or start later.

use rusqlite::params;

use super::{Store, StoreError};

/// An order to a federation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Its number; orders are carried out in this order.
    pub id: i64,
    /// The federation.
    pub federation: String,
    /// What to do.
    pub kind: OrderKind,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrderKind {
    /// Select no more devices. A round that runs comes to its end.
    Pause,
    /// Go on.
    Resume,
    /// Go back to the adapter after this round, and on from there.
    Rollback {
        /// The round, 0 for the beginning.
        round: u32,
    },
}

impl OrderKind {
    fn name(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Rollback { .. } => "rollback",
        }
    }
}

impl Store {
    /// Leaves an order for the server.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn order(&self, federation: &str, kind: OrderKind) -> Result<(), StoreError> {
        let round = match kind {
            OrderKind::Rollback { round } => Some(round),
            OrderKind::Pause | OrderKind::Resume => None,
        };
        self.write(|db| {
            db.execute(
                "INSERT INTO orders (federation, kind, round) VALUES (?1, ?2, ?3)",
                params![federation, kind.name(), round],
            )?;
            Ok(())
        })
    }

    /// The orders that wait, oldest first. Those that this build does not know are left out.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn orders(&self) -> Result<Vec<Order>, StoreError> {
        self.read(|db| {
            let mut query =
                db.prepare_cached("SELECT id, federation, kind, round FROM orders ORDER BY id")?;
            let rows = query.query_map([], |row| {
                let kind = match row.get_ref(2)?.as_str()? {
                    "pause" => Some(OrderKind::Pause),
                    "resume" => Some(OrderKind::Resume),
                    "rollback" => Some(OrderKind::Rollback { round: row.get(3)? }),
                    _ => None,
                };
                let (id, federation) = (row.get(0)?, row.get(1)?);
                Ok(kind.map(|kind| Order { id, federation, kind }))
            })?;
            rows.filter_map(Result::transpose).collect()
        })
    }

    /// Removes an order that was carried out.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn order_done(&self, id: i64) -> Result<(), StoreError> {
        self.write(|db| {
            db.execute("DELETE FROM orders WHERE id = ?1", [id])?;
            Ok(())
        })
    }
}
