//! What is learnt from rows: answers (SFT) or preferences (DPO and its kin).

use super::{Lesson, PairLogProbs, PreferenceLoss, Reference, StepReport, TrainError, Trainer};
use crate::data::{Dataset, DatasetError, Encoder, TokenizedExample, TokenizedPair};

/// A way of learning: how a row becomes a sample, and what a step on samples does.
pub trait Learner {
    /// A row, tokenised.
    type Sample;

    /// Row `row` as a sample; `None` where nothing to learn is left within the sequence length.
    ///
    /// # Errors
    /// When the row cannot be read or tokenised.
    fn sample(
        dataset: &Dataset,
        row: u32,
        encoder: &Encoder<'_>,
    ) -> Result<Option<Self::Sample>, DatasetError>;

    /// Rows that a sample takes in a pass.
    fn pass_rows(sample: &Self::Sample) -> usize;

    /// Tokens of a sample that a pass is asked to predict.
    fn targets(sample: &Self::Sample) -> usize;

    /// The most rows of a sample whose sequences have at most `seq_len`.
    fn longest(seq_len: usize) -> usize;

    /// What an optimiser step of `trainer` on `samples` learns from.
    ///
    /// # Errors
    /// When there is nothing to learn, or what it needs besides the samples cannot be computed.
    fn lesson<'s>(
        &mut self,
        trainer: &Trainer<'_>,
        samples: &'s [Self::Sample],
    ) -> Result<Lesson<'s>, TrainError>;

    /// Takes one optimiser step.
    ///
    /// # Errors
    /// As [`Learner::lesson`] and [`Trainer::learn`].
    fn step(
        &mut self,
        trainer: &mut Trainer<'_>,
        samples: &[Self::Sample],
        learning_rate: f64,
    ) -> Result<StepReport, TrainError> {
        let lesson = self.lesson(trainer, samples)?;
        trainer.learn(lesson, learning_rate)
    }
}

/// Learns answers token by token.
#[derive(Debug, Clone, Copy, Default)]
pub struct AnswerLearner;

impl Learner for AnswerLearner {
    type Sample = TokenizedExample;

    fn sample(
        dataset: &Dataset,
        row: u32,
        encoder: &Encoder<'_>,
    ) -> Result<Option<TokenizedExample>, DatasetError> {
        dataset.example(row, encoder)
    }

    fn pass_rows(sample: &TokenizedExample) -> usize {
        sample.pass_rows()
    }

    fn targets(sample: &TokenizedExample) -> usize {
        sample.supervised_tokens()
    }

    fn longest(seq_len: usize) -> usize {
        seq_len
    }

    fn lesson<'s>(
        &mut self,
        _: &Trainer<'_>,
        samples: &'s [TokenizedExample],
    ) -> Result<Lesson<'s>, TrainError> {
        Lesson::answers(samples)
    }
}

/// Learns which of two answers is better.
#[derive(Debug)]
pub struct PreferenceLearner {
    /// The loss.
    pub loss: PreferenceLoss,
    /// Strength β.
    pub beta: f64,
    /// What rewards are measured against; asked only where the loss needs it.
    pub reference: Reference,
}

impl Learner for PreferenceLearner {
    type Sample = TokenizedPair;

    fn sample(
        dataset: &Dataset,
        row: u32,
        encoder: &Encoder<'_>,
    ) -> Result<Option<TokenizedPair>, DatasetError> {
        dataset.pair(row, encoder)
    }

    fn pass_rows(sample: &TokenizedPair) -> usize {
        sample.pass_rows()
    }

    fn targets(sample: &TokenizedPair) -> usize {
        sample.chosen.len() + sample.rejected.len()
    }

    fn longest(seq_len: usize) -> usize {
        2 * seq_len
    }

    fn lesson<'s>(
        &mut self,
        trainer: &Trainer<'_>,
        samples: &'s [TokenizedPair],
    ) -> Result<Lesson<'s>, TrainError> {
        let reference = if self.loss.needs_reference() {
            trainer.look_up(&mut self.reference, samples)?
        } else {
            vec![PairLogProbs { chosen: 0.0, rejected: 0.0 }; samples.len()]
        };
        Lesson::preferences(samples, reference, self.loss, self.beta)
    }
}
