//! FedYogi: Yogi on the server (Reddi et al. 2021).

use super::adaptive;
use super::rule::{RoundMean, ServerRule};
use super::state::ServerState;
use super::{Hyperparameters, Variant};

/// `m = β₁ m + (1 - β₁) D`, `v -= (1 - β₂) s sign(v - s)`, `x += η m / (√v + τ)`, where s is D², or
/// m² in OpenFedLLM.
#[derive(Debug)]
pub(super) struct FedYogi {
    pub variant: Variant,
    pub constants: Hyperparameters,
}

impl ServerRule for FedYogi {
    fn apply(&self, state: &mut ServerState, mean: &RoundMean) {
        let Hyperparameters { beta1, beta2, .. } = self.constants;
        let factors = adaptive::first_moment(self.variant, state.round, beta1);
        adaptive::apply(state, mean, &self.constants, factors, |v, change, m| {
            let square = adaptive::squared(self.variant, change, m);
            // `f64::signum` calls zero positive; the rule's sign of zero is zero.
            let sign = if v == square { 0.0 } else { (v - square).signum() };
            v - (1.0 - beta2) * square * sign
        });
    }
}
