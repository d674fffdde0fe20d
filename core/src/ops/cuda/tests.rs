//! The kernels against the processor's: in the emulator, and on a card where there is one.

use candle_core::Device;

use super::*;
use crate::kernels::Precision;
use crate::kernels::cuda::Emulator;
use crate::ops::HostOps;

/// Both types with what results may be off by, relative to the largest value of a result, or to
/// [`SMALL`] where what is left of a difference is smaller than that: f32's is that of sums in another
/// order, bf16's is its rounding.
const TYPES: [(DType, f32); 2] = [(DType::F32, 1e-5), (DType::BF16, 1e-2)];
const SMALL: f32 = 0.1;

/// What computes: an implementation, where its tensors lie, and its type.
struct Subject {
    ops: Box<dyn Ops>,
    place: Place,
    dtype: DType,
    tolerance: f32,
}

/// Where tensors lie, and whether frozen weights are those of the processor's kernels.
struct Place {
    device: Device,
    host: bool,
}

impl Place {
    fn put(&self, tensor: &Tensor) -> Tensor {
        tensor.to_device(&self.device).unwrap()
    }

    /// A frozen weight of these values.
    fn frozen(&self, weight: &Tensor) -> Frozen {
        if !self.host {
            return Frozen::Device(self.put(weight));
        }
        let shape = weight.dims2().unwrap();
        let values: Vec<f32> = weight.flatten_all().unwrap().to_vec1().unwrap();
        Frozen::Host(crate::weight::FrozenWeight::from_f32("head", shape, &values).unwrap())
    }
}

/// The kernels in every type, in the emulator and on a card; none where neither is to be had.
fn subjects() -> Vec<Subject> {
    let mut subjects = Vec::new();
    for (dtype, tolerance) in TYPES {
        if let Some(emulator) = Emulator::start() {
            let ops: Box<dyn Ops> = Box::new(CudaOps::new(emulator));
            let place = Place { device: Device::Cpu, host: false };
            subjects.push(Subject { ops, place, dtype, tolerance });
        }
        #[cfg(feature = "cuda")]
        match Device::new_cuda(0) {
            Ok(device) => {
                let ops = CudaOps::new(crate::kernels::cuda::Card::new(&device).unwrap());
                let place = Place { device, host: false };
                subjects.push(Subject { ops: Box::new(ops), place, dtype, tolerance });
            }
            Err(_) => eprintln!("skipped: no card answers"),
        }
    }
    subjects
}

/// Runs `f` with every subject and with the processor's kernels on the same inputs, which are rounded
/// to the subject's type; the results must agree.
fn compare(inputs: &[Tensor], f: impl Fn(&dyn Ops, &Place, &[Tensor]) -> Vec<Tensor>) {
    for Subject { ops, place, dtype, tolerance } in subjects() {
        let rounded = |input: &Tensor| match input.dtype() {
            DType::F32 => input.to_dtype(dtype).unwrap(),
            _ => input.clone(),
        };
        let inputs: Vec<Tensor> = inputs.iter().map(rounded).collect();
        // In-place operations must not reach the originals.
        let copies = |device: &Device, dtype: DType| -> Vec<Tensor> {
            let copy = |input: &Tensor| {
                let input =
                    if input.dtype().is_float() { input.to_dtype(dtype) } else { input.copy() };
                input.unwrap().copy().unwrap().to_device(device).unwrap()
            };
            inputs.iter().map(copy).collect()
        };
        let host = HostOps::new(Precision::F32);
        let beside = Place { device: Device::Cpu, host: true };
        let expected = f(&host, &beside, &copies(&Device::Cpu, DType::F32));
        let found = f(&*ops, &place, &copies(&place.device, dtype));
        assert_eq!(found.len(), expected.len());
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_eq!(found.dims(), expected.dims(), "result {i}");
            let values = |t: &Tensor| -> Vec<f32> {
                let t = t.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
                t.flatten_all().unwrap().to_vec1().unwrap()
            };
            let (found, expected) = (values(found), values(expected));
            let largest = expected.iter().fold(SMALL, |most, value| most.max(value.abs()));
            for (at, (a, b)) in found.iter().zip(&expected).enumerate() {
                let close = (a - b).abs() <= tolerance * largest;
                assert!(close, "{dtype:?}, result {i}, value {at}: {a}, expected {b}");
            }
        }
    }
}

/// Values between -1 and 1 that depend on a seed.
fn random(shape: (usize, usize), seed: u64) -> Tensor {
    let values = crate::kernels::testing::random(shape.0 * shape.1, seed);
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn vector(len: usize, seed: u64) -> Tensor {
    random((1, len), seed).squeeze(0).unwrap()
}

#[test]
fn norms_of_any_width_agree_with_their_gradients() {
    // Narrow and wide rows, of odd widths and of whole packs, more rows than fit a block and one.
    for (rows, width) in [(1, 1), (3, 7), (17, 64), (9, 577), (2, 576), (3, 2048), (2, 2051)] {
        let inputs = [
            random((rows, width), 1),
            vector(width, 2),
            random((rows, width), 3),
            random((rows, width), 4),
        ];
        compare(&inputs, |ops, _, inputs| {
            let [x, gain, dy, sum] = inputs else { unreachable!() };
            vec![
                ops.rms_norm(x, gain, 1e-5).unwrap(),
                ops.rms_norm_back(x, gain, 1e-5, dy, None).unwrap(),
                ops.rms_norm_back(x, gain, 1e-5, dy, Some(sum.clone())).unwrap(),
            ]
        });
    }
    // A norm of each head.
    compare(&[random((5, 3 * 16), 1), vector(16, 2), random((5, 3 * 16), 3)], |ops, _, inputs| {
        let [x, gain, dy] = inputs else { unreachable!() };
        let back = ops.rms_norm_back(x, gain, 1e-6, dy, None).unwrap();
        vec![ops.rms_norm(x, gain, 1e-6).unwrap(), back]
    });
}

#[test]
fn a_norm_of_rows_that_do_not_start_at_a_pack_agrees() {
    compare(&[random((4, 64), 1), vector(65, 2)], |ops, _, inputs| {
        let gain = inputs[1].narrow(0, 1, 64).unwrap();
        vec![ops.rms_norm(&inputs[0].narrow(0, 1, 3).unwrap(), &gain, 1e-5).unwrap()]
    });
}

#[test]
fn swiglu_of_any_length_agrees_with_its_gradient() {
    for (rows, width) in [(1, 1), (1, 15), (3, 64), (5, 1001)] {
        let wide = (random((rows, width), 1) * 30.0).unwrap();
        let inputs = [wide, random((rows, width), 2), random((rows, width), 3)];
        compare(&inputs, |ops, _, inputs| {
            let [gate, up, dy] = inputs else { unreachable!() };
            let y = ops.swiglu(gate, up).unwrap();
            let (d_gate, d_up) = ops.swiglu_back(gate.clone(), up.clone(), dy).unwrap();
            vec![y, d_gate, d_up]
        });
    }
}

#[test]
fn rotations_of_any_head_agree_both_ways() {
    for (tokens, heads, head_dim) in [(1, 1, 2), (3, 2, 6), (7, 3, 64), (2, 5, 66)] {
        let angles = random((tokens, head_dim / 2), 1);
        compare(&[random((tokens, heads * head_dim), 2)], |ops, place, inputs| {
            let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
            let rotation = Rotation { cos: place.put(&cos), sin: place.put(&sin) };
            [false, true]
                .map(|inverse| {
                    let x = inputs[0].copy().unwrap();
                    ops.rotate(x, head_dim, &rotation, inverse).unwrap()
                })
                .into()
        });
    }
}

#[test]
fn the_head_scores_targets_as_the_processor_does() {
    for (vocabulary, hidden) in [(3, 32), (77, 32), (1500, 64)] {
        let targets = [0, 2, vocabulary as u32 - 1, 1, 1];
        let inputs = [random((5, hidden), 1), random((vocabulary, hidden), 2)];
        compare(&inputs, |ops, place, inputs| {
            let [x, weight] = inputs else { unreachable!() };
            let scores = ops.score(x, &place.frozen(weight), &targets, true).unwrap();
            let log_probs = Tensor::new(scores.log_probs, &Device::Cpu).unwrap();
            vec![log_probs.to_dtype(DType::F32).unwrap(), scores.gradient.unwrap()]
        });
    }
}

#[test]
fn each_group_of_rows_meets_its_own_factor() {
    // Groups of one row, of none, of several tiles, of several chunks; ranks and widths of whole packs
    // and odd ones.
    let layouts: [&[usize]; 4] = [&[1], &[5, 1, 0, 70], &[130], &[2, 1030, 3]];
    for (layout, (width, rank)) in layouts.into_iter().zip([(1, 1), (40, 8), (72, 66), (33, 4)]) {
        let mut start = 0;
        let groups: Vec<Range<usize>> = layout
            .iter()
            .map(|len| {
                start += len;
                start - len..start
            })
            .collect();
        let (rows, adapters) = (start, groups.len());
        let cube = |t: Tensor| t.reshape((adapters, rank, width)).unwrap();
        let inputs = [
            random((rows, width), 1),
            cube(random((adapters * rank, width), 2)),
            random((rows, rank), 3),
            random((rows, width), 4),
        ];
        compare(&inputs, |ops, _, inputs| {
            let [x, a, u, sum] = inputs else { unreachable!() };
            vec![
                ops.adapt(x, &groups, (a, Transpose::Yes), 1.0, None).unwrap(),
                ops.adapt(u, &groups, (a, Transpose::No), -0.5, None).unwrap(),
                ops.adapt(u, &groups, (a, Transpose::No), 2.0, Some(sum.clone())).unwrap(),
                ops.adapt_gradient(u, x, &groups, 3.0).unwrap(),
                ops.adapt_gradient(x, u, &groups, 1.0).unwrap(),
            ]
        });
    }
}

/// Compares attention and its gradients on random values.
fn compare_attention(shape: AttentionShape, rows: (usize, usize), segments: &[Segment]) {
    let (wide, narrow) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let inputs = [
        random((rows.0, wide), 1),
        random((rows.1, narrow), 2),
        random((rows.1, narrow), 3),
        random((rows.0, wide), 4),
    ];
    compare(&inputs, |ops, _, inputs| {
        let [q, k, v, dy] = inputs else { unreachable!() };
        let attended = ops.attend(q, k, v, shape, segments).unwrap();
        let (dq, dk, dv) = ops.attend_back(q, k, v, &attended, dy, shape, segments).unwrap();
        vec![attended.output, attended.log_sum_exp, dq, dk, dv]
    });
}

#[test]
fn attention_of_several_sequences_agrees_with_its_gradients() {
    // One token, less than a tile, several tiles; odd heads and both sizes of kernels.
    for (heads, kv_heads, head_dim, lens) in [
        (1, 1, 2, &[1][..]),
        (3, 1, 20, &[7, 1, 33]),
        (2, 2, 64, &[130, 64]),
        (2, 1, 66, &[20, 70]),
        (1, 1, 128, &[90]),
    ] {
        let scale = 1.0 / (head_dim as f32).sqrt();
        let shape = AttentionShape { heads, kv_heads, head_dim, scale, window: None };
        let mut start = 0;
        let segments: Vec<Segment> = lens
            .iter()
            .map(|len| {
                start += len;
                Segment::sequence(start - len..start)
            })
            .collect();
        compare_attention(shape, (start, start), &segments);
    }
}

#[test]
fn attention_sees_shared_prompts_caches_and_windows_alike() {
    let prompt = || 3..50;
    let segments = [
        Segment::sequence(0..3),
        Segment { queries: 3..50, context: vec![], keys: prompt() },
        Segment { queries: 50..57, context: vec![prompt()], keys: 60..67 },
        Segment { queries: 57..58, context: vec![0..2, prompt()], keys: 59..60 },
        Segment { queries: 58..130, context: vec![prompt()], keys: 67..139 },
    ];
    for (head_dim, window) in [(16, None), (16, Some(1)), (40, Some(9)), (96, Some(50))] {
        let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim, scale: 0.4, window };
        // The last key is no one's.
        compare_attention(shape, (130, 140), &segments);
    }
}

#[test]
fn queries_in_no_segment_attend_to_nothing() {
    let shape = AttentionShape { heads: 1, kv_heads: 1, head_dim: 8, scale: 0.4, window: None };
    compare_attention(shape, (6, 6), &[Segment::sequence(1..4)]);
}

#[test]
fn segments_and_groups_that_name_no_rows_are_errors() {
    let Some(emulator) = Emulator::start() else { return };
    let ops = CudaOps::new(emulator);
    let x = random((4, 8), 1);
    let shape = AttentionShape { heads: 1, kv_heads: 1, head_dim: 8, scale: 1.0, window: None };
    assert!(ops.attend(&x, &x, &x, shape, &[Segment::sequence(0..5)]).is_err());
    let factors = random((8, 8), 2).unsqueeze(0).unwrap();
    let gap = 1..4;
    let gap = Vec::from_iter([gap]);
    assert!(ops.adapt(&x, &gap, (&factors, Transpose::No), 1.0, None).is_err());
}
