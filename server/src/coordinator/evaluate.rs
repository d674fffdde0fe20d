//! Evaluation of the shared adapter: on rows that the server holds, between rounds; by suites of
//! questions, which may take longer than a round, beside them.

use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use fleetune_core::adapter::Adapter;

use super::Coordinator;
use super::error::FederationError;
use super::federation::Federation;
use crate::interrupt::Interrupt;
use crate::simulate::journal::EvaluationRecord;
use crate::simulate::observer::Event;
use crate::simulate::suites::{FOLDER, SuiteQuestions};
use crate::store::EvaluationRow;

/// Time between looks at whether there is a new adapter to ask.
const LOOK: Duration = Duration::from_millis(200);
/// Time after a failure, of a judge most often, before suites are taken up again.
const AFTER_FAILURE: Duration = Duration::from_secs(60);

/// How a federation's shared adapter is measured.
#[derive(Default)]
pub struct Measures {
    /// On held-out rows.
    pub held_out: Option<Box<dyn Evaluate>>,
    /// By suites of questions.
    pub suites: Option<SuiteQuestions>,
}

/// Measures adapters.
pub trait Evaluate: Send {
    /// What the adapter after `round` rounds is worth. `None` where there is nothing to measure on.
    ///
    /// # Errors
    /// When rows cannot be read or the engine fails.
    fn evaluate(
        &mut self,
        adapter: &Adapter,
        round: u32,
    ) -> anyhow::Result<Option<EvaluationRecord>>;
}

/// Whether round `round` of `rounds` is to be evaluated, `every` so many rounds; the beginning and
/// the end always are.
pub fn is_due(round: u32, rounds: u32, every: u32) -> bool {
    round == 0 || round >= rounds || (every > 0 && round.is_multiple_of(every))
}

/// Whether the last `patience` of these losses, oldest first, brought no improvement.
pub fn has_stalled(losses: &[f64], patience: u32) -> bool {
    let patience = patience as usize;
    if patience == 0 || losses.len() <= patience {
        return false;
    }
    let (before, last) = losses.split_at(losses.len() - patience);
    let best = |losses: &[f64]| losses.iter().copied().fold(f64::INFINITY, f64::min);
    best(last) >= best(before)
}

impl Coordinator {
    /// Asks the shared adapter the federation's suites after each round that is due, until
    /// `interrupt` is set. Rounds go on meanwhile; of several that became due, the newest is asked.
    pub(super) fn ask_suites(&self, federation: &Federation, interrupt: &Interrupt) {
        let Some(questions) = federation.questions() else { return };
        let mut done = None;
        while !interrupt.is_set() {
            let pause = match self.ask_newest(federation, questions, &mut done, interrupt) {
                Ok(()) => LOOK,
                Err(_) if interrupt.is_set() => return,
                Err(error) => {
                    let again = AFTER_FAILURE.as_secs();
                    tracing::error!(
                        federation = federation.name(),
                        "{error}; trying again in {again} s"
                    );
                    self.metrics.failed();
                    AFTER_FAILURE
                }
            };
            let end = Instant::now() + pause;
            while !interrupt.is_set() && Instant::now() < end {
                thread::sleep(LOOK.min(end.saturating_duration_since(Instant::now())));
            }
        }
    }

    /// Asks the newest adapter, if it is due and was not asked. `done` is the epoch and round that
    /// need no further look.
    fn ask_newest(
        &self,
        federation: &Federation,
        questions: &Mutex<SuiteQuestions>,
        done: &mut Option<(u32, u32)>,
        interrupt: &Interrupt,
    ) -> Result<(), FederationError> {
        let (epoch, round, start) = {
            let current = federation.lock();
            let start = current.starts.get(&current.row.round).cloned();
            (current.row.epoch, current.row.round - 1, start)
        };
        let Some(start) = start else { return Ok(()) };
        if *done == Some((epoch, round)) {
            return Ok(());
        }
        let (name, training) = (federation.name(), &federation.config.training);
        let known = self.store.suites(name, epoch)?;
        if !is_due(round, training.rounds, training.eval_every)
            || known.iter().any(|row| row.round == round)
        {
            *done = Some((epoch, round));
            return Ok(());
        }
        let adapter =
            Adapter { config: federation.lora.clone(), parameters: (*start.adapter).clone() };
        let folder = self.store.folder().join(FOLDER).join(name).join(format!("epoch-{epoch}"));
        let mut observer = |_: &Event<'_>| match interrupt.is_set() {
            true => std::ops::ControlFlow::Break(()),
            false => std::ops::ControlFlow::Continue(()),
        };
        let found = {
            let questions = questions.lock().unwrap_or_else(PoisonError::into_inner);
            questions.ask(&adapter, round, &folder, &mut observer)
        };
        let found = found.map_err(|error| FederationError::Evaluation(error.to_string()))?;
        if let Some(unfinished) = found.unfinished.first() {
            return Err(FederationError::Evaluation(unfinished.to_string()));
        }
        let found = found.records;
        let text = serde_json::to_string(&found)
            .map_err(|error| FederationError::Evaluation(error.to_string()))?;
        self.store.set_suites(name, epoch, &EvaluationRow { round, found: text })?;
        for record in &found {
            let result = &record.result;
            self.metrics.asked(name, &result.suite, result.overall());
            if let Some(metric) = result.overall().next() {
                let (suite, metric, value) = (&result.suite, &metric.name, metric.value);
                tracing::info!(federation = name, round, suite, metric, value, "asked");
            }
        }
        *done = Some((epoch, round));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_and_the_end_are_evaluated_and_every_so_many_rounds() {
        let due: Vec<u32> = (0..=7).filter(|&round| is_due(round, 7, 3)).collect();
        assert_eq!(due, [0, 3, 6, 7]);
        assert!(!is_due(3, 7, 0));
    }

    #[test]
    fn patience_ends_when_nothing_got_better() {
        assert!(!has_stalled(&[3.0, 2.0, 2.5], 2));
        assert!(has_stalled(&[3.0, 2.0, 2.5, 2.0], 2));
        assert!(!has_stalled(&[3.0, 2.0, 2.5, 1.9], 2));
        assert!(!has_stalled(&[3.0, 3.0, 3.0], 0), "0 never stops");
    }
}
