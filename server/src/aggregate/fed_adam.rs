//! FedAdam: Adam without bias correction on the server (Reddi et al. 2021).

use super::adaptive;
use super::rule::{RoundMean, ServerRule};
use super::state::ServerState;
use super::{Hyperparameters, Variant};

/// `m = β₁ m + (1 - β₁) D`, `v = β₂ v + (1 - β₂) s`, `x += η m / (√v + τ)`, where s is D², or m² in
/// OpenFedLLM.
#[derive(Debug)]
pub(super) struct FedAdam {
    pub variant: Variant,
    pub constants: Hyperparameters,
}

impl ServerRule for FedAdam {
    fn apply(&self, state: &mut ServerState, mean: &RoundMean) {
        let Hyperparameters { beta1, beta2, .. } = self.constants;
        let factors = adaptive::first_moment(self.variant, state.round, beta1);
        adaptive::apply(state, mean, &self.constants, factors, |v, change, m| {
            beta2 * v + (1.0 - beta2) * adaptive::squared(self.variant, change, m)
        });
    }
}
