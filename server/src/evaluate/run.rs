//! Runs suites: asks what has not been asked, grades, sums up.
//!
//! Everything that took time goes to the journal at once, so a run can be stopped at any moment and
//! the same command goes on where it was.

use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fleetune_core::model::EngineError;

use super::ask::{self, Dialogue, Manner, Ready, choice_verdict};
use super::data::{DataError, DataFolder};
use super::grading::{GradeError, Grading, Tools, Verdict};
use super::journal::{Answer, Answered, Journal, JournalError, Key};
use super::judge::{DownJudge, JudgeError};
use super::model::{LanguageModel, ModelError};
use super::result::{EvaluationResult, Example, SuiteResult, Unfinished};
use super::suite::{
    Card, Graded, Item, Metric, Question, Scoring, Suite, SuiteError, SuiteOptions, Wrapping,
    sample,
};
use crate::report::text::plural;

/// Questions that go to the model in one call, at first and at most. Scores are kept when all are
/// there, so as many are scored at a time as take about [`BATCH_TIME`]: more would lose more to a kill.
const BATCH: usize = 64;
const LARGEST_BATCH: usize = 1024;
const BATCH_TIME: Duration = Duration::from_secs(2);
/// Metrics that say how many answers the judge rated.
const RATED: [&str; 3] = ["rated_1", "rated_2", "judged"];

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

/// What a watcher counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Answers of the model.
    Answers,
    /// Answers that a judge or programs grade; rules take no time.
    Gradings,
    /// Clients that are measured.
    Clients,
}

impl Work {
    /// The name of several.
    pub fn name(self) -> &'static str {
        match self {
            Self::Answers => "answers",
            Self::Gradings => "gradings",
            Self::Clients => "clients",
        }
    }
}

impl Plan {
    /// All questions of these suites, each suite in its own way.
    pub fn new(suites: Vec<Box<dyn Suite>>, data: DataFolder) -> Self {
        Self {
            suites,
            data,
            limit: None,
            shots: None,
            seed: 0,
            wrapping: None,
            scoring: None,
            samples: 1,
            temperature: None,
            seen: HashSet::new(),
        }
    }
}

/// Follows a run.
pub trait Watcher {
    /// Work on a suite begins: `total` pieces, `done` of which were done before.
    fn begin(&mut self, suite: &str, work: Work, total: usize, done: usize);

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
    Suite(SuiteError),
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

impl RunError {
    /// Whether a file is not in the data folder.
    pub fn is_missing_data(&self) -> bool {
        matches!(self, Self::Suite(SuiteError::Data(DataError::Missing { .. })))
    }

    /// Whether the model computes no numbers, and so will never answer.
    pub fn is_no_model(&self) -> bool {
        let Self::Suite(error) = self else { return false };
        matches!(engine_error(error), Some(EngineError::NotFinite))
    }
}

impl From<SuiteError> for RunError {
    fn from(error: SuiteError) -> Self {
        // The wish to stop ends a running pass, which the watcher may not have seen yet.
        match engine_error(&error) {
            Some(EngineError::Cancelled) => Self::Stopped,
            _ => Self::Suite(error),
        }
    }
}

fn engine_error(error: &SuiteError) -> Option<&EngineError> {
    let SuiteError::Model(ModelError::Engine(error)) = error else { return None };
    error.downcast_ref()
}

/// Reads the data of all suites of a plan, so that what is missing or wrong is known before anything
/// is asked.
///
/// # Errors
/// When data are missing or wrong.
pub fn check(plan: &Plan) -> Result<(), SuiteError> {
    plan.suites.iter().try_for_each(|suite| {
        let run = SuiteRun::new(plan, suite.as_ref());
        run.suite.items(&plan.data, &run.options).map(|_| ())
    })
}

/// Runs a plan.
///
/// # Errors
/// When data, model, journal or the sandbox fails, or on request. What was done is in the journal. A
/// judge that fails leaves its suites unfinished, for which [`EvaluationResult::unfinished`] is there.
pub fn run(
    plan: &Plan,
    model: &mut dyn LanguageModel,
    tools: &mut Tools,
    journal: &mut Journal,
    watcher: &mut dyn Watcher,
) -> Result<EvaluationResult, RunError> {
    let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let (mut suites, mut unfinished) = (Vec::new(), Vec::new());
    let mut failed = None;
    let mut ended = Ok(());
    for suite in &plan.suites {
        match SuiteRun::new(plan, suite.as_ref()).run(plan, model, tools, journal, watcher) {
            Ok(result) => suites.push(result),
            Err(RunError::Grade(GradeError::Judge(error))) => {
                let suite = suite.card().name.to_owned();
                unfinished.push(Unfinished { suite, problem: error.to_string() });
                // The other suites' answers can still be had, and what needs no judge.
                if failed.is_none() {
                    let name = tools.judge.as_ref().map(|judge| judge.name()).unwrap_or_default();
                    failed = tools.judge.replace(Box::new(DownJudge(name)));
                }
            }
            Err(error) => {
                ended = Err(error);
                break;
            }
        }
    }
    // It may be there again in the next run.
    if failed.is_some() {
        tools.judge = failed;
    }
    ended?;
    Ok(EvaluationResult {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        identity: model.identity(),
        started,
        seconds: total(suites.iter().map(|suite| suite.seconds)),
        suites,
        unfinished,
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

impl Asked {
    /// The answer in the journal, if it is all there.
    fn answer<'a>(&self, journal: &'a Journal) -> Option<&'a Answered> {
        let answered = journal.answer(&self.key)?;
        ask::is_whole(&self.item.question, &self.ready, &answered.answer).then_some(answered)
    }

    /// Answers in the journal to the first turns of a conversation, to begin with.
    fn turns(&self, journal: &Journal) -> (Vec<String>, bool) {
        let one_each = matches!(&self.ready, Ready::Write { options, .. } if options.samples == 1);
        match journal.answer(&self.key) {
            Some(Answered { answer: Answer::Texts(texts), cut, .. }) if one_each => {
                (texts.clone(), *cut)
            }
            _ => (Vec::new(), false),
        }
    }
}

/// A verdict and what it took.
struct Judged {
    verdict: Verdict,
    seconds: f64,
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
        let items = sample(items, plan.limit, plan.seed);
        let wanted = plan.shots.unwrap_or(self.card.shots.0);
        let shots = items.iter().map(|item| item.shots).min().unwrap_or(0);
        if shots < wanted && !items.is_empty() {
            let (name, examples) = (self.card.name, plural(shots as u64, "example"));
            tracing::warn!("{name} has {examples} for its prompts, not {wanted}");
        }
        let asked = self.ready(model, items)?;
        let judge = match self.card.scoring {
            Scoring::Judge => tools.judge.as_ref().map(|judge| judge.name()),
            _ => None,
        };
        let answered = asked.iter().filter(|a| a.answer(journal).is_some()).count();
        watcher.begin(self.card.name, Work::Answers, asked.len(), answered);
        self.answer(&asked, model, journal, watcher)?;
        if self.takes_tools(tools) {
            watcher.begin(self.card.name, Work::Gradings, asked.len(), 0);
        }
        let verdicts = self.grade(&asked, tools, journal, watcher)?;
        let mut result = self.sum_up(&asked, &verdicts, judge, journal);
        (result.rows_in_suite, result.rows_seen, result.shots) = (in_suite, seen, shots);
        if is_unrated(&result.metrics) {
            let name = self.card.name;
            tracing::warn!(
                "{name}: the judge rated no answer (none of its opinions has a [[rating]])"
            );
        }
        Ok(result)
    }

    fn ready(&self, model: &dyn LanguageModel, items: Vec<Item>) -> Result<Vec<Asked>, RunError> {
        let asked = items.into_iter().map(|item| {
            let ready = ask::ready(model, &item.question, &self.manner, &item.id)
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
            asked.iter().filter(|asked| asked.answer(journal).is_none()).collect();
        let scored = |asked: &Asked| matches!(asked.ready, Ready::Score { .. });
        let mut size = BATCH;
        for mut alike in open.chunk_by(|a, b| scored(a) == scored(b)) {
            while !alike.is_empty() {
                if watcher.stop() {
                    return Err(RunError::Stopped);
                }
                let started = Instant::now();
                let batch;
                (batch, alike) = alike.split_at(size.min(alike.len()));
                match scored(batch[0]) {
                    true => score(batch, model, journal, watcher)?,
                    false => self.write(batch, model, journal, watcher)?,
                }
                if started.elapsed() < BATCH_TIME / 2 {
                    size = LARGEST_BATCH.min(2 * size);
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
        let dialogues = batch.iter().map(|asked| {
            let (answers, cut) = asked.turns(journal);
            Dialogue::new(&asked.item.question, &asked.ready, answers, cut)
        });
        let dialogues = dialogues.collect();
        let mut kept = Ok(());
        let mut last = Instant::now();
        let mut done = |number: usize, answer: Answer, cut| {
            let asked = batch[number];
            // Of all turns so far.
            let before = journal.answer(&asked.key).map_or(0.0, |answered| answered.seconds);
            let seconds = before + last.elapsed().as_secs_f64();
            last = Instant::now();
            let whole = ask::is_whole(&asked.item.question, &asked.ready, &answer);
            kept = journal.add_answer(asked.key.clone(), Answered { answer, cut, seconds });
            watcher.advance(usize::from(whole));
            if kept.is_err() || watcher.stop() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let written = ask::write(model, dialogues, &self.manner, &mut done);
        kept?;
        written.map_err(SuiteError::from)?;
        if watcher.stop() { Err(RunError::Stopped) } else { Ok(()) }
    }

    /// Whether grading asks a judge or runs programs.
    fn takes_tools(&self, tools: &Tools) -> bool {
        let judged = self.card.scoring == Scoring::Judge && tools.judge.is_some();
        judged || (self.card.family == "code" && tools.programs.is_some())
    }

    /// Verdicts on all answers, in order.
    fn grade(
        &self,
        asked: &[Asked],
        tools: &mut Tools,
        journal: &mut Journal,
        watcher: &mut dyn Watcher,
    ) -> Result<Vec<Judged>, RunError> {
        let mut verdicts = Vec::with_capacity(asked.len());
        let takes_tools = self.takes_tools(tools);
        for asked in asked {
            if takes_tools && watcher.stop() {
                return Err(RunError::Stopped);
            }
            let answer = asked.answer(journal).map(|answered| answered.answer.clone());
            let judged = match (&asked.item.question, answer) {
                (Question::Choice(choice), Some(answer)) => {
                    Judged { verdict: choice_verdict(choice, &answer), seconds: 0.0 }
                }
                (Question::Writing(writing), Some(Answer::Texts(texts))) => {
                    let mut grading = Grading::new(tools, journal, self.card.name, &asked.item.id);
                    let verdict = match writing.grader.grade(&texts, &mut grading) {
                        // The wish to stop ends a judge's work, too.
                        Err(GradeError::Judge(JudgeError::Stopped)) => {
                            return Err(RunError::Stopped);
                        }
                        Err(_) if watcher.stop() => return Err(RunError::Stopped),
                        other => other?,
                    };
                    let seconds = grading.seconds();
                    watcher.advance(usize::from(takes_tools));
                    Judged { verdict, seconds }
                }
                _ => {
                    let verdict = Verdict::not_run("there is no answer");
                    Judged { verdict, seconds: 0.0 }
                }
            };
            verdicts.push(judged);
        }
        Ok(verdicts)
    }

    /// Metrics of all questions first, then those of each group; each in the card's order, so that
    /// the suite's main number comes first.
    fn in_order(&self, mut metrics: Vec<Metric>) -> Vec<Metric> {
        let mut groups: Vec<Option<String>> = vec![None];
        for metric in &metrics {
            if !groups.contains(&metric.group) {
                groups.push(metric.group.clone());
            }
        }
        metrics.sort_by_cached_key(|metric| {
            let group = groups.iter().position(|group| *group == metric.group);
            let names = self.card.metrics;
            let rank = names.iter().position(|name| *name == metric.name).unwrap_or(names.len());
            (group, rank)
        });
        metrics
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
            asked.iter().map(|asked| asked.answer(journal)).collect();
        let answering = total(answers.iter().flatten().map(|answered| answered.seconds));
        let grading = total(verdicts.iter().map(|judged| judged.seconds));
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
            scoring: match scoring_of(asked, self.manner.scoring) {
                Scoring::Judge if judge.is_none() => Scoring::Generation,
                scoring => scoring,
            },
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
            metrics: self.in_order(self.suite.metrics(&graded, &self.options)),
            wrong: wrong.map(|((a, answer), j)| example(a, answer.as_ref(), &j.verdict)).collect(),
        }
    }
}

/// The sum; a sum of nothing is 0 and not -0, as floating-point numbers have it.
fn total(seconds: impl Iterator<Item = f64>) -> f64 {
    seconds.fold(0.0, |sum, seconds| sum + seconds)
}

/// Whether a judge was asked and nothing came of it.
fn is_unrated(metrics: &[Metric]) -> bool {
    let mut rated = metrics.iter().filter(|m| RATED.contains(&m.name.as_str())).peekable();
    rated.peek().is_some() && rated.all(|metric| metric.value == 0.0)
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

/// How the suite's questions were answered in fact: some options cannot be written.
fn scoring_of(asked: &[Asked], wanted: Scoring) -> Scoring {
    match asked.first().map(|asked| &asked.ready) {
        Some(Ready::Score { .. }) => Scoring::LogLikelihood,
        _ => wanted,
    }
}
