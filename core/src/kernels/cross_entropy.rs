//! The language-model head and its loss.
//!
//! For a row of logits `l` with target `t`: `log p = l[t] - log Σ exp l`. The loss of a row is
//! `-weight·log p`, and its gradient `dl = weight·(softmax(l) - [t])`, which takes the logits' place.

use rayon::prelude::*;

use super::isa::{Isa, multiversion};
use super::lanes::{LANES, exp, max, mul_add, sum_lanes};
use super::{Output, Precision, frozen_matmul_all, frozen_matmul_transposed};
use crate::weight::FrozenWeight;

/// What the logits of one row showed.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SoftmaxRow {
    largest: f32,
    largest_at: u32,
    /// `Σ exp(l - largest)`.
    sum: f32,
    target: f32,
}

impl SoftmaxRow {
    /// `log Σ exp l`.
    pub fn log_sum_exp(&self) -> f32 {
        self.largest + self.sum.ln()
    }

    /// The log-probability of the row's target.
    pub fn log_probability(&self) -> f32 {
        // The difference first: it is exact where the target is the likeliest.
        (self.target - self.largest) - self.sum.ln()
    }

    /// The column with the largest logit; the first of several.
    pub fn predicted(&self) -> u32 {
        self.largest_at
    }
}

/// The head and loss of `targets.len()` positions, whose logits all exist at once: `hidden` is
/// `[positions, w.cols]`, `w` the head's matrix `[vocabulary, w.cols]`. Returns what the softmax of
/// each position showed. With `d_hidden`, the gradient of `Σ -weight·log p` replaces its content.
///
/// # Panics
/// When the lengths do not fit each other or a target is outside the vocabulary.
pub fn linear_cross_entropy(
    hidden: &[f32],
    w: &FrozenWeight,
    targets: &[u32],
    weights: &[f32],
    d_hidden: Option<&mut [f32]>,
    precision: Precision,
) -> Vec<SoftmaxRow> {
    let (m, vocabulary, width) = (targets.len(), w.rows(), w.cols());
    assert_eq!(hidden.len(), m * width, "hidden states of {m} positions");
    assert_eq!(weights.len(), m, "a weight for each position");
    assert!(targets.iter().all(|&target| (target as usize) < vocabulary), "targets");
    let mut logits = frozen_matmul_all(hidden, m, &[w], precision).pop().unwrap_or_default();
    let isa = Isa::active();
    let each = logits.par_chunks(vocabulary.max(1)).zip(targets);
    let rows: Vec<SoftmaxRow> =
        each.map(|(logits, &target)| softmax(isa, logits, target)).collect();
    if let Some(d_hidden) = d_hidden {
        assert_eq!(d_hidden.len(), m * width, "gradient of the hidden states");
        let each = logits.par_chunks_mut(vocabulary.max(1)).zip(&rows).zip(targets).zip(weights);
        each.for_each(|(((logits, row), &target), &weight)| {
            gradient(isa, logits, row, weight);
            logits[target as usize] -= weight;
        });
        let whole = 0..vocabulary;
        frozen_matmul_transposed(&logits, m, w, whole, d_hidden, Output::Overwrite, precision);
    }
    rows
}

multiversion! {
    fn softmax(logits: &[f32], target: u32) -> SoftmaxRow = softmax_row
}

#[inline(always)]
fn softmax_row<const FMA: bool>(logits: &[f32], target: u32) -> SoftmaxRow {
    let largest = max(logits);
    let largest_at = logits.iter().position(|&l| l == largest).unwrap_or(0) as u32;
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] += exp::<FMA>(chunk[i] - largest);
        }
    }
    for (lane, l) in lanes.iter_mut().zip(rest) {
        *lane += exp::<FMA>(l - largest);
    }
    SoftmaxRow { largest, largest_at, sum: sum_lanes(lanes), target: logits[target as usize] }
}

multiversion! {
    fn gradient(logits: &mut [f32], row: &SoftmaxRow, weight: f32) = gradient_row
}

#[inline(always)]
fn gradient_row<const FMA: bool>(logits: &mut [f32], row: &SoftmaxRow, weight: f32) {
    let factor = weight / row.sum;
    for l in logits {
        *l = mul_add::<FMA>(exp::<FMA>(*l - row.largest), factor, 0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{central_difference, close, random};
    use super::*;

    /// `Σ -weight·log p` over all positions.
    fn loss(hidden: &[f64], w: &[f32], targets: &[u32], weights: &[f32]) -> f64 {
        let width = hidden.len() / targets.len();
        let rows = hidden.chunks(width).zip(targets.iter().zip(weights));
        rows.map(|(h, (&target, &weight))| {
            let logits: Vec<f64> = w
                .chunks(width)
                .map(|w| w.iter().zip(h).map(|(w, h)| f64::from(*w) * h).sum())
                .collect();
            let sum: f64 = logits.iter().map(|l| l.exp()).sum();
            f64::from(weight) * (sum.ln() - logits[target as usize])
        })
        .sum()
    }

    #[test]
    fn the_head_gives_the_loss_and_its_slope() {
        let (m, width, vocabulary) = (5, 32, 77);
        let hidden: Vec<f32> = random(m * width, 1);
        let w: Vec<f32> = random(vocabulary * width, 2);
        let weight = FrozenWeight::from_f32("head", (vocabulary, width), &w).unwrap();
        let (targets, weights) = ([3, 76, 0, 40, 40], [1.0, 0.5, -2.0, 0.0, 1.0]);
        let mut slope = vec![f32::NAN; m * width];
        let d_hidden = Some(&mut slope[..]);
        let rows =
            linear_cross_entropy(&hidden, &weight, &targets, &weights, d_hidden, Precision::F32);
        let losses = rows.iter().zip(&weights);
        let found: f64 = losses.map(|(r, w)| -f64::from(r.log_probability()) * f64::from(*w)).sum();
        let exact: Vec<f64> = hidden.iter().map(|&h| f64::from(h)).collect();
        assert!((found - loss(&exact, &w, &targets, &weights)).abs() < 1e-5);
        for at in (0..m * width).step_by(7) {
            let expected = central_difference(&hidden, at, |h| loss(h, &w, &targets, &weights));
            assert!((f64::from(slope[at]) - expected).abs() < 1e-5);
        }
    }

    #[test]
    fn every_path_agrees_on_rows_of_any_length() {
        for n in [1, 31, 64, 1000] {
            let logits: Vec<f32> = random(n, 9).iter().map(|l| l * 30.0).collect();
            let exact_max = logits.iter().copied().fold(f32::MIN, f32::max);
            let exact: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum::<f64>().ln();
            for isa in Isa::all() {
                let row = softmax(isa, &logits, n as u32 - 1);
                assert!((f64::from(row.log_sum_exp()) - exact).abs() < 1e-4);
                assert_eq!(logits[row.predicted() as usize], exact_max);
                assert_eq!(row.target, logits[n - 1]);
                let mut slope = logits.clone();
                gradient(isa, &mut slope, &row, 2.0);
                let expected: Vec<f32> =
                    logits.iter().map(|&l| 2.0 * (f64::from(l) - exact).exp() as f32).collect();
                close(&slope, &expected, 1e-5);
            }
        }
    }

    #[test]
    fn a_row_of_huge_logits_stays_finite() {
        let row = softmax(Isa::active(), &[3e4, -3e4, 2.9e4], 0);
        assert_eq!(row.log_probability(), 0.0);
        assert_eq!(row.predicted(), 0);
    }
}
