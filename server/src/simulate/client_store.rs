//! What clients keep between rounds, on disk: SCAFFOLD's control variates, and what lossy codecs have
//! left out of uploads. Each kind has a folder of its own.
//!
//! A client's set is written anew in each round it takes part in, under the round's number, and
//! never changed: `<folder>/<client>/round-<round>.safetensors`. What a round that did not reach its
//! checkpoint has written is passed over and dropped when the run resumes, so a round can be
//! repeated. Memory holds one client's set at a time.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use fleetune_core::adapter::{ParameterSet, TensorFileError};
use fleetune_core::files::write_atomically;

/// Why what a client keeps cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientStoreError {
    /// A file or folder cannot be used.
    #[error("cannot use {path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is damaged.
    #[error("{path} is damaged: {source}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: TensorFileError,
    },
}

/// A folder of sets of parameters, of each client the newest ones.
#[derive(Debug)]
pub struct ClientStore {
    folder: PathBuf,
}

impl ClientStore {
    /// The store in `folder`, as it was after `rounds` rounds: later versions are dropped, and those
    /// that no run resumed from a checkpoint of round `oldest` or later would read.
    ///
    /// # Errors
    /// When the folder cannot be made, read or cleared.
    pub fn open(folder: &Path, oldest: u32, rounds: u32) -> Result<Self, ClientStoreError> {
        fs::create_dir_all(folder).map_err(io_error(folder))?;
        let store = Self { folder: folder.to_owned() };
        for entry in fs::read_dir(folder).map_err(io_error(folder))? {
            let path = entry.map_err(io_error(folder))?.path();
            if path.is_dir() {
                remove_versions(&path, |version| version > rounds)?;
                remove_obsolete(&path, oldest)?;
            }
        }
        Ok(store)
    }

    /// The newest set of `client`; `None` where it has none, which stands for zero.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged.
    pub fn load(&self, client: u32) -> Result<Option<ParameterSet>, ClientStoreError> {
        let folder = self.client_folder(client);
        let Some(newest) = versions(&folder)?.into_iter().max() else { return Ok(None) };
        let path = version_path(&folder, newest);
        let bytes = fs::read(&path).map_err(io_error(&path))?;
        let kept = ParameterSet::from_safetensors(&bytes);
        kept.map(Some).map_err(|source| ClientStoreError::Damaged { path, source })
    }

    /// Keeps the set that `client` has after round `round`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(
        &self,
        client: u32,
        round: u32,
        kept: &ParameterSet,
    ) -> Result<(), ClientStoreError> {
        let folder = self.client_folder(client);
        fs::create_dir_all(&folder).map_err(io_error(&folder))?;
        let path = version_path(&folder, round);
        let bytes = kept
            .to_safetensors()
            .map_err(|source| ClientStoreError::Damaged { path: path.clone(), source })?;
        write_atomically(&path, &bytes).map_err(io_error(&path))
    }

    /// Drops the versions of `client` that no run resumed from a checkpoint of round `oldest` or
    /// later would read.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn prune(&self, client: u32, oldest: u32) -> Result<(), ClientStoreError> {
        remove_obsolete(&self.client_folder(client), oldest)
    }

    fn client_folder(&self, client: u32) -> PathBuf {
        self.folder.join(client.to_string())
    }
}

/// Removes the versions before the newest one that a checkpoint of round `oldest` needs.
fn remove_obsolete(folder: &Path, oldest: u32) -> Result<(), ClientStoreError> {
    let needed = versions(folder)?.into_iter().filter(|&version| version <= oldest).max();
    remove_versions(folder, |version| needed.is_some_and(|needed| version < needed))
}

fn remove_versions(folder: &Path, unwanted: impl Fn(u32) -> bool) -> Result<(), ClientStoreError> {
    for version in versions(folder)?.into_iter().filter(|&version| unwanted(version)) {
        let path = version_path(folder, version);
        fs::remove_file(&path).map_err(io_error(&path))?;
    }
    Ok(())
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> ClientStoreError {
    let path = path.to_owned();
    |source| ClientStoreError::Io { path, source }
}

fn version_path(folder: &Path, round: u32) -> PathBuf {
    folder.join(format!("round-{round:04}.safetensors"))
}

/// The rounds of which `folder` holds a version.
fn versions(folder: &Path) -> Result<Vec<u32>, ClientStoreError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_error(folder)(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.map_err(io_error(folder))?.file_name();
        let name = name.to_string_lossy();
        let round = name.strip_prefix("round-").and_then(|rest| rest.strip_suffix(".safetensors"));
        found.extend(round.and_then(|round| round.parse::<u32>().ok()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use fleetune_core::adapter::Parameter;

    use super::*;

    fn variate(value: f32) -> ParameterSet {
        let entry = Parameter { name: "w".into(), shape: vec![2], values: vec![value, -value] };
        ParameterSet::new(vec![entry])
    }

    #[test]
    fn a_client_starts_without_a_variate_and_keeps_its_newest() {
        let folder = tempfile::tempdir().unwrap();
        let store = ClientStore::open(folder.path(), 0, 0).unwrap();
        assert_eq!(store.load(7).unwrap(), None);
        store.save(7, 1, &variate(1.0)).unwrap();
        store.save(7, 12, &variate(2.0)).unwrap();
        assert_eq!(store.load(7).unwrap(), Some(variate(2.0)));
    }

    #[test]
    fn a_resumed_run_forgets_what_later_rounds_wrote() {
        let folder = tempfile::tempdir().unwrap();
        let store = ClientStore::open(folder.path(), 0, 0).unwrap();
        store.save(7, 2, &variate(1.0)).unwrap();
        store.save(7, 3, &variate(2.0)).unwrap();
        store.save(8, 3, &variate(3.0)).unwrap();
        let resumed = ClientStore::open(folder.path(), 0, 2).unwrap();
        assert_eq!(resumed.load(7).unwrap(), Some(variate(1.0)));
        assert_eq!(resumed.load(8).unwrap(), None);
    }

    #[test]
    fn pruning_keeps_what_the_oldest_checkpoint_needs() {
        let folder = tempfile::tempdir().unwrap();
        let store = ClientStore::open(folder.path(), 0, 0).unwrap();
        for round in [1, 4, 6, 9] {
            store.save(7, round, &variate(round as f32)).unwrap();
        }
        store.prune(7, 5).unwrap();
        assert_eq!(versions(&folder.path().join("7")).unwrap().len(), 3);
        store.prune(8, 5).unwrap();
        let resumed = ClientStore::open(folder.path(), 5, 5).unwrap();
        assert_eq!(resumed.load(7).unwrap(), Some(variate(4.0)));
    }
}
