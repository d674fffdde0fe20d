//! Runs suites: asks what has not been asked, grades what has not been graded, sums up.
//!
//! Everything that took time goes to the journal at once, so a run can be stopped at any moment and
//! the same command goes on where it was.

use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::ask::{self, Manner, Ready, choice_verdict};
use super::data::DataFolder;
use super::journal::{Answer, Answered, Journal, JournalError, Judged, Key};
use super::model::LanguageModel;
use super::result::{EvaluationResult, Example, SuiteResult};
use super::suite::{
    Card, GradeError, Graded, Item, Question, Scoring, Suite, SuiteError, SuiteOptions, Tools,
    Verdict, Wrapping, sample,
};

/// Questions that go to the model in one call. A conversation of several turns is kept when it is
/// complete, so more at a time would lose more to a kill.
const BATCH: usize = 64;

/// What to run.
pub struct Plan {
    /// The suites.
    pub suites: Vec<Box<dyn Suite>>,
    /// Where their data are.
    pub data: DataFolder,
    /// Most questions of each suite; a seeded sample.
    pub limit: Option<usize>,
    /// Examples in prompts; `None` for each suite's own number. A suite takes as many as it has.
    pub shots: Option<usize>,
    /// Where the chance comes from.
    pub seed: u64,
    /// How prompts are wrapped; `None` for each suite's own way.
    pub wrapping: Option<Wrapping>,
    /// How multiple-choice questions are answered; `None` for each suite's own way.
    pub scoring: Option<Scoring>,
    /// Programs to draw for each programming problem.
    pub samples: usize,
    /// Chance in programs.
    pub temperature: Option<f64>,
    /// Texts that the model was trained on: questions about them are not asked.
    pub seen: HashSet<String>,
}

/// Follows a run.
pub trait Watcher {
    /// A suite begins: `total` pieces of work, `done` of which were done before.
    fn begin(&mut self, suite: &str, total: usize, done: usize);

    /// So many pieces of work are done.
    fn advance(&mut self, amount: usize);

    /// Whether to stop now.
    fn stop(&self) -> bool;
}

/// A run ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// A suite.
    #[error(transparent)]
    Suite(#[from] SuiteError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A tool of grading.
    #[error(transparent)]
    Grade(#[from] GradeError),
    /// The watcher asked to stop.
    #[error("stopped: answers so far are kept, and the same command goes on from there")]
    Stopped,
}

/// Runs a plan.
///
/// # Errors
/// When data, model, journal or a tool fails, or on request. What was done is in the journal.
pub fn run(
    plan: &Plan,
    model: &mut dyn LanguageModel,
    tools: &mut Tools,
    journal: &mut Journal,
    watcher: &mut dyn Watcher,
) -> Result<EvaluationResult, RunError> {
    let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let mut suites = Vec::new();
    for suite in &plan.suites {
        suites.push(SuiteRun::new(plan, suite.as_ref()).run(plan, model, tools, journal, watcher)?);
    }
    Ok(EvaluationResult {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        identity: model.identity(),
        started,
        seconds: suites.iter().map(|suite| suite.seconds).sum(),
        suites,
    })
}

/// One suite as the plan asks for it.
struct SuiteRun<'a> {
    suite: &'a dyn Suite,
    card: Card,
    manner: Manner,
    options: SuiteOptions,
}

/// A question with all that became of it.
struct Asked {
    item: Item,
    key: Key,
    ready: Ready,
}

impl<'a> SuiteRun<'a> {
    fn new(plan: &Plan, suite: &'a dyn Suite) -> Self {
        let card = suite.card();
        let (usual, most) = card.shots;
        // Only multiple choice can be answered in more than one way.
        let scoring = match card.scoring {
            Scoring::LogLikelihood => plan.scoring.unwrap_or(Scoring::LogLikelihood),
            other => other,
        };
        Self {
            suite,
            manner: Manner {
                wrapping: plan.wrapping.unwrap_or(card.wrapping),
                scoring,
                seed: plan.seed,
            },
            options: SuiteOptions {
                limit: plan.limit,
                shots: plan.shots.unwrap_or(usual).min(most),
                seed: plan.seed,
                samples: plan.samples.max(1),
                temperature: plan.temperature,
            },
            card,
        }
    }

    fn run(
        &self,
        plan: &Plan,
        model: &mut dyn LanguageModel,
        tools: &mut Tools,
        journal: &mut Journal,
        watcher: &mut dyn Watcher,
    ) -> Result<SuiteResult, RunError> {
        let mut items = self.suite.items(&plan.data, &self.options)?;
        let in_suite = items.len();
        items.retain(|item| !item.about.as_ref().is_some_and(|text| plan.seen.contains(text)));
        let seen = in_suite - items.len();
        let asked = self.ready(model, sample(items, plan.limit, plan.seed))?;
        let judge = match self.card.scoring {
            Scoring::Judge => tools.judge.as_ref().map(|judge| judge.name()),
            _ => None,
        };
        let answered = asked.iter().filter(|a| journal.answer(&a.key).is_some()).count();
        let judged = asked
            .iter()
            .filter(|a| is_choice(a) || journal.verdict(&a.key, judge.as_deref()).is_some());
        let writing = asked.iter().filter(|a| !is_choice(a)).count();
        let done = answered + judged.count() - (asked.len() - writing);
        watcher.begin(self.card.name, asked.len() + writing, done);
        self.answer(&asked, model, journal, watcher)?;
        let verdicts = grade(&asked, judge.as_deref(), tools, journal, watcher)?;
        let mut result = self.sum_up(&asked, &verdicts, judge, journal);
        (result.rows_in_suite, result.rows_seen) = (in_suite, seen);
        Ok(result)
    }

    fn ready(&self, model: &dyn LanguageModel, items: Vec<Item>) -> Result<Vec<Asked>, RunError> {
        let asked = items.into_iter().enumerate().map(|(number, item)| {
            let ready = ask::ready(model, &item.question, &self.manner, number as u64)
                .map_err(SuiteError::from)?;
            let suite = self.card.name.to_owned();
            let key = Key { suite, id: item.id.clone(), asked: ready.hash() };
            Ok(Asked { item, key, ready })
        });
        asked.collect()
    }

    fn answer(
        &self,
        asked: &[Asked],
        model: &mut dyn LanguageModel,
        journal: &mut Journal,
        watcher: &mut dyn Watcher,
    ) -> Result<(), RunError> {
        let open: Vec<&Asked> =
            asked.iter().filter(|asked| journal.answer(&asked.key).is_none()).collect();
        let scored = |asked: &Asked| matches!(asked.ready, Ready::Score { .. });
        for alike in open.chunk_by(|a, b| scored(a) == scored(b)) {
            for batch in alike.chunks(BATCH) {
                if watcher.stop() {
                    return Err(RunError::Stopped);
                }
                let answered = match scored(batch[0]) {
                    true => score(batch, model, journal, watcher),
                    false => self.write(batch, model, journal, watcher),
                };
                match answered {
                    // The wish to stop ends a running pass, too.
                    Err(RunError::Suite(_)) if watcher.stop() => return Err(RunError::Stopped),
                    other => other?,
                }
            }
        }
        Ok(())
    }

    fn write(
        &self,
        batch: &[&Asked],
        model: &mut dyn LanguageModel,
        journal: &mut Journal,
        watcher: &mut dyn Watcher,
    ) -> Result<(), RunError> {
        let questions: Vec<_> = batch.iter().map(|a| (&a.item.question, &a.ready)).collect();
        let mut kept = Ok(());
        let mut last = Instant::now();
        let mut done = |number: usize, answer, cut| {
            let seconds = last.elapsed().as_secs_f64();
            last = Instant::now();
            let answered = Answered { answer, cut, seconds };
            kept = journal.add_answer(batch[number].key.clone(), answered);
            watcher.advance(1);
            if kept.is_err() || watcher.stop() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        ask::write(model, &questions, &self.manner, &mut done).map_err(SuiteError::from)?;
        kept?;
        if watcher.stop() { Err(RunError::Stopped) } else { Ok(()) }
    }

    fn sum_up(
        &self,
        asked: &[Asked],
        verdicts: &[Judged],
        judge: Option<String>,
        journal: &Journal,
    ) -> SuiteResult {
        let graded: Vec<Graded> = asked
            .iter()
            .zip(verdicts)
            .map(|(asked, judged)| Graded { groups: &asked.item.groups, verdict: &judged.verdict })
            .collect();
        let answers: Vec<Option<&Answered>> =
            asked.iter().map(|asked| journal.answer(&asked.key)).collect();
        let answering: f64 = answers.iter().flatten().map(|answered| answered.seconds).sum();
        let grading: f64 = verdicts.iter().map(|judged| judged.seconds).sum();
        let mut not_run: BTreeMap<String, usize> = BTreeMap::new();
        for reason in verdicts.iter().filter_map(|judged| judged.verdict.not_run.clone()) {
            *not_run.entry(reason).or_default() += 1;
        }
        let example = |asked: &Asked, answer: Option<&&Answered>, verdict: &Verdict| Example {
            id: asked.item.id.clone(),
            prompt: asked.ready.text().to_owned(),
            answer: match answer.map(|answered| &answered.answer) {
                Some(Answer::Texts(texts)) => texts.join("\n\n"),
                _ => String::new(),
            },
            expected: verdict.expected.clone(),
            understood: verdict.understood.clone(),
        };
        let wrong = asked.iter().zip(&answers).zip(verdicts);
        let wrong = wrong.filter(|(_, judged)| judged.verdict.correct == Some(false));
        SuiteResult {
            suite: self.card.name.to_owned(),
            family: self.card.family.to_owned(),
            scoring: scoring_of(asked, self.manner.scoring),
            template: self.manner.wrapping,
            prompt: asked.first().map(|asked| asked.ready.text().to_owned()).unwrap_or_default(),
            shots: self.options.shots,
            rows: asked.len(),
            rows_in_suite: asked.len(),
            rows_seen: 0,
            seed: self.manner.seed,
            judge,
            cut: answers.iter().flatten().filter(|answered| answered.cut).count(),
            not_run,
            seconds: answering + grading,
            rows_per_second: if answering > 0.0 { asked.len() as f64 / answering } else { 0.0 },
            metrics: self.suite.metrics(&graded, &self.options),
            wrong: wrong.map(|((a, answer), j)| example(a, answer.as_ref(), &j.verdict)).collect(),
        }
    }
}

/// Scores the options of questions.
fn score(
    batch: &[&Asked],
    model: &mut dyn LanguageModel,
    journal: &mut Journal,
    watcher: &mut dyn Watcher,
) -> Result<(), RunError> {
    let start = Instant::now();
    let questions: Vec<(&str, &[String])> = batch
        .iter()
        .filter_map(|asked| match &asked.ready {
            Ready::Score { text, options } => Some((text.as_str(), options.as_slice())),
            Ready::Write { .. } => None,
        })
        .collect();
    let answers = ask::score(model, &questions).map_err(SuiteError::from)?;
    let seconds = start.elapsed().as_secs_f64() / batch.len() as f64;
    for (asked, (answer, cut)) in batch.iter().zip(answers) {
        journal.add_answer(asked.key.clone(), Answered { answer, cut, seconds })?;
    }
    watcher.advance(batch.len());
    Ok(())
}

fn is_choice(asked: &Asked) -> bool {
    matches!(asked.item.question, Question::Choice(_))
}

/// How the suite's questions were answered in fact: some options cannot be written.
fn scoring_of(asked: &[Asked], wanted: Scoring) -> Scoring {
    match asked.first().map(|asked| &asked.ready) {
        Some(Ready::Score { .. }) => Scoring::LogLikelihood,
        _ => wanted,
    }
}

/// Verdicts on all answers, in order.
fn grade(
    asked: &[Asked],
    judge: Option<&str>,
    tools: &mut Tools,
    journal: &mut Journal,
    watcher: &mut dyn Watcher,
) -> Result<Vec<Judged>, RunError> {
    let mut verdicts = Vec::with_capacity(asked.len());
    for asked in asked {
        let answer = journal.answer(&asked.key).map(|answered| &answered.answer);
        let judged = match (&asked.item.question, answer) {
            // Quickly done again.
            (Question::Choice(choice), Some(answer)) => {
                Judged { verdict: choice_verdict(choice, answer), judge: None, seconds: 0.0 }
            }
            (Question::Writing(writing), Some(Answer::Texts(texts))) => {
                if let Some(judged) = journal.verdict(&asked.key, judge) {
                    judged.clone()
                } else {
                    if watcher.stop() {
                        return Err(RunError::Stopped);
                    }
                    let start = Instant::now();
                    let verdict = writing.grader.grade(texts, tools)?;
                    let seconds = start.elapsed().as_secs_f64();
                    let judged = Judged { verdict, judge: judge.map(str::to_owned), seconds };
                    journal.add_verdict(asked.key.clone(), judged.clone())?;
                    watcher.advance(1);
                    judged
                }
            }
            _ => {
                let verdict = Verdict::not_run("the journal holds no answer of this kind");
                Judged { verdict, judge: None, seconds: 0.0 }
            }
        };
        verdicts.push(judged);
    }
    Ok(verdicts)
}
