//! `metrics.jsonl` of a training run: one object per optimiser step.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use fleetune_core::files::write_atomically;
use fleetune_core::train::PreferenceReport;
use serde::{Deserialize, Serialize};

/// One optimiser step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// The step, from 1.
    pub step: u64,
    /// The objective before the step, in nats: mean over supervised tokens, or over pairs.
    pub loss: f64,
    /// Tokens that a plain implementation would process, without padding.
    pub tokens: usize,
    /// Tokens that the loss counts.
    pub supervised_tokens: usize,
    /// The learning rate.
    pub learning_rate: f64,
    /// L2 norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Time of the step, reading and tokenising its rows included.
    pub seconds: f64,
    /// The most memory this process has held so far; `null` where the system does not tell.
    pub peak_rss_bytes: Option<u64>,
    /// How pairs were judged, in preference training.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub preference: Option<PreferenceReport>,
}

/// Why the metrics cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct MetricsError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// The open `metrics.jsonl`.
#[derive(Debug)]
pub(super) struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// Opens the file, keeping the lines of the first `steps` steps. Later lines, and a line that a
    /// kill tore, are dropped: their steps will be taken again.
    pub fn open(path: &Path, steps: u64) -> Result<Self, MetricsError> {
        let failed = |action| move |source| MetricsError { action, path: path.to_owned(), source };
        let kept = kept_lines(path, steps).map_err(failed("read"))?;
        write_atomically(path, kept.as_bytes()).map_err(failed("write"))?;
        let file = OpenOptions::new().append(true).open(path).map_err(failed("write"))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Appends one step.
    pub fn write(&mut self, record: &StepRecord) -> Result<(), MetricsError> {
        let line = serde_json::to_string(record).map_err(io::Error::from);
        let written = line.and_then(|line| self.file.write_all(format!("{line}\n").as_bytes()));
        written.map_err(|source| MetricsError { action: "write", path: self.path.clone(), source })
    }
}

fn kept_lines(path: &Path, steps: u64) -> io::Result<String> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(error),
    };
    let mut kept = String::new();
    for line in BufReader::new(file).lines() {
        let line = line?;
        let step = serde_json::from_str::<StepRecord>(&line).map(|record| record.step);
        if step.is_ok_and(|step| step <= steps) {
            kept += &line;
            kept.push('\n');
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64) -> StepRecord {
        StepRecord {
            step,
            loss: 1.5,
            tokens: 10,
            supervised_tokens: 4,
            learning_rate: 1e-4,
            grad_norm: 0.25,
            seconds: 0.5,
            peak_rss_bytes: Some(1 << 20),
            preference: None,
        }
    }

    #[test]
    fn a_line_has_the_promised_keys_and_no_others() {
        let value = serde_json::to_value(record(1)).unwrap();
        let keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
        let mut expected = [
            "step",
            "loss",
            "tokens",
            "supervised_tokens",
            "learning_rate",
            "grad_norm",
            "seconds",
            "peak_rss_bytes",
        ];
        expected.sort_unstable();
        assert_eq!(keys, expected);
    }

    #[test]
    fn steps_after_the_checkpoint_and_torn_lines_are_dropped_on_resume() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut metrics = Metrics::open(&path, 0).unwrap();
        for step in 1..=5 {
            metrics.write(&record(step)).unwrap();
        }
        metrics.file.write_all(b"{\"step\": 6, \"los").unwrap();
        let mut metrics = Metrics::open(&path, 3).unwrap();
        metrics.write(&record(4)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let steps: Vec<_> = text
            .lines()
            .map(|line| serde_json::from_str::<StepRecord>(line).unwrap().step)
            .collect();
        assert_eq!(steps, [1, 2, 3, 4]);
    }
}
