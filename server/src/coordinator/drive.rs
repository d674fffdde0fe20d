//! A federation's driver: deadlines, closings, the operator's orders.

use std::collections::HashSet;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use fleetune_core::protocol::DeviceId;

use super::Coordinator;
use super::error::{FederationError, RequestError};
use super::federation::{Current, Federation};
use crate::interrupt::Interrupt;
use crate::round::{Mode, Phase, RoundState};
use crate::store::{MemberRow, Order, OrderKind, Outcome, Status};

/// How often a driver looks at the clock and for orders.
const TICK: Duration = Duration::from_millis(200);
/// How long a driver waits after a failure, before it tries again.
const AFTER_FAILURE: Duration = Duration::from_secs(5);

/// What a federation's thread does until the interrupt is set.
type Work = fn(&Coordinator, &Federation, &Interrupt);

impl Coordinator {
    /// Starts a driver for each federation, and a thread for its suites of questions where it has
    /// any. They end when `interrupt` is set.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn drive(
        self: &Arc<Self>,
        interrupt: &Interrupt,
    ) -> Result<Vec<JoinHandle<()>>, FederationError> {
        let start = |task: &str, federation: &Arc<Federation>, work: Work| {
            let (coordinator, federation) = (Arc::clone(self), Arc::clone(federation));
            let interrupt = interrupt.clone();
            thread::Builder::new()
                .name(format!("{task} of {}", federation.name()))
                .spawn(move || work(&coordinator, &federation, &interrupt))
                .map_err(|error| FederationError::System(error.to_string()))
        };
        let mut threads = Vec::new();
        for federation in self.federations() {
            threads.push(start("rounds", federation, Self::drive_one)?);
            if federation.questions().is_some() {
                threads.push(start("suites", federation, Self::ask_suites)?);
            }
        }
        Ok(threads)
    }

    fn drive_one(&self, federation: &Federation, interrupt: &Interrupt) {
        let mut revoked = HashSet::new();
        let mut newest_seen = false;
        while !interrupt.is_set() {
            let worked = self.drive_once(federation, &mut revoked, &mut newest_seen);
            match worked {
                Ok(()) => federation.wait(TICK),
                Err(error) => {
                    tracing::error!(federation = federation.name(), "{error}");
                    self.metrics.failed();
                    federation.wait(AFTER_FAILURE);
                }
            }
        }
    }

    fn drive_once(
        &self,
        federation: &Federation,
        revoked: &mut HashSet<DeviceId>,
        newest_seen: &mut bool,
    ) -> Result<(), FederationError> {
        for order in self.store.orders()? {
            if order.federation == federation.name() {
                self.carry_out(federation, &order)?;
                *newest_seen = false;
            }
        }
        self.exclude_revoked(federation, revoked)?;
        {
            let mut current = federation.lock();
            let step = federation.step(&mut current, &self.store, self.clock.now());
            step.map_err(|error| match error {
                RequestError::Store(error) => FederationError::Store(error),
                other => FederationError::System(other.to_string()),
            })?;
            current.wanted = false;
        }
        let closed = self.close_if_due(federation)?;
        if closed || !*newest_seen {
            *newest_seen = false;
            self.look_at_newest(federation)?;
            *newest_seen = true;
        }
        if closed {
            // Updates may have come meanwhile.
            federation.wake(&mut federation.lock());
        }
        Ok(())
    }

    fn carry_out(&self, federation: &Federation, order: &Order) -> Result<(), FederationError> {
        let name = federation.name();
        let mut current = federation.lock();
        match order.kind {
            OrderKind::Pause | OrderKind::Resume if current.row.status == Status::Finished => {}
            OrderKind::Pause => {
                let reason = "the operator paused it";
                self.store.set_status(name, Status::Paused, Some(reason))?;
                (current.row.status, current.row.reason) = (Status::Paused, Some(reason.into()));
                current.state.set_paused(true);
            }
            OrderKind::Resume => {
                self.store.set_status(name, Status::Running, None)?;
                (current.row.status, current.row.reason) = (Status::Running, None);
                current.state.set_paused(false);
            }
            OrderKind::Rollback { round } => self.roll_back(federation, &mut current, round)?,
        }
        tracing::info!(federation = name, order = ?order.kind, "order carried out");
        Ok(self.store.order_done(order.id)?)
    }

    fn roll_back(
        &self,
        federation: &Federation,
        current: &mut Current,
        round: u32,
    ) -> Result<(), FederationError> {
        let (name, now) = (federation.name(), self.clock.now());
        let known = self.store.round(name, current.row.epoch, round)?.is_some();
        if !known || round >= current.row.round {
            tracing::warn!(federation = name, round, "no such round to go back to");
            return Ok(());
        }
        self.store.roll_back(name, current.row.epoch, round, now)?;
        let row = self.store.federation(name)?;
        current.row =
            row.ok_or_else(|| FederationError::NoRound { name: name.to_owned(), round })?;
        let (rules, seed) = (*current.state.rules(), federation.config.training.seed);
        current.state = RoundState::new(rules, seed, current.row.epoch, current.row.round, now);
        current.state.set_paused(current.row.status == Status::Paused);
        self.forget_starts(&mut current.starts, u32::MAX);
        let first = match rules.mode {
            Mode::Synchronous => current.row.round,
            Mode::Buffered => current.row.round.saturating_sub(rules.max_staleness).max(1),
        };
        for round in first..=current.row.round {
            // Older ones may have been pruned; nothing of this epoch starts from them.
            let loaded = federation.load_start(current, round, &self.store, &self.offers);
            if round == current.row.round {
                loaded?;
            }
        }
        Ok(())
    }

    /// Takes devices that were revoked out of the round, and their updates that are not aggregated
    /// yet.
    fn exclude_revoked(
        &self,
        federation: &Federation,
        known: &mut HashSet<DeviceId>,
    ) -> Result<(), FederationError> {
        for device in self.store.revoked()? {
            if known.contains(&device) {
                continue;
            }
            let mut current = federation.lock();
            if current.state.phase() == Phase::Closing {
                // What is being aggregated stays as it is; the next look is after it.
                continue;
            }
            known.insert(device);
            let (epoch, round) = (current.row.epoch, current.row.round);
            let oldest = round.saturating_sub(current.state.rules().max_staleness);
            for member in self.store.members_since(federation.name(), epoch, oldest)? {
                let open = member.outcome == Outcome::Training || member.counts_in == Some(round);
                if member.device == device && open {
                    let outcome = Outcome::Refused("the device was revoked".into());
                    let row = MemberRow { outcome, counts_in: None, ..member };
                    self.store.settle(&row, self.clock.now())?;
                    let (federation, device) = (federation.name(), device.to_string());
                    tracing::info!(federation, round, device, "revoked device left out");
                }
            }
            current.state.gone(device);
        }
        Ok(())
    }
}
