//! One round: updates stream in, sums stay.

use fleetune_core::adapter::{Layout, LayoutMismatch, ParameterSet};

use super::combine::{self, Combination, Combine, Module, ProductSums};
use super::robust::{Change, Gram, Robust};
use super::rule::RoundMean;
use super::state::ServerState;
use super::{AggregateError, Weighting};

/// The sums of a round in progress. In a plain mean its memory is that of the sums: one f64 per
/// value of the adapter (two for SCAFFOLD), whatever the number of clients. Where products are
/// combined or measured, the factors of all clients come to that, up to a bound, and every adapter
/// that one of them started from; robust rules hold every update until the round closes.
#[derive(Debug, Clone)]
pub struct Round {
    /// The state that the round was opened on.
    state: ServerState,
    weighting: Weighting,
    /// Its global weights as clients receive them.
    global: ParameterSet,
    /// Σ n_k w_k, or Σ w_k where clients count alike.
    weighted: Vec<f64>,
    /// SCAFFOLD: Σ δc_k.
    control_deltas: Option<Vec<f64>>,
    samples: u64,
    clients: usize,
    combination: Combination,
    /// Where products are looked at.
    products: Option<Products>,
    /// What the server's robust rule waits for.
    held: Vec<Held>,
    /// Adapters of lower rank that clients started from.
    starts: Vec<ParameterSet>,
}

/// What a round knows of products.
#[derive(Debug, Clone)]
struct Products {
    modules: Vec<Module>,
    sums: ProductSums,
}

#[derive(Debug, Clone)]
struct Held {
    start: ParameterSet,
    weights: ParameterSet,
    n: f64,
    /// Share of the change that counts.
    kept: f64,
}

/// A closed round.
#[derive(Debug)]
pub(super) struct ClosedRound {
    pub mean: RoundMean,
    pub products: Option<ProductSums>,
    pub clients: usize,
    pub samples: u64,
}

impl Round {
    pub(super) fn new(
        state: &ServerState,
        weighting: Weighting,
        with_control: bool,
        combination: Combination,
    ) -> Result<Self, AggregateError> {
        let values = state.layout.num_values();
        let Combination { combine, robust, clip_norm, measure, .. } = combination;
        let needed = combine == Combine::Product || robust != Robust::None || clip_norm.is_some();
        let products = match combine::modules(&state.layout) {
            Ok(modules) if needed || measure => {
                Some(Products { sums: ProductSums::new(modules.clone()), modules })
            }
            Err(error) if needed => return Err(error),
            // What has no products has no exact mean of them to be measured against.
            _ => None,
        };
        Ok(Self {
            state: state.clone(),
            global: state.global(),
            weighting,
            weighted: vec![0.0; values],
            control_deltas: with_control.then(|| vec![0.0; values]),
            samples: 0,
            clients: 0,
            combination,
            products,
            held: Vec::new(),
            starts: Vec::new(),
        })
    }

    /// Clients taken in so far.
    pub fn clients(&self) -> usize {
        self.clients
    }

    /// Samples of the clients taken in so far.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Takes in one client that started from what the state hands out at its rank: its weights `w_k`
    /// (not their difference to the global ones), the number of samples it trained on, and, for
    /// SCAFFOLD alone, the change `δc_k` of its control variate.
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
        let at = self.rank_of(weights)?;
        let known = self.starts.iter().position(|start| start.check_layout(weights).is_ok());
        let place = match known {
            Some(place) => place,
            None => {
                self.starts.push(match at {
                    Some(rank) => self.state.handed_out(rank)?,
                    None => self.global.clone(),
                });
                self.starts.len() - 1
            }
        };
        // Out and in again: a clone of an adapter for every client would be waste.
        let start = self.starts.swap_remove(place);
        let result = self.accumulate_from(&start, weights, samples, control_delta);
        self.starts.push(start);
        result
    }

    /// As [`Round::accumulate`], for a client that started from `start`: an earlier version, or what
    /// a lossy codec made of this one. Its change counts, added to what the server has now.
    ///
    /// # Errors
    /// As [`Round::accumulate`], and when `start` has another layout than `weights`.
    pub fn accumulate_from(
        &mut self,
        start: &ParameterSet,
        weights: &ParameterSet,
        samples: u64,
        control_delta: Option<&ParameterSet>,
    ) -> Result<(), AggregateError> {
        if samples == 0 {
            return Err(AggregateError::NoSamples);
        }
        let total = self.samples.checked_add(samples).ok_or(AggregateError::TooManySamples)?;
        self.rank_of(weights)?;
        let layout = |source| AggregateError::Layout { what: "update", source };
        start.check_layout(weights).map_err(layout)?;
        check_finite(weights, "update")?;
        match (&self.control_deltas, control_delta) {
            (Some(_), Some(delta)) => {
                let what = "control delta";
                let checked = self.state.layout.check(delta);
                checked.map_err(|source| AggregateError::Layout { what, source })?;
                check_finite(delta, what)?;
            }
            (None, None) => {}
            (Some(_), None) => return Err(AggregateError::ControlMissing),
            (None, Some(_)) => return Err(AggregateError::ControlUnexpected),
        }
        let n = match self.weighting {
            Weighting::Samples => samples as f64,
            Weighting::Uniform => 1.0,
        };
        let kept = self.share_kept(start, weights);
        if self.combination.robust == Robust::None {
            self.add(start, weights, n, kept)?;
        } else {
            let (start, weights) = (start.clone(), weights.clone());
            self.held.push(Held { start, weights, n, kept });
        }
        if let (Some(sum), Some(delta)) = (&mut self.control_deltas, control_delta) {
            let values = delta.iter().flat_map(|entry| &entry.values);
            sum.iter_mut().zip(values).for_each(|(sum, &value)| *sum += f64::from(value));
        }
        self.samples = total;
        self.clients += 1;
        Ok(())
    }

    /// The rank of an update whose layout is the state's but for the rank; `None` where it is the
    /// state's own.
    fn rank_of(&self, weights: &ParameterSet) -> Result<Option<usize>, AggregateError> {
        let layout = |source: LayoutMismatch| AggregateError::Layout { what: "update", source };
        let fits = self.state.layout.check(weights);
        if fits.is_ok() || !self.combination.mixed_ranks {
            return fits.map(|()| None).map_err(layout);
        }
        let full = combine::modules(&self.state.layout)?.first().map_or(0, |module| module.rank);
        let rank = combine::rank_of(weights).filter(|rank| (1..full).contains(rank));
        let Some(rank) = rank else { return fits.map(|()| None).map_err(layout) };
        combine::check_at(&self.state.layout, weights, rank).map_err(layout)?;
        Ok(Some(rank))
    }

    /// The share of a client's change that its norm leaves.
    fn share_kept(&self, start: &ParameterSet, weights: &ParameterSet) -> f64 {
        let (Some(limit), Some(products)) = (self.combination.clip_norm, &self.products) else {
            return 1.0;
        };
        let norm = self.change(&products.modules, start, weights).norm();
        if norm > limit { limit / norm } else { 1.0 }
    }

    fn change(&self, modules: &[Module], start: &ParameterSet, weights: &ParameterSet) -> Change {
        let combine = self.combination.combine;
        let trained = combine.trained(self.state.round);
        Change::new(combine, trained, modules, &self.global, start, weights)
    }

    fn add(
        &mut self,
        start: &ParameterSet,
        weights: &ParameterSet,
        n: f64,
        kept: f64,
    ) -> Result<(), AggregateError> {
        let combine = self.combination.combine;
        if combine != Combine::Product {
            let trained = combine.trained(self.state.round);
            let values = combine::changed(&self.global, trained, kept, start, weights);
            self.weighted.iter_mut().zip(values).for_each(|(sum, value)| *sum += n * value);
        }
        match &mut self.products {
            Some(Products { sums, .. })
                if combine == Combine::Product || self.combination.measure =>
            {
                sums.add(n, kept, start, weights)
            }
            _ => Ok(()),
        }
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.state.layout
    }

    pub(super) fn close(mut self) -> Result<ClosedRound, AggregateError> {
        if self.clients == 0 {
            return Err(AggregateError::NoUpdates);
        }
        let mut total = match self.weighting {
            Weighting::Samples => self.samples as f64,
            Weighting::Uniform => self.clients as f64,
        };
        let held = std::mem::take(&mut self.held);
        if let (Some(Products { modules, .. }), false) = (&self.products, held.is_empty()) {
            let change = |held: &Held| self.change(modules, &held.start, &held.weights);
            let changes: Vec<Change> = held.iter().map(change).collect();
            let n: Vec<f64> = held.iter().map(|held| held.n).collect();
            let kept: Vec<f64> = held.iter().map(|held| held.kept).collect();
            let gram = Gram::new(&changes, &kept);
            let weights = self.combination.robust.weights(&gram, &n)?;
            total = weights.iter().sum();
            for (held, n) in held.iter().zip(weights) {
                self.add(&held.start, &held.weights, n, held.kept)?;
            }
        }
        self.weighted.iter_mut().for_each(|sum| *sum /= total);
        Ok(ClosedRound {
            mean: RoundMean { weights: self.weighted, control_deltas: self.control_deltas },
            products: self.products.map(|products| products.sums),
            clients: self.clients,
            samples: self.samples,
        })
    }
}

fn check_finite(set: &ParameterSet, what: &'static str) -> Result<(), AggregateError> {
    match set.iter().find(|entry| entry.values.iter().any(|v| !v.is_finite())) {
        Some(entry) => Err(AggregateError::NotFinite { what, name: entry.name.clone() }),
        None => Ok(()),
    }
}
