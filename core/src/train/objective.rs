//! What a federated algorithm adds to a client's own training.

use serde::{Deserialize, Serialize};

use crate::adapter::{LayoutMismatch, ParameterSet};

/// The client side of a federated algorithm.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub enum LocalObjective {
    /// Plain local training: FedAvg and the server optimisers.
    #[default]
    Plain,
    /// FedProx (Li et al. 2020): the loss gains `mu/2 · ‖w − global‖²`.
    Prox {
        /// Strength of the pull towards the global adapter.
        mu: f64,
        /// The global adapter's parameters.
        global: ParameterSet,
    },
    /// SCAFFOLD (Karimireddy et al. 2020), as OpenFedLLM applies it to an adaptive optimiser: after
    /// every step at learning rate η, `w −= η · correction`.
    Scaffold {
        /// Server control variate minus the client's own, `c − c_i`.
        correction: ParameterSet,
    },
}

impl LocalObjective {
    /// The extra loss at `parameters`, whose gradient is added to `gradient`.
    pub(super) fn add_gradient(
        &self,
        parameters: &ParameterSet,
        gradient: &mut ParameterSet,
    ) -> Result<f64, LayoutMismatch> {
        let Self::Prox { mu, global } = self else { return Ok(0.0) };
        let mut distance = parameters.clone();
        distance.zip_apply(global, |w, g| *w -= g)?;
        gradient.zip_apply(&distance, |g, d| *g += (mu * f64::from(d)) as f32)?;
        Ok(0.5 * mu * distance.l2_norm().powi(2))
    }

    /// What follows an optimiser step at `learning_rate`.
    pub(super) fn after_step(
        &self,
        parameters: &mut ParameterSet,
        learning_rate: f64,
    ) -> Result<(), LayoutMismatch> {
        let Self::Scaffold { correction } = self else { return Ok(()) };
        let step = |w: &mut f32, c: f32| *w = (f64::from(*w) - learning_rate * f64::from(c)) as f32;
        parameters.zip_apply(correction, step)
    }
}

/// A client's new SCAFFOLD control variate and its change, after `steps` steps at `learning_rate`
/// that led from `global` to `local` (option II of the paper): `c_i' = (global − local) / (steps ·
/// η) − (c − c_i)`. Yields `(c_i', c_i' − c_i)`.
///
/// # Errors
/// When the layouts differ.
pub fn update_control_variate(
    global: &ParameterSet,
    local: &ParameterSet,
    server: &ParameterSet,
    client: &ParameterSet,
    steps: usize,
    learning_rate: f64,
) -> Result<(ParameterSet, ParameterSet), LayoutMismatch> {
    for other in [local, server, client] {
        global.check_layout(other)?;
    }
    let scale = 1.0 / (steps as f64 * learning_rate);
    let (mut updated, mut change) = (global.clone(), client.clone());
    let sets = local.iter().zip(server.iter().zip(client.iter()));
    for ((updated, change), (w, (c, ci))) in updated.values_mut().zip(change.values_mut()).zip(sets)
    {
        for i in 0..updated.len() {
            let (c, ci) = (f64::from(c.values[i]), f64::from(ci.values[i]));
            let drift = (f64::from(updated[i]) - f64::from(w.values[i])) * scale;
            let new = drift - (c - ci);
            updated[i] = new as f32;
            change[i] = (new - ci) as f32;
        }
    }
    Ok((updated, change))
}
