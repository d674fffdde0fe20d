//! From a weight's file format to f32.
//!
//! Blocks are decoded from bytes, so it does not matter how a mapped file is aligned. The formats
//! are those of ggml; each decoder names its block's fields in file order.

#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::ops::Range;

use candle_core::quantized::GgmlDType;

use super::isa::{Isa, multiversion};
use crate::weight::FrozenWeight;

/// Values in a block of the K formats.
const K: usize = 256;

/// Writes row `row` of `weight` as f32.
///
/// # Panics
/// When the row does not exist or `out` is not as long as the weight has columns.
pub fn dequantize_row(weight: &FrozenWeight, row: usize, out: &mut [f32]) {
    dequantize_rows(weight, row..row + 1, out);
}

/// Writes the rows `rows` of `weight` as f32, one after the other.
///
/// # Panics
/// When a row does not exist or `out` does not hold `rows.len()` times the weight's columns.
pub fn dequantize_rows(weight: &FrozenWeight, rows: Range<usize>, out: &mut [f32]) {
    decode_block(Isa::active(), weight, rows, 0..weight.cols(), out);
}

/// Writes these columns of these rows, one row after the other. Where not all columns are asked for,
/// both ends must lie between blocks of the format.
///
/// # Panics
/// When a row or column does not exist or `out` has another length.
pub(super) fn decode_block(
    isa: Isa,
    weight: &FrozenWeight,
    rows: Range<usize>,
    columns: Range<usize>,
    out: &mut [f32],
) {
    assert!(rows.end <= weight.rows(), "rows {rows:?} of {}", weight.name());
    assert_eq!(out.len(), rows.len() * columns.len(), "rows of {}", weight.name());
    let (block, size) = (weight.format().block_size(), weight.format().type_size());
    debug_assert!(columns.start.is_multiple_of(block) && columns.end.is_multiple_of(block));
    let bytes = columns.start / block * size..columns.end / block * size;
    if !columns.is_empty() {
        for (row, out) in rows.zip(out.chunks_exact_mut(columns.len())) {
            decode(isa, weight.format(), &weight.row_bytes(row)[bytes.clone()], out);
        }
    }
}

/// Writes these columns of a row as bf16, in one step where the processor has one: false, and nothing
/// written, where it has none for the weight's format. Both ends must lie between blocks.
///
/// # Panics
/// As [`decode_block`].
pub(super) fn decode_bf16(
    isa: Isa,
    weight: &FrozenWeight,
    row: usize,
    columns: Range<usize>,
    out: &mut [u16],
) -> bool {
    assert_eq!(out.len(), columns.len(), "columns of {}", weight.name());
    let (block, size) = (weight.format().block_size(), weight.format().type_size());
    debug_assert!(columns.start.is_multiple_of(block) && columns.end.is_multiple_of(block));
    let bytes = &weight.row_bytes(row)[columns.start / block * size..columns.end / block * size];
    #[cfg(target_arch = "x86_64")]
    return x86_64::decode_bf16(isa, weight.format(), bytes, out);
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (isa, bytes);
        false
    }
}

/// Calls a decoder for each whole block. A macro and no function that takes the decoder: a call
/// through `Fn` would not be compiled for the family of instructions of its caller.
macro_rules! each_block {
    ($decode:ident, $bytes:ident, $out:ident) => {
        for (block, out) in $bytes.as_chunks().0.iter().zip($out.as_chunks_mut().0) {
            $decode(block, out);
        }
    };
}
#[cfg(target_arch = "x86_64")]
use each_block;

/// Decodes whole blocks.
fn decode(isa: Isa, format: GgmlDType, bytes: &[u8], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if x86_64::decode(isa, format, bytes, out) {
        return;
    }
    decode_generic(isa, format, bytes, out);
}

multiversion! {
    fn decode_generic(format: GgmlDType, bytes: &[u8], out: &mut [f32]) = decode_any
}

#[inline(always)]
fn decode_any<const FMA: bool>(format: GgmlDType, bytes: &[u8], out: &mut [f32]) {
    match format {
        GgmlDType::F32 => each_block!(single_f32, bytes, out),
        GgmlDType::F16 => each_block!(single_f16, bytes, out),
        GgmlDType::BF16 => each_block!(single_bf16, bytes, out),
        GgmlDType::Q4_0 => each_block!(q4_0, bytes, out),
        GgmlDType::Q4_1 => each_block!(q4_1, bytes, out),
        GgmlDType::Q5_0 => each_block!(q5_0, bytes, out),
        GgmlDType::Q5_1 => each_block!(q5_1, bytes, out),
        GgmlDType::Q8_0 => each_block!(q8_0, bytes, out),
        GgmlDType::Q8_1 => each_block!(q8_1, bytes, out),
        GgmlDType::Q2K => each_block!(q2_k, bytes, out),
        GgmlDType::Q3K => each_block!(q3_k, bytes, out),
        GgmlDType::Q4K => each_block!(q4_k, bytes, out),
        GgmlDType::Q5K => each_block!(q5_k, bytes, out),
        GgmlDType::Q6K => each_block!(q6_k, bytes, out),
        GgmlDType::Q8K => each_block!(q8_k, bytes, out),
    }
}

#[inline(always)]
fn single_f32(bytes: &[u8; 4], out: &mut [f32; 1]) {
    out[0] = f32::from_le_bytes(*bytes);
}

#[inline(always)]
fn single_f16(bytes: &[u8; 2], out: &mut [f32; 1]) {
    out[0] = f16(*bytes);
}

#[inline(always)]
fn single_bf16(&[low, high]: &[u8; 2], out: &mut [f32; 1]) {
    out[0] = f32::from_le_bytes([0, 0, low, high]);
}

/// IEEE half precision without branches, so that it vectorises: normal numbers by moving the
/// exponent, subnormal ones by an addition that aligns them.
#[inline(always)]
fn f16(bytes: [u8; 2]) -> f32 {
    let word = u32::from(u16::from_le_bytes(bytes)) << 16;
    let sign = word & 0x8000_0000;
    let twice = word.wrapping_add(word);
    let normal = f32::from_bits((twice >> 4) + (0xE0 << 23)) * f32::from_bits(15 << 23);
    let subnormal = f32::from_bits((twice >> 17) | (126 << 23)) - 0.5;
    let magnitude = if twice < 1 << 27 { subnormal } else { normal };
    f32::from_bits(sign | magnitude.to_bits())
}

/// `N` bytes of a block from `start`.
#[inline(always)]
fn field<const N: usize>(block: &[u8], start: usize) -> &[u8; N] {
    // The callers' starts and lengths are constants inside the block, so this cannot fail.
    block[start..].first_chunk().expect("a field inside the block")
}

/// The two halves of a block of 32 values, which share bytes.
#[inline(always)]
fn halves(out: &mut [f32; 32]) -> [&mut [f32; 16]; 2] {
    let ([low, high], _) = out.as_chunks_mut::<16>() else { unreachable!("32 is twice 16") };
    [low, high]
}

/// Bit `at` of a 32-bit mask, moved to the fifth bit of a value.
#[inline(always)]
fn fifth_bit(mask: u32, at: usize) -> u8 {
    (((mask >> at) & 1) << 4) as u8
}

/// Scale (f16), 16 bytes of two values each.
#[inline(always)]
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let scale = f16(*field(block, 0));
    let packed: &[u8; 16] = field(block, 2);
    let [low, high] = halves(out);
    for i in 0..16 {
        low[i] = scale * f32::from((packed[i] & 15) as i8 - 8);
    }
    for i in 0..16 {
        high[i] = scale * f32::from((packed[i] >> 4) as i8 - 8);
    }
}

/// Scale, minimum (f16), 16 bytes of two values each.
#[inline(always)]
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (scale, min) = (f16(*field(block, 0)), f16(*field(block, 2)));
    let packed: &[u8; 16] = field(block, 4);
    let [low, high] = halves(out);
    for i in 0..16 {
        low[i] = scale * f32::from(packed[i] & 15) + min;
    }
    for i in 0..16 {
        high[i] = scale * f32::from(packed[i] >> 4) + min;
    }
}

/// Scale (f16), fifth bits (u32), 16 bytes of the low four bits of two values each.
#[inline(always)]
fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let scale = f16(*field(block, 0));
    let high = u32::from_le_bytes(*field(block, 2));
    let packed: &[u8; 16] = field(block, 6);
    let [first, second] = halves(out);
    for i in 0..16 {
        first[i] = scale * f32::from((packed[i] & 15 | fifth_bit(high, i)) as i8 - 16);
    }
    for i in 0..16 {
        second[i] = scale * f32::from((packed[i] >> 4 | fifth_bit(high, i + 16)) as i8 - 16);
    }
}

/// Scale, minimum (f16), fifth bits (u32), 16 bytes of the low four bits of two values each.
#[inline(always)]
fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (scale, min) = (f16(*field(block, 0)), f16(*field(block, 2)));
    let high = u32::from_le_bytes(*field(block, 4));
    let packed: &[u8; 16] = field(block, 8);
    let [first, second] = halves(out);
    for i in 0..16 {
        first[i] = scale * f32::from(packed[i] & 15 | fifth_bit(high, i)) + min;
    }
    for i in 0..16 {
        second[i] = scale * f32::from(packed[i] >> 4 | fifth_bit(high, i + 16)) + min;
    }
}

/// Scale (f16), 32 signed bytes.
#[inline(always)]
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let scale = f16(*field(block, 0));
    let values: &[u8; 32] = field(block, 2);
    for (out, &v) in out.iter_mut().zip(values) {
        *out = scale * f32::from(v as i8);
    }
}

/// Scale, scaled sum of the values (f16, not needed here), 32 signed bytes.
#[inline(always)]
fn q8_1(block: &[u8; 36], out: &mut [f32; 32]) {
    let scale = f16(*field(block, 0));
    let values: &[u8; 32] = field(block, 4);
    for (out, &v) in out.iter_mut().zip(values) {
        *out = scale * f32::from(v as i8);
    }
}

/// 16 bytes of scale and minimum of 4 bits each, 64 bytes of four values each, scale of the scales,
/// scale of the minima (f16).
#[inline(always)]
fn q2_k(block: &[u8; 84], out: &mut [f32; K]) {
    let scales: &[u8; 16] = field(block, 0);
    let packed: &[u8; 64] = field(block, 16);
    let (scale, min) = (f16(*field(block, 80)), f16(*field(block, 82)));
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        // Eight groups of 16 share 32 bytes, two groups to each pair of bits.
        let (half, shift, side) = (group / 8, group % 8 / 2 * 2, group % 2);
        let scale = scale * f32::from(scales[group] & 15);
        let min = min * f32::from(scales[group] >> 4);
        let packed: &[u8; 16] = field(packed, half * 32 + side * 16);
        for (out, &p) in out.iter_mut().zip(packed) {
            *out = scale * f32::from((p >> shift) & 3) - min;
        }
    }
}

/// 32 bytes of third bits (clear means minus four), 64 bytes of the low two bits of four values
/// each, 12 bytes of 16 six-bit scales, scale of the scales (f16).
#[inline(always)]
fn q3_k(block: &[u8; 110], out: &mut [f32; K]) {
    let high: &[u8; 32] = field(block, 0);
    let packed: &[u8; 64] = field(block, 32);
    let scales: &[u8; 12] = field(block, 96);
    let scale = f16(*field(block, 108));
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let low_bits = if group < 8 { scales[group] & 15 } else { scales[group - 8] >> 4 };
        let high_bits = (scales[8 + group % 4] >> (2 * (group / 4))) & 3;
        let scale = scale * f32::from((low_bits | high_bits << 4) as i8 - 32);
        let (half, shift, side) = (group / 8, group % 8 / 2 * 2, group % 2);
        let packed: &[u8; 16] = field(packed, half * 32 + side * 16);
        let high: &[u8; 16] = field(high, side * 16);
        let bit = group / 2;
        for (out, (&p, &h)) in out.iter_mut().zip(packed.iter().zip(high)) {
            *out = scale * f32::from(((p >> shift) & 3 | ((h >> bit) & 1) << 2) as i8 - 4);
        }
    }
}

/// The six-bit scale and minimum of group `group` of the formats Q4_K and Q5_K: eight of each in 12
/// bytes, the upper two bits of the last four lying in the first eight bytes.
#[inline(always)]
fn scale_and_min(scales: &[u8; 12], group: usize) -> (f32, f32) {
    let (scale, min) = if group < 4 {
        (scales[group] & 63, scales[group + 4] & 63)
    } else {
        let both = scales[group + 4];
        (both & 15 | scales[group - 4] >> 6 << 4, both >> 4 | scales[group] >> 6 << 4)
    };
    (f32::from(scale), f32::from(min))
}

/// Scale of the scales, scale of the minima (f16), 12 bytes of scales and minima, 128 bytes of two
/// values each.
#[inline(always)]
fn q4_k(block: &[u8; 144], out: &mut [f32; K]) {
    let (scale, min) = (f16(*field(block, 0)), f16(*field(block, 2)));
    let scales: &[u8; 12] = field(block, 4);
    let packed: &[u8; 128] = field(block, 16);
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (s, m) = scale_and_min(scales, group);
        let (scale, min) = (scale * s, min * m);
        let packed: &[u8; 32] = field(packed, group / 2 * 32);
        let shift = group % 2 * 4;
        for (out, &p) in out.iter_mut().zip(packed) {
            *out = scale * f32::from((p >> shift) & 15) - min;
        }
    }
}

/// As [`q4_k`], with 32 bytes of fifth bits before the packed values.
#[inline(always)]
fn q5_k(block: &[u8; 176], out: &mut [f32; K]) {
    let (scale, min) = (f16(*field(block, 0)), f16(*field(block, 2)));
    let scales: &[u8; 12] = field(block, 4);
    let high: &[u8; 32] = field(block, 16);
    let packed: &[u8; 128] = field(block, 48);
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (s, m) = scale_and_min(scales, group);
        let (scale, min) = (scale * s, min * m);
        let packed: &[u8; 32] = field(packed, group / 2 * 32);
        let shift = group % 2 * 4;
        for (out, (&p, &h)) in out.iter_mut().zip(packed.iter().zip(high)) {
            *out = scale * f32::from((p >> shift) & 15 | ((h >> group) & 1) << 4) - min;
        }
    }
}

/// 128 bytes of the low four bits, 64 bytes of the upper two, 16 scales (i8), scale of the scales
/// (f16).
#[inline(always)]
fn q6_k(block: &[u8; 210], out: &mut [f32; K]) {
    let low: &[u8; 128] = field(block, 0);
    let high: &[u8; 64] = field(block, 128);
    let scales: &[u8; 16] = field(block, 192);
    let scale = f16(*field(block, 208));
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        // Each half of 128 values: four runs of 32, the first two in the low nibbles of 64 bytes.
        let (half, run, side) = (group / 8, group % 8 / 2, group % 2);
        let scale = scale * f32::from(scales[group] as i8);
        let low: &[u8; 16] = field(low, half * 64 + run % 2 * 32 + side * 16);
        let high: &[u8; 16] = field(high, half * 32 + side * 16);
        let (low_shift, high_shift) = (run / 2 * 4, run * 2);
        for (out, (&l, &h)) in out.iter_mut().zip(low.iter().zip(high)) {
            let value = (l >> low_shift) & 15 | ((h >> high_shift) & 3) << 4;
            *out = scale * f32::from(value as i8 - 32);
        }
    }
}

/// Scale (f32), 256 signed bytes, sums of 16 (not needed here).
#[inline(always)]
fn q8_k(block: &[u8; 292], out: &mut [f32; K]) {
    let scale = f32::from_le_bytes(*field(block, 0));
    let values: &[u8; K] = field(block, 4);
    for (out, &v) in out.iter_mut().zip(values) {
        *out = scale * f32::from(v as i8);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::QTensor;
    use candle_core::{Device, Tensor};
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::kernels::isa::InstructionSet;
    use crate::kernels::testing::FORMATS;

    #[test]
    fn every_format_decodes_as_candle_decodes_it() {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(0);
        let values: Vec<f32> = (0..3 * 512).map(|_| random.random_range(-1.0..1.0)).collect();
        let tensor = Tensor::from_vec(values, (3, 512), &Device::Cpu).unwrap();
        for &format in FORMATS {
            let Ok(quantized) = QTensor::quantize(&tensor, format) else {
                assert_eq!(format, GgmlDType::Q8_1, "candle quantises the other formats");
                continue;
            };
            let bytes = quantized.data().unwrap().into_owned();
            let weight = FrozenWeight::owned("w", (3, 512), format, bytes).unwrap();
            let mut ours = vec![0.0; 3 * 512];
            dequantize_rows(&weight, 0..3, &mut ours);
            let theirs = quantized.dequantize(&Device::Cpu).unwrap();
            let theirs: Vec<f32> = theirs.flatten_all().unwrap().to_vec1().unwrap();
            for (i, (a, b)) in ours.iter().zip(&theirs).enumerate() {
                assert!((a - b).abs() <= 1e-6 * b.abs(), "{format:?} value {i}: {a} and {b}");
            }
        }
    }

    #[test]
    fn every_path_decodes_to_the_same_bits() {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        for &format in FORMATS {
            let mut bytes = vec![0; 512 / format.block_size() * format.type_size()];
            random.fill(&mut bytes[..]);
            let weight = FrozenWeight::owned("w", (1, 512), format, bytes).unwrap();
            let decoded = |isa| {
                let mut out = vec![0.0; 512];
                decode_block(isa, &weight, 0..1, 0..512, &mut out);
                // What is no number has no bits to agree on.
                let bits = |v: &f32| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() };
                out.iter().map(bits).collect::<Vec<_>>()
            };
            let portable = decoded(Isa::new(InstructionSet::Portable).unwrap());
            for isa in Isa::all() {
                assert_eq!(decoded(isa), portable, "{format:?} with {isa:?}");
            }
        }
    }

    #[test]
    fn decoding_to_bf16_in_one_step_rounds_what_decoding_yields() {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(2);
        for &format in FORMATS {
            let values: Vec<f32> = (0..512).map(|_| random.random_range(-1.0..1.0)).collect();
            let tensor = Tensor::from_vec(values, (1, 512), &Device::Cpu).unwrap();
            let Ok(quantized) = QTensor::quantize(&tensor, format) else { continue };
            let bytes = quantized.data().unwrap().into_owned();
            let weight = FrozenWeight::owned("w", (1, 512), format, bytes).unwrap();
            let mut exact = vec![0.0; 256];
            decode_block(Isa::active(), &weight, 0..1, 256..512, &mut exact);
            for isa in Isa::all() {
                let mut rounded = vec![0; 256];
                if decode_bf16(isa, &weight, 0, 256..512, &mut rounded) {
                    let expected = exact.iter().map(|v| half::bf16::from_f32(*v).to_bits());
                    assert!(rounded.into_iter().eq(expected), "{format:?} with {isa:?}");
                }
            }
        }
    }

    #[test]
    fn half_precision_is_exact_for_every_number() {
        for bits in 0..=u16::MAX {
            let (ours, exact) = (f16(bits.to_le_bytes()), half::f16::from_bits(bits).to_f32());
            assert!(ours == exact || exact.is_nan() && ours.is_nan(), "{bits:#06x}");
            assert_eq!(ours.is_sign_negative(), exact.is_sign_negative(), "{bits:#06x}");
        }
    }

    #[test]
    fn a_range_of_columns_is_that_part_of_the_row() {
        let bytes: Vec<u8> = (0..2 * 3 * 34).map(|i| (i % 50) as u8).collect();
        let weight = FrozenWeight::owned("w", (2, 96), GgmlDType::Q8_0, bytes).unwrap();
        let (mut row, mut part) = ([0.0; 96], [0.0; 32]);
        dequantize_row(&weight, 1, &mut row);
        decode_block(Isa::active(), &weight, 1..2, 32..64, &mut part);
        assert_eq!(part, row[32..64]);
    }
}
