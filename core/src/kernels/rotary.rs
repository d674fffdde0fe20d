//! Rotary position embedding: each head's first half is rotated against its second.
//!
//! With the angle `θ` of a position and a pair `(a, b)` of the two halves,
//! `(a', b') = (a·cos θ - b·sin θ, a·sin θ + b·cos θ)`. The gradient is the rotation by `-θ`.

use rayon::prelude::*;

use super::isa::{Isa, multiversion};
use super::lanes::mul_add;

/// Which way to rotate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotation {
    /// By the position's angles: the forward pass.
    Forward,
    /// Back again: the gradient, and the inverse.
    Inverse,
}

/// Rotates `x`, `[positions.len(), heads, head_dim]`, in place. Row `p` of `cos` and `sin`, each
/// `[any, head_dim/2]`, holds the angles of position `p`.
///
/// # Panics
/// When a length does not fit, `head_dim` is odd, or a position has no row in the tables.
pub fn rotary(
    x: &mut [f32],
    head_dim: usize,
    positions: &[u32],
    cos: &[f32],
    sin: &[f32],
    rotation: Rotation,
) {
    let half = head_dim / 2;
    assert!(head_dim.is_multiple_of(2) && head_dim > 0, "heads of {head_dim} values");
    assert_eq!(cos.len(), sin.len(), "tables of cosines and sines");
    let known = cos.len() / half;
    assert!(positions.iter().all(|&p| (p as usize) < known), "a position beyond {known}");
    if positions.is_empty() {
        assert!(x.is_empty(), "values without a position");
        return;
    }
    let width = x.len() / positions.len();
    assert_eq!(x.len(), width * positions.len(), "rows of equal length");
    assert!(width.is_multiple_of(head_dim), "rows of whole heads");
    let isa = Isa::active();
    x.par_chunks_mut(width.max(1)).with_min_len(8).zip(positions).for_each(|(x, &position)| {
        let angles = position as usize * half..(position as usize + 1) * half;
        row(isa, x, &cos[angles.clone()], &sin[angles], rotation);
    });
}

multiversion! {
    fn row(x: &mut [f32], cos: &[f32], sin: &[f32], rotation: Rotation) = rotate_row
}

#[inline(always)]
fn rotate_row<const FMA: bool>(x: &mut [f32], cos: &[f32], sin: &[f32], rotation: Rotation) {
    let half = cos.len();
    let sign = if rotation == Rotation::Forward { 1.0 } else { -1.0 };
    for head in x.chunks_exact_mut(2 * half) {
        let (first, second) = head.split_at_mut(half);
        for (((a, b), &cos), &sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            let sin = sign * sin;
            (*a, *b) = (mul_add::<FMA>(*a, cos, -(*b * sin)), mul_add::<FMA>(*a, sin, *b * cos));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{close, random};
    use super::*;

    #[test]
    fn every_path_rotates_by_the_angle_and_back() {
        for head_dim in [2, 6, 64, 66] {
            let half = head_dim / 2;
            let angles = random(5 * half, 1);
            let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
            let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
            let before = random(3 * head_dim, 2);
            for isa in Isa::all() {
                let mut x = before.clone();
                let at = 4 * half..5 * half;
                row(isa, &mut x, &cos[at.clone()], &sin[at.clone()], Rotation::Forward);
                for (head, was) in x.chunks(head_dim).zip(before.chunks(head_dim)) {
                    for i in 0..half {
                        let (c, s) = (cos[at.clone()][i], sin[at.clone()][i]);
                        assert!((head[i] - (was[i] * c - was[i + half] * s)).abs() < 1e-6);
                        assert!((head[i + half] - (was[i] * s + was[i + half] * c)).abs() < 1e-6);
                    }
                }
                row(isa, &mut x, &cos[at.clone()], &sin[at], Rotation::Inverse);
                close(&x, &before, 1e-6);
            }
        }
    }

    #[test]
    fn each_row_turns_by_its_own_position() {
        let (cos, sin) = (vec![1.0, 0.0], vec![0.0, 1.0]);
        let mut x = vec![1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0];
        rotary(&mut x, 2, &[0, 1], &cos, &sin, Rotation::Forward);
        assert_eq!(x, [1.0, 2.0, 3.0, 4.0, -2.0, 1.0, -4.0, 3.0]);
    }
}
