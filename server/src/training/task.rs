//! What is learnt from rows: answers (SFT) or preferences (DPO and its kin).

use fleetune_core::adapter::Adapter;
use fleetune_core::data::{Dataset, DatasetError, Encoder, TokenizedExample, TokenizedPair};
use fleetune_core::model::{CancelToken, Decoder};
use fleetune_core::train::{PreferenceLoss, ReferenceCache, StepReport, Trainer};

use super::RunError;

/// The kind of learning.
#[derive(Debug)]
pub enum Task {
    /// Answers are learnt word by word.
    Answers,
    /// Of two answers the better one is learnt.
    Preferences(Preferences),
}

/// How preferences are learnt.
#[derive(Debug)]
pub struct Preferences {
    /// The loss.
    pub loss: PreferenceLoss,
    /// Strength β.
    pub beta: f64,
    /// The adapter whose log-probabilities are the reference; the base model's where there is none.
    pub reference: Option<Adapter>,
    /// Log-probabilities under the reference, which never change.
    pub log_probs: ReferenceCache,
}

/// A row, tokenised for the task.
#[derive(Debug)]
pub(super) enum Sample {
    Answer(TokenizedExample),
    Pair(TokenizedPair),
}

impl Sample {
    /// Tokens that a plain implementation would process.
    pub fn num_tokens(&self) -> usize {
        match self {
            Self::Answer(example) => example.ids.len(),
            Self::Pair(pair) => pair.num_tokens(),
        }
    }

    fn answer(self) -> Option<TokenizedExample> {
        if let Self::Answer(example) = self { Some(example) } else { None }
    }

    fn pair(self) -> Option<TokenizedPair> {
        if let Self::Pair(pair) = self { Some(pair) } else { None }
    }
}

impl Task {
    /// Tokenises row `row`; `None` where nothing to learn is left within the sequence length.
    pub(super) fn sample(
        &self,
        dataset: &Dataset,
        encoder: &Encoder<'_>,
        row: u32,
    ) -> Result<Option<Sample>, DatasetError> {
        Ok(match self {
            Self::Answers => dataset.example(row, encoder)?.map(Sample::Answer),
            Self::Preferences(_) => dataset.pair(row, encoder)?.map(Sample::Pair),
        })
    }

    /// Takes one optimiser step on samples of this task.
    pub(super) fn step(
        &mut self,
        samples: Vec<Sample>,
        trainer: &mut Trainer<'_>,
        engine: &StepEngine<'_>,
        learning_rate: f64,
    ) -> Result<StepReport, RunError> {
        match self {
            Self::Answers => {
                let examples: Vec<_> = samples.into_iter().filter_map(Sample::answer).collect();
                Ok(trainer.step(&examples, learning_rate)?)
            }
            Self::Preferences(how) => {
                let pairs: Vec<_> = samples.into_iter().filter_map(Sample::pair).collect();
                let reference = how.log_probs.log_probs(
                    engine.decoder,
                    how.reference.as_ref(),
                    &pairs,
                    engine.max_pass_tokens,
                    &engine.cancel,
                )?;
                let (loss, beta) = (how.loss, how.beta);
                Ok(trainer.step_preferences(&pairs, &reference, loss, beta, learning_rate)?)
            }
        }
    }
}

/// What a step computes with, besides the trainer.
#[derive(Debug)]
pub(super) struct StepEngine<'a> {
    pub decoder: &'a Decoder,
    pub max_pass_tokens: usize,
    pub cancel: CancelToken,
}
