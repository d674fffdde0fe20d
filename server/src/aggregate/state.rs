//! What the server keeps between rounds.

use std::fmt;
use std::sync::Arc;

use fleetune_core::adapter::{Layout, Parameter, ParameterSet};

use super::combine::{Factored, at_rank, hand_out, modules, rank_of};
use super::{AggregateError, Algorithm, Variant};

/// The global weights and what an algorithm remembers, in f64, all of one layout.
///
/// Values of all tensors lie end to end, in order of the tensors' names: every rule works element
/// by element and needs no shapes.
#[derive(Clone, PartialEq)]
pub struct ServerState {
    pub(super) algorithm: Algorithm,
    pub(super) variant: Variant,
    pub(super) round: u64,
    pub(super) layout: Arc<Layout>,
    /// The global weights x.
    pub(super) global: Vec<f64>,
    /// First moment m, of the algorithms that have one.
    pub(super) momentum: Option<Vec<f64>>,
    /// Second moment v, of the algorithms that have one.
    pub(super) second_moment: Option<Vec<f64>>,
    /// SCAFFOLD's server control variate c.
    pub(super) control: Option<Vec<f64>>,
    /// Where products are combined: those of all modules, in order of their names, with what does
    /// not fit into the global weights.
    pub(super) product: Option<Vec<Factored>>,
}

impl ServerState {
    /// The state before round 0: m and c zero, v at τ².
    pub(super) fn initial(
        algorithm: Algorithm,
        variant: Variant,
        tau: f64,
        global: &ParameterSet,
    ) -> Self {
        let layout = Arc::new(global.layout());
        let filled = |value: f64, wanted: bool| wanted.then(|| vec![value; global.num_values()]);
        let memory = Memory::of(algorithm);
        Self {
            algorithm,
            variant,
            round: 0,
            global: flatten(global),
            momentum: filled(0.0, memory.momentum),
            second_moment: filled(tau * tau, memory.second_moment),
            control: filled(0.0, memory.control),
            product: None,
            layout,
        }
    }

    /// The algorithm this is the state of.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The variant this is the state of.
    pub fn variant(&self) -> Variant {
        self.variant
    }

    /// Rounds aggregated so far.
    pub fn round(&self) -> u64 {
        self.round
    }

    /// The global weights as clients receive them, rounded to f32.
    pub fn global(&self) -> ParameterSet {
        self.parameters(&self.global)
    }

    /// What devices of rank `rank` receive: the best adapter of that rank where products are
    /// combined, else the first rows of every A and columns of every B.
    ///
    /// # Errors
    /// When the global adapter has other tensors than factors, or a decomposition fails.
    pub fn handed_out(&self, rank: usize) -> Result<ParameterSet, AggregateError> {
        let global = self.global();
        if rank_of(&global) == Some(rank) {
            return Ok(global);
        }
        let like = at_rank(&global, rank);
        match &self.product {
            Some(product) => hand_out(product, &like, &modules(&self.layout)?),
            None => Ok(like),
        }
    }

    /// SCAFFOLD's server control variate c, rounded to f32; `None` for other algorithms.
    pub fn control(&self) -> Option<ParameterSet> {
        self.control.as_ref().map(|control| self.parameters(control))
    }

    /// Whether the algorithm keeps more than the global weights.
    pub fn remembers(&self) -> bool {
        self.vectors().count() > 1 || self.product.is_some()
    }

    /// Continues from other global weights: moments, control variate and round stay, what products had
    /// beyond the weights does not. Where the
    /// weights are those of [`ServerState::global`] the f64 ones behind them are kept, and so is what
    /// products have beyond them.
    ///
    /// Returns whether the weights were others.
    ///
    /// # Errors
    /// When the layouts differ.
    pub fn set_global(
        &mut self,
        global: &ParameterSet,
    ) -> Result<bool, fleetune_core::adapter::LayoutMismatch> {
        self.layout.check(global)?;
        let given = flatten(global);
        let rounded = |(&mine, &given): (&f64, &f64)| f64::from(mine as f32) == given;
        let others = !self.global.iter().zip(&given).all(rounded);
        if others {
            self.global = given;
            self.product = None;
        }
        Ok(others)
    }

    /// Each vector of the state with the name it has in files, in a fixed order.
    pub(super) fn vectors(&self) -> impl Iterator<Item = (&'static str, &[f64])> {
        let optional = [("m", &self.momentum), ("v", &self.second_moment), ("c", &self.control)];
        let optional = optional.into_iter();
        std::iter::once(("global", self.global.as_slice()))
            .chain(optional.filter_map(|(name, vector)| Some((name, vector.as_deref()?))))
    }

    fn parameters(&self, values: &[f64]) -> ParameterSet {
        let mut rest = values;
        let entries = self.layout.iter().map(|(name, shape)| {
            let (mine, others) = rest.split_at(shape.iter().product());
            rest = others;
            let values = mine.iter().map(|&v| v as f32).collect();
            Parameter { name: name.into(), shape: shape.to_vec(), values }
        });
        ParameterSet::new(entries.collect())
    }
}

impl fmt::Debug for ServerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vectors: Vec<_> = self.vectors().map(|(name, _)| name).collect();
        f.debug_struct("ServerState")
            .field("algorithm", &self.algorithm)
            .field("variant", &self.variant)
            .field("round", &self.round)
            .field("vectors", &vectors)
            .field("values", &self.global.len())
            .finish()
    }
}

/// What an algorithm remembers beside the global weights.
#[derive(Debug, Clone, Copy)]
pub(super) struct Memory {
    pub momentum: bool,
    pub second_moment: bool,
    pub control: bool,
}

impl Memory {
    pub fn of(algorithm: Algorithm) -> Self {
        use Algorithm as A;
        Self {
            momentum: matches!(algorithm, A::FedAvgM | A::FedAdagrad | A::FedYogi | A::FedAdam),
            second_moment: matches!(algorithm, A::FedAdagrad | A::FedYogi | A::FedAdam),
            control: matches!(algorithm, A::Scaffold),
        }
    }
}

/// All values end to end.
pub(super) fn flatten(set: &ParameterSet) -> Vec<f64> {
    set.iter().flat_map(|entry| &entry.values).map(|&v| f64::from(v)).collect()
}
