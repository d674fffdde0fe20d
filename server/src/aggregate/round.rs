//! One round: updates stream in, sums stay.

use std::sync::Arc;

use fleetune_core::adapter::{Layout, ParameterSet};

use super::rule::RoundMean;
use super::{AggregateError, Weighting};

/// The sums of a round in progress. Its memory is that of the sums: one f64 per value of the
/// adapter (two for SCAFFOLD), whatever the number of clients.
#[derive(Debug, Clone)]
pub struct Round {
    layout: Arc<Layout>,
    weighting: Weighting,
    /// Σ n_k w_k, or Σ w_k where clients count alike.
    weighted: Vec<f64>,
    /// SCAFFOLD: Σ δc_k.
    control_deltas: Option<Vec<f64>>,
    samples: u64,
    clients: usize,
}

impl Round {
    pub(super) fn new(layout: Arc<Layout>, weighting: Weighting, with_control: bool) -> Self {
        let values = layout.num_values();
        Self {
            weighted: vec![0.0; values],
            control_deltas: with_control.then(|| vec![0.0; values]),
            layout,
            weighting,
            samples: 0,
            clients: 0,
        }
    }

    /// Clients taken in so far.
    pub fn clients(&self) -> usize {
        self.clients
    }

    /// Samples of the clients taken in so far.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Takes in one client: its weights `w_k` (not their difference to the global ones), the
    /// number of samples it trained on, and, for SCAFFOLD alone, the change `δc_k` of its control
    /// variate.
    ///
    /// # Errors
    /// When the update does not fit the global weights, is not finite, or comes without samples.
    /// The round is then as it was before.
    pub fn accumulate(
        &mut self,
        weights: &ParameterSet,
        samples: u64,
        control_delta: Option<&ParameterSet>,
    ) -> Result<(), AggregateError> {
        if samples == 0 {
            return Err(AggregateError::NoSamples);
        }
        let total = self.samples.checked_add(samples).ok_or(AggregateError::TooManySamples)?;
        self.check(weights, "update")?;
        match (&self.control_deltas, control_delta) {
            (Some(_), Some(delta)) => self.check(delta, "control delta")?,
            (None, None) => {}
            (Some(_), None) => return Err(AggregateError::ControlMissing),
            (None, Some(_)) => return Err(AggregateError::ControlUnexpected),
        }
        let weight = match self.weighting {
            Weighting::Samples => samples as f64,
            Weighting::Uniform => 1.0,
        };
        add_scaled(&mut self.weighted, weight, weights);
        if let (Some(sum), Some(delta)) = (&mut self.control_deltas, control_delta) {
            add_scaled(sum, 1.0, delta);
        }
        self.samples = total;
        self.clients += 1;
        Ok(())
    }

    fn check(&self, set: &ParameterSet, what: &'static str) -> Result<(), AggregateError> {
        self.layout.check(set).map_err(|source| AggregateError::Layout { what, source })?;
        match set.iter().find(|entry| entry.values.iter().any(|v| !v.is_finite())) {
            Some(entry) => Err(AggregateError::NotFinite { what, name: entry.name.clone() }),
            None => Ok(()),
        }
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(super) fn into_mean(mut self) -> Result<RoundMean, AggregateError> {
        if self.clients == 0 {
            return Err(AggregateError::NoUpdates);
        }
        let total = match self.weighting {
            Weighting::Samples => self.samples as f64,
            Weighting::Uniform => self.clients as f64,
        };
        self.weighted.iter_mut().for_each(|sum| *sum /= total);
        Ok(RoundMean { weights: self.weighted, control_deltas: self.control_deltas })
    }
}

fn add_scaled(sums: &mut [f64], factor: f64, set: &ParameterSet) {
    let values = set.iter().flat_map(|entry| &entry.values);
    for (sum, &value) in sums.iter_mut().zip(values) {
        *sum += factor * f64::from(value);
    }
}
