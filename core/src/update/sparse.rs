//! The largest values alone: which they are, and how their places are written.
//!
//! Places are gaps between one sent value and the next, in Golomb–Rice code, or a bitmap of all
//! values, whichever is shorter; a bitmap has one bit a value, which bounds what a message may
//! claim.

use super::UpdateError;
use super::payload::SEGMENT;

/// Which values are the largest of a set, found once for all of its segments.
pub(super) struct Largest {
    /// Values of a greater key are sent.
    threshold: u32,
    /// How many of those with just this key still are.
    equal: usize,
}

impl Largest {
    /// The `count` values of largest magnitude. Of equal magnitudes the first are taken; zeros never
    /// are.
    pub(super) fn of(tensors: &[&[f32]], count: usize) -> Self {
        /// Low bits that do not count for the histogram; what is left are exponent and three bits
        /// more.
        const SHIFT: u32 = 20;
        if count == 0 {
            return Self { threshold: u32::MAX, equal: 0 };
        }
        let mut histogram = [0usize; 1 << (31 - SHIFT)];
        for values in tensors {
            values.iter().for_each(|&value| histogram[(key(value) >> SHIFT) as usize] += 1);
        }
        let mut above = 0;
        for (bucket, &size) in histogram.iter().enumerate().rev() {
            if above + size < count {
                above += size;
                continue;
            }
            let mut inside = Vec::with_capacity(size);
            for values in tensors {
                let keys = values.iter().map(|&value| key(value));
                inside.extend(keys.filter(|key| (key >> SHIFT) as usize == bucket));
            }
            let rank = count - above - 1;
            let (larger, &mut threshold, _) = inside.select_nth_unstable_by(rank, |a, b| b.cmp(a));
            let ties = larger.iter().filter(|&&key| key == threshold).count();
            return Self { threshold, equal: if threshold == 0 { 0 } else { ties + 1 } };
        }
        // Fewer values than asked for: all of them.
        Self { threshold: 0, equal: 0 }
    }

    /// The places of those among the values of the next segment, ascending, counted over its parts
    /// end to end.
    pub(super) fn places(&mut self, parts: &[&[f32]]) -> Vec<usize> {
        let (mut places, mut sent, mut place) = (Vec::new(), 0, 0);
        for part in parts {
            // A place is written whether its value is sent or not, and the next one over it if not:
            // which are sent is close to random, and a branch would often be predicted wrong.
            places.resize(sent + part.len(), 0);
            for &value in *part {
                let key = key(value);
                places[sent] = place;
                if key == self.threshold {
                    sent += usize::from(self.equal > 0);
                    self.equal = self.equal.saturating_sub(1);
                } else {
                    sent += usize::from(key > self.threshold);
                }
                place += 1;
            }
        }
        places.truncate(sent);
        places
    }
}

/// A number that is ordered as the magnitude is: an f32's bits without its sign.
fn key(value: f32) -> u32 {
    value.to_bits() & 0x7fff_ffff
}

/// How places are written; the number in a message.
const BITMAP: u8 = 0;
/// Rice codes whose remainders have `coding - RICE` bits.
const RICE: u8 = 1;
/// The most bits of a remainder: as many as the places of a segment have.
const MAX_RICE_BITS: u8 = SEGMENT.ilog2() as u8;

/// Bytes of the places of `values` values at most.
pub(super) fn max_len(values: usize) -> usize {
    values.div_ceil(8)
}

/// The coding's number and the bytes of ascending `places` among `values` values.
pub(super) fn pack_places(places: &[usize], values: usize) -> (u8, Vec<u8>) {
    let gaps = || {
        let before = std::iter::once(None).chain(places.iter().copied().map(Some));
        before.zip(places).map(|(before, &place)| before.map_or(place, |before| place - before - 1))
    };
    let mean_gap = values / places.len().max(1);
    let guess = (mean_gap.checked_ilog2().unwrap_or(0) as u8).min(MAX_RICE_BITS);
    let candidates: [u8; 3] = [guess.saturating_sub(2), guess.saturating_sub(1), guess];
    let mut quotients = [0; 3];
    for gap in gaps() {
        quotients.iter_mut().zip(candidates).for_each(|(sum, bits)| *sum += gap >> bits);
    }
    let cost = |(quotients, bits)| quotients + places.len() * (1 + usize::from(bits));
    let costs = quotients.into_iter().zip(candidates).map(|pair| (cost(pair), pair.1));
    match costs.min() {
        Some((cost, bits)) if cost.div_ceil(8) < max_len(values) => {
            let mut writer = BitWriter::default();
            gaps().for_each(|gap| writer.rice(gap, bits));
            (RICE + bits, writer.finish())
        }
        _ => {
            let mut bitmap = vec![0; max_len(values)];
            places.iter().for_each(|place| bitmap[place / 8] |= 1 << (place % 8));
            (BITMAP, bitmap)
        }
    }
}

/// The places that [`pack_places`] wrote: `count` of `values`, ascending.
///
/// # Errors
/// When the bytes hold another number of places, or one that is out of range.
pub(super) fn unpack_places(
    coding: u8,
    bytes: &[u8],
    count: usize,
    values: usize,
) -> Result<Vec<usize>, UpdateError> {
    let damaged = UpdateError::Payload("the places of its values make no sense");
    // Before memory is taken: the receiver's layout bounds both.
    if count > values || bytes.len() > max_len(values) {
        return Err(damaged);
    }
    let mut places = Vec::with_capacity(count);
    if coding == BITMAP {
        for (i, &byte) in bytes.iter().enumerate() {
            let set = (0..8).filter(|bit| byte >> bit & 1 == 1);
            places.extend(set.map(|bit| 8 * i + bit));
            if places.len() > count {
                return Err(damaged);
            }
        }
    } else {
        let bits = coding - RICE;
        if bits > MAX_RICE_BITS {
            return Err(damaged);
        }
        let mut reader = BitReader::new(bytes);
        let mut next = 0;
        for _ in 0..count {
            let gap = reader.rice(bits).filter(|&gap| gap < values).ok_or_else(ends_early)?;
            places.push(next + gap);
            next += gap + 1;
            if next > values {
                return Err(damaged);
            }
        }
    }
    let in_range = places.last().is_none_or(|&last| last < values);
    if places.len() == count && in_range { Ok(places) } else { Err(damaged) }
}

fn ends_early() -> UpdateError {
    UpdateError::Payload("the places of its values end early")
}

/// Bits, the first in the lowest bit of the first byte.
#[derive(Default)]
struct BitWriter {
    bytes: Vec<u8>,
    pending: u64,
    len: u32,
}

impl BitWriter {
    /// A value of `bits` bits, at most 63.
    fn push(&mut self, value: u64, bits: u32) {
        self.pending |= value << self.len;
        self.len += bits;
        if self.len >= u64::BITS {
            self.bytes.extend(self.pending.to_le_bytes());
            self.len -= u64::BITS;
            self.pending = value >> (bits - self.len);
        }
    }

    /// The quotient in unary, ones and a zero; then the remainder in `bits` bits.
    fn rice(&mut self, value: usize, bits: u8) {
        let mut quotient = value >> bits;
        while quotient >= 32 {
            self.push(u64::from(u32::MAX), 32);
            quotient -= 32;
        }
        let remainder = value as u64 & ((1 << bits) - 1);
        let unary = (1 << quotient) - 1;
        self.push(unary | remainder << (quotient + 1), quotient as u32 + 1 + u32::from(bits));
    }

    fn finish(mut self) -> Vec<u8> {
        let bytes = self.len.div_ceil(8) as usize;
        self.bytes.extend(&self.pending.to_le_bytes()[..bytes]);
        self.bytes
    }
}

struct BitReader<'a> {
    bytes: &'a [u8],
    pending: u64,
    len: u32,
}

impl<'a> BitReader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, pending: 0, len: 0 }
    }

    fn refill(&mut self) {
        while self.len <= 56
            && let Some((&first, rest)) = self.bytes.split_first()
        {
            self.pending |= u64::from(first) << self.len;
            self.len += 8;
            self.bytes = rest;
        }
    }

    fn take(&mut self, bits: u32) -> Option<u64> {
        self.refill();
        let value = self.pending & ((1 << bits) - 1);
        self.len = self.len.checked_sub(bits)?;
        self.pending >>= bits;
        Some(value)
    }

    fn rice(&mut self, bits: u8) -> Option<usize> {
        let mut quotient = 0usize;
        loop {
            self.refill();
            let ones = self.pending.trailing_ones().min(self.len);
            quotient += ones as usize;
            if ones < self.len {
                // In two shifts: ones and the zero may be all 64 bits.
                self.pending = self.pending >> ones >> 1;
                self.len -= ones + 1;
                break;
            }
            // All pending bits are ones: more follow, or the input is at its end.
            if self.len == 0 {
                return None;
            }
            self.pending = 0;
            self.len = 0;
        }
        let low = self.take(u32::from(bits))?;
        (quotient.checked_shl(u32::from(bits))?).checked_add(low as usize)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_largest_are_those_a_sort_finds(
            values in prop::collection::vec(
                prop_oneof![-2.0f32..2.0, Just(0.0), Just(0.5), Just(-0.5)], 1..300),
            share in 0.0f64..1.0,
        ) {
            let count = (share * values.len() as f64).ceil() as usize;
            let (left, right) = values.split_at(values.len() / 3);
            let mut largest = Largest::of(&[left, right], count);
            // In one segment, and in two.
            let mut found = largest.places(&[left]);
            found.extend(largest.places(&[right]).into_iter().map(|place| place + left.len()));
            prop_assert_eq!(&found, &Largest::of(&[left, right], count).places(&[left, right]));
            let mut sorted: Vec<usize> = (0..values.len()).filter(|&i| values[i] != 0.0).collect();
            sorted.sort_by(|&a, &b| values[b].abs().total_cmp(&values[a].abs()));
            sorted.truncate(count);
            sorted.sort_unstable();
            prop_assert_eq!(found, sorted);
        }

        #[test]
        fn places_come_back(
            flags in prop::collection::vec(prop::bool::weighted(0.2), 0..400),
            gap in 0usize..5000,
        ) {
            let mut places: Vec<usize> =
                flags.iter().enumerate().filter(|(_, flag)| **flag).map(|(i, _)| i).collect();
            // A far place needs a long unary part.
            places.push(flags.len() + gap);
            let values = flags.len() + gap + 1;
            let (coding, bytes) = pack_places(&places, values);
            prop_assert!(bytes.len() <= max_len(values));
            prop_assert_eq!(unpack_places(coding, &bytes, places.len(), values).unwrap(), places);
        }

        #[test]
        fn forged_places_are_refused_or_in_order_and_in_range(
            coding in any::<u8>(),
            bytes in prop::collection::vec(any::<u8>(), 0..40),
            count in 0usize..200,
            values in 0usize..300,
        ) {
            if let Ok(places) = unpack_places(coding, &bytes, count, values) {
                prop_assert_eq!(places.len(), count);
                prop_assert!(places.windows(2).all(|pair| pair[0] < pair[1]));
                prop_assert!(places.iter().all(|&place| place < values));
            }
        }
    }

    #[test]
    fn few_places_take_little_more_than_their_information() {
        // One of ten, in no order: 0.469 bits a value.
        let mut state = 3u32;
        let mut chosen = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 16 < 6554
        };
        let values = 100_000;
        let places: Vec<usize> = (0..values).filter(|_| chosen()).collect();
        let bits = 8.0 * pack_places(&places, values).1.len() as f64 / values as f64;
        assert!(bits < 0.5, "{bits} bits a value");
    }
}
