//! What a LoRA adapter adapts, and how strongly.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::config::ModelConfig;

/// A projection of a decoder layer that can carry an adapter. The order is that of the forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Query projection.
    QProj,
    /// Key projection.
    KProj,
    /// Value projection.
    VProj,
    /// Output projection of the attention.
    OProj,
    /// Gate of the feed-forward part.
    GateProj,
    /// Up projection of the feed-forward part.
    UpProj,
    /// Down projection of the feed-forward part.
    DownProj,
}

impl Target {
    /// All targets, in forward order.
    pub const ALL: [Target; 7] = [
        Target::QProj,
        Target::KProj,
        Target::VProj,
        Target::OProj,
        Target::GateProj,
        Target::UpProj,
        Target::DownProj,
    ];

    /// The module's name, as in `adapter_config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Target::QProj => "q_proj",
            Target::KProj => "k_proj",
            Target::VProj => "v_proj",
            Target::OProj => "o_proj",
            Target::GateProj => "gate_proj",
            Target::UpProj => "up_proj",
            Target::DownProj => "down_proj",
        }
    }

    /// The module's path inside a layer, as in Hugging Face checkpoints (`self_attn.q_proj`).
    pub fn path(self) -> &'static str {
        match self {
            Target::QProj => "self_attn.q_proj",
            Target::KProj => "self_attn.k_proj",
            Target::VProj => "self_attn.v_proj",
            Target::OProj => "self_attn.o_proj",
            Target::GateProj => "mlp.gate_proj",
            Target::UpProj => "mlp.up_proj",
            Target::DownProj => "mlp.down_proj",
        }
    }

    /// PEFT's tensor names of A and B in layer `layer`.
    pub fn tensor_names(self, layer: usize) -> (String, String) {
        let prefix = format!("base_model.model.model.layers.{layer}.{}", self.path());
        (format!("{prefix}.lora_A.weight"), format!("{prefix}.lora_B.weight"))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Target {
    type Err = LoraConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Target::ALL.into_iter().find(|target| target.name() == text);
        found.ok_or_else(|| LoraConfigError::UnknownTarget { name: text.into() })
    }
}

impl ModelConfig {
    /// `(output, input)` features of an adaptable projection.
    pub fn projection_shape(&self, target: Target) -> (usize, usize) {
        let hidden = self.hidden_size;
        match target {
            Target::QProj => (self.query_size(), hidden),
            Target::KProj | Target::VProj => (self.kv_size(), hidden),
            Target::OProj => (hidden, self.query_size()),
            Target::GateProj | Target::UpProj => (self.intermediate_size, hidden),
            Target::DownProj => (hidden, self.intermediate_size),
        }
    }
}

/// Which factors of an adapter training moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainedFactors {
    /// A and B.
    #[default]
    Both,
    /// A alone; B stays as it is.
    A,
    /// B alone; A stays as it is.
    B,
}

impl TrainedFactors {
    /// Whether the tensor with this name in PEFT's files is trained.
    pub fn include(self, name: &str) -> bool {
        match self {
            TrainedFactors::Both => true,
            TrainedFactors::A => name.ends_with(".lora_A.weight"),
            TrainedFactors::B => name.ends_with(".lora_B.weight"),
        }
    }
}

/// The shape and strength of an adapter: `y = W x + scale · B A x` (Hu et al. 2021, LoRA).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraConfig {
    /// Rank r: rows of A, columns of B.
    pub rank: usize,
    /// Strength alpha.
    pub alpha: f64,
    /// Probability of dropping an input of A during training.
    #[serde(default)]
    pub dropout: f64,
    /// Adapted projections, in forward order, each once.
    pub targets: Vec<Target>,
    /// Rank-stabilised scaling (Kalajdzievski 2023): `alpha / √r` in place of `alpha / r`.
    #[serde(default)]
    pub rslora: bool,
}

/// Why a LoRA configuration makes no sense.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LoraConfigError {
    /// A module that cannot carry an adapter.
    #[error(
        "unknown LoRA target {name:?}: use q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj or down_proj"
    )]
    UnknownTarget {
        /// The name given.
        name: String,
    },
    /// No module is adapted.
    #[error("the adapter has no targets: name at least one, for example q_proj,v_proj")]
    NoTargets,
    /// The rank is zero or absurd.
    #[error("LoRA rank {rank} is out of range: use 1 to {max}")]
    Rank {
        /// The rank given.
        rank: usize,
        /// The largest that is accepted.
        max: usize,
    },
    /// Alpha is not a positive number.
    #[error("LoRA alpha {alpha} is not a positive number")]
    Alpha {
        /// The value given.
        alpha: f64,
    },
    /// Dropout is no probability below one.
    #[error("LoRA dropout {dropout} is out of range: use 0 up to, but not including, 1")]
    Dropout {
        /// The value given.
        dropout: f64,
    },
}

impl LoraConfig {
    /// The largest rank accepted.
    pub const MAX_RANK: usize = 4096;

    /// A configuration without dropout and with the classic scaling; targets are sorted and
    /// repeated ones dropped.
    ///
    /// # Errors
    /// When a value is out of range.
    pub fn new(rank: usize, alpha: f64, targets: &[Target]) -> Result<Self, LoraConfigError> {
        let mut targets = targets.to_vec();
        targets.sort_unstable();
        targets.dedup();
        let config = Self { rank, alpha, dropout: 0.0, targets, rslora: false };
        config.check()?;
        Ok(config)
    }

    /// Checks every value.
    ///
    /// # Errors
    /// Names the first value that is out of range.
    pub fn check(&self) -> Result<(), LoraConfigError> {
        if self.targets.is_empty() {
            return Err(LoraConfigError::NoTargets);
        }
        if self.rank == 0 || self.rank > Self::MAX_RANK {
            return Err(LoraConfigError::Rank { rank: self.rank, max: Self::MAX_RANK });
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            return Err(LoraConfigError::Alpha { alpha: self.alpha });
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(LoraConfigError::Dropout { dropout: self.dropout });
        }
        Ok(())
    }

    /// The adapter of a device of rank `rank` where the shared one has this shape: the same strength
    /// before B·A, so that products of different ranks can be added.
    pub fn at_rank(&self, rank: usize) -> Self {
        let alpha = self.alpha * rank as f64 / self.rank as f64;
        Self { rank, alpha, ..self.clone() }
    }

    /// Values of such an adapter for `model`.
    pub fn num_values(&self, model: &ModelConfig) -> usize {
        let shapes = self.targets.iter().map(|&target| model.projection_shape(target));
        shapes.map(|(rows, cols)| self.rank * (rows + cols)).sum::<usize>() * model.num_layers
    }

    /// The factor before `B A x`.
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.rslora { rank.sqrt() } else { rank }
    }
}
