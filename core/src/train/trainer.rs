//! Training an adapter one optimiser step at a time.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{
    AdamW, AdamWOptions, Lesson, LocalObjective, PairLogProbs, PreferenceReport, Reference,
    ReferenceError, Step, step_together,
};
use crate::adapter::{Adapter, AdapterError, LayoutMismatch, ParameterSet, TrainedFactors};
use crate::data::{TokenizedExample, TokenizedPair};
use crate::memory::MemoryPlan;
use crate::model::{CancelToken, Decoder, Dropout, EngineError, SCORE_ROWS};

/// How an adapter is trained.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainOptions {
    /// The optimiser's constants.
    pub optimizer: AdamWOptions,
    /// Gradients with a larger L2 norm are scaled down to this one.
    pub max_grad_norm: Option<f64>,
    /// What the federated algorithm adds.
    pub objective: LocalObjective,
    /// Which of the adapter's factors are trained.
    pub trained: TrainedFactors,
    /// Seed of the adapter's dropout.
    pub seed: u64,
    /// Tokens computed in one pass. A batch with more is computed in several passes whose gradients
    /// add up; fewer tokens take less memory. A sequence is never divided.
    pub max_pass_tokens: usize,
    /// Tokens computed in one pass that several trainers share ([`step_together`]); at least those of
    /// one trainer's.
    pub shared_pass_tokens: usize,
    /// Layers, counted from the last, that keep their activations for the backward pass, where the
    /// others compute them again.
    pub kept_layers: usize,
    /// Rows of logits that exist at once.
    pub score_rows: usize,
}

impl TrainOptions {
    /// The same options, laid out in memory as `plan` says.
    #[must_use]
    pub fn with_plan(self, plan: &MemoryPlan) -> Self {
        let &MemoryPlan { max_pass_tokens, shared_pass_tokens, kept_layers, score_rows, .. } = plan;
        Self { max_pass_tokens, shared_pass_tokens, kept_layers, score_rows, ..self }
    }
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            optimizer: AdamWOptions::default(),
            max_grad_norm: None,
            objective: LocalObjective::Plain,
            trained: TrainedFactors::Both,
            seed: 0,
            max_pass_tokens: 2048,
            shared_pass_tokens: 2048,
            kept_layers: 0,
            score_rows: SCORE_ROWS,
        }
    }
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct StepReport {
    /// The objective before the step: mean over the supervised tokens of all sequences of the batch
    /// (SFT) or over its pairs (DPO), in nats, plus `proximal`.
    pub loss: f64,
    /// The part of the loss that the federated algorithm adds.
    pub proximal: f64,
    /// Sequences (SFT) or pairs (DPO).
    pub rows: usize,
    /// Tokens a plain implementation would process, without padding: for preferences prompt and
    /// answer of both sides, however much is shared.
    pub tokens: usize,
    /// Tokens that the loss counts.
    pub supervised_tokens: usize,
    /// L2 norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Rewards, in preference training.
    pub preference: Option<PreferenceReport>,
}

impl StepReport {
    /// What the loss is a mean over: supervised tokens, or pairs of answers.
    pub fn loss_terms(&self) -> usize {
        if self.preference.is_some() { self.rows } else { self.supervised_tokens }
    }
}

/// Why training cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The batch has nothing to learn from.
    #[error("the batch has no supervised token: check the template and the sequence length")]
    NothingSupervised,
    /// The loss or the gradient is not a number any more.
    #[error("training diverged at step {step}: the {what} is {value}; {}", diverged(*step))]
    Diverged {
        /// The step, from 1.
        step: u64,
        /// What is not finite.
        what: &'static str,
        /// Its value.
        value: f64,
    },
    /// The adapter does not fit the model.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// State or objective belong to another adapter.
    #[error(transparent)]
    Layout(#[from] LayoutMismatch),
    /// The engine failed or was cancelled.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The reference's log-probabilities cannot be kept.
    #[error(transparent)]
    Reference(ReferenceError),
}

/// Why training diverged at step `step`, and how to mend it.
fn diverged(step: u64) -> &'static str {
    match step {
        1 => {
            "no learning rate has had a say yet, so the model or the adapter that training starts \
             from holds values that are not finite or far too large"
        }
        _ => "use a lower learning rate",
    }
}

impl From<ReferenceError> for TrainError {
    /// A cancelled engine is a cancelled step, whoever used it.
    fn from(error: ReferenceError) -> Self {
        match error {
            ReferenceError::Engine(error) => Self::Engine(error),
            other => Self::Reference(other),
        }
    }
}

/// Everything that training changes: restored, it continues bit by bit as if never interrupted.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainerState {
    /// The adapter's parameters.
    pub parameters: ParameterSet,
    /// Optimiser steps taken.
    pub steps: u64,
    /// The optimiser's first moment.
    pub first_moment: ParameterSet,
    /// The optimiser's second moment.
    pub second_moment: ParameterSet,
}

/// Trains one adapter on one decoder.
#[derive(Debug)]
pub struct Trainer<'d> {
    pub(super) decoder: &'d Decoder,
    adapter: Adapter,
    optimizer: AdamW,
    pub(super) options: TrainOptions,
    pub(super) cancel: CancelToken,
}

impl<'d> Trainer<'d> {
    /// A trainer that starts from `adapter`, with a fresh optimiser.
    ///
    /// # Errors
    /// When the adapter does not fit the model.
    pub fn new(
        decoder: &'d Decoder,
        adapter: Adapter,
        options: TrainOptions,
    ) -> Result<Self, TrainError> {
        adapter.check_against(decoder.config())?;
        let optimizer = AdamW::new(options.optimizer, &adapter.parameters);
        Ok(Self { decoder, adapter, optimizer, options, cancel: CancelToken::default() })
    }

    /// Lets `cancel` end a running step within one layer's time; the step then changes nothing.
    #[must_use]
    pub fn with_cancel(mut self, cancel: CancelToken) -> Self {
        self.cancel = cancel;
        self
    }

    /// The adapter as it is now.
    pub fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// The adapter, at the end of training.
    pub fn into_adapter(self) -> Adapter {
        self.adapter
    }

    /// Optimiser steps taken.
    pub fn steps(&self) -> u64 {
        self.optimizer.steps
    }

    /// A copy of everything that training changes.
    pub fn state(&self) -> TrainerState {
        TrainerState {
            parameters: self.adapter.parameters.clone(),
            steps: self.optimizer.steps,
            first_moment: self.optimizer.first_moment.clone(),
            second_moment: self.optimizer.second_moment.clone(),
        }
    }

    /// Continues from a state of an earlier trainer.
    ///
    /// # Errors
    /// When the state belongs to an adapter of another layout; nothing is changed then.
    pub fn restore(&mut self, state: TrainerState) -> Result<(), TrainError> {
        for set in [&state.parameters, &state.first_moment, &state.second_moment] {
            self.adapter.parameters.check_layout(set)?;
        }
        self.adapter.parameters = state.parameters;
        self.optimizer.steps = state.steps;
        self.optimizer.first_moment = state.first_moment;
        self.optimizer.second_moment = state.second_moment;
        Ok(())
    }

    /// One step of supervised fine-tuning ([`Lesson::answers`]).
    ///
    /// # Errors
    /// As [`Trainer::learn`].
    pub fn step(
        &mut self,
        examples: &[TokenizedExample],
        learning_rate: f64,
    ) -> Result<StepReport, TrainError> {
        self.learn(Lesson::answers(examples)?, learning_rate)
    }

    /// One step.
    ///
    /// # Errors
    /// When nothing is supervised, training diverges, or the engine fails or is cancelled; the
    /// adapter and the optimiser are unchanged then.
    pub fn learn(
        &mut self,
        lesson: Lesson<'_>,
        learning_rate: f64,
    ) -> Result<StepReport, TrainError> {
        let taken = step_together(vec![Step { trainer: self, lesson, learning_rate }])?;
        // One step was asked for.
        taken.into_iter().next().unwrap_or(Err(TrainError::NothingSupervised))
    }

    /// The log-probabilities that `reference` holds of `pairs`, computed where it holds none yet.
    pub(super) fn look_up(
        &self,
        reference: &mut Reference,
        pairs: &[TokenizedPair],
    ) -> Result<Vec<PairLogProbs>, TrainError> {
        Ok(reference.log_probs(self.decoder, pairs, self.options.score_rows, &self.cancel)?)
    }

    /// Takes one optimiser step along `gradient`, that of a lesson all of whose passes were weighed,
    /// with what the federated algorithm adds.
    pub(super) fn apply(
        &mut self,
        mut gradient: ParameterSet,
        learning_rate: f64,
        lesson: Lesson<'_>,
    ) -> Result<StepReport, TrainError> {
        let report = lesson.into_report();
        let step = self.optimizer.steps + 1;
        let proximal =
            self.options.objective.add_gradient(&self.adapter.parameters, &mut gradient)?;
        let trained = self.options.trained;
        for (entry, values) in self.adapter.parameters.iter().zip(gradient.values_mut()) {
            if !trained.include(&entry.name) {
                values.fill(0.0);
            }
        }
        let loss = report.loss + proximal;
        let grad_norm = gradient.l2_norm();
        for (what, value) in [("loss", loss), ("gradient's norm", grad_norm)] {
            if !value.is_finite() {
                return Err(TrainError::Diverged { step, what, value });
            }
        }
        if let Some(max) = self.options.max_grad_norm {
            let factor = max / (grad_norm + 1e-6);
            if factor < 1.0 {
                for values in gradient.values_mut() {
                    values.iter_mut().for_each(|g| *g = (f64::from(*g) * factor) as f32);
                }
            }
        }
        // Weight decay and control variates would move what has no gradient, too.
        let frozen = (trained != TrainedFactors::Both).then(|| self.adapter.parameters.clone());
        let parameters = &mut self.adapter.parameters;
        self.optimizer.step(parameters, &gradient, learning_rate)?;
        self.options.objective.after_step(parameters, learning_rate)?;
        for (before, values) in
            frozen.iter().flat_map(ParameterSet::iter).zip(parameters.values_mut())
        {
            if !trained.include(&before.name) {
                values.copy_from_slice(&before.values);
            }
        }
        Ok(StepReport { loss, proximal, grad_norm, ..report })
    }

    /// Dropout of pass `pass` of the next step.
    pub(super) fn dropout(&self, pass: usize) -> Option<Dropout> {
        let probability = self.adapter.config.dropout;
        // Distinct seeds for distinct (seed, step, pass): odd multipliers are bijections of u64.
        let seed = self
            .options
            .seed
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .wrapping_add(self.optimizer.steps.wrapping_mul(0xd134_2543_de82_ef95))
            .wrapping_add(pass as u64);
        (probability > 0.0).then_some(Dropout { probability, seed })
    }
}

/// Divides sequences of these lengths, in order, into passes of at most `max_tokens` tokens; a longer
/// sequence is a pass of its own.
pub(super) fn passes(
    lens: impl Iterator<Item = usize>,
    max_tokens: usize,
) -> impl Iterator<Item = Range<usize>> {
    let mut lens = lens.enumerate().peekable();
    std::iter::from_fn(move || {
        let (start, mut tokens) = lens.next()?;
        let mut end = start + 1;
        while let Some((i, len)) = lens.next_if(|(_, len)| tokens + len <= max_tokens) {
            tokens += len;
            end = i + 1;
        }
        Some(start..end)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_hold_as_many_whole_sequences_as_fit() {
        let ranges: Vec<_> = passes([3, 4, 9, 1, 1, 5].into_iter(), 7).collect();
        assert_eq!(ranges, [0..2, 2..3, 3..6]);
    }
}
