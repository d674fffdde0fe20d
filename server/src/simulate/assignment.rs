//! Clients' parts of one round: what each is given, and its training, which needs nothing else of the
//! run and so may go on beside others or through the same passes.

use fleetune_core::client::{
    ClientError, DeviceMemory, Download, RoundOutcome, RoundPart, RoundPlan, Task, TrainingDevice,
    train_rounds,
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
    pub fn new(
        device: &'a TrainingDevice<'a>,
        encoder: &'a Encoder<'a>,
        data: &'a Fleet,
        references: &'a References,
    ) -> Self {
        Self { device, encoder, data, references }
    }

    pub fn of(environment: &'a Environment<'a>) -> Self {
        let Environment { device, encoder, fleet, references, .. } = environment;
        Self::new(device, encoder, fleet, references)
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
    /// Whether the clients can share passes: adapters of one shape, and one task.
    pub fn goes_with(&self, other: &Self) -> bool {
        self.plan.lora == other.plan.lora && self.plan.task == other.plan.task
    }
}

/// Trains the clients of a team, all of whom go with each other, through common passes.
pub(super) fn train(
    team: Vec<Assignment>,
    fleet: &TrainingFleet<'_>,
    watch: Watch,
) -> Vec<Result<RoundOutcome, ClientError>> {
    match team.first().map(|first| first.plan.task) {
        None => Vec::new(),
        Some(Task::Sft) => train_as(team, |_| Ok(AnswerLearner), fleet, watch),
        Some(Task::Dpo { loss, beta }) => {
            let learner = |client| {
                let reference = fleet.references.of_client(client).map_err(TrainError::from)?;
                Ok(PreferenceLearner { loss, beta, reference })
            };
            train_as(team, learner, fleet, watch)
        }
    }
}

fn train_as<L: Learner>(
    mut team: Vec<Assignment>,
    learner: impl Fn(u32) -> Result<L, ClientError>,
    fleet: &TrainingFleet<'_>,
    watch: Watch,
) -> Vec<Result<RoundOutcome, ClientError>> {
    let learners = team.iter().map(|assignment| learner(assignment.client));
    let mut learners = match learners.collect::<Result<Vec<L>, ClientError>>() {
        Ok(learners) => learners,
        Err(error) => {
            // The run ends with the first error.
            let others = team.iter().skip(1).map(|_| Err(ClientError::Stopped));
            return std::iter::once(Err(error)).chain(others).collect();
        }
    };
    let TrainingFleet { device, encoder, data, .. } = fleet;
    let given = team.iter_mut().zip(&mut learners);
    let parts = given.map(|(assignment, learner)| {
        let Assignment { client, plan, download, memory, order } = assignment;
        let rows = data.samples::<L>(*client, std::mem::take(order), encoder);
        RoundPart { plan, download, memory: std::mem::take(memory), learner, rows }
    });
    train_rounds(device, parts.collect(), watch)
}
