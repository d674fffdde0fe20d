//! SwiGLU: `y = silu(g)·u` with `silu(g) = g·σ(g)`, element by element.
//!
//! With `σ = σ(g)`: `du = dy·g·σ` and `dg = dy·u·σ·(1 + g·(1 - σ))`.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::isa::{Isa, multiversion};
use super::lanes::{mul_add, sigmoid};
use super::shared::filled;

/// Values that one task handles.
const TASK: usize = 1 << 13;

/// `y = silu(gate)·up`.
///
/// # Panics
/// When the lengths differ.
pub fn swiglu(gate: &[f32], up: &[f32]) -> Vec<f32> {
    assert_eq!(gate.len(), up.len(), "SwiGLU inputs");
    let isa = Isa::active();
    let fill = |at: usize, y: &mut [MaybeUninit<f32>]| {
        let part = at..at + y.len();
        forward(isa, &gate[part.clone()], &up[part], y);
    };
    // SAFETY: `forward` writes as many values as it reads.
    unsafe { filled(gate.len(), TASK, fill) }
}

/// Replaces both inputs of [`swiglu`] by their gradients, given that of its output, `dy`. In place,
/// because these are the widest matrices of a layer and nothing needs them afterwards.
///
/// # Panics
/// When the lengths differ.
pub fn swiglu_backward(gate: &mut [f32], up: &mut [f32], dy: &[f32]) {
    assert_eq!(gate.len(), up.len(), "SwiGLU inputs");
    assert_eq!(gate.len(), dy.len(), "gradient of the SwiGLU output");
    let isa = Isa::active();
    gate.par_chunks_mut(TASK)
        .zip(up.par_chunks_mut(TASK))
        .zip(dy.par_chunks(TASK))
        .for_each(|((gate, up), dy)| backward(isa, gate, up, dy));
}

multiversion! {
    pub(super) fn forward(gate: &[f32], up: &[f32], y: &mut [MaybeUninit<f32>]) = forward_values
}

#[inline(always)]
fn forward_values<const FMA: bool>(gate: &[f32], up: &[f32], y: &mut [MaybeUninit<f32>]) {
    for (y, (&g, &u)) in y.iter_mut().zip(gate.iter().zip(up)) {
        y.write(g * sigmoid::<FMA>(g) * u);
    }
}

multiversion! {
    fn backward(gate: &mut [f32], up: &mut [f32], dy: &[f32]) = backward_values
}

#[inline(always)]
fn backward_values<const FMA: bool>(gate: &mut [f32], up: &mut [f32], dy: &[f32]) {
    for ((gate, up), &dy) in gate.iter_mut().zip(up).zip(dy) {
        let (g, u) = (*gate, *up);
        let sigma = sigmoid::<FMA>(g);
        *up = dy * g * sigma;
        *gate = dy * u * sigma * mul_add::<FMA>(g, 1.0 - sigma, 1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{central_difference, random};
    use super::*;

    fn exact(g: f64, u: f64) -> f64 {
        g / (1.0 + (-g).exp()) * u
    }

    #[test]
    fn outputs_and_gradients_match_the_formula_on_every_path() {
        for n in [1, 15, 64, 1001] {
            let mut gate = random(n, 1);
            gate[0] = 100.0;
            gate[n - 1] = -100.0;
            let (up, dy) = (random(n, 2), random(n, 3));
            for isa in Isa::all() {
                let mut y = vec![MaybeUninit::new(f32::NAN); n];
                forward(isa, &gate, &up, &mut y);
                // SAFETY: all values were written above.
                let y: Vec<f32> = y.iter().map(|y| unsafe { y.assume_init() }).collect();
                let (mut d_gate, mut d_up) = (gate.clone(), up.clone());
                backward(isa, &mut d_gate, &mut d_up, &dy);
                for i in 0..n {
                    let (g, u) = (f64::from(gate[i]), f64::from(up[i]));
                    let bound = 1e-6 * exact(g, u).abs() + 1e-9;
                    assert!((f64::from(y[i]) - exact(g, u)).abs() < bound);
                    let dy = f64::from(dy[i]);
                    let slope = central_difference(&gate, i, |g| dy * exact(g[i], u));
                    assert!((f64::from(d_gate[i]) - slope).abs() < 1e-5);
                    let slope = dy * exact(g, 1.0);
                    assert!((f64::from(d_up[i]) - slope).abs() < 1e-5 * (1.0 + slope.abs()));
                }
            }
        }
    }
}
