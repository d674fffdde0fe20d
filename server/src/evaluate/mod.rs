//! Evaluation: what a model knows, how well it answers, and how evenly it serves a federation.
//!
//! A [suite](suite::Suite) asks questions and says what answers are worth; a
//! [model](model::LanguageModel) answers; [`run`](run::run) brings them together and keeps a
//! [journal](journal::Journal); the [result] says what was found.

pub mod adaptable;
mod ask;
pub mod code;
pub mod data;
pub mod engine;
pub mod federated;
pub mod grading;
pub mod journal;
pub mod judge;
pub mod metrics;
pub mod model;
pub mod result;
pub mod run;
pub mod sandbox;
pub mod suite;
pub mod suites;
