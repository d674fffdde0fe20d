//! Medical questions: MedQA, MedMCQA and PubMedQA.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::choice::{ACCURACY_AND_F1, by_letter, lettered, with_f1};
use super::{drawn, numbered};
use crate::evaluate::data::DataFolder;
use crate::evaluate::metrics::chosen_word;
use crate::evaluate::suite::{
    Card, Choice, Graded, Item, Metric, Prompt, Scoring, Suite, SuiteError, SuiteOptions, Wrapping,
    Written,
};

/// MedQA: US medical licensing questions with four options.
pub struct MedQa;

#[derive(Deserialize)]
struct MedQaRow {
    question: String,
    options: BTreeMap<String, String>,
    answer_idx: String,
    meta_info: String,
}

impl Suite for MedQa {
    fn card(&self) -> Card {
        Card {
            name: "medqa",
            family: "medicine",
            about: "US medical licensing questions, four options",
            metrics: &["accuracy", "accuracy_norm"],
            parts: &["step"],
            data: &["medqa/us_4_options_test"],
            scoring: Scoring::LogLikelihood,
            wrapping: Wrapping::Plain,
            shots: (0, 0),
        }
    }

    fn items(&self, data: &DataFolder, _options: &SuiteOptions) -> Result<Vec<Item>, SuiteError> {
        let questions = data.rows_with("medqa/us_4_options_test", |row: MedQaRow| {
            let gold = row.options.keys().position(|letter| *letter == row.answer_idx);
            let gold = gold.ok_or_else(|| format!("`answer_idx` is {:?}", row.answer_idx))?;
            let options: Vec<_> = row.options.values().collect();
            let text = format!("Question: {}\n{}\nAnswer:", row.question, lettered(&options));
            let choice = by_letter(Prompt::same(text), options.len(), gold);
            Ok::<_, String>((vec![format!("step:{}", row.meta_info)], choice))
        })?;
        Ok(numbered(questions))
    }
}

/// MedMCQA: questions of Indian medical entrance examinations.
pub struct MedMcqa;

#[derive(Deserialize)]
struct MedMcqaRow {
    question: String,
    cop: usize,
    opa: String,
    opb: String,
    opc: String,
    opd: String,
    subject_name: String,
}

impl Suite for MedMcqa {
    fn card(&self) -> Card {
        Card {
            name: "medmcqa",
            family: "medicine",
            about: "questions of Indian medical entrance examinations, four options",
            metrics: &["accuracy", "accuracy_norm"],
            parts: &["subject"],
            data: &["medmcqa/dev"],
            scoring: Scoring::LogLikelihood,
            wrapping: Wrapping::Plain,
            shots: (0, 0),
        }
    }

    fn items(&self, data: &DataFolder, _options: &SuiteOptions) -> Result<Vec<Item>, SuiteError> {
        let questions = data.rows_with("medmcqa/dev", |row: MedMcqaRow| {
            let gold = row.cop.checked_sub(1).filter(|&gold| gold < 4);
            let gold = gold.ok_or_else(|| format!("`cop` is {}, not 1 to 4", row.cop))?;
            let options = [&row.opa, &row.opb, &row.opc, &row.opd];
            let text =
                format!("Question: {}\nChoices:\n{}\nAnswer:", row.question, lettered(&options));
            let choice = by_letter(Prompt::same(text), 4, gold);
            Ok::<_, String>((vec![format!("subject:{}", row.subject_name)], choice))
        })?;
        Ok(numbered(questions))
    }
}

/// PubMedQA: yes, no or maybe, from the abstract of a paper.
pub struct PubMedQa;

/// The answers, in the order of the options.
const DECISIONS: [&str; 3] = ["yes", "no", "maybe"];

#[derive(Deserialize)]
struct PubMedQaRow {
    #[serde(rename = "QUESTION")]
    question: String,
    #[serde(rename = "CONTEXTS")]
    contexts: Vec<String>,
    final_decision: String,
}

impl PubMedQaRow {
    fn text(&self) -> String {
        format!("Abstract: {}\nQuestion: {}\nAnswer:", self.contexts.join("\n"), self.question)
    }

    fn gold(&self) -> Result<usize, String> {
        let gold = DECISIONS.iter().position(|decision| *decision == self.final_decision);
        gold.ok_or_else(|| format!("`final_decision` is {:?}", self.final_decision))
    }
}

/// The one of the three words that the answer says.
fn read_decision(answer: &str, _options: usize) -> Option<usize> {
    chosen_word(answer, &DECISIONS)
}

impl Suite for PubMedQa {
    fn card(&self) -> Card {
        Card {
            name: "pubmedqa",
            family: "medicine",
            about: "yes, no or maybe from the abstract of a paper",
            metrics: ACCURACY_AND_F1,
            parts: &[],
            data: &["pubmedqa/pqal_test", "pubmedqa/pqal_dev (examples)"],
            scoring: Scoring::LogLikelihood,
            wrapping: Wrapping::Plain,
            shots: (0, 5),
        }
    }

    fn items(&self, data: &DataFolder, options: &SuiteOptions) -> Result<Vec<Item>, SuiteError> {
        let (mut examples, mut shots) = (String::new(), 0);
        if options.shots > 0 {
            let dev = data.rows::<PubMedQaRow>("pubmedqa/pqal_dev")?;
            for row in drawn(dev, options.shots, options.seed) {
                shots += 1;
                examples += &format!("{} {}\n\n", row.text(), row.final_decision);
            }
        }
        let questions = data.rows_with("pubmedqa/pqal_test", |row: PubMedQaRow| {
            let prompt = Prompt::same(format!("{examples}{}", row.text()));
            let written = Some(Written { prompt: prompt.clone(), read: read_decision });
            let options = DECISIONS.map(str::to_owned).to_vec();
            Ok::<_, String>((vec![], Choice { prompt, options, gold: row.gold()?, written }))
        })?;
        let mut items = numbered(questions);
        items.iter_mut().for_each(|item| item.shots = shots);
        Ok(items)
    }

    fn metrics(&self, graded: &[Graded], options: &SuiteOptions) -> Vec<Metric> {
        with_f1(graded, options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_is_a_word_of_its_own() {
        assert_eq!(read_decision("Yes, it is.", 3), Some(0));
        assert_eq!(read_decision("I know nothing", 3), None);
        assert_eq!(read_decision("The answer is maybe", 3), Some(2));
        let late = "There is no difference, so the answer is: **yes**";
        assert_eq!(read_decision(late, 3), Some(0));
    }
}
