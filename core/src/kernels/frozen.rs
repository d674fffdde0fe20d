//! Products with a frozen weight, which is decoded a panel at a time.

use std::ops::Range;

use rayon::prelude::*;

use super::dequantize::decode_block;
use super::isa::Isa;
use super::lanes::dot_product;
use super::product::{Operand, Part, View, product};
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
    frozen_matmul_all(x, m, &mut [Projection { weight: w, rows, y, output }], precision);
}

/// One of the products of [`frozen_matmul_all`].
#[derive(Debug)]
pub struct Projection<'a> {
    /// The weight `W`.
    pub weight: &'a FrozenWeight,
    /// The rows of it that are used; all of them in most cases.
    pub rows: Range<usize>,
    /// `[m, rows.len()]`.
    pub y: &'a mut [f32],
    /// What becomes of the content of `y`.
    pub output: Output,
}

/// `Y = X·Wᵀ` for several weights: faster than one after the other, since `x` is brought into the
/// form that the products need only once. The results are the same.
///
/// # Panics
/// As [`frozen_matmul`].
pub fn frozen_matmul_all(
    x: &[f32],
    m: usize,
    projections: &mut [Projection],
    precision: Precision,
) {
    let isa = Isa::active();
    let k = projections.first().map_or(0, |p| p.weight.cols());
    check(x, m, projections);
    let parts: Vec<_> = projections
        .iter_mut()
        .map(|Projection { weight, rows, y, output }| Part {
            b: Operand::weight_transposed(weight, rows.clone()),
            stride: rows.len(),
            target: Shared::new(y),
            output: *output,
        })
        .collect();
    product(isa, View::new(x, m, k), &parts, 1.0, precision);
}

/// [`frozen_matmul_all`] for at most [`FEW`] rows, summed in another order: a row's results differ in
/// their last bits from those it has among more rows, which training must not see.
///
/// # Panics
/// As [`frozen_matmul`].
pub fn frozen_matmul_few(x: &[f32], m: usize, projections: &mut [Projection]) {
    check(x, m, projections);
    let isa = Isa::active();
    projections.iter_mut().for_each(|projection| multiply_few(isa, x, m, projection));
}

fn check(x: &[f32], m: usize, projections: &[Projection]) {
    for Projection { weight, rows, y, .. } in projections {
        assert_eq!(x.len(), m * weight.cols(), "input of {}", weight.name());
        assert!(rows.end <= weight.rows(), "{rows:?} of {} of {}", weight.rows(), weight.name());
        assert_eq!(y.len(), m * rows.len(), "output of {}", weight.name());
    }
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
fn multiply_few(isa: Isa, x: &[f32], m: usize, projection: &mut Projection) {
    let &mut Projection { weight, ref rows, ref mut y, output } = projection;
    let (n, k) = (rows.len(), weight.cols());
    let y = Shared::new(y);
    let some = (TASK / k.max(1)).max(1);
    (0..n.div_ceil(some)).into_par_iter().for_each_init(
        || vec![0.0; k],
        |decoded, task| {
            for column in task * some..(task * some + some).min(n) {
                let row = rows.start + column;
                decode_block(isa, weight, row..row + 1, 0..k, decoded);
                for i in 0..m {
                    let at = i * n + column;
                    // SAFETY: each column of `y` belongs to one task.
                    let y = unsafe { y.part(at..at + 1) };
                    let sum = dot_product(isa, &x[i * k..(i + 1) * k], decoded);
                    y[0] = if output == Output::Accumulate { y[0] + sum } else { sum };
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
            let mut few = before.clone();
            frozen_matmul(&x, m, &w, rows.clone(), &mut y, Output::Accumulate, Precision::F32);
            let output = Output::Accumulate;
            let projection = Projection { weight: &w, rows: rows.clone(), y: &mut few, output };
            frozen_matmul_few(&x, m, &mut [projection]);
            assert!(few.iter().zip(&y).all(|(few, y)| (few - y).abs() < 1e-4));
            for i in 0..m {
                for j in 0..rows.len() {
                    let sum: f32 = (0..k).map(|l| x[i * k + l] * dense[j * k + l]).sum();
                    let at = i * rows.len() + j;
                    assert!((y[at] - before[at] - sum).abs() < 1e-4);
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
