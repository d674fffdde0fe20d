use proptest::prelude::*;

use super::payload::SEGMENT;
use super::*;
use crate::adapter::Parameter;

fn set(tensors: &[(&str, Vec<f32>)]) -> ParameterSet {
    let entries = tensors.iter().map(|(name, values)| Parameter {
        name: (*name).into(),
        shape: vec![values.len()],
        values: values.clone(),
    });
    ParameterSet::new(entries.collect())
}

fn sample() -> ParameterSet {
    set(&[("a", vec![1.0, -0.25, 3e-4]), ("b", vec![0.0, 0.0]), ("c", vec![-5e-9, 2.5e-6])])
}

/// A valid message around this payload, as a forger would make it.
fn forged(layout: &ParameterSet, codec: Codec, payload: &[u8]) -> Vec<u8> {
    let header = Header::new(layout, BaseId::NONE, codec.id(), payload.len());
    let mut message = header.to_bytes().to_vec();
    message.extend(checksum(&header.to_bytes(), payload));
    message.extend(payload);
    message
}

fn any_set() -> impl Strategy<Value = ParameterSet> {
    let finite = any::<f32>().prop_map(|v| if v.is_finite() { v } else { 0.5 });
    let tensor = prop::collection::vec(finite, 0..40);
    prop::collection::vec(tensor, 0..5).prop_map(|tensors| {
        let names = ["a", "b", "c", "d", "e"];
        set(&names.into_iter().zip(tensors).collect::<Vec<_>>())
    })
}

proptest! {
    #[test]
    fn f32_messages_keep_every_bit(set in any_set()) {
        let message = encode(&set, Codec::F32).unwrap();
        let decoded = decode(&message, &set.zeros_like()).unwrap();
        for (a, b) in decoded.iter().zip(set.iter()) {
            let bits = |entry: &Parameter| -> Vec<u32> {
                entry.values.iter().map(|v| v.to_bits()).collect()
            };
            prop_assert_eq!(bits(a), bits(b));
        }
    }

    #[test]
    fn f16_messages_keep_eleven_bits_of_all_but_tiny_values(set in any_set()) {
        let message = encode(&set, Codec::F16).unwrap();
        let decoded = decode(&message, &set.zeros_like()).unwrap();
        for (a, b) in decoded.iter().zip(set.iter()) {
            let largest = b.values.iter().fold(0.0f64, |m, &v| m.max(f64::from(v).abs()));
            for (&a, &b) in a.values.iter().zip(&b.values) {
                let (a, b) = (f64::from(a), f64::from(b));
                // Half a unit of the 11th bit, or of f16's last bit; f32's own last bit below that.
                let bound = (b.abs() / 2048.0).max(largest * 2f64.powi(-39)).max(1e-45);
                prop_assert!((a - b).abs() <= bound, "{} {}", a, b);
            }
        }
    }

    #[test]
    fn a_message_decoded_and_encoded_again_is_the_same(set in any_set()) {
        let first = decode(&encode(&set, Codec::F16).unwrap(), &set).unwrap();
        let second = decode(&encode(&first, Codec::F16).unwrap(), &set).unwrap();
        prop_assert_eq!(first, second);
    }

    #[test]
    fn altered_messages_are_refused_and_never_panic(
        set in any_set(),
        place in any::<prop::sample::Index>(),
        change in 1u8..,
        keep in any::<prop::sample::Index>(),
    ) {
        let mut message = encode(&set, Codec::F16).unwrap();
        prop_assert!(decode(&message[..keep.index(message.len())], &set).is_err());
        let place = place.index(message.len());
        message[place] ^= change;
        prop_assert!(decode(&message, &set).is_err());
    }

    #[test]
    fn forged_payloads_never_panic_and_never_decode_to_what_is_not_finite(
        raw in prop::collection::vec(any::<u8>(), 20),
        plain in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        let layout = set(&[("a", vec![0.0; 5]), ("b", vec![0.0; 3])]);
        let finite = |set: ParameterSet| {
            set.iter().all(|entry| entry.values.iter().all(|v| v.is_finite()))
        };
        let payload = zstd::bulk::compress(&raw, 1).unwrap();
        for message in [forged(&layout, Codec::F16, &payload), forged(&layout, Codec::F16, &plain)] {
            prop_assert!(decode(&message, &layout).map_or(true, finite));
        }
        prop_assert!(decode(&plain, &layout).is_err());
    }
}

fn any_codec() -> impl Strategy<Value = Codec> {
    let names =
        ["f32", "f16", "int8", "int4", "int2", "top-k:0.3+f16", "top-k:0.05+int4", "top-k:1+int2"];
    prop::sample::select(names.map(|name| name.parse().unwrap()).to_vec())
}

proptest! {
    #[test]
    fn every_codec_decodes_what_it_encodes_and_repeats_itself(
        set in any_set(),
        codec in any_codec(),
        seed in any::<u64>(),
    ) {
        let rounding = Rounding::Stochastic { seed };
        let message = encode_for_base(&set, BaseId::NONE, codec, rounding).unwrap();
        let decoded = decode(&message, &set).unwrap();
        prop_assert!(decoded.check_layout(&set).is_ok());
        prop_assert_eq!(message, encode_for_base(&set, BaseId::NONE, codec, rounding).unwrap());
    }

    #[test]
    fn a_residual_is_exactly_what_was_not_sent(
        difference in prop::collection::vec(-1.0f32..1.0, 30),
        earlier in prop::collection::vec(-1.0f32..1.0, 30),
        codec in any_codec(),
    ) {
        let set = |values: &[f32]| set(&[("a", values[..20].to_vec()), ("b", values[20..].to_vec())]);
        let (difference, mut residual) = (set(&difference), set(&earlier));
        let mut owed = difference.clone();
        owed.add(&residual).unwrap();
        let message = encode_with_feedback(&difference, &mut residual, BaseId::NONE, codec).unwrap();
        let mut sum = decode(&message, &difference).unwrap();
        sum.add(&residual).unwrap();
        prop_assert!(sum.difference(&owed).unwrap().l2_norm() <= 1e-6);
    }

    #[test]
    fn forged_payloads_of_any_codec_never_panic(
        codec in any_codec(),
        raw in prop::collection::vec(any::<u8>(), 0..60),
        head in prop::collection::vec(0u8..12, 3),
        like_places in any::<bool>(),
    ) {
        let layout = set(&[("a", vec![0.0; 70]), ("b", vec![0.0; 3])]);
        let mut raw = raw;
        if like_places {
            // Small numbers where counts and lengths stand get further than chance would.
            let small = [head[0], 0, 0, 0, head[1], head[2], 0, 0, 0];
            raw.splice(0..0, small);
        }
        let payload = zstd::bulk::compress(&raw, 1).unwrap();
        let finite = |set: ParameterSet| {
            set.iter().all(|entry| entry.values.iter().all(|v| v.is_finite()))
        };
        prop_assert!(decode(&forged(&layout, codec, &payload), &layout).map_or(true, finite));
    }
}

/// Tensors that do not fit in one segment, of lengths that are no multiples of a block; values grow.
fn several_segments() -> ParameterSet {
    let value = |i: usize| (i as f32 * 0.731).sin() * (1.0 + i as f32 / SEGMENT as f32);
    let tensor = |from: usize, len: usize| (from..from + len).map(value).collect();
    let (first, second) = (SEGMENT - 100, 2 * SEGMENT + 77);
    set(&[
        ("a", tensor(0, first)),
        ("b", tensor(first, second)),
        ("c", vec![]),
        ("d", tensor(first + second, 3)),
    ])
}

#[test]
fn adapters_of_several_segments_come_back_with_every_codec() {
    let set = several_segments();
    let bounds = [("f32", 0.0), ("f16", 5e-4), ("int8", 4e-3), ("int4", 0.07), ("int2", 0.4)];
    for (codec, bound) in bounds {
        let message = encode(&set, codec.parse().unwrap()).unwrap();
        let missing = decode(&message, &set).unwrap().difference(&set).unwrap();
        let error = missing.l2_norm() / set.l2_norm();
        assert!(error <= bound, "{codec}: {error}");
    }
}

#[test]
fn the_largest_values_are_those_of_the_whole_adapter_not_of_a_segment() {
    let set = several_segments();
    let codec: Codec = "top-k:0.1+f32".parse().unwrap();
    let decoded = decode(&encode(&set, codec).unwrap(), &set).unwrap();
    let (mut sent, mut smallest_sent, mut largest_kept) = (0, f32::INFINITY, 0.0f32);
    for (decoded, value) in decoded.iter().zip(set.iter()) {
        for (&decoded, &value) in decoded.values.iter().zip(&value.values) {
            if decoded == 0.0 {
                largest_kept = largest_kept.max(value.abs());
            } else {
                assert_eq!(decoded, value);
                sent += 1;
                smallest_sent = smallest_sent.min(value.abs());
            }
        }
    }
    assert_eq!(sent, set.num_values().div_ceil(10));
    assert!(largest_kept <= smallest_sent, "{largest_kept} was kept, {smallest_sent} sent");
}

#[test]
fn a_residual_spans_segments() {
    let set = several_segments();
    for codec in ["top-k:0.1+int4", "int4"] {
        let mut residual = set.zeros_like();
        let codec = codec.parse().unwrap();
        let message = encode_with_feedback(&set, &mut residual, BaseId::NONE, codec).unwrap();
        let missing = set.difference(&decode(&message, &set).unwrap()).unwrap();
        assert!(missing == residual, "{codec}");
    }
}

#[test]
fn segments_are_rounded_by_chances_of_their_own() {
    let values = (0..2 * SEGMENT).map(|i| if i % 64 == 0 { 0.3 } else { 0.05 }).collect();
    let set = set(&[("a", values)]);
    let rounding = Rounding::Stochastic { seed: 7 };
    let codec = Codec::dense(ValueFormat::Int2);
    let message = encode_for_base(&set, BaseId::NONE, codec, rounding).unwrap();
    let decoded = decode(&message, &set).unwrap();
    let (first, second) = decoded.get("a").unwrap().values.split_at(SEGMENT);
    assert!(first != second);
}

#[test]
fn a_payload_that_wants_a_large_window_is_refused() {
    let layout = set(&[("a", vec![0.0; 4 << 20])]);
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(27).unwrap();
    std::io::Write::write_all(&mut encoder, &vec![0; 16 << 20]).unwrap();
    let error = decode(&forged(&layout, Codec::F32, &encoder.finish().unwrap()), &layout);
    assert!(matches!(error, Err(UpdateError::Payload(_))));
}

#[test]
fn with_feedback_nothing_is_lost_over_time() {
    let random = |round: usize| {
        let value = |i: usize| ((i * 7919 + round * 104_729) as f32 * 0.618).sin();
        set(&[("a", (0..600).map(value).collect()), ("b", (600..1000).map(value).collect())])
    };
    for codec in ["top-k:0.05+int4", "top-k:0.1+int2", "top-k:0.02+f16"] {
        let codec = codec.parse().unwrap();
        let (mut owed, mut sent) = (random(0).zeros_like(), random(0).zeros_like());
        let mut residual = owed.zeros_like();
        for round in 0..60 {
            let difference = random(round);
            owed.add(&difference).unwrap();
            let message =
                encode_with_feedback(&difference, &mut residual, BaseId::NONE, codec).unwrap();
            sent.add(&decode(&message, &owed).unwrap()).unwrap();
        }
        // All that is missing is the residual of the last round, however many rounds there were.
        let mut missing = owed.difference(&sent).unwrap();
        missing = missing.difference(&residual).unwrap();
        assert!(missing.l2_norm() < 1e-3, "{codec}: {}", missing.l2_norm());
        assert!(residual.l2_norm() < 40.0 * random(0).l2_norm(), "{codec}");
    }
}

/// Normal numbers as a training step leaves them, from sums of a linear congruential sequence.
fn small_differences() -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..100_000).map(|_| 1e-4 * (0..6).map(|_| uniform()).sum::<f32>()).collect()
}

#[test]
fn a_tenth_of_the_values_in_four_bits_takes_three_hundredths_of_f32() {
    let codec = "top-k:0.1+int4".parse().unwrap();
    let message = encode(&set(&[("a", small_differences())]), codec).unwrap();
    assert!(message.len() < 400_000 * 3 / 100, "{}", message.len());
}

#[test]
fn what_is_not_finite_is_not_sent() {
    for value in [f32::NAN, f32::INFINITY] {
        let error = encode(&set(&[("a", vec![1.0]), ("b", vec![value])]), Codec::F16);
        assert!(matches!(error, Err(UpdateError::NotFinite { name }) if name == "b"));
    }
}

#[test]
fn values_beyond_the_range_of_f16_survive() {
    let large = set(&[("a", vec![f32::MAX, -1e38]), ("b", vec![1e-44, 3e-39])]);
    let decoded = decode(&encode(&large, Codec::F16).unwrap(), &large).unwrap();
    let values = |name| decoded.get(name).unwrap().values.clone();
    assert!((f64::from(values("a")[1]) / -1e38 - 1.0).abs() < 1e-3);
    assert!((f64::from(values("b")[1]) / 3e-39 - 1.0).abs() < 1e-3);
}

#[test]
fn a_payload_that_would_unpack_to_more_than_the_adapter_is_refused() {
    let layout = set(&[("a", vec![0.0; 4])]);
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
    let error = decode(&forged(&layout, Codec::F32, &bomb), &layout).unwrap_err();
    assert!(matches!(error, UpdateError::Payload(_)), "{error}");
    let short = zstd::bulk::compress(&[0; 15], 1).unwrap();
    let error = decode(&forged(&layout, Codec::F32, &short), &layout).unwrap_err();
    assert!(matches!(error, UpdateError::Payload(_)), "{error}");
}

#[test]
fn infinities_inside_a_forged_payload_are_refused() {
    let layout = set(&[("a", vec![0.0])]);
    let infinite = zstd::bulk::compress(&f32::INFINITY.to_le_bytes(), 1).unwrap();
    assert!(decode(&forged(&layout, Codec::F32, &infinite), &layout).is_err());
    // 1.0 · 2^200 fits f16's bytes and exponent, but not f32.
    let raw = [200i16.to_le_bytes(), half::f16::ONE.to_le_bytes()].concat();
    let infinite = zstd::bulk::compress(&raw, 1).unwrap();
    assert!(decode(&forged(&layout, Codec::F16, &infinite), &layout).is_err());
}

#[test]
fn a_message_says_what_is_wrong_with_it() {
    let set = sample();
    let message = encode(&set, Codec::F16).unwrap();
    let changed = |place: usize, value: u8| {
        let mut message = message.clone();
        message[place] = value;
        decode(&message, &set).unwrap_err()
    };
    assert!(matches!(changed(0, b'x'), UpdateError::NotAnUpdate));
    assert!(matches!(changed(4, 1), UpdateError::Version { found: 1, supported: 2 }));
    assert!(matches!(changed(6, 77), UpdateError::UnknownCodec(77)));
    assert!(matches!(changed(20, 1), UpdateError::Checksum));
    let cut = decode(&message[..message.len() - 1], &set).unwrap_err();
    assert!(matches!(cut, UpdateError::Truncated { .. }), "{cut}");
    let other = super::tests::set(&[("a", vec![0.0; 7])]);
    assert!(matches!(decode(&message, &other), Err(UpdateError::Layout { values: 7, .. })));
}

#[test]
fn an_update_from_an_older_global_adapter_is_recognised() {
    let (old, difference) = (sample(), sample());
    let new = set(&[("a", vec![1.0, -0.25, 4e-4]), ("b", vec![0.0; 2]), ("c", vec![0.0; 2])]);
    let message =
        encode_for_base(&difference, BaseId::of(&old), Codec::F16, Rounding::Nearest).unwrap();
    assert_eq!(Header::read(&message).unwrap().base, BaseId::of(&old));
    assert!(decode_for_base(&message, &old, BaseId::of(&old)).is_ok());
    let error = decode_for_base(&message, &new, BaseId::of(&new)).unwrap_err();
    assert!(matches!(error, UpdateError::OtherBase));
}

#[test]
fn small_differences_take_less_than_two_bytes_a_value() {
    let message = encode(&set(&[("a", small_differences())]), Codec::F16).unwrap();
    assert!(message.len() < 185_000, "{}", message.len());
}

/// A message that ends within its checksum and claims an empty payload made decoding panic; a fuzzer
/// found it.
#[test]
fn a_message_of_any_length_that_claims_an_empty_payload_is_an_error() {
    let layout = set(&[("a", vec![0.0; 3])]);
    let mut message = encode(&layout, Codec::F32).unwrap();
    // The payload's length is the header's last field.
    message[HEADER_LEN - 8..HEADER_LEN].fill(0);
    for len in 0..message.len() {
        assert!(decode(&message[..len], &layout).is_err(), "{len} bytes");
    }
}
