//! Programs that a model wrote: from an answer to a whole program, and from a program to passed or
//! failed.

mod body;
mod ending;
mod runner;
mod toolchain;

pub use body::{body_in_braces, completion_of};
pub use runner::{ProgramRunner, RULES, RunResult};
pub use toolchain::Language;
