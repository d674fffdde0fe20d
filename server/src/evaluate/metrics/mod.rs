//! What an answer is worth: pure functions from answers and references to numbers.
//!
//! Nothing here knows a model, a file or a suite. Where the literature computes a number with a
//! program of its own (DROP, MATH, ROUGE, pass@k), the function computes what that program
//! computes, odd cases included, so that results can be compared.

mod answers;
mod classification;
mod drop;
mod fairness;
mod latex;
mod pass_at_k;
mod refusal;
mod rouge;
mod standard_error;

pub use answers::{
    bbh_answer, chosen_word, gsm8k_flexible, gsm8k_reference, gsm8k_strict, numbers_equal,
    option_letter,
};
pub use classification::{Averages, averages};
pub use drop::{DropScore, drop_best};
pub use fairness::{Fairness, fairness};
pub use latex::{last_boxed, math_answer, math_equivalent};
pub use pass_at_k::pass_at_k;
pub use refusal::refuses;
pub use rouge::{RougeScore, rouge_l, rouge_n};
pub use standard_error::{StandardError, binomial, bootstrap, of_mean, of_mean_of_means};

/// Reads a file of vectors that `tests/fixtures/metrics/generate.py` wrote.
#[cfg(test)]
fn vectors<T: serde::de::DeserializeOwned>(name: &str) -> T {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/metrics/");
    let text = std::fs::read_to_string(format!("{folder}{name}.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}
