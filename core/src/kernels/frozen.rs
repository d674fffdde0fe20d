//! Products with a frozen weight, which is decoded a panel at a time.

use std::ops::Range;

use super::isa::Isa;
use super::product::{Operand, Target, View, product};
use super::shared::Shared;
use super::{Output, Precision};
use crate::weight::FrozenWeight;

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
    let n = rows.len();
    assert!(rows.end <= w.rows(), "rows {rows:?} of {}, which has {}", w.name(), w.rows());
    assert_eq!(y.len(), m * n, "output of {}", w.name());
    let x = View::new(x, m, w.cols());
    let target = Target { values: Shared::new(y), stride: n, output };
    product(Isa::active(), x, &Operand::weight_transposed(w, rows), 1.0, target, precision);
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
    let target = Target { values: Shared::new(dx), stride: k, output };
    product(Isa::active(), dy, &Operand::weight(w, rows), 1.0, target, precision);
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::{GgmlDType, QTensor};
    use candle_core::{Device, Tensor};
    use rand::{Rng, SeedableRng};

    use super::super::dequantize_rows;
    use super::*;

    fn random(n: usize, seed: u64) -> Vec<f32> {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        (0..n).map(|_| random.random_range(-1.0..1.0)).collect()
    }

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
