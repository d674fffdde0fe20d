//! Inner products between clients' changes of their products B·A: all that distances need.

use fleetune_core::adapter::ParameterSet;
use rayon::prelude::*;

use crate::aggregate::combine::{Factored, Module, rank_of};

/// A client's change of every module's product, B_k A_k - B A, as factors.
pub(in crate::aggregate) struct Change(Vec<Factored>);

impl Change {
    /// The change from `start` to `weights`, two adapters of one rank.
    pub fn new(modules: &[Module], start: &ParameterSet, weights: &ParameterSet) -> Self {
        let rank = rank_of(weights).unwrap_or(0);
        let change = |module: &Module| {
            let module = Module { rank, ..module.clone() };
            let mut change = Factored::of(weights, &module);
            change.add(-1.0, &Factored::of(start, &module));
            change
        };
        Self(modules.iter().map(change).collect())
    }

    /// Frobenius norm over all modules.
    pub fn norm(&self) -> f64 {
        self.0.par_iter().map(|module| module.norm().powi(2)).sum::<f64>().sqrt()
    }

    fn dot(&self, other: &Self) -> f64 {
        self.0.iter().zip(&other.0).map(|(mine, theirs)| mine.dot(theirs)).sum()
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
