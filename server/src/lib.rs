//! The server of fleetune: rounds, aggregation, evaluation, fleet simulation and the command line.
//!
//! Commands write to stdout through [`output`] alone, which survives a closed pipe; `println!`
//! panics there.
#![deny(clippy::print_stdout)]

pub mod aggregate;
pub mod commands;
pub mod conditions;
pub mod coordinator;
pub mod duration;
pub mod evaluate;
mod fault;
pub mod hub;
pub mod identity;
pub mod interrupt;
pub mod load;
pub mod operator;
pub mod output;
pub mod progress;
pub mod report;
pub mod round;
mod seed;
pub mod simulate;
pub mod store;
pub mod system;
pub mod training;
pub mod transport;
pub mod web;
