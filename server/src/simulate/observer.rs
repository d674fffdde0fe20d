//! Who watches a run: progress on a terminal, Ctrl-C, and tests that stop it at any step.

use std::ops::ControlFlow;

use fleetune_core::train::StepReport;

use super::error::SimulateError;
use super::journal::{ClientRecord, EvaluationRecord, RoundRecord, SuiteRecord};

/// A step of a run. Wherever one is told, the run can be stopped and resumed.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Rounds begin, `done` of them having been done before.
    Started {
        /// The algorithm.
        algorithm: String,
        /// Clients that train in a round.
        clients: u32,
        /// Rounds done before.
        done: u32,
        /// Rounds in all.
        rounds: u32,
    },
    /// Held-out rows are being scored.
    Evaluating {
        /// Rounds done.
        round: u32,
        /// Rows scored.
        done: usize,
        /// Rows to score.
        rows: usize,
    },
    /// Held-out prompts are being answered.
    Answering {
        /// Rounds done.
        round: u32,
        /// Prompts answered.
        done: usize,
        /// Prompts to answer.
        prompts: usize,
    },
    /// Questions of a suite are being asked.
    Asking {
        /// Rounds done.
        round: u32,
        /// The suite.
        suite: &'a str,
        /// What is counted, in the plural.
        work: &'static str,
        /// How many are done.
        done: usize,
        /// How many there are.
        total: usize,
    },
    /// A suite was asked.
    Asked(&'a SuiteRecord),
    /// Held-out rows were scored.
    Evaluated(&'a EvaluationRecord),
    /// A client took a training step.
    Stepped {
        /// The round.
        round: u32,
        /// The client.
        client: u32,
        /// What the step did.
        step: &'a StepReport,
    },
    /// A client's update was taken in.
    Updated(&'a ClientRecord),
    /// The clients' updates became one.
    Aggregated(&'a RoundRecord),
    /// The round's metrics are on the disk; its checkpoint is not.
    Recorded {
        /// The round.
        round: u32,
    },
    /// The round's checkpoint is on the disk: the round counts.
    Committed {
        /// The round.
        round: u32,
    },
    /// What older checkpoints needed is gone.
    Pruned {
        /// The round.
        round: u32,
    },
}

/// Watches a run.
pub trait Observer {
    /// Sees what happens; `Break` stops the run as if it were killed there.
    fn see(&mut self, event: &Event<'_>) -> ControlFlow<()>;
}

impl<F: FnMut(&Event<'_>) -> ControlFlow<()>> Observer for F {
    fn see(&mut self, event: &Event<'_>) -> ControlFlow<()> {
        self(event)
    }
}

/// Tells an event and turns the wish to stop into an error.
pub(super) fn tell(observer: &mut dyn Observer, event: Event<'_>) -> Result<(), SimulateError> {
    match observer.see(&event) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(SimulateError::Stopped),
    }
}
