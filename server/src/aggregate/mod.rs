//! Aggregation: many clients' adapters become one.
//!
//! Pure computation: a state and updates in, the next state out, no I/O, no clock, no chance. An
//! [`Aggregator`] is an algorithm with its settings; it makes the first [`ServerState`], opens a
//! [`Round`] that takes updates in one at a time, and closes it into the next state. Sums, moments
//! and the global weights are f64 throughout; the clients see f32.
//!
//! Notation in this module: x global weights, w_k weights of client k, n_k its samples, p_k = n_k /
//! Σ n (or 1 / clients), D = Σ p_k w_k - x the averaged change, m and v first and second moment.

mod adaptive;
mod algorithm;
pub mod combine;
mod fed_adagrad;
mod fed_adam;
mod fed_avg;
mod fed_avg_m;
mod fed_yogi;
mod robust;
mod round;
mod rule;
mod scaffold;
mod state;
mod state_file;
#[cfg(test)]
mod tests;

use fleetune_core::adapter::{LayoutMismatch, ParameterSet};
use serde::{Deserialize, Serialize};

pub use algorithm::{
    Algorithm, HyperparameterError, Hyperparameters, UnknownName, Variant, Weighting,
};
pub use combine::{Combination, Combine, ProductReport};
pub use robust::Robust;
pub use round::Round;
pub use state::ServerState;
pub use state_file::StateFileError;

use combine::next_product;
use round::ClosedRound;
use rule::{ServerRule, rule_for};
use state::flatten;

/// An algorithm and its settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AggregatorConfig {
    /// The algorithm.
    pub algorithm: Algorithm,
    /// Whose reading of it.
    #[serde(default)]
    pub variant: Variant,
    /// How much each client counts; unset, as [`Weighting::default_for`] says.
    #[serde(default)]
    pub weighting: Option<Weighting>,
    /// The constants.
    #[serde(default)]
    pub hyperparameters: Hyperparameters,
    /// Number of all clients, also of those that do not take part in a round; SCAFFOLD needs it.
    #[serde(default)]
    pub population: Option<usize>,
    /// How updates become one before the algorithm moves the global adapter.
    #[serde(default)]
    pub combination: Combination,
}

impl AggregatorConfig {
    /// An algorithm with everything else at its default.
    pub fn new(algorithm: Algorithm) -> Self {
        Self {
            algorithm,
            variant: Variant::default(),
            weighting: None,
            hyperparameters: Hyperparameters::default(),
            population: None,
            combination: Combination::default(),
        }
    }
}

/// Why updates cannot be aggregated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AggregateError {
    /// The algorithm shares nothing.
    #[error(
        "the algorithm local never aggregates: choose one of fedavg fedprox scaffold fedavgm fedadagrad fedyogi fedadam"
    )]
    NeverAggregates,
    /// A constant is out of range.
    #[error(transparent)]
    Hyperparameter(#[from] HyperparameterError),
    /// SCAFFOLD without the number of all clients.
    #[error(
        "scaffold needs the number of all clients, at least 1, also of those that sat the round out"
    )]
    NoPopulation,
    /// More clients in a round than there are.
    #[error("the round has {clients} clients, but the population is said to be {population}")]
    PopulationExceeded {
        /// Clients in the round.
        clients: usize,
        /// Clients there are.
        population: usize,
    },
    /// A way of combining that makes no sense with the algorithm.
    #[error("{what} does not go with {algorithm}: {reason}; use fedavg or fedprox")]
    Conflict {
        /// The combination or robust rule.
        what: String,
        /// The algorithm.
        algorithm: Algorithm,
        /// Why not.
        reason: &'static str,
        /// Whether it is the robust rule.
        robust: bool,
    },
    /// Stacking where the global adapter has to keep its rank.
    #[error(
        "stack adds up the ranks of all clients, so that the shared adapter grows in every round: use it in a single aggregation, and product between rounds"
    )]
    StackGrows,
    /// A tensor that is no half of an adapted module.
    #[error(
        "tensor {name} is no lora_A or lora_B with a partner of the same rank as all others: products and robust rules need such pairs"
    )]
    NotFactors {
        /// The tensor.
        name: String,
    },
    /// The norm that changes are clipped to makes no sense.
    #[error("clip_norm {0} is out of range: use a positive number")]
    ClipNorm(f64),
    /// The share that is trimmed makes no sense.
    #[error("the trimmed share {0} is out of range: use a number above 0 and below 0.5")]
    TrimmedShare(f64),
    /// A robust rule with fewer clients than it needs.
    #[error("{rule} needs {needed} clients in a round, and there are {clients}: sample more")]
    TooFewForRobust {
        /// The rule.
        rule: String,
        /// Clients there are.
        clients: usize,
        /// Clients needed.
        needed: usize,
    },
    /// A matrix decomposition failed.
    #[error(
        "the products of the updates cannot be decomposed: some values are far out of the range of the others; leave those updates out"
    )]
    NotConverged,
    /// The state is another algorithm's.
    #[error(
        "the server state belongs to {found}, but {wanted} is to be applied: give it a state of its own"
    )]
    OtherState {
        /// Algorithm and variant of the state.
        found: String,
        /// Algorithm and variant asked for.
        wanted: String,
    },
    /// Global weights without values or with values that are not finite.
    #[error("the global adapter {0}")]
    Global(&'static str),
    /// An update of another layout than the global weights.
    #[error("the {what} does not fit the global adapter: {source}")]
    Layout {
        /// `update` or `control delta`.
        what: &'static str,
        /// The first tensor that differs.
        source: LayoutMismatch,
    },
    /// An update with NaN or an infinity.
    #[error("the {what} holds NaN or an infinity in tensor {name}: leave it out of the round")]
    NotFinite {
        /// `update` or `control delta`.
        what: &'static str,
        /// The tensor.
        name: String,
    },
    /// An update that comes without samples.
    #[error("an update was trained on 0 samples: leave it out of the round")]
    NoSamples,
    /// The sample counts overflow.
    #[error("the clients' sample counts sum to more than 2^64")]
    TooManySamples,
    /// SCAFFOLD without a change of the client's control variate.
    #[error("scaffold needs the change of the control variate with every update")]
    ControlMissing,
    /// A control variate for an algorithm that has none.
    #[error("only scaffold takes changes of control variates")]
    ControlUnexpected,
    /// A round that was opened on the state of another adapter.
    #[error("the round was opened for another adapter than this state's")]
    OtherRound,
    /// A round without clients.
    #[error("the round has no updates")]
    NoUpdates,
    /// The result lies outside f32.
    #[error(
        "the aggregated weights leave the range of f32: lower the server's learning rate or check the updates"
    )]
    Overflow,
}

/// What a round did, for logs and pages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundSummary {
    /// The round's number, from 0.
    pub round: u64,
    /// Clients that took part.
    pub clients: usize,
    /// Samples they trained on.
    pub samples: u64,
    /// L2 norm of the averaged change D; where products are combined, the Frobenius norm of the
    /// change of all products.
    pub mean_change_norm: f64,
    /// L2 norm of the step the global weights took.
    pub step_norm: f64,
    /// L2 norm of the new global weights.
    pub global_norm: f64,
    /// How far the global adapter is from the exact mean of the products, where that is measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product: Option<ProductReport>,
}

/// An algorithm ready to aggregate.
pub struct Aggregator {
    config: AggregatorConfig,
    weighting: Weighting,
    rule: Box<dyn ServerRule + Send + Sync>,
}

impl std::fmt::Debug for Aggregator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Aggregator").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Aggregator {
    /// Checks the settings.
    ///
    /// # Errors
    /// When a constant is out of range, SCAFFOLD has no population, the algorithm is `local`, or the
    /// combination does not go with it.
    pub fn new(config: AggregatorConfig) -> Result<Self, AggregateError> {
        let AggregatorConfig { algorithm, variant, weighting, hyperparameters, population, .. } =
            config;
        hyperparameters.check()?;
        config.combination.check(algorithm)?;
        if config.combination.combine == Combine::Stack {
            return Err(AggregateError::StackGrows);
        }
        if algorithm == Algorithm::Scaffold && population.is_none_or(|all| all == 0) {
            return Err(AggregateError::NoPopulation);
        }
        let all_clients = population.unwrap_or(0);
        let rule = rule_for(algorithm, variant, hyperparameters, all_clients)
            .ok_or(AggregateError::NeverAggregates)?;
        let weighting = weighting.unwrap_or_else(|| Weighting::default_for(algorithm, variant));
        Ok(Self { config, weighting, rule })
    }

    /// The settings.
    pub fn config(&self) -> &AggregatorConfig {
        &self.config
    }

    /// How much each client counts.
    pub fn weighting(&self) -> Weighting {
        self.weighting
    }

    /// The state before the first round.
    ///
    /// # Errors
    /// When the global weights are empty or not finite.
    pub fn initial_state(&self, global: &ParameterSet) -> Result<ServerState, AggregateError> {
        if global.num_values() == 0 {
            return Err(AggregateError::Global("has no values"));
        }
        if global.iter().any(|entry| entry.values.iter().any(|v| !v.is_finite())) {
            return Err(AggregateError::Global("holds NaN or an infinity"));
        }
        let AggregatorConfig { algorithm, variant, hyperparameters, .. } = &self.config;
        Ok(ServerState::initial(*algorithm, *variant, hyperparameters.tau, global))
    }

    /// Opens a round on `state`.
    ///
    /// # Errors
    /// When the state is another algorithm's or variant's, or products are combined and the global
    /// adapter has other tensors than factors.
    pub fn begin(&self, state: &ServerState) -> Result<Round, AggregateError> {
        self.check_state(state)?;
        let with_control = self.config.algorithm == Algorithm::Scaffold;
        Round::new(state, self.weighting, with_control, self.config.combination)
    }

    /// Closes a round: the state after it, and what it did. `state` stays usable where the round
    /// fails.
    ///
    /// # Errors
    /// When the round has no updates, its layout is not the state's, or the result leaves the
    /// range of f32.
    pub fn finish(
        &self,
        state: &ServerState,
        round: Round,
    ) -> Result<(ServerState, RoundSummary), AggregateError> {
        self.check_state(state)?;
        if round.layout() != &*state.layout {
            return Err(AggregateError::OtherRound);
        }
        let round = round.close()?;
        let ClosedRound { mean, products, clients, samples } = round;
        if let Some(population) = self.config.population.filter(|&all| clients > all) {
            return Err(AggregateError::PopulationExceeded { clients, population });
        }
        let mut next = state.clone();
        let Combination { combine, measure, .. } = self.config.combination;
        let mut product = None;
        match (&products, combine) {
            (Some(sums), Combine::Product) => {
                let before = state.product.as_deref();
                let (x, adapter, report) = next_product(before, &state.global(), sums)?;
                next.global = flatten(&adapter);
                next.product = Some(x);
                product = Some(report);
            }
            _ => {
                self.rule.apply(&mut next, &mean);
                // What products had beyond the weights belongs to other weights now.
                next.product = None;
            }
        }
        next.round += 1;
        let fits = |v: f64| (v as f32).is_finite();
        let global_fits = next.global.iter().all(|&v| fits(v));
        if !global_fits || next.vectors().any(|(_, values)| values.iter().any(|v| !v.is_finite())) {
            return Err(AggregateError::Overflow);
        }
        if let (Some(sums), None, true) = (&products, product, measure) {
            product = Some(sums.report(&next.global()));
        }
        let summary = RoundSummary {
            round: state.round,
            clients,
            samples,
            mean_change_norm: match (combine, &product) {
                (Combine::Product, Some(report)) => report.change,
                _ => distance(&mean.weights, &state.global),
            },
            step_norm: distance(&next.global, &state.global),
            global_norm: next.global.iter().map(|v| v * v).sum::<f64>().sqrt(),
            product,
        };
        Ok((next, summary))
    }

    fn check_state(&self, state: &ServerState) -> Result<(), AggregateError> {
        let AggregatorConfig { algorithm, variant, .. } = self.config;
        if (state.algorithm, state.variant) == (algorithm, variant) {
            return Ok(());
        }
        Err(AggregateError::OtherState {
            found: format!("{} ({})", state.algorithm, state.variant),
            wanted: format!("{algorithm} ({variant})"),
        })
    }
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt()
}
