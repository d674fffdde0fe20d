//! BIG-Bench Hard: 27 tasks, answered after three worked examples.

use std::collections::HashMap;

use serde::Deserialize;

use super::choice::mean_of_groups;
use crate::evaluate::data::DataFolder;
use crate::evaluate::grading::{GradeError, Grader, Grading, Verdict};
use crate::evaluate::metrics::bbh_answer;
use crate::evaluate::suite::{
    Asking, Card, Graded, Item, Metric, Prompt, Question, Scoring, Suite, SuiteError, SuiteOptions,
    Wrapping, Writing, means,
};

/// The suite.
pub struct Bbh;

#[derive(Deserialize)]
struct Row {
    task: String,
    input: String,
    target: String,
}

#[derive(Deserialize)]
struct PromptRow {
    task: String,
    prompt: String,
}

/// The instruction and the first `shots` examples of a task's chain-of-thought prompt, and how many
/// there are.
///
/// The file begins with a notice to those who gather training data, up to a line of dashes.
fn header(prompt: &str, shots: usize) -> (String, usize) {
    let text = prompt.split_once("-----\n").map_or(prompt, |(_, text)| text);
    let mut parts = text.split("\n\nQ: ");
    let mut header = parts.next().unwrap_or("").trim().to_owned();
    let mut taken = 0;
    for example in parts.take(shots) {
        header = format!("{header}\n\nQ: {}", example.trim_end());
        taken += 1;
    }
    (header, taken)
}

struct Exact {
    target: String,
}

impl Grader for Exact {
    fn grade(&self, answers: &[String], _grading: &mut Grading) -> Result<Verdict, GradeError> {
        let text = answers.first().map_or("", String::as_str);
        let found = bbh_answer(text).unwrap_or("");
        let verdict = Verdict::right_or_wrong("exact_match", found == self.target);
        Ok(verdict.shown(&self.target, found))
    }
}

impl Suite for Bbh {
    fn card(&self) -> Card {
        Card {
            name: "bbh",
            family: "general",
            about: "27 hard tasks of BIG-bench, three-shot chain of thought",
            metrics: &["exact_match", "task_mean_exact_match"],
            parts: &["task"],
            data: &["bbh/examples", "bbh/cot_prompts"],
            scoring: Scoring::Generation,
            wrapping: Wrapping::Plain,
            shots: (3, 3),
        }
    }

    fn items(&self, data: &DataFolder, options: &SuiteOptions) -> Result<Vec<Item>, SuiteError> {
        let prompts = data.rows::<PromptRow>("bbh/cot_prompts")?;
        let headers: HashMap<_, _> =
            prompts.into_iter().map(|p| (p.task, header(&p.prompt, options.shots))).collect();
        let rows = data.rows::<Row>("bbh/examples")?;
        let items = rows.into_iter().enumerate().map(|(number, row)| {
            let (header, shots) = headers.get(&row.task).ok_or_else(|| SuiteError::Question {
                suite: "bbh".to_owned(),
                problem: format!("bbh/cot_prompts has no prompt for the task {}", row.task),
            })?;
            let text = format!("{header}\n\nQ: {}\nA: Let's think step by step.", row.input);
            Ok(Item {
                id: number.to_string(),
                groups: vec![format!("task:{}", row.task)],
                about: None,
                shots: *shots,
                question: Question::Writing(Writing {
                    asking: Asking::Once(Prompt::same(text)),
                    max_tokens: 512,
                    stop: vec!["\n\nQ:".to_owned(), "Q:".to_owned()],
                    stop_plain: vec![],
                    temperature: 0.0,
                    samples: 1,
                    grader: Box::new(Exact { target: row.target }),
                }),
            })
        });
        items.collect()
    }

    fn metrics(&self, graded: &[Graded], _options: &SuiteOptions) -> Vec<Metric> {
        let mut metrics = means(graded);
        metrics.extend(mean_of_groups(graded, "exact_match", "task:", "task_mean_exact_match"));
        metrics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_are_taken_from_the_prompt_file_without_its_notice() {
        let prompt = "notice\n-----\nDo it.\n\nQ: a\nA: x.\n\nQ: b\nA: y.\n\nQ: c\nA: z.";
        assert_eq!(header(prompt, 0), ("Do it.".to_owned(), 0));
        assert_eq!(header(prompt, 2), ("Do it.\n\nQ: a\nA: x.\n\nQ: b\nA: y.".to_owned(), 2));
        let (all, number) = header(prompt, 9);
        assert!(all.ends_with("A: z.") && number == 3, "{all}");
    }
}
