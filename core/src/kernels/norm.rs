//! RMSNorm: `y = x · w / sqrt(mean(x²) + ε)`, row by row.
//!
//! With `s = 1 / sqrt(mean(x²) + ε)` and rows of `n` values, the gradient is
//! `dx = s·(w·dy) - x · s³/n · Σ(w·dy·x)`. The forward pass saves `s`. The weight `w` is frozen and has
//! no gradient here. A norm of each head is the same function with a row for each head.

use rayon::prelude::*;

use super::Output;
use super::isa::{Isa, multiversion};
use super::lanes::{dot, mul_add};

/// Values that one task handles, so that starting it does not matter.
const TASK: usize = 1 << 14;

/// Normalises the rows of `x` into `y`. There are as many rows as `inverse_rms` has places, which
/// receive `s`; rows are as long as `weight`.
///
/// # Panics
/// When `x` or `y` is not `[inverse_rms.len(), weight.len()]`.
pub fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, y: &mut [f32], inverse_rms: &mut [f32]) {
    let (rows, cols) = (inverse_rms.len(), weight.len());
    assert_eq!(x.len(), rows * cols, "RMSNorm input");
    assert_eq!(y.len(), rows * cols, "RMSNorm output");
    if x.is_empty() {
        return;
    }
    let (isa, batch) = (Isa::active(), (TASK / cols).max(1));
    x.par_chunks(batch * cols)
        .zip(y.par_chunks_mut(batch * cols))
        .zip(inverse_rms.par_chunks_mut(batch))
        .for_each(|((x, y), inverse_rms)| forward(isa, x, weight, epsilon, y, inverse_rms));
}

/// The gradient of [`rms_norm`] with respect to `x`, from its input, its saved `inverse_rms` and the
/// gradient `dy` of its output.
///
/// # Panics
/// When `x`, `dy` or `dx` is not `[inverse_rms.len(), weight.len()]`.
pub fn rms_norm_backward(
    x: &[f32],
    weight: &[f32],
    inverse_rms: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    output: Output,
) {
    let (rows, cols) = (inverse_rms.len(), weight.len());
    assert_eq!(x.len(), rows * cols, "RMSNorm input");
    assert_eq!(dy.len(), rows * cols, "gradient of the RMSNorm output");
    assert_eq!(dx.len(), rows * cols, "gradient of the RMSNorm input");
    if x.is_empty() {
        return;
    }
    let (isa, batch) = (Isa::active(), (TASK / cols).max(1));
    x.par_chunks(batch * cols)
        .zip(dy.par_chunks(batch * cols))
        .zip(dx.par_chunks_mut(batch * cols))
        .zip(inverse_rms.par_chunks(batch))
        .for_each(|(((x, dy), dx), inverse_rms)| {
            backward(isa, x, weight, inverse_rms, dy, dx, output);
        });
}

multiversion! {
    fn forward(x: &[f32], weight: &[f32], epsilon: f32, y: &mut [f32], inverse_rms: &mut [f32])
        = forward_rows
}

#[inline(always)]
fn forward_rows<const FMA: bool>(
    x: &[f32],
    weight: &[f32],
    epsilon: f32,
    y: &mut [f32],
    inverse_rms: &mut [f32],
) {
    let cols = weight.len();
    let rows = x.chunks_exact(cols).zip(y.chunks_exact_mut(cols)).zip(inverse_rms);
    for ((x, y), inverse_rms) in rows {
        let scale = 1.0 / (dot::<FMA>(x, x) / cols as f32 + epsilon).sqrt();
        *inverse_rms = scale;
        for (y, (x, w)) in y.iter_mut().zip(x.iter().zip(weight)) {
            *y = x * scale * w;
        }
    }
}

multiversion! {
    fn backward(x: &[f32], weight: &[f32], inverse_rms: &[f32], dy: &[f32], dx: &mut [f32],
        output: Output) = backward_rows
}

#[inline(always)]
fn backward_rows<const FMA: bool>(
    x: &[f32],
    weight: &[f32],
    inverse_rms: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    output: Output,
) {
    let cols = weight.len();
    let rows = x.chunks_exact(cols).zip(dy.chunks_exact(cols)).zip(dx.chunks_exact_mut(cols));
    for (((x, dy), dx), &scale) in rows.zip(inverse_rms) {
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
                let (mut y, mut saved) = (vec![0.0; x.len()], vec![0.0; rows]);
                forward(isa, &x, &weight, 1e-5, &mut y, &mut saved);
                let at_x: f64 =
                    y.iter().zip(&dy).map(|(y, dy)| f64::from(*y) * f64::from(*dy)).sum();
                let exact = x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
                assert!((at_x - loss(&exact, &weight, &dy)).abs() < 1e-4 * (rows * cols) as f64);

                let mut dx = vec![f32::NAN; x.len()];
                backward(isa, &x, &weight, &saved, &dy, &mut dx, Output::Overwrite);
                let probe = (0..x.len()).step_by(x.len() / 20 + 1);
                for at in probe {
                    let slope = central_difference(&x, at, |x| loss(x, &weight, &dy));
                    assert!((f64::from(dx[at]) - slope).abs() < 2e-5 * (1.0 + slope.abs()));
                }
                let mut twice = dx.clone();
                backward(isa, &x, &weight, &saved, &dy, &mut twice, Output::Accumulate);
                let doubled: Vec<f32> = dx.iter().map(|v| 2.0 * v).collect();
                close(&twice, &doubled, 1e-6);
            }
        }
    }
}
