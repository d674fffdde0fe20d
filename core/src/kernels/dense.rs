//! Products of small dense matrices: LoRA pairs and their gradients.

use super::isa::Isa;
use super::product::{Operand, Part, View, product};
use super::shared::Shared;
use super::{Output, Precision};

/// `c = scale · a·b`, or `c += scale · a·b`, where `c` is row-major `[a.rows, b.cols]`.
///
/// With `U = X·Aᵀ` and `Y += s·U·Bᵀ` for a LoRA pair, the gradients are `dB = s·dYᵀ·U`,
/// `dU = s·dY·B`, `dA = dUᵀ·X` and `dX += dU·A`; transposed operands are [`View::t`].
///
/// # Panics
/// When the shapes do not fit each other.
pub fn matmul(a: View, b: View, scale: f32, c: &mut [f32], output: Output, precision: Precision) {
    let (m, n) = (a.rows(), b.cols());
    assert_eq!(a.cols(), b.rows(), "inner sizes of a product");
    assert_eq!(c.len(), m * n, "a [{m}, {n}] product");
    let part = Part { b: Operand::dense(b), target: Shared::new(c), stride: n, output };
    product(Isa::active(), a, &[part], scale, precision);
}
