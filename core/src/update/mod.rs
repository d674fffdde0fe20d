//! Adapters on the wire: what a client sends back and what the server hands out.
//!
//! A client sends the *difference* of its trained adapter to the global one it started from; the
//! server hands out whole adapters, or the difference to the version that a client has
//! ([`Versions`]). All are a [`ParameterSet`] in the same message: a header that says which base and
//! which layout the values belong to, then the values as a [`Codec`] writes them, compressed.
//! `docs/formats/update.md` gives it byte by byte.
//!
//! The stages, each in a file: the largest values alone (`sparse`), a format for each value (`plain`,
//! `quantize`), their order in the message (`payload`), zstd. Values pass through them a segment at a
//! time, in both directions: beside the values and the message nothing grows with the adapter. A sender that leaves values out keeps
//! them and adds them to its next difference ([`encode_with_feedback`]).
//!
//! Bytes from the network are not trusted. Decoding needs the layout that the receiver expects and
//! takes memory for that layout only, whatever the message claims; what decodes is finite.

mod codec;
mod header;
mod payload;
mod plain;
mod quantize;
mod sparse;
mod versions;

pub use codec::{Codec, CodecError, ValueFormat};
pub use header::{BaseId, Header};
pub use quantize::Rounding;
pub use versions::{Versions, receive, split_messages};

use std::io;

use sha2::{Digest, Sha256};

use crate::adapter::{LayoutMismatch, Parameter, ParameterSet};
use header::{CHECKSUM_LEN, HEADER_LEN};

/// Why a set cannot be sent or a message not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpdateError {
    /// A value to send is NaN or infinite.
    #[error(
        "the update holds NaN or an infinity in tensor {name}: training diverged, lower the learning rate"
    )]
    NotFinite {
        /// The tensor.
        name: String,
    },
    /// The message ends early.
    #[error("the message has {found} bytes, but {needed} are needed: it was cut short")]
    Truncated {
        /// Bytes needed.
        needed: u64,
        /// Bytes there are.
        found: u64,
    },
    /// The message does not start as one.
    #[error("the message is no adapter update: it does not start with FTUP")]
    NotAnUpdate,
    /// A format version of another time.
    #[error(
        "the message has format version {found}, this build reads version {supported}: update the older side"
    )]
    Version {
        /// The message's version.
        found: u16,
        /// The version read here.
        supported: u16,
    },
    /// A codec that this build does not have.
    #[error(
        "the message uses codec {0}, which this build does not know: update it, or let the sender use f16"
    )]
    UnknownCodec(u8),
    /// The bytes changed on their way.
    #[error("the message's checksum is wrong: it was damaged on its way, send it again")]
    Checksum,
    /// The message speaks of other tensors.
    #[error(
        "the message holds another adapter's tensors ({tensors} with {values} values; {expected_tensors} with {expected_values} are expected): check rank and targets"
    )]
    Layout {
        /// Tensors in the message.
        tensors: u32,
        /// Values in the message.
        values: u64,
        /// Tensors expected.
        expected_tensors: usize,
        /// Values expected.
        expected_values: usize,
    },
    /// The difference was taken from another version of the global adapter.
    #[error(
        "the update starts from another version of the global adapter: fetch the current one and train again"
    )]
    OtherBase,
    /// A download leads on from a version that this device does not hold.
    #[error(
        "the download is a difference to a version of the adapter that this device does not hold: ask for it in full"
    )]
    NotHeld,
    /// The values cannot be unpacked.
    #[error("the message's values are damaged: {0}")]
    Payload(&'static str),
    /// Two sets that belong together differ in layout.
    #[error(transparent)]
    Layouts(#[from] LayoutMismatch),
    /// The values cannot be packed.
    #[error("cannot compress the update: {0}")]
    Compress(std::io::Error),
}

/// How hard zstd tries: higher levels are slower, and find nothing more in what is nearly random.
const COMPRESSION_LEVEL: i32 = 1;
/// log2 of the bytes that zstd looks back, and that a reader keeps for it, whatever a message asks.
const WINDOW_LOG: u32 = 19;

/// A message with the values of `set`, tied to no base: a whole adapter, or a difference whose base
/// both sides know. Values are rounded to the nearest that the codec has.
///
/// # Errors
/// When a value is not finite.
pub fn encode(set: &ParameterSet, codec: Codec) -> Result<Vec<u8>, UpdateError> {
    encode_for_base(set, BaseId::NONE, codec, Rounding::Nearest)
}

/// A message with a difference to the global adapter that `base` names.
///
/// # Errors
/// When a value is not finite.
pub fn encode_for_base(
    difference: &ParameterSet,
    base: BaseId,
    codec: Codec,
    rounding: Rounding,
) -> Result<Vec<u8>, UpdateError> {
    encode_keeping(difference, base, codec, rounding, None)
}

/// As [`encode_for_base`], rounding to the nearest, with error feedback (Stich et al. 2018): what
/// earlier messages left out, `residual`, is added to the difference first, and becomes what this
/// message leaves out. Over time nothing is lost.
///
/// # Errors
/// When a value is not finite or the layouts differ; `residual` is then as it was.
pub fn encode_with_feedback(
    difference: &ParameterSet,
    residual: &mut ParameterSet,
    base: BaseId,
    codec: Codec,
) -> Result<Vec<u8>, UpdateError> {
    let mut owed = difference.clone();
    owed.add(residual)?;
    let mut left_out = owed.clone();
    let message = encode_keeping(&owed, base, codec, Rounding::Nearest, Some(&mut left_out))?;
    *residual = left_out;
    Ok(message)
}

/// A message; what its reader gets is taken off `left_out`.
fn encode_keeping(
    difference: &ParameterSet,
    base: BaseId,
    codec: Codec,
    rounding: Rounding,
    left_out: Option<&mut ParameterSet>,
) -> Result<Vec<u8>, UpdateError> {
    let finite = |entry: &&Parameter| plain::all_finite(&entry.values);
    if let Some(entry) = difference.iter().find(|entry| !finite(entry)) {
        return Err(UpdateError::NotFinite { name: entry.name.clone() });
    }
    let payload = compress(difference, codec, rounding, left_out).map_err(UpdateError::Compress)?;
    let header = Header::new(difference, base, codec.id(), payload.len());
    let mut message = Vec::with_capacity(HEADER_LEN + CHECKSUM_LEN + payload.len());
    message.extend(header.to_bytes());
    message.extend(checksum(&message, &payload));
    message.extend(payload);
    Ok(message)
}

/// Reads a message whose values have the layout of `layout` (its values do not matter).
///
/// # Errors
/// When the message is damaged, of another version, codec or layout, or holds values that are not
/// finite.
pub fn decode(bytes: &[u8], layout: &ParameterSet) -> Result<ParameterSet, UpdateError> {
    decode_checked(bytes, layout, |_| true)
}

/// As [`decode`], and refuses a difference to any other base than `base`.
///
/// # Errors
/// As [`decode`], and [`UpdateError::OtherBase`].
pub fn decode_for_base(
    bytes: &[u8],
    layout: &ParameterSet,
    base: BaseId,
) -> Result<ParameterSet, UpdateError> {
    decode_checked(bytes, layout, |found| found == base)
}

fn decode_checked(
    bytes: &[u8],
    layout: &ParameterSet,
    accepts: impl Fn(BaseId) -> bool,
) -> Result<ParameterSet, UpdateError> {
    let header = Header::read(bytes)?;
    let (head, rest) = bytes.split_at(HEADER_LEN);
    let (needed, found) = (header.message_len(), bytes.len() as u64);
    let truncated = UpdateError::Truncated { needed, found };
    let Some((sum, payload)) = rest.split_first_chunk::<CHECKSUM_LEN>() else {
        return Err(truncated);
    };
    if needed > found {
        return Err(truncated);
    }
    if needed < found {
        return Err(UpdateError::Payload("bytes follow its end"));
    }
    if *sum != checksum(head, payload) {
        return Err(UpdateError::Checksum);
    }
    header.check_layout(layout)?;
    if !accepts(header.base) {
        return Err(UpdateError::OtherBase);
    }
    let mut set = layout.zeros_like();
    decompress(header.codec_id, payload, &mut set)?;
    Ok(set)
}

/// The payload of a message: values become bytes, and bytes are compressed, a segment at a time.
fn compress(
    set: &ParameterSet,
    codec: Codec,
    rounding: Rounding,
    left_out: Option<&mut ParameterSet>,
) -> io::Result<Vec<u8>> {
    let mut encoder = zstd::Encoder::new(Vec::new(), COMPRESSION_LEVEL)?;
    encoder.window_log(WINDOW_LOG)?;
    payload::pack(codec, set, rounding, left_out, &mut encoder)?;
    encoder.finish()
}

/// Fills `set`, which is zero, from a payload. What it decompresses to is read up to the length that
/// the receiver's own layout gives, a segment at a time.
fn decompress(codec_id: u8, payload: &[u8], set: &mut ParameterSet) -> Result<(), UpdateError> {
    let damaged = |_| UpdateError::Payload("they are not compressed as they should be");
    let mut decoder = zstd::Decoder::with_buffer(payload).map_err(damaged)?.single_frame();
    decoder.window_log_max(WINDOW_LOG).map_err(damaged)?;
    payload::unpack(codec_id, &mut decoder, set)?;
    if decoder.finish().is_empty() { Ok(()) } else { Err(UpdateError::Payload("bytes follow it")) }
}

/// The first bytes of the SHA-256 of header and payload.
fn checksum(header: &[u8], payload: &[u8]) -> [u8; CHECKSUM_LEN] {
    let digest = Sha256::new().chain_update(header).chain_update(payload).finalize();
    let mut first = [0; CHECKSUM_LEN];
    first.copy_from_slice(&digest[..CHECKSUM_LEN]);
    first
}

#[cfg(test)]
mod tests;
