//! A message's values before compression: the format of each value, and for codecs that leave values
//! out the places of those that are there.

use super::quantize::{self, Rounding};
use super::{Codec, UpdateError, ValueFormat, plain, sparse};
use crate::adapter::ParameterSet;

/// Fixed part of a payload with places: number of values sent (u64), coding of the places (u8),
/// bytes of the places (u64).
const SPARSE_HEADER: usize = 17;

/// The values of `set`, as `codec` writes them.
pub(super) fn pack(codec: Codec, set: &ParameterSet, rounding: Rounding) -> Vec<u8> {
    let tensors: Vec<&[f32]> = set.iter().map(|entry| entry.values.as_slice()).collect();
    let mut bytes = Vec::new();
    let Some(share) = codec.share() else {
        pack_values(codec.values(), &tensors, rounding, &mut bytes);
        return bytes;
    };
    let count = (share * set.num_values() as f64).ceil() as usize;
    let places = sparse::largest(&tensors, count.min(set.num_values()));
    let (coding, packed_places) = sparse::pack_places(&places, set.num_values());
    bytes.extend((places.len() as u64).to_le_bytes());
    bytes.push(coding);
    bytes.extend((packed_places.len() as u64).to_le_bytes());
    bytes.extend(packed_places);

    let counts = counts(&places, tensors.iter().map(|values| values.len()));
    let mut sent = Vec::with_capacity(places.len());
    let (mut rest, mut start) = (places.as_slice(), 0);
    for (values, count) in tensors.iter().zip(&counts) {
        let (mine, others) = rest.split_at(*count);
        sent.extend(mine.iter().map(|place| values[place - start]));
        (rest, start) = (others, start + values.len());
    }
    pack_values(codec.values(), &split(&sent, &counts), rounding, &mut bytes);
    bytes
}

/// Bytes of a payload with the values of `layout` at most.
pub(super) fn max_len(codec_id: u8, layout: &ParameterSet) -> usize {
    let lens = layout.iter().map(|entry| entry.values.len());
    match Codec::parts_of_id(codec_id) {
        Some((false, format)) => packed_len(format, lens),
        Some((true, format)) => {
            SPARSE_HEADER + sparse::max_len(layout.num_values()) + packed_len(format, lens)
        }
        None => 0,
    }
}

/// Fills `set`, which is zero, from a payload.
///
/// # Errors
/// When the payload is not of the length that it must have, its places or levels are none, or a
/// value is not finite.
pub(super) fn unpack(
    codec_id: u8,
    bytes: &[u8],
    set: &mut ParameterSet,
) -> Result<(), UpdateError> {
    let (sparse, format) =
        Codec::parts_of_id(codec_id).ok_or(UpdateError::UnknownCodec(codec_id))?;
    let lens: Vec<usize> = set.iter().map(|entry| entry.values.len()).collect();
    if sparse {
        let (places, values) = split_sparse(bytes, set.num_values())?;
        let counts = counts(&places, lens.iter().copied());
        let mut sent = vec![0.0; places.len()];
        unpack_values(format, values, &counts, split_mut(&mut sent, &counts).into_iter())?;
        let (mut rest, mut start) = (places.iter().zip(sent).peekable(), 0);
        for slots in set.values_mut() {
            let end = start + slots.len();
            while let Some((place, value)) = rest.next_if(|(place, _)| **place < end) {
                slots[place - start] = value;
            }
            start = end;
        }
    } else {
        unpack_values(format, bytes, &lens, set.values_mut())?;
    }
    let finite = set.iter().all(|entry| entry.values.iter().all(|v| v.is_finite()));
    if finite { Ok(()) } else { Err(UpdateError::Payload("some are not finite")) }
}

/// The places of the values that were sent, and the bytes of the values.
fn split_sparse(bytes: &[u8], values: usize) -> Result<(Vec<usize>, &[u8]), UpdateError> {
    let short = || UpdateError::Payload("the places of its values end early");
    let (header, rest) = bytes.split_at_checked(SPARSE_HEADER).ok_or_else(short)?;
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, &byte| n << 8 | u64::from(byte));
    let fits = |n: u64| usize::try_from(n).map_err(|_| short());
    let (count, coding, len) =
        (fits(number(&header[..8]))?, header[8], fits(number(&header[9..]))?);
    let (places, rest) = rest.split_at_checked(len).ok_or_else(short)?;
    Ok((sparse::unpack_places(coding, places, count, values)?, rest))
}

/// How many of the ascending `places` lie in each of the tensors of these lengths.
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

fn pack_values(format: ValueFormat, tensors: &[&[f32]], rounding: Rounding, bytes: &mut Vec<u8>) {
    bytes.reserve(packed_len(format, tensors.iter().map(|values| values.len())));
    match format {
        ValueFormat::F32 => plain::pack_f32(tensors, bytes),
        ValueFormat::F16 => plain::pack_f16(tensors, bytes),
        quantised => quantize::pack(quantised, tensors, rounding, bytes),
    }
}

fn unpack_values<'a>(
    format: ValueFormat,
    bytes: &[u8],
    lens: &[usize],
    tensors: impl Iterator<Item = &'a mut [f32]>,
) -> Result<(), UpdateError> {
    if bytes.len() != packed_len(format, lens.iter().copied()) {
        return Err(UpdateError::Payload("they are not as many as the adapter has"));
    }
    match format {
        ValueFormat::F32 => plain::unpack_f32(bytes, tensors),
        ValueFormat::F16 => plain::unpack_f16(bytes, lens.len(), tensors),
        quantised => quantize::unpack(quantised, bytes, tensors)?,
    }
    Ok(())
}
