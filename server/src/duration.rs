//! Lengths of time as people write them: `500ms`, `30s`, `15m`, `12h`, `7d`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A length of time, in whole milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span {
    milliseconds: u64,
}

/// A text that is no length of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no length of time: write a number and a unit, such as 500ms, 30s, 15m, 12h or 7d"
)]
pub struct InvalidSpan(String);

const UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

impl Span {
    /// A number of milliseconds.
    pub const fn from_millis(milliseconds: u64) -> Self {
        Self { milliseconds }
    }

    /// Its milliseconds.
    pub const fn as_millis(self) -> u64 {
        self.milliseconds
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        Duration::from_millis(span.milliseconds)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |&&(_, unit): &&(&str, u64)| self.milliseconds.is_multiple_of(unit);
        let (name, unit) = UNITS.iter().find(fits).unwrap_or(&("ms", 1));
        write!(f, "{}{name}", self.milliseconds / unit)
    }
}

impl FromStr for Span {
    type Err = InvalidSpan;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
        let unit = text[digits.len()..].trim();
        let unit = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, unit)| *unit);
        let milliseconds = match (digits.trim().parse::<u64>(), unit) {
            (Ok(number), Some(unit)) => number.checked_mul(unit),
            _ => None,
        };
        // More than a century is a slip of the pen, and would not fit the arithmetic of deadlines.
        let sensible = milliseconds.filter(|&milliseconds| milliseconds <= 36_500 * 86_400_000);
        let milliseconds = sensible.ok_or_else(|| InvalidSpan(text.to_owned()))?;
        Ok(Self { milliseconds })
    }
}

impl TryFrom<String> for Span {
    type Error = InvalidSpan;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_of_time_reads_back_in_its_largest_unit() {
        for (text, written) in
            [("7d", "7d"), ("90 m", "90m"), ("60s", "1m"), ("1500ms", "1500ms"), ("0s", "0d")]
        {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), written);
        }
        for wrong in ["", "7", "d", "-1d", "1.5h", "7 weeks", "99999999999999d", "40000d"] {
            assert!(wrong.parse::<Span>().is_err(), "{wrong}");
        }
    }
}
