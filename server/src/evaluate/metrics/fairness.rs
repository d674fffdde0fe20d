//! How evenly a federation serves its clients.

use serde::{Deserialize, Serialize};

/// A per-client score over all clients.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Fairness {
    /// Every client counts the same, however much data it has.
    pub mean: f64,
    /// Mean over the tenth of the clients that fare worst (at least one).
    pub worst_decile: f64,
    /// Standard deviation over the clients.
    pub spread: f64,
}

/// Sums up one score a client; `None` without clients.
///
/// `higher_is_better` tells which end is the worst: false for a loss.
pub fn fairness(scores: &[f64], higher_is_better: bool) -> Option<Fairness> {
    if scores.is_empty() {
        return None;
    }
    let mut worst_first = scores.to_vec();
    worst_first.sort_by(|a, b| if higher_is_better { a.total_cmp(b) } else { b.total_cmp(a) });
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let centre = mean(scores);
    let squares: Vec<f64> = scores.iter().map(|s| (s - centre).powi(2)).collect();
    Some(Fairness {
        mean: centre,
        worst_decile: mean(&worst_first[..scores.len().div_ceil(10)]),
        spread: mean(&squares).sqrt(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_tenth_is_the_lowest_accuracy_and_the_highest_loss() {
        let scores: Vec<f64> = (1..=20).map(f64::from).collect();
        assert_eq!(fairness(&scores, true).unwrap().worst_decile, 1.5);
        assert_eq!(fairness(&scores, false).unwrap().worst_decile, 19.5);
        assert_eq!(fairness(&scores, true).unwrap().mean, 10.5);
    }

    #[test]
    fn equal_clients_have_no_spread_and_one_client_is_its_own_worst() {
        let alone = fairness(&[0.25], true).unwrap();
        assert_eq!(alone, Fairness { mean: 0.25, worst_decile: 0.25, spread: 0.0 });
        assert_eq!(fairness(&[1.0, 3.0], true).unwrap().spread, 1.0);
        assert_eq!(fairness(&[], true), None);
    }
}
