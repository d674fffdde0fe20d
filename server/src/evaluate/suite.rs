//! What a suite is: questions for a model, and what their answers are worth.

use std::collections::BTreeMap;
use std::str::FromStr;

use fleetune_core::data::{Template, UnknownTemplate};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::data::{DataError, DataFolder};
use super::grading::{Grader, Verdict};
use super::metrics::{StandardError, binomial, of_mean};
use super::model::ModelError;

/// What a model is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// As a text to be continued: the format of the literature, its examples included.
    pub plain: String,
    /// As a message to an assistant, for the templates of instruction-tuned models.
    pub message: String,
}

impl Prompt {
    /// One text for both.
    pub fn same(text: impl Into<String>) -> Self {
        let plain = text.into();
        Self { message: plain.clone(), plain }
    }
}

/// How a prompt is wrapped before the model sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Wrapping {
    /// Not at all: the model continues the text.
    Plain,
    /// As an instruction, in a template.
    In(Template),
}

impl Wrapping {
    /// The name on the command line and in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::In(template) => template.name(),
        }
    }
}

impl From<Wrapping> for String {
    fn from(wrapping: Wrapping) -> Self {
        wrapping.name().to_owned()
    }
}

impl TryFrom<String> for Wrapping {
    type Error = UnknownTemplate;

    fn try_from(name: String) -> Result<Self, UnknownTemplate> {
        name.parse()
    }
}

impl FromStr for Wrapping {
    type Err = UnknownTemplate;

    fn from_str(name: &str) -> Result<Self, UnknownTemplate> {
        if name == "plain" { Ok(Self::Plain) } else { name.parse().map(Self::In) }
    }
}

/// How a multiple-choice question is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scoring {
    /// By the likeliest option.
    LogLikelihood,
    /// By what the model writes.
    Generation,
    /// By what the model writes, and a judge's opinion of it.
    Judge,
    /// The loss on answers that are known, and what the model writes in their place.
    HeldOut,
}

/// One question of a suite.
pub struct Item {
    /// Names it within its suite, the same in every run.
    pub id: String,
    /// Parts of the suite it belongs to, for which metrics are given too (`group:STEM`).
    pub groups: Vec<String>,
    /// The text that the question is about, where training data may hold it too.
    pub about: Option<String>,
    /// Examples before the question: no more than the data hold.
    pub shots: usize,
    /// What is asked.
    pub question: Question,
}

/// What is asked, and how the answer is read.
pub enum Question {
    /// One of several options.
    Choice(Choice),
    /// A text, or several.
    Writing(Writing),
}

/// A multiple-choice question.
pub struct Choice {
    /// The question, for scoring by log-likelihood.
    pub prompt: Prompt,
    /// The options, as they continue the prompt, without a blank before them.
    pub options: Vec<String>,
    /// The right one.
    pub gold: usize,
    /// How to ask for a written answer; without it the question is always scored by
    /// log-likelihood.
    pub written: Option<Written>,
}

/// A multiple-choice question asked for a written answer.
pub struct Written {
    /// The question.
    pub prompt: Prompt,
    /// Finds the option in the answer; given the number of options.
    pub read: fn(&str, usize) -> Option<usize>,
}

/// A question answered in free text.
pub struct Writing {
    /// What is said to the model.
    pub asking: Asking,
    /// Most tokens of an answer.
    pub max_tokens: usize,
    /// Texts that end an answer.
    pub stop: Vec<String>,
    /// Texts that end an answer where the model continues the prompt itself. In a template they may
    /// stand inside the answer, as a function's first line does in a block of code.
    pub stop_plain: Vec<String>,
    /// Chance in the answers; 0 is none.
    pub temperature: f64,
    /// Independent answers to draw; counts only where one question is asked.
    pub samples: usize,
    /// Says what the answers are worth.
    pub grader: Box<dyn Grader>,
}

/// What is said to the model in a writing task.
pub enum Asking {
    /// One question.
    Once(Prompt),
    /// Several turns of one conversation, each in view of the earlier ones and their answers.
    Turns(Vec<String>),
    /// A question, and after its answer a new conversation that begins with a question made of it.
    Then(Prompt, Box<dyn Fn(&str) -> Prompt + Send + Sync>),
}

/// A verdict and the parts of the suite that it counts for.
pub struct Graded<'a> {
    /// The item's groups.
    pub groups: &'a [String],
    /// Its verdict.
    pub verdict: &'a Verdict,
}

/// A number about a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// What it measures.
    pub name: String,
    /// The part of the suite it is about; `None` for all of it.
    pub group: Option<String>,
    /// The number.
    pub value: f64,
    /// How far it may be from the number on unlimited rows.
    pub standard_error: Option<StandardError>,
    /// Rows it is made of.
    pub rows: usize,
}

/// What a suite is about, for people.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Card {
    /// The suite's name on the command line.
    pub name: &'static str,
    /// The group it belongs to, which can be asked for as a whole.
    pub family: &'static str,
    /// What it asks, in a few words.
    pub about: &'static str,
    /// Names of all metrics that it can have, the most important one first.
    pub metrics: &'static [&'static str],
    /// Kinds of parts for which metrics are given too (`subject`, of the group `subject:anatomy`).
    pub parts: &'static [&'static str],
    /// Files of the data folder it reads.
    pub data: &'static [&'static str],
    /// How its questions are answered unless asked otherwise.
    pub scoring: Scoring,
    /// How its prompts are wrapped unless asked otherwise.
    pub wrapping: Wrapping,
    /// Examples in the prompt unless asked otherwise, and at most.
    pub shots: (usize, usize),
}

/// What a run asks of a suite.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SuiteOptions {
    /// Most questions to ask; a seeded sample of the suite's.
    pub limit: Option<usize>,
    /// Examples in the prompt.
    pub shots: usize,
    /// Where the chance comes from.
    pub seed: u64,
    /// Programs to draw for each programming problem.
    pub samples: usize,
    /// Chance in programs; `None` for 0 with one program and 0.8 with more.
    pub temperature: Option<f64>,
}

/// Questions and how their answers make metrics.
pub trait Suite: Send + Sync {
    /// What it is about.
    fn card(&self) -> Card;

    /// Its questions, all of them, in the data's order.
    ///
    /// # Errors
    /// When the data are missing or wrong.
    fn items(&self, data: &DataFolder, options: &SuiteOptions) -> Result<Vec<Item>, SuiteError>;

    /// Its metrics over graded answers.
    fn metrics(&self, graded: &[Graded], options: &SuiteOptions) -> Vec<Metric> {
        let _ = options;
        means(graded)
    }
}

/// A suite could not be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SuiteError {
    /// Its data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A question cannot be asked.
    #[error("{suite}: {problem}")]
    Question {
        /// The suite.
        suite: String,
        /// What is wrong.
        problem: String,
    },
}

/// A seeded sample of at most `limit` items, in their own order.
pub fn sample(items: Vec<Item>, limit: Option<usize>, seed: u64) -> Vec<Item> {
    let Some(limit) = limit.filter(|&limit| limit < items.len()) else { return items };
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let mut kept = vec![false; items.len()];
    order[..limit].iter().for_each(|&i| kept[i] = true);
    items.into_iter().zip(kept).filter_map(|(item, keep)| keep.then_some(item)).collect()
}

/// The groups of the answers, in order of appearance, with `None` for all of them first.
pub fn groups(graded: &[Graded]) -> Vec<Option<String>> {
    let mut groups = vec![None];
    for group in graded.iter().flat_map(|g| g.groups) {
        if !groups.iter().any(|known| known.as_ref() == Some(group)) {
            groups.push(Some(group.clone()));
        }
    }
    groups
}

/// The answers of one group that could be graded.
pub fn members<'a>(
    graded: &'a [Graded<'a>],
    group: &'a Option<String>,
) -> impl Iterator<Item = &'a Verdict> + 'a {
    let counts = move |g: &&Graded| group.as_ref().is_none_or(|group| g.groups.contains(group));
    graded.iter().filter(counts).map(|g| g.verdict).filter(|v| v.not_run.is_none())
}

/// The mean of every score, over all answers and over each group.
pub fn means(graded: &[Graded]) -> Vec<Metric> {
    let mut metrics = Vec::new();
    for group in groups(graded) {
        let mut values: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for verdict in members(graded, &group) {
            for (name, &score) in &verdict.scores {
                values.entry(name).or_default().push(score);
            }
        }
        metrics.extend(values.iter().map(|(name, values)| mean(name, group.clone(), values)));
    }
    metrics
}

/// The mean of `values` as a metric: with a binomial error when they are all 0 or 1.
pub fn mean(name: &str, group: Option<String>, values: &[f64]) -> Metric {
    let rows = values.len();
    let value = values.iter().sum::<f64>() / rows.max(1) as f64;
    let is_share = values.iter().all(|&v| v == 0.0 || v == 1.0);
    let standard_error = if is_share { binomial(value, rows) } else { of_mean(values) };
    Metric { name: name.to_owned(), group, value, standard_error, rows }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(id: usize) -> Item {
        let choice = Choice { prompt: Prompt::same(""), options: vec![], gold: 0, written: None };
        let question = Question::Choice(choice);
        Item { id: id.to_string(), groups: vec![], about: None, shots: 0, question }
    }

    #[test]
    fn a_sample_is_seeded_and_keeps_the_order() {
        let ids = |seed| -> Vec<usize> {
            let items = sample((0..100).map(item).collect(), Some(10), seed);
            items.iter().map(|i| i.id.parse().unwrap()).collect()
        };
        assert_eq!(ids(1).len(), 10);
        assert!(ids(1).is_sorted());
        assert_eq!(ids(1), ids(1));
        assert_ne!(ids(1), ids(2));
        assert_eq!(sample((0..3).map(item).collect(), Some(10), 0).len(), 3);
    }

    #[test]
    fn means_are_given_for_every_group_without_the_answers_that_could_not_be_graded() {
        let right = Verdict::right_or_wrong("accuracy", true);
        let wrong = Verdict::right_or_wrong("accuracy", false);
        let absent = Verdict::not_run("no compiler");
        let (a, b) = (["a".to_owned()], ["b".to_owned()]);
        let graded = [
            Graded { groups: &a, verdict: &right },
            Graded { groups: &b, verdict: &wrong },
            Graded { groups: &b, verdict: &absent },
        ];
        let metrics = means(&graded);
        let seen: Vec<_> = metrics.iter().map(|m| (m.group.as_deref(), m.value, m.rows)).collect();
        assert_eq!(seen, [(None, 0.5, 2), (Some("a"), 1.0, 1), (Some("b"), 0.0, 1)]);
        assert_eq!(metrics[0].standard_error, binomial(0.5, 2));
    }
}
