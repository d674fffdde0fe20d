//! The server of fleetune: rounds, aggregation, evaluation, fleet simulation and the command line.

pub mod evaluate;
pub mod report;
pub mod simulate;
