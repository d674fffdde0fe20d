//! Means that a few far-off updates cannot move at will.
//!
//! Each rule looks at the distances between the clients' changes of what is averaged (`gram`), and
//! answers with a weight for each client. With `product` that is the products: two pairs of factors
//! with the same product are the same update, whatever basis they are written in. With `ffa` and
//! `alternate` it is the products of the trained factor with the server's other one, with `factors`
//! A and B themselves.

mod gram;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{AggregateError, UnknownName};

pub(super) use gram::{Change, Gram};

/// How far-off updates are kept from mattering.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Robust {
    /// All count: the weighted mean.
    #[default]
    None,
    /// The geometric median (Pillutla et al. 2022, RFA): the point with the smallest weighted sum of
    /// distances to the changes.
    Median,
    /// The weighted mean without the given share of clients, those farthest from the geometric
    /// median.
    Trimmed {
        /// The share left out, rounded up to whole clients; below one half.
        share: f64,
    },
    /// The one change with the smallest sum of squared distances to its nearest neighbours
    /// (Blanchard et al. 2017).
    Krum {
        /// Clients that may be hostile, f; a round needs 2 f + 3.
        hostile: usize,
    },
}

impl Robust {
    /// Checks the constants.
    ///
    /// # Errors
    /// When a share is out of range.
    pub fn check(self) -> Result<(), AggregateError> {
        match self {
            Robust::Trimmed { share } if !(share > 0.0 && share < 0.5) => {
                Err(AggregateError::TrimmedShare(share))
            }
            _ => Ok(()),
        }
    }

    /// The fewest clients that a round needs.
    pub fn min_clients(self) -> usize {
        match self {
            Robust::None | Robust::Median => 1,
            Robust::Trimmed { .. } => 3,
            Robust::Krum { hostile } => hostile.saturating_mul(2).saturating_add(3),
        }
    }

    /// The weight of each client, of which `n` are the weights in a plain mean.
    ///
    /// # Errors
    /// When there are too few clients.
    pub(super) fn weights(self, gram: &Gram, n: &[f64]) -> Result<Vec<f64>, AggregateError> {
        let (clients, needed) = (n.len(), self.min_clients());
        if clients < needed {
            let rule = self.to_string();
            return Err(AggregateError::TooFewForRobust { rule, clients, needed });
        }
        Ok(match self {
            Robust::None => n.to_vec(),
            Robust::Median => geometric_median(gram, n),
            Robust::Trimmed { share } => {
                let distances = gram.distances_to(&geometric_median(gram, n));
                let left_out = (share * clients as f64).ceil() as usize;
                let mut order: Vec<usize> = (0..clients).collect();
                order.sort_by(|&a, &b| distances[b].total_cmp(&distances[a]));
                let mut weights = n.to_vec();
                order.iter().take(left_out).for_each(|&client| weights[client] = 0.0);
                weights
            }
            Robust::Krum { hostile } => {
                let neighbours = clients - hostile - 2;
                let score = |i: usize| {
                    let others = (0..clients).filter(|&j| j != i);
                    let mut squares: Vec<f64> =
                        others.map(|j| gram.squared_distance(i, j)).collect();
                    squares.sort_by(f64::total_cmp);
                    squares.iter().take(neighbours).sum::<f64>()
                };
                let best = (0..clients).min_by(|&a, &b| score(a).total_cmp(&score(b)));
                (0..clients).map(|i| if Some(i) == best { n[i] } else { 0.0 }).collect()
            }
        })
    }
}

/// Weights of the smoothed geometric median, by Weiszfeld's iteration.
fn geometric_median(gram: &Gram, n: &[f64]) -> Vec<f64> {
    /// The iteration shrinks the rest by a constant factor a step; the weights need few digits.
    const STEPS: usize = 100;
    /// Shares of the median and of the mean distance below which a distance counts as that: what
    /// keeps a weight finite. The median is one that far-off updates have no say in.
    const SMOOTHING: (f64, f64) = (1e-6, 1e-12);
    let mut weights = n.to_vec();
    for _ in 0..STEPS {
        let distances = gram.distances_to(&weights);
        let mut sorted = distances.clone();
        sorted.sort_by(f64::total_cmp);
        let (median, mean) =
            (sorted[sorted.len() / 2], sorted.iter().sum::<f64>() / sorted.len() as f64);
        let floor = (SMOOTHING.0 * median).max(SMOOTHING.1 * mean);
        if floor == 0.0 {
            // All changes are the same.
            return n.to_vec();
        }
        weights = n.iter().zip(&distances).map(|(n, d)| n / d.max(floor)).collect();
        // The size of the weights says nothing; kept from growing, they stay exact.
        let sum: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|w| *w /= sum);
    }
    weights
}

impl fmt::Display for Robust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Robust::None => f.pad("none"),
            Robust::Median => f.pad("median"),
            Robust::Trimmed { share } => f.pad(&format!("trimmed:{share}")),
            Robust::Krum { hostile } => f.pad(&format!("krum:{hostile}")),
        }
    }
}

impl FromStr for Robust {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, argument) = text.split_once(':').unwrap_or((text, ""));
        let number = || argument.parse::<usize>().ok();
        let parsed = match name {
            "none" if argument.is_empty() => Some(Robust::None),
            "median" if argument.is_empty() => Some(Robust::Median),
            "trimmed" => argument.parse().ok().map(|share| Robust::Trimmed { share }),
            "krum" => number().map(|hostile| Robust::Krum { hostile }),
            _ => None,
        };
        parsed.filter(|rule| rule.check().is_ok()).ok_or_else(|| UnknownName {
            kind: "robust rule",
            name: text.into(),
            expected: "none, median, trimmed:SHARE (above 0, below 0.5) or krum:HOSTILE",
        })
    }
}

impl From<Robust> for String {
    fn from(robust: Robust) -> Self {
        robust.to_string()
    }
}

impl TryFrom<String> for Robust {
    type Error = UnknownName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Points on a line as a Gram matrix.
    fn points(values: &[f64]) -> Gram {
        Gram::from_fn(values.len(), |i, j| values[i] * values[j])
    }

    fn mean(values: &[f64], weights: &[f64]) -> f64 {
        let sum: f64 = weights.iter().sum();
        values.iter().zip(weights).map(|(v, w)| v * w).sum::<f64>() / sum
    }

    #[test]
    fn one_far_off_point_moves_the_mean_but_no_robust_rule() {
        let values = [1.0, 1.1, 0.9, 1.05, 0.95, 1e6];
        let (gram, n) = (points(&values), [1.0; 6]);
        for rule in ["median", "trimmed:0.15", "krum:1"] {
            let rule: Robust = rule.parse().unwrap();
            let found = mean(&values, &rule.weights(&gram, &n).unwrap());
            assert!((found - 1.0).abs() < 0.11, "{rule}: {found}");
        }
        assert!(mean(&values, &Robust::None.weights(&gram, &n).unwrap()) > 1e5);
    }

    #[test]
    fn equal_updates_leave_the_plain_mean() {
        let (gram, n) = (points(&[2.0; 5]), [1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(Robust::Median.weights(&gram, &n).unwrap(), n);
        let one = points(&[3.0]);
        assert_eq!(Robust::Median.weights(&one, &[7.0]).unwrap(), [7.0]);
    }

    #[test]
    fn too_few_clients_are_refused() {
        let gram = points(&[1.0, 2.0, 3.0, 4.0]);
        let error = Robust::Krum { hostile: 1 }.weights(&gram, &[1.0; 4]).unwrap_err();
        assert!(error.to_string().contains("5"), "{error}");
    }

    #[test]
    fn names_read_back() {
        for name in ["none", "median", "trimmed:0.2", "krum:2"] {
            assert_eq!(name.parse::<Robust>().unwrap().to_string(), name);
        }
        for wrong in ["trimmed:0.5", "trimmed", "krum", "krum:-1", "mean", "median:1"] {
            assert!(wrong.parse::<Robust>().is_err(), "{wrong}");
        }
    }
}
