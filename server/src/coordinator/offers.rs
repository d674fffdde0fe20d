//! What devices may fetch: shared adapters, control variates, base models.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use fleetune_core::protocol::{BlobId, Manifest};

/// Where the bytes of an offered blob are.
#[derive(Debug, Clone)]
pub enum Content {
    /// In memory, shared by all who fetch them.
    Memory(Bytes),
    /// In a file.
    File(PathBuf),
}

/// A blob that devices may fetch.
#[derive(Debug, Clone)]
pub struct Offered {
    /// Its chunks.
    pub manifest: Arc<Manifest>,
    /// Its bytes.
    pub content: Content,
}

impl Offered {
    /// Bytes to be kept in memory.
    pub fn bytes(bytes: Vec<u8>) -> Self {
        let manifest = Arc::new(Manifest::of(&bytes));
        Self { manifest, content: Content::Memory(bytes.into()) }
    }

    /// A file, which is read once for its hashes.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn file(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let manifest = Arc::new(Manifest::read(&mut file)?);
        Ok(Self { manifest, content: Content::File(path.to_owned()) })
    }
}

/// All blobs on offer.
#[derive(Debug, Default)]
pub struct Offers {
    blobs: RwLock<HashMap<BlobId, Offered>>,
}

impl Offers {
    /// The blob of this name, if it is on offer.
    pub fn get(&self, id: BlobId) -> Option<Offered> {
        // The map is changed in single steps: a panic leaves it whole.
        self.blobs.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// Puts a blob on offer.
    pub fn add(&self, offered: Offered) {
        let id = offered.manifest.blob().id;
        self.blobs.write().unwrap_or_else(PoisonError::into_inner).insert(id, offered);
    }

    /// Takes a blob off.
    pub fn remove(&self, id: BlobId) {
        self.blobs.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}
