//! FedAdagrad: Adagrad on the server (Reddi et al. 2021). Both variants agree.

use super::Hyperparameters;
use super::adaptive;
use super::rule::{RoundMean, ServerRule};
use super::state::ServerState;

/// `m = D`, `v += D²`, `x += η m / (√v + τ)`.
#[derive(Debug)]
pub(super) struct FedAdagrad {
    pub constants: Hyperparameters,
}

impl ServerRule for FedAdagrad {
    fn apply(&self, state: &mut ServerState, mean: &RoundMean) {
        adaptive::apply(state, mean, &self.constants, (0.0, 1.0), |v, change, _| {
            v + change * change
        });
    }
}
