//! Content-addressed bytes, cut into chunks that are checked one by one.
//!
//! A blob is named by the SHA-256 of its bytes. It travels in chunks of [`CHUNK_LEN`] bytes (the
//! last is shorter), each with a hash of its own, so that a damaged chunk is sent again alone and a
//! transfer goes on where it stopped.

use std::fmt;
use std::io::{self, Read};
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::id::{ParseIdError, parse_hex, write_hex};

/// Bytes of a chunk.
pub const CHUNK_LEN: u64 = 256 << 10;

/// The SHA-256 of some bytes.
pub fn hash(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// The name of a blob: the SHA-256 of its bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlobId(pub [u8; 32]);

impl BlobId {
    /// The name of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(hash(bytes))
    }
}

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlobId({self})")
    }
}

impl FromStr for BlobId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        parse_hex("blob", text).map(Self)
    }
}

/// A blob to send or to fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// Its name.
    pub id: BlobId,
    /// Its bytes.
    pub size: u64,
}

impl Blob {
    /// Name and size of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self { id: BlobId::of(bytes), size: bytes.len() as u64 }
    }

    /// How many chunks it has; more than a `u32` counts are counted as `u32::MAX`, which no limit
    /// admits.
    pub fn chunks(&self) -> u32 {
        u32::try_from(self.size.div_ceil(CHUNK_LEN)).unwrap_or(u32::MAX)
    }

    /// Where the bytes of chunk `index` lie in the blob; empty beyond its end.
    pub fn chunk_range(&self, index: u32) -> Range<u64> {
        let start = (u64::from(index) * CHUNK_LEN).min(self.size);
        start..(start + CHUNK_LEN).min(self.size)
    }
}

/// Chunks do not describe the blob that they are said to describe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found} chunk hashes describe a blob of {size} bytes, which has {expected} chunks")]
pub struct ManifestError {
    size: u64,
    found: usize,
    expected: u32,
}

/// The chunks of a blob by their hashes. As many hashes as the blob has chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    blob: Blob,
    chunks: Vec<[u8; 32]>,
}

impl Manifest {
    /// A blob with the hashes of its chunks.
    ///
    /// # Errors
    /// When there are more or fewer hashes than chunks.
    pub fn new(blob: Blob, chunks: Vec<[u8; 32]>) -> Result<Self, ManifestError> {
        match u32::try_from(chunks.len()) {
            Ok(found) if found == blob.chunks() => Ok(Self { blob, chunks }),
            _ => {
                Err(ManifestError { size: blob.size, found: chunks.len(), expected: blob.chunks() })
            }
        }
    }

    /// The manifest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let chunks = bytes.chunks(CHUNK_LEN as usize).map(hash).collect();
        Self { blob: Blob::of(bytes), chunks }
    }

    /// The manifest of everything that `reader` gives.
    ///
    /// # Errors
    /// When reading fails.
    pub fn read(reader: &mut impl Read) -> io::Result<Self> {
        let (mut whole, mut size, mut chunks) = (Sha256::new(), 0, Vec::new());
        let mut chunk = Vec::with_capacity(CHUNK_LEN as usize);
        loop {
            chunk.clear();
            reader.by_ref().take(CHUNK_LEN).read_to_end(&mut chunk)?;
            if chunk.is_empty() {
                let blob = Blob { id: BlobId(whole.finalize().into()), size };
                return Ok(Self { blob, chunks });
            }
            whole.update(&chunk);
            size += chunk.len() as u64;
            chunks.push(hash(&chunk));
        }
    }

    /// The blob.
    pub fn blob(&self) -> Blob {
        self.blob
    }

    /// The hashes, chunk after chunk.
    pub fn chunks(&self) -> &[[u8; 32]] {
        &self.chunks
    }

    /// Whether `bytes` are chunk `index`.
    pub fn matches(&self, index: u32, bytes: &[u8]) -> bool {
        self.chunks.get(index as usize).is_some_and(|expected| *expected == hash(bytes))
    }
}

/// Chunks that follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkRange {
    /// The first.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// Some of a blob's chunks, as runs in ascending order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkSet {
    /// The runs.
    pub ranges: Vec<ChunkRange>,
}

impl ChunkSet {
    /// All chunks of a blob.
    pub fn all(blob: &Blob) -> Self {
        (0..blob.chunks()).collect()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ranges.iter().all(|range| range.count == 0)
    }

    /// The chunks that `blob` has of these, in order: what lies beyond its end is left out, so that
    /// a claim of four billion chunks costs nothing.
    pub fn of_blob(&self, blob: &Blob) -> impl Iterator<Item = u32> + '_ {
        let end = blob.chunks();
        let clip = move |range: &ChunkRange| {
            range.first.min(end)..range.first.saturating_add(range.count).min(end)
        };
        self.ranges.iter().flat_map(clip)
    }
}

impl FromIterator<u32> for ChunkSet {
    /// Ascending numbers.
    fn from_iter<I: IntoIterator<Item = u32>>(chunks: I) -> Self {
        let mut ranges: Vec<ChunkRange> = Vec::new();
        for chunk in chunks {
            match ranges.last_mut() {
                Some(last) if last.first.checked_add(last.count) == Some(chunk) => last.count += 1,
                _ => ranges.push(ChunkRange { first: chunk, count: 1 }),
            }
        }
        Self { ranges }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_ends_with_a_shorter_chunk() {
        let bytes = vec![7; CHUNK_LEN as usize + 3];
        let manifest = Manifest::of(&bytes);
        let blob = manifest.blob();
        assert_eq!(blob.chunks(), 2);
        assert_eq!(blob.chunk_range(1), CHUNK_LEN..CHUNK_LEN + 3);
        assert!(blob.chunk_range(2).is_empty());
        assert!(manifest.matches(1, &bytes[CHUNK_LEN as usize..]));
        assert!(!manifest.matches(1, &bytes[..3 + 1]));
        assert!(!manifest.matches(2, &[]));
        assert_eq!(Manifest::read(&mut &bytes[..]).unwrap(), manifest);
        assert_eq!(Manifest::read(&mut &[][..]).unwrap(), Manifest::of(&[]));
    }

    #[test]
    fn a_manifest_has_a_hash_for_each_chunk() {
        let blob = Blob { id: BlobId([0; 32]), size: CHUNK_LEN * 2 };
        assert!(Manifest::new(blob, vec![[0; 32]; 2]).is_ok());
        assert!(Manifest::new(blob, vec![[0; 32]; 3]).is_err());
        let huge = Blob { size: u64::MAX, ..blob };
        assert!(Manifest::new(huge, vec![[0; 32]; 2]).is_err());
    }

    #[test]
    fn runs_of_chunks_are_joined_and_clipped_to_the_blob() {
        let set: ChunkSet = [0, 1, 4, 5, 6].into_iter().collect();
        assert_eq!(set.ranges.len(), 2);
        let blob = Blob { id: BlobId([0; 32]), size: 5 * CHUNK_LEN + 1 };
        assert_eq!(set.of_blob(&blob).collect::<Vec<_>>(), [0, 1, 4, 5]);
        let hostile = ChunkSet { ranges: vec![ChunkRange { first: 3, count: u32::MAX }] };
        assert_eq!(hostile.of_blob(&blob).collect::<Vec<_>>(), [3, 4, 5]);
        assert!(ChunkSet::default().is_empty() && !ChunkSet::all(&blob).is_empty());
    }
}
