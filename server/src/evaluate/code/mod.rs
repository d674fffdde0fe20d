//! Programs that a model wrote: from an answer to a whole program, and from a program to passed or
//! failed.

mod answer;
mod body;
mod ending;
mod program;
mod runner;
mod toolchain;

pub use answer::{Code, given_before};
pub use body::body_in_braces;
pub use program::{completed, go_imports, open_end, program, with_go_imports};
pub use runner::{ProgramRunner, RULES, RunResult};
pub use toolchain::Language;
