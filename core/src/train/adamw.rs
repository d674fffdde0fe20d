//! AdamW (Loshchilov & Hutter 2019), in place, as PyTorch computes it.

use rayon::iter::{ParallelBridge, ParallelIterator};
use serde::{Deserialize, Serialize};

use crate::adapter::{LayoutMismatch, ParameterSet};

/// Constants of [`AdamW`]; the defaults are PyTorch's, without weight decay.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AdamWOptions {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub epsilon: f64,
    /// Decoupled weight decay, per step and unit of learning rate.
    pub weight_decay: f64,
}

impl Default for AdamWOptions {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 }
    }
}

/// The optimiser's state: both moments of every parameter and the number of steps taken.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    /// Constants.
    pub options: AdamWOptions,
    /// Steps taken.
    pub steps: u64,
    /// Running mean of the gradients.
    pub first_moment: ParameterSet,
    /// Running mean of their squares.
    pub second_moment: ParameterSet,
}

impl AdamW {
    /// A fresh optimiser for parameters of the layout of `parameters`.
    pub fn new(options: AdamWOptions, parameters: &ParameterSet) -> Self {
        Self {
            options,
            steps: 0,
            first_moment: parameters.zeros_like(),
            second_moment: parameters.zeros_like(),
        }
    }

    /// One step on `parameters` along `gradient`, at `learning_rate`.
    ///
    /// # Errors
    /// When the layouts differ; nothing is changed then.
    pub fn step(
        &mut self,
        parameters: &mut ParameterSet,
        gradient: &ParameterSet,
        learning_rate: f64,
    ) -> Result<(), LayoutMismatch> {
        self.first_moment.check_layout(parameters)?;
        self.first_moment.check_layout(gradient)?;
        self.steps += 1;
        let AdamWOptions { beta1, beta2, epsilon, weight_decay } = self.options;
        let steps = self.steps as f64;
        let correction1 = 1.0 - beta1.powf(steps);
        let correction2 = (1.0 - beta2.powf(steps)).sqrt();
        let tensors = parameters
            .values_mut()
            .zip(gradient.iter())
            .zip(self.first_moment.values_mut().zip(self.second_moment.values_mut()));
        // Each value depends on its own gradient alone, so the bits do not depend on the threads.
        tensors.par_bridge().for_each(|((values, gradient), (first, second))| {
            let moments = first.iter_mut().zip(second.iter_mut());
            for ((value, &g), (m, v)) in values.iter_mut().zip(&gradient.values).zip(moments) {
                let g = f64::from(g);
                let mean = beta1 * f64::from(*m) + (1.0 - beta1) * g;
                let square = beta2 * f64::from(*v) + (1.0 - beta2) * g * g;
                let update = mean / correction1 / (square.sqrt() / correction2 + epsilon);
                let decayed = f64::from(*value) * (1.0 - learning_rate * weight_decay);
                *value = (decayed - learning_rate * update) as f32;
                (*m, *v) = (mean as f32, square as f32);
            }
        });
        Ok(())
    }
}
