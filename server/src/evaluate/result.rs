//! What a run found: the JSON of `--out`, a table for the terminal, a page to read.

mod page;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::model::Identity;
use super::suite::{Metric, Scoring, Wrapping};

pub use page::page;

/// All of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluationResult {
    /// Version of fleetune.
    pub version: String,
    /// The model and its adapter.
    #[serde(flatten)]
    pub identity: Identity,
    /// When the run, or the last part of it, began: seconds since 1970 in UTC.
    pub started: u64,
    /// Time of all parts of the run together.
    pub seconds: f64,
    /// The suites.
    pub suites: Vec<SuiteResult>,
    /// Suites that wait for their judge; their answers are in the journal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unfinished: Vec<Unfinished>,
}

/// A suite whose judge failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfinished {
    /// The suite's name.
    pub suite: String,
    /// What the judge failed of.
    pub problem: String,
}

impl std::fmt::Display for Unfinished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: not finished, {}", self.suite, self.problem)
    }
}

/// All of a suite.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SuiteResult {
    /// The suite's name.
    pub suite: String,
    /// Its family.
    pub family: String,
    /// How its questions were answered.
    pub scoring: Scoring,
    /// How prompts were wrapped.
    pub template: Wrapping,
    /// The first prompt, as the model read it.
    pub prompt: String,
    /// Examples in prompts.
    pub shots: usize,
    /// Questions asked.
    pub rows: usize,
    /// Questions the suite has.
    pub rows_in_suite: usize,
    /// Questions left out because the model was trained on their texts.
    pub rows_seen: usize,
    /// Seed of the sample of questions, and of chance in answers.
    pub seed: u64,
    /// Who judged.
    pub judge: Option<String>,
    /// Prompts whose beginning did not fit the model.
    pub cut: usize,
    /// Answers that could not be graded, by reason.
    pub not_run: BTreeMap<String, usize>,
    /// Time of answering and grading.
    pub seconds: f64,
    /// Questions answered in a second, grading apart.
    pub rows_per_second: f64,
    /// The numbers.
    pub metrics: Vec<Metric>,
    /// Wrong answers, for the page; all answers are in the journal.
    #[serde(skip)]
    pub wrong: Vec<Example>,
}

/// An answer to look at.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Example {
    /// The question's name.
    pub id: String,
    /// What the model read.
    pub prompt: String,
    /// What it wrote.
    pub answer: String,
    /// What would have been right.
    pub expected: String,
    /// What was understood, or how the answer failed.
    pub understood: String,
}

impl SuiteResult {
    /// The numbers about all of the suite.
    pub fn overall(&self) -> impl Iterator<Item = &Metric> {
        self.metrics.iter().filter(|metric| metric.group.is_none())
    }

    /// The numbers about parts of the suite.
    pub fn parts(&self) -> impl Iterator<Item = &Metric> {
        self.metrics.iter().filter(|metric| metric.group.is_some())
    }

    /// How the suite was asked, in a line.
    pub fn manner(&self) -> String {
        let scoring = match self.scoring {
            Scoring::LogLikelihood => "log-likelihood",
            Scoring::Generation => "generation",
            Scoring::Judge => "judge",
            Scoring::HeldOut => "held-out answers",
        };
        let shots = match self.shots {
            0 => String::new(),
            n => format!(", {n}-shot"),
        };
        format!("{scoring}, {}{shots}", self.template.name())
    }
}

/// A number with its standard error, for people.
pub fn shown(metric: &Metric) -> String {
    match metric.standard_error {
        Some(error) => format!("{:.4} ± {:.4}", metric.value, error.value()),
        None => format!("{:.4}", metric.value),
    }
}

/// The numbers about whole suites as a table for a terminal, notes below it.
pub fn table(result: &EvaluationResult) -> String {
    let mut rows = vec![["suite", "metric", "value", "rows", "how"].map(str::to_owned)];
    for suite in &result.suites {
        for (number, metric) in suite.overall().enumerate() {
            let first = number == 0;
            rows.push([
                if first { suite.suite.clone() } else { String::new() },
                metric.name.clone(),
                shown(metric),
                metric.rows.to_string(),
                if first { suite.manner() } else { String::new() },
            ]);
        }
        if suite.overall().next().is_none() {
            let none = "nothing could be graded".to_owned();
            rows.push([suite.suite.clone(), none, String::new(), "0".to_owned(), suite.manner()]);
        }
    }
    let mut widths = [0; 5];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut lines: Vec<String> = rows
        .iter()
        .map(|row| {
            let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        })
        .collect();
    for suite in &result.suites {
        lines.extend(suite.notes().map(|note| format!("{}: {note}", suite.suite)));
    }
    lines.extend(result.unfinished.iter().map(ToString::to_string));
    lines.join("\n")
}

impl SuiteResult {
    /// What a reader of the numbers must know.
    fn notes(&self) -> impl Iterator<Item = String> {
        let seen = (self.rows_seen > 0)
            .then(|| format!("{} questions left out: trained on their texts", self.rows_seen));
        let unseen = self.rows_in_suite - self.rows_seen.min(self.rows_in_suite);
        let sample = (self.rows < unseen).then(|| {
            format!("a sample of {} of {unseen} questions (seed {})", self.rows, self.seed)
        });
        let cut = (self.cut > 0)
            .then(|| format!("the beginning of {} prompts did not fit the model", self.cut));
        let not_run = self.not_run.iter().map(|(reason, n)| format!("{n} not counted: {reason}"));
        seen.into_iter().chain(sample).chain(cut).chain(not_run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::metrics::StandardError;
    use crate::training::ComputePrecision;

    pub(super) fn result() -> EvaluationResult {
        let metric = |name: &str, group: Option<&str>| Metric {
            name: name.to_owned(),
            group: group.map(str::to_owned),
            value: 0.25,
            standard_error: Some(StandardError::Binomial(0.0125)),
            rows: 8,
        };
        let suite = SuiteResult {
            suite: "mmlu".to_owned(),
            family: "general".to_owned(),
            scoring: Scoring::LogLikelihood,
            template: Wrapping::Plain,
            prompt: "1 < 2?\nAnswer:".to_owned(),
            shots: 5,
            rows: 8,
            rows_in_suite: 100,
            rows_seen: 0,
            seed: 7,
            judge: None,
            cut: 1,
            not_run: BTreeMap::from([("Go is not run: go is not installed".to_owned(), 2)]),
            seconds: 4.0,
            rows_per_second: 2.0,
            metrics: vec![metric("accuracy", None), metric("accuracy", Some("group:STEM"))],
            wrong: vec![Example {
                id: "3".to_owned(),
                prompt: "<b>?".to_owned(),
                ..Example::default()
            }],
        };
        EvaluationResult {
            version: "0".to_owned(),
            identity: Identity {
                model: "m".to_owned(),
                model_sha256: "abc".to_owned(),
                adapter: None,
                adapter_sha256: None,
                settings_sha256: String::new(),
                precision: ComputePrecision::F32,
            },
            started: 1,
            seconds: 4.0,
            suites: vec![suite],
            unfinished: Vec::new(),
        }
    }

    #[test]
    fn the_table_shows_whole_suites_and_what_to_know_about_them() {
        assert_eq!(
            table(&result()),
            "suite  metric    value            rows  how\n\
             mmlu   accuracy  0.2500 ± 0.0125  8     log-likelihood, plain, 5-shot\n\
             mmlu: a sample of 8 of 100 questions (seed 7)\n\
             mmlu: the beginning of 1 prompts did not fit the model\n\
             mmlu: 2 not counted: Go is not run: go is not installed"
        );
    }

    #[test]
    fn json_says_how_the_numbers_came_about_and_reads_back() {
        let json = serde_json::to_value(result()).unwrap();
        assert_eq!(json["model_sha256"], "abc");
        assert_eq!(json["precision"], "f32");
        let suite = &json["suites"][0];
        assert_eq!(
            (&suite["template"], &suite["scoring"]),
            (&"plain".into(), &"log_likelihood".into())
        );
        assert_eq!(suite["metrics"][0]["standard_error"]["method"], "binomial");
        let mut back: EvaluationResult = serde_json::from_value(json).unwrap();
        back.suites[0].wrong = result().suites[0].wrong.clone();
        assert_eq!(back, result());
    }
}
