//! Where training can go on: the trainer's state and the position in the rows.
//!
//! A checkpoint is a folder `checkpoint-NNNNNNNN` (the step) with `parameters.safetensors`,
//! `first_moment.safetensors`, `second_moment.safetensors` and `state.json`. It is written under a
//! hidden name and renamed, so that one that can be seen is whole.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use fleetune_core::adapter::{LoraConfig, ParameterSet, TensorFileError};
use fleetune_core::files::write_atomically;
use fleetune_core::train::TrainerState;
use serde::{Deserialize, Serialize};
use serde_json::Value;

const PREFIX: &str = "checkpoint-";
const STATE: &str = "state.json";
const TENSORS: [&str; 3] =
    ["parameters.safetensors", "first_moment.safetensors", "second_moment.safetensors"];

/// Why a checkpoint cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A file cannot be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The tensors are damaged.
    #[error("cannot use {}: {source}; begin again with --overwrite", path.display())]
    Tensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: TensorFileError,
    },
    /// The state is damaged.
    #[error("cannot use {}: {source}; begin again with --overwrite", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// Everything needed to go on.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// The trainer's state.
    pub trainer: TrainerState,
    /// The adapter's shape.
    pub lora: LoraConfig,
    /// Positions of the row order gone through.
    pub position: u64,
    /// What must be the same when training goes on: model, data, batch and so on.
    pub settings: Value,
}

#[derive(Serialize, Deserialize)]
struct State {
    steps: u64,
    position: u64,
    lora: LoraConfig,
    settings: Value,
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CheckpointError {
    let path = path.to_owned();
    move |source| CheckpointError::File { action, path, source }
}

impl Checkpoint {
    /// Writes the checkpoint into `folder` and removes the earlier ones.
    ///
    /// # Errors
    /// When the folder cannot be written; the earlier checkpoints stay then.
    pub fn save(&self, folder: &Path) -> Result<(), CheckpointError> {
        let name = format!("{PREFIX}{:08}", self.trainer.steps);
        let (hidden, visible) = (folder.join(format!(".{name}")), folder.join(&name));
        remove(&hidden)?;
        fs::create_dir_all(&hidden).map_err(file("make", &hidden))?;
        let sets =
            [&self.trainer.parameters, &self.trainer.first_moment, &self.trainer.second_moment];
        for (name, set) in TENSORS.into_iter().zip(sets) {
            let path = hidden.join(name);
            let tensors = |source| CheckpointError::Tensors { path: path.clone(), source };
            let bytes = set.to_safetensors().map_err(tensors)?;
            write_atomically(&path, &bytes).map_err(file("write", &path))?;
        }
        let state = State {
            steps: self.trainer.steps,
            position: self.position,
            lora: self.lora.clone(),
            settings: self.settings.clone(),
        };
        let path = hidden.join(STATE);
        let bytes = serde_json::to_vec_pretty(&state).map_err(io::Error::from);
        bytes.and_then(|b| write_atomically(&path, &b)).map_err(file("write", &path))?;
        if visible.exists() {
            // Trained as far before, from the same start: the same state under another time stamp.
            remove(&hidden)?;
        } else {
            fs::rename(&hidden, &visible).map_err(file("move into place", &visible))?;
        }
        for (step, path) in all(folder)? {
            if step != self.trainer.steps {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// The latest checkpoint in `folder`, if there is one.
    ///
    /// # Errors
    /// When it is damaged or cannot be read.
    pub fn latest(folder: &Path) -> Result<Option<Self>, CheckpointError> {
        let Some((_, path)) = all(folder)?.into_iter().max() else { return Ok(None) };
        let tensors = |name: &str| {
            let path = path.join(name);
            let bytes = fs::read(&path).map_err(file("read", &path))?;
            ParameterSet::from_safetensors(&bytes)
                .map_err(|source| CheckpointError::Tensors { path, source })
        };
        let [parameters, first_moment, second_moment] = TENSORS.map(tensors);
        let (parameters, first_moment, second_moment) =
            (parameters?, first_moment?, second_moment?);
        let state_path = path.join(STATE);
        let bytes = fs::read(&state_path).map_err(file("read", &state_path))?;
        let state: State = serde_json::from_slice(&bytes)
            .map_err(|source| CheckpointError::State { path: state_path, source })?;
        Ok(Some(Self {
            trainer: TrainerState { parameters, steps: state.steps, first_moment, second_moment },
            lora: state.lora,
            position: state.position,
            settings: state.settings,
        }))
    }

    /// Removes every checkpoint in `folder`.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn clear(folder: &Path) -> Result<(), CheckpointError> {
        all(folder)?.iter().try_for_each(|(_, path)| remove(path))
    }
}

/// The checkpoints in `folder`, by step.
fn all(folder: &Path) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(file("read", folder)(error)),
    };
    let found = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let step = entry.file_name().to_str()?.strip_prefix(PREFIX)?.parse().ok()?;
        Some((step, entry.path()))
    });
    Ok(found.collect())
}

fn remove(folder: &Path) -> Result<(), CheckpointError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file("remove", folder)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use fleetune_core::adapter::{Parameter, Target};

    use super::*;

    fn checkpoint(steps: u64) -> Checkpoint {
        let values = vec![0.1, -2.5e-7, steps as f32];
        let entry = Parameter { name: "a.lora_A.weight".into(), shape: vec![1, 3], values };
        let parameters = ParameterSet::new(vec![entry]);
        let trainer = TrainerState {
            first_moment: parameters.zeros_like(),
            second_moment: parameters.clone(),
            parameters,
            steps,
        };
        let lora = LoraConfig::new(1, 2.0, &[Target::QProj]).unwrap();
        Checkpoint { trainer, lora, position: 4 * steps, settings: serde_json::json!({"seed": 1}) }
    }

    #[test]
    fn the_latest_checkpoint_comes_back_as_it_was_and_is_the_only_one() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Checkpoint::latest(folder.path()).unwrap(), None);
        for steps in [9, 10, 10] {
            checkpoint(steps).save(folder.path()).unwrap();
        }
        assert_eq!(Checkpoint::latest(folder.path()).unwrap(), Some(checkpoint(10)));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_checkpoint_that_a_kill_cut_short_is_not_seen() {
        let folder = tempfile::tempdir().unwrap();
        checkpoint(5).save(folder.path()).unwrap();
        fs::create_dir(folder.path().join(".checkpoint-00000006")).unwrap();
        assert_eq!(Checkpoint::latest(folder.path()).unwrap(), Some(checkpoint(5)));
        checkpoint(6).save(folder.path()).unwrap();
        assert_eq!(Checkpoint::latest(folder.path()).unwrap(), Some(checkpoint(6)));
    }

    #[test]
    fn damage_is_an_error_that_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        checkpoint(5).save(folder.path()).unwrap();
        let path = folder.path().join("checkpoint-00000005");
        for name in [STATE, TENSORS[1]] {
            fs::write(path.join(name), "{").unwrap();
            let error = Checkpoint::latest(folder.path()).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
