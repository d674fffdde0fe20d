//! The language-model head and its loss, without ever holding all logits.
//!
//! For a row of logits `l` with target `t`: `log p = l[t] - log Σ exp l`. The loss of a row is
//! `-weight·log p`, and its gradient `dl = weight·(softmax(l) - [t])`. Sums over the vocabulary are
//! gathered chunk by chunk in a [`SoftmaxRow`].

use std::ops::Range;

use rayon::prelude::*;

use super::isa::{Isa, multiversion};
use super::lanes::{LANES, exp, max, mul_add, sum_lanes};
use super::{Output, Precision, frozen_matmul, frozen_matmul_transposed};
use crate::weight::FrozenWeight;

/// What the logits of one row have shown so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SoftmaxRow {
    largest: f32,
    largest_at: u32,
    /// `Σ exp(l - largest)`.
    sum: f32,
    target: f32,
}

impl Default for SoftmaxRow {
    fn default() -> Self {
        Self { largest: f32::NEG_INFINITY, largest_at: 0, sum: 0.0, target: f32::NEG_INFINITY }
    }
}

impl SoftmaxRow {
    /// `log Σ exp l` over the logits seen.
    pub fn log_sum_exp(&self) -> f32 {
        self.largest + self.sum.ln()
    }

    /// The log-probability of the row's target, once all logits were seen.
    pub fn log_probability(&self) -> f32 {
        // The difference first: it is exact where the target is the likeliest.
        (self.target - self.largest) - self.sum.ln()
    }

    /// The column with the largest logit; the first of several.
    pub fn predicted(&self) -> u32 {
        self.largest_at
    }
}

/// Adds the logits of the vocabulary's columns `columns`, `[rows.len(), columns.len()]`, to what is
/// known of each row. Start from [`SoftmaxRow::default`] and pass every column once, in order.
///
/// # Panics
/// When the lengths do not fit each other.
pub fn softmax_chunk(
    logits: &[f32],
    columns: Range<usize>,
    targets: &[u32],
    rows: &mut [SoftmaxRow],
) {
    let width = columns.len();
    assert_eq!(logits.len(), rows.len() * width, "logits of {} rows", rows.len());
    assert_eq!(targets.len(), rows.len(), "a target for each row");
    if width == 0 {
        return;
    }
    let isa = Isa::active();
    logits.par_chunks(width).zip(rows).zip(targets).for_each(|((logits, row), &target)| {
        gather(isa, logits, columns.start, target, row);
    });
}

/// Replaces logits, of the same columns as in [`softmax_chunk`], by the gradient of
/// `Σ -weight·log p`. All columns must have been seen before.
///
/// # Panics
/// When the lengths do not fit each other.
pub fn cross_entropy_gradient(
    logits: &mut [f32],
    columns: Range<usize>,
    targets: &[u32],
    weights: &[f32],
    rows: &[SoftmaxRow],
) {
    let width = columns.len();
    assert_eq!(logits.len(), rows.len() * width, "logits of {} rows", rows.len());
    assert_eq!(targets.len(), rows.len(), "a target for each row");
    assert_eq!(weights.len(), rows.len(), "a weight for each row");
    if width == 0 {
        return;
    }
    let isa = Isa::active();
    let rows = rows.par_iter().zip(targets).zip(weights);
    logits.par_chunks_mut(width).zip(rows).for_each(|(logits, ((row, &target), &weight))| {
        gradient(isa, logits, row, weight);
        if columns.contains(&(target as usize)) {
            logits[target as usize - columns.start] -= weight;
        }
    });
}

/// How much of the logits is held at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadChunk {
    /// Positions at a time.
    pub positions: usize,
    /// Columns of the vocabulary at a time. Fewer than there are make the gradient compute every
    /// logit twice.
    pub columns: usize,
}

/// The head and loss of `targets.len()` positions: `hidden` is `[positions, w.cols]`, `w` the head's
/// matrix `[vocabulary, w.cols]`. Returns what the softmax of each position showed. With
/// `d_hidden`, the gradient of `Σ -weight·log p` replaces its content.
///
/// # Panics
/// When the lengths do not fit each other or a chunk size is 0.
pub fn linear_cross_entropy(
    hidden: &[f32],
    w: &FrozenWeight,
    targets: &[u32],
    weights: &[f32],
    d_hidden: Option<&mut [f32]>,
    chunk: HeadChunk,
    precision: Precision,
) -> Vec<SoftmaxRow> {
    let (m, vocabulary, width) = (targets.len(), w.rows(), w.cols());
    assert_eq!(hidden.len(), m * width, "hidden states of {m} positions");
    assert_eq!(weights.len(), m, "a weight for each position");
    assert!(chunk.positions > 0 && chunk.columns > 0, "chunks of at least one");
    let mut d_hidden = d_hidden;
    if let Some(d_hidden) = &d_hidden {
        assert_eq!(d_hidden.len(), m * width, "gradient of the hidden states");
    }
    let columns = chunk.columns.min(vocabulary);
    let mut logits = vec![0.0; chunk.positions.min(m) * columns];
    let mut rows = vec![SoftmaxRow::default(); m];
    for start in (0..m).step_by(chunk.positions) {
        let these = start..(start + chunk.positions).min(m);
        let hidden = &hidden[these.start * width..these.end * width];
        let (targets, weights) = (&targets[these.clone()], &weights[these.clone()]);
        let rows = &mut rows[these.clone()];
        let compute = |columns: Range<usize>, logits: &mut [f32]| {
            frozen_matmul(hidden, targets.len(), w, columns, logits, Output::Overwrite, precision);
        };
        for first in (0..vocabulary).step_by(columns.max(1)) {
            let part = first..(first + columns).min(vocabulary);
            let logits = &mut logits[..targets.len() * part.len()];
            compute(part.clone(), logits);
            softmax_chunk(logits, part, targets, rows);
        }
        let Some(d_hidden) = d_hidden.as_deref_mut() else { continue };
        let d_hidden = &mut d_hidden[these.start * width..these.end * width];
        for first in (0..vocabulary).step_by(columns.max(1)) {
            let part = first..(first + columns).min(vocabulary);
            let logits = &mut logits[..targets.len() * part.len()];
            if columns < vocabulary {
                compute(part.clone(), logits);
            }
            cross_entropy_gradient(logits, part.clone(), targets, weights, rows);
            let output = if first == 0 { Output::Overwrite } else { Output::Accumulate };
            frozen_matmul_transposed(logits, targets.len(), w, part, d_hidden, output, precision);
        }
    }
    rows
}

multiversion! {
    fn gather(logits: &[f32], first: usize, target: u32, row: &mut SoftmaxRow) = gather_row
}

#[inline(always)]
fn gather_row<const FMA: bool>(logits: &[f32], first: usize, target: u32, row: &mut SoftmaxRow) {
    let largest = max(logits);
    if largest > row.largest {
        let at = logits.iter().position(|&l| l == largest).unwrap_or(0);
        row.sum *= exp::<FMA>(row.largest - largest);
        (row.largest, row.largest_at) = (largest, (first + at) as u32);
    }
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] += exp::<FMA>(chunk[i] - row.largest);
        }
    }
    for (lane, l) in lanes.iter_mut().zip(rest) {
        *lane += exp::<FMA>(l - row.largest);
    }
    row.sum += sum_lanes(lanes);
    if let Some(&logit) = (target as usize).checked_sub(first).and_then(|at| logits.get(at)) {
        row.target = logit;
    }
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
    fn the_head_gives_the_same_loss_and_slope_in_chunks_of_any_size() {
        let (m, width, vocabulary) = (5, 32, 77);
        let hidden: Vec<f32> = random(m * width, 1);
        let w: Vec<f32> = random(vocabulary * width, 2);
        let weight = FrozenWeight::from_f32("head", (vocabulary, width), &w).unwrap();
        let (targets, weights) = ([3, 76, 0, 40, 40], [1.0, 0.5, -2.0, 0.0, 1.0]);
        for (positions, columns) in [(5, 77), (2, 100), (5, 10), (3, 1), (1, 64)] {
            let mut slope = vec![f32::NAN; m * width];
            let chunk = HeadChunk { positions, columns };
            let rows = linear_cross_entropy(
                &hidden,
                &weight,
                &targets,
                &weights,
                Some(&mut slope),
                chunk,
                Precision::F32,
            );
            let found: f64 = rows
                .iter()
                .zip(&weights)
                .map(|(r, w)| -f64::from(r.log_probability()) * f64::from(*w))
                .sum();
            let exact: Vec<f64> = hidden.iter().map(|&h| f64::from(h)).collect();
            assert!((found - loss(&exact, &w, &targets, &weights)).abs() < 1e-5);
            for at in (0..m * width).step_by(7) {
                let expected = central_difference(&hidden, at, |h| loss(h, &w, &targets, &weights));
                assert!((f64::from(slope[at]) - expected).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn every_path_agrees_on_rows_of_any_length() {
        for n in [1, 31, 64, 1000] {
            let logits: Vec<f32> = random(n, 9).iter().map(|l| l * 30.0).collect();
            let exact_max = logits.iter().copied().fold(f32::MIN, f32::max);
            let exact: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum::<f64>().ln();
            for isa in Isa::all() {
                let mut row = SoftmaxRow::default();
                let split = n / 3;
                gather(isa, &logits[..split], 0, n as u32 - 1, &mut row);
                gather(isa, &logits[split..], split, n as u32 - 1, &mut row);
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
        let mut row = SoftmaxRow::default();
        gather(Isa::active(), &[3e4, -3e4, 2.9e4], 0, 0, &mut row);
        assert_eq!(row.log_probability(), 0.0);
        assert_eq!(row.predicted(), 0);
    }
}
