//! The state of a federation's current round.

use std::collections::BTreeMap;

use fleetune_core::protocol::{AttemptToken, DeviceId};

use super::{Mode, Rules};
use crate::seed::{Choice, generator};

/// Where a round stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for devices, since this moment.
    Gathering {
        /// When it began.
        since: u64,
    },
    /// Waiting for updates, until this moment.
    Collecting {
        /// When the time is over.
        deadline: u64,
    },
    /// Being aggregated: no update counts in it any more.
    Closing,
    /// There are no more rounds.
    Finished,
}

/// How it stands with a device's part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It trains.
    Training,
    /// It did not answer in time; should its update come while the round is open, it counts.
    Overdue,
    /// Its update counts.
    Reported,
    /// Its update was refused, or it left.
    Gone,
}

/// A device's part in a round that is not over for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Member {
    attempt: AttemptToken,
    /// The round whose adapter it trains on: the current one, or in buffered mode an earlier one.
    round: u32,
    standing: Standing,
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Give these devices a part in the round, which ends at `deadline`.
    Select {
        /// The devices, ascending.
        devices: Vec<DeviceId>,
        /// When the round's time is over.
        deadline: u64,
    },
    /// Give the round time until `deadline`, and look for others in place of who did not answer.
    Extend {
        /// When the round's time is over.
        deadline: u64,
    },
    /// Close the round: aggregate its updates.
    Close,
}

/// What an update that has come is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It counts in this round, its own if that is the one the device trained in.
    Counts {
        /// The round.
        round: u32,
    },
    /// It came too late.
    Late,
}

/// A federation's current round, as far as it is on the disk.
#[derive(Debug, Clone)]
pub struct RoundState {
    rules: Rules,
    seed: u64,
    epoch: u32,
    round: u32,
    phase: Phase,
    paused: bool,
    /// Devices that asked for work, and when.
    waiting: BTreeMap<DeviceId, u64>,
    members: BTreeMap<DeviceId, Member>,
    /// Updates that count in this round.
    reports: usize,
    /// Updates that came while this round was being aggregated and count in the next.
    early: usize,
}

impl RoundState {
    /// A round that waits for devices.
    pub fn new(rules: Rules, seed: u64, epoch: u32, round: u32, now: u64) -> Self {
        Self {
            rules,
            seed,
            epoch,
            round,
            phase: Phase::Gathering { since: now },
            paused: false,
            waiting: BTreeMap::new(),
            members: BTreeMap::new(),
            reports: 0,
            early: 0,
        }
    }

    /// Takes up a round that was under way: `deadline` as it was told the devices, but no further
    /// away than a whole round's time (the clock may have been changed meanwhile).
    pub fn restore(
        &mut self,
        members: impl IntoIterator<Item = (DeviceId, AttemptToken, u32, Standing)>,
        deadline: Option<u64>,
        now: u64,
    ) {
        for (device, attempt, round, standing) in members {
            self.reports += usize::from(standing == Standing::Reported);
            self.members.insert(device, Member { attempt, round, standing });
        }
        if let Some(deadline) = deadline {
            let deadline = deadline.min(now.saturating_add(self.rules.deadline));
            self.phase = Phase::Collecting { deadline };
        }
    }

    /// The round, from 1.
    pub fn round(&self) -> u32 {
        self.round
    }

    /// The epoch: how often the federation was rolled back.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Where the round stands.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The rules.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Whether the operator said to select no more.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Updates that count in the round so far.
    pub fn reports(&self) -> usize {
        self.reports
    }

    /// Devices of the round with this standing.
    pub fn count(&self, standing: Standing) -> usize {
        self.members.values().filter(|member| member.standing == standing).count()
    }

    /// Devices that asked for work lately and have none.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// What a device that asks for work is at already: the assignment, and the round whose adapter
    /// it starts from. Who asks is there again, and no longer overdue.
    pub fn resume(&mut self, device: DeviceId) -> Option<(AttemptToken, u32)> {
        let member = self.members.get_mut(&device)?;
        let at_it = matches!(member.standing, Standing::Training | Standing::Overdue);
        if !at_it || self.phase == Phase::Finished {
            return None;
        }
        member.standing = Standing::Training;
        Some((member.attempt, member.round))
    }

    /// Notes that a device asks for work. One that has had its part in the round waits for the next.
    pub fn check_in(&mut self, device: DeviceId, now: u64) {
        if !self.members.contains_key(&device) && self.phase != Phase::Finished {
            self.waiting.insert(device, now);
        }
    }

    /// What is to be done now, if anything.
    pub fn next_step(&mut self, now: u64) -> Option<Step> {
        let presence = self.rules.presence;
        self.waiting.retain(|_, asked| now.saturating_sub(*asked) <= presence);
        let Rules { target, minimum, mode, .. } = self.rules;
        let training = self.count(Standing::Training);
        match self.phase {
            Phase::Closing | Phase::Finished => None,
            _ if self.reports >= target => Some(Step::Close),
            Phase::Gathering { since } => {
                let waited = now.saturating_sub(since) >= self.rules.gather;
                let enough = match mode {
                    Mode::Buffered => 1,
                    Mode::Synchronous if waited => minimum,
                    Mode::Synchronous => self.rules.selected,
                };
                let deadline = now.saturating_add(self.rules.deadline);
                if self.waiting.len() < enough { None } else { self.selection(deadline) }
            }
            Phase::Collecting { deadline } if now >= deadline => {
                let deadline = now.saturating_add(self.rules.deadline);
                let enough = self.reports >= minimum;
                Some(if enough { Step::Close } else { Step::Extend { deadline } })
            }
            Phase::Collecting { deadline } => {
                let room = mode == Mode::Buffered || self.reports + training < target;
                let selection = if room { self.selection(deadline) } else { None };
                let nobody = training + self.count(Standing::Overdue) == 0;
                let done = nobody && self.reports >= minimum && mode == Mode::Synchronous;
                selection.or(done.then_some(Step::Close))
            }
        }
    }

    /// Devices to give work to, as many as there is room for.
    fn selection(&self, deadline: u64) -> Option<Step> {
        let reported = match self.rules.mode {
            // A buffer fills and fills again: who trains, not who has reported, takes up room.
            Mode::Buffered => 0,
            Mode::Synchronous => self.reports,
        };
        let busy = self.count(Standing::Training) + reported;
        let room = self.rules.selected.saturating_sub(busy);
        if self.paused || room == 0 {
            return None;
        }
        let present: Vec<DeviceId> = self.waiting.keys().copied().collect();
        let mut devices = present.clone();
        if present.len() > room {
            let place = [self.epoch.into(), self.round.into(), self.members.len() as u64];
            let mut random = generator(self.seed, Choice::Clients, &place);
            let chosen = rand::seq::index::sample(&mut random, present.len(), room);
            devices = chosen.into_iter().map(|index| present[index]).collect();
            devices.sort_unstable();
        }
        (!devices.is_empty()).then_some(Step::Select { devices, deadline })
    }

    /// Devices were given a part in the round.
    pub fn select(&mut self, members: &[(DeviceId, AttemptToken)], deadline: u64) {
        for &(device, attempt) in members {
            self.waiting.remove(&device);
            let standing = Standing::Training;
            self.members.insert(device, Member { attempt, round: self.round, standing });
        }
        self.phase = Phase::Collecting { deadline };
    }

    /// The round was given more time.
    pub fn extend(&mut self, deadline: u64) {
        for member in self.members.values_mut() {
            if member.standing == Standing::Training {
                member.standing = Standing::Overdue;
            }
        }
        self.phase = Phase::Collecting { deadline };
    }

    /// What an update is worth that comes now from an assignment of `round` in `epoch`.
    pub fn judge(&self, epoch: u32, round: u32) -> Verdict {
        if epoch != self.epoch || round > self.round || self.phase == Phase::Finished {
            return Verdict::Late;
        }
        match self.rules.mode {
            Mode::Synchronous => {
                let open = matches!(self.phase, Phase::Collecting { .. });
                if open && round == self.round && self.reports < self.rules.target {
                    return Verdict::Counts { round };
                }
                Verdict::Late
            }
            Mode::Buffered => {
                let current = self.round + u32::from(self.phase == Phase::Closing);
                if current - round <= self.rules.max_staleness {
                    return Verdict::Counts { round: current };
                }
                Verdict::Late
            }
        }
    }

    /// A device's update counts in round `counts_in`.
    pub fn reported(&mut self, device: DeviceId, attempt: AttemptToken, counts_in: u32) {
        if counts_in > self.round {
            // It came while the round is being aggregated, and waits for the next.
            self.early += 1;
            self.members.remove(&device);
            return;
        }
        self.reports += 1;
        // A device that was late has a part in this round now, and no other in it.
        let part = Member { attempt, round: counts_in, standing: Standing::Reported };
        self.members.insert(device, part);
        self.waiting.remove(&device);
    }

    /// A device has no part in the round any more: its update was refused, it left or was revoked.
    pub fn gone(&mut self, device: DeviceId) {
        self.waiting.remove(&device);
        if let Some(member) = self.members.get_mut(&device) {
            self.reports -= usize::from(member.standing == Standing::Reported);
            member.standing = Standing::Gone;
        }
    }

    /// The round is being aggregated.
    pub fn close(&mut self) {
        self.phase = Phase::Closing;
    }

    /// The round cannot be closed after all, and is what it was, with `deadline` if it had one.
    pub fn reopen(&mut self, deadline: Option<u64>, now: u64) {
        self.phase = match deadline {
            Some(deadline) => Phase::Collecting { deadline },
            None => Phase::Gathering { since: now },
        };
        self.reports += std::mem::take(&mut self.early);
    }

    /// The oldest round whose updates count once the current one is closed.
    pub fn oldest_after_close(&self) -> u32 {
        match self.rules.mode {
            Mode::Synchronous => self.round + 1,
            Mode::Buffered => (self.round + 1).saturating_sub(self.rules.max_staleness),
        }
    }

    /// The round is closed; on to the next.
    pub fn advance(&mut self, now: u64) {
        let oldest = self.oldest_after_close();
        self.members.retain(|_, member| {
            let at_it = matches!(member.standing, Standing::Training | Standing::Overdue);
            at_it && member.round >= oldest
        });
        self.round += 1;
        self.reports = std::mem::take(&mut self.early);
        self.phase = Phase::Gathering { since: now };
    }

    /// There are no more rounds.
    pub fn finish(&mut self) {
        self.phase = Phase::Finished;
        self.waiting.clear();
    }

    /// Whether to select devices.
    pub fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
    }
}
