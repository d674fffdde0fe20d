//! A judge's words, and reading them.

/// What came of asking a judge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opinion {
    /// Its words.
    Given(String),
    /// It will not speak about this question, for this reason. It may about others.
    Withheld(String),
}

impl Opinion {
    /// The judge's words, if it gave any.
    pub fn given(&self) -> Option<&str> {
        match self {
            Self::Given(words) => Some(words),
            Self::Withheld(_) => None,
        }
    }
}

impl std::fmt::Display for Opinion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Given(words) => f.write_str(words),
            Self::Withheld(reason) => write!(f, "(the judge withheld its opinion: {reason})"),
        }
    }
}

/// The rating in a judge's answer, as MT-Bench reads it: the first `[[7]]`, else the first `[7]`.
pub fn rating(opinion: &str) -> Option<f64> {
    bracketed(opinion, "[[", "]]").or_else(|| bracketed(opinion, "[", "]"))
}

/// The last `[[1]]` or `[[0]]` in a judge's answer.
pub fn verdict_bit(opinion: &str) -> Option<bool> {
    match (opinion.rfind("[[1]]"), opinion.rfind("[[0]]")) {
        (None, None) => None,
        (one, zero) => Some(one > zero),
    }
}

/// The first number, digits and perhaps a decimal point, between the marks.
fn bracketed(text: &str, open: &str, close: &str) -> Option<f64> {
    text.match_indices(open).find_map(|(at, _)| {
        let rest = &text[at + open.len()..];
        let number = &rest[..rest.find(close)?];
        let is_number = number.starts_with(|c: char| c.is_ascii_digit())
            && number.chars().all(|c| c.is_ascii_digit() || c == '.');
        is_number.then(|| number.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rating_stands_in_brackets() {
        assert_eq!(rating("Good. Rating: [[7]]"), Some(7.0));
        assert_eq!(rating("On [1] of the points: [[8.5]] and [[2]]"), Some(8.5));
        assert_eq!(rating("Rating: [4]"), Some(4.0));
        assert_eq!(rating("Rating: 4, or [[high]] or [[1.2.3]]"), None);
        assert_eq!(rating("[[["), None);
    }

    #[test]
    fn the_last_word_counts_in_a_yes_or_no() {
        assert_eq!(verdict_bit("It may be [[0]] but is [[1]]"), Some(true));
        assert_eq!(verdict_bit("[[0]]"), Some(false));
        assert_eq!(verdict_bit("harmless"), None);
    }
}
