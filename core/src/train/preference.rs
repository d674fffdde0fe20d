//! Preference losses.
//!
//! Against a frozen reference, with β the strength, the *reward* of an answer is
//! `β · (log π(answer) − log π_ref(answer))`, both log-probabilities summed over the answer's tokens,
//! and the loss is a function of the margin `h = reward(chosen) − reward(rejected)`. ORPO has no
//! reference: with `p` the mean log-probability of an answer's tokens, the reward is `β · p`.

use serde::{Deserialize, Serialize};

use crate::data::TokenizedPair;

/// How a pair of answers becomes a loss.
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
    /// `−p(chosen) − β log σ(o(chosen) − o(rejected))` with the log-odds
    /// `o = p − log(1 − exp p)` (ORPO, Hong et al. 2024): tuning on the preferred answer and
    /// preference in one, without a reference.
    Orpo,
}

/// Summed log-probabilities of both answers of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PairLogProbs {
    /// Of the preferred answer.
    pub chosen: f64,
    /// Of the other answer.
    pub rejected: f64,
}

/// How pairs were judged; means over the pairs.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct PreferenceReport {
    /// Reward of the preferred answers.
    pub reward_chosen: f64,
    /// Reward of the other answers.
    pub reward_rejected: f64,
    /// Share of pairs whose preferred answer has the larger reward; equal rewards count one half.
    pub reward_accuracy: f64,
    /// Reward of the preferred answer minus that of the other.
    pub reward_margin: f64,
    /// Log-probability of the preferred answers under the policy.
    pub log_prob_chosen: f64,
    /// Log-probability of the other answers under the policy.
    pub log_prob_rejected: f64,
}

/// A pair as the policy and the reference see it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairScores {
    /// Log-probabilities under the policy.
    pub policy: PairLogProbs,
    /// Log-probabilities under the reference; not looked at where the loss needs none.
    pub reference: PairLogProbs,
    /// Tokens of the preferred answer.
    pub chosen_tokens: usize,
    /// Tokens of the other answer.
    pub rejected_tokens: usize,
}

impl PairScores {
    /// The scores of `pair`.
    pub fn new(pair: &TokenizedPair, policy: PairLogProbs, reference: PairLogProbs) -> Self {
        let (chosen_tokens, rejected_tokens) = (pair.chosen.len(), pair.rejected.len());
        Self { policy, reference, chosen_tokens, rejected_tokens }
    }
}

/// The loss of one pair.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairLoss {
    /// The loss.
    pub value: f64,
    /// Derivatives of the loss by the log-probability of the preferred and of the other answer.
    pub slopes: [f64; 2],
    /// Rewards of the preferred and of the other answer.
    pub rewards: [f64; 2],
}

/// 1 where the preferred answer has the larger number, ½ where both have the same, else 0.
pub fn preferred(chosen: f64, rejected: f64) -> f64 {
    0.5 * (f64::from(u8::from(chosen > rejected)) + f64::from(u8::from(chosen >= rejected)))
}

/// `log σ(x)` without overflow.
fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}

fn sigmoid(x: f64) -> f64 {
    log_sigmoid(x).exp()
}

/// `log(p / (1 − p))` and its derivative, given `log p`.
fn log_odds(log_p: f64) -> (f64, f64) {
    // A certain answer has infinite odds; nothing near certainty needs to be told apart.
    let log_p = log_p.min(-1e-9);
    let rest = -log_p.exp_m1();
    (log_p - rest.ln(), 1.0 / rest)
}

impl PreferenceLoss {
    /// Whether the loss compares with a frozen reference.
    pub fn needs_reference(self) -> bool {
        self != Self::Orpo
    }

    /// The loss of one pair at strength `beta`.
    pub fn of_pair(self, pair: &PairScores, beta: f64) -> PairLoss {
        let PairScores { policy, reference, .. } = *pair;
        if self == Self::Orpo {
            return orpo(pair, beta);
        }
        let chosen = beta * (policy.chosen - reference.chosen);
        let rejected = beta * (policy.rejected - reference.rejected);
        let (value, slope) = self.at(chosen - rejected, beta);
        PairLoss { value, slopes: [slope * beta, -slope * beta], rewards: [chosen, rejected] }
    }

    /// The loss at margin `h`, and its derivative by `h`.
    fn at(self, h: f64, beta: f64) -> (f64, f64) {
        match self {
            Self::Sigmoid | Self::Orpo => (-log_sigmoid(h), -sigmoid(-h)),
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

fn orpo(pair: &PairScores, beta: f64) -> PairLoss {
    let lens = [pair.chosen_tokens, pair.rejected_tokens].map(|len| len.max(1) as f64);
    let [chosen, rejected] = [pair.policy.chosen / lens[0], pair.policy.rejected / lens[1]];
    let (odds_chosen, slope_chosen) = log_odds(chosen);
    let (odds_rejected, slope_rejected) = log_odds(rejected);
    let (value, slope) = PreferenceLoss::Orpo.at(odds_chosen - odds_rejected, beta);
    PairLoss {
        value: beta * value - chosen,
        slopes: [
            (beta * slope * slope_chosen - 1.0) / lens[0],
            -beta * slope * slope_rejected / lens[1],
        ],
        rewards: [beta * chosen, beta * rejected],
    }
}

impl PreferenceReport {
    /// What one pair came to.
    pub fn of_pair(policy: PairLogProbs, [chosen, rejected]: [f64; 2]) -> Self {
        Self {
            reward_chosen: chosen,
            reward_rejected: rejected,
            reward_accuracy: preferred(chosen, rejected),
            reward_margin: chosen - rejected,
            log_prob_chosen: policy.chosen,
            log_prob_rejected: policy.rejected,
        }
    }

    /// Adds `weight` times another report.
    pub fn add(&mut self, other: &Self, weight: f64) {
        for (sum, value) in self.values_mut().into_iter().zip(other.clone().values_mut()) {
            *sum += weight * *value;
        }
    }

    /// Every number times `factor`.
    #[must_use]
    pub fn scaled(mut self, factor: f64) -> Self {
        self.values_mut().into_iter().for_each(|value| *value *= factor);
        self
    }

    fn values_mut(&mut self) -> [&mut f64; 6] {
        let Self {
            reward_chosen,
            reward_rejected,
            reward_accuracy,
            reward_margin,
            log_prob_chosen,
            log_prob_rejected,
        } = self;
        [
            reward_chosen,
            reward_rejected,
            reward_accuracy,
            reward_margin,
            log_prob_chosen,
            log_prob_rejected,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROBUST: PreferenceLoss = PreferenceLoss::Robust { label_smoothing: 0.1 };

    fn pair(chosen: f64, rejected: f64) -> PairScores {
        PairScores {
            policy: PairLogProbs { chosen, rejected },
            reference: PairLogProbs { chosen: -7.0, rejected: -6.0 },
            chosen_tokens: 3,
            rejected_tokens: 4,
        }
    }

    #[test]
    fn every_loss_has_the_slopes_it_claims() {
        use PreferenceLoss::{Hinge, Ipo, Orpo, Sigmoid};
        let step = 1e-5;
        for loss in [Sigmoid, Ipo, Hinge, ROBUST, Orpo] {
            for (c, r) in [(-1.0, -90.0), (-6.0, -7.0), (-20.0, -3.0), (-0.1, -0.2)] {
                let value = |c, r| loss.of_pair(&pair(c, r), 0.2).value;
                let numeric = [
                    (value(c + step, r) - value(c - step, r)) / (2.0 * step),
                    (value(c, r + step) - value(c, r - step)) / (2.0 * step),
                ];
                let PairLoss { value, slopes, .. } = loss.of_pair(&pair(c, r), 0.2);
                assert!(value.is_finite());
                for (numeric, slope) in numeric.into_iter().zip(slopes) {
                    let error = (numeric - slope).abs();
                    assert!(error < 1e-5 * slope.abs().max(1.0), "{loss:?} at {c}, {r}");
                }
            }
        }
    }

    #[test]
    fn orpo_is_the_papers_formula_and_survives_certainty() {
        // Mean probabilities of a token: 1/2 and 1/4, so the odds are 1 and 1/3.
        let certain = |p: f64, tokens: f64| p.ln() * tokens;
        let scores = pair(certain(0.5, 3.0), certain(0.25, 4.0));
        let expected = 2.0_f64.ln() - 0.1 * (0.75_f64).ln();
        let loss = PreferenceLoss::Orpo.of_pair(&scores, 0.1);
        assert!((loss.value - expected).abs() < 1e-12);
        assert_eq!(loss.rewards, [0.1 * 0.5_f64.ln(), 0.1 * 0.25_f64.ln()]);
        let loss = PreferenceLoss::Orpo.of_pair(&pair(0.0, 0.0), 0.1);
        assert!(loss.value.is_finite() && loss.slopes.iter().all(|slope| slope.is_finite()));
    }
}
