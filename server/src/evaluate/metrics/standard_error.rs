//! How far a measured score may be from the score on unlimited rows.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Resamples that [`bootstrap`] draws.
const RESAMPLES: usize = 1000;

/// A standard error and how it was estimated.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", content = "value", rename_all = "snake_case")]
pub enum StandardError {
    /// `sqrt(p(1-p)/n)`, for a share of rows.
    Binomial(f64),
    /// `s/sqrt(n)` with the sample's standard deviation `s`, for a mean.
    Mean(f64),
    /// `sqrt(sum of e^2)/n`, for a mean over `n` groups' means with an error `e` each.
    MeanOfMeans(f64),
    /// The spread of the score over rows drawn again with replacement, for anything else.
    Bootstrap(f64),
}

impl StandardError {
    /// The number itself.
    pub fn value(self) -> f64 {
        match self {
            Self::Binomial(value)
            | Self::Mean(value)
            | Self::MeanOfMeans(value)
            | Self::Bootstrap(value) => value,
        }
    }
}

/// Of the share `p` of `n` rows; `None` without rows.
pub fn binomial(p: f64, n: usize) -> Option<StandardError> {
    (n > 0).then(|| StandardError::Binomial((p * (1.0 - p) / n as f64).max(0.0).sqrt()))
}

/// Of the mean of `values`; `None` for fewer than two.
pub fn of_mean(values: &[f64]) -> Option<StandardError> {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
    (values.len() > 1).then(|| StandardError::Mean((squares / (n - 1.0) / n).sqrt()))
}

/// Of the mean of independent means, each with its own error: `sqrt(sum of squares)/n`. `None`
/// without any.
pub fn of_mean_of_means(errors: &[StandardError]) -> Option<StandardError> {
    let squares = errors.iter().map(|error| error.value().powi(2)).sum::<f64>();
    (!errors.is_empty()).then(|| StandardError::MeanOfMeans(squares.sqrt() / errors.len() as f64))
}

/// Of `score` over rows drawn with replacement, from `seed`; `None` for fewer than two rows.
///
/// `score` receives the numbers of the drawn rows.
pub fn bootstrap(
    rows: usize,
    seed: u64,
    score: impl Fn(&mut dyn Iterator<Item = usize>) -> f64,
) -> Option<StandardError> {
    if rows < 2 {
        return None;
    }
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let scores: Vec<f64> = (0..RESAMPLES)
        .map(|_| score(&mut (0..rows).map(|_| random.random_range(0..rows))))
        .collect();
    let mean = scores.iter().sum::<f64>() / RESAMPLES as f64;
    let squares = scores.iter().map(|s| (s - mean).powi(2)).sum::<f64>();
    Some(StandardError::Bootstrap((squares / (RESAMPLES - 1) as f64).sqrt()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bootstrap_of_a_share_agrees_with_the_binomial_formula() {
        let hits: Vec<bool> = (0..400).map(|i| i % 4 == 0).collect();
        let share = |rows: &mut dyn Iterator<Item = usize>| {
            rows.filter(|&row| hits[row]).count() as f64 / hits.len() as f64
        };
        let drawn = bootstrap(hits.len(), 7, share).unwrap().value();
        let formula = binomial(0.25, hits.len()).unwrap().value();
        assert!((drawn - formula).abs() < 0.1 * formula, "{drawn} against {formula}");
        assert_eq!(bootstrap(hits.len(), 7, share).unwrap().value(), drawn);
    }

    #[test]
    fn the_mean_of_a_sample_uses_its_own_spread() {
        // Deviations -1, 0, 1: s = 1, s/sqrt(3).
        let error = of_mean(&[1.0, 2.0, 3.0]).unwrap().value();
        assert!((error - 1.0 / 3f64.sqrt()).abs() < 1e-12);
        assert_eq!(of_mean(&[1.0]), None);
        assert_eq!(binomial(0.5, 0), None);
    }
}
