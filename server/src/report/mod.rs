//! Metrics as people read them: `report.html`, tables for a terminal.

pub mod chart;
pub mod comparison;
pub mod history;
pub mod page;
pub mod parts;
mod table;
pub mod text;

#[cfg(test)]
mod tests;
