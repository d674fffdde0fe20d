//! Taking part in a federation while the device is fit for it.
//!
//! A [`Participant`] is begun whenever the gate opens and ended whenever it closes in anything but a
//! step of training. Nothing is lost by that: what outlives a kill outlives this.

use std::ops::ControlFlow;
use std::path::Path;
use std::thread;

use super::examples::ExampleError;
use super::gate::Gate;
use super::policy::PauseReason;
use super::trainer::ExampleTrainer;
use crate::client::{
    DeviceFolder, Instructions, KeyStore, Participant, ParticipantError, Progress,
};
use crate::protocol::{BlobId, CommitStatus};

/// Where a device's identity is.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// The device's folder.
    pub folder: &'a Path,
    /// Its private key.
    pub keys: &'a dyn KeyStore,
    /// The app and its version.
    pub app: &'a str,
}

/// What became of a round's update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It counts.
    Accepted,
    /// It came too late for its round.
    Late {
        /// Whether it counts in a later one.
        counts: bool,
    },
    /// It does not count, for this reason.
    Refused(String),
}

/// What happens while a device takes part.
#[derive(Debug, Clone, PartialEq)]
pub enum ParticipationEvent {
    /// There is no work now, for this reason where there is one.
    Waiting(Option<String>),
    /// Bytes of a download that are here.
    Fetching {
        /// Bytes here.
        done: u64,
        /// All bytes.
        size: u64,
    },
    /// The shared adapter that this round begins with is here.
    NewAdapter {
        /// The round.
        round: u32,
    },
    /// A step of training was taken.
    Training {
        /// The round.
        round: u32,
        /// The step, from 1.
        step: u32,
        /// Steps of the round.
        of: u32,
        /// The loss before the step, nats per token.
        loss: f64,
    },
    /// Work is held up.
    Paused(PauseReason),
    /// Work goes on.
    Resumed,
    /// Chunks of the update that are on the server's disk.
    Uploading {
        /// Chunks there.
        sent: u32,
        /// All chunks.
        of: u32,
    },
    /// The server has said what became of the update.
    RoundDone {
        /// The round.
        round: u32,
        /// What became of it.
        fate: Fate,
    },
    /// Something failed and will be tried again.
    Trouble(String),
}

/// Why a device takes part no longer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ParticipationError {
    /// The app asked for it.
    #[error("stopped; what was begun goes on the next time")]
    Stopped,
    /// The federation trains another base model.
    #[error("the federation trains the base model {needed}, and this app opened another one")]
    OtherModel {
        /// The federation's.
        needed: String,
    },
    /// There is nothing to train on, or it cannot be read.
    #[error(transparent)]
    Examples(#[from] ExampleError),
    /// The device's part fails.
    #[error(transparent)]
    Participant(ParticipantError),
}

/// Takes part until the federation is done, `rounds` updates are answered where a number is given, or
/// the trainer's gate is stopped. `tell` hears what happens, from two threads.
///
/// # Errors
/// When there are no examples, the server refuses the device, or its folder fails. Failures of
/// network and server are waited out.
pub fn take_part(
    place: &Place<'_>,
    trainer: &mut ExampleTrainer,
    rounds: Option<u32>,
    tell: &(dyn Fn(ParticipationEvent) + Sync),
) -> Result<(), ParticipationError> {
    if trainer.examples().is_empty()? {
        return Err(ExampleError::NoExamples.into());
    }
    let gate = trainer.gate();
    gate.look();
    let paused = |reason: Option<&PauseReason>| match reason {
        Some(reason) => tell(ParticipationEvent::Paused(reason.clone())),
        None => tell(ParticipationEvent::Resumed),
    };
    thread::scope(|scope| {
        // Ends the watch also where this thread panics.
        let _stop = StopGate(&gate);
        scope.spawn(|| gate.watch(paused));
        let mut account = Account::new(trainer.model(), tell);
        while rounds.is_none_or(|rounds| account.settled < rounds) {
            let Some(cancel) = gate.begin() else { return Err(ParticipationError::Stopped) };
            trainer.set_cancel(cancel.clone());
            let mut observe = |progress: Progress<'_>| account.note(&progress);
            let folder = DeviceFolder::open(place.folder)
                .map_err(|error| ParticipationError::Participant(error.into()))?;
            let Place { keys, app, .. } = *place;
            let spell = Participant::open(folder, keys, None, app, cancel, &mut observe);
            let spell = spell.and_then(|mut participant| {
                gate.set_network(participant.network_watch());
                participant.run(trainer, account.left(rounds), &mut |p| account.note(&p))
            });
            match spell {
                Ok(()) => return Ok(()),
                Err(ParticipantError::Stopped) => {
                    if let Some(needed) = account.other_model.take() {
                        return Err(ParticipationError::OtherModel { needed });
                    }
                }
                Err(other) => return Err(ParticipationError::Participant(other)),
            }
        }
        Ok(())
    })
}

struct StopGate<'a>(&'a Gate);

impl Drop for StopGate<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// What is known of the work under way.
struct Account<'a> {
    model: BlobId,
    tell: &'a (dyn Fn(ParticipationEvent) + Sync),
    settled: u32,
    round: u32,
    step: u32,
    steps: u32,
    other_model: Option<String>,
}

impl<'a> Account<'a> {
    fn new(model: BlobId, tell: &'a (dyn Fn(ParticipationEvent) + Sync)) -> Self {
        Self { model, tell, settled: 0, round: 0, step: 0, steps: 0, other_model: None }
    }

    /// Updates that are still to be answered.
    fn left(&self, rounds: Option<u32>) -> Option<u32> {
        rounds.map(|rounds| rounds - self.settled)
    }

    fn note(&mut self, progress: &Progress<'_>) -> ControlFlow<()> {
        let event = match *progress {
            Progress::Trouble(problem) => ParticipationEvent::Trouble(problem.to_owned()),
            Progress::Idle(reason) => ParticipationEvent::Waiting(reason.map(str::to_owned)),
            Progress::Fetching { done, size } => ParticipationEvent::Fetching { done, size },
            Progress::Assigned(work) => {
                if work.model.blob.id != self.model {
                    let (name, id) = (&work.model.name, work.model.blob.id);
                    self.other_model = Some(format!("{name} (SHA-256 {id})"));
                    return ControlFlow::Break(());
                }
                let steps = Instructions::from_json(&work.instructions).map(|i| i.plan.steps);
                self.steps = steps.map_or(0, |steps| u32::try_from(steps).unwrap_or(u32::MAX));
                (self.round, self.step) = (work.round, 0);
                return ControlFlow::Continue(());
            }
            Progress::Step(report) => {
                let round = self.round;
                if self.step == 0 {
                    (self.tell)(ParticipationEvent::NewAdapter { round });
                }
                self.step += 1;
                let (step, of) = (self.step, self.steps);
                ParticipationEvent::Training { round, step, of, loss: report.loss }
            }
            Progress::Sent { chunk, chunks } => {
                ParticipationEvent::Uploading { sent: chunk + 1, of: chunks }
            }
            Progress::Settled(key, status) => {
                self.settled += 1;
                let fate = match status {
                    CommitStatus::Accepted => Fate::Accepted,
                    CommitStatus::Late { folded } => Fate::Late { counts: *folded },
                    CommitStatus::Refused { reason } => Fate::Refused(reason.clone()),
                };
                ParticipationEvent::RoundDone { round: key.round, fate }
            }
            Progress::Received { round } => ParticipationEvent::NewAdapter { round },
            Progress::Trained(_) | Progress::Committing => return ControlFlow::Continue(()),
        };
        (self.tell)(event);
        ControlFlow::Continue(())
    }
}
