//! Measuring the shared adapter on held-out rows, and what it answers.

use std::collections::BTreeMap;
use std::time::Instant;

use fleetune_core::adapter::Adapter;
use fleetune_core::client::TrainingDevice;
use fleetune_core::data::TokenizedExample;
use fleetune_core::train::{Evaluation, evaluate};

use super::environment::Environment;
use super::error::SimulateError;
use super::journal::{Answer, EvaluationRecord, Score};
use super::observer::{Event, Observer, tell};

/// Rows scored at a time; between them a run can be stopped.
const CHUNK: usize = 16;
/// Tokens computed in one pass.
const MAX_PASS_TOKENS: usize = 2048;

/// Sums of one group of rows.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    rows: u64,
    evaluation: Evaluation,
}

impl Sums {
    fn score(self) -> Option<Score> {
        (self.rows > 0).then(|| Score {
            loss: self.evaluation.loss(),
            token_accuracy: self.evaluation.token_accuracy(),
            rows: self.rows,
            supervised_tokens: self.evaluation.supervised_tokens as u64,
        })
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
        score_rows(environment, adapter, start..end, &mut groups)?;
    }
    let mut all = Sums::default();
    for group in &groups {
        all.rows += group.rows;
        all.evaluation += group.evaluation;
    }
    let Some(score) = all.score() else { return Ok(None) };
    let by_group = || fleet.groups().iter().cloned().zip(&groups);
    let groups: BTreeMap<String, Score> =
        by_group().filter_map(|(name, sums)| Some((name, sums.score()?))).collect();
    Ok(Some(EvaluationRecord {
        round,
        score,
        groups: if groups.len() > 1 { groups } else { BTreeMap::new() },
        answers: answer_prompts(environment, adapter, round, answers, observer)?,
        seconds: started.elapsed().as_secs_f64(),
    }))
}

fn score_rows(
    environment: &Environment<'_>,
    adapter: &Adapter,
    rows: std::ops::Range<usize>,
    groups: &mut [Sums],
) -> Result<(), SimulateError> {
    let mut examples: Vec<TokenizedExample> = Vec::with_capacity(rows.len());
    let mut group_of = Vec::with_capacity(rows.len());
    for row in rows {
        if let Some((group, example)) =
            environment.fleet.held_out_example(row, environment.encoder)?
        {
            group_of.push(group);
            examples.push(example);
        }
    }
    let TrainingDevice { decoder, cancel, .. } = &environment.device;
    let scores = evaluate(decoder, Some(adapter), &examples, MAX_PASS_TOKENS, cancel)?;
    for (group, evaluation) in group_of.into_iter().zip(scores) {
        groups[group].rows += 1;
        groups[group].evaluation += evaluation;
    }
    Ok(())
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
