//! Suites of questions for the shared adapter, between rounds.
//!
//! Answers of a round go to a journal of their own at once, so a run that is stopped in the middle of
//! a suite goes on there. A journal of another adapter is that of a round which was computed anew, and
//! is begun anew.

use std::cell::RefCell;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fleetune_core::adapter::Adapter;
use fleetune_core::model::{CancelToken, Decoder, LoadedModel};

use super::error::SimulateError;
use super::journal::SuiteRecord;
use super::observer::{Event, Observer};
use crate::evaluate::engine::{Applied, EngineModel};
use crate::evaluate::grading::Tools;
use crate::evaluate::journal::{Journal, JournalError};
use crate::evaluate::model::{Identity, LanguageModel};
use crate::evaluate::result::{Unfinished, page};
use crate::evaluate::run::{Plan, RunError, Watcher, Work, run};

/// The folder, within a run's or a server's, of journals and pages.
pub const FOLDER: &str = "evaluation";

/// What suites found after a round.
#[derive(Default)]
pub struct SuitesFound {
    /// Of each suite that came to its end.
    pub records: Vec<SuiteRecord>,
    /// Suites whose judge failed.
    pub unfinished: Vec<Unfinished>,
}

/// What the shared adapter is asked, and what that takes.
pub struct SuiteQuestions {
    /// The base model.
    pub model: Arc<LoadedModel>,
    /// Its layers on the device.
    pub decoder: Arc<Decoder>,
    /// What the user calls it.
    pub name: String,
    /// The questions.
    pub plan: Plan,
    /// What grading uses.
    pub tools: RefCell<Tools>,
    /// Where to look for the wish to stop.
    pub cancel: CancelToken,
}

impl SuiteQuestions {
    /// Asks the model with `adapter`, as it is after `round` rounds. Journal and page go to `folder`,
    /// which is made. Nothing is found of an adapter that computes no numbers, as one that diverged
    /// does: it is told, and that is no reason to end the rounds or to ask again.
    ///
    /// # Errors
    /// When data, engine or journal fail, or the observer asks to stop.
    pub fn ask(
        &self,
        adapter: &Adapter,
        round: u32,
        folder: &Path,
        observer: &mut dyn Observer,
    ) -> Result<SuitesFound, SimulateError> {
        fs::create_dir_all(folder).map_err(SimulateError::io(folder))?;
        let path = |ending| folder.join(format!("round-{round:04}.{ending}"));
        let applied = Applied::from_memory(&format!("round {round}"), adapter);
        let (model, decoder) = (Arc::clone(&self.model), Arc::clone(&self.decoder));
        let model = applied.and_then(|applied| {
            EngineModel::new(&self.name, model, decoder, Some(applied), self.cancel.clone())
        });
        let mut model = model.map_err(SimulateError::Model)?;
        let mut journal = open(&path("journal.jsonl"), &model.identity())?;
        let mut watcher = Telling {
            observer,
            round,
            suite: String::new(),
            work: Work::Answers,
            progress: (0, 0),
            stop: false,
        };
        let mut tools = self.tools.borrow_mut();
        let result = match run(&self.plan, &mut model, &mut tools, &mut journal, &mut watcher) {
            Err(error) if error.is_no_model() => {
                tracing::error!("the adapter after round {round} answers no suite: {error}");
                return Ok(SuitesFound::default());
            }
            other => other?,
        };
        let html = path("html");
        fs::write(&html, page(&result, &format!("round-{round:04}.journal.jsonl")))
            .map_err(SimulateError::io(&html))?;
        let records = result.suites.into_iter().map(|result| SuiteRecord { round, result });
        Ok(SuitesFound { records: records.collect(), unfinished: result.unfinished })
    }
}

fn open(path: &PathBuf, identity: &Identity) -> Result<Journal, SimulateError> {
    match Journal::open(path, identity) {
        Err(JournalError::OtherModel { .. }) => {
            fs::remove_file(path).map_err(SimulateError::io(path))?;
            Ok(Journal::open(path, identity).map_err(RunError::from)?)
        }
        other => Ok(other.map_err(RunError::from)?),
    }
}

/// Tells an observer how far a suite has come.
struct Telling<'a> {
    observer: &'a mut dyn Observer,
    round: u32,
    suite: String,
    work: Work,
    /// Done, of all.
    progress: (usize, usize),
    stop: bool,
}

impl Telling<'_> {
    fn tell(&mut self) {
        let (done, total) = self.progress;
        let (round, suite, work) = (self.round, &self.suite, self.work.name());
        let event = Event::Asking { round, suite, work, done, total };
        self.stop |= self.observer.see(&event) == ControlFlow::Break(());
    }
}

impl Watcher for Telling<'_> {
    fn begin(&mut self, suite: &str, work: Work, total: usize, done: usize) {
        suite.clone_into(&mut self.suite);
        self.work = work;
        self.progress = (done, total);
        self.tell();
    }

    fn advance(&mut self, amount: usize) {
        self.progress.0 += amount;
        self.tell();
    }

    fn stop(&self) -> bool {
        self.stop
    }
}
