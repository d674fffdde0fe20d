//! Inner products between clients' changes: all that distances need.

use fleetune_core::adapter::{ParameterSet, TrainedFactors};
use rayon::prelude::*;

use crate::aggregate::combine::{Combine, Factored, Module, changed, rank_of};

/// A client's change of what is averaged. Were it measured otherwise, an update could look near and
/// move the mean far: A and B apart say nothing of a product, and a product nothing of them.
pub(in crate::aggregate) enum Change {
    /// Of every module's product, as factors.
    Products(Vec<Factored>),
    /// Of the values of all A and B, end to end.
    Values(Vec<f64>),
}

impl Change {
    /// The change from `start` to `weights`, two adapters of one rank, that counts when `combine`
    /// adds it to `global` and clients were to train `trained`.
    pub fn new(
        combine: Combine,
        trained: TrainedFactors,
        modules: &[Module],
        global: &ParameterSet,
        start: &ParameterSet,
        weights: &ParameterSet,
    ) -> Self {
        let rank = rank_of(weights).unwrap_or(0);
        let at_rank = |module: &Module| Module { rank, ..module.clone() };
        match (combine, trained) {
            (Combine::Factors, _) => {
                let after = changed(global, TrainedFactors::Both, 1.0, start, weights);
                let before = global.iter().flat_map(|entry| &entry.values);
                Self::Values(after.iter().zip(before).map(|(w, &x)| w - f64::from(x)).collect())
            }
            (_, TrainedFactors::Both) => {
                let change = |module: &Module| {
                    let mut change = Factored::of(weights, &at_rank(module));
                    change.add(-1.0, &Factored::of(start, &at_rank(module)));
                    change
                };
                Self::Products(modules.iter().map(change).collect())
            }
            // The factor that stands still is the server's, whatever the client says it is.
            (_, TrainedFactors::A | TrainedFactors::B) => {
                let change = |module: &Module| {
                    let (after, before) = (
                        Factored::of(weights, &at_rank(module)),
                        Factored::of(start, &at_rank(module)),
                    );
                    let still = Factored::of(global, module);
                    match trained {
                        TrainedFactors::A => Factored {
                            b: still.b.columns(0, rank).into_owned(),
                            a: after.a - before.a,
                        },
                        _ => Factored {
                            b: after.b - before.b,
                            a: still.a.rows(0, rank).into_owned(),
                        },
                    }
                };
                Self::Products(modules.iter().map(change).collect())
            }
        }
    }

    /// Frobenius norm over all modules, or of all values.
    pub fn norm(&self) -> f64 {
        match self {
            Self::Products(modules) => {
                modules.par_iter().map(|module| module.norm().powi(2)).sum::<f64>().sqrt()
            }
            Self::Values(values) => values.iter().map(|v| v * v).sum::<f64>().sqrt(),
        }
    }

    fn dot(&self, other: &Self) -> f64 {
        match (self, other) {
            (Self::Products(mine), Self::Products(theirs)) => {
                mine.iter().zip(theirs).map(|(mine, theirs)| mine.dot(theirs)).sum()
            }
            (Self::Values(mine), Self::Values(theirs)) => {
                mine.iter().zip(theirs).map(|(mine, theirs)| mine * theirs).sum()
            }
            // One round, one way of combining.
            _ => 0.0,
        }
    }
}

/// The inner products of every two changes.
pub(in crate::aggregate) struct Gram {
    clients: usize,
    values: Vec<f64>,
}

impl Gram {
    /// Of changes of which only the shares `kept` count.
    pub fn new(changes: &[Change], kept: &[f64]) -> Self {
        let pairs = (0..changes.len()).flat_map(|i| (0..=i).map(move |j| (i, j)));
        let dots: Vec<(usize, usize, f64)> = pairs
            .collect::<Vec<_>>()
            .into_par_iter()
            .map(|(i, j)| (i, j, kept[i] * kept[j] * changes[i].dot(&changes[j])))
            .collect();
        let mut values = vec![0.0; changes.len() * changes.len()];
        for (i, j, dot) in dots {
            values[i * changes.len() + j] = dot;
            values[j * changes.len() + i] = dot;
        }
        Self { clients: changes.len(), values }
    }

    #[cfg(test)]
    pub fn from_fn(clients: usize, dot: impl Fn(usize, usize) -> f64) -> Self {
        let values = (0..clients * clients).map(|at| dot(at / clients, at % clients));
        Self { clients, values: values.collect() }
    }

    fn dot(&self, i: usize, j: usize) -> f64 {
        self.values[i * self.clients + j]
    }

    /// ‖change i - change j‖².
    pub fn squared_distance(&self, i: usize, j: usize) -> f64 {
        (self.dot(i, i) + self.dot(j, j) - 2.0 * self.dot(i, j)).max(0.0)
    }

    /// Each change's distance to the weighted mean.
    pub fn distances_to(&self, weights: &[f64]) -> Vec<f64> {
        let sum: f64 = weights.iter().sum();
        let to_mean = |i: usize| {
            weights.iter().enumerate().map(|(j, w)| w * self.dot(i, j)).sum::<f64>() / sum
        };
        let with_mean: Vec<f64> = (0..self.clients).map(to_mean).collect();
        let mean = weights.iter().zip(&with_mean).map(|(w, d)| w * d).sum::<f64>() / sum;
        let distance = |i: usize| (self.dot(i, i) - 2.0 * with_mean[i] + mean).max(0.0).sqrt();
        (0..self.clients).map(distance).collect()
    }
}
