//! A step of several trainers at once, through one forward and one backward pass over the samples of
//! all of them.
//!
//! Every trainer's samples are cut into passes as if it trained alone, and passes of several trainers
//! are then laid end to end. So each adapter meets its own rows in its own order, and since on the
//! processor no operation mixes rows of different sequences, what comes out are the bits of training
//! alone; on other devices matrix products may round differently with their height.

use std::ops::Range;

use super::trainer::passes;
use super::{Lesson, StepReport, TrainError, Trainer};
use crate::adapter::{Adapter, ParameterSet};
use crate::model::{Dropout, LoraTensors, PackedBatch, PassOptions};

/// A trainer's part of a common step.
#[derive(Debug)]
pub struct Step<'t, 'd, 's> {
    /// Who learns.
    pub trainer: &'t mut Trainer<'d>,
    /// From what.
    pub lesson: Lesson<'s>,
    /// How fast.
    pub learning_rate: f64,
}

/// Takes one step of each trainer. All of them use one decoder and have adapters of one shape; how
/// passes are laid out in memory is what the first one's options say.
///
/// What befalls one trainer alone, such as a loss that is no number, is its own result: its adapter
/// and optimiser are unchanged then, and the others go on.
///
/// # Errors
/// When the engine fails or is cancelled; no trainer is changed then.
pub fn step_together(
    mut steps: Vec<Step<'_, '_, '_>>,
) -> Result<Vec<Result<StepReport, TrainError>>, TrainError> {
    let gradients = gradients(&mut steps)?;
    let taken = steps.into_iter().zip(gradients).map(|(step, gradient)| {
        let Step { trainer, lesson, learning_rate } = step;
        trainer.apply(gradient.ok_or(TrainError::NothingSupervised)?, learning_rate, lesson)
    });
    Ok(taken.collect())
}

/// A pass of one trainer.
struct OwnPass {
    /// Whose it is, and which of its passes.
    step: usize,
    number: usize,
    samples: Range<usize>,
    batch: PackedBatch,
}

/// The gradient of each step's loss; `None` where nothing is supervised.
fn gradients(steps: &mut [Step<'_, '_, '_>]) -> Result<Vec<Option<ParameterSet>>, TrainError> {
    let mut sums: Vec<Option<ParameterSet>> = steps.iter().map(|_| None).collect();
    let Some(first) = steps.first() else { return Ok(sums) };
    let (decoder, cancel) = (first.trainer.decoder, first.trainer.cancel.clone());
    let options = &first.trainer.options;
    let (kept_layers, score_rows) = (options.kept_layers, options.score_rows);
    let shared_tokens = options.shared_pass_tokens.max(options.max_pass_tokens);

    let mut own = Vec::new();
    for (i, step) in steps.iter().enumerate() {
        let max_tokens = step.trainer.options.max_pass_tokens;
        for (number, samples) in step.lesson.passes(max_tokens).into_iter().enumerate() {
            let batch = step.lesson.batch(samples.clone());
            if !batch.targets.is_empty() {
                own.push(OwnPass { step: i, number, samples, batch });
            }
        }
    }
    let shared: Vec<_> = passes(own.iter().map(|pass| pass.batch.len()), shared_tokens).collect();
    let mut lora: Option<(Vec<usize>, LoraTensors)> = None;
    for shared in shared {
        let part = &own[shared];
        let owners: Vec<usize> = part.iter().map(|pass| pass.step).collect();
        let (_, lora) = match &mut lora {
            Some(known) if known.0 == owners => known,
            stale => {
                let adapter = |&i: &usize| steps[i].trainer.adapter();
                let adapters: Vec<&Adapter> = owners.iter().map(adapter).collect();
                stale.insert((owners, decoder.stacked_lora_tensors(&adapters)?))
            }
        };
        let dropout = part.iter().filter_map(|pass| steps[pass.step].trainer.dropout(pass.number));
        let dropout: Vec<Dropout> = dropout.collect();
        let options = PassOptions {
            lora: Some(lora),
            dropout: &dropout,
            kept_layers,
            score_rows,
            cancel: cancel.clone(),
        };
        let batch = PackedBatch::join(part.iter().map(|pass| &pass.batch));
        let state = decoder.forward(&batch, &options)?;
        let scores = decoder.score(&state, &batch.targets, true, &options)?;
        let mut weights = Vec::with_capacity(batch.targets.len());
        for OwnPass { step, samples, batch, .. } in part {
            let log_probs = &scores.log_probs[weights.len()..][..batch.targets.len()];
            weights.extend(steps[*step].lesson.weigh(samples.clone(), batch, log_probs));
        }
        let gradients = decoder.backward(&batch, state, scores, &weights, &options)?;
        for (pass, gradient) in part.iter().zip(gradients) {
            match &mut sums[pass.step] {
                None => sums[pass.step] = Some(gradient),
                Some(sum) => sum.zip_apply(&gradient, |sum, g| *sum += g)?,
            }
        }
    }
    Ok(sums)
}
