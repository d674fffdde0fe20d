//! RMSNorm: `y = x · w / sqrt(mean(x²) + ε)`, row by row.
//!
//! With `s = 1 / sqrt(mean(x²) + ε)` and rows of `n` values, the gradient is
//! `dx = s·(w·dy) - x · s³/n · Σ(w·dy·x)`; `s` costs one pass over a row and is not kept. The weight `w`
//! is frozen and has no gradient here. A norm of each head is the same function with a row for each
//! head.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::Output;
use super::isa::{Isa, multiversion};
use super::lanes::{dot, mul_add};
use super::shared::filled;

/// Values that one task handles, so that starting it does not matter.
const TASK: usize = 1 << 14;

/// The rows of `x`, which are as long as `weight`, normalised.
///
/// # Panics
/// When `x` is not `[rows, weight.len()]`.
pub fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32) -> Vec<f32> {
    assert_eq!(x.len() % weight.len().max(1), 0, "RMSNorm input");
    let fill = |at: usize, y: &mut [MaybeUninit<f32>]| {
        forward(Isa::active(), &x[at..at + y.len()], weight, epsilon, y);
    };
    // SAFETY: each part is whole rows, of which `forward` writes all values.
    unsafe { filled(x.len(), rows_of_task(weight), fill) }
}

/// The gradient of [`rms_norm`] with respect to `x`, from its input and the gradient `dy` of its
/// output.
///
/// # Panics
/// When `x` is not `[rows, weight.len()]`, or `dy` or `dx` not of its length.
pub fn rms_norm_backward(
    x: &[f32],
    weight: &[f32],
    epsilon: f32,
    dy: &[f32],
    dx: &mut [f32],
    output: Output,
) {
    assert_eq!(x.len() % weight.len().max(1), 0, "RMSNorm input");
    assert_eq!(x.len(), dy.len(), "gradient of the RMSNorm output");
    assert_eq!(x.len(), dx.len(), "gradient of the RMSNorm input");
    let rows = rows_of_task(weight);
    x.par_chunks(rows)
        .zip(dy.par_chunks(rows))
        .zip(dx.par_chunks_mut(rows))
        .for_each(|((x, dy), dx)| backward(Isa::active(), x, weight, epsilon, dy, dx, output));
}

/// Values of the whole rows that one task handles.
fn rows_of_task(weight: &[f32]) -> usize {
    let cols = weight.len().max(1);
    (TASK / cols).max(1) * cols
}

multiversion! {
    fn forward(x: &[f32], weight: &[f32], epsilon: f32, y: &mut [MaybeUninit<f32>]) = forward_rows
}

#[inline(always)]
fn forward_rows<const FMA: bool>(
    x: &[f32],
    weight: &[f32],
    epsilon: f32,
    y: &mut [MaybeUninit<f32>],
) {
    let cols = weight.len();
    for (x, y) in x.chunks_exact(cols).zip(y.chunks_exact_mut(cols)) {
        let scale = inverse_rms::<FMA>(x, epsilon);
        for (y, (x, w)) in y.iter_mut().zip(x.iter().zip(weight)) {
            y.write(x * scale * w);
        }
    }
}

/// `s` of a row.
#[inline(always)]
fn inverse_rms<const FMA: bool>(row: &[f32], epsilon: f32) -> f32 {
    1.0 / (dot::<FMA>(row, row) / row.len() as f32 + epsilon).sqrt()
}

multiversion! {
    fn backward(x: &[f32], weight: &[f32], epsilon: f32, dy: &[f32], dx: &mut [f32],
        output: Output) = backward_rows
}

#[inline(always)]
fn backward_rows<const FMA: bool>(
    x: &[f32],
    weight: &[f32],
    epsilon: f32,
    dy: &[f32],
    dx: &mut [f32],
    output: Output,
) {
    let cols = weight.len();
    let rows = x.chunks_exact(cols).zip(dy.chunks_exact(cols)).zip(dx.chunks_exact_mut(cols));
    for ((x, dy), dx) in rows {
        let scale = inverse_rms::<FMA>(x, epsilon);
        // dx may hold what is added to, so w·dy is not kept in it but computed twice.
        let mut product = 0.0;
        for ((x, dy), w) in x.chunks(512).zip(dy.chunks(512)).zip(weight.chunks(512)) {
            let mut weighted = [0.0; 512];
            for (weighted, (dy, w)) in weighted.iter_mut().zip(dy.iter().zip(w)) {
                *weighted = dy * w;
            }
            product += dot::<FMA>(x, &weighted[..x.len()]);
        }
        let along = -product * scale * scale * scale / cols as f32;
        let terms = x.iter().zip(dy.iter().zip(weight));
        match output {
            Output::Overwrite => {
                for (dx, (x, (dy, w))) in dx.iter_mut().zip(terms) {
                    *dx = mul_add::<FMA>(*x, along, dy * w * scale);
                }
            }
            Output::Accumulate => {
                for (dx, (x, (dy, w))) in dx.iter_mut().zip(terms) {
                    *dx += mul_add::<FMA>(*x, along, dy * w * scale);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{central_difference, close, random};
    use super::*;

    fn loss(x: &[f64], weight: &[f32], dy: &[f32]) -> f64 {
        let n = weight.len();
        x.chunks(n)
            .zip(dy.chunks(n))
            .map(|(x, dy)| {
                let mean = x.iter().map(|x| x * x).sum::<f64>() / n as f64;
                let scale = 1.0 / (mean + 1e-5).sqrt();
                (0..n).map(|i| x[i] * scale * f64::from(weight[i]) * f64::from(dy[i])).sum::<f64>()
            })
            .sum()
    }

    #[test]
    fn the_gradient_is_the_slope_of_the_output() {
        for (rows, cols) in [(1, 1), (3, 7), (2, 64), (5, 577), (2, 1030)] {
            let (x, dy) = (random(rows * cols, 1), random(rows * cols, 2));
            let weight = random(cols, 3);
            for isa in Isa::all() {
                let mut y = vec![MaybeUninit::new(f32::NAN); x.len()];
                forward(isa, &x, &weight, 1e-5, &mut y);
                // SAFETY: all values were written above.
                let y: Vec<f32> = y.iter().map(|y| unsafe { y.assume_init() }).collect();
                let at_x: f64 =
                    y.iter().zip(&dy).map(|(y, dy)| f64::from(*y) * f64::from(*dy)).sum();
                let exact = x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
                assert!((at_x - loss(&exact, &weight, &dy)).abs() < 1e-4 * (rows * cols) as f64);

                let mut dx = vec![f32::NAN; x.len()];
                backward(isa, &x, &weight, 1e-5, &dy, &mut dx, Output::Overwrite);
                let probe = (0..x.len()).step_by(x.len() / 20 + 1);
                for at in probe {
                    let slope = central_difference(&x, at, |x| loss(x, &weight, &dy));
                    assert!((f64::from(dx[at]) - slope).abs() < 2e-5 * (1.0 + slope.abs()));
                }
                let mut twice = dx.clone();
                backward(isa, &x, &weight, 1e-5, &dy, &mut twice, Output::Accumulate);
                let doubled: Vec<f32> = dx.iter().map(|v| 2.0 * v).collect();
                close(&twice, &doubled, 1e-6);
            }
        }
    }
}
