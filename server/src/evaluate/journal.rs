//! The journal of a run: every answer, and what grading found out at some cost, as soon as it is
//! there.
//!
//! One JSON object a line, written in one piece and flushed. A run that was killed leaves whole
//! lines and perhaps a torn last one, which is dropped. An entry names the question it answers by a
//! hash of all that was asked, of the model or of a tool of grading, so that an answer is only ever
//! used for the same question. The first line names the model: a journal never mixes two. Verdicts
//! are not kept: they are made anew of answers and findings, by the rules of the day.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::model::Identity;

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
    #[error("{} is the journal of {theirs}, not of {ours} ({difference}): choose another --out, or remove it to begin anew", path.display())]
    OtherModel {
        /// The journal.
        path: PathBuf,
        /// The model it is of.
        theirs: String,
        /// The model now.
        ours: String,
        /// What is different.
        difference: &'static str,
    },
    /// A score is NaN or infinite: a journal could not hold it.
    #[error("an answer to question {id} of {suite} has a score that is not a finite number")]
    NotFinite {
        /// The suite.
        suite: String,
        /// The question.
        id: String,
    },
    /// A line is none of ours.
    #[error("{}:{line} is no line of an evaluation's journal ({problem}): remove that line, or choose another --out to begin anew", path.display())]
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
    /// The answer. Turns of a conversation come one after the other; a later line of the journal has
    /// more of them.
    pub answer: Answer,
    /// Whether the beginning of the prompt was cut for want of room.
    pub cut: bool,
    /// Time it took.
    pub seconds: f64,
}

/// What a tool of grading found, and what it took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// Which tool: a judge's name, a programming language.
    pub tool: String,
    /// What it said.
    pub said: String,
    /// Time it took.
    pub seconds: f64,
}

/// Names a question of a suite, to the model or about its answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Key {
    /// The suite.
    pub suite: String,
    /// The question's name within the suite.
    pub id: String,
    /// Hash of what is asked, and of the tool that is asked.
    pub asked: String,
}

/// The first twelve bytes of SHA-256 over `parts`, each with its length.
pub fn hash<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().iter().take(12).map(|byte| format!("{byte:02x}")).collect()
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Entry {
    Model(Identity),
    Answer(Key, Answered),
    Finding(Key, Finding),
}

/// How the first line begins.
const BEGINNING: &[u8] = b"{\"model\":{";

/// An open journal.
pub struct Journal {
    /// Where entries go; `None` keeps them in memory only.
    file: Option<(PathBuf, File)>,
    answers: HashMap<Key, Answered>,
    findings: HashMap<Key, Finding>,
}

impl Journal {
    /// A journal that is not kept.
    pub fn in_memory() -> Self {
        Self { file: None, answers: HashMap::new(), findings: HashMap::new() }
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
        let (whole, named) = journal.read(path, &file, identity)?;
        // Writing goes on after the last whole line.
        file.set_len(whole).map_err(failed)?;
        io::Seek::seek(&mut file, io::SeekFrom::End(0)).map_err(failed)?;
        journal.file = Some((path.to_owned(), file));
        if !named {
            journal.write(&Entry::Model(identity.clone()))?;
        }
        Ok(journal)
    }

    /// Reads all whole lines; yields their length in bytes, and whether they name the model.
    fn read(
        &mut self,
        path: &Path,
        file: &File,
        ours: &Identity,
    ) -> Result<(u64, bool), JournalError> {
        let mut reader = BufReader::new(file);
        let (mut whole, mut number, mut named) = (0, 0, false);
        let mut line = Vec::new();
        loop {
            line.clear();
            number += 1;
            let read = reader.read_until(b'\n', &mut line);
            let read = read.map_err(|source| JournalError::Io { path: path.to_owned(), source })?;
            let foreign = |problem: &str| JournalError::Line {
                path: path.to_owned(),
                line: number,
                problem: problem.to_owned(),
            };
            if read == 0 || !line.ends_with(b"\n") {
                let ours = line.starts_with(BEGINNING) || BEGINNING.starts_with(&line);
                // A torn line is dropped, but not somebody's file of one line without an end.
                return match named || ours {
                    false => Err(foreign("it names no model")),
                    true => Ok((whole, named)),
                };
            }
            whole += read as u64;
            // An editor may have left some.
            if line.trim_ascii().is_empty() {
                continue;
            }
            let entry = serde_json::from_slice(&line).map_err(|e| foreign(&e.to_string()))?;
            match entry {
                Entry::Model(theirs) if !named => {
                    if !theirs.computes_as(ours) {
                        return Err(JournalError::OtherModel {
                            path: path.to_owned(),
                            theirs: theirs.to_string(),
                            ours: ours.to_string(),
                            difference: theirs.difference(ours),
                        });
                    }
                    named = true;
                }
                Entry::Answer(key, answered) if named => {
                    self.answers.insert(key, answered);
                }
                Entry::Finding(key, finding) if named => {
                    self.findings.insert(key, finding);
                }
                _ => return Err(foreign("the model stands on the first line, and there only")),
            }
        }
    }

    /// The answer to a question, if it was given before.
    pub fn answer(&self, key: &Key) -> Option<&Answered> {
        self.answers.get(key)
    }

    /// What a tool of grading found before.
    pub fn finding(&self, key: &Key) -> Option<&Finding> {
        self.findings.get(key)
    }

    /// Keeps an answer.
    ///
    /// # Errors
    /// When it cannot be written, or has a score that is not finite.
    pub fn add_answer(&mut self, key: Key, answered: Answered) -> Result<(), JournalError> {
        if let Answer::Scores(scores) = &answered.answer
            && !scores.iter().all(|score| score.is_finite())
        {
            return Err(JournalError::NotFinite { suite: key.suite, id: key.id });
        }
        self.write(&Entry::Answer(key.clone(), answered.clone()))?;
        self.answers.insert(key, answered);
        Ok(())
    }

    /// Keeps what a tool of grading found.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add_finding(&mut self, key: Key, finding: Finding) -> Result<(), JournalError> {
        self.write(&Entry::Finding(key.clone(), finding.clone()))?;
        self.findings.insert(key, finding);
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
            settings_sha256: String::new(),
            precision: ComputePrecision::F32,
        }
    }

    fn key(id: &str) -> Key {
        Key { suite: "s".to_owned(), id: id.to_owned(), asked: "h".to_owned() }
    }

    fn answered(text: &str) -> Answered {
        Answered { answer: Answer::Texts(vec![text.to_owned()]), cut: false, seconds: 1.0 }
    }

    /// Begins a journal with one answer.
    fn begin(path: &Path) {
        let mut journal = Journal::open(path, &identity("a")).unwrap();
        journal.add_answer(key("1"), answered("one")).unwrap();
    }

    /// Checks that a journal has its first answer and takes another one.
    fn goes_on(path: &Path) {
        let mut journal = Journal::open(path, &identity("a")).unwrap();
        assert_eq!(journal.answer(&key("1")), Some(&answered("one")));
        journal.add_answer(key("2"), answered("two")).unwrap();
        drop(journal);
        let journal = Journal::open(path, &identity("a")).unwrap();
        assert_eq!(journal.answer(&key("2")), Some(&answered("two")));
    }

    #[test]
    fn what_was_kept_is_there_after_a_kill_in_the_middle_of_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j.jsonl");
        begin(&path);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&whole[..], b"{\"answer\":[{\"su"].concat()).unwrap();
        goes_on(&path);
    }

    #[test]
    fn blank_lines_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j.jsonl");
        begin(&path);
        let lines = std::fs::read_to_string(&path).unwrap().replace('\n', "\n\n \r\n");
        std::fs::write(&path, format!("\n{lines}")).unwrap();
        goes_on(&path);
        std::fs::write(&path, "\n\n").unwrap();
        drop(Journal::open(&path, &identity("a")).unwrap());
        assert!(Journal::open(&path, &identity("b")).is_err(), "the model is named");
    }

    #[test]
    fn a_score_that_is_not_finite_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j.jsonl");
        let mut journal = Journal::open(&path, &identity("a")).unwrap();
        let before = std::fs::read(&path).unwrap();
        for score in [f64::NAN, f64::NEG_INFINITY] {
            let answered = Answered { answer: Answer::Scores(vec![-1.0, score]), ..answered("") };
            let error = journal.add_answer(key("1"), answered.clone()).unwrap_err();
            assert!(error.to_string().contains("not a finite number"), "{error}");
            assert!(Journal::in_memory().add_answer(key("1"), answered).is_err());
        }
        assert_eq!(std::fs::read(&path).unwrap(), before);
        assert_eq!(journal.answer(&key("1")), None);
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
    fn a_file_of_one_line_that_is_no_journal_is_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j.jsonl");
        for foreign in ["notes", "{\"modest\": 1}", "{\"model\": 1}"] {
            std::fs::write(&path, foreign).unwrap();
            let error = Journal::open(&path, &identity("a")).err().unwrap();
            assert!(error.to_string().contains("j.jsonl:1"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), foreign);
        }
        for torn in ["", "{\"mod", "{\"model\":{\"model\":\"m"] {
            std::fs::write(&path, torn).unwrap();
            assert!(Journal::open(&path, &identity("a")).is_ok(), "{torn}");
        }
    }

    #[test]
    fn parts_of_a_question_do_not_run_into_each_other() {
        assert_eq!(hash(["ab", "c"]), hash(["ab", "c"]));
        assert_ne!(hash(["ab", "c"]), hash(["a", "bc"]));
        assert_ne!(hash(["ab"]), hash(["ab", ""]));
    }
}
