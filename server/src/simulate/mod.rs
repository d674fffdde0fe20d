//! A whole federation on one machine: the clients' own code, the server's own rules, and bytes that
//! travel no further than memory. One process does everything, or one for each of several devices.

mod assignment;
pub mod checkpoint;
pub mod client_store;
pub mod config;
mod crew;
pub mod environment;
mod error;
pub mod evaluation;
pub mod federation;
pub mod fleet;
pub mod journal;
pub mod observer;
mod python_random;
pub mod references;
pub mod run;
pub mod schedule;
mod server;
pub mod stand_in;
pub mod suites;
pub mod workers;

pub use error::SimulateError;
