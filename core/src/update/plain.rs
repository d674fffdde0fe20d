//! Values in f32 and f16, as *byte planes*: the first byte of every value, then the second, and so
//! on. The bytes that hold sign and exponent then stand together, where the compressor finds them
//! alike; mantissas look random to it wherever they stand.

use half::f16;

/// Exponent of the power of two under which the largest value of a tensor is stored.
const TOP_EXPONENT: i32 = 15;
/// The largest f16 below it. Values are rounded to it at most, as the power above may lie outside
/// f32 once it is scaled back.
const TOP: f64 = 32752.0;

/// Whether no value is NaN or infinite. Looks at all of them, which vector units do faster than
/// stopping at the first.
pub(super) fn all_finite(values: &[f32]) -> bool {
    values.iter().fold(true, |finite, value| finite & value.is_finite())
}

pub(super) fn pack_f32(tensors: &[&[f32]], bytes: &mut Vec<u8>) {
    let values = tensors.iter().copied().flatten();
    extend_planes(bytes, values.map(|v| v.to_le_bytes()));
}

pub(super) fn unpack_f32<'a>(bytes: &[u8], tensors: impl Iterator<Item = &'a mut [f32]>) {
    let mut values = planes::<4>(bytes).map(f32::from_le_bytes);
    tensors.for_each(|slots| fill(slots, &mut values));
}

/// An exponent for each tensor, then the planes of `v / 2^exponent`.
pub(super) fn pack_f16(tensors: &[&[f32]], bytes: &mut Vec<u8>) {
    let exponents: Vec<i16> = tensors.iter().map(|values| exponent_of(values)).collect();
    bytes.extend(exponents.iter().flat_map(|e| e.to_le_bytes()));
    let values = tensors.iter().zip(exponents).flat_map(|(values, exponent)| {
        let scale = power_of_two(-exponent);
        let scaled = move |&v: &f32| (f64::from(v) * scale).clamp(-TOP, TOP);
        values.iter().map(move |v| f16::from_f64(scaled(v)))
    });
    extend_planes(bytes, values.map(f16::to_le_bytes));
}

/// Fills `count` tensors.
pub(super) fn unpack_f16<'a>(
    bytes: &[u8],
    count: usize,
    tensors: impl Iterator<Item = &'a mut [f32]>,
) {
    let (exponents, bytes) = bytes.split_at(count * size_of::<i16>());
    let exponents = exponents.as_chunks().0.iter().map(|&e| i16::from_le_bytes(e));
    let mut values = planes::<2>(bytes).map(f16::from_le_bytes);
    for (slots, exponent) in tensors.zip(exponents) {
        let scale = power_of_two(exponent);
        fill(slots, &mut values.by_ref().map(|v| (v.to_f64() * scale) as f32));
    }
}

/// The exponent e for which the largest magnitude, divided by 2^e, lies just below 2^15.
fn exponent_of(values: &[f32]) -> i16 {
    let largest = values.iter().fold(0.0f32, |largest, v| largest.max(v.abs()));
    if largest == 0.0 {
        return 0;
    }
    // Every f32 but zero is a normal f64, whose exponent field is biased by 1023.
    let exponent = (f64::from(largest).to_bits() >> 52) as i32 - 1023;
    (exponent + 1 - TOP_EXPONENT) as i16
}

/// 2^exponent; zero or infinite where f64 has none, which only a forged message asks for.
fn power_of_two(exponent: i16) -> f64 {
    f64::from(exponent).exp2()
}

/// Appends the first byte of each value, then the second of each, and so on.
pub(super) fn extend_planes<const N: usize>(
    bytes: &mut Vec<u8>,
    values: impl Iterator<Item = [u8; N]>,
) {
    let values: Vec<[u8; N]> = values.collect();
    for plane in 0..N {
        bytes.extend(values.iter().map(|value| value[plane]));
    }
}

/// The values whose bytes lie in `N` planes that fill `bytes`.
pub(super) fn planes<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    let len = bytes.len() / N;
    (0..len).map(move |i| std::array::from_fn(|plane| bytes[plane * len + i]))
}

fn fill(slots: &mut [f32], values: &mut impl Iterator<Item = f32>) {
    for (slot, value) in slots.iter_mut().zip(values) {
        *slot = value;
    }
}
