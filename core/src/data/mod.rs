//! Training data: examples, templates, tokenising, partitions.

mod example;

pub use example::{TokenizedExample, TokenizedPair};
