//! Training an adapter: losses, optimiser, local objectives, one step after another.

mod adamw;
mod dpo;
mod evaluate;
mod objective;
mod reference_cache;
mod schedule;
mod trainer;

pub use adamw::{AdamW, AdamWOptions};
pub use dpo::{PairLogProbs, PreferenceLoss, PreferenceReport};
pub use evaluate::{Evaluation, evaluate, reference_log_probs};
pub use objective::{LocalObjective, update_control_variate};
pub use reference_cache::{ReferenceCache, ReferenceError};
pub use schedule::cosine_learning_rate;
pub use trainer::{StepReport, TrainError, TrainOptions, Trainer, TrainerState};
