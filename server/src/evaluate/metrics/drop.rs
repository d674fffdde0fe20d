//! Exact match and F1 of DROP, as its official evaluation computes them.
//!
//! An answer is cut at blanks and hyphens, lower-cased, freed of punctuation and articles, and its
//! numbers are written one way. The official program also aligns several answer spans; the data of
//! simple-evals gives each accepted answer as one string, where the alignment is trivial.

use std::collections::BTreeSet;

/// Scores of one answer.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct DropScore {
    /// 1 when the normalised texts are the same.
    pub exact_match: f64,
    /// Overlap of the bags of words, rounded to two places; 0 when the numbers differ.
    pub f1: f64,
}

/// The best score over the accepted answers. Blank ones do not count.
pub fn drop_best<'a>(answer: &str, accepted: impl IntoIterator<Item = &'a str>) -> DropScore {
    let scores = accepted.into_iter().filter(|a| !a.trim().is_empty()).map(|a| score(answer, a));
    scores.fold(DropScore::default(), |best, score| DropScore {
        exact_match: best.exact_match.max(score.exact_match),
        f1: best.f1.max(score.f1),
    })
}

fn score(answer: &str, accepted: &str) -> DropScore {
    let (answer, accepted) = (normalise(answer), normalise(accepted));
    let exact_match = f64::from(u8::from(answer == accepted));
    let bag = |text: &str| -> BTreeSet<String> { text.split(' ').map(str::to_owned).collect() };
    let f1 = match (answer.is_empty(), accepted.is_empty()) {
        (true, true) => 1.0,
        (true, false) => overlap(&BTreeSet::new(), &bag(&accepted)),
        (false, true) => overlap(&bag(&answer), &BTreeSet::new()),
        (false, false) => overlap(&bag(&answer), &bag(&accepted)),
    };
    DropScore { exact_match, f1: (f1 * 100.0).round_ties_even() / 100.0 }
}

/// F1 of two bags of words; an empty bag is fully precise or fully recalled.
fn overlap(answer: &BTreeSet<String>, accepted: &BTreeSet<String>) -> f64 {
    let numbers: Vec<_> = accepted.iter().filter(|word| number(word).is_some()).collect();
    if !numbers.is_empty() && !numbers.into_iter().any(|word| answer.contains(word)) {
        return 0.0;
    }
    let common = answer.intersection(accepted).count() as f64;
    let share = |of: usize| if of == 0 { 1.0 } else { common / of as f64 };
    let (precision, recall) = (share(answer.len()), share(accepted.len()));
    let sum = precision + recall;
    if sum > 0.0 { 2.0 * precision * recall / sum } else { 0.0 }
}

fn normalise(text: &str) -> String {
    let tokens = text.split([' ', '-']).map(|token| {
        let lower = token.to_lowercase();
        let bare = match number(&lower) {
            Some(_) => lower,
            None => lower.chars().filter(|c| !c.is_ascii_punctuation()).collect(),
        };
        let uniform = match number(&bare) {
            Some(value) => format!("{value:?}"),
            None => bare,
        };
        let words = without_articles(&uniform);
        words.split_whitespace().collect::<Vec<_>>().join(" ")
    });
    tokens.filter(|token| !token.is_empty()).collect::<Vec<_>>().join(" ")
}

/// What Python's `float` reads from the text, if anything.
fn number(text: &str) -> Option<f64> {
    text.trim().parse().ok()
}

/// Replaces the words a, an and the by a blank.
fn without_articles(text: &str) -> String {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let word = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let gap = rest[word..].find(is_word).map_or(rest.len(), |at| word + at);
        match &rest[..word] {
            "a" | "an" | "the" => kept.push(' '),
            other => kept.push_str(other),
        }
        kept.push_str(&rest[word..gap]);
        rest = &rest[gap..];
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::super::vectors;
    use super::*;

    #[derive(serde::Deserialize)]
    struct Case {
        answer: String,
        accepted: Vec<String>,
        em: f64,
        f1: f64,
    }

    #[test]
    fn equals_the_official_evaluation() {
        for case in vectors::<Vec<Case>>("drop") {
            let found = drop_best(&case.answer, case.accepted.iter().map(String::as_str));
            let expected = DropScore { exact_match: case.em, f1: case.f1 };
            assert_eq!(found, expected, "{:?} for {:?}", case.answer, case.accepted);
        }
    }
}
