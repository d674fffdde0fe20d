//! Rounds: who trains, whose update counts, when a round ends.
//!
//! A state machine without I/O, clock or chance of its own: time is an argument (milliseconds on
//! any clock that does not run backward), and whom it selects follows from the federation's seed.
//! It decides ([`RoundState::next_step`], [`RoundState::judge`]); the caller writes the decision to the
//! disk and then tells it ([`RoundState::select`], [`RoundState::reported`], …). So what the machine
//! knows is never ahead of the disk, and after a restart it is rebuilt from there.
//!
//! A round gathers devices that ask for work, selects some more than it needs, and collects their
//! updates until it has enough, or nobody is left to wait for, or its one deadline passes. With too
//! few updates at the deadline it keeps those it has, takes more time, and selects others in place
//! of those who did not answer.

mod rules;
mod state;
#[cfg(test)]
mod tests;

pub use rules::{Mode, Rules, RulesError};
pub use state::{Phase, RoundState, Standing, Step, Verdict};
