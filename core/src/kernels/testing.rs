//! What the kernels' tests share.

use candle_core::quantized::GgmlDType;
use rand::{Rng, SeedableRng};

/// Every format that a frozen weight may have.
pub(super) const FORMATS: &[GgmlDType] = &[
    GgmlDType::F32,
    GgmlDType::F16,
    GgmlDType::BF16,
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q5_0,
    GgmlDType::Q5_1,
    GgmlDType::Q8_0,
    GgmlDType::Q8_1,
    GgmlDType::Q2K,
    GgmlDType::Q3K,
    GgmlDType::Q4K,
    GgmlDType::Q5K,
    GgmlDType::Q6K,
    GgmlDType::Q8K,
];

/// `n` values between -1 and 1.
pub(crate) fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| random.random_range(-1.0..1.0)).collect()
}

/// The slope of `f` in direction `at`, in f64.
pub(super) fn central_difference(x: &[f32], at: usize, f: impl Fn(&[f64]) -> f64) -> f64 {
    let step = 1e-5;
    let mut moved: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    moved[at] += step;
    let above = f(&moved);
    moved[at] -= 2.0 * step;
    (above - f(&moved)) / (2.0 * step)
}

/// Asserts that the values differ by at most `tolerance`, relative to the larger of 1 and the value.
#[track_caller]
pub(super) fn close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    for (i, (&a, &b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= tolerance * b.abs().max(1.0), "value {i}: {a}, expected {b}");
    }
}
