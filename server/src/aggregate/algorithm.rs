//! The algorithms by name, their variants and their hyperparameters.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How many clients' adapters become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Algorithm {
    /// Weighted mean of the clients' weights (McMahan et al. 2017).
    FedAvg,
    /// FedAvg whose clients are pulled towards the global weights (Li et al. 2020).
    FedProx,
    /// FedAvg whose clients' gradients are corrected by control variates (Karimireddy et al. 2020).
    Scaffold,
    /// Momentum on the server (Hsu et al. 2019).
    FedAvgM,
    /// Adagrad on the server (Reddi et al. 2021).
    FedAdagrad,
    /// Yogi on the server (Reddi et al. 2021).
    FedYogi,
    /// Adam on the server (Reddi et al. 2021).
    FedAdam,
    /// The baseline that never shares: one client trains alone.
    Local {
        /// The client's number.
        client: usize,
    },
}

/// A name that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown {kind} {name:?}: use {expected}")]
pub struct UnknownName {
    pub(super) kind: &'static str,
    pub(super) name: String,
    pub(super) expected: &'static str,
}

impl Algorithm {
    /// The algorithms that aggregate, all but [`Algorithm::Local`].
    pub const SHARING: [Algorithm; 7] = [
        Algorithm::FedAvg,
        Algorithm::FedProx,
        Algorithm::Scaffold,
        Algorithm::FedAvgM,
        Algorithm::FedAdagrad,
        Algorithm::FedYogi,
        Algorithm::FedAdam,
    ];

    /// The name without a client's number.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::FedAvg => "fedavg",
            Algorithm::FedProx => "fedprox",
            Algorithm::Scaffold => "scaffold",
            Algorithm::FedAvgM => "fedavgm",
            Algorithm::FedAdagrad => "fedadagrad",
            Algorithm::FedYogi => "fedyogi",
            Algorithm::FedAdam => "fedadam",
            Algorithm::Local { .. } => "local",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Algorithm::Local { client } => write!(f, "local:{client}"),
            sharing => f.pad(sharing.name()),
        }
    }
}

impl FromStr for Algorithm {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.to_ascii_lowercase();
        if let Some(found) = Algorithm::SHARING.into_iter().find(|known| known.name() == lower) {
            return Ok(found);
        }
        let client = match lower.strip_prefix("local") {
            Some("") => Some(0),
            Some(rest) => rest.strip_prefix(':').and_then(|number| number.parse().ok()),
            None => None,
        };
        client.map(|client| Algorithm::Local { client }).ok_or_else(|| UnknownName {
            kind: "algorithm",
            name: text.into(),
            expected: "fedavg, fedprox, scaffold, fedavgm, fedadagrad, fedyogi, fedadam or local:K",
        })
    }
}

impl From<Algorithm> for String {
    fn from(algorithm: Algorithm) -> Self {
        algorithm.to_string()
    }
}

impl TryFrom<String> for Algorithm {
    type Error = UnknownName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// Which of two readings of an algorithm: its published form and the code of OpenFedLLM differ for
/// FedAvgM, FedYogi and FedAdam.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// As OpenFedLLM computes.
    #[default]
    OpenFedLlm,
    /// As published.
    Paper,
}

impl Variant {
    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Variant::OpenFedLlm => "openfedllm",
            Variant::Paper => "paper",
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Variant {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "openfedllm" => Ok(Variant::OpenFedLlm),
            "paper" => Ok(Variant::Paper),
            _ => Err(UnknownName {
                kind: "variant",
                name: text.into(),
                expected: "openfedllm or paper",
            }),
        }
    }
}

/// How much each client counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weighting {
    /// In proportion to its number of samples.
    Samples,
    /// All alike.
    Uniform,
}

impl Weighting {
    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Weighting::Samples => "samples",
            Weighting::Uniform => "uniform",
        }
    }

    /// The weighting where none is chosen. By samples, except that OpenFedLLM's adaptive
    /// optimisers take the plain mean of the changes.
    pub fn default_for(algorithm: Algorithm, variant: Variant) -> Self {
        match (variant, algorithm) {
            (
                Variant::OpenFedLlm,
                Algorithm::FedAdagrad | Algorithm::FedYogi | Algorithm::FedAdam,
            ) => Weighting::Uniform,
            _ => Weighting::Samples,
        }
    }
}

impl fmt::Display for Weighting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Weighting {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "samples" => Ok(Weighting::Samples),
            "uniform" => Ok(Weighting::Uniform),
            _ => Err(UnknownName {
                kind: "weighting",
                name: text.into(),
                expected: "samples or uniform",
            }),
        }
    }
}

/// The constants of the algorithms; the defaults are OpenFedLLM's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hyperparameters {
    /// FedProx: weight of the pull towards the global weights, on the client.
    pub prox_mu: f64,
    /// Server learning rate η of FedAdagrad, FedYogi and FedAdam.
    pub server_lr: f64,
    /// Decay of the server's momentum: FedAvgM, FedYogi, FedAdam.
    pub beta1: f64,
    /// Decay of the second moment: FedYogi, FedAdam.
    pub beta2: f64,
    /// Adaptivity τ: added to the root of the second moment, which starts at τ².
    pub tau: f64,
}

impl Default for Hyperparameters {
    fn default() -> Self {
        Self { prox_mu: 0.01, server_lr: 1e-3, beta1: 0.9, beta2: 0.99, tau: 1e-3 }
    }
}

/// A hyperparameter is out of range.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("{name} is {value}, but must be {expected}")]
pub struct HyperparameterError {
    /// Its name.
    pub name: &'static str,
    /// The value given.
    pub value: f64,
    /// The range it must lie in.
    pub expected: &'static str,
}

impl Hyperparameters {
    /// Checks every value.
    ///
    /// # Errors
    /// Names the first value that is out of range.
    pub fn check(&self) -> Result<(), HyperparameterError> {
        let finite = |value: f64| value.is_finite();
        let decay = "at least 0 and less than 1";
        let positive = "a number greater than 0";
        let checks = [
            ("prox_mu", self.prox_mu, finite(self.prox_mu) && self.prox_mu >= 0.0, "at least 0"),
            ("server_lr", self.server_lr, finite(self.server_lr) && self.server_lr > 0.0, positive),
            ("beta1", self.beta1, (0.0..1.0).contains(&self.beta1), decay),
            ("beta2", self.beta2, (0.0..1.0).contains(&self.beta2), decay),
            ("tau", self.tau, finite(self.tau) && self.tau > 0.0, positive),
        ];
        match checks.into_iter().find(|&(_, _, in_range, _)| !in_range) {
            Some((name, value, _, expected)) => Err(HyperparameterError { name, value, expected }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_as_written() {
        for algorithm in Algorithm::SHARING.into_iter().chain([Algorithm::Local { client: 3 }]) {
            assert_eq!(algorithm.to_string().parse(), Ok(algorithm));
            let json = serde_json::to_string(&algorithm).unwrap();
            assert_eq!(serde_json::from_str::<Algorithm>(&json).unwrap(), algorithm);
        }
        assert_eq!("FedAvg".parse(), Ok(Algorithm::FedAvg));
        assert_eq!("local".parse(), Ok(Algorithm::Local { client: 0 }));
        for variant in [Variant::OpenFedLlm, Variant::Paper] {
            assert_eq!(variant.to_string().parse(), Ok(variant));
            assert_eq!(serde_json::to_string(&variant).unwrap(), format!("{:?}", variant.name()));
        }
        for weighting in [Weighting::Samples, Weighting::Uniform] {
            assert_eq!(weighting.to_string().parse(), Ok(weighting));
        }
        for name in ["", "fedsgd", "local:", "local:-1", "locals", "local:x"] {
            assert!(name.parse::<Algorithm>().is_err(), "{name}");
        }
    }

    #[test]
    fn values_out_of_range_are_named() {
        Hyperparameters::default().check().unwrap();
        let default = Hyperparameters::default();
        for (name, wrong) in [
            ("prox_mu", Hyperparameters { prox_mu: -1.0, ..default }),
            ("server_lr", Hyperparameters { server_lr: 0.0, ..default }),
            ("beta1", Hyperparameters { beta1: 1.0, ..default }),
            ("beta2", Hyperparameters { beta2: f64::NAN, ..default }),
            ("tau", Hyperparameters { tau: 0.0, ..default }),
            ("tau", Hyperparameters { tau: f64::INFINITY, ..default }),
        ] {
            assert_eq!(wrong.check().unwrap_err().name, name);
        }
    }
}
