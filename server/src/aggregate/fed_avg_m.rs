//! FedAvgM: FedAvg with momentum on the server (Hsu et al. 2019).

use super::Variant;
use super::rule::{RoundMean, ServerRule};
use super::state::ServerState;

/// `x += m`. Published: `m = β m + D`. OpenFedLLM averages, `m = β m + (1 - β) D`, and starts with
/// `m = D`.
#[derive(Debug)]
pub(super) struct FedAvgM {
    pub variant: Variant,
    /// β, `beta1` of the hyperparameters.
    pub beta: f64,
}

impl ServerRule for FedAvgM {
    fn apply(&self, state: &mut ServerState, mean: &RoundMean) {
        let beta = self.beta;
        let (keep, take) = match self.variant {
            Variant::Paper => (beta, 1.0),
            Variant::OpenFedLlm if state.round == 0 => (0.0, 1.0),
            Variant::OpenFedLlm => (beta, 1.0 - beta),
        };
        let global = &mut state.global;
        for (i, m) in state.momentum.iter_mut().flatten().enumerate() {
            *m = keep * *m + take * mean.change(global, i);
            global[i] += *m;
        }
    }
}
