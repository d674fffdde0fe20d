//! SCAFFOLD (Karimireddy et al. 2020), with a global learning rate of 1.

use super::rule::{RoundMean, ServerRule};
use super::state::ServerState;

/// `x = Σ p_k w_k`, `c += (1/N) Σ δc_k` with N the number of all clients, also of those that did
/// not take part.
#[derive(Debug)]
pub(super) struct Scaffold {
    /// N.
    pub population: usize,
}

impl ServerRule for Scaffold {
    fn apply(&self, state: &mut ServerState, mean: &RoundMean) {
        state.global.copy_from_slice(&mean.weights);
        let population = self.population as f64;
        let (Some(control), Some(deltas)) = (&mut state.control, &mean.control_deltas) else {
            return;
        };
        for (c, delta) in control.iter_mut().zip(deltas) {
            *c += delta / population;
        }
    }
}
