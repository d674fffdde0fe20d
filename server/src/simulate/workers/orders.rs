//! The worker's own side: it reads orders, trains, and reports.

use std::io::{self, BufReader, BufWriter, Stdout};
use std::ops::ControlFlow;
use std::sync::mpsc;
use std::time::Duration;

use fleetune_core::client::{ClientError, RoundOutcome, TrainingDevice};
use fleetune_core::data::Encoder;
use fleetune_core::model::{CancelToken, Decoder};

use super::message::{Job, LinkError, Order, PartOutcome, Report, receive, send};
use crate::simulate::assignment::{self, TrainingFleet};
use crate::simulate::fleet::Fleet;
use crate::simulate::references::References;

/// How long a worker may take to come to its end after its last order: then it ends wherever it is.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

/// Why a worker cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OrdersError {
    /// No run gives orders.
    #[error("this command is one that `fleetune simulate --device LIST` starts: {0}")]
    Link(#[from] LinkError),
}

/// The orders of the run that started this process.
#[derive(Debug)]
pub struct Orders {
    job: Job,
    incoming: mpsc::Receiver<Order>,
    output: BufWriter<Stdout>,
    cancel: CancelToken,
}

/// What a worker trains with.
#[derive(Clone, Copy)]
pub struct Workplace<'a> {
    /// The base model.
    pub decoder: &'a Decoder,
    /// Rows to tokens.
    pub encoder: &'a Encoder<'a>,
    /// The clients' data.
    pub fleet: &'a Fleet,
    /// Preferences: what rewards are measured against.
    pub references: &'a References,
}

impl Orders {
    /// Waits for the first order, which is on stdin, and listens for others from then on. Once there
    /// are no more, training stops, and a while later the process ends wherever it is.
    ///
    /// # Errors
    /// When stdin has no order.
    pub fn listen() -> Result<Self, OrdersError> {
        let mut input = BufReader::new(io::stdin());
        let Order::Open(job) = receive(&mut input)? else {
            return Err(LinkError::OutOfTurn.into());
        };
        let (sender, incoming) = mpsc::channel();
        let cancel = CancelToken::default();
        let token = cancel.clone();
        std::thread::spawn(move || {
            while let Ok(order) = receive(&mut input) {
                if sender.send(order).is_err() {
                    break;
                }
            }
            drop(sender);
            token.cancel();
            std::thread::sleep(PATIENCE);
            std::process::exit(0);
        });
        Ok(Self { job, incoming, output: BufWriter::new(io::stdout()), cancel })
    }

    /// What this process is to be.
    pub fn job(&self) -> &Job {
        &self.job
    }

    /// Tells the run why this process cannot go on. A run that is gone has nobody to tell.
    pub fn fail(&mut self, problem: String) {
        let _ = send(&mut self.output, &Report::Failed(problem));
    }

    /// Trains teams until there are no more orders.
    ///
    /// # Errors
    /// When the run takes no reports any more, or asks for something else.
    pub fn follow(&mut self, workplace: Workplace<'_>) -> Result<(), OrdersError> {
        let Workplace { decoder, encoder, fleet, references } = workplace;
        send(&mut self.output, &Report::Ready)?;
        while let Ok(order) = self.incoming.recv() {
            let Order::Train { memory, team } = order else {
                return Err(LinkError::OutOfTurn.into());
            };
            let device = TrainingDevice { decoder, memory, cancel: self.cancel.clone() };
            let fleet = TrainingFleet::new(&device, encoder, fleet, references);
            let team = team.into_iter().map(Into::into).collect();
            let mut lost = None;
            let outcomes = assignment::train(team, &fleet, &mut |place, step| match send(
                &mut self.output,
                &Report::Stepped { place, step: *step },
            ) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    lost = Some(error);
                    ControlFlow::Break(())
                }
            });
            if let Some(error) = lost {
                return Err(error.into());
            }
            let outcomes = outcomes.into_iter().map(PartOutcome::from).collect();
            send(&mut self.output, &Report::Trained(outcomes))?;
        }
        Ok(())
    }
}

impl From<Result<RoundOutcome, ClientError>> for PartOutcome {
    fn from(outcome: Result<RoundOutcome, ClientError>) -> Self {
        match outcome {
            Ok(mut outcome) => {
                outcome.memory.held = None;
                Self::Done(Box::new(outcome))
            }
            Err(ClientError::NothingToLearn) => Self::NothingToLearn,
            Err(ClientError::Stopped) => Self::Stopped,
            Err(error) => Self::Failed(error.to_string()),
        }
    }
}
