//! The journal of a run: every answer and every verdict, as soon as it is there.
//!
//! One JSON object a line, written in one piece and flushed. A run that was killed leaves whole
//! lines and perhaps a torn last one, which is dropped. An entry names the question it answers by a
//! hash of all that the model was asked, so that an answer is only ever used for the same question,
//! and the first line names the model: a journal never mixes two.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::model::Identity;
use super::suite::Verdict;

/// A journal cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The file cannot be read or written.
    #[error("cannot use the journal {}: {source}", path.display())]
    Io {
        /// The journal.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another process writes to it.
    #[error("another process is working on {}: wait for it, or choose another --out", path.display())]
    Locked {
        /// The journal.
        path: PathBuf,
    },
    /// The journal is of another model.
    #[error("{} is the journal of {theirs}, not of {ours}: choose another --out, or remove it to begin anew", path.display())]
    OtherModel {
        /// The journal.
        path: PathBuf,
        /// The model it is of.
        theirs: String,
        /// The model now.
        ours: String,
    },
    /// A line is none of ours.
    #[error("{}:{line} is no line of an evaluation's journal ({problem}): choose another --out, or remove it to begin anew", path.display())]
    Line {
        /// The journal.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
}

/// What a model answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Log-probability of each option.
    Scores(Vec<f64>),
    /// Texts: one a turn, or samples.
    Texts(Vec<String>),
}

/// An answer and what it took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answered {
    /// The answer.
    pub answer: Answer,
    /// Whether the beginning of the prompt was cut for want of room.
    pub cut: bool,
    /// Time it took.
    pub seconds: f64,
}

/// A verdict and what it took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// The verdict.
    pub verdict: Verdict,
    /// Who gave it, if it is an opinion.
    pub judge: Option<String>,
    /// Time it took.
    pub seconds: f64,
}

/// Names a question of a suite.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Key {
    /// The suite.
    pub suite: String,
    /// The question's name within the suite.
    pub id: String,
    /// Hash of what the model is asked.
    pub asked: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Entry {
    Model(Identity),
    Answer(Key, Answered),
    Verdict(Key, Judged),
}

/// An open journal.
pub struct Journal {
    /// Where entries go; `None` keeps them in memory only.
    file: Option<(PathBuf, File)>,
    answers: HashMap<Key, Answered>,
    verdicts: HashMap<(Key, Option<String>), Judged>,
}

impl Journal {
    /// A journal that is not kept.
    pub fn in_memory() -> Self {
        Self { file: None, answers: HashMap::new(), verdicts: HashMap::new() }
    }

    /// Opens the journal at `path`, or begins it.
    ///
    /// # Errors
    /// When it is of another model, damaged before its last line, or cannot be read or written.
    pub fn open(path: &Path, identity: &Identity) -> Result<Self, JournalError> {
        let failed = |source| JournalError::Io { path: path.to_owned(), source };
        let mut journal = Self::in_memory();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(JournalError::Locked { path: path.to_owned() });
            }
            // Some network file systems have no locks.
            Err(TryLockError::Error(error)) => {
                tracing::warn!("cannot lock {}: {error}", path.display());
            }
        }
        let whole = journal.read(path, &file, identity)?;
        // Writing goes on after the last whole line.
        file.set_len(whole).map_err(failed)?;
        io::Seek::seek(&mut file, io::SeekFrom::End(0)).map_err(failed)?;
        journal.file = Some((path.to_owned(), file));
        if whole == 0 {
            journal.write(&Entry::Model(identity.clone()))?;
        }
        Ok(journal)
    }

    /// Reads all whole lines; yields their length in bytes.
    fn read(&mut self, path: &Path, file: &File, ours: &Identity) -> Result<u64, JournalError> {
        let mut reader = BufReader::new(file);
        let (mut whole, mut number) = (0, 0);
        let mut line = Vec::new();
        loop {
            line.clear();
            number += 1;
            let read = reader.read_until(b'\n', &mut line);
            let read = read.map_err(|source| JournalError::Io { path: path.to_owned(), source })?;
            if read == 0 || !line.ends_with(b"\n") {
                return Ok(whole);
            }
            let entry = serde_json::from_slice(&line).map_err(|e| JournalError::Line {
                path: path.to_owned(),
                line: number,
                problem: e.to_string(),
            })?;
            match entry {
                Entry::Model(theirs) if number == 1 => {
                    if !theirs.computes_as(ours) {
                        return Err(JournalError::OtherModel {
                            path: path.to_owned(),
                            theirs: theirs.to_string(),
                            ours: ours.to_string(),
                        });
                    }
                }
                Entry::Answer(key, answered) if number > 1 => {
                    self.answers.insert(key, answered);
                }
                Entry::Verdict(key, judged) if number > 1 => {
                    self.verdicts.insert((key, judged.judge.clone()), judged);
                }
                _ => {
                    return Err(JournalError::Line {
                        path: path.to_owned(),
                        line: number,
                        problem: "the model stands on the first line, and there only".to_owned(),
                    });
                }
            }
            whole += read as u64;
        }
    }

    /// The answer to a question, if it was given before.
    pub fn answer(&self, key: &Key) -> Option<&Answered> {
        self.answers.get(key)
    }

    /// The verdict on the answer to a question, by this judge, if it was given before. An answer
    /// that could not be graded then may be now, so that is no verdict.
    pub fn verdict(&self, key: &Key, judge: Option<&str>) -> Option<&Judged> {
        let judged = self.verdicts.get(&(key.clone(), judge.map(str::to_owned)))?;
        judged.verdict.not_run.is_none().then_some(judged)
    }

    /// Keeps an answer.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add_answer(&mut self, key: Key, answered: Answered) -> Result<(), JournalError> {
        self.write(&Entry::Answer(key.clone(), answered.clone()))?;
        self.answers.insert(key, answered);
        Ok(())
    }

    /// Keeps a verdict.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add_verdict(&mut self, key: Key, judged: Judged) -> Result<(), JournalError> {
        self.write(&Entry::Verdict(key.clone(), judged.clone()))?;
        self.verdicts.insert((key, judged.judge.clone()), judged);
        Ok(())
    }

    fn write(&mut self, entry: &Entry) -> Result<(), JournalError> {
        let Some((path, file)) = &mut self.file else { return Ok(()) };
        let written = serde_json::to_vec(entry).map_err(io::Error::from).and_then(|mut line| {
            line.push(b'\n');
            file.write_all(&line)?;
            file.flush()
        });
        written.map_err(|source| JournalError::Io { path: path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::training::ComputePrecision;

    fn identity(sha: &str) -> Identity {
        Identity {
            model: "m".to_owned(),
            model_sha256: sha.to_owned(),
            adapter: None,
            adapter_sha256: None,
            precision: ComputePrecision::F32,
        }
    }

    fn key(id: &str) -> Key {
        Key { suite: "s".to_owned(), id: id.to_owned(), asked: "h".to_owned() }
    }

    fn answered(text: &str) -> Answered {
        Answered { answer: Answer::Texts(vec![text.to_owned()]), cut: false, seconds: 1.0 }
    }

    #[test]
    fn what_was_kept_is_there_after_a_kill_in_the_middle_of_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j.jsonl");
        let mut journal = Journal::open(&path, &identity("a")).unwrap();
        journal.add_answer(key("1"), answered("one")).unwrap();
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&whole[..], b"{\"answer\":[{\"su"].concat()).unwrap();
        let mut journal = Journal::open(&path, &identity("a")).unwrap();
        assert_eq!(journal.answer(&key("1")), Some(&answered("one")));
        journal.add_answer(key("2"), answered("two")).unwrap();
        drop(journal);
        let journal = Journal::open(&path, &identity("a")).unwrap();
        assert_eq!(journal.answer(&key("2")), Some(&answered("two")));
    }

    #[test]
    fn two_runs_cannot_write_to_one_journal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j.jsonl");
        let first = Journal::open(&path, &identity("a")).unwrap();
        let error = Journal::open(&path, &identity("a")).err().unwrap();
        assert!(matches!(error, JournalError::Locked { .. }), "{error}");
        drop(first);
        assert!(Journal::open(&path, &identity("a")).is_ok());
    }

    #[test]
    fn a_journal_in_another_precision_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j.jsonl");
        Journal::open(&path, &identity("a")).unwrap();
        let ours = Identity { precision: ComputePrecision::Bf16, ..identity("a") };
        let error = Journal::open(&path, &ours).err().unwrap();
        assert!(error.to_string().contains("of m, not of m in bf16"), "{error}");
    }

    #[test]
    fn a_journal_of_another_model_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j.jsonl");
        Journal::open(&path, &identity("a")).unwrap();
        let error = Journal::open(&path, &identity("b")).err().unwrap();
        assert!(matches!(error, JournalError::OtherModel { .. }), "{error}");
        std::fs::write(&path, "{\"epoch\": 1}\n").unwrap();
        let error = Journal::open(&path, &identity("a")).err().unwrap();
        assert!(error.to_string().contains("j.jsonl:1"), "{error}");
    }

    #[test]
    fn opinions_of_judges_are_kept_apart_and_missing_ones_are_asked_for_again() {
        let mut journal = Journal::in_memory();
        let judged = |judge: Option<&str>, verdict| Judged {
            verdict,
            judge: judge.map(str::to_owned),
            seconds: 0.0,
        };
        let good = Verdict::right_or_wrong("rating", true);
        journal.add_verdict(key("1"), judged(Some("a"), good)).unwrap();
        journal.add_verdict(key("1"), judged(None, Verdict::not_run("no judge"))).unwrap();
        assert!(journal.verdict(&key("1"), Some("a")).is_some());
        assert!(journal.verdict(&key("1"), Some("b")).is_none());
        assert!(journal.verdict(&key("1"), None).is_none());
    }
}
