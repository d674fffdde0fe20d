//! HumanEval: Python functions from their docstrings, run against tests.

use serde::Deserialize;

use crate::evaluate::code::{
    Code, Language, RunResult, completed, given_before, open_end, program,
};
use crate::evaluate::data::DataFolder;
use crate::evaluate::grading::{GradeError, Grader, Grading, Verdict};
use crate::evaluate::metrics::pass_at_k;
use crate::evaluate::suite::{
    Asking, Card, Graded, Item, Metric, Prompt, Question, Scoring, Suite, SuiteError, SuiteOptions,
    Wrapping, Writing, groups, mean, members,
};

/// The suite.
pub struct HumanEval;

/// The `k` of pass@k.
const KS: [usize; 3] = [1, 10, 100];

#[derive(Deserialize)]
struct Row {
    task_id: String,
    prompt: String,
    entry_point: String,
    canonical_solution: String,
    test: String,
}

impl Row {
    fn tests(&self) -> String {
        format!("{}\ncheck({})\n", self.test, self.entry_point)
    }

    /// The program with `completion` as the function's body.
    fn completed(&self, completion: &str) -> String {
        format!("{}\n{}", completed(&self.prompt, completion), self.tests())
    }

    fn program(&self, answer: &str) -> String {
        match Code::of(answer, Language::Python, &self.entry_point) {
            Code::Body(body) => self.completed(&body),
            Code::Whole(code) => {
                let given = given_before(&self.prompt, Language::Python, &self.entry_point);
                program(
                    Language::Python,
                    &self.entry_point,
                    given.unwrap_or(""),
                    &code,
                    &self.tests(),
                )
            }
        }
    }
}

impl Grader for Row {
    fn grade(&self, answers: &[String], grading: &mut Grading) -> Result<Verdict, GradeError> {
        let programs = answers.iter().map(|answer| self.program(answer));
        let reference = self.completed(&self.canonical_solution);
        passed(Language::Python, programs, &reference, grading)
    }
}

/// Runs programs and counts how many pass.
///
/// When none does, `reference` is run: if it does not pass either, the fault lies with this machine
/// (a missing library, most often) and the question is not counted.
pub fn passed(
    language: Language,
    programs: impl Iterator<Item = String>,
    reference: &str,
    grading: &mut Grading,
) -> Result<Verdict, GradeError> {
    let (mut samples, mut passed, mut problem) = (0, 0, String::new());
    for program in programs {
        samples += 1;
        match grading.program(language, &program)? {
            Some(RunResult::Passed) => passed += 1,
            Some(RunResult::Failed(how)) => problem = how,
            Some(RunResult::NotInstalled(what)) => return Ok(not_installed(language, &what)),
            None => return Ok(Verdict::not_run("programs are not run here")),
        }
    }
    if passed == 0
        && let Some(RunResult::Failed(how)) = grading.program(language, reference)?
    {
        let reason = format!("{}: the reference solution fails here", language.name());
        return Ok(Verdict::not_run(reason).shown("", how));
    }
    grading.keep_programs()?;
    let mut verdict = Verdict { correct: Some(passed > 0), ..Verdict::default() };
    verdict.scores.insert("samples".to_owned(), f64::from(samples));
    verdict.scores.insert("passed".to_owned(), f64::from(passed));
    let understood = if passed > 0 { format!("{passed} of {samples} pass") } else { problem };
    Ok(verdict.shown("all tests pass", understood))
}

fn not_installed(language: Language, what: &str) -> Verdict {
    Verdict::not_run(format!("{} is not run: {what}", language.name()))
}

/// pass@1, pass@10 and pass@100, as far as enough programs were drawn.
pub fn pass_metrics(graded: &[Graded]) -> Vec<Metric> {
    let mut metrics = Vec::new();
    for group in groups(graded) {
        for k in KS {
            let estimates: Vec<f64> = members(graded, &group)
                .filter_map(|verdict| {
                    let score = |name| verdict.scores.get(name).map(|score| *score as usize);
                    pass_at_k(score("samples")?, score("passed")?, k)
                })
                .collect();
            if !estimates.is_empty() {
                metrics.push(mean(&format!("pass@{k}"), group.clone(), &estimates));
            }
        }
    }
    metrics
}

/// The chance in programs: none for a single one, or all would be the same.
pub fn temperature(options: &SuiteOptions) -> f64 {
    options.temperature.unwrap_or(if options.samples > 1 { 0.8 } else { 0.0 })
}

impl Suite for HumanEval {
    fn card(&self) -> Card {
        Card {
            name: "humaneval",
            family: "code",
            about: "Python functions from their docstrings",
            metrics: &["pass@1", "pass@10", "pass@100"],
            parts: &[],
            data: &["humaneval/HumanEval"],
            scoring: Scoring::Generation,
            wrapping: Wrapping::Plain,
            shots: (0, 0),
        }
    }

    fn items(&self, data: &DataFolder, options: &SuiteOptions) -> Result<Vec<Item>, SuiteError> {
        let rows = data.rows::<Row>("humaneval/HumanEval")?;
        let items = rows.into_iter().map(|row| Item {
            id: row.task_id.clone(),
            groups: vec![],
            about: None,
            shots: 0,
            question: Question::Writing(Writing {
                asking: Asking::Once(Prompt {
                    plain: open_end(&row.prompt).to_owned(),
                    message: format!(
                        "Complete the following Python function. Answer with the whole function in \
                         a code block.\n```python\n{}```",
                        row.prompt
                    ),
                }),
                max_tokens: 512,
                stop: vec![],
                stop_plain: ["\nclass", "\ndef", "\n#", "\nif", "\nprint"]
                    .map(str::to_owned)
                    .to_vec(),
                temperature: temperature(options),
                samples: options.samples,
                grader: Box::new(row),
            }),
        });
        Ok(items.collect())
    }

    fn metrics(&self, graded: &[Graded], _options: &SuiteOptions) -> Vec<Metric> {
        pass_metrics(graded)
    }
}
