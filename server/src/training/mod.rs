//! One device's own training, without a federation: rows in order, steps, a folder that resumes.

mod checkpoint;
mod metrics;
mod run;
mod settings;

pub use checkpoint::{Checkpoint, CheckpointError};
pub use metrics::{MetricsError, StepRecord};
pub use run::{Outcome, RunError, RunOptions, Subject, train};
pub use settings::{ComputePrecision, LossName, Task, TaskMismatch};
