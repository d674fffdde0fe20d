//! Several runs on the same data, side by side.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::history::History;
use super::table::Table;
use super::text;
use crate::evaluate::result::shown;
use crate::evaluate::suite::Metric;
use crate::simulate::journal::{Answer, EvaluationRecord, Score};

/// Groups are listed up to this number; more would fill the screen.
const MAX_GROUPS: usize = 24;
/// Characters of an answer that a terminal shows.
const ANSWER_CHARACTERS: usize = 240;

/// The base model and what each algorithm made of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// `base` first, then one row per algorithm.
    pub rows: Vec<Row>,
}

/// One adapter's result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// `base` or the algorithm.
    pub name: String,
    /// Score over all held-out rows.
    pub score: Score,
    /// Scores by source or group.
    pub groups: BTreeMap<String, Score>,
    /// Encoded bytes from clients to the server.
    pub bytes_up: u64,
    /// Encoded bytes from the server to clients.
    pub bytes_down: u64,
    /// Tokens that clients processed.
    pub tokens: u64,
    /// Seconds of the run.
    pub seconds: f64,
    /// Answers to held-out prompts; the same prompts in every row.
    pub answers: Vec<Answer>,
    /// The main number of each suite, by the suite's name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub suites: BTreeMap<String, Metric>,
}

impl Row {
    /// The suite's main number, where that is this metric, for people.
    pub fn suite(&self, suite: &str, metric: &str) -> Option<String> {
        self.suites.get(suite).filter(|number| number.name == metric).map(shown)
    }

    /// `trained` says whether the run's work counts, or only what was there before.
    fn new(name: &str, evaluation: &EvaluationRecord, run: &History, trained: bool) -> Self {
        let history = trained.then_some(run);
        let suites = run.suites_at(evaluation.round);
        Self {
            suites: suites
                .filter_map(|s| Some((s.suite.clone(), s.overall().next()?.clone())))
                .collect(),
            name: name.to_owned(),
            score: evaluation.score,
            groups: evaluation.groups.clone(),
            bytes_up: history.map_or(0, History::bytes_up),
            bytes_down: history.map_or(0, History::bytes_down),
            tokens: history.map_or(0, History::tokens),
            seconds: history.map_or(0.0, History::seconds),
            answers: evaluation.answers.clone(),
        }
    }
}

impl Comparison {
    /// Compares runs, each with its algorithm's name. The base row is the first run's evaluation
    /// before training; a run without evaluations has no row.
    pub fn of<'a>(runs: impl IntoIterator<Item = (&'a str, &'a History)> + Clone) -> Self {
        let mut histories = runs.clone().into_iter();
        let base = histories
            .find_map(|(_, history)| Some(Row::new("base", history.before()?, history, false)));
        let mut rows: Vec<Row> = base.into_iter().collect();
        for (name, history) in runs {
            if let Some(after) = history.after() {
                rows.push(Row::new(name, after, history, true));
            }
        }
        Self { rows }
    }

    /// What the rows' accuracy is called.
    pub fn accuracy_name(&self) -> &'static str {
        self.rows.first().map_or(Score::default(), |row| row.score).accuracy().0
    }

    /// Names of the groups, where there are few enough to list.
    pub fn groups(&self) -> Vec<&str> {
        let Some(first) = self.rows.first() else { return Vec::new() };
        let names: Vec<&str> = first.groups.keys().map(String::as_str).collect();
        if names.len() > MAX_GROUPS { Vec::new() } else { names }
    }

    /// The table for a terminal: one line per adapter.
    pub fn table(&self) -> String {
        let accuracy = self.accuracy_name();
        let mut table = Table::new(["adapter", "held-out loss", accuracy, "uploaded", "time"]);
        for row in &self.rows {
            let mut cells = vec![
                row.name.clone(),
                text::loss(row.score.loss),
                text::percent(row.score.accuracy().1),
            ];
            if row.tokens > 0 {
                cells.push(text::bytes(row.bytes_up));
                cells.push(text::duration(row.seconds));
            }
            table.row(cells);
        }
        table.render()
    }

    /// Held-out loss by group for a terminal: one line per group, one column per adapter; `None`
    /// where there are no groups.
    pub fn group_table(&self) -> Option<String> {
        let groups = self.groups();
        let names = self.rows.iter().map(|row| row.name.as_str());
        let mut table = Table::new(["held-out loss"].into_iter().chain(names));
        for group in &groups {
            let losses = self.rows.iter().map(|row| {
                let score = row.groups.get(*group);
                score.map_or_else(String::new, |score| text::loss(score.loss))
            });
            table.row([(*group).to_owned()].into_iter().chain(losses));
        }
        (!groups.is_empty()).then(|| table.render())
    }

    /// The suites' names and the names of their main numbers: a suite has several where not all rows
    /// have the same one, as where a judge rated nothing.
    pub fn suites(&self) -> Vec<(&str, &str)> {
        let mut names = Vec::new();
        for (suite, metric) in self.rows.iter().flat_map(|row| &row.suites) {
            let name = (suite.as_str(), metric.name.as_str());
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// The suites' main numbers for a terminal: one line per suite, one column per adapter; `None`
    /// where no suite was asked.
    pub fn suite_table(&self) -> Option<String> {
        let suites = self.suites();
        let names = self.rows.iter().map(|row| row.name.as_str());
        let mut table = Table::new(["suite"].into_iter().chain(names));
        for (suite, metric) in &suites {
            let values = self.rows.iter().map(|row| row.suite(suite, metric));
            let values = values.map(Option::unwrap_or_default);
            table.row([format!("{suite} {metric}")].into_iter().chain(values));
        }
        (!suites.is_empty()).then(|| table.render())
    }

    /// Prompts with every row's answer, for a terminal; at most `prompts` of them.
    pub fn answers(&self, prompts: usize) -> String {
        let Some(first) = self.rows.first() else { return String::new() };
        let width = self.rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
        let width = width.max("expected".len());
        let mut lines = Vec::new();
        for (i, asked) in first.answers.iter().take(prompts).enumerate() {
            let group =
                asked.group.as_ref().map_or_else(String::new, |group| format!(" ({group})"));
            lines.push(format!("Prompt{group}: {}", one_line(&asked.prompt)));
            lines.push(format!("  {:<width$}  {}", "expected", one_line(&asked.expected)));
            for row in &self.rows {
                let answer = row.answers.get(i).map_or("", |answer| answer.answer.as_str());
                lines.push(format!("  {:<width$}  {}", row.name, one_line(answer)));
            }
        }
        lines.join("\n")
    }
}

/// Text on one line of bounded length, without control characters that could drive a terminal.
fn one_line(text: &str) -> String {
    let mut words = String::new();
    for word in text.split_whitespace() {
        if !words.is_empty() {
            words.push(' ');
        }
        words.extend(word.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }));
    }
    if words.chars().count() > ANSWER_CHARACTERS {
        words = words.chars().take(ANSWER_CHARACTERS).collect();
        words.push('…');
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::journal::Record;

    fn history(before: f64, after: f64) -> History {
        let evaluation = |round, loss| {
            let score = Score {
                loss,
                token_accuracy: 0.5,
                rows: 2,
                supervised_tokens: 9,
                ..Score::default()
            };
            let answer = Answer {
                group: Some("sums".into()),
                prompt: "1 + 1?\nShort.".into(),
                expected: "2".into(),
                answer: format!("{loss}\u{1b}[31m"),
            };
            Record::Evaluation(EvaluationRecord {
                rows_skipped: 0,
                round,
                score,
                groups: BTreeMap::from([("sums".into(), score)]),
                answers: vec![answer],
                seconds: 0.1,
            })
        };
        [evaluation(0, before), evaluation(3, after)].into_iter().collect()
    }

    #[test]
    fn a_number_stands_in_the_line_of_its_own_name() {
        let (local, fedavg) = (history(2.5, 2.0), history(2.5, 1.0));
        let mut comparison = Comparison::of([("local:0", &local), ("fedavg", &fedavg)]);
        let number = |name: &str, value| Metric {
            name: name.to_owned(),
            group: None,
            value,
            standard_error: None,
            rows: 4,
        };
        // The base model was not asked, and one adapter's answers were not rated.
        comparison.rows[1].suites.insert("mt-bench".to_owned(), number("rated_1", 0.0));
        comparison.rows[2].suites.insert("mt-bench".to_owned(), number("rating", 7.0));
        assert_eq!(comparison.suites(), [("mt-bench", "rated_1"), ("mt-bench", "rating")]);
        let table = comparison.suite_table().unwrap();
        let numbers = |name: &str| {
            let line = table.lines().find(|line| line.contains(&format!("mt-bench {name} ")));
            line.unwrap().split_whitespace().skip(2).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(
            (numbers("rated_1"), numbers("rating")),
            (vec!["0.0000".to_owned()], vec!["7.0000".to_owned()])
        );
    }

    #[test]
    fn the_table_has_the_base_model_once_and_a_row_per_algorithm() {
        let (local, fedavg) = (history(2.5, 2.0), history(2.5, 1.0));
        let comparison = Comparison::of([("local:0", &local), ("fedavg", &fedavg)]);
        let names: Vec<_> = comparison.rows.iter().map(|row| row.name.as_str()).collect();
        assert_eq!(names, ["base", "local:0", "fedavg"]);
        let table = comparison.table();
        assert!(table.contains("2.500") && table.contains("1.000"));
        assert_eq!(table.lines().count(), 5);
        let groups = comparison.group_table().unwrap();
        assert_eq!(groups.lines().count(), 3);
        assert!(groups.contains("fedavg") && groups.contains("sums"));
    }

    #[test]
    fn answers_are_one_line_each_and_cannot_drive_the_terminal() {
        let run = history(2.5, 1.0);
        let text = Comparison::of([("fedavg", &run)]).answers(4);
        assert_eq!(text.lines().count(), 4);
        assert!(text.contains("1 + 1? Short."));
        assert!(!text.contains('\u{1b}'));
    }
}
