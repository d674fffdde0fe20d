//! ROUGE as the `rouge-score` package computes it, without stemming.

use std::collections::HashMap;

/// Overlap of an answer with a reference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RougeScore {
    /// Share of the answer that the reference has too.
    pub precision: f64,
    /// Share of the reference that the answer has too.
    pub recall: f64,
    /// Harmonic mean of both.
    pub f1: f64,
}

impl RougeScore {
    fn new(common: usize, answer: usize, reference: usize) -> Self {
        let share = |of: usize| if of == 0 { 0.0 } else { common as f64 / of as f64 };
        let (precision, recall) = (share(answer), share(reference));
        let sum = precision + recall;
        Self { precision, recall, f1: if sum > 0.0 { 2.0 * precision * recall / sum } else { 0.0 } }
    }
}

/// Lower-case runs of ASCII letters and digits; everything else separates.
fn tokens(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let words = lower.split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit());
    words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// ROUGE-L: the longest common subsequence of tokens.
pub fn rouge_l(reference: &str, answer: &str) -> RougeScore {
    let (reference, answer) = (tokens(reference), tokens(answer));
    // One row of the table of common lengths at a time: row[j] is for answer[..j].
    let mut row = vec![0usize; answer.len() + 1];
    for expected in &reference {
        let mut diagonal = 0;
        for (j, given) in answer.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if expected == given { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    RougeScore::new(row[answer.len()], answer.len(), reference.len())
}

/// ROUGE-N: common runs of `n` tokens, counted with multiplicity.
pub fn rouge_n(reference: &str, answer: &str, n: usize) -> RougeScore {
    let (reference, answer) = (tokens(reference), tokens(answer));
    let mut counts: HashMap<&[String], usize> = HashMap::new();
    for gram in reference.windows(n) {
        *counts.entry(gram).or_default() += 1;
    }
    let mut common = 0;
    for gram in answer.windows(n) {
        if let Some(left) = counts.get_mut(gram).filter(|left| **left > 0) {
            *left -= 1;
            common += 1;
        }
    }
    let grams = |tokens: &[String]| (tokens.len() + 1).saturating_sub(n);
    RougeScore::new(common, grams(&answer), grams(&reference))
}

#[cfg(test)]
mod tests {
    use super::super::vectors;
    use super::*;

    #[derive(serde::Deserialize)]
    struct Case {
        reference: String,
        answer: String,
        rouge1: [f64; 3],
        rouge2: [f64; 3],
        rouge_l: [f64; 3],
    }

    #[test]
    fn equals_the_rouge_score_package() {
        for case in vectors::<Vec<Case>>("rouge") {
            let found = [
                (rouge_n(&case.reference, &case.answer, 1), case.rouge1),
                (rouge_n(&case.reference, &case.answer, 2), case.rouge2),
                (rouge_l(&case.reference, &case.answer), case.rouge_l),
            ];
            for (found, [precision, recall, f1]) in found {
                assert!(
                    (found.precision - precision).abs() < 1e-12,
                    "{case_:?}",
                    case_ = case.answer
                );
                assert!((found.recall - recall).abs() < 1e-12);
                assert!((found.f1 - f1).abs() < 1e-12);
            }
        }
    }
}
