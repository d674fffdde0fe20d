//! Evaluation: what a model knows, how well it answers, and how evenly it serves a federation.
//!
//! A [suite] asks questions and says what answers are worth; a [model] answers.

pub mod code;
pub mod data;
pub mod judge;
pub mod metrics;
pub mod model;
pub mod sandbox;
pub mod suite;
pub mod suites;
