//! FedAvg (McMahan et al. 2017), which is also the server's side of FedProx (Li et al. 2020).

use super::rule::{RoundMean, ServerRule};
use super::state::ServerState;

/// `x = Σ p_k w_k`.
#[derive(Debug)]
pub(super) struct FedAvg;

impl ServerRule for FedAvg {
    fn apply(&self, state: &mut ServerState, mean: &RoundMean) {
        state.global.copy_from_slice(&mean.weights);
    }
}
