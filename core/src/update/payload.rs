//! A message's values before compression: the format of each value, and for codecs that leave values
//! out the places of those that are there.
//!
//! Values are written a segment after another, so that neither side ever holds more of a payload
//! than one, however large the adapter is.

use std::io::{self, Read, Write};

use super::quantize::{self, BLOCK, Rounding};
use super::sparse::Largest;
use super::{Codec, UpdateError, ValueFormat, plain, sparse};
use crate::adapter::ParameterSet;

/// Values of a segment at most: enough for the compressor, little for a phone.
pub(super) const SEGMENT: usize = 1 << 18;

/// Fixed part of a segment with places: number of values sent (u32), coding of the places (u8),
/// bytes of the places (u32).
const SPARSE_HEADER: usize = 9;

/// Writes the values of `set`, as `codec` says, and takes what a reader will get off `left_out`.
///
/// # Errors
/// Those of `writer`; `left_out` is then as good as lost.
pub(super) fn pack(
    codec: Codec,
    set: &ParameterSet,
    rounding: Rounding,
    left_out: Option<&mut ParameterSet>,
    writer: &mut impl Write,
) -> io::Result<()> {
    let tensors: Vec<&[f32]> = set.iter().map(|entry| entry.values.as_slice()).collect();
    let mut largest = codec.share().map(|share| {
        let count = (share * set.num_values() as f64).ceil() as usize;
        Largest::of(&tensors, count.min(set.num_values()))
    });
    let mut left_out = left_out.map(|set| segments_mut(set).into_iter());
    let mut bytes = Vec::new();
    let segments = segments(tensors, |part| part.len(), |part, at| part.split_at(at));
    for (index, parts) in segments.into_iter().enumerate() {
        bytes.clear();
        let places = largest.as_mut().map(|largest| largest.places(&parts));
        let lens = parts.iter().map(|part| part.len());
        let chosen: Vec<f32>;
        let (counts, sent) = match &places {
            Some(places) => {
                let counts = counts(places, lens.clone());
                chosen = choose(&parts, places, &counts);
                pack_places(places, lens.sum(), &mut bytes);
                let sent = split(&chosen, &counts);
                (counts, sent)
            }
            None => (lens.collect(), parts),
        };
        let start = bytes.len();
        pack_values(codec.values(), &sent, rounding.of_segment(index), &mut bytes);
        writer.write_all(&bytes)?;
        if let Some(mut slots) = left_out.as_mut().and_then(Iterator::next) {
            let mut read = vec![0.0; counts.iter().sum()];
            let parts = split_mut(&mut read, &counts).into_iter();
            unpack_values(codec.values(), &bytes[start..], &counts, parts)
                .map_err(io::Error::other)?;
            match &places {
                Some(places) => scatter(places, &read, &mut slots, |slot, value| *slot -= value),
                None => {
                    let slots = slots.into_iter().flatten();
                    slots.zip(read).for_each(|(slot, value)| *slot -= value);
                }
            }
        }
    }
    Ok(())
}

/// Fills `set`, which is zero, from a payload.
///
/// # Errors
/// When the payload is not of the length that it must have, its places or levels are none, or a
/// value is not finite.
pub(super) fn unpack(
    codec_id: u8,
    reader: &mut impl Read,
    set: &mut ParameterSet,
) -> Result<(), UpdateError> {
    let (sparse, format) =
        Codec::parts_of_id(codec_id).ok_or(UpdateError::UnknownCodec(codec_id))?;
    let mut bytes = Vec::new();
    for mut parts in segments_mut(set) {
        if sparse {
            unpack_sparse(format, reader, &mut parts, &mut bytes)?;
        } else {
            let lens: Vec<usize> = parts.iter().map(|part| part.len()).collect();
            read(reader, packed_len(format, lens.iter().copied()), &mut bytes)?;
            unpack_values(format, &bytes, &lens, parts.into_iter())?;
        }
    }
    if reader.read(&mut [0]).map_err(|_| ends_early())? != 0 {
        return Err(UpdateError::Payload("they are more than the adapter has"));
    }
    let finite = set.iter().all(|entry| plain::all_finite(&entry.values));
    if finite { Ok(()) } else { Err(UpdateError::Payload("some are not finite")) }
}

/// Tensors cut into segments: the parts that each consists of. A tensor is cut where a block of
/// values that share a scale begins.
fn segments<T>(
    tensors: impl IntoIterator<Item = T>,
    len: fn(&T) -> usize,
    split: fn(T, usize) -> (T, T),
) -> Vec<Vec<T>> {
    let mut segments = vec![Vec::new()];
    let (mut parts, mut room) = (Vec::new(), SEGMENT);
    for mut rest in tensors {
        while len(&rest) > room {
            let (part, others) = split(rest, room - room % BLOCK);
            parts.push(part);
            segments.push(std::mem::take(&mut parts));
            (rest, room) = (others, SEGMENT);
        }
        room -= len(&rest);
        parts.push(rest);
    }
    segments.push(parts);
    segments.retain(|parts| parts.iter().any(|part| len(part) > 0));
    segments
}

fn segments_mut(set: &mut ParameterSet) -> Vec<Vec<&mut [f32]>> {
    segments(set.values_mut(), |part| part.len(), |part, at| part.split_at_mut(at))
}

/// The places of the values that are sent, of as many as the segment has.
fn pack_places(places: &[usize], values: usize, bytes: &mut Vec<u8>) {
    let (coding, packed) = sparse::pack_places(places, values);
    // A segment's numbers are far below u32's.
    bytes.extend((places.len() as u32).to_le_bytes());
    bytes.push(coding);
    bytes.extend((packed.len() as u32).to_le_bytes());
    bytes.extend(packed);
}

/// The values at these places, of which each part has as many as `counts` says.
fn choose(parts: &[&[f32]], places: &[usize], counts: &[usize]) -> Vec<f32> {
    let mut chosen = Vec::with_capacity(places.len());
    let (mut rest, mut start) = (places, 0);
    for (part, &count) in parts.iter().zip(counts) {
        let (mine, others) = rest.split_at(count);
        chosen.extend(mine.iter().map(|place| part[place - start]));
        (rest, start) = (others, start + part.len());
    }
    chosen
}

/// Meets the slot at each of the ascending places with the value for it.
fn scatter(
    places: &[usize],
    values: &[f32],
    parts: &mut [&mut [f32]],
    put: impl Fn(&mut f32, f32),
) {
    let (mut rest, mut start) = (places.iter().zip(values).peekable(), 0);
    for slots in parts {
        let end = start + slots.len();
        while let Some((place, &value)) = rest.next_if(|(place, _)| **place < end) {
            put(&mut slots[place - start], value);
        }
        start = end;
    }
}

/// Reads a segment of which the largest values alone were sent.
fn unpack_sparse(
    format: ValueFormat,
    reader: &mut impl Read,
    parts: &mut [&mut [f32]],
    bytes: &mut Vec<u8>,
) -> Result<(), UpdateError> {
    let values = parts.iter().map(|part| part.len()).sum();
    read(reader, SPARSE_HEADER, bytes)?;
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, &byte| n << 8 | usize::from(byte));
    let (count, coding, places_len) = (number(&bytes[..4]), bytes[4], number(&bytes[5..]));
    // Before memory is taken: the receiver's layout bounds both.
    if count > values || places_len > sparse::max_len(values) {
        return Err(UpdateError::Payload("they are more than the adapter has"));
    }
    read(reader, places_len, bytes)?;
    let places = sparse::unpack_places(coding, bytes, count, values)?;
    let counts = counts(&places, parts.iter().map(|part| part.len()));
    read(reader, packed_len(format, counts.iter().copied()), bytes)?;
    let mut sent = vec![0.0; places.len()];
    unpack_values(format, bytes, &counts, split_mut(&mut sent, &counts).into_iter())?;
    scatter(&places, &sent, parts, |slot, value| *slot = value);
    Ok(())
}

/// The next `len` bytes, in place of those in `bytes`.
fn read(reader: &mut impl Read, len: usize, bytes: &mut Vec<u8>) -> Result<(), UpdateError> {
    bytes.resize(len, 0);
    reader.read_exact(bytes).map_err(|_| ends_early())
}

fn ends_early() -> UpdateError {
    UpdateError::Payload("they do not decompress to as many as the adapter has")
}

/// How many of the ascending `places` lie in each of the parts of these lengths.
fn counts(places: &[usize], lens: impl Iterator<Item = usize>) -> Vec<usize> {
    let (mut start, mut end) = (0, 0);
    lens.map(|len| {
        end += len;
        let before = start;
        start += places[start..].partition_point(|&place| place < end);
        start - before
    })
    .collect()
}

fn split<'a>(mut values: &'a [f32], counts: &[usize]) -> Vec<&'a [f32]> {
    let mut part = |&count: &usize| {
        let (mine, others) = values.split_at(count);
        values = others;
        mine
    };
    counts.iter().map(&mut part).collect()
}

fn split_mut<'a>(mut values: &'a mut [f32], counts: &[usize]) -> Vec<&'a mut [f32]> {
    let mut parts = Vec::with_capacity(counts.len());
    for &count in counts {
        let (mine, others) = values.split_at_mut(count);
        values = others;
        parts.push(mine);
    }
    parts
}

fn packed_len(format: ValueFormat, lens: impl ExactSizeIterator<Item = usize> + Clone) -> usize {
    match format {
        ValueFormat::F32 => size_of::<f32>() * lens.sum::<usize>(),
        ValueFormat::F16 => size_of::<i16>() * (lens.len() + lens.sum::<usize>()),
        quantised => quantize::packed_len(quantised, lens).unwrap_or_default(),
    }
}

fn pack_values(format: ValueFormat, parts: &[&[f32]], rounding: Rounding, bytes: &mut Vec<u8>) {
    bytes.reserve(packed_len(format, parts.iter().map(|part| part.len())));
    match format {
        ValueFormat::F32 => plain::pack_f32(parts, bytes),
        ValueFormat::F16 => plain::pack_f16(parts, bytes),
        quantised => quantize::pack(quantised, parts, rounding, bytes),
    }
}

/// Fills parts of these lengths from bytes of the length that [`packed_len`] gives for them.
fn unpack_values<'a>(
    format: ValueFormat,
    bytes: &[u8],
    lens: &[usize],
    parts: impl Iterator<Item = &'a mut [f32]>,
) -> Result<(), UpdateError> {
    match format {
        ValueFormat::F32 => plain::unpack_f32(bytes, parts),
        ValueFormat::F16 => plain::unpack_f16(bytes, lens.len(), parts),
        quantised => quantize::unpack(quantised, bytes, parts)?,
    }
    Ok(())
}
