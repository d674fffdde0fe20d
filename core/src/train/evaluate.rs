//! Losses without training.

use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

use super::PairLogProbs;
use super::trainer::passes;
use crate::adapter::Adapter;
use crate::data::{TokenizedExample, TokenizedPair};
use crate::model::{
    Cache, CancelToken, Decoder, EngineError, PackedBatch, PassOptions, SCORE_ROWS,
};

/// How much of an evaluation is computed at once. Changes time and memory; of the results at most the
/// last bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassLimits {
    /// Tokens of a pass; a longer sequence is a pass of its own.
    pub max_pass_tokens: usize,
    /// Rows of logits.
    pub score_rows: usize,
}

impl Default for PassLimits {
    fn default() -> Self {
        Self { max_pass_tokens: 2048, score_rows: SCORE_ROWS }
    }
}

/// Sums over the supervised tokens of some texts.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Evaluation {
    /// Sum of the negative log-probabilities, in nats.
    pub loss_sum: f64,
    /// Supervised tokens.
    pub supervised_tokens: usize,
    /// Those that were the model's first choice.
    pub correct_tokens: usize,
}

impl Evaluation {
    /// Mean negative log-probability of a supervised token, in nats; NaN without any.
    pub fn loss(&self) -> f64 {
        self.loss_sum / self.supervised_tokens as f64
    }

    /// Share of supervised tokens that were the model's first choice; NaN without any.
    pub fn token_accuracy(&self) -> f64 {
        self.correct_tokens as f64 / self.supervised_tokens as f64
    }

    /// `exp` of the loss.
    pub fn perplexity(&self) -> f64 {
        self.loss().exp()
    }
}

impl AddAssign for Evaluation {
    fn add_assign(&mut self, other: Self) {
        self.loss_sum += other.loss_sum;
        self.supervised_tokens += other.supervised_tokens;
        self.correct_tokens += other.correct_tokens;
    }
}

/// Scores texts under the base model, or with an adapter: one [`Evaluation`] per text.
///
/// # Errors
/// When a token is unknown, on cancellation, or when the device fails.
pub fn evaluate(
    decoder: &Decoder,
    adapter: Option<&Adapter>,
    examples: &[TokenizedExample],
    limits: PassLimits,
    cancel: &CancelToken,
) -> Result<Vec<Evaluation>, EngineError> {
    let mut results = vec![Evaluation::default(); examples.len()];
    let lens = examples.iter().map(TokenizedExample::pass_rows);
    for range in passes(lens, limits.max_pass_tokens) {
        let batch = PackedBatch::from_examples(&examples[range.clone()]);
        score(decoder, adapter, &batch, limits.score_rows, cancel, |group, log_prob, correct| {
            results[range.start + group] += Evaluation {
                loss_sum: -log_prob,
                supervised_tokens: 1,
                correct_tokens: usize::from(correct),
            };
        })?;
    }
    Ok(results)
}

/// A preference pair under a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairEvaluation {
    /// Log-probabilities of both answers.
    pub log_probs: PairLogProbs,
    /// Tokens of the preferred answer that were the model's first choice.
    pub correct_tokens: usize,
}

/// Scores both answers of each pair under the base model, or with an adapter: one
/// [`PairEvaluation`] per pair. The prompt is computed once for both.
///
/// # Errors
/// When a token is unknown, on cancellation, or when the device fails.
pub fn evaluate_pairs(
    decoder: &Decoder,
    adapter: Option<&Adapter>,
    pairs: &[TokenizedPair],
    limits: PassLimits,
    cancel: &CancelToken,
) -> Result<Vec<PairEvaluation>, EngineError> {
    let log_probs = PairLogProbs { chosen: 0.0, rejected: 0.0 };
    let mut results = vec![PairEvaluation { log_probs, correct_tokens: 0 }; pairs.len()];
    for range in passes(pairs.iter().map(TokenizedPair::pass_rows), limits.max_pass_tokens) {
        let batch = PackedBatch::from_pairs(&pairs[range.clone()]);
        score(decoder, adapter, &batch, limits.score_rows, cancel, |group, log_prob, correct| {
            let PairEvaluation { log_probs, correct_tokens } =
                &mut results[range.start + group / 2];
            if group % 2 == 0 {
                log_probs.chosen += log_prob;
                *correct_tokens += usize::from(correct);
            } else {
                log_probs.rejected += log_prob;
            }
        })?;
    }
    Ok(results)
}

/// Calls `each(group, log_prob, correct)` for every target of a batch.
fn score(
    decoder: &Decoder,
    adapter: Option<&Adapter>,
    batch: &PackedBatch,
    score_rows: usize,
    cancel: &CancelToken,
    mut each: impl FnMut(usize, f64, bool),
) -> Result<(), EngineError> {
    if batch.targets.is_empty() {
        return Ok(());
    }
    let lora = adapter.map(|adapter| decoder.lora_tensors(adapter)).transpose()?;
    let options = PassOptions {
        lora: lora.as_ref(),
        score_rows,
        cancel: cancel.clone(),
        ..PassOptions::default()
    };
    let scores = decoder.score_after(&Cache::new(), batch, &options)?;
    for (target, (log_prob, correct)) in
        batch.targets.iter().zip(scores.log_probs.into_iter().zip(scores.correct))
    {
        each(target.group as usize, log_prob, correct);
    }
    Ok(())
}
