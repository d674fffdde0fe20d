//! The end of a round: its updates become the next shared adapter.
//!
//! Updates are read again from the disk and summed in order of device and round, so that the result
//! has the same bits in whatever order they came and however often the server was killed before.
//! Memory holds the sums and one update, whatever their number.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use fleetune_core::adapter::Adapter;
use fleetune_core::client::TrainingReport;
use fleetune_core::protocol::BlobId;
use serde::{Deserialize, Serialize};

use super::Coordinator;
use super::error::FederationError;
use super::evaluate::{has_stalled, is_due};
use super::federation::{Federation, Starts, Update, losses};
use super::start::{Start, store_round};
use crate::aggregate::ServerState;
use crate::fault;
use crate::round::{Phase, Rules, Step};
use crate::store::{EvaluationRow, MemberRow, Outcome, Status, StoreError, SummaryRow};

/// What a round did, as the store keeps it for people.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RoundSummary {
    /// Updates that count in it.
    pub updates: usize,
    /// Of those, updates that started from an earlier round's adapter.
    pub folded: usize,
    /// Rows they were trained on.
    pub rows: u64,
    /// Bytes of the updates, as they came.
    pub bytes: u64,
    /// Mean training loss, by what the loss is a mean over; nats.
    pub loss: Option<f64>,
    /// L2 norm of the step that the shared adapter took.
    pub step_norm: f64,
    /// Time for the aggregation, seconds.
    pub seconds: f64,
}

impl RoundSummary {
    /// As the store keeps it.
    pub(super) fn row(&self, round: u32, closed_at: u64) -> SummaryRow {
        // A struct of numbers becomes JSON without fail.
        let summary = serde_json::to_string(self).unwrap_or_default();
        SummaryRow { round, summary, closed_at, kept: true }
    }
}

impl Coordinator {
    /// Closes the federation's round if it asks for that. Whether it did.
    ///
    /// # Errors
    /// When updates cannot be aggregated or the store fails; the round is then as it was.
    pub(super) fn close_if_due(&self, federation: &Federation) -> Result<bool, FederationError> {
        {
            let mut current = federation.lock();
            if current.state.next_step(self.clock.now()) != Some(Step::Close) {
                return Ok(false);
            }
            current.state.close();
        }
        let closed = self.close(federation);
        if closed.is_err() {
            // Open again as the store knows it, so that nothing that was told a device is undone.
            let mut current = federation.lock();
            if current.state.phase() == Phase::Closing {
                let deadline = current.row.deadline;
                current.state.reopen(deadline, self.clock.now());
            }
        }
        closed.map(|()| true)
    }

    fn close(&self, federation: &Federation) -> Result<(), FederationError> {
        let started = Instant::now();
        let (name, training) = (federation.name(), &federation.config.training);
        let (epoch, round, oldest, starts) = {
            let current = federation.lock();
            let oldest = current.state.oldest_after_close();
            (current.row.epoch, current.row.round, oldest, current.starts.clone())
        };
        let missing = || FederationError::NoRound { name: name.to_owned(), round: round - 1 };
        let start = starts.get(&round).ok_or_else(missing)?;
        let state = ServerState::from_bytes(&self.store.blobs().read(start.row.state)?)?;
        let mut sums = federation.aggregator.begin(&state)?;
        let mut summary = RoundSummary::default();
        let (mut loss, mut terms) = (0.0, 0);
        let members = self.store.counting(name, epoch, round)?;
        for member in &members {
            let Some(origin) = starts.get(&member.round) else { continue };
            let Some((bytes, update)) = self.read_update(federation, member, origin)? else {
                continue;
            };
            let Update { start, mut adapter, control } = update;
            summary.bytes += bytes;
            if member.round != round {
                // FedBuff: the change that was made to an older adapter counts less.
                let weight = Rules::staleness_weight(round - member.round) as f32;
                adapter.zip_apply(&start, |w, g| *w = g + (*w - g) * weight)?;
                summary.folded += 1;
            }
            sums.accumulate_from(&start, &adapter, member.samples, control.as_ref())?;
            if let Some(report) = report_of(member) {
                loss += report.loss * report.loss_terms() as f64;
                terms += report.loss_terms();
            }
            fault::point("during-aggregate");
        }
        summary.updates = sums.clients();
        summary.rows = sums.samples();
        summary.loss = (terms > 0).then(|| loss / terms as f64);
        let (next, aggregated) = federation.aggregator.finish(&state, sums)?;
        summary.step_norm = aggregated.step_norm;
        summary.seconds = started.elapsed().as_secs_f64();
        let mut versions = federation.versions(&start.row, &self.store)?;
        if let Some(versions) = &mut versions {
            versions.publish(&next)?;
        }
        let row = store_round(&self.store, round, &next, versions.as_ref())?;
        let did = summary.row(round, self.clock.now());
        fault::point("after-state-written");
        let finished = (round >= training.rounds).then(|| format!("all {round} rounds are done"));
        self.store.close_round(name, epoch, &row, &did, oldest, finished.as_deref())?;
        fault::point("after-round-closed");

        let mut current = federation.lock();
        current.row.round = round + 1;
        current.row.deadline = None;
        federation.load_start(&mut current, round + 1, &self.store, &self.offers)?;
        self.forget_starts(&mut current.starts, oldest);
        if let Some(reason) = finished {
            (current.row.status, current.row.reason) = (Status::Finished, Some(reason));
            current.state.finish();
        } else {
            current.state.advance(self.clock.now());
        }
        drop(current);
        tracing::info!(
            federation = name,
            round,
            updates = summary.updates,
            loss = summary.loss,
            seconds = summary.seconds,
            "round closed"
        );
        self.metrics.round_closed(name, &summary);
        for blob in members.iter().filter_map(|member| member.blob) {
            // What stays is removed when the server starts.
            let _ = self.store.blobs().remove(blob);
        }
        self.prune(federation, epoch, round)
    }

    /// An update from the disk, with the bytes that it took. `None` where the file was damaged there: it is recorded and left out,
    /// for nobody can bring it back.
    fn read_update(
        &self,
        federation: &Federation,
        member: &MemberRow,
        origin: &Arc<Start>,
    ) -> Result<Option<(u64, Update)>, FederationError> {
        let Some(blob) = member.blob else { return Ok(None) };
        let problem = match self.store.blobs().read(blob) {
            Ok(bytes) => match federation.examine(&bytes, origin) {
                Ok(update) => return Ok(Some((bytes.len() as u64, update))),
                Err(problem) => problem,
            },
            Err(error @ StoreError::Blob { .. }) => error.to_string(),
            Err(error) => return Err(error.into()),
        };
        let (device, round) = (member.device.to_string(), member.round);
        tracing::error!(federation = federation.name(), round, device, problem, "update lost");
        let outcome = Outcome::Refused("its file was damaged on the server's disk".into());
        let row = MemberRow { outcome, counts_in: None, ..member.clone() };
        self.store.settle(&row, self.clock.now())?;
        federation.lock().state.gone(member.device);
        Ok(None)
    }

    pub(super) fn forget_starts(&self, starts: &mut Starts, oldest: u32) {
        let old: Vec<u32> = starts.range(..oldest).map(|(&round, _)| round).collect();
        for round in old {
            if let Some(start) = starts.remove(&round) {
                // A later round may lead on from the same differences.
                let needed: BTreeSet<BlobId> = starts.values().flat_map(|s| s.blobs()).collect();
                start.blobs().difference(&needed).for_each(|&blob| self.offers.remove(blob));
            }
        }
    }

    /// Removes what rounds left that are too old to roll back to.
    fn prune(
        &self,
        federation: &Federation,
        epoch: u32,
        round: u32,
    ) -> Result<(), FederationError> {
        let keep = federation.config.rounds.keep;
        if keep == 0 || round < keep {
            return Ok(());
        }
        for blob in self.store.prune_rounds(federation.name(), epoch, round - keep)? {
            let _ = self.store.blobs().remove(blob);
        }
        Ok(())
    }

    /// Writes the newest adapter as a PEFT folder, and measures it where that is due.
    ///
    /// # Errors
    /// When the folder cannot be written or the evaluation fails.
    pub(super) fn look_at_newest(&self, federation: &Federation) -> Result<(), FederationError> {
        let (epoch, round, start) = {
            let current = federation.lock();
            let start = current.starts.get(&current.row.round).cloned();
            (current.row.epoch, current.row.round - 1, start)
        };
        let Some(start) = start else { return Ok(()) };
        let adapter =
            Adapter { config: federation.lora.clone(), parameters: (*start.adapter).clone() };
        let folder = self.store.folder().join("adapters").join(federation.name());
        adapter.save_for_base(&folder, Some(federation.model_name()))?;
        let training = &federation.config.training;
        let Some(evaluator) = federation.evaluator() else { return Ok(()) };
        let known = self.store.evaluations(federation.name(), epoch)?;
        if !is_due(round, training.rounds, training.eval_every)
            || known.iter().any(|row| row.round == round)
        {
            return Ok(());
        }
        let found = {
            let mut evaluator = evaluator.lock().unwrap_or_else(PoisonError::into_inner);
            evaluator.evaluate(&adapter, round)
        };
        let Some(found) = found.map_err(|error| FederationError::Evaluation(error.to_string()))?
        else {
            return Ok(());
        };
        let text = serde_json::to_string(&found).unwrap_or_default();
        let row = EvaluationRow { round, found: text };
        self.store.set_evaluation(federation.name(), epoch, &row)?;
        self.metrics.evaluated(federation.name(), found.score.loss);
        tracing::info!(federation = federation.name(), round, loss = found.score.loss, "evaluated");
        self.stop_if_stalled(federation, epoch)
    }

    fn stop_if_stalled(&self, federation: &Federation, epoch: u32) -> Result<(), FederationError> {
        let losses = losses(&self.store, federation.name(), epoch)?;
        let patience = federation.config.rounds.patience;
        if !has_stalled(&losses, patience) {
            return Ok(());
        }
        let reason = format!("{patience} evaluations brought no improvement");
        self.store.set_status(federation.name(), Status::Finished, Some(&reason))?;
        let mut current = federation.lock();
        current.state.finish();
        tracing::info!(federation = federation.name(), reason, "finished");
        (current.row.status, current.row.reason) = (Status::Finished, Some(reason));
        Ok(())
    }
}

fn report_of(member: &MemberRow) -> Option<TrainingReport> {
    serde_json::from_str(member.report.as_deref()?).ok()
}
