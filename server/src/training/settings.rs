//! Settings of training by the names that users write, on the command line as in configurations.

use std::fmt;

use clap::ValueEnum;
use fleetune_core::data::{Dataset, Template};
use fleetune_core::kernels::Precision;
use fleetune_core::train::PreferenceLoss;
use serde::{Deserialize, Serialize};

/// What is learnt from rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Supervised fine-tuning: answers to instructions.
    Sft,
    /// Value alignment: which of two answers is better.
    Dpo,
}

/// A task and a data set that do not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the data set {name} holds {holds}: use --task {task}, or choose another data set")]
pub struct TaskMismatch {
    name: String,
    holds: &'static str,
    task: &'static str,
}

impl Task {
    /// The text around a row where none is chosen: OpenFedLLM's.
    pub fn template(self) -> Template {
        match self {
            Self::Sft => Template::Alpaca,
            Self::Dpo => Template::Vicuna,
        }
    }

    /// Checks that `dataset` holds what the task learns from.
    ///
    /// # Errors
    /// When it holds preferences and the task learns answers, or the other way round.
    pub fn check(self, dataset: &Dataset) -> Result<(), TaskMismatch> {
        let (holds, task) = match (self, dataset.is_preference()) {
            (Self::Sft, true) => ("preferences", "dpo"),
            (Self::Dpo, false) => ("no preferences", "sft"),
            _ => return Ok(()),
        };
        Err(TaskMismatch { name: dataset.name().to_owned(), holds, task })
    }
}

/// How matrix products round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ComputePrecision {
    /// f32.
    #[default]
    F32,
    /// bf16 inputs, f32 sums, where the processor is faster with them.
    Bf16,
}

impl From<ComputePrecision> for Precision {
    fn from(precision: ComputePrecision) -> Self {
        match precision {
            ComputePrecision::F32 => Precision::F32,
            ComputePrecision::Bf16 => Precision::Bf16,
        }
    }
}

impl From<Precision> for ComputePrecision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Bf16 => Self::Bf16,
        }
    }
}

impl fmt::Display for ComputePrecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

/// A preference loss by name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossName {
    /// DPO.
    #[default]
    Sigmoid,
    /// IPO.
    Ipo,
    /// SLiC.
    Hinge,
    /// DPO for labels of which some are wrong.
    Robust,
    /// ORPO, without a reference.
    Orpo,
}

impl LossName {
    /// The loss; `label_smoothing` is the share of wrong labels that `robust` reckons with.
    pub fn with_smoothing(self, label_smoothing: f64) -> PreferenceLoss {
        match self {
            Self::Sigmoid => PreferenceLoss::Sigmoid,
            Self::Ipo => PreferenceLoss::Ipo,
            Self::Hinge => PreferenceLoss::Hinge,
            Self::Robust => PreferenceLoss::Robust { label_smoothing },
            Self::Orpo => PreferenceLoss::Orpo,
        }
    }
}

impl fmt::Display for LossName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sigmoid => "sigmoid",
            Self::Ipo => "ipo",
            Self::Hinge => "hinge",
            Self::Robust => "robust",
            Self::Orpo => "orpo",
        })
    }
}
