//! How fast this machine multiplies, shape by shape.

use std::time::Instant;

use candle_core::quantized::GgmlDType;

use super::{InstructionSet, Output, Precision, frozen_matmul, frozen_matmul_transposed};
use crate::weight::{FrozenWeight, WeightError};

/// A product to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProductShape {
    /// Rows of the activations.
    pub m: usize,
    /// Rows of the weight: output features.
    pub n: usize,
    /// Columns of the weight: input features.
    pub k: usize,
}

/// The products of one decoder layer and the head of SmolLM2-135M, as `(n, k)`.
pub const SMOLLM2_135M: [(usize, usize); 5] =
    [(576, 576), (192, 576), (1536, 576), (576, 1536), (49_152, 576)];

/// How fast one product was.
#[derive(Debug, Clone, PartialEq)]
pub struct ProductSpeed {
    /// What was multiplied.
    pub shape: ProductShape,
    /// How the weight was stored.
    pub format: GgmlDType,
    /// How inputs were rounded.
    pub precision: Precision,
    /// Whether it was `dX = dY·W` instead of `Y = X·Wᵀ`.
    pub transposed: bool,
    /// Billions of additions and multiplications a second: the median over the repetitions.
    pub gflops: f64,
}

/// The speeds of this machine.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelSpeeds {
    /// The instructions used.
    pub instructions: InstructionSet,
    /// Threads used.
    pub threads: usize,
    /// The fastest large product with f32 inputs, in GFLOP/s.
    pub peak_f32: f64,
    /// The fastest large product with rounded inputs, in GFLOP/s.
    pub peak_bf16: f64,
    /// One entry for each product asked for, weight format, precision and direction.
    pub products: Vec<ProductSpeed>,
}

/// Measures the products `shapes` with weights in `formats`, on the pool the caller is in, each at
/// least `repetitions` times. `progress` is told how many of how many measurements are done.
///
/// # Errors
/// When a shape's rows do not fill whole blocks of a format.
pub fn measure(
    shapes: &[ProductShape],
    formats: &[GgmlDType],
    repetitions: usize,
    mut progress: impl FnMut(usize, usize),
) -> Result<KernelSpeeds, WeightError> {
    let total = 2 + shapes.len() * formats.len() * 4;
    let mut done = 0;
    let mut step = || {
        done += 1;
        progress(done, total);
    };
    let mut peak = |precision| {
        let shape = ProductShape { m: 1024, n: 1024, k: 1024 };
        let weight = weight(shape, GgmlDType::F32)?;
        let seconds = times(shape, &weight, precision, false, repetitions.max(5));
        step();
        Ok(gflops(shape, seconds.into_iter().fold(f64::INFINITY, f64::min)))
    };
    let (peak_f32, peak_bf16) = (peak(Precision::F32)?, peak(Precision::Bf16)?);
    let mut products = Vec::new();
    for &shape in shapes {
        for &format in formats {
            let weight = weight(shape, format)?;
            for precision in [Precision::F32, Precision::Bf16] {
                for transposed in [false, true] {
                    let mut seconds = times(shape, &weight, precision, transposed, repetitions);
                    seconds.sort_by(f64::total_cmp);
                    let gflops = gflops(shape, seconds[seconds.len() / 2]);
                    products.push(ProductSpeed { shape, format, precision, transposed, gflops });
                    step();
                }
            }
        }
    }
    Ok(KernelSpeeds {
        instructions: InstructionSet::active(),
        threads: rayon::current_num_threads(),
        peak_f32,
        peak_bf16,
        products,
    })
}

fn gflops(shape: ProductShape, seconds: f64) -> f64 {
    2.0 * shape.m as f64 * shape.n as f64 * shape.k as f64 / seconds * 1e-9
}

/// A weight of small values.
fn weight(shape: ProductShape, format: GgmlDType) -> Result<FrozenWeight, WeightError> {
    let values = shape.n * shape.k;
    let bytes: Vec<u8> = match format {
        GgmlDType::F32 => (0..values).flat_map(|i| value(i).to_le_bytes()).collect(),
        GgmlDType::F16 => {
            (0..values).flat_map(|i| half::f16::from_f32(value(i)).to_le_bytes()).collect()
        }
        GgmlDType::BF16 => {
            (0..values).flat_map(|i| half::bf16::from_f32(value(i)).to_le_bytes()).collect()
        }
        // Any bytes below 48 are small numbers where a block holds its scales.
        _ => {
            let bytes = values / format.block_size() * format.type_size();
            (0..bytes).map(|i| (i * 7 % 48) as u8).collect()
        }
    };
    FrozenWeight::owned("measured", (shape.n, shape.k), format, bytes)
}

/// Arbitrary values between -0.5 and 0.5.
fn value(i: usize) -> f32 {
    (i * 31 % 97) as f32 / 97.0 - 0.5
}

/// Seconds of each repetition after one to warm up.
fn times(
    shape: ProductShape,
    weight: &FrozenWeight,
    precision: Precision,
    transposed: bool,
    repetitions: usize,
) -> Vec<f64> {
    let ProductShape { m, n, k } = shape;
    let (inner, outer) = if transposed { (n, k) } else { (k, n) };
    let input: Vec<f32> = (0..m * inner).map(value).collect();
    let mut output = vec![0.0; m * outer];
    let mut multiply = || {
        let start = Instant::now();
        if transposed {
            let to = Output::Overwrite;
            frozen_matmul_transposed(&input, m, weight, 0..n, &mut output, to, precision);
        } else {
            frozen_matmul(&input, m, weight, 0..n, &mut output, Output::Overwrite, precision);
        }
        start.elapsed().as_secs_f64()
    };
    multiply();
    (0..repetitions.max(1)).map(|_| multiply()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_product_asked_for_is_measured() {
        let shapes = [ProductShape { m: 3, n: 64, k: 32 }, ProductShape { m: 20, n: 32, k: 64 }];
        let mut last = (0, 0);
        let speeds = measure(&shapes, &[GgmlDType::Q4_1, GgmlDType::F32], 1, |done, total| {
            last = (done, total);
        })
        .unwrap();
        assert_eq!(speeds.products.len(), 16);
        assert_eq!(last, (18, 18));
        assert!(speeds.products.iter().all(|p| p.gflops > 0.0));
        assert!(
            measure(&[ProductShape { m: 1, n: 1, k: 5 }], &[GgmlDType::Q8_0], 1, |_, _| {})
                .is_err()
        );
    }
}
