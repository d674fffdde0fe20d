//! Runs of a configuration in their folders, from the first line of `config.toml` to `report.html`.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use fleetune_core::files::write_atomically;

use super::config::RunConfig;
use super::environment::Environment;
use super::error::SimulateError;
use super::federation::{self, METRICS_FILE};
use super::journal;
use super::observer::Observer;
use crate::aggregate::Algorithm;
use crate::report::comparison::Comparison;
use crate::report::history::History;
use crate::report::page::{Heading, comparison_page, run_page};
use crate::report::text::plural;

const CONFIG_FILE: &str = "config.toml";
const LOCK_FILE: &str = ".lock";
const REPORT_FILE: &str = "report.html";
const COMPARISON_FILE: &str = "comparison.json";

/// What a finished simulation leaves.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// The base model and what each algorithm made of it.
    pub comparison: Comparison,
    /// The page to look at.
    pub report: PathBuf,
}

/// Whether `folder` holds a run.
pub fn holds_run(folder: &Path) -> bool {
    folder.join(CONFIG_FILE).exists()
}

/// The configuration of the run in `folder`.
///
/// # Errors
/// When it cannot be read.
pub fn config_of(folder: &Path) -> Result<RunConfig, SimulateError> {
    Ok(RunConfig::read(&folder.join(CONFIG_FILE))?.0)
}

/// The run of one algorithm in the folder of a comparison.
pub fn folder_of(comparison: &Path, algorithm: Algorithm) -> PathBuf {
    comparison.join(algorithm.to_string().replace(':', "-"))
}

/// A run's folder that no other process works on.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Held until the value is dropped; the system lets go of it when the process ends.
    _lock: File,
}

impl RunFolder {
    /// Checks that a run of `config` may begin in the folder at `path` or, with `resume`, go on
    /// there. Writes nothing.
    ///
    /// # Errors
    /// When the folder holds a run and `resume` is not set, or holds one of another configuration.
    pub fn check(path: &Path, config: &RunConfig, resume: bool) -> Result<(), SimulateError> {
        let folder = path.to_owned();
        if !holds_run(path) {
            return Ok(());
        }
        if !resume {
            return Err(SimulateError::Exists { folder });
        }
        match config_of(path)?.difference(config)? {
            Some(difference) => Err(SimulateError::OtherRun { folder, difference }),
            None => Ok(()),
        }
    }

    /// Makes the folder and writes the configuration, or opens a run to resume it.
    ///
    /// # Errors
    /// As [`RunFolder::check`], and when another process works on the run.
    pub fn open(path: &Path, config: &RunConfig, resume: bool) -> Result<Self, SimulateError> {
        Self::check(path, config, resume)?;
        fs::create_dir_all(path).map_err(SimulateError::io(path))?;
        let lock_path = path.join(LOCK_FILE);
        let lock = File::create(&lock_path).map_err(SimulateError::io(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(SimulateError::Locked { folder: path.to_owned() });
            }
            // Some network file systems have no locks; two processes on one run are rare enough.
            Err(TryLockError::Error(error)) => {
                tracing::warn!("cannot lock {}: {error}", lock_path.display());
            }
        }
        let run = Self { path: path.to_owned(), _lock: lock };
        run.write(CONFIG_FILE, &config.to_toml()?)?;
        Ok(run)
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf, SimulateError> {
        let path = self.path.join(name);
        write_atomically(&path, text.as_bytes()).map_err(SimulateError::io(&path))?;
        Ok(path)
    }

    fn history(&self) -> Result<History, SimulateError> {
        Ok(journal::read(&self.path.join(METRICS_FILE))?.into_iter().collect())
    }
}

/// Runs the configuration's algorithm, or all that it compares, in `folder`.
///
/// # Errors
/// When something cannot be read or written, a client fails, or the observer asks to stop; what is
/// done can be resumed.
pub fn run(
    environment: &Environment<'_>,
    config: &RunConfig,
    folder: &RunFolder,
    observer: &mut dyn Observer,
) -> Result<Finished, SimulateError> {
    if config.compare.is_empty() {
        federation::run(environment, config, &folder.path, None, observer)?;
        let history = folder.history()?;
        let report = write_report(environment, config, folder, &history)?;
        let name = config.algorithm.to_string();
        let comparison = Comparison::of([(name.as_str(), &history)]);
        return Ok(Finished { comparison, report });
    }
    let mut runs: Vec<(String, History)> = Vec::with_capacity(config.compare.len());
    for &algorithm in &config.compare {
        let name = algorithm.to_string();
        let path = folder_of(&folder.path, algorithm);
        let config =
            RunConfig { algorithm, compare: Vec::new(), out: Some(path.clone()), ..config.clone() };
        let folder = RunFolder::open(&path, &config, true)?;
        // All runs begin with the same adapter, which changes nothing: one test is enough.
        let baseline = runs.first().map(|(_, history)| history.found_before());
        federation::run(environment, &config, &path, baseline, observer)?;
        let history = folder.history()?;
        write_report(environment, &config, &folder, &history)?;
        runs.push((name, history));
    }
    let comparison = Comparison::of(runs.iter().map(|(name, history)| (name.as_str(), history)));
    let json = serde_json::to_string_pretty(&comparison)
        .map_err(|error| SimulateError::io(&folder.path.join(COMPARISON_FILE))(error.into()))?;
    folder.write(COMPARISON_FILE, &json)?;
    let title = format!("{} on {}", plural(runs.len() as u64, "algorithm"), config.dataset);
    let page = comparison_page(&heading(environment, config, title), &runs, &config.to_toml()?);
    let report = folder.write(REPORT_FILE, &page)?;
    Ok(Finished { comparison, report })
}

fn write_report(
    environment: &Environment<'_>,
    config: &RunConfig,
    folder: &RunFolder,
    history: &History,
) -> Result<PathBuf, SimulateError> {
    let title = format!("{} on {}", config.algorithm, config.dataset);
    let heading = heading(environment, config, title);
    folder.write(REPORT_FILE, &run_page(&heading, history, &config.to_toml()?))
}

fn heading(environment: &Environment<'_>, config: &RunConfig, title: String) -> Heading {
    let RunConfig { clients, sample, rounds, partition, lora_rank, .. } = config;
    let sample = sample.min(clients);
    let (clients, rounds) = (plural(*clients, "client"), plural(*rounds, "round"));
    Heading {
        title,
        subtitle: format!(
            "{} · {clients} ({partition}), {sample} a round, {rounds} · LoRA rank {lora_rank}",
            environment.base_name
        ),
        notice: environment.notice.map(str::to_owned),
    }
}
