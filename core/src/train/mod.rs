//! Training an adapter: losses, optimiser, local objectives, one step after another.

mod adamw;
mod evaluate;
mod learner;
mod lengths;
mod lesson;
mod objective;
mod preference;
mod reference;
mod schedule;
mod together;
mod trainer;

pub use adamw::{AdamW, AdamWOptions};
pub use evaluate::{Evaluation, PairEvaluation, PassLimits, evaluate, evaluate_pairs};
pub use learner::{AnswerLearner, Learner, PreferenceLearner};
pub use lengths::SampleLengths;
pub use lesson::Lesson;
pub use objective::{LocalObjective, update_control_variate};
pub use preference::{
    PairLogProbs, PairLoss, PairScores, PreferenceLoss, PreferenceReport, preferred,
};
pub use reference::{Reference, ReferenceError};
pub use schedule::cosine_learning_rate;
pub use together::{Step, step_together};
pub use trainer::{StepReport, TrainError, TrainOptions, Trainer, TrainerState};
