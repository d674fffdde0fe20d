//! Metrics as people read them: `report.html`, tables for a terminal.

mod chart;
pub mod comparison;
pub mod history;
pub mod page;
mod table;
pub mod text;

#[cfg(test)]
mod tests;
