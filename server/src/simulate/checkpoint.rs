//! `checkpoints/round-NNNN/`: the shared adapter and the server's state after NNNN rounds.
//!
//! A checkpoint is the moment a round counts. It is written into a hidden folder, flushed to the
//! disk and renamed: a folder with a round's name is complete. What lies in it is checked by hash
//! when it is read.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use fleetune_core::adapter::{Adapter, AdapterError, CONFIG_FILE, TENSORS_FILE};
use fleetune_core::files::write_atomically;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The server's optimiser state.
const STATE_FILE: &str = "aggregator.safetensors";
/// What else a run needs to continue, and the hashes of the other files.
const PROGRESS_FILE: &str = "progress.json";
/// The versions that devices of a rank hold: this, the rank, and the ending of the format.
const VERSIONS_STEM: &str = "versions-rank-";
const VERSIONS_END: &str = ".ftup";

/// A run's state between two rounds.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// Rounds done.
    pub round: u32,
    /// Time spent, pauses left out.
    pub elapsed_seconds: f64,
    /// The shared adapter.
    pub adapter: Adapter,
    /// What the server keeps beside it.
    pub server: ServerFiles,
}

/// What the server keeps beside the shared adapter, as files; a client that trains alone has none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ServerFiles {
    /// The aggregator's state, as it writes it.
    pub state: Option<Vec<u8>>,
    /// Where downloads lose something: by rank, the versions that devices hold.
    pub versions: BTreeMap<usize, Vec<u8>>,
}

/// Why a checkpoint cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A file or folder cannot be used.
    #[error("cannot use {path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not what was written.
    #[error("{path} is damaged: delete its folder to continue from the checkpoint before it")]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The adapter cannot be read or written.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
}

#[derive(Debug, Serialize, Deserialize)]
struct Progress {
    round: u32,
    elapsed_seconds: f64,
    sha256: BTreeMap<String, String>,
}

/// The folder of a run's checkpoints.
#[derive(Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    keep: usize,
}

impl Checkpoints {
    /// The checkpoints in `folder`, which is made where needed; half-written ones are removed. Of
    /// the checkpoints, the last `keep` stay; all where `keep` is 0.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(folder: &Path, keep: usize) -> Result<Self, CheckpointError> {
        fs::create_dir_all(folder).map_err(io_error(folder))?;
        for entry in fs::read_dir(folder).map_err(io_error(folder))? {
            let path = entry.map_err(io_error(folder))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(".round-") {
                fs::remove_dir_all(&path).map_err(io_error(&path))?;
            }
        }
        Ok(Self { folder: folder.to_owned(), keep })
    }

    /// The newest checkpoint, if there is one.
    ///
    /// # Errors
    /// When it cannot be read or is damaged.
    pub fn latest(&self) -> Result<Option<Checkpoint>, CheckpointError> {
        let newest = self.rounds()?.last().copied();
        newest.map(|round| self.load(round)).transpose()
    }

    fn load(&self, round: u32) -> Result<Checkpoint, CheckpointError> {
        let folder = self.round_folder(round);
        let path = folder.join(PROGRESS_FILE);
        let bytes = fs::read(&path).map_err(io_error(&path))?;
        let damaged = || CheckpointError::Damaged { path: path.clone() };
        let progress: Progress = serde_json::from_slice(&bytes).map_err(|_| damaged())?;
        if progress.round != round {
            return Err(damaged());
        }
        for (name, hash) in &progress.sha256 {
            let path = folder.join(name);
            if file_hash(&path)? != *hash {
                return Err(CheckpointError::Damaged { path });
            }
        }
        let mut server = ServerFiles::default();
        for name in progress.sha256.keys() {
            let path = folder.join(name);
            let read = || fs::read(&path).map_err(io_error(&path));
            let rank = name.strip_prefix(VERSIONS_STEM).and_then(|n| n.strip_suffix(VERSIONS_END));
            if name == STATE_FILE {
                server.state = Some(read()?);
            } else if let Some(rank) = rank.and_then(|rank| rank.parse().ok()) {
                server.versions.insert(rank, read()?);
            }
        }
        let adapter = Adapter::load(&folder)?;
        Ok(Checkpoint { round, elapsed_seconds: progress.elapsed_seconds, adapter, server })
    }

    /// Writes a checkpoint; when this returns, the round is done for good. `base` names the model
    /// that the adapter belongs to.
    ///
    /// # Errors
    /// When it cannot be written; the checkpoints are then as they were.
    pub fn commit(&self, checkpoint: &Checkpoint, base: &str) -> Result<(), CheckpointError> {
        let place = self.round_folder(checkpoint.round);
        let hidden = self.folder.join(format!(".round-{:04}", checkpoint.round));
        checkpoint.adapter.save_for_base(&hidden, Some(base))?;
        let ServerFiles { state, versions } = &checkpoint.server;
        let versions = versions
            .iter()
            .map(|(rank, bytes)| (format!("{VERSIONS_STEM}{rank}{VERSIONS_END}"), bytes));
        let state = state.iter().map(|bytes| (STATE_FILE.to_owned(), bytes));
        let mut names = vec![CONFIG_FILE.to_owned(), TENSORS_FILE.to_owned()];
        for (name, bytes) in state.chain(versions) {
            let path = hidden.join(&name);
            write_atomically(&path, bytes).map_err(io_error(&path))?;
            names.push(name);
        }
        let mut sha256 = BTreeMap::new();
        for name in names {
            let hash = file_hash(&hidden.join(&name))?;
            sha256.insert(name, hash);
        }
        let &Checkpoint { round, elapsed_seconds, .. } = checkpoint;
        let path = hidden.join(PROGRESS_FILE);
        let progress = serde_json::to_vec(&Progress { round, elapsed_seconds, sha256 })
            .map_err(|error| io_error(&path)(error.into()))?;
        write_atomically(&path, &progress).map_err(io_error(&path))?;
        sync_folder(&hidden)?;
        fs::rename(&hidden, &place).map_err(io_error(&place))?;
        sync_folder(&self.folder)
    }

    /// Removes checkpoints that are not to be kept and returns the round of the oldest that is.
    ///
    /// # Errors
    /// When a folder cannot be removed.
    pub fn prune(&self) -> Result<u32, CheckpointError> {
        let rounds = self.rounds()?;
        let kept = if self.keep == 0 { rounds.len() } else { self.keep };
        let (old, kept) = rounds.split_at(rounds.len().saturating_sub(kept));
        for &round in old {
            // A hidden name first: a kill in between leaves no folder that looks whole.
            let place = self.round_folder(round);
            let hidden = self.folder.join(format!(".round-{round:04}"));
            fs::rename(&place, &hidden).map_err(io_error(&place))?;
            fs::remove_dir_all(&hidden).map_err(io_error(&hidden))?;
        }
        Ok(kept.first().copied().unwrap_or(0))
    }

    /// The folder of the checkpoint after `round` rounds.
    pub fn round_folder(&self, round: u32) -> PathBuf {
        self.folder.join(format!("round-{round:04}"))
    }

    /// Rounds that have a checkpoint, ascending.
    fn rounds(&self) -> Result<Vec<u32>, CheckpointError> {
        let mut rounds = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(io_error(&self.folder))? {
            let name = entry.map_err(io_error(&self.folder))?.file_name();
            let name = name.to_string_lossy();
            rounds.extend(name.strip_prefix("round-").and_then(|n| n.parse::<u32>().ok()));
        }
        rounds.sort_unstable();
        Ok(rounds)
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> CheckpointError {
    let path = path.to_owned();
    |source| CheckpointError::Io { path, source }
}

fn file_hash(path: &Path) -> Result<String, CheckpointError> {
    let bytes = fs::read(path).map_err(io_error(path))?;
    Ok(Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Makes names in a folder last. Windows has no such call and keeps them by itself.
fn sync_folder(folder: &Path) -> Result<(), CheckpointError> {
    if cfg!(unix) {
        File::open(folder).and_then(|file| file.sync_all()).map_err(io_error(folder))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use fleetune_core::adapter::{LoraConfig, Parameter, ParameterSet, Target};

    use super::*;

    fn checkpoint(round: u32) -> Checkpoint {
        let (a, b) = Target::QProj.tensor_names(0);
        let entries = [(a, vec![1, 2]), (b, vec![2, 1])].map(|(name, shape)| Parameter {
            name,
            shape,
            values: vec![round as f32 + 1.0 / 3.0, -1e-30],
        });
        let adapter = Adapter {
            config: LoraConfig::new(1, 2.0, &[Target::QProj]).unwrap(),
            parameters: ParameterSet::new(entries.to_vec()),
        };
        let elapsed_seconds = f64::from(round) * 1.25;
        let state = (round % 2 == 1).then(|| vec![round as u8; 5]);
        let versions = BTreeMap::from([(1, vec![round as u8; 3]), (16, Vec::new())]);
        Checkpoint { round, elapsed_seconds, adapter, server: ServerFiles { state, versions } }
    }

    #[test]
    fn the_newest_checkpoint_reads_back_bit_by_bit() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::open(folder.path(), 2).unwrap();
        assert_eq!(checkpoints.latest().unwrap(), None);
        for round in 0..4 {
            checkpoints.commit(&checkpoint(round), "base").unwrap();
        }
        assert_eq!(checkpoints.latest().unwrap(), Some(checkpoint(3)));
        assert_eq!(checkpoints.prune().unwrap(), 2);
        assert_eq!(checkpoints.rounds().unwrap(), [2, 3]);
    }

    #[test]
    fn a_half_written_checkpoint_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::open(folder.path(), 0).unwrap();
        checkpoints.commit(&checkpoint(1), "base").unwrap();
        checkpoints.commit(&checkpoint(2), "base").unwrap();
        fs::rename(checkpoints.round_folder(2), folder.path().join(".round-0002")).unwrap();
        let reopened = Checkpoints::open(folder.path(), 0).unwrap();
        assert_eq!(reopened.latest().unwrap(), Some(checkpoint(1)));
        reopened.commit(&checkpoint(2), "base").unwrap();
        assert_eq!(reopened.latest().unwrap(), Some(checkpoint(2)));
    }

    #[test]
    fn an_altered_file_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::open(folder.path(), 0).unwrap();
        for name in [CONFIG_FILE, TENSORS_FILE, STATE_FILE, PROGRESS_FILE] {
            let _ = fs::remove_dir_all(checkpoints.round_folder(1));
            checkpoints.commit(&checkpoint(1), "base").unwrap();
            let path = checkpoints.round_folder(1).join(name);
            let mut bytes = fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(&path, bytes).unwrap();
            let told = checkpoints.latest().unwrap_err().to_string();
            assert!(told.contains("damaged"), "{name}: {told}");
        }
    }
}
