//! Measuring the shared adapter on held-out rows, and what it answers.

use std::collections::BTreeMap;
use std::ops::{AddAssign, Range};
use std::time::Instant;

use fleetune_core::adapter::Adapter;
use fleetune_core::client::{Task, TrainingDevice};
use fleetune_core::train::{
    AnswerLearner, Evaluation, Learner, PairEvaluation, PairLogProbs, PairLoss, PairScores,
    PassLimits, PreferenceLearner, PreferenceLoss, PreferenceReport, evaluate, evaluate_pairs,
    preferred,
};

use super::environment::Environment;
use super::error::SimulateError;
use super::journal::{Answer, EvaluationRecord, PreferenceScore, Score};
use super::observer::{Event, Observer, tell};
use crate::report::text::plural;

/// Rows scored at a time; between them a run can be stopped.
const CHUNK: usize = 16;

/// Sums of one group of rows.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    rows: u64,
    loss: f64,
    /// Supervised tokens, or pairs.
    loss_terms: u64,
    correct_tokens: u64,
    supervised_tokens: u64,
    preference: Option<PreferenceScore>,
}

impl Sums {
    fn of_answer(evaluation: &Evaluation) -> Self {
        Self {
            rows: 1,
            loss: evaluation.loss_sum,
            loss_terms: evaluation.supervised_tokens as u64,
            correct_tokens: evaluation.correct_tokens as u64,
            supervised_tokens: evaluation.supervised_tokens as u64,
            preference: None,
        }
    }

    fn of_pair(scores: &PairScores, correct_tokens: usize, loss: PairLoss) -> Self {
        let PairLogProbs { chosen, rejected } = scores.policy;
        Self {
            rows: 1,
            loss: loss.value,
            loss_terms: 1,
            correct_tokens: correct_tokens as u64,
            supervised_tokens: scores.chosen_tokens as u64,
            preference: Some(PreferenceScore {
                judged: PreferenceReport::of_pair(scores.policy, loss.rewards),
                ranking_accuracy: preferred(chosen, rejected),
            }),
        }
    }

    fn score(self) -> Option<Score> {
        let rows = self.rows as f64;
        (self.rows > 0).then(|| Score {
            loss: self.loss / self.loss_terms as f64,
            token_accuracy: self.correct_tokens as f64 / self.supervised_tokens as f64,
            rows: self.rows,
            supervised_tokens: self.supervised_tokens,
            preference: self.preference.map(|sum| PreferenceScore {
                judged: sum.judged.scaled(1.0 / rows),
                ranking_accuracy: sum.ranking_accuracy / rows,
            }),
        })
    }
}

impl AddAssign for Sums {
    fn add_assign(&mut self, other: Self) {
        self.rows += other.rows;
        self.loss += other.loss;
        self.loss_terms += other.loss_terms;
        self.correct_tokens += other.correct_tokens;
        self.supervised_tokens += other.supervised_tokens;
        if let Some(other) = other.preference {
            let sum = self.preference.get_or_insert_default();
            sum.judged.add(&other.judged, 1.0);
            sum.ranking_accuracy += other.ranking_accuracy;
        }
    }
}

/// Scores `adapter` on the held-out rows after `round` rounds, and lets it answer `answers` of
/// their prompts. `None` where no rows are held out.
///
/// # Errors
/// When a row cannot be read, the engine fails, or the observer asks to stop.
pub fn measure(
    environment: &Environment<'_>,
    adapter: &Adapter,
    round: u32,
    answers: usize,
    observer: &mut dyn Observer,
) -> Result<Option<EvaluationRecord>, SimulateError> {
    let started = Instant::now();
    let fleet = environment.fleet;
    let mut groups = vec![Sums::default(); fleet.groups().len()];
    let rows = fleet.held_out();
    for start in (0..rows).step_by(CHUNK) {
        let end = (start + CHUNK).min(rows);
        tell(observer, Event::Evaluating { round, done: start, rows })?;
        match environment.task {
            Task::Sft => score_answers(environment, adapter, start..end, &mut groups)?,
            Task::Dpo { loss, beta } => {
                score_pairs(environment, adapter, (loss, beta), start..end, &mut groups)?;
            }
        }
    }
    let mut all = Sums::default();
    groups.iter().for_each(|group| all += *group);
    let Some(score) = all.score() else { return Ok(None) };
    let rows_skipped = rows as u64 - score.rows;
    if rows_skipped > 0 && round == 0 {
        tracing::warn!(
            "{rows_skipped} of {} held out have nothing left within {} tokens and are not scored",
            plural(rows as u64, "row"),
            environment.encoder.seq_len()
        );
    }
    let by_group = || fleet.groups().iter().cloned().zip(&groups);
    let groups: BTreeMap<String, Score> =
        by_group().filter_map(|(name, sums)| Some((name, sums.score()?))).collect();
    Ok(Some(EvaluationRecord {
        round,
        score,
        rows_skipped,
        groups: if groups.len() > 1 { groups } else { BTreeMap::new() },
        answers: answer_prompts(environment, adapter, round, answers, observer)?,
        seconds: started.elapsed().as_secs_f64(),
    }))
}

fn score_answers(
    environment: &Environment<'_>,
    adapter: &Adapter,
    rows: Range<usize>,
    groups: &mut [Sums],
) -> Result<(), SimulateError> {
    let (group_of, examples) = held_out::<AnswerLearner>(environment, rows)?;
    let TrainingDevice { decoder, cancel, .. } = &environment.device;
    let scores = evaluate(decoder, Some(adapter), &examples, PassLimits::default(), cancel)?;
    for (group, evaluation) in group_of.into_iter().zip(scores) {
        groups[group] += Sums::of_answer(&evaluation);
    }
    Ok(())
}

fn score_pairs(
    environment: &Environment<'_>,
    adapter: &Adapter,
    (loss, beta): (PreferenceLoss, f64),
    rows: Range<usize>,
    groups: &mut [Sums],
) -> Result<(), SimulateError> {
    let (group_of, pairs) = held_out::<PreferenceLearner>(environment, rows)?;
    let TrainingDevice { decoder, cancel, .. } = &environment.device;
    let mut reference = environment.references.held_out()?;
    let limits = PassLimits::default();
    let reference = reference.log_probs(decoder, &pairs, limits.score_rows, cancel)?;
    let scores = evaluate_pairs(decoder, Some(adapter), &pairs, limits, cancel)?;
    for (i, PairEvaluation { log_probs, correct_tokens }) in scores.into_iter().enumerate() {
        let scores = PairScores::new(&pairs[i], log_probs, reference[i]);
        groups[group_of[i]] += Sums::of_pair(&scores, correct_tokens, loss.of_pair(&scores, beta));
    }
    Ok(())
}

/// The held-out rows that have something to learn, each with the index of its group.
fn held_out<L: Learner>(
    environment: &Environment<'_>,
    rows: Range<usize>,
) -> Result<(Vec<usize>, Vec<L::Sample>), SimulateError> {
    let sample = |row| environment.fleet.held_out_sample::<L>(row, environment.encoder);
    let samples = rows.filter_map(|row| sample(row).transpose());
    Ok(samples.collect::<Result<Vec<_>, _>>()?.into_iter().unzip())
}

/// Answers to the first held-out prompts, of different groups first.
fn answer_prompts(
    environment: &Environment<'_>,
    adapter: &Adapter,
    round: u32,
    wanted: usize,
    observer: &mut dyn Observer,
) -> Result<Vec<Answer>, SimulateError> {
    // Held-out rows come of each group in turn, so the first ones are of different groups.
    let rows = wanted.min(environment.fleet.held_out());
    let mut answers = Vec::with_capacity(rows);
    for row in 0..rows {
        tell(observer, Event::Answering { round, done: row, prompts: rows })?;
        let (group, record) = environment.fleet.held_out_record(row)?;
        answers.push(Answer {
            group: Some(group.to_owned()).filter(|group| !group.is_empty()),
            prompt: record.question(),
            expected: record.answer().to_owned(),
            answer: environment.answer(adapter, &record)?,
        });
    }
    Ok(answers)
}
