//! A whole federation in one process.

pub mod journal;
pub mod python_random;
pub mod schedule;
pub mod seed;
