//! One client's part of one round: what it is given, and its training, which needs nothing else of the
//! run and so may go on beside others.

use fleetune_core::client::{
    ClientError, DeviceMemory, Download, RoundOutcome, RoundPlan, Task, TrainingDevice, train_round,
};
use fleetune_core::data::Encoder;
use fleetune_core::train::{AnswerLearner, Learner, PreferenceLearner, TrainError};

use super::crew::Watch;
use super::environment::Environment;
use super::fleet::Fleet;
use super::references::References;

/// What clients train with, shared by all of them.
#[derive(Clone, Copy)]
pub(super) struct TrainingFleet<'a> {
    device: &'a TrainingDevice<'a>,
    encoder: &'a Encoder<'a>,
    data: &'a Fleet,
    references: &'a References,
}

impl<'a> TrainingFleet<'a> {
    pub fn of(environment: &'a Environment<'a>) -> Self {
        let Environment { device, encoder, fleet, references, .. } = environment;
        Self { device, encoder, data: fleet, references }
    }
}

/// What a client is given for a round.
#[derive(Debug)]
pub(super) struct Assignment {
    pub client: u32,
    pub plan: RoundPlan,
    pub download: Download,
    /// What the client remembers of earlier rounds.
    pub memory: DeviceMemory,
    /// Which of its rows it trains on, in order.
    pub order: Vec<usize>,
}

impl Assignment {
    /// Trains.
    ///
    /// # Errors
    /// As [`train_round`].
    pub fn train(
        self,
        fleet: &TrainingFleet<'_>,
        watch: Watch,
    ) -> Result<RoundOutcome, ClientError> {
        match self.plan.task {
            Task::Sft => self.train_as(&mut AnswerLearner, fleet, watch),
            Task::Dpo { loss, beta } => {
                let reference = fleet.references.of_client(self.client);
                let reference = reference.map_err(TrainError::from)?;
                let learner = &mut PreferenceLearner { loss, beta, reference };
                self.train_as(learner, fleet, watch)
            }
        }
    }

    fn train_as<L: Learner>(
        self,
        learner: &mut L,
        fleet: &TrainingFleet<'_>,
        watch: Watch,
    ) -> Result<RoundOutcome, ClientError> {
        let TrainingFleet { device, encoder, data, .. } = fleet;
        let Self { client, plan, download, memory, order } = self;
        let samples = data.samples::<L>(client, order, encoder);
        train_round(device, &plan, &download, memory, learner, samples, watch)
    }
}
