//! How values are written before compression.
//!
//! Both codecs write *byte planes*: the first byte of every value, then the second, and so on. The
//! bytes that hold sign and exponent then stand together, where the compressor finds them alike;
//! mantissas look random to it wherever they stand.

use half::f16;

use super::UpdateError;
use crate::adapter::ParameterSet;

/// How values are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Codec {
    /// f32: every bit. What the server hands out.
    F32,
    /// f16 with a power of two for each tensor, so that the tensor's largest value lies at the top
    /// of f16's range: 11 significant bits down to 2⁻²⁸ of the largest value, and no overflow.
    /// Without the power, the small differences of a short training would fall among f16's
    /// subnormal numbers and lose their bits.
    F16,
}

/// Exponent of the power of two under which the largest value of a tensor is stored.
const TOP_EXPONENT: i32 = 15;
/// The largest f16 below it. Values are rounded to it at most, as the power above may lie outside
/// f32 once it is scaled back.
const TOP: f64 = 32752.0;

impl Codec {
    /// The number that stands for the codec in a message.
    pub fn id(self) -> u8 {
        match self {
            Codec::F32 => 0,
            Codec::F16 => 1,
        }
    }

    /// The codec with this number.
    pub fn from_id(id: u8) -> Option<Self> {
        [Codec::F32, Codec::F16].into_iter().find(|codec| codec.id() == id)
    }

    /// Bytes that [`Codec::pack`] makes of a set of this layout.
    pub(super) fn packed_len(self, layout: &ParameterSet) -> usize {
        match self {
            Codec::F32 => layout.num_values() * size_of::<f32>(),
            Codec::F16 => layout.len() * size_of::<i16>() + layout.num_values() * size_of::<f16>(),
        }
    }

    pub(super) fn pack(self, set: &ParameterSet) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.packed_len(set));
        match self {
            Codec::F32 => {
                let values = set.iter().flat_map(|entry| &entry.values);
                extend_planes(&mut bytes, values.map(|v| v.to_le_bytes()));
            }
            Codec::F16 => {
                let exponents: Vec<i16> =
                    set.iter().map(|entry| exponent_of(&entry.values)).collect();
                bytes.extend(exponents.iter().flat_map(|e| e.to_le_bytes()));
                let values = set.iter().zip(exponents).flat_map(|(entry, exponent)| {
                    let scale = power_of_two(-exponent);
                    let scaled = move |&v: &f32| (f64::from(v) * scale).clamp(-TOP, TOP);
                    entry.values.iter().map(move |v| f16::from_f64(scaled(v)))
                });
                extend_planes(&mut bytes, values.map(f16::to_le_bytes));
            }
        }
        bytes
    }

    /// Fills `set` from bytes that have the length [`Codec::packed_len`] gives for it.
    pub(super) fn unpack(self, bytes: &[u8], set: &mut ParameterSet) -> Result<(), UpdateError> {
        let num_values = set.num_values();
        match self {
            Codec::F32 => {
                let mut values = planes::<4>(bytes, num_values).map(f32::from_le_bytes);
                set.values_mut().for_each(|slots| fill(slots, &mut values));
            }
            Codec::F16 => {
                let (exponents, planes_bytes) = bytes.split_at(set.len() * size_of::<i16>());
                let exponents: Vec<i16> =
                    exponents.as_chunks().0.iter().map(|&e| i16::from_le_bytes(e)).collect();
                let mut values = planes::<2>(planes_bytes, num_values).map(f16::from_le_bytes);
                for (slots, exponent) in set.values_mut().zip(exponents) {
                    let scale = power_of_two(exponent);
                    fill(slots, &mut values.by_ref().map(|v| (v.to_f64() * scale) as f32));
                }
            }
        }
        let finite = set.iter().all(|entry| entry.values.iter().all(|v| v.is_finite()));
        if finite { Ok(()) } else { Err(UpdateError::Payload("some are not finite")) }
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

fn extend_planes<const N: usize>(bytes: &mut Vec<u8>, values: impl Iterator<Item = [u8; N]>) {
    let values: Vec<[u8; N]> = values.collect();
    for plane in 0..N {
        bytes.extend(values.iter().map(|value| value[plane]));
    }
}

/// The values whose bytes lie in `N` planes of `len` bytes.
fn planes<const N: usize>(bytes: &[u8], len: usize) -> impl Iterator<Item = [u8; N]> + '_ {
    (0..len).map(move |i| std::array::from_fn(|plane| bytes[plane * len + i]))
}

fn fill(slots: &mut [f32], values: &mut impl Iterator<Item = f32>) {
    for (slot, value) in slots.iter_mut().zip(values) {
        *slot = value;
    }
}
