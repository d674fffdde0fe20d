//! Mathematics: GSM8K and MATH, answered after worked examples.

use serde::Deserialize;

use super::drawn;
use crate::evaluate::data::DataFolder;
use crate::evaluate::grading::{GradeError, Grader, Grading, Verdict};
use crate::evaluate::metrics::{
    gsm8k_flexible, gsm8k_reference, gsm8k_strict, last_boxed, math_answer, math_equivalent,
    numbers_equal,
};
use crate::evaluate::suite::{
    Asking, Card, Item, Prompt, Question, Scoring, Suite, SuiteError, SuiteOptions, Wrapping,
    Writing,
};

/// GSM8K: word problems of primary school.
pub struct Gsm8k;

#[derive(Deserialize)]
struct Gsm8kRow {
    question: String,
    answer: String,
}

struct Number {
    reference: String,
}

impl Grader for Number {
    fn grade(&self, answers: &[String], _grading: &mut Grading) -> Result<Verdict, GradeError> {
        let text = answers.first().map_or("", String::as_str);
        let right =
            |found: Option<&str>| found.is_some_and(|found| numbers_equal(found, &self.reference));
        let flexible = gsm8k_flexible(text);
        let mut verdict = Verdict::right_or_wrong("exact_match", right(flexible));
        let strict = f64::from(u8::from(right(gsm8k_strict(text))));
        verdict.scores.insert("exact_match_strict".to_owned(), strict);
        Ok(verdict.shown(&self.reference, flexible.unwrap_or("")))
    }
}

impl Suite for Gsm8k {
    fn card(&self) -> Card {
        Card {
            name: "gsm8k",
            family: "mathematics",
            about: "word problems of primary school",
            metrics: &["exact_match", "exact_match_strict"],
            parts: &[],
            data: &["gsm8k/test", "gsm8k/train (examples)"],
            scoring: Scoring::Generation,
            wrapping: Wrapping::Plain,
            shots: (5, 8),
        }
    }

    fn items(&self, data: &DataFolder, options: &SuiteOptions) -> Result<Vec<Item>, SuiteError> {
        let (mut examples, mut shots) = (String::new(), 0);
        if options.shots > 0 {
            let train = data.rows::<Gsm8kRow>("gsm8k/train")?;
            for row in drawn(train, options.shots, options.seed) {
                shots += 1;
                examples += &format!("Question: {}\nAnswer: {}\n\n", row.question, row.answer);
            }
        }
        let questions = data.rows_with("gsm8k/test", |row: Gsm8kRow| {
            let reference = gsm8k_reference(&row.answer).ok_or("`answer` has no `####`")?;
            let grader = Box::new(Number { reference: reference.to_owned() });
            let plain = format!("{examples}Question: {}\nAnswer:", row.question);
            let prompt = match options.shots {
                0 => Prompt { plain, message: row.question },
                _ => Prompt::same(plain),
            };
            Ok::<_, String>((prompt, grader))
        })?;
        let items = questions.into_iter().enumerate().map(|(number, (prompt, grader))| Item {
            id: number.to_string(),
            groups: vec![],
            about: None,
            shots,
            question: Question::Writing(Writing {
                asking: Asking::Once(prompt),
                max_tokens: 256,
                stop: vec!["Question:".to_owned(), "\n\n\n".to_owned()],
                stop_plain: vec![],
                temperature: 0.0,
                samples: 1,
                grader,
            }),
        });
        Ok(items.collect())
    }
}

/// MATH: competition problems in five levels and seven subjects.
pub struct CompetitionMath;

#[derive(Deserialize)]
struct MathRow {
    problem: String,
    level: String,
    #[serde(rename = "type")]
    subject: String,
    solution: String,
}

struct Equivalent {
    reference: String,
}

impl Grader for Equivalent {
    fn grade(&self, answers: &[String], _grading: &mut Grading) -> Result<Verdict, GradeError> {
        let found = math_answer(answers.first().map_or("", String::as_str));
        let right = math_equivalent(found, &self.reference);
        Ok(Verdict::right_or_wrong("exact_match", right).shown(&self.reference, found))
    }
}

impl Suite for CompetitionMath {
    fn card(&self) -> Card {
        Card {
            name: "math",
            family: "mathematics",
            about: "competition problems, five levels, seven subjects",
            metrics: &["exact_match"],
            parts: &["level", "subject"],
            data: &["math/test", "math/train (examples)"],
            scoring: Scoring::Generation,
            wrapping: Wrapping::Plain,
            shots: (4, 8),
        }
    }

    fn items(&self, data: &DataFolder, options: &SuiteOptions) -> Result<Vec<Item>, SuiteError> {
        let (mut examples, mut shots) = (String::new(), 0);
        if options.shots > 0 {
            let train = data.rows::<MathRow>("math/train")?;
            for row in drawn(train, options.shots, options.seed) {
                shots += 1;
                examples += &format!("Problem: {}\nSolution: {}\n\n", row.problem, row.solution);
            }
        }
        let questions = data.rows_with("math/test", |row: MathRow| {
            let reference = last_boxed(&row.solution).ok_or("`solution` has no \\boxed answer")?;
            let grader = Box::new(Equivalent { reference: reference.to_owned() });
            let plain = format!("{examples}Problem: {}\nSolution:", row.problem);
            let prompt = match options.shots {
                0 => Prompt {
                    plain,
                    message: format!(
                        "{}\n\nPut your final answer within \\boxed{{}}.",
                        row.problem
                    ),
                },
                _ => Prompt::same(plain),
            };
            let groups = vec![
                row.level.to_lowercase().replace(' ', ":"),
                format!("subject:{}", row.subject),
            ];
            Ok::<_, String>((prompt, groups, grader))
        })?;
        let items =
            questions.into_iter().enumerate().map(|(number, (prompt, groups, grader))| Item {
                id: number.to_string(),
                groups,
                about: None,
                shots,
                question: Question::Writing(Writing {
                    asking: Asking::Once(prompt),
                    max_tokens: 512,
                    stop: vec!["Problem:".to_owned()],
                    stop_plain: vec![],
                    temperature: 0.0,
                    samples: 1,
                    grader,
                }),
            });
        Ok(items.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::grading::Tools;
    use crate::evaluate::journal::Journal;

    #[test]
    fn gsm8k_is_graded_strictly_and_flexibly() {
        let grader = Number { reference: "1234".to_owned() };
        let grade = |text: &str| {
            let (mut tools, mut journal) = (Tools::default(), Journal::in_memory());
            let mut grading = Grading::new(&mut tools, &mut journal, "gsm8k", "0");
            let verdict = grader.grade(&[text.to_owned()], &mut grading).unwrap();
            (verdict.scores["exact_match"], verdict.scores["exact_match_strict"])
        };
        assert_eq!(grade("So 1,234 in all."), (1.0, 0.0));
        assert_eq!(grade("So.\n#### 1234"), (1.0, 1.0));
        assert_eq!(grade("#### 1234, or 7"), (0.0, 1.0));
        assert_eq!(grade(""), (0.0, 0.0));
    }
}
