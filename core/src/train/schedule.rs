//! Learning rates over rounds.

/// The learning rate of round `round` (from 0) of `rounds`, falling from `initial` to `minimum`
/// along half a cosine; constant inside a round, as in OpenFedLLM (arXiv 2402.06954):
/// `minimum + ½ (initial − minimum)(1 + cos(π · round / rounds))`.
pub fn cosine_learning_rate(round: usize, rounds: usize, initial: f64, minimum: f64) -> f64 {
    let progress = round as f64 / rounds.max(1) as f64;
    minimum + 0.5 * (initial - minimum) * (1.0 + (std::f64::consts::PI * progress).cos())
}
