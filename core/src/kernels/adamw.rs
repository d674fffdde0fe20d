//! The optimiser's arithmetic: AdamW as PyTorch computes it, and the norm that clipping needs.

use rayon::prelude::*;

use super::isa::{Isa, multiversion};
use super::lanes::mul_add;

/// Values that one task handles.
const TASK: usize = 1 << 13;

/// The settings of an AdamW step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the square root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay; each step multiplies parameters by `1 - learning_rate·weight_decay`.
    pub weight_decay: f64,
}

/// One AdamW step, in place. `first` and `second` are the moments, zero before the first step;
/// `step` counts from 1.
///
/// # Panics
/// When the lengths differ or `step` is 0.
pub fn adamw(
    settings: &AdamW,
    step: u64,
    parameters: &mut [f32],
    gradient: &[f32],
    first: &mut [f32],
    second: &mut [f32],
) {
    for other in [gradient.len(), first.len(), second.len()] {
        assert_eq!(parameters.len(), other, "AdamW parameters, gradient and moments");
    }
    assert!(step > 0, "AdamW steps count from 1");
    let isa = Isa::active();
    let factors = Factors::new(settings, step);
    (parameters.par_chunks_mut(TASK), gradient.par_chunks(TASK))
        .into_par_iter()
        .zip(first.par_chunks_mut(TASK).zip(second.par_chunks_mut(TASK)))
        .for_each(|((parameters, gradient), (first, second))| {
            update(isa, &factors, parameters, gradient, first, second);
        });
}

/// `Σ v²`, in f64, for gradient clipping.
pub fn squared_norm(values: &[f32]) -> f64 {
    let chunk = |chunk: &[f32]| chunk.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
    let parts: Vec<f64> = values.par_chunks(TASK).map(chunk).collect();
    parts.iter().sum()
}

/// What is the same for all parameters of a step.
#[derive(Debug)]
struct Factors {
    decay: f32,
    beta1: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    inverse_root_correction2: f32,
    epsilon: f32,
    step_size: f32,
}

impl Factors {
    fn new(settings: &AdamW, step: u64) -> Self {
        let &AdamW { learning_rate, beta1, beta2, epsilon, weight_decay } = settings;
        let correction1 = 1.0 - beta1.powf(step as f64);
        let correction2 = 1.0 - beta2.powf(step as f64);
        Self {
            decay: (1.0 - learning_rate * weight_decay) as f32,
            beta1: beta1 as f32,
            one_minus_beta1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            one_minus_beta2: (1.0 - beta2) as f32,
            inverse_root_correction2: (1.0 / correction2.sqrt()) as f32,
            epsilon: epsilon as f32,
            step_size: (learning_rate / correction1) as f32,
        }
    }
}

multiversion! {
    fn update(factors: &Factors, parameters: &mut [f32], gradient: &[f32], first: &mut [f32],
        second: &mut [f32]) = update_values
}

#[inline(always)]
fn update_values<const FMA: bool>(
    factors: &Factors,
    parameters: &mut [f32],
    gradient: &[f32],
    first: &mut [f32],
    second: &mut [f32],
) {
    let moments = first.iter_mut().zip(second);
    for ((p, &g), (m, v)) in parameters.iter_mut().zip(gradient).zip(moments) {
        *m = mul_add::<FMA>(*m, factors.beta1, factors.one_minus_beta1 * g);
        *v = mul_add::<FMA>(*v, factors.beta2, factors.one_minus_beta2 * g * g);
        let root = mul_add::<FMA>(v.sqrt(), factors.inverse_root_correction2, factors.epsilon);
        *p = mul_add::<FMA>(*p, factors.decay, -factors.step_size * *m / root);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::random;
    use super::*;

    #[test]
    fn every_path_follows_the_formula_in_f64() {
        let settings = AdamW {
            learning_rate: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.1,
        };
        for n in [1, 37, 130] {
            for isa in Isa::all() {
                let mut p = random(n, 0);
                let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
                let mut exact: Vec<_> = p.iter().map(|&p| (f64::from(p), 0.0, 0.0)).collect();
                for step in 1..=20 {
                    let g = random(n, step);
                    update(isa, &Factors::new(&settings, step), &mut p, &g, &mut m, &mut v);
                    for ((p, m, v), &g) in exact.iter_mut().zip(&g) {
                        let g = f64::from(g);
                        *p *= 1.0 - settings.learning_rate * settings.weight_decay;
                        *m = 0.9 * *m + 0.1 * g;
                        *v = 0.999 * *v + 0.001 * g * g;
                        let m_hat: f64 = *m / (1.0 - 0.9f64.powi(step as i32));
                        let v_hat: f64 = *v / (1.0 - 0.999f64.powi(step as i32));
                        *p -= settings.learning_rate * m_hat / (v_hat.sqrt() + 1e-8);
                    }
                }
                for (p, (exact, ..)) in p.iter().zip(&exact) {
                    assert!((f64::from(*p) - exact).abs() < 2e-6, "{p} and {exact}");
                }
            }
        }
    }

    #[test]
    fn the_norm_counts_every_value_whatever_the_threads() {
        let values = random(3 * TASK + 5, 1);
        let exact: f64 = values.iter().map(|&v| f64::from(v).powi(2)).sum();
        let one = super::super::Threads::new(1).unwrap().run(|| squared_norm(&values));
        let two = super::super::Threads::new(2).unwrap().run(|| squared_norm(&values));
        assert_eq!(one, two);
        assert!((one - exact).abs() < 1e-9 * exact);
    }
}
