//! Every path of this processor against sums in f64, on random shapes.

use std::mem::MaybeUninit;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use proptest::prelude::*;

use super::*;
use crate::kernels::testing::{FORMATS, random};
use crate::kernels::{Threads, dequantize_rows, swiglu};
use crate::weight::FrozenWeight;

/// A format that candle quantises values to.
fn formats() -> impl Strategy<Value = GgmlDType> {
    proptest::sample::select(FORMATS).prop_filter("Q8_1", |format| *format != GgmlDType::Q8_1)
}

/// A product as a property test draws it.
#[derive(Debug, Clone)]
struct Case {
    m: usize,
    n: usize,
    k: usize,
    seed: u64,
    accumulate: bool,
    scale: f32,
    /// Columns of the target to the left and to the right of the product.
    margin: usize,
    threads: usize,
}

fn cases(unit: usize) -> impl Strategy<Value = Case> {
    // Sizes around the tiles' edges, and small ones.
    let size = |most: usize| prop_oneof![1..=17usize, 1..=most];
    let shape = (size(70), size(90), size(700), any::<u64>());
    (shape, any::<bool>(), prop_oneof![Just(1.0f32), Just(-0.5)], 0..3usize, 1..4usize).prop_map(
        move |((m, n, k, seed), accumulate, scale, margin, threads)| Case {
            m,
            n,
            k: k.div_ceil(unit) * unit,
            seed,
            accumulate,
            scale,
            margin,
            threads,
        },
    )
}

/// By how much a path moves a product of two values below 1 by rounding them.
fn rounding(isa: Isa, precision: Precision) -> f64 {
    match MicroKernel::choose(isa, precision, usize::MAX, usize::MAX).layout {
        Layout::F32 | Layout::Tiles { planes: 3 } => 3e-7,
        Layout::Bf16 | Layout::Tiles { .. } => 1.0 / 256.0,
        Layout::Fixed16 => 1.0 / 4095.0,
    }
}

/// Checks every path: `b(j, l)` is the value of lane `j` at depth `l`.
fn check(
    case: &Case,
    a: View,
    a_value: impl Fn(usize, usize) -> f32,
    operand: &Operand,
    b: impl Fn(usize, usize) -> f32,
) {
    let &Case { m, n, k, scale, margin, accumulate, .. } = case;
    let stride = n + 2 * margin;
    let before = random(m * stride, case.seed ^ 7);
    let output = if accumulate { Output::Accumulate } else { Output::Overwrite };
    let threads = Threads::new(case.threads).unwrap();
    for isa in Isa::all() {
        for precision in [Precision::F32, Precision::Bf16] {
            let mut c = before.clone();
            let values = Shared::new(&mut c[margin..]);
            let part = Part { b: operand.clone(), target: values, stride, output };
            threads.run(|| product(isa, a, &[part], scale, precision));
            let error = rounding(isa, precision);
            for i in 0..m {
                for j in 0..stride {
                    let (found, was) = (c[i * stride + j], before[i * stride + j]);
                    if j < margin || j >= margin + n {
                        assert_eq!(found, was, "{isa:?} wrote outside of the product");
                        continue;
                    }
                    let products =
                        (0..k).map(|l| f64::from(a_value(i, l)) * f64::from(b(j - margin, l)));
                    let (mut sum, mut sizes) = (0.0, 0.0);
                    for p in products {
                        sum += p;
                        sizes += p.abs();
                    }
                    let sum =
                        f64::from(scale) * sum + if accumulate { f64::from(was) } else { 0.0 };
                    // Values are below 1 in magnitude (4 in some weights), so rounding each factor
                    // moves a sum of k products by at most this. Fixed16 errs by a share of the
                    // largest value, not of each.
                    let bound = error * (sizes + k as f64 + 1.0);
                    let off = (f64::from(found) - sum).abs();
                    assert!(off <= bound, "{isa:?} {precision:?} ({i}, {j}): {found} for {sum}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 80, failure_persistence: None, ..Default::default() })]

    #[test]
    fn dense_products_of_any_shape_and_layout_are_right_on_every_path(
        case in cases(1), a_turned: bool, b_turned: bool,
    ) {
        let Case { m, n, k, seed, .. } = case;
        // A slice that starts between vector boundaries.
        let (a, b) = (random(m * k + 1, seed), random(k * n + 1, seed ^ 1));
        let (a, b) = (&a[1..], &b[1..]);
        let a_view = if a_turned { View::new(a, k, m).t() } else { View::new(a, m, k) };
        let b_view = if b_turned { View::new(b, n, k).t() } else { View::new(b, k, n) };
        check(
            &case,
            a_view,
            |i, l| if a_turned { a[l * m + i] } else { a[i * k + l] },
            &Operand::dense(b_view),
            |j, l| if b_turned { b[j * k + l] } else { b[l * n + j] },
        );
    }

    #[test]
    fn frozen_weights_multiply_as_their_decoded_values_do_on_every_path(
        case in cases(32), format in formats(), first in 0..3usize,
    ) {
        let Case { m, n, k, seed, .. } = case;
        let k = k.next_multiple_of(format.block_size());
        let (rows, case) = (n + first, Case { k, ..case });
        let values = Tensor::from_vec(random(rows * k, seed), (rows, k), &Device::Cpu).unwrap();
        let bytes = QTensor::quantize(&values, format).unwrap().data().unwrap().into_owned();
        let weight = FrozenWeight::owned("w", (rows, k), format, bytes).unwrap();
        let mut dense = vec![0.0; n * k];
        dequantize_rows(&weight, first..rows, &mut dense);

        let x = random(m * k, seed ^ 2);
        let operand = Operand::weight_transposed(&weight, first..rows);
        check(&case, View::new(&x, m, k), |i, l| x[i * k + l], &operand, |j, l| dense[j * k + l]);

        let dy = random(m * n, seed ^ 3);
        let turned = Case { k: n, n: k, ..case };
        let operand = Operand::weight(&weight, first..rows);
        let value = |j: usize, l: usize| dense[l * k + j];
        check(&turned, View::new(&dy, m, n), |i, l| dy[i * n + l], &operand, value);
    }

    #[test]
    fn gated_products_have_the_bits_of_both_products_and_swiglu(
        // Deep enough for several blocks on every path.
        case in cases(1), deeper in prop_oneof![Just(0), 1000..1400usize],
    ) {
        let Case { m, n, seed, threads, .. } = case;
        let k = case.k + deeper;
        let x = random(m * k, seed);
        let weights = [random(n * k, seed ^ 1), random(n * k, seed ^ 2)];
        let factors = weights.each_ref().map(|w| Operand::dense(View::new(w, n, k).t()));
        let threads = Threads::new(threads).unwrap();
        for isa in Isa::all() {
            for precision in [Precision::F32, Precision::Bf16] {
                let mut projected = [vec![0.0; m * n], vec![0.0; m * n]];
                let parts: Vec<Part> = factors
                    .iter()
                    .zip(&mut projected)
                    .map(|(b, c)| Part {
                        b: b.clone(),
                        target: Shared::new(c),
                        stride: n,
                        output: Output::Overwrite,
                    })
                    .collect();
                product(isa, View::new(&x, m, k), &parts, 1.0, precision);
                let [gate, up] = &projected;
                let mut expected = vec![MaybeUninit::new(0.0); m * n];
                swiglu::forward(isa, gate, up, &mut expected);
                // SAFETY: they were written from the start.
                let expected: Vec<f32> =
                    expected.iter().map(|value| unsafe { value.assume_init() }).collect();
                let mut hidden = vec![f32::NAN; m * n];
                let target = Shared::new(&mut hidden);
                let x = View::new(&x, m, k);
                threads.run(|| gated_product(isa, x, &factors, target, precision));
                assert!(hidden == expected, "{isa:?} {precision:?} [{m}, {n}, {k}]");
            }
        }
    }
}

#[test]
fn all_digits_of_f32_values_take_part() {
    // Its digits lie so far apart that bf16 values, which have eight, share them among three.
    let value = 1.0 + 0.75 * 2.0f32.powi(-8) + 2.0f32.powi(-18);
    let (m, n, k) = (40, 70, 100);
    let (a, b) = (vec![value; m * k], vec![-value; k * n]);
    let exact = -(k as f64) * f64::from(value).powi(2);
    for isa in Isa::all() {
        let mut c = vec![0.0; m * n];
        let (b, target) = (Operand::dense(View::new(&b, k, n)), Shared::new(&mut c));
        let part = Part { b, target, stride: n, output: Output::Overwrite };
        product(isa, View::new(&a, m, k), &[part], 1.0, Precision::F32);
        let off = c.iter().map(|c| (f64::from(*c) - exact).abs()).fold(0.0, f64::max);
        assert!(off <= -2e-6 * exact, "{isa:?}: off by {off:e} of {exact}");
    }
}

#[test]
fn results_do_not_depend_on_the_threads() {
    // Divided by columns, and by rows.
    for (m, n, k) in [(130, 200, 700), (2 * OWN_ROWS + 3, 70, 64)] {
        let (a, b) = (random(m * k, 1), random(n * k, 2));
        for isa in Isa::all() {
            for precision in [Precision::F32, Precision::Bf16] {
                let results = [1, 2, 7].map(|threads| {
                    let mut c = vec![0.0; m * n];
                    let values = Shared::new(&mut c);
                    let b = Operand::dense(View::new(&b, n, k).t());
                    let part = Part { b, target: values, stride: n, output: Output::Overwrite };
                    let work = || product(isa, View::new(&a, m, k), &[part], 1.0, precision);
                    Threads::new(threads).unwrap().run(work);
                    c
                });
                assert!(results[0] == results[1] && results[1] == results[2], "{isa:?}");
            }
        }
    }
}

#[test]
fn what_is_not_finite_is_not_hidden() {
    let k = 300;
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for isa in Isa::all() {
            for precision in [Precision::F32, Precision::Bf16] {
                let (mut a, b) = (vec![1.0; 2 * k], vec![1.0; k]);
                a[200] = bad;
                let mut c = [0.0; 2];
                let values = Shared::new(&mut c);
                let b = Operand::dense(View::new(&b, k, 1));
                let part = Part { b, target: values, stride: 1, output: Output::Overwrite };
                product(isa, View::new(&a, 2, k), &[part], 1.0, precision);
                assert!(!c[0].is_finite(), "{isa:?} {precision:?} of {bad}: {}", c[0]);
                assert!((c[1] - k as f32).abs() < 0.5, "{isa:?} {precision:?}: {}", c[1]);
            }
        }
    }
}

#[test]
fn values_of_any_magnitude_keep_their_digits() {
    let k = 64;
    for size in [1e-38f32, 1e-30, 1e-10, 1e10, 1e18] {
        let a: Vec<f32> = random(k, 1).iter().map(|v| v * size).collect();
        let b = random(k, 2);
        let exact: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        for isa in Isa::all() {
            for precision in [Precision::F32, Precision::Bf16] {
                let mut c = [f32::NAN];
                let values = Shared::new(&mut c);
                let b = Operand::dense(View::new(&b, k, 1));
                let part = Part { b, target: values, stride: 1, output: Output::Overwrite };
                product(isa, View::new(&a, 1, k), &[part], 1.0, precision);
                let off = (f64::from(c[0]) - exact).abs();
                // Smaller than any gradient that matters, values may be rounded to zero.
                let bound = rounding(isa, precision) * f64::from(size) + 1e-32;
                assert!(off <= bound * (k + 1) as f64, "{isa:?} {precision:?} {size}: {}", c[0]);
            }
        }
    }
}
