//! A run's metrics, sorted for reading.

use std::collections::BTreeSet;

use crate::evaluate::result::SuiteResult;
use crate::simulate::federation::Found;
use crate::simulate::journal::{ClientRecord, EvaluationRecord, Record, RoundRecord, SuiteRecord};

/// All records of a run by kind, in the order they were written.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    /// Rounds.
    pub rounds: Vec<RoundRecord>,
    /// Client updates.
    pub clients: Vec<ClientRecord>,
    /// Evaluations.
    pub evaluations: Vec<EvaluationRecord>,
    /// Suites.
    pub suites: Vec<SuiteRecord>,
}

impl FromIterator<Record> for History {
    fn from_iter<I: IntoIterator<Item = Record>>(records: I) -> Self {
        let mut history = History::default();
        for record in records {
            match record {
                Record::Client(client) => history.clients.push(client),
                Record::Round(round) => history.rounds.push(round),
                Record::Evaluation(evaluation) => history.evaluations.push(evaluation),
                Record::Suite(suite) => history.suites.push(suite),
            }
        }
        history
    }
}

impl History {
    /// The evaluation before training.
    pub fn before(&self) -> Option<&EvaluationRecord> {
        self.evaluations.first().filter(|evaluation| evaluation.round == 0)
    }

    /// The last evaluation after some training.
    pub fn after(&self) -> Option<&EvaluationRecord> {
        self.evaluations.last().filter(|evaluation| evaluation.round > 0)
    }

    /// All that was found before training.
    pub fn found_before(&self) -> Found {
        let suites = self.suites.iter().filter(|suite| suite.round == 0).cloned().collect();
        Found { evaluation: self.before().cloned(), suites }
    }

    /// What suites found after `round` rounds.
    pub fn suites_at(&self, round: u32) -> impl Iterator<Item = &SuiteResult> {
        self.suites.iter().filter(move |suite| suite.round == round).map(|suite| &suite.result)
    }

    /// Rounds after which suites were asked.
    pub fn suite_rounds(&self) -> BTreeSet<u32> {
        self.suites.iter().map(|suite| suite.round).collect()
    }

    /// Names of the groups that evaluations tell apart, sorted.
    pub fn groups(&self) -> Vec<&str> {
        let names = self.evaluations.iter().flat_map(|evaluation| evaluation.groups.keys());
        names.map(String::as_str).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Encoded bytes from clients to the server.
    pub fn bytes_up(&self) -> u64 {
        self.rounds.iter().map(|round| round.bytes_up).sum()
    }

    /// Encoded bytes from the server to clients.
    pub fn bytes_down(&self) -> u64 {
        self.rounds.iter().map(|round| round.bytes_down).sum()
    }

    /// Tokens that clients processed.
    pub fn tokens(&self) -> u64 {
        self.rounds.iter().map(|round| round.tokens).sum()
    }

    /// Tokens a second while clients trained.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let seconds: f64 = self.clients.iter().map(|client| client.seconds).sum();
        (seconds > 0.0).then(|| self.tokens() as f64 / seconds)
    }

    /// Seconds of the whole run.
    pub fn seconds(&self) -> f64 {
        self.rounds.last().map_or(0.0, |round| round.elapsed_seconds)
    }
}
