//! Loss, perplexity and token accuracy of a language model on text.

use std::ops::AddAssign;

/// What a model made of a run of tokens; runs add up.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TokenTally {
    /// Sum of the natural log-probabilities of the tokens.
    pub logprob: f64,
    /// Tokens whose most likely prediction was right.
    pub hits: usize,
    /// Tokens predicted.
    pub tokens: usize,
}

impl TokenTally {
    /// Mean negative log-likelihood a token, in nats; `None` without tokens.
    pub fn loss(&self) -> Option<f64> {
        (self.tokens > 0).then(|| -self.logprob / self.tokens as f64)
    }

    /// `exp(loss)`.
    pub fn perplexity(&self) -> Option<f64> {
        self.loss().map(f64::exp)
    }

    /// Share of the tokens that the model would have written itself, greedily.
    pub fn accuracy(&self) -> Option<f64> {
        (self.tokens > 0).then(|| self.hits as f64 / self.tokens as f64)
    }
}

impl AddAssign for TokenTally {
    fn add_assign(&mut self, other: Self) {
        self.logprob += other.logprob;
        self.hits += other.hits;
        self.tokens += other.tokens;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guessing_evenly_among_four_has_perplexity_four() {
        let mut tally = TokenTally { logprob: 3.0 * 0.25f64.ln(), hits: 1, tokens: 3 };
        tally += TokenTally { logprob: 0.25f64.ln(), hits: 0, tokens: 1 };
        assert!((tally.perplexity().unwrap() - 4.0).abs() < 1e-12);
        assert_eq!(tally.accuracy(), Some(0.25));
        assert_eq!(TokenTally::default().loss(), None);
    }
}
