//! Open-ended questions whose answers a judge rates from 1 to 10: MT-Bench, Vicuna-Bench and
//! FedLLM-Bench's test prompts.

use std::collections::HashMap;
use std::sync::Arc;

use fleetune_core::data::Template;
use serde::Deserialize;

use crate::evaluate::data::DataFolder;
use crate::evaluate::grading::{GradeError, Grader, Grading, Verdict};
use crate::evaluate::judge::rating;
use crate::evaluate::suite::{
    Asking, Card, Item, Prompt, Question, Scoring, Suite, SuiteError, SuiteOptions, Wrapping,
    Writing,
};

/// One of the sets of questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
// The suites' own names.
#[allow(clippy::enum_variant_names)]
pub enum OpenEnded {
    /// Two turns in eight categories.
    Mt,
    /// One turn in nine categories.
    Vicuna,
    /// Prompts in the manner of FedLLM-Bench's chatbot clients and of WildChat's users.
    FedLlm,
}

/// Categories whose answers are compared with a reference.
const WITH_REFERENCE: [&str; 3] = ["math", "reasoning", "coding"];

#[derive(Deserialize)]
struct QuestionRow {
    question_id: u32,
    category: String,
    turns: Vec<String>,
}

#[derive(Deserialize)]
struct ReferenceRow {
    question_id: u32,
    choices: Vec<ReferenceChoice>,
}

#[derive(Deserialize)]
struct ReferenceChoice {
    turns: Vec<String>,
}

#[derive(Deserialize)]
struct JudgePromptRow {
    name: String,
    system_prompt: String,
    prompt_template: String,
}

#[derive(Deserialize)]
struct InstructionRow {
    instruction: String,
    #[serde(default)]
    language: Option<String>,
}

type JudgePrompts = HashMap<String, JudgePromptRow>;

/// Asks the judge for a rating of every turn.
struct Rated {
    turns: Vec<String>,
    reference: Option<Vec<String>>,
    prompts: Arc<JudgePrompts>,
}

impl Rated {
    /// System message and question for the judge about the turn with this number.
    fn question(&self, turn: usize, answers: &[String]) -> Option<(&str, String)> {
        let math = if self.reference.is_some() { "math-" } else { "" };
        let several = if turn > 0 { "-multi-turn" } else { "" };
        let prompt = self.prompts.get(&format!("single-{math}v1{several}"))?;
        let text = |texts: &[String], i: usize| texts.get(i).cloned().unwrap_or_default();
        let reference = self.reference.as_deref().unwrap_or(&[]);
        let values = [
            ("question", text(&self.turns, 0)),
            ("question_1", text(&self.turns, 0)),
            ("question_2", text(&self.turns, 1)),
            ("answer", text(answers, 0)),
            ("answer_1", text(answers, 0)),
            ("answer_2", text(answers, 1)),
            ("ref_answer_1", text(reference, 0)),
            ("ref_answer_2", text(reference, 1)),
        ];
        Some((&prompt.system_prompt, fill(&prompt.prompt_template, &values)))
    }
}

/// Puts values in place of `{name}`, in one pass: braces in values stay what they are.
fn fill(template: &str, values: &[(&str, String)]) -> String {
    let mut out = String::new();
    let mut rest = template;
    while let Some(open) = rest.find('{') {
        out.push_str(&rest[..open]);
        let inside = &rest[open + 1..];
        let value = inside.find('}').and_then(|close| {
            let (_, value) = values.iter().find(|(name, _)| *name == &inside[..close])?;
            Some((value, close))
        });
        match value {
            Some((value, close)) => {
                out.push_str(value);
                rest = &inside[close + 1..];
            }
            None => {
                out.push('{');
                rest = inside;
            }
        }
    }
    out + rest
}

impl Grader for Rated {
    fn grade(&self, answers: &[String], grading: &mut Grading) -> Result<Verdict, GradeError> {
        let mut verdict = Verdict::default();
        let mut ratings = Vec::new();
        let mut opinions = Vec::new();
        for turn in 0..self.turns.len() {
            let Some((system, question)) = self.question(turn, answers) else {
                return Ok(Verdict::not_run(
                    "mt_bench/judge_prompts lacks a prompt for this question",
                ));
            };
            let Some(opinion) = grading.opinion(system, &question)? else {
                return Ok(Verdict::not_run("no judge was named (--judge-model, or judge_model)"));
            };
            // MT-Bench leaves out what the judge does not rate; how much that is, is told.
            let rated =
                opinion.given().and_then(rating).filter(|rating| (1.0..=10.0).contains(rating));
            verdict
                .scores
                .insert(format!("rated_{}", turn + 1), f64::from(u8::from(rated.is_some())));
            if let Some(rated) = rated {
                verdict.scores.insert(format!("rating_{}", turn + 1), rated);
                ratings.push(rated);
            }
            opinions.push(opinion.to_string());
        }
        if !ratings.is_empty() {
            let mean = ratings.iter().sum::<f64>() / ratings.len() as f64;
            verdict.scores.insert("rating".to_owned(), mean);
            // The worse half is worth a look.
            verdict.correct = Some(mean > 5.0);
        }
        let reference = self.reference.as_deref().unwrap_or(&[]).join("\n\n");
        Ok(verdict.shown(reference, opinions.join("\n\n")))
    }
}

impl OpenEnded {
    fn questions(
        self,
        data: &DataFolder,
    ) -> Result<Vec<(String, String, Vec<String>)>, SuiteError> {
        let of_bench = |file| -> Result<_, SuiteError> {
            let rows = data.rows::<QuestionRow>(file)?.into_iter();
            Ok(rows.map(|r| (r.question_id.to_string(), r.category, r.turns)).collect())
        };
        match self {
            Self::Mt => of_bench("mt_bench/question"),
            Self::Vicuna => of_bench("vicuna_bench/question"),
            Self::FedLlm => {
                let mut questions = Vec::new();
                for part in ["chatbot", "wildchat"] {
                    let rows =
                        data.rows::<InstructionRow>(&format!("fedllm_bench/{part}_testset"))?;
                    questions.extend(rows.into_iter().enumerate().map(|(number, row)| {
                        let category = match row.language {
                            Some(language) => format!("{part} ({language})"),
                            None => part.to_owned(),
                        };
                        (format!("{part}-{number}"), category, vec![row.instruction])
                    }));
                }
                Ok(questions)
            }
        }
    }

    fn references(self, data: &DataFolder) -> Result<HashMap<String, Vec<String>>, SuiteError> {
        let file = match self {
            Self::Mt => "mt_bench/reference_answer_gpt4",
            Self::Vicuna => "vicuna_bench/reference_answer_gpt4",
            Self::FedLlm => return Ok(HashMap::new()),
        };
        let rows = data.rows::<ReferenceRow>(file)?.into_iter();
        let first = |row: ReferenceRow| {
            Some((row.question_id.to_string(), row.choices.into_iter().next()?.turns))
        };
        Ok(rows.filter_map(first).collect())
    }

    /// MT-Bench's own choice of chance for each category.
    fn temperature(self, category: &str) -> f64 {
        match (self, category) {
            (Self::Mt, "extraction" | "math" | "coding" | "reasoning") => 0.0,
            (Self::Mt, "stem" | "humanities") => 0.1,
            _ => 0.7,
        }
    }
}

impl Suite for OpenEnded {
    fn card(&self) -> Card {
        let (name, about, metrics, data): (_, _, &[_], &[_]) = match self {
            Self::Mt => (
                "mt-bench",
                "two-turn conversations in eight categories",
                &["rating", "rating_1", "rating_2", "rated_1", "rated_2"],
                &["mt_bench/question", "mt_bench/reference_answer_gpt4", "mt_bench/judge_prompts"],
            ),
            Self::Vicuna => (
                "vicuna-bench",
                "open questions in nine categories",
                &["rating", "rating_1", "rated_1"],
                &[
                    "vicuna_bench/question",
                    "vicuna_bench/reference_answer_gpt4",
                    "mt_bench/judge_prompts",
                ],
            ),
            Self::FedLlm => (
                "fedllm-bench",
                "prompts of chat users in several languages",
                &["rating", "rating_1", "rated_1"],
                &[
                    "fedllm_bench/chatbot_testset",
                    "fedllm_bench/wildchat_testset",
                    "mt_bench/judge_prompts",
                ],
            ),
        };
        Card {
            name,
            family: "open-ended",
            about,
            metrics,
            parts: &["category"],
            data,
            scoring: Scoring::Judge,
            wrapping: Wrapping::In(Template::Chat),
            shots: (0, 0),
        }
    }

    fn items(&self, data: &DataFolder, _options: &SuiteOptions) -> Result<Vec<Item>, SuiteError> {
        let prompts = data.rows::<JudgePromptRow>("mt_bench/judge_prompts")?.into_iter();
        let prompts: Arc<JudgePrompts> = Arc::new(prompts.map(|p| (p.name.clone(), p)).collect());
        let mut references = self.references(data)?;
        let items = self.questions(data)?.into_iter().map(|(id, category, turns)| {
            let compared = WITH_REFERENCE.contains(&category.as_str());
            let reference = references.remove(&id).filter(|_| compared);
            let asking = match turns.as_slice() {
                [question] => Asking::Once(Prompt::same(question.clone())),
                _ => Asking::Turns(turns.clone()),
            };
            Item {
                groups: vec![format!("category:{category}")],
                about: None,
                shots: 0,
                question: Question::Writing(Writing {
                    asking,
                    max_tokens: 1024,
                    stop: vec![],
                    stop_plain: vec![],
                    temperature: self.temperature(&category),
                    samples: 1,
                    grader: Box::new(Rated { turns, reference, prompts: Arc::clone(&prompts) }),
                }),
                id,
            }
        });
        Ok(items.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::grading::Tools;
    use crate::evaluate::journal::Journal;
    use crate::evaluate::judge::{Judge, JudgeError};

    /// Says the prepared opinions, one after the other, and keeps what it was asked.
    struct Says(Vec<&'static str>, Arc<std::sync::Mutex<Vec<String>>>);

    impl Judge for Says {
        fn name(&self) -> String {
            "says".to_owned()
        }

        fn ask(&mut self, _system: &str, message: &str) -> Result<String, JudgeError> {
            self.1.lock().unwrap().push(message.to_owned());
            Ok(self.0.remove(0).to_owned())
        }
    }

    fn prompts() -> Arc<JudgePrompts> {
        let row = |name: &str, text: &str| {
            let row = JudgePromptRow {
                name: name.to_owned(),
                system_prompt: String::new(),
                prompt_template: text.to_owned(),
            };
            (name.to_owned(), row)
        };
        Arc::new(HashMap::from([
            row("single-v1", "Q {question} A {answer}"),
            row("single-v1-multi-turn", "{question_1}|{answer_1}|{question_2}|{answer_2}"),
        ]))
    }

    #[test]
    fn every_turn_is_rated_and_unrated_turns_are_left_out_of_the_mean() {
        let asked = Arc::default();
        // Ratings go from 1 to 10: a 0 is none.
        let says = Says(vec!["[[8]]", "[[0]]"], Arc::clone(&asked));
        let mut tools = Tools { judge: Some(Box::new(says)), ..Tools::default() };
        let turns = vec!["one".to_owned(), "two".to_owned()];
        let grader = Rated { turns, reference: None, prompts: prompts() };
        let answers = ["{question}".to_owned(), "b".to_owned()];
        let mut journal = Journal::in_memory();
        let mut grading = Grading::new(&mut tools, &mut journal, "mt-bench", "1");
        let verdict = grader.grade(&answers, &mut grading).unwrap();
        assert_eq!(verdict.scores["rating"], 8.0);
        assert_eq!((verdict.scores["rated_1"], verdict.scores["rated_2"]), (1.0, 0.0));
        assert!(!verdict.scores.contains_key("rating_2"));
        let asked = asked.lock().unwrap();
        assert_eq!(*asked, ["Q one A {question}", "one|{question}|two|b"]);
    }

    #[test]
    fn without_a_judge_the_answer_waits() {
        let grader = Rated { turns: vec!["one".to_owned()], reference: None, prompts: prompts() };
        let (mut tools, mut journal) = (Tools::default(), Journal::in_memory());
        let mut grading = Grading::new(&mut tools, &mut journal, "mt-bench", "1");
        let verdict = grader.grade(&["a".to_owned()], &mut grading).unwrap();
        assert!(verdict.not_run.is_some());
    }
}
