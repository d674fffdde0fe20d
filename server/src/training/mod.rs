//! One device's own training, without a federation: rows in order, steps, a folder that resumes.

mod checkpoint;
mod loss_name;
mod metrics;
mod order;
mod run;

pub use checkpoint::{Checkpoint, CheckpointError};
pub use loss_name::LossName;
pub use metrics::{MetricsError, StepRecord};
pub use order::RowOrder;
pub use run::{Outcome, RunError, RunOptions, Subject, train};
