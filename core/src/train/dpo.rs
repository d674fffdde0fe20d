//! Preference losses.
//!
//! With β the strength, and the *reward* of an answer `β · (log π(answer) − log π_ref(answer))`, both
//! log-probabilities summed over the answer's tokens, every loss is a function of the margin
//! `h = reward(chosen) − reward(rejected)`.

use serde::{Deserialize, Serialize};

/// How a margin becomes a loss.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum PreferenceLoss {
    /// `−log σ(h)` (DPO, Rafailov et al. 2023).
    Sigmoid,
    /// `(h/β − 1/(2β))²` (IPO, Azar et al. 2023).
    Ipo,
    /// `max(0, 1 − h)` (SLiC, Zhao et al. 2023).
    Hinge,
    /// `(−(1 − ε) log σ(h) + ε log σ(−h)) / (1 − 2ε)` (robust DPO, Chowdhury et al. 2024), for
    /// labels that are wrong with probability ε.
    Robust {
        /// ε, from 0 up to, but not including, ½.
        label_smoothing: f64,
    },
}

/// Summed log-probabilities of both answers of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PairLogProbs {
    /// Of the preferred answer.
    pub chosen: f64,
    /// Of the other answer.
    pub rejected: f64,
}

/// What a preference step reports besides its loss; means over the pairs.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct PreferenceReport {
    /// Reward of the preferred answers.
    pub reward_chosen: f64,
    /// Reward of the other answers.
    pub reward_rejected: f64,
    /// Share of pairs whose preferred answer has the larger reward.
    pub reward_accuracy: f64,
    /// Reward of the preferred answer minus that of the other.
    pub reward_margin: f64,
    /// Log-probability of the preferred answers under the policy.
    pub log_prob_chosen: f64,
    /// Log-probability of the other answers under the policy.
    pub log_prob_rejected: f64,
}

/// `log σ(x)` without overflow.
fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}

fn sigmoid(x: f64) -> f64 {
    log_sigmoid(x).exp()
}

impl PreferenceLoss {
    /// The loss at margin `h`, and its derivative by `h`.
    pub(super) fn at(self, h: f64, beta: f64) -> (f64, f64) {
        match self {
            Self::Sigmoid => (-log_sigmoid(h), -sigmoid(-h)),
            Self::Ipo => {
                let distance = h / beta - 0.5 / beta;
                (distance * distance, 2.0 * distance / beta)
            }
            Self::Hinge if h < 1.0 => (1.0 - h, -1.0),
            Self::Hinge => (0.0, 0.0),
            Self::Robust { label_smoothing: e } => {
                let loss = -(1.0 - e) * log_sigmoid(h) + e * log_sigmoid(-h);
                let slope = -(1.0 - e) * sigmoid(-h) - e * sigmoid(h);
                (loss / (1.0 - 2.0 * e), slope / (1.0 - 2.0 * e))
            }
        }
    }
}

impl PreferenceReport {
    /// Adds one pair; yields its margin.
    pub(super) fn add(&mut self, policy: PairLogProbs, reference: PairLogProbs, beta: f64) -> f64 {
        let chosen = beta * (policy.chosen - reference.chosen);
        let rejected = beta * (policy.rejected - reference.rejected);
        self.reward_chosen += chosen;
        self.reward_rejected += rejected;
        self.reward_accuracy += f64::from(u8::from(chosen > rejected));
        self.reward_margin += chosen - rejected;
        self.log_prob_chosen += policy.chosen;
        self.log_prob_rejected += policy.rejected;
        chosen - rejected
    }

    /// Turns the sums over `pairs` pairs into means.
    pub(super) fn mean(mut self, pairs: usize) -> Self {
        let scale = 1.0 / pairs.max(1) as f64;
        for value in [
            &mut self.reward_chosen,
            &mut self.reward_rejected,
            &mut self.reward_accuracy,
            &mut self.reward_margin,
            &mut self.log_prob_chosen,
            &mut self.log_prob_rejected,
        ] {
            *value *= scale;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_loss_has_the_slope_it_claims() {
        let robust = PreferenceLoss::Robust { label_smoothing: 0.1 };
        for loss in [PreferenceLoss::Sigmoid, PreferenceLoss::Ipo, PreferenceLoss::Hinge, robust] {
            for h in [-30.0, -2.0, -0.1, 0.3, 2.5, 40.0] {
                let step = 1e-5;
                let numeric = (loss.at(h + step, 0.2).0 - loss.at(h - step, 0.2).0) / (2.0 * step);
                let (value, slope) = loss.at(h, 0.2);
                assert!(value.is_finite());
                assert!((numeric - slope).abs() < 1e-5 * slope.abs().max(1.0), "{loss:?} at {h}");
            }
        }
    }
}
