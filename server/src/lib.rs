//! The server of fleetune: rounds, aggregation, evaluation, fleet simulation and the command line.
//!
//! Commands write to stdout through [`output`] alone, which survives a closed pipe; `println!`
//! panics there.
#![deny(clippy::print_stdout)]

pub mod aggregate;
pub mod commands;
pub mod conditions;
pub mod evaluate;
pub mod hub;
pub mod interrupt;
pub mod output;
pub mod progress;
pub mod report;
mod seed;
pub mod simulate;
pub mod system;
pub mod training;
