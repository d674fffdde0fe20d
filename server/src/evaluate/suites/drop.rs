//! DROP: reading comprehension with counting, sorting and arithmetic.

use serde::Deserialize;

use crate::evaluate::data::DataFolder;
use crate::evaluate::grading::{GradeError, Grader, Grading, Verdict};
use crate::evaluate::metrics::drop_best;
use crate::evaluate::suite::{
    Asking, Card, Item, Prompt, Question, Scoring, Suite, SuiteError, SuiteOptions, Wrapping,
    Writing,
};

/// The suite.
pub struct Drop;

#[derive(Deserialize)]
struct Row {
    context: String,
    ref_text: String,
}

struct Spans {
    accepted: Vec<String>,
}

impl Grader for Spans {
    fn grade(&self, answers: &[String], _grading: &mut Grading) -> Result<Verdict, GradeError> {
        let answer = answers.first().map_or("", |a| a.trim());
        let score = drop_best(answer, self.accepted.iter().map(String::as_str));
        let mut verdict = Verdict::right_or_wrong("exact_match", score.exact_match == 1.0);
        verdict.scores.insert("f1".to_owned(), score.f1);
        Ok(verdict.shown(self.accepted.join(" | "), answer))
    }
}

impl Suite for Drop {
    fn card(&self) -> Card {
        Card {
            name: "drop",
            family: "general",
            about: "reading comprehension with discrete reasoning",
            metrics: &["f1", "exact_match"],
            parts: &[],
            data: &["drop/dev"],
            scoring: Scoring::Generation,
            wrapping: Wrapping::Plain,
            shots: (0, 0),
        }
    }

    fn items(&self, data: &DataFolder, _options: &SuiteOptions) -> Result<Vec<Item>, SuiteError> {
        let rows = data.rows::<Row>("drop/dev")?;
        let items = rows.into_iter().enumerate().map(|(number, row)| Item {
            id: number.to_string(),
            groups: vec![],
            about: None,
            shots: 0,
            question: Question::Writing(Writing {
                asking: Asking::Once(Prompt::same(row.context)),
                max_tokens: 32,
                stop: vec!["\n".to_owned()],
                stop_plain: vec![],
                temperature: 0.0,
                samples: 1,
                grader: Box::new(Spans {
                    accepted: row.ref_text.split('|').map(str::to_owned).collect(),
                }),
            }),
        });
        Ok(items.collect())
    }
}
