//! What the engine trains on.

/// A tokenised text of which some tokens are to be learnt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizedExample {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Per token, whether the loss asks the model to predict it. As long as `ids`. The first token
    /// has nothing before it and is never predicted, whatever stands here.
    pub supervised: Vec<bool>,
}

impl TokenizedExample {
    /// Tokens that the loss counts.
    pub fn supervised_tokens(&self) -> usize {
        self.supervised.iter().skip(1).filter(|&&s| s).count()
    }

    /// Rows that a pass computes: the tokens before the last supervised one.
    pub fn pass_rows(&self) -> usize {
        self.supervised.iter().rposition(|&is| is).unwrap_or(0)
    }
}

/// A tokenised preference: two answers to one prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizedPair {
    /// Token ids of the prompt that both answers share; at least one.
    pub prompt: Vec<u32>,
    /// Token ids of the preferred answer, end token included; at least one.
    pub chosen: Vec<u32>,
    /// Token ids of the other answer, end token included; at least one.
    pub rejected: Vec<u32>,
}

impl TokenizedPair {
    /// Tokens of both sides, the prompt counted twice.
    pub fn num_tokens(&self) -> usize {
        2 * self.prompt.len() + self.chosen.len() + self.rejected.len()
    }

    /// Rows that a pass computes: the prompt once, and both answers but for their last tokens.
    pub fn pass_rows(&self) -> usize {
        let answers = [&self.chosen, &self.rejected];
        self.prompt.len()
            + answers.map(|answer| answer.len().saturating_sub(1)).iter().sum::<usize>()
    }
}
