//! The fixed part at the start of a message.

use std::fmt;

use sha2::{Digest, Sha256};

use super::{Codec, UpdateError};
use crate::adapter::ParameterSet;

pub(super) const MAGIC: [u8; 4] = *b"FTUP";
pub(super) const VERSION: u16 = 2;
/// Bytes before the checksum.
pub(super) const HEADER_LEN: usize = 92;
pub(super) const CHECKSUM_LEN: usize = 8;

/// Names one version of the global adapter: the SHA-256 of its layout and values.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BaseId([u8; 32]);

impl BaseId {
    /// No base: the message stands for itself.
    pub const NONE: BaseId = BaseId([0; 32]);

    /// The id of a global adapter.
    pub fn of(global: &ParameterSet) -> Self {
        let mut hasher = layout_hasher(global);
        for entry in global.iter() {
            for value in &entry.values {
                hasher.update(value.to_le_bytes());
            }
        }
        Self(hasher.finalize().into())
    }

    /// The id with these bytes, which [`BaseId::as_bytes`] gave.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes of the hash.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for BaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BaseId(")?;
        self.0[..6].iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, "…)")
    }
}

/// What a message says about itself. Only [`super::decode`] checks whether it tells the truth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The number of the codec that wrote the values ([`Codec::id`]).
    pub codec_id: u8,
    /// The version of the global adapter the difference starts from.
    pub base: BaseId,
    layout: [u8; 32],
    tensors: u32,
    values: u64,
    payload_len: u64,
}

impl Header {
    pub(super) fn new(set: &ParameterSet, base: BaseId, codec_id: u8, payload_len: usize) -> Self {
        Self {
            codec_id,
            base,
            layout: layout_hasher(set).finalize().into(),
            // More tensors than u32 counts do not fit in memory.
            tensors: u32::try_from(set.len()).unwrap_or(u32::MAX),
            values: set.num_values() as u64,
            payload_len: payload_len as u64,
        }
    }

    /// Reads the header of a message, to learn its base before decoding.
    ///
    /// # Errors
    /// When the message is too short, no update, or of another version or codec.
    pub fn read(bytes: &[u8]) -> Result<Self, UpdateError> {
        let mut reader = Reader(bytes);
        if reader.take::<4>()? != MAGIC {
            return Err(UpdateError::NotAnUpdate);
        }
        let found = u16::from_le_bytes(reader.take()?);
        if found != VERSION {
            return Err(UpdateError::Version { found, supported: VERSION });
        }
        let [codec_id, reserved] = reader.take()?;
        Codec::parts_of_id(codec_id).ok_or(UpdateError::UnknownCodec(codec_id))?;
        if reserved != 0 {
            return Err(UpdateError::Payload("a reserved byte of the header is not zero"));
        }
        Ok(Self {
            codec_id,
            base: BaseId(reader.take()?),
            layout: reader.take()?,
            tensors: u32::from_le_bytes(reader.take()?),
            values: u64::from_le_bytes(reader.take()?),
            payload_len: u64::from_le_bytes(reader.take()?),
        })
    }

    pub(super) fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let version = VERSION.to_le_bytes();
        let kind = [self.codec_id, 0];
        let (tensors, values) = (self.tensors.to_le_bytes(), self.values.to_le_bytes());
        let payload_len = self.payload_len.to_le_bytes();
        let fields: [&[u8]; 8] =
            [&MAGIC, &version, &kind, &self.base.0, &self.layout, &tensors, &values, &payload_len];
        for (byte, value) in bytes.iter_mut().zip(fields.concat()) {
            *byte = value;
        }
        bytes
    }

    /// Bytes of the whole message, as it claims.
    pub fn message_len(&self) -> u64 {
        self.payload_len.saturating_add((HEADER_LEN + CHECKSUM_LEN) as u64)
    }

    pub(super) fn check_layout(&self, expected: &ParameterSet) -> Result<(), UpdateError> {
        let layout: [u8; 32] = layout_hasher(expected).finalize().into();
        if self.layout == layout
            && u64::from(self.tensors) == expected.len() as u64
            && self.values == expected.num_values() as u64
        {
            return Ok(());
        }
        Err(UpdateError::Layout {
            tensors: self.tensors,
            values: self.values,
            expected_tensors: expected.len(),
            expected_values: expected.num_values(),
        })
    }
}

/// A hash that has taken in names and shapes; lengths go first so that no two layouts read alike.
fn layout_hasher(set: &ParameterSet) -> Sha256 {
    let mut hasher = Sha256::new();
    hasher.update((set.len() as u64).to_le_bytes());
    for entry in set.iter() {
        hasher.update((entry.name.len() as u64).to_le_bytes());
        hasher.update(&entry.name);
        hasher.update((entry.shape.len() as u64).to_le_bytes());
        for &size in &entry.shape {
            hasher.update((size as u64).to_le_bytes());
        }
    }
    hasher
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], UpdateError> {
        let short =
            UpdateError::Truncated { needed: HEADER_LEN as u64, found: self.0.len() as u64 };
        let (first, rest) = self.0.split_first_chunk::<N>().ok_or(short)?;
        self.0 = rest;
        Ok(*first)
    }
}
