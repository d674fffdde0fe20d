//! Evaluation: what a model knows, how well it answers, and how evenly it serves a federation.

pub mod metrics;
pub mod sandbox;
