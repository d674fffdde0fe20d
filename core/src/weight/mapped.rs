//! The one place where files are mapped into memory.

use std::fs::File;
use std::path::{Path, PathBuf};

/// A read-only file in memory. The system pages it in as it is read and may page it out again.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    map: memmap2::Mmap,
}

impl MappedFile {
    /// Maps the whole file at `path`.
    ///
    /// # Errors
    /// When the file cannot be opened or mapped.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the map is read-only and private to this value. Another process that truncates a
        // model file while it is in use would end this one (SIGBUS), as with every mapped model;
        // downloads are moved into place whole, so nothing of ours does that.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Self { path: path.to_owned(), map })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.map
    }
}
