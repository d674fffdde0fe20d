//! The server of fleetune: rounds, aggregation, evaluation, fleet simulation and the command line.

pub mod report;
pub mod simulate;
