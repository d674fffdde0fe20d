//! Values in eight, four or two bits, with one scale for each block of a tensor.
//!
//! With c half the number of steps, a value v in a block of scale s becomes the code
//! `c + round(v · c / s)` and is read as `(code - c) · s / c`. The scale is the block's largest magnitude, rounded up
//! to a bf16, so that no value is clipped and the error of a value is at most one step, s / c.

use half::bf16;

use super::plain::{extend_planes, planes};
use super::{UpdateError, ValueFormat};

/// Values that share a scale. A block never reaches over the end of a tensor.
pub(super) const BLOCK: usize = 64;
/// Blocks without a larger magnitude are sent as zeros: steps would lie among subnormal numbers.
const TINY: f32 = 1e-30;

/// How a value between two levels is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// To the nearest level: the smallest error. For senders that keep the error and add it to what
    /// they send next.
    Nearest,
    /// Up or down by chance, in proportion to nearness: no bias, so that errors of many senders
    /// average out. For senders that keep nothing.
    Stochastic {
        /// Seed of the chance.
        seed: u64,
    },
}

impl Rounding {
    /// The rounding of a segment: each draws numbers of its own.
    pub(super) fn of_segment(self, index: usize) -> Self {
        match self {
            Rounding::Nearest => Rounding::Nearest,
            // A segment draws far fewer than 2^32 numbers.
            Rounding::Stochastic { seed } => Rounding::Stochastic {
                seed: seed.wrapping_add(((index as u64) << 32).wrapping_mul(Chance::STEP)),
            },
        }
    }
}

/// Levels of a format.
#[derive(Debug, Clone, Copy)]
struct Grid {
    /// Bits of a code.
    bits: usize,
    /// c: the code of zero, where there is one.
    centre: f32,
}

impl Grid {
    /// The levels of a quantised format.
    fn of(format: ValueFormat) -> Option<Self> {
        match format {
            ValueFormat::Int8 => Some(Self { bits: 8, centre: 127.0 }),
            ValueFormat::Int4 => Some(Self { bits: 4, centre: 7.0 }),
            ValueFormat::Int2 => Some(Self { bits: 2, centre: 1.5 }),
            ValueFormat::F32 | ValueFormat::F16 => None,
        }
    }
}

/// Bytes that [`pack`] makes of tensors of these lengths.
pub(super) fn packed_len(format: ValueFormat, lens: impl Iterator<Item = usize>) -> Option<usize> {
    let grid = Grid::of(format)?;
    let (blocks, values) =
        lens.fold((0, 0), |(blocks, values), len| (blocks + len.div_ceil(BLOCK), values + len));
    Some(2 * blocks + values.div_ceil(8 / grid.bits))
}

/// The scales of all blocks as byte planes, then the codes, the first in the lowest bits of a byte.
pub(super) fn pack(
    format: ValueFormat,
    tensors: &[&[f32]],
    rounding: Rounding,
    bytes: &mut Vec<u8>,
) {
    let Some(Grid { bits, centre }) = Grid::of(format) else { return };
    let blocks = || tensors.iter().flat_map(|values| values.chunks(BLOCK));
    let scales: Vec<f32> = blocks().map(scale_of).collect();
    extend_planes(bytes, scales.iter().map(|&scale| bf16::from_f32(scale).to_le_bytes()));

    let mut codes = Vec::with_capacity(blocks().map(<[f32]>::len).sum());
    match rounding {
        Rounding::Nearest => {
            for (block, &scale) in blocks().zip(&scales) {
                push_codes(block, scale, centre, std::iter::repeat(0.5), &mut codes);
            }
        }
        Rounding::Stochastic { seed } => {
            let mut chance = Chance(seed);
            for (block, &scale) in blocks().zip(&scales) {
                let mut dither = [0.0; BLOCK];
                chance.fill(&mut dither);
                push_codes(block, scale, centre, dither, &mut codes);
            }
        }
    }
    let per_byte = 8 / bits;
    bytes.extend(codes.chunks(per_byte).map(|codes| {
        codes.iter().enumerate().fold(0, |byte, (i, code)| byte | code << (i * bits))
    }));
}

/// Appends the codes of one block. Adding a number of [0, 1) and cutting off rounds up with a
/// probability of what is cut off.
fn push_codes(
    block: &[f32],
    scale: f32,
    centre: f32,
    dither: impl IntoIterator<Item = f32>,
    codes: &mut Vec<u8>,
) {
    let factor = if scale > 0.0 { centre / scale } else { 0.0 };
    let top = 2.0 * centre;
    let code = |(&v, dither): (&f32, f32)| (v * factor + centre + dither).clamp(0.0, top) as u8;
    codes.extend(block.iter().zip(dither).map(code));
}

/// Fills tensors from bytes that have the length [`packed_len`] gives for them.
///
/// # Errors
/// When a scale or a code is none that [`pack`] writes.
pub(super) fn unpack<'a>(
    format: ValueFormat,
    bytes: &[u8],
    tensors: impl Iterator<Item = &'a mut [f32]>,
) -> Result<(), UpdateError> {
    let Some(Grid { bits, centre }) = Grid::of(format) else { return Ok(()) };
    let tensors: Vec<_> = tensors.collect();
    let blocks: usize = tensors.iter().map(|values| values.len().div_ceil(BLOCK)).sum();
    let (scales, codes) = bytes.split_at(2 * blocks);
    let mut scales = planes::<2>(scales).map(|bytes| bf16::from_le_bytes(bytes).to_f32());
    let (per_byte, mask) = (8 / bits, u8::MAX >> (8 - bits));
    let mut place = 0;
    for block in tensors.into_iter().flat_map(|values| values.chunks_mut(BLOCK)) {
        let scale = scales.next().unwrap_or_default();
        if !(scale >= 0.0 && scale.is_finite()) {
            return Err(UpdateError::Payload("a block's scale is no positive number"));
        }
        let step = scale / centre;
        let mut largest = 0;
        for (i, slot) in block.iter_mut().enumerate() {
            let i = place + i;
            let code = (codes[i / per_byte] >> (i % per_byte * bits)) & mask;
            largest = largest.max(code);
            *slot = (f32::from(code) - centre) * step;
        }
        if f32::from(largest) > 2.0 * centre {
            return Err(UpdateError::Payload("a code stands for no level"));
        }
        place += block.len();
    }
    Ok(())
}

/// The largest magnitude, rounded up to a finite bf16; zero for what counts as zeros.
fn scale_of(block: &[f32]) -> f32 {
    let largest = block.iter().fold(0.0f32, |largest, v| largest.max(v.abs()));
    if largest < TINY {
        return 0.0;
    }
    // A bf16 is the upper half of an f32.
    let up = f32::from_bits((largest.to_bits() + 0xffff) & 0xffff_0000);
    up.min(bf16::MAX.to_f32())
}

/// SplitMix64 (Steele et al. 2014): equal seeds give equal numbers on every machine.
struct Chance(u64);

impl Chance {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

    /// Numbers of [0, 1), two of 24 bits from each draw.
    fn fill(&mut self, slots: &mut [f32; BLOCK]) {
        const UNIT: f32 = 1.0 / (1 << 24) as f32;
        for pair in slots.as_chunks_mut::<2>().0 {
            self.0 = self.0.wrapping_add(Self::STEP);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            *pair = [(z as u32 >> 8) as f32 * UNIT, ((z >> 40) as u32) as f32 * UNIT];
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn there_and_back(format: ValueFormat, values: &[f32], rounding: Rounding) -> Vec<f32> {
        let mut bytes = Vec::new();
        pack(format, &[values], rounding, &mut bytes);
        assert_eq!(packed_len(format, std::iter::once(values.len())), Some(bytes.len()));
        let mut back = vec![f32::NAN; values.len()];
        unpack(format, &bytes, std::iter::once(back.as_mut_slice())).unwrap();
        back
    }

    fn quantised() -> impl Strategy<Value = ValueFormat> {
        prop::sample::select(vec![ValueFormat::Int8, ValueFormat::Int4, ValueFormat::Int2])
    }

    proptest! {
        #[test]
        fn no_value_moves_further_than_its_blocks_step(
            format in quantised(),
            values in prop::collection::vec(-1e3f32..1e3, 0..200),
            seed in any::<u64>(),
        ) {
            let centre = Grid::of(format).unwrap().centre;
            for (rounding, steps) in
                [(Rounding::Nearest, 0.5), (Rounding::Stochastic { seed }, 1.0)]
            {
                let back = there_and_back(format, &values, rounding);
                for (block, back) in values.chunks(BLOCK).zip(back.chunks(BLOCK)) {
                    let bound = steps * scale_of(block) / centre * 1.001;
                    for (v, b) in block.iter().zip(back) {
                        prop_assert!((v - b).abs() <= bound, "{v} became {b}, bound {bound}");
                    }
                }
            }
        }

        #[test]
        fn stochastic_rounding_repeats_with_its_seed(
            format in quantised(),
            values in prop::collection::vec(-1.0f32..1.0, 1..100),
            seed in any::<u64>(),
        ) {
            let rounding = Rounding::Stochastic { seed };
            prop_assert_eq!(
                there_and_back(format, &values, rounding),
                there_and_back(format, &values, rounding)
            );
        }
    }

    #[test]
    fn stochastic_rounding_is_unbiased() {
        let values: Vec<f32> = (0..BLOCK).map(|i| (i as f32 * 0.37).sin() * 0.9).collect();
        for format in [ValueFormat::Int8, ValueFormat::Int4, ValueFormat::Int2] {
            let runs = 4000;
            let mut sums = vec![0.0f64; values.len()];
            for seed in 0..runs {
                let back = there_and_back(format, &values, Rounding::Stochastic { seed });
                sums.iter_mut().zip(back).for_each(|(sum, b)| *sum += f64::from(b));
            }
            let step = f64::from(scale_of(&values) / Grid::of(format).unwrap().centre);
            // A rounded value's standard deviation is at most half a step.
            let bound = 5.0 * 0.5 * step / (runs as f64).sqrt();
            for (sum, &v) in sums.iter().zip(&values) {
                let bias = sum / runs as f64 - f64::from(v);
                assert!(bias.abs() < bound, "{format:?}: {v} is off by {bias} on average");
            }
        }
    }

    #[test]
    fn zeros_and_what_is_nearly_nothing_become_zeros() {
        for format in [ValueFormat::Int8, ValueFormat::Int4, ValueFormat::Int2] {
            let rounding = Rounding::Stochastic { seed: 1 };
            assert_eq!(there_and_back(format, &[0.0, 1e-40, -1e-31], rounding), [0.0; 3]);
        }
    }

    #[test]
    fn the_largest_numbers_stay_finite() {
        for format in [ValueFormat::Int8, ValueFormat::Int4, ValueFormat::Int2] {
            let back = there_and_back(format, &[f32::MAX, -f32::MAX], Rounding::Nearest);
            assert!(back.iter().all(|v| v.is_finite() && v.abs() > 3.3e38), "{back:?}");
        }
    }
}
