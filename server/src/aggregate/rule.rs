//! What an algorithm does with a round's mean.

use super::algorithm::{Algorithm, Hyperparameters, Variant};
use super::fed_adagrad::FedAdagrad;
use super::fed_adam::FedAdam;
use super::fed_avg::FedAvg;
use super::fed_avg_m::FedAvgM;
use super::fed_yogi::FedYogi;
use super::scaffold::Scaffold;
use super::state::ServerState;

/// What the clients of one round gave together.
#[derive(Debug)]
pub(super) struct RoundMean {
    /// Weighted mean of the clients' weights, Σ p_k w_k.
    pub weights: Vec<f64>,
    /// SCAFFOLD: the plain sum of the changes of the clients' control variates, Σ δc_k.
    pub control_deltas: Option<Vec<f64>>,
}

impl RoundMean {
    /// The averaged change `D = Σ p_k w_k - x` at value `i`.
    pub fn change(&self, global: &[f64], i: usize) -> f64 {
        self.weights[i] - global[i]
    }
}

/// The server's side of an algorithm: one round's mean in, the state moved by one round.
///
/// The round counter is not the rule's to move; a rule may read it to tell the first round.
pub(super) trait ServerRule {
    /// Moves global weights, moments and control variate.
    fn apply(&self, state: &mut ServerState, mean: &RoundMean);
}

/// The rule of an algorithm; `None` for the one that never aggregates. `population` is the number
/// of all clients.
pub(super) fn rule_for(
    algorithm: Algorithm,
    variant: Variant,
    constants: Hyperparameters,
    population: usize,
) -> Option<Box<dyn ServerRule + Send + Sync>> {
    Some(match algorithm {
        // FedProx differs from FedAvg in what the clients minimise, not in what the server does.
        Algorithm::FedAvg | Algorithm::FedProx => Box::new(FedAvg),
        Algorithm::Scaffold => Box::new(Scaffold { population }),
        Algorithm::FedAvgM => Box::new(FedAvgM { variant, beta: constants.beta1 }),
        Algorithm::FedAdagrad => Box::new(FedAdagrad { constants }),
        Algorithm::FedYogi => Box::new(FedYogi { variant, constants }),
        Algorithm::FedAdam => Box::new(FedAdam { variant, constants }),
        Algorithm::Local { .. } => return None,
    })
}
