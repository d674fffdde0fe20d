//! What the operator decides about rounds.

use serde::{Deserialize, Serialize};

/// What happens to updates that come after their round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// They are refused: all updates of a round start from the same adapter.
    Synchronous,
    /// They count in the round that is open when they come, the less the older they are: FedBuff
    /// (Nguyen et al. 2022). Devices are given work whenever there is room, not all at once.
    Buffered,
}

/// The rules of a federation's rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rules {
    /// Updates that close a round.
    pub target: usize,
    /// Updates without which a round does not close.
    pub minimum: usize,
    /// Devices that train at once: more than the target, as some will not answer.
    pub selected: usize,
    /// Time for a round, milliseconds.
    pub deadline: u64,
    /// How long a round waits for `selected` devices before fewer will do, milliseconds.
    pub gather: u64,
    /// How long a device that asked for work is taken to be there, milliseconds.
    pub presence: u64,
    /// What happens to late updates.
    pub mode: Mode,
    /// Rounds by which a late update may be late, in buffered mode.
    pub max_staleness: u32,
}

/// Rules that contradict each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct RulesError {
    /// The key.
    pub key: &'static str,
    /// What is wrong, and what would be right.
    pub problem: String,
}

impl Rules {
    /// Checks that rounds can end.
    ///
    /// # Errors
    /// Names the first rule that makes no sense.
    pub fn check(&self) -> Result<(), RulesError> {
        let problems = [
            ("sample", self.target == 0, "0 updates make no round, use at least 1"),
            ("minimum", self.minimum == 0, "0 updates make no round, use at least 1"),
            ("minimum", self.minimum > self.target, "is more than the target (training.sample)"),
            ("over_selection", self.selected < self.target, "use 1.0 or more"),
            ("deadline", self.deadline == 0, "no device trains in no time"),
        ];
        match problems.into_iter().find(|&(_, wrong, _)| wrong) {
            Some((key, _, problem)) => Err(RulesError { key, problem: problem.into() }),
            None => Ok(()),
        }
    }

    /// How much an update counts that is `staleness` rounds late: `1 / √(1 + staleness)`.
    pub fn staleness_weight(staleness: u32) -> f64 {
        1.0 / (1.0 + f64::from(staleness)).sqrt()
    }
}
