//! Products with a frozen weight, which is decoded a panel at a time.

use std::ops::Range;

use rayon::prelude::*;

use super::dequantize::decode_block;
use super::isa::Isa;
use super::lanes::dot_product;
use super::product::{Operand, Part, View, gated_product, product};
use super::shared::Shared;
use super::{Output, Precision};
use crate::weight::FrozenWeight;

/// For so few rows of activations, as when generating, encoding the weight for a micro-kernel costs
/// more than multiplying by it ([`frozen_matmul_few`]).
pub const FEW: usize = 4;

/// Values of a weight that one task decodes.
const TASK: usize = 1 << 15;

/// `Y = X·Wᵀ` with the rows `rows` of the weight: `x` is `[m, w.cols]`, `y` is `[m, rows.len()]`.
///
/// Pass `0..w.rows()` for a whole projection, a part of it for a chunk of the vocabulary.
///
/// # Panics
/// When a slice does not have its shape's length, or the weight lacks a row.
pub fn frozen_matmul(
    x: &[f32],
    m: usize,
    w: &FrozenWeight,
    rows: Range<usize>,
    y: &mut [f32],
    output: Output,
    precision: Precision,
) {
    let k = w.cols();
    assert_eq!(x.len(), m * k, "input of {}", w.name());
    assert!(rows.end <= w.rows(), "{rows:?} of {} of {}", w.rows(), w.name());
    assert_eq!(y.len(), m * rows.len(), "output of {}", w.name());
    let stride = rows.len();
    let part =
        Part { b: Operand::weight_transposed(w, rows), target: Shared::new(y), stride, output };
    product(Isa::active(), View::new(x, m, k), &[part], 1.0, precision);
}

/// `Y = X·Wᵀ` for several weights, each in a vector of its own: faster than one after the other, since
/// `x` is brought into the form that the products need only once. The results are the same.
///
/// # Panics
/// As [`frozen_matmul`].
pub fn frozen_matmul_all(
    x: &[f32],
    m: usize,
    weights: &[&FrozenWeight],
    precision: Precision,
) -> Vec<Vec<f32>> {
    into_new(x, m, weights, |targets| {
        let k = weights.first().map_or(0, |weight| weight.cols());
        let parts: Vec<_> = weights
            .iter()
            .zip(targets)
            .map(|(weight, &target)| Part {
                b: Operand::weight_transposed(weight, 0..weight.rows()),
                target,
                stride: weight.rows(),
                output: Output::Overwrite,
            })
            .collect();
        product(Isa::active(), View::new(x, m, k), &parts, 1.0, precision);
    })
}

/// `silu(X·Gᵀ) ∘ (X·Uᵀ)`: the values of [`frozen_matmul_all`] and [`swiglu`](super::swiglu) one after the
/// other, but faster, as the two products are never in memory.
///
/// # Panics
/// When a slice does not have its shape's length, or the weights' shapes differ.
pub fn frozen_gated(
    x: &[f32],
    m: usize,
    gate: &FrozenWeight,
    up: &FrozenWeight,
    precision: Precision,
) -> Vec<f32> {
    let mut hidden = into_new(x, m, &[gate], |targets| {
        let factors = [gate, up].map(|w| Operand::weight_transposed(w, 0..w.rows()));
        let x = View::new(x, m, gate.cols());
        gated_product(Isa::active(), x, &factors, targets[0], precision);
    });
    hidden.swap_remove(0)
}

/// [`frozen_matmul_all`] for at most [`FEW`] rows, summed in another order: a row's results differ in
/// their last bits from those it has among more rows, which training must not see.
///
/// # Panics
/// As [`frozen_matmul`].
pub fn frozen_matmul_few(x: &[f32], m: usize, weights: &[&FrozenWeight]) -> Vec<Vec<f32>> {
    into_new(x, m, weights, |targets| {
        for (weight, &target) in weights.iter().zip(targets) {
            multiply_few(Isa::active(), x, m, weight, target);
        }
    })
}

/// New vectors for the products of `m` rows with these weights, which `multiply` is to write whole.
/// They are not cleared before: the widest of a layer take as long to clear as to compute.
fn into_new(
    x: &[f32],
    m: usize,
    weights: &[&FrozenWeight],
    multiply: impl FnOnce(&[Shared]),
) -> Vec<Vec<f32>> {
    for weight in weights {
        assert_eq!(x.len(), m * weight.cols(), "input of {}", weight.name());
    }
    let lengths: Vec<usize> = weights.iter().map(|weight| m * weight.rows()).collect();
    let mut outputs: Vec<_> = lengths.iter().map(|&len| Vec::with_capacity(len)).collect();
    let rooms = outputs.iter_mut().zip(&lengths);
    let targets: Vec<_> = rooms.map(|(output, &len)| Shared::room(output, len)).collect();
    multiply(&targets);
    for (output, len) in outputs.iter_mut().zip(lengths) {
        // SAFETY: the vector has room for them, and both kinds of product write all values.
        unsafe { output.set_len(len) };
    }
    outputs
}

/// `dX = dY·W` with the rows `rows` of the weight: `dy` is `[m, rows.len()]`, `dx` is
/// `[m, w.cols]`.
///
/// # Panics
/// When a slice does not have its shape's length, or the weight lacks a row.
pub fn frozen_matmul_transposed(
    dy: &[f32],
    m: usize,
    w: &FrozenWeight,
    rows: Range<usize>,
    dx: &mut [f32],
    output: Output,
    precision: Precision,
) {
    let k = w.cols();
    assert!(rows.end <= w.rows(), "rows {rows:?} of {}, which has {}", w.name(), w.rows());
    assert_eq!(dx.len(), m * k, "gradient of the input of {}", w.name());
    let dy = View::new(dy, m, rows.len());
    let part = Part { b: Operand::weight(w, rows), target: Shared::new(dx), stride: k, output };
    product(Isa::active(), dy, &[part], 1.0, precision);
}

/// A product of few rows: each row of the weight is decoded into a first-level cache and multiplied
/// at once.
fn multiply_few(isa: Isa, x: &[f32], m: usize, weight: &FrozenWeight, y: Shared) {
    let (n, k) = (weight.rows(), weight.cols());
    let some = (TASK / k.max(1)).max(1);
    (0..n.div_ceil(some)).into_par_iter().for_each_init(
        || vec![0.0; k],
        |decoded, task| {
            for row in task * some..(task * some + some).min(n) {
                decode_block(isa, weight, row..row + 1, 0..k, decoded);
                for i in 0..m {
                    let sum = dot_product(isa, &x[i * k..(i + 1) * k], decoded);
                    // SAFETY: each column of `y` belongs to one task.
                    unsafe { y.pointer(i * n + row).write(sum) };
                }
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::{GgmlDType, QTensor};
    use candle_core::{Device, Tensor};

    use super::super::dequantize_rows;
    use super::super::testing::random;
    use super::*;

    #[test]
    fn both_products_equal_the_sums_they_stand_for() {
        for (m, n, k) in [(1, 300, 64), (7, 5, 32), (3, 513, 96)] {
            let values = Tensor::from_vec(random(n * k, 1), (n, k), &Device::Cpu).unwrap();
            let bytes = QTensor::quantize(&values, GgmlDType::Q8_0).unwrap();
            let bytes = bytes.data().unwrap().into_owned();
            let w = FrozenWeight::owned("w", (n, k), GgmlDType::Q8_0, bytes).unwrap();
            let rows = n / 4..n;
            let mut dense = vec![0.0; rows.len() * k];
            dequantize_rows(&w, rows.clone(), &mut dense);

            let x = random(m * k, 2);
            let mut y = random(m * rows.len(), 3);
            let before = y.clone();
            frozen_matmul(&x, m, &w, rows.clone(), &mut y, Output::Accumulate, Precision::F32);
            let all = frozen_matmul_all(&x, m, &[&w, &w], Precision::F32);
            let few = frozen_matmul_few(&x, m, &[&w]);
            assert!(all[0] == all[1] && all[0].len() == m * n && few[0].len() == m * n);
            assert!(few[0].iter().zip(&all[0]).all(|(few, y)| (few - y).abs() < 1e-4));
            for i in 0..m {
                for j in 0..rows.len() {
                    let sum: f32 = (0..k).map(|l| x[i * k + l] * dense[j * k + l]).sum();
                    let at = i * rows.len() + j;
                    assert!((y[at] - before[at] - sum).abs() < 1e-4);
                    assert!((all[0][i * n + rows.start + j] - sum).abs() < 1e-4);
                }
            }

            let mut dx = vec![f32::NAN; m * k];
            let dy = before;
            frozen_matmul_transposed(
                &dy,
                m,
                &w,
                rows.clone(),
                &mut dx,
                Output::Overwrite,
                Precision::F32,
            );
            for i in 0..m {
                for l in 0..k {
                    let sum: f32 =
                        (0..rows.len()).map(|j| dy[i * rows.len() + j] * dense[j * k + l]).sum();
                    assert!((dx[i * k + l] - sum).abs() < 1e-3);
                }
            }
        }
    }
}
