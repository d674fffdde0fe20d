//! A device's folder: everything that must outlive its process.
//!
//! | path | what |
//! | --- | --- |
//! | `lock` | held while a process serves with this identity |
//! | `device.key` | the private key, where no other key store is used |
//! | `identity.json` | name, certificates, addresses |
//! | `blobs/` | what was fetched, by hash; `.part` while it comes |
//! | `models/` | base models that were fetched, by hash |
//! | `outbox/` | the update whose fate is not known: `update.ftul`, `memory.ftdm`, `offer.json` |
//! | `memory/` | what the device keeps of each federation between rounds: SCAFFOLD's control variate, what lossy codecs left out, and where differences may come the shared adapter that it received last (`.version`) |
//!
//! `offer.json` is written last and removed last: with it, the update is there wholly; without it,
//! there is none.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::files::write_atomically;
use crate::protocol::{Blob, BlobId, CHUNK_LEN, UploadOffer};

/// Why a device's folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FolderError {
    /// The system refuses.
    #[error("cannot use {path}: {source}")]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process serves with this identity.
    #[error("another process uses {0}: stop it, or give each device a folder of its own")]
    InUse(PathBuf),
}

fn file_error(path: &Path) -> impl FnOnce(io::Error) -> FolderError {
    let path = path.to_owned();
    move |source| FolderError::File { path, source }
}

/// A device's folder, held by this process alone.
#[derive(Debug)]
pub struct DeviceFolder {
    path: PathBuf,
    /// Held as long as the folder is.
    _lock: File,
}

impl DeviceFolder {
    /// Takes the folder at `path`, made where it does not exist.
    ///
    /// # Errors
    /// When it cannot be made, or another process has it.
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        for part in ["", "blobs", "models", "outbox", "memory"] {
            let part = path.join(part);
            fs::create_dir_all(&part).map_err(file_error(&part))?;
        }
        let lock_path = path.join("lock");
        let lock = File::create(&lock_path).map_err(file_error(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(FolderError::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => Err(FolderError::File { path: lock_path, source }),
        }
    }

    /// The private key's file.
    pub fn key_path(&self) -> PathBuf {
        self.path.join("device.key")
    }

    /// The identity's file.
    pub fn identity_path(&self) -> PathBuf {
        self.path.join("identity.json")
    }

    /// Where a fetched blob lies, or will.
    pub(super) fn blob_path(&self, blob: BlobId) -> PathBuf {
        self.path.join("blobs").join(blob.to_string())
    }

    /// Where a fetched base model lies, or will.
    pub(super) fn model_path(&self, model: BlobId) -> PathBuf {
        self.path.join("models").join(model.to_string())
    }

    /// The base models that were fetched.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub(super) fn models(&self) -> Result<Vec<BlobId>, FolderError> {
        let folder = self.path.join("models");
        let entries = fs::read_dir(&folder).map_err(file_error(&folder))?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(names.filter_map(|name| name.parse().ok()).collect())
    }

    /// The bytes of a fetched blob; `None` where they are not what was fetched any more, which
    /// removes them.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn read_blob(&self, blob: &Blob) -> Result<Option<Vec<u8>>, FolderError> {
        let path = self.blob_path(blob.id);
        let bytes = fs::read(&path).map_err(file_error(&path))?;
        if BlobId::of(&bytes) == blob.id {
            return Ok(Some(bytes));
        }
        fs::remove_file(&path).map_err(file_error(&path))?;
        Ok(None)
    }

    /// Removes fetched blobs and parts of blobs that are none of `wanted`.
    ///
    /// # Errors
    /// When the folder cannot be read or a file not be removed.
    pub(super) fn keep_blobs(&self, wanted: &[BlobId]) -> Result<(), FolderError> {
        let wanted: HashSet<OsString> = wanted.iter().map(|blob| blob.to_string().into()).collect();
        let folder = self.path.join("blobs");
        for entry in fs::read_dir(&folder).map_err(file_error(&folder))? {
            let path = entry.map_err(file_error(&folder))?.path();
            if !path.file_stem().is_some_and(|name| wanted.contains(name)) {
                fs::remove_file(&path).map_err(file_error(&path))?;
            }
        }
        Ok(())
    }

    fn outbox(&self, name: &str) -> PathBuf {
        self.path.join("outbox").join(name)
    }

    /// Keeps a trained update until its fate is known. From here on a crash loses nothing of it.
    /// `memory` is what the device is to have kept once the update counts.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub(super) fn keep_update(
        &self,
        offer: &UploadOffer,
        update: &[u8],
        memory: Option<&[u8]>,
    ) -> Result<(), FolderError> {
        let offer = serde_json::to_vec(offer).map_err(io::Error::from);
        let offer = offer.map_err(file_error(&self.outbox("offer.json")))?;
        let stale = self.outbox("memory.ftdm");
        remove(&stale)?;
        let files = [("update.ftul", Some(update)), ("memory.ftdm", memory)];
        for (name, bytes) in files.into_iter().chain([("offer.json", Some(&offer[..]))]) {
            let path = self.outbox(name);
            bytes
                .map_or(Ok(()), |bytes| write_atomically(&path, bytes))
                .map_err(file_error(&path))?;
        }
        Ok(())
    }

    /// The update whose fate is not known. One that is damaged is none: it is trained again.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn pending_update(&self) -> Result<Option<UploadOffer>, FolderError> {
        let path = self.outbox("offer.json");
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(file_error(&path))?,
        };
        let Ok(offer) = serde_json::from_slice::<UploadOffer>(&text) else {
            self.drop_update()?;
            return Ok(None);
        };
        let intact = fs::read(self.outbox("update.ftul"))
            .is_ok_and(|update| BlobId::of(&update) == offer.key.blob);
        if !intact {
            self.drop_update()?;
        }
        Ok(intact.then_some(offer))
    }

    /// A chunk of the kept update.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn read_update_chunk(&self, index: u32) -> io::Result<Vec<u8>> {
        let mut file = File::open(self.outbox("update.ftul"))?;
        file.seek(SeekFrom::Start(u64::from(index) * CHUNK_LEN))?;
        let mut chunk = Vec::new();
        file.take(CHUNK_LEN).read_to_end(&mut chunk)?;
        Ok(chunk)
    }

    /// The kept update counts: its memory becomes the device's, and the update can go.
    ///
    /// # Errors
    /// When the disk fails; the same again is right then.
    pub(super) fn settle_update(&self, federation: &str) -> Result<(), FolderError> {
        let (from, to) = (self.outbox("memory.ftdm"), self.memory_path(federation));
        if from.exists() {
            fs::rename(&from, &to).map_err(file_error(&to))?;
        }
        self.drop_update()
    }

    /// Forgets the kept update.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn drop_update(&self) -> Result<(), FolderError> {
        ["memory.ftdm", "update.ftul", "offer.json"]
            .into_iter()
            .try_for_each(|name| remove(&self.outbox(name)))
    }

    /// Keeps the version of a federation's shared adapter that the device received last.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub(super) fn keep_version(&self, federation: &str, version: &[u8]) -> Result<(), FolderError> {
        let path = self.version_path(federation);
        write_atomically(&path, version).map_err(file_error(&path))
    }

    /// The version that was kept; `None` where there is none.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn version(&self, federation: &str) -> Result<Option<Vec<u8>>, FolderError> {
        read_if_there(&self.version_path(federation))
    }

    /// Forgets the version that was kept.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn forget_version(&self, federation: &str) -> Result<(), FolderError> {
        remove(&self.version_path(federation))
    }

    /// What the device kept of a federation's earlier rounds, encoded; `None` where that is nothing.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn memory(&self, federation: &str) -> Result<Option<Vec<u8>>, FolderError> {
        read_if_there(&self.memory_path(federation))
    }

    fn memory_path(&self, federation: &str) -> PathBuf {
        self.path_of(federation, "ftdm")
    }

    fn version_path(&self, federation: &str) -> PathBuf {
        self.path_of(federation, "version")
    }

    /// A federation's name may be no file name; its hash is.
    fn path_of(&self, federation: &str, kind: &str) -> PathBuf {
        self.path.join("memory").join(format!("{}.{kind}", BlobId::of(federation.as_bytes())))
    }
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, FolderError> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        bytes => bytes.map(Some).map_err(file_error(path)),
    }
}

fn remove(path: &Path) -> Result<(), FolderError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file_error(path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{AttemptToken, Manifest, UploadKey};

    fn offer(update: &[u8]) -> UploadOffer {
        let manifest = Manifest::of(update);
        UploadOffer {
            key: UploadKey {
                federation: "a/b".into(),
                round: 1,
                attempt: AttemptToken([1; 16]),
                blob: manifest.blob().id,
            },
            size: manifest.blob().size,
            chunks: manifest.chunks().to_vec(),
            codec: 1,
            rows: 3,
            report: "{}".into(),
        }
    }

    #[test]
    fn two_processes_do_not_share_an_identity() {
        let folder = tempfile::tempdir().unwrap();
        let first = DeviceFolder::open(folder.path()).unwrap();
        assert!(matches!(DeviceFolder::open(folder.path()), Err(FolderError::InUse(_))));
        drop(first);
        DeviceFolder::open(folder.path()).unwrap();
    }

    #[test]
    fn an_update_stays_until_it_is_settled_and_then_its_memory_counts() {
        let folder = tempfile::tempdir().unwrap();
        let device = DeviceFolder::open(folder.path()).unwrap();
        let update = vec![7; CHUNK_LEN as usize + 1];
        device.keep_update(&offer(&update), &update, Some(b"new")).unwrap();
        drop(device);
        let device = DeviceFolder::open(folder.path()).unwrap();
        assert_eq!(device.pending_update().unwrap(), Some(offer(&update)));
        assert_eq!(device.read_update_chunk(1).unwrap(), [7]);
        assert_eq!(device.memory("a/b").unwrap(), None);
        device.settle_update("a/b").unwrap();
        assert_eq!(device.pending_update().unwrap(), None);
        assert_eq!(device.memory("a/b").unwrap().unwrap(), b"new");
        // As after a crash between the two: the second time changes nothing.
        device.settle_update("a/b").unwrap();
        assert_eq!(device.memory("a/b").unwrap().unwrap(), b"new");
    }

    #[test]
    fn an_update_that_is_dropped_or_damaged_leaves_the_memory() {
        let folder = tempfile::tempdir().unwrap();
        let device = DeviceFolder::open(folder.path()).unwrap();
        device.keep_update(&offer(b"update"), b"update", Some(b"new")).unwrap();
        fs::write(device.outbox("update.ftul"), b"updaze").unwrap();
        assert_eq!(device.pending_update().unwrap(), None);
        device.settle_update("a/b").unwrap();
        assert_eq!(device.memory("a/b").unwrap(), None);
    }

    #[test]
    fn blobs_of_earlier_rounds_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let device = DeviceFolder::open(folder.path()).unwrap();
        let [old, new] = [b"old", b"new"].map(|bytes| Blob::of(bytes));
        fs::write(device.blob_path(old.id), b"old").unwrap();
        fs::write(device.blob_path(new.id).with_extension("part"), b"n").unwrap();
        device.keep_blobs(&[new.id]).unwrap();
        assert!(!device.blob_path(old.id).exists());
        assert!(device.blob_path(new.id).with_extension("part").exists());
        fs::write(device.blob_path(new.id), b"nex").unwrap();
        assert_eq!(device.read_blob(&new).unwrap(), None);
        assert!(!device.blob_path(new.id).exists());
    }
}
