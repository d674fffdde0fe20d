//! Rows kept out of training, to measure on.
//!
//! Which rows these are depends on their text and the seed alone. Rows of one group (the same
//! sentence, the same prompt) go the same way, so that nothing that is measured was seen in
//! training.

use super::dataset::{Dataset, DatasetError};

/// How many rows to keep out of training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum HoldOut {
    /// This share of the rows, above 0 and below 1.
    Fraction(f64),
    /// This many rows, or a few more where the last group is larger than one row.
    Rows(usize),
    /// The rows whose field `split` says `held_out` or `test`, as in the demo set.
    Marked,
}

/// Row numbers in two parts, each in ascending order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// To train on.
    pub train: Vec<u32>,
    /// To measure on.
    pub held_out: Vec<u32>,
}

/// Why rows cannot be held out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HoldOutError {
    /// A share outside (0, 1).
    #[error("the share of rows to hold out must be above 0 and below 1, not {0}")]
    Fraction(f64),
    /// Nothing is left on one side.
    #[error("holding out {held_out} of {rows} rows leaves none to {}", if *.held_out == 0 { "measure on" } else { "train on" })]
    NothingLeft {
        /// Rows that would be held out.
        held_out: usize,
        /// All rows.
        rows: usize,
    },
    /// A row cannot be read.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
}

impl Dataset {
    /// Whether the set's rows say themselves which of them are held out.
    pub fn marks_holdout(&self) -> bool {
        !self.is_mixture() && self.name() == "demo"
    }

    /// Splits the rows into those to train on and those to measure on.
    ///
    /// # Errors
    /// When one side would be empty, or a row cannot be read.
    pub fn split_holdout(&self, hold_out: HoldOut, seed: u64) -> Result<Split, HoldOutError> {
        let rows = self.len();
        let target = match hold_out {
            HoldOut::Marked => return self.split_marked(),
            HoldOut::Rows(count) => count,
            HoldOut::Fraction(share) if share > 0.0 && share < 1.0 => {
                ((share * rows as f64).round() as usize).max(1)
            }
            HoldOut::Fraction(share) => return Err(HoldOutError::Fraction(share)),
        };
        if target == 0 || target >= rows {
            return Err(HoldOutError::NothingLeft { held_out: target.min(rows), rows });
        }
        let mut order = Vec::with_capacity(rows);
        for row in self.rows() {
            order.push((mix(self.group(row)?, seed), row));
        }
        order.sort_unstable();
        // A group's rows stand side by side; the last one taken is taken whole.
        let mut end = target;
        while end < rows && order[end].0 == order[end - 1].0 {
            end += 1;
        }
        if end == rows {
            return Err(HoldOutError::NothingLeft { held_out: rows, rows });
        }
        let sorted = |part: &[(u64, u32)]| {
            let mut part: Vec<u32> = part.iter().map(|(_, row)| *row).collect();
            part.sort_unstable();
            part
        };
        Ok(Split { train: sorted(&order[end..]), held_out: sorted(&order[..end]) })
    }

    fn split_marked(&self) -> Result<Split, HoldOutError> {
        let mut split = Split { train: Vec::new(), held_out: Vec::new() };
        for row in self.rows() {
            let record = self.record(row)?;
            let held_out = matches!(record.field("split"), Some("held_out" | "test"));
            if held_out { &mut split.held_out } else { &mut split.train }.push(row);
        }
        if split.train.is_empty() || split.held_out.is_empty() {
            let held_out = split.held_out.len();
            return Err(HoldOutError::NothingLeft { held_out, rows: self.len() });
        }
        Ok(split)
    }
}

/// SplitMix64's finaliser over group and seed: a different order for every seed.
fn mix(group: u64, seed: u64) -> u64 {
    let mut z = group ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
