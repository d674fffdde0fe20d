//! Files named by the SHA-256 of what they hold.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use fleetune_core::protocol::{Blob, BlobId};

use super::{StoreError, make_folder, sync_folder};

/// A folder of content-addressed files.
#[derive(Debug, Clone)]
pub struct Blobs {
    folder: PathBuf,
}

impl Blobs {
    pub(super) fn open(folder: &Path) -> Result<Self, StoreError> {
        make_folder(folder)?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Where a blob lies.
    pub fn path(&self, id: BlobId) -> PathBuf {
        self.folder.join(id.to_string())
    }

    /// Writes bytes; when this returns they are on the disk under their name.
    ///
    /// # Errors
    /// When the disk does not take them.
    pub fn put(&self, bytes: &[u8]) -> Result<Blob, StoreError> {
        let blob = Blob::of(bytes);
        let path = self.path(blob.id);
        let write = || -> io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
            file.write_all(bytes)?;
            file.as_file().sync_all()?;
            file.persist(&path)?;
            Ok(())
        };
        write().map_err(StoreError::io("write", &path))?;
        sync_folder(&self.folder)?;
        Ok(blob)
    }

    /// Takes in a file whose content the caller has checked to be `id`'s; when this returns it is on
    /// the disk under its name too. The file stays where it is, where the file system lets a file have
    /// two names: should the server end before somebody is told, it is found there again.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn adopt(&self, file: &Path, id: BlobId) -> Result<(), StoreError> {
        let path = self.path(id);
        let adopt = || -> io::Result<()> {
            File::open(file)?.sync_all()?;
            // Another device's update may have the same content, and its file must not be missing for
            // a moment: a second name is made beside it and moved over.
            let second = self.folder.join(format!("{id}.new"));
            let _ = fs::remove_file(&second);
            if fs::hard_link(file, &second).is_err() {
                return fs::rename(file, &path);
            }
            fs::rename(&second, &path)?;
            // Two names of one file are not moved over each other.
            let _ = fs::remove_file(&second);
            Ok(())
        };
        adopt().map_err(StoreError::io("write", &path))?;
        sync_folder(&self.folder)
    }

    /// The bytes of a blob, checked against its name.
    ///
    /// # Errors
    /// When the file is missing, unreadable or damaged.
    pub fn read(&self, id: BlobId) -> Result<Vec<u8>, StoreError> {
        let path = self.path(id);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::Blob { path });
            }
            Err(error) => return Err(StoreError::io("read", &path)(error)),
        };
        if BlobId::of(&bytes) == id { Ok(bytes) } else { Err(StoreError::Blob { path }) }
    }

    /// Whether a file of that name is there with content of that size.
    pub fn has(&self, blob: &Blob) -> bool {
        fs::metadata(self.path(blob.id)).is_ok_and(|file| file.len() == blob.size)
    }

    /// Removes a blob; that it is not there is no error.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn remove(&self, id: BlobId) -> Result<(), StoreError> {
        let path = self.path(id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::io("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Removes every file but the blobs that `keep` says.
    pub(super) fn retain(&self, keep: impl Fn(&BlobId) -> bool) -> Result<(), StoreError> {
        let entries = fs::read_dir(&self.folder).map_err(StoreError::io("read", &self.folder))?;
        for entry in entries {
            let path = entry.map_err(StoreError::io("read", &self.folder))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.parse().is_ok_and(|id| keep(&id)) {
                continue;
            }
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!("cannot remove {}: {error}", path.display());
            }
        }
        Ok(())
    }
}

/// The bytes `range` of a file.
///
/// # Errors
/// When it is shorter or cannot be read.
pub fn read_range(path: &Path, range: std::ops::Range<u64>) -> Result<Vec<u8>, StoreError> {
    use std::io::{Seek, SeekFrom};
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(range.start))?;
        let len = range.end - range.start;
        let mut bytes = Vec::new();
        file.take(len).read_to_end(&mut bytes)?;
        if bytes.len() as u64 == len { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    };
    read().map_err(StoreError::io("read", path))
}
