//! Preference losses by the names that users write.

use std::fmt;

use clap::ValueEnum;
use fleetune_core::train::PreferenceLoss;
use serde::{Deserialize, Serialize};

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
