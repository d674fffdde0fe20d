//! What answers are worth: graders, their tools, and their verdicts.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::code::{Language, ProgramRunner, RULES, RunResult};
use super::journal::{Finding, Journal, JournalError, Key, hash};
use super::judge::{Judge, JudgeError, Opinion};
use super::sandbox::SandboxError;

/// Says what written answers are worth.
pub trait Grader: Send + Sync {
    /// Grades the answers: one a turn, or the samples of a single question.
    ///
    /// # Errors
    /// When a tool fails. A wrong answer is no error.
    fn grade(&self, answers: &[String], grading: &mut Grading) -> Result<Verdict, GradeError>;
}

/// Tools of grading: what cannot be said by a rule alone.
#[derive(Default)]
pub struct Tools {
    /// Runs programs that a model wrote.
    pub programs: Option<ProgramRunner>,
    /// Gives opinions.
    pub judge: Option<Box<dyn Judge>>,
}

/// The grading of one question: tools, and the journal that remembers what they found.
///
/// A tool is asked the same thing about a question only once; whatever else belongs to a verdict
/// (references, rules) may change between runs, and the verdict changes with it.
pub struct Grading<'a> {
    tools: &'a mut Tools,
    journal: &'a mut Journal,
    suite: &'a str,
    id: &'a str,
    /// How programs ended that were run now, until it is known that this machine runs them.
    programs: Vec<(Key, Finding)>,
    /// Time that tools took, in this run or in an earlier one.
    seconds: f64,
}

impl<'a> Grading<'a> {
    /// The grading of the question `id` of `suite`.
    pub fn new(
        tools: &'a mut Tools,
        journal: &'a mut Journal,
        suite: &'a str,
        id: &'a str,
    ) -> Self {
        Self { tools, journal, suite, id, programs: Vec::new(), seconds: 0.0 }
    }

    /// Time that tools took so far, in this run or in an earlier one.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    /// The judge's opinion on `message`; `None` where there is no judge. One that is withheld is asked
    /// for again in the next run.
    ///
    /// # Errors
    /// When the judge or the journal fails.
    pub fn opinion(&mut self, system: &str, message: &str) -> Result<Option<Opinion>, GradeError> {
        let Some(judge) = &mut self.tools.judge else { return Ok(None) };
        let tool = judge.name();
        let key = key(self.suite, self.id, ["judge", &tool, system, message]);
        if let Some(finding) = self.journal.finding(&key) {
            self.seconds += finding.seconds;
            return Ok(Some(Opinion::Given(finding.said.clone())));
        }
        let start = Instant::now();
        let said = match judge.ask(system, message) {
            Err(JudgeError::Withheld { problem }) => return Ok(Some(Opinion::Withheld(problem))),
            other => other?,
        };
        let finding = self.found(tool, said.clone(), start);
        self.journal.add_finding(key, finding)?;
        Ok(Some(Opinion::Given(said)))
    }

    /// How a program ends; `None` where programs are not run. The journal knows of it after
    /// [`Grading::keep_programs`].
    ///
    /// # Errors
    /// When the sandbox fails.
    pub fn program(
        &mut self,
        language: Language,
        source: &str,
    ) -> Result<Option<RunResult>, GradeError> {
        let Some(programs) = &mut self.tools.programs else { return Ok(None) };
        let key = key(self.suite, self.id, ["program", RULES, language.name(), source]);
        let known = self.journal.finding(&key);
        if let Some((finding, Ok(result))) = known.map(|f| (f, serde_json::from_str(&f.said))) {
            self.seconds += finding.seconds;
            return Ok(Some(result));
        }
        let start = Instant::now();
        let result = programs.run(language, source)?;
        if let Ok(said) = serde_json::to_string(&result) {
            let finding = self.found(language.name().to_owned(), said, start);
            self.programs.push((key, finding));
        }
        Ok(Some(result))
    }

    /// Keeps how programs ended, once one of them shows that this machine runs such programs. What
    /// fails for want of a compiler or a library may do better when that is there.
    ///
    /// # Errors
    /// When the journal fails.
    pub fn keep_programs(&mut self) -> Result<(), GradeError> {
        for (key, finding) in self.programs.drain(..) {
            self.journal.add_finding(key, finding)?;
        }
        Ok(())
    }

    fn found(&mut self, tool: String, said: String, start: Instant) -> Finding {
        let seconds = start.elapsed().as_secs_f64();
        self.seconds += seconds;
        Finding { tool, said, seconds }
    }
}

fn key<const N: usize>(suite: &str, id: &str, asked: [&str; N]) -> Key {
    Key { suite: suite.to_owned(), id: id.to_owned(), asked: hash(asked) }
}

/// A grader's tool failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GradeError {
    /// Running a program.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// Asking the judge.
    #[error(transparent)]
    Judge(#[from] JudgeError),
    /// Keeping what a tool found.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// What an answer is worth.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Scores by name; metrics are made of them.
    pub scores: BTreeMap<String, f64>,
    /// The choice made, for multiple choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choice: Option<Chosen>,
    /// Whether the answer counts as right, where that can be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correct: Option<bool>,
    /// What would have been right, to show.
    #[serde(default)]
    pub expected: String,
    /// What was understood of the answer, to show.
    #[serde(default)]
    pub understood: String,
    /// Why the answer could not be graded on this machine; it then counts nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_run: Option<String>,
}

impl Verdict {
    /// A verdict of one score that is 1 or 0.
    pub fn right_or_wrong(name: &str, right: bool) -> Self {
        let scores = BTreeMap::from([(name.to_owned(), f64::from(u8::from(right)))]);
        Self { scores, correct: Some(right), ..Self::default() }
    }

    /// The same, with what to show a reader.
    pub fn shown(mut self, expected: impl Into<String>, understood: impl Into<String>) -> Self {
        self.expected = expected.into();
        self.understood = understood.into();
        self
    }

    /// An answer that this machine cannot grade.
    pub fn not_run(reason: impl Into<String>) -> Self {
        Self { not_run: Some(reason.into()), ..Self::default() }
    }
}

/// The option that was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chosen {
    /// The right option.
    pub gold: usize,
    /// The likeliest option, or the one that was written; `None` when none was.
    pub raw: Option<usize>,
    /// The likeliest option by log-likelihood per character; `None` for written answers.
    pub normalised: Option<usize>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Agrees, and counts how often it was asked.
    struct Agrees(&'static str, std::sync::Arc<std::sync::atomic::AtomicUsize>);

    impl Judge for Agrees {
        fn name(&self) -> String {
            self.0.to_owned()
        }

        fn ask(&mut self, _system: &str, message: &str) -> Result<String, JudgeError> {
            self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Ok(format!("{message}, says {}", self.0))
        }
    }

    #[test]
    fn a_judge_is_asked_once_and_opinions_of_two_are_kept_apart() {
        let calls = std::sync::Arc::default();
        let mut journal = Journal::in_memory();
        let mut ask = |judge: &'static str, message: &str| {
            let judge: Box<dyn Judge> = Box::new(Agrees(judge, std::sync::Arc::clone(&calls)));
            let mut tools = Tools { judge: Some(judge), ..Tools::default() };
            let mut grading = Grading::new(&mut tools, &mut journal, "s", "1");
            grading.opinion("", message).unwrap().unwrap().to_string()
        };
        assert_eq!(ask("a", "yes"), "yes, says a");
        assert_eq!(ask("a", "yes"), "yes, says a");
        assert_eq!(ask("b", "yes"), "yes, says b");
        assert_eq!(ask("a", "no"), "no, says a");
        assert_eq!(calls.load(std::sync::atomic::Ordering::Relaxed), 3);
    }

    #[test]
    fn without_tools_there_is_neither_opinion_nor_program() {
        let (mut tools, mut journal) = (Tools::default(), Journal::in_memory());
        let mut grading = Grading::new(&mut tools, &mut journal, "s", "1");
        assert!(grading.opinion("", "?").unwrap().is_none());
        assert!(grading.program(Language::Python, "pass").unwrap().is_none());
    }
}
