//! `metrics.jsonl`: what happened in a run, one JSON object a line.
//!
//! Lines are appended as things happen, so that a run can be watched. A round counts once its
//! checkpoint stands; when a run resumes, the lines of rounds after the last checkpoint, and a line
//! that a kill tore, are dropped and will be written again.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use fleetune_core::files::write_atomically;
use fleetune_core::train::PreferenceReport;
use serde::{Deserialize, Serialize};

use crate::aggregate::ProductReport;
use crate::evaluate::result::SuiteResult;

/// One line of `metrics.jsonl`. Rounds count from 1; round 0 is the state before training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// One client's work in one round.
    Client(ClientRecord),
    /// One round.
    Round(RoundRecord),
    /// A test of the shared adapter on held-out rows.
    Evaluation(EvaluationRecord),
    /// A suite of questions that the shared adapter was asked.
    Suite(SuiteRecord),
}

/// One client's work in one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClientRecord {
    /// The round.
    pub round: u32,
    /// The client.
    pub client: u32,
    /// The LoRA rank it trains.
    #[serde(default)]
    pub rank: usize,
    /// Rows the client holds: its weight where clients are weighted by samples.
    pub rows: u64,
    /// Rows drawn in the round that the sequence length left nothing to learn of.
    #[serde(default)]
    pub rows_skipped: u64,
    /// Optimiser steps taken.
    pub steps: u64,
    /// Tokens processed.
    pub tokens: u64,
    /// Tokens the loss counted.
    pub supervised_tokens: u64,
    /// Mean loss over all steps, nats, per supervised token or (preferences) pair.
    pub loss: f64,
    /// Loss of the first step.
    pub first_loss: f64,
    /// Loss of the last step.
    pub last_loss: f64,
    /// L2 norm of the adapter's change.
    pub update_norm: f64,
    /// Preferences: how pairs were judged, mean over all steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preference: Option<PreferenceReport>,
    /// Encoded bytes from the client to the server.
    pub bytes_up: u64,
    /// Encoded bytes from the server to the client.
    pub bytes_down: u64,
    /// Time spent.
    pub seconds: f64,
}

/// One round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundRecord {
    /// The round.
    pub round: u32,
    /// Clients whose updates were aggregated.
    pub clients: Vec<u32>,
    /// Clients that were drawn and had no row with anything to learn.
    #[serde(default)]
    pub clients_skipped: Vec<u32>,
    /// The most clients that shared a pass of the model.
    #[serde(default)]
    pub clients_per_pass: usize,
    /// The clients' learning rate.
    pub learning_rate: f64,
    /// Mean training loss over all clients, per supervised token or (preferences) pair; absent when
    /// nobody trained.
    pub loss: Option<f64>,
    /// L2 norm of the shared adapter's change.
    pub change_norm: f64,
    /// How far the shared adapter is from the exact mean of the clients' products.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product: Option<ProductReport>,
    /// Tokens processed.
    pub tokens: u64,
    /// Encoded bytes from clients to the server.
    pub bytes_up: u64,
    /// Encoded bytes from the server to clients.
    pub bytes_down: u64,
    /// Time spent in this round, evaluation left out.
    pub seconds: f64,
    /// Time spent since the run began, pauses left out.
    pub elapsed_seconds: f64,
}

/// A test of the shared adapter on held-out rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluationRecord {
    /// Rounds of training before the test.
    pub round: u32,
    /// Score over all held-out rows.
    #[serde(flatten)]
    pub score: Score,
    /// Held-out rows that the sequence length left nothing to score of.
    #[serde(default)]
    pub rows_skipped: u64,
    /// Scores by source or group, where rows have one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<String, Score>,
    /// Answers to a few held-out prompts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<Answer>,
    /// Time spent.
    pub seconds: f64,
}

/// A suite of questions that the shared adapter was asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SuiteRecord {
    /// Rounds of training before the questions.
    pub round: u32,
    /// What was found.
    #[serde(flatten)]
    pub result: SuiteResult,
}

/// How well rows were predicted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Mean loss, nats, per supervised token or (preferences) pair.
    pub loss: f64,
    /// Share of supervised tokens (preferences: of the preferred answers) that the model found
    /// likeliest.
    pub token_accuracy: f64,
    /// Rows.
    pub rows: u64,
    /// Supervised tokens (preferences: of the preferred answers).
    pub supervised_tokens: u64,
    /// Preferences: how pairs were judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preference: Option<PreferenceScore>,
}

/// How well pairs were judged; means over the pairs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct PreferenceScore {
    /// Rewards and log-probabilities.
    #[serde(flatten)]
    pub judged: PreferenceReport,
    /// Share of pairs whose preferred answer is the likelier one, whatever the reference says; equal
    /// ones count one half.
    pub ranking_accuracy: f64,
}

impl Score {
    /// The share of right choices, and what it is called: of tokens, or of the better answer by
    /// reward.
    pub fn accuracy(&self) -> (&'static str, f64) {
        match &self.preference {
            None => ("token accuracy", self.token_accuracy),
            Some(preference) => ("reward accuracy", preference.judged.reward_accuracy),
        }
    }
}

/// What the model answers to a held-out prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The source or group of the row, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// What was asked.
    pub prompt: String,
    /// The answer in the data.
    pub expected: String,
    /// The model's answer, greedily.
    pub answer: String,
}

impl Record {
    /// The round the record belongs to.
    pub fn round(&self) -> u32 {
        match self {
            Record::Client(record) => record.round,
            Record::Round(record) => record.round,
            Record::Evaluation(record) => record.round,
            Record::Suite(record) => record.round,
        }
    }
}

/// Why a run's metrics cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The file cannot be read or written.
    #[error("cannot use {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line is no record.
    #[error("{path}, line {line}: no metrics record ({source})")]
    Line {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// The open `metrics.jsonl` of a run.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Opens the file at `path` with the records of rounds up to `rounds` alone; `None` starts
    /// anew.
    ///
    /// # Errors
    /// When the file cannot be read or written, or a line other than the last is no record.
    pub fn open(path: &Path, rounds: Option<u32>) -> Result<Self, JournalError> {
        let io = |source| JournalError::Io { path: path.to_owned(), source };
        let mut kept = Vec::new();
        if let Some(rounds) = rounds {
            // The lines are kept byte by byte: writing a parsed number again may change it.
            for_each_line(path, |line, record| {
                if record.round() <= rounds {
                    kept.extend_from_slice(line);
                    kept.push(b'\n');
                }
            })?;
        }
        write_atomically(path, &kept).map_err(io)?;
        let file = OpenOptions::new().append(true).open(path).map_err(io)?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Appends one record.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn append(&mut self, record: &Record) -> Result<(), JournalError> {
        let mut line = serde_json::to_vec(record).map_err(|error| self.io(error.into()))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(|error| self.io(error))
    }

    /// Waits until everything appended is on the disk.
    ///
    /// # Errors
    /// When the system reports a failed write.
    pub fn sync(&mut self) -> Result<(), JournalError> {
        self.file.sync_data().map_err(|error| self.io(error))
    }

    fn io(&self, source: io::Error) -> JournalError {
        JournalError::Io { path: self.path.clone(), source }
    }
}

/// The records of the file at `path`; none where there is no file. A last line without its end is
/// what a kill leaves and is passed over.
///
/// # Errors
/// When the file cannot be read, or a whole line is no record.
pub fn read(path: &Path) -> Result<Vec<Record>, JournalError> {
    let mut records = Vec::new();
    for_each_line(path, |_, record| records.push(record))?;
    Ok(records)
}

fn for_each_line(path: &Path, mut visit: impl FnMut(&[u8], Record)) -> Result<(), JournalError> {
    let io = |source| JournalError::Io { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error)),
    };
    let mut reader = BufReader::new(file);
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        reader.read_until(b'\n', &mut bytes).map_err(io)?;
        if bytes.pop_if(|last| *last == b'\n').is_none() {
            break;
        }
        let record = serde_json::from_slice(&bytes).map_err(|source| JournalError::Line {
            path: path.to_owned(),
            line,
            source,
        })?;
        visit(&bytes, record);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluation(round: u32) -> Record {
        let score = Score {
            loss: 1.5,
            token_accuracy: 0.25,
            rows: 4,
            supervised_tokens: 32,
            ..Score::default()
        };
        Record::Evaluation(EvaluationRecord {
            round,
            score,
            rows_skipped: 0,
            groups: BTreeMap::from([("a \"quoted\" group".to_owned(), score)]),
            answers: Vec::new(),
            seconds: 0.5,
        })
    }

    fn journal_of(rounds: &[u32]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut journal = Journal::open(&path, None).unwrap();
        for &round in rounds {
            journal.append(&evaluation(round)).unwrap();
        }
        journal.sync().unwrap();
        (folder, path)
    }

    #[test]
    fn what_is_written_reads_back() {
        let (_folder, path) = journal_of(&[0, 1, 2]);
        assert_eq!(read(&path).unwrap(), [evaluation(0), evaluation(1), evaluation(2)]);
    }

    #[test]
    fn resuming_drops_later_rounds_and_a_torn_line() {
        let (_folder, path) = journal_of(&[0, 1, 2]);
        let whole = std::fs::read(&path).unwrap();
        for torn in ["{\"kind\":\"rou", "{\"kind\":\"round\",\"round\":2}", ""] {
            std::fs::write(&path, [&whole, torn.as_bytes()].concat()).unwrap();
            let mut journal = Journal::open(&path, Some(1)).unwrap();
            journal.append(&evaluation(2)).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), whole);
        }
    }

    #[test]
    fn resuming_keeps_numbers_digit_by_digit() {
        let (_folder, path) = journal_of(&[0]);
        // serde_json's fast parser reads this number one bit off.
        let text = std::fs::read_to_string(&path).unwrap().replace("1.5", "4.7152257937172996e-5");
        std::fs::write(&path, &text).unwrap();
        Journal::open(&path, Some(0)).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn a_damaged_line_is_named() {
        let (_folder, path) = journal_of(&[0, 1]);
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.insert_str(0, "{\"kind\":\"party\"}\n");
        std::fs::write(&path, text).unwrap();
        let error = Journal::open(&path, Some(1)).unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl, line 1"), "{error}");
    }
}
