//! What one optimiser step learns from: passes through the decoder, and how the log-probabilities
//! that they yield become a loss.

use std::ops::Range;

use super::trainer::passes;
use super::{PairLogProbs, PairScores, PreferenceLoss, PreferenceReport, StepReport, TrainError};
use crate::data::{TokenizedExample, TokenizedPair};
use crate::model::PackedBatch;

/// The samples of one optimiser step and their loss.
#[derive(Debug, Clone)]
pub struct Lesson<'s> {
    samples: Samples<'s>,
    report: StepReport,
}

#[derive(Debug, Clone)]
enum Samples<'s> {
    Answers {
        examples: &'s [TokenizedExample],
        /// Derivative of the loss by each log-probability.
        weight: f64,
    },
    Preferences {
        pairs: &'s [TokenizedPair],
        reference: Vec<PairLogProbs>,
        loss: PreferenceLoss,
        beta: f64,
    },
}

impl<'s> Lesson<'s> {
    /// Supervised fine-tuning: the loss is the mean negative log-probability of the supervised
    /// tokens of all `examples` together.
    ///
    /// # Errors
    /// When nothing is supervised.
    pub fn answers(examples: &'s [TokenizedExample]) -> Result<Self, TrainError> {
        let supervised_tokens: usize =
            examples.iter().map(TokenizedExample::supervised_tokens).sum();
        if supervised_tokens == 0 {
            return Err(TrainError::NothingSupervised);
        }
        let report = StepReport {
            rows: examples.len(),
            tokens: examples.iter().map(|example| example.ids.len()).sum(),
            supervised_tokens,
            ..StepReport::default()
        };
        let weight = -1.0 / supervised_tokens as f64;
        Ok(Self { samples: Samples::Answers { examples, weight }, report })
    }

    /// Preference training: the loss is the mean over `pairs`, against the log-probabilities
    /// `reference`, one per pair ([`super::Reference`]); they are not looked at where the loss needs
    /// none.
    ///
    /// # Errors
    /// When there are no pairs.
    ///
    /// # Panics
    /// When there are not as many references as pairs.
    pub fn preferences(
        pairs: &'s [TokenizedPair],
        reference: Vec<PairLogProbs>,
        loss: PreferenceLoss,
        beta: f64,
    ) -> Result<Self, TrainError> {
        assert_eq!(pairs.len(), reference.len(), "one reference per pair");
        if pairs.is_empty() {
            return Err(TrainError::NothingSupervised);
        }
        let report = StepReport {
            rows: pairs.len(),
            tokens: pairs.iter().map(TokenizedPair::num_tokens).sum(),
            supervised_tokens: pairs.iter().map(|p| p.chosen.len() + p.rejected.len()).sum(),
            preference: Some(PreferenceReport::default()),
            ..StepReport::default()
        };
        Ok(Self { samples: Samples::Preferences { pairs, reference, loss, beta }, report })
    }

    /// The samples in passes of at most `max_tokens` rows, by their numbers.
    pub(super) fn passes(&self, max_tokens: usize) -> Vec<Range<usize>> {
        match &self.samples {
            Samples::Answers { examples, .. } => {
                passes(examples.iter().map(TokenizedExample::pass_rows), max_tokens).collect()
            }
            Samples::Preferences { pairs, .. } => {
                passes(pairs.iter().map(TokenizedPair::pass_rows), max_tokens).collect()
            }
        }
    }

    /// Some samples, laid end to end.
    pub(super) fn batch(&self, samples: Range<usize>) -> PackedBatch {
        match &self.samples {
            Samples::Answers { examples, .. } => PackedBatch::from_examples(&examples[samples]),
            Samples::Preferences { pairs, .. } => PackedBatch::from_pairs(&pairs[samples]),
        }
    }

    /// Takes in the log-probabilities of the targets of `batch`, which holds `samples`; yields the
    /// derivative of the loss by each.
    pub(super) fn weigh(
        &mut self,
        samples: Range<usize>,
        batch: &PackedBatch,
        log_probs: &[f64],
    ) -> Vec<f64> {
        match &self.samples {
            Samples::Answers { weight, .. } => {
                self.report.loss += log_probs.iter().map(|log_prob| weight * log_prob).sum::<f64>();
                vec![*weight; log_probs.len()]
            }
            Samples::Preferences { pairs, reference, loss, beta } => {
                let mut sums = vec![0.0; batch.groups];
                for (target, log_prob) in batch.targets.iter().zip(log_probs) {
                    sums[target.group as usize] += log_prob;
                }
                let scale = 1.0 / pairs.len() as f64;
                let mut slopes = Vec::with_capacity(batch.groups);
                let (mut total, mut judged) = (0.0, PreferenceReport::default());
                for (sums, row) in sums.chunks_exact(2).zip(samples) {
                    let policy = PairLogProbs { chosen: sums[0], rejected: sums[1] };
                    let scores = PairScores::new(&pairs[row], policy, reference[row]);
                    let pair = loss.of_pair(&scores, *beta);
                    judged.add(&PreferenceReport::of_pair(policy, pair.rewards), scale);
                    total += scale * pair.value;
                    slopes.extend(pair.slopes.map(|slope| scale * slope));
                }
                self.report.loss += total;
                self.report.preference.get_or_insert_default().add(&judged, 1.0);
                batch.targets.iter().map(|target| slopes[target.group as usize]).collect()
            }
        }
    }

    /// What the samples came to, once all passes were weighed: the algorithm's own part of the loss
    /// is not in it, nor the gradient's norm.
    pub(super) fn into_report(self) -> StepReport {
        self.report
    }
}
