//! The control variates that SCAFFOLD's clients keep between rounds, on disk.
//!
//! A client's variate is written anew in each round it takes part in, under the round's number, and
//! never changed: `clients/<client>/round-<round>.safetensors`. What a round that did not reach its
//! checkpoint has written is passed over and dropped when the run resumes, so a round can be
//! repeated. Memory holds one client's variate at a time.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use fleetune_core::adapter::{ParameterSet, TensorFileError};
use fleetune_core::files::write_atomically;

/// Why a control variate cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// A file or folder cannot be used.
    #[error("cannot use {path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is damaged.
    #[error("control variate {path}: {source}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: TensorFileError,
    },
}

/// The folder of the clients' control variates.
#[derive(Debug)]
pub struct ControlStore {
    folder: PathBuf,
}

impl ControlStore {
    /// The store in `folder`, as it was after `rounds` rounds: later versions are dropped, and those
    /// that no run resumed from a checkpoint of round `oldest` or later would read.
    ///
    /// # Errors
    /// When the folder cannot be made, read or cleared.
    pub fn open(folder: &Path, oldest: u32, rounds: u32) -> Result<Self, ControlError> {
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

    /// The newest variate of `client`; `None` where it has none, which stands for zero.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged.
    pub fn load(&self, client: u32) -> Result<Option<ParameterSet>, ControlError> {
        let folder = self.client_folder(client);
        let Some(newest) = versions(&folder)?.into_iter().max() else { return Ok(None) };
        let path = version_path(&folder, newest);
        let bytes = fs::read(&path).map_err(io_error(&path))?;
        let variate = ParameterSet::from_safetensors(&bytes);
        variate.map(Some).map_err(|source| ControlError::Damaged { path, source })
    }

    /// Keeps the variate that `client` has after round `round`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(
        &self,
        client: u32,
        round: u32,
        variate: &ParameterSet,
    ) -> Result<(), ControlError> {
        let folder = self.client_folder(client);
        fs::create_dir_all(&folder).map_err(io_error(&folder))?;
        let path = version_path(&folder, round);
        let bytes = variate
            .to_safetensors()
            .map_err(|source| ControlError::Damaged { path: path.clone(), source })?;
        write_atomically(&path, &bytes).map_err(io_error(&path))
    }

    /// Drops the versions of `client` that no run resumed from a checkpoint of round `oldest` or
    /// later would read.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn prune(&self, client: u32, oldest: u32) -> Result<(), ControlError> {
        remove_obsolete(&self.client_folder(client), oldest)
    }

    fn client_folder(&self, client: u32) -> PathBuf {
        self.folder.join(client.to_string())
    }
}

/// Removes the versions before the newest one that a checkpoint of round `oldest` needs.
fn remove_obsolete(folder: &Path, oldest: u32) -> Result<(), ControlError> {
    let needed = versions(folder)?.into_iter().filter(|&version| version <= oldest).max();
    remove_versions(folder, |version| needed.is_some_and(|needed| version < needed))
}

fn remove_versions(folder: &Path, unwanted: impl Fn(u32) -> bool) -> Result<(), ControlError> {
    for version in versions(folder)?.into_iter().filter(|&version| unwanted(version)) {
        let path = version_path(folder, version);
        fs::remove_file(&path).map_err(io_error(&path))?;
    }
    Ok(())
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> ControlError {
    let path = path.to_owned();
    |source| ControlError::Io { path, source }
}

fn version_path(folder: &Path, round: u32) -> PathBuf {
    folder.join(format!("round-{round:04}.safetensors"))
}

/// The rounds of which `folder` holds a version.
fn versions(folder: &Path) -> Result<Vec<u32>, ControlError> {
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
        let store = ControlStore::open(folder.path(), 0, 0).unwrap();
        assert_eq!(store.load(7).unwrap(), None);
        store.save(7, 1, &variate(1.0)).unwrap();
        store.save(7, 12, &variate(2.0)).unwrap();
        assert_eq!(store.load(7).unwrap(), Some(variate(2.0)));
    }

    #[test]
    fn a_resumed_run_forgets_what_later_rounds_wrote() {
        let folder = tempfile::tempdir().unwrap();
        let store = ControlStore::open(folder.path(), 0, 0).unwrap();
        store.save(7, 2, &variate(1.0)).unwrap();
        store.save(7, 3, &variate(2.0)).unwrap();
        store.save(8, 3, &variate(3.0)).unwrap();
        let resumed = ControlStore::open(folder.path(), 0, 2).unwrap();
        assert_eq!(resumed.load(7).unwrap(), Some(variate(1.0)));
        assert_eq!(resumed.load(8).unwrap(), None);
    }

    #[test]
    fn pruning_keeps_what_the_oldest_checkpoint_needs() {
        let folder = tempfile::tempdir().unwrap();
        let store = ControlStore::open(folder.path(), 0, 0).unwrap();
        for round in [1, 4, 6, 9] {
            store.save(7, round, &variate(round as f32)).unwrap();
        }
        store.prune(7, 5).unwrap();
        assert_eq!(versions(&folder.path().join("7")).unwrap().len(), 3);
        store.prune(8, 5).unwrap();
        let resumed = ControlStore::open(folder.path(), 5, 5).unwrap();
        assert_eq!(resumed.load(7).unwrap(), Some(variate(4.0)));
    }
}
