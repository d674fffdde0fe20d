//! A device's side of the conversation, as a state machine.
//!
//! A driver asks [`Session::next`] what to do, does it, and reports how it went; the session decides
//! what follows. It opens no socket and reads no clock: the driver passes the time, and a random
//! number where a wait has to be spread.
//!
//! Two things hold whatever happens in between. A session that starts with a finished update that was
//! never acknowledged offers it before anything else. And an update is only given up when the server
//! has answered what became of it: every other failure is tried again.

use std::time::Duration;

use super::{
    Assignment, Backoff, Blame, ChunkSet, CommitStatus, ErrorCode, FinalAdapter, Refusal, Request,
    Response, RoundAssignment, UploadOffer,
};

/// A moment, as the time since another one that the driver chose and keeps.
pub type Time = Duration;

/// What the driver is to do next.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Nothing before this moment.
    Wait(Time),
    /// Send [`Request::CheckIn`] with the device's state and give the answer to
    /// [`Session::answered`].
    CheckIn,
    /// Bring what the assignment names and the device lacks, then call [`Session::fetched`].
    Fetch(Box<RoundAssignment>),
    /// Bring what the federation ended with, then call [`Session::received`].
    Receive(Box<FinalAdapter>),
    /// Train, make the update durable, then call [`Session::trained`].
    Train(Box<RoundAssignment>),
    /// Send this request and give the answer to [`Session::answered`].
    Ask(Request),
    /// Send these chunks of the update with [`Request::UploadChunk`], then call [`Session::sent`].
    Send(Box<UploadOffer>, ChunkSet),
    /// Nothing ever again.
    End(Ending),
}

/// Why a session is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The federation is done.
    Finished,
    /// The server will not have this device.
    Refused(Refusal),
}

/// What the driver must or may want to know about an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The device got work.
    Assigned(Box<RoundAssignment>),
    /// There is no work now, for this reason where there is one.
    Idle(Option<String>),
    /// What became of an update is known: what was kept for it can go.
    Settled(Box<UploadOffer>, CommitStatus),
    /// The server could not do what was asked; the session tries again.
    Refused(Refusal),
    /// The assignment is void: what was fetched or trained for it is of no use.
    Dropped(Refusal),
}

#[derive(Debug, Clone)]
enum State {
    /// To check in.
    Free,
    Fetching(Box<RoundAssignment>),
    Training(Box<RoundAssignment>),
    /// The federation is done; to bring its adapter.
    Receiving(Box<FinalAdapter>),
    /// To learn what the server lacks of the update.
    Offering(Box<UploadOffer>),
    Sending(Box<UploadOffer>, ChunkSet),
    /// To learn what became of the update.
    Committing(Box<UploadOffer>),
    Over(Ending),
}

/// A device's side of the conversation.
#[derive(Debug, Clone)]
pub struct Session {
    state: State,
    not_before: Time,
    backoff: Backoff,
}

impl Session {
    /// A session that begins with `pending`, an update whose fate is not known, or by asking for
    /// work.
    pub fn new(pending: Option<UploadOffer>) -> Self {
        let state = match pending {
            Some(offer) => State::Offering(Box::new(offer)),
            None => State::Free,
        };
        Self { state, not_before: Time::ZERO, backoff: Backoff::default() }
    }

    /// What to do at the moment `now`. Asking changes nothing.
    pub fn next(&self, now: Time) -> Action {
        match &self.state {
            State::Over(ending) => Action::End(ending.clone()),
            _ if now < self.not_before => Action::Wait(self.not_before),
            State::Free => Action::CheckIn,
            State::Fetching(assignment) => Action::Fetch(assignment.clone()),
            State::Training(assignment) => Action::Train(assignment.clone()),
            State::Receiving(last) => Action::Receive(last.clone()),
            State::Offering(offer) => Action::Ask(Request::UploadBegin(offer.clone())),
            State::Sending(offer, chunks) => Action::Send(offer.clone(), chunks.clone()),
            State::Committing(offer) => Action::Ask(Request::Commit(offer.key.clone())),
        }
    }

    /// The server answered at the moment `now`. `random` is any random number.
    pub fn answered(&mut self, now: Time, random: u32, response: Response) -> Option<Event> {
        if let Response::Error(refusal) = response {
            return Some(self.refused(now, random, refusal));
        }
        let state = std::mem::replace(&mut self.state, State::Free);
        match (state, response) {
            (State::Free, Response::Assignment(assignment)) => {
                self.backoff.reset();
                self.assigned(now, assignment)
            }
            (State::Offering(offer), Response::Missing(chunks)) => {
                self.backoff.reset();
                self.state = match chunks.is_empty() {
                    true => State::Committing(offer),
                    false => State::Sending(offer, chunks),
                };
                None
            }
            (State::Committing(offer), Response::Missing(chunks)) => {
                // Chunks were lost between the server and its disk, or the network changes bytes:
                // without a wait this could go round and round.
                self.state = State::Sending(offer, chunks);
                self.wait(now, random);
                None
            }
            (State::Offering(offer) | State::Committing(offer), Response::Committed(status)) => {
                self.backoff.reset();
                Some(Event::Settled(offer, status))
            }
            (state, _) => {
                self.state = state;
                self.wait(now, random);
                Some(Event::Refused(Refusal {
                    code: ErrorCode::Malformed,
                    message: "the server's answer does not belong to the request".into(),
                    retry_milliseconds: None,
                }))
            }
        }
    }

    fn assigned(&mut self, now: Time, assignment: Assignment) -> Option<Event> {
        match assignment {
            Assignment::Wait { milliseconds } => {
                self.not_before = now + Duration::from_millis(milliseconds.into());
                Some(Event::Idle(None))
            }
            Assignment::Ineligible { reason, milliseconds } => {
                self.not_before = now + Duration::from_millis(milliseconds.into());
                Some(Event::Idle(Some(reason)))
            }
            Assignment::Round(assignment) => {
                self.state = State::Fetching(assignment.clone());
                Some(Event::Assigned(assignment))
            }
            Assignment::Finished(last) => {
                self.state = State::Receiving(last);
                None
            }
        }
    }

    /// The server refused what was asked, or closed the connection with a reason.
    fn refused(&mut self, now: Time, random: u32, refusal: Refusal) -> Event {
        if refusal.code.blame() != Blame::Device {
            self.wait(now, random);
            if let Some(milliseconds) = refusal.retry_milliseconds {
                let asked = now + Duration::from_millis(milliseconds.into());
                self.not_before = self.not_before.max(asked);
            }
            return Event::Refused(refusal);
        }
        let state = std::mem::replace(&mut self.state, State::Free);
        if refusal.code == ErrorCode::Revoked || matches!(state, State::Free | State::Over(_)) {
            self.state = State::Over(Ending::Refused(refusal.clone()));
            return Event::Refused(refusal);
        }
        self.wait(now, random);
        match state {
            // The server has forgotten that it was announced.
            State::Sending(offer, _) if refusal.code == ErrorCode::Unknown => {
                self.state = State::Offering(offer);
                Event::Refused(refusal)
            }
            State::Offering(offer) | State::Sending(offer, _) | State::Committing(offer) => {
                Event::Settled(offer, CommitStatus::Refused { reason: refusal.message })
            }
            State::Free
            | State::Fetching(_)
            | State::Training(_)
            | State::Receiving(_)
            | State::Over(_) => Event::Dropped(refusal),
        }
    }

    /// Everything that the assignment names is here.
    pub fn fetched(&mut self) {
        self.backoff.reset();
        self.state = match std::mem::replace(&mut self.state, State::Free) {
            State::Fetching(assignment) => State::Training(assignment),
            other => other,
        };
    }

    /// What the federation ended with is here, or is of no use here.
    pub fn received(&mut self) {
        if matches!(self.state, State::Receiving(_)) {
            self.state = State::Over(Ending::Finished);
        }
    }

    /// The update is trained and durable.
    pub fn trained(&mut self, offer: UploadOffer) {
        if matches!(self.state, State::Training(_)) {
            self.state = State::Offering(Box::new(offer));
        }
    }

    /// The chunks of [`Action::Send`] were sent; the server may have taken some for damaged.
    pub fn sent(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::Free) {
            State::Sending(offer, _) => State::Committing(offer),
            other => other,
        };
    }

    /// What was begun failed on its way: the network, or the server was restarted. What was to be
    /// sent is offered anew, since the server may have forgotten what it held.
    pub fn failed(&mut self, now: Time, random: u32) {
        self.wait(now, random);
        self.state = match std::mem::replace(&mut self.state, State::Free) {
            State::Sending(offer, _) | State::Committing(offer) => State::Offering(offer),
            other => other,
        };
    }

    /// The device cannot do what it was assigned: ask for work again after a while.
    pub fn gave_up(&mut self, now: Time, random: u32) {
        self.wait(now, random);
        if matches!(self.state, State::Fetching(_) | State::Training(_) | State::Receiving(_)) {
            self.state = State::Free;
        }
    }

    fn wait(&mut self, now: Time, random: u32) {
        self.not_before = now + self.backoff.next(random);
    }
}

#[cfg(test)]
mod tests;
