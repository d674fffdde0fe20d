//! One run: rounds of one algorithm, from the first or from where the run was left.
//!
//! A round's checkpoint is the moment it counts. Whatever a round writes before (metrics, control
//! variates) is dropped when the run resumes from the checkpoint before, and everything a round
//! does follows from that checkpoint and the round's number. So a run that is killed anywhere and
//! resumed ends with the same adapter, bit by bit, as one that was not.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use fleetune_core::adapter::{Adapter, AdapterError, ParameterSet};
use fleetune_core::client::{ClientError, DeviceMemory, RoundOutcome};

use super::assignment::{self, Assignment, TrainingFleet};
use super::checkpoint::{Checkpoint, Checkpoints, ServerFiles};
use super::client_store::ClientStore;
use super::config::RunConfig;
use super::crew::{Crew, Limits, TeamTrainer, Trained};
use super::environment::Environment;
use super::error::SimulateError;
use super::evaluation::measure;
use super::journal::{ClientRecord, EvaluationRecord, Journal, Record, RoundRecord, SuiteRecord};
use super::observer::{Event, Observer, tell};
use super::schedule::clients_of_round;
use super::server::Server;
use super::suites;
use crate::aggregate::Algorithm;
use crate::report::text::plural;
use crate::seed::{Choice, derived};

/// The metrics file's name in a run's folder.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// What an evaluation found.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// The test on held-out rows.
    pub evaluation: Option<EvaluationRecord>,
    /// The suites.
    pub suites: Vec<SuiteRecord>,
}

/// Runs the rounds of `config` in `folder` until all are done. `baseline` is what was found before
/// training where another run of the same beginning has found it.
///
/// # Errors
/// When something cannot be read or written, a client fails, or the observer asks to stop; the run
/// can then be resumed.
pub fn run(
    environment: &Environment<'_>,
    config: &RunConfig,
    folder: &Path,
    baseline: Option<Found>,
    observer: &mut dyn Observer,
) -> Result<(), SimulateError> {
    let checkpoints = Checkpoints::open(&folder.join("checkpoints"), config.keep_checkpoints)?;
    let latest = checkpoints.latest()?;
    let metrics = folder.join(METRICS_FILE);
    let journal = Journal::open(&metrics, latest.as_ref().map(|checkpoint| checkpoint.round))?;
    let started = Instant::now();
    let mut federation = match latest {
        Some(latest) => {
            Federation::resume(environment, config, folder, checkpoints, journal, latest)?
        }
        None => {
            let mut federation =
                Federation::begin(environment, config, folder, checkpoints, journal)?;
            federation.first_checkpoint(baseline, started, observer)?;
            federation
        }
    };
    let (algorithm, rounds) = (config.algorithm.to_string(), config.rounds);
    let clients = clients(config, 0).len() as u32;
    tell(observer, Event::Started { algorithm, clients, done: federation.done, rounds })?;
    while federation.done < config.rounds {
        federation.round(observer)?;
    }
    Ok(())
}

/// What a client has done so far.
#[derive(Debug, Clone, Copy, Default)]
struct Participation {
    /// Rounds that it has taken part in.
    rounds: u32,
    /// Index of the last of them.
    last: Option<u32>,
}

/// A client that takes part in a round, as its record needs it.
#[derive(Debug, Clone, Copy)]
struct Served {
    id: u32,
    rank: usize,
    bytes_down: usize,
}

impl Served {
    fn of(assignment: &Assignment) -> Self {
        let Assignment { client, plan, download, .. } = assignment;
        Self { id: *client, rank: plan.lora.rank, bytes_down: download.byte_len() }
    }
}

/// A run in progress.
struct Federation<'a> {
    environment: &'a Environment<'a>,
    config: &'a RunConfig,
    folder: PathBuf,
    checkpoints: Checkpoints,
    journal: Journal,
    /// SCAFFOLD's clients' memory.
    controls: Option<ClientStore>,
    /// What uploads have left out, by client.
    residuals: Option<ClientStore>,
    server: Server,
    crew: Crew<'a, Assignment>,
    /// The shared adapter; its parameters are those of `server`.
    adapter: Adapter,
    /// Rounds done.
    done: u32,
    /// Time spent on them.
    elapsed_seconds: f64,
    /// What each client has done so far, of those that have taken part.
    histories: HashMap<u32, Participation>,
    /// The LoRA rank of each client.
    ranks: Vec<usize>,
    /// Clients of whose skipped rows the user has been told.
    told_of: HashSet<u32>,
}

impl<'a> Federation<'a> {
    fn begin(
        environment: &'a Environment<'a>,
        config: &'a RunConfig,
        folder: &Path,
        checkpoints: Checkpoints,
        journal: Journal,
    ) -> Result<Self, SimulateError> {
        let adapter = match environment.initial_adapter {
            Some(adapter) => adapter.clone(),
            None => {
                let lora = config.lora().map_err(AdapterError::from)?;
                let seed = derived(config.seed, Choice::Adapter, &[]);
                Adapter::new(lora, environment.device.decoder.config(), seed)?
            }
        };
        let beginning =
            Checkpoint { round: 0, elapsed_seconds: 0.0, adapter, server: ServerFiles::default() };
        Self::resume(environment, config, folder, checkpoints, journal, beginning)
    }

    fn resume(
        environment: &'a Environment<'a>,
        config: &'a RunConfig,
        folder: &Path,
        checkpoints: Checkpoints,
        journal: Journal,
        checkpoint: Checkpoint,
    ) -> Result<Self, SimulateError> {
        let Checkpoint { round, elapsed_seconds, adapter, server } = checkpoint;
        adapter.check_against(environment.device.decoder.config())?;
        // A run may have been left between a checkpoint and the removal of older ones.
        let oldest = checkpoints.prune()?;
        let controls = match config.algorithm {
            Algorithm::Scaffold => Some(ClientStore::open(&folder.join("clients"), oldest, round)?),
            _ => None,
        };
        let server = Server::new(config, &adapter.parameters, &server, round)?;
        let memory = &environment.device.memory;
        let limits = Limits {
            at_once: NonZeroUsize::new(config.clients_at_once),
            per_pass: NonZeroUsize::new(config.clients_per_pass),
            worth_sharing: memory.clients,
            clients: clients(config, round).len(),
            client_bytes: memory.peak_bytes,
        };
        let others = environment.workers.iter().map(|worker| worker as &dyn TeamTrainer<_>);
        let crew = Crew::new(rayon::current_num_threads(), limits, others.collect())?;
        let keeps_residuals = server.shares() && config.codec.needs_feedback();
        let residuals = keeps_residuals
            .then(|| ClientStore::open(&folder.join("residuals"), oldest, round))
            .transpose()?;
        let mut histories = HashMap::new();
        for past in 0..round {
            take_part(&mut histories, clients(config, past), past);
        }
        Ok(Self {
            environment,
            config,
            folder: folder.to_owned(),
            checkpoints,
            journal,
            controls,
            residuals,
            server,
            crew,
            adapter,
            done: round,
            elapsed_seconds,
            histories,
            ranks: config.client_ranks(),
            told_of: HashSet::new(),
        })
    }

    /// Measures the base model and writes the checkpoint before the first round.
    fn first_checkpoint(
        &mut self,
        baseline: Option<Found>,
        started: Instant,
        observer: &mut dyn Observer,
    ) -> Result<(), SimulateError> {
        let found = match baseline {
            Some(baseline) => baseline,
            None => self.evaluate(0, self.config.answers, observer)?,
        };
        self.record(found, observer)?;
        self.commit(started.elapsed().as_secs_f64(), observer)
    }

    /// One round, to its checkpoint.
    fn round(&mut self, observer: &mut dyn Observer) -> Result<(), SimulateError> {
        let started = Instant::now();
        // Rounds count from 1 for people, from 0 in schedules.
        let index = self.done;
        let round = index + 1;
        let clients = clients(self.config, index);
        let global = self.adapter.parameters.clone();
        let learning_rate = self.config.learning_rate(round);
        let mut opened = self.server.begin(round)?;
        let mut record = RoundRecord {
            round,
            clients: Vec::with_capacity(clients.len()),
            clients_skipped: Vec::new(),
            clients_per_pass: 0,
            learning_rate,
            loss: None,
            change_norm: 0.0,
            product: None,
            tokens: 0,
            bytes_up: 0,
            bytes_down: 0,
            seconds: 0.0,
            elapsed_seconds: 0.0,
        };
        let (mut loss_sum, mut loss_terms) = (0.0, 0);
        let mut waiting = &clients[..];
        while !waiting.is_empty() {
            let (size, members) = self.crew.wave(waiting.len());
            let (wave, later) = waiting.split_at(size);
            waiting = later;
            let (shared, trained) = self.train(round, wave, members, observer)?;
            record.clients_per_pass = record.clients_per_pass.max(shared);
            for (client, trained) in trained {
                let Some((outcome, update)) = self.received(round, client, trained)? else {
                    record.clients_skipped.push(client.id);
                    continue;
                };
                let terms = outcome.report.loss_terms();
                loss_sum += update.loss * terms as f64;
                loss_terms += terms;
                let start = self.server.shared(round, update.rank)?;
                opened.accumulate(round, start, outcome, update.rows)?;
                record.clients.push(client.id);
                record.tokens += update.tokens;
                record.bytes_up += update.bytes_up;
                record.bytes_down += update.bytes_down;
                self.journal.append(&Record::Client(update.clone()))?;
                tell(observer, Event::Updated(&update))?;
            }
        }
        record.product = self.server.finish(round, opened)?;
        self.adapter.parameters = self.server.adapter();
        record.change_norm = distance(&self.adapter.parameters, &global)?;
        record.loss = (loss_terms > 0).then(|| loss_sum / loss_terms as f64);
        record.seconds = started.elapsed().as_secs_f64();
        record.elapsed_seconds = self.elapsed_seconds + record.seconds;
        self.journal.append(&Record::Round(record.clone()))?;
        tell(observer, Event::Aggregated(&record))?;

        self.evaluate_if_due(round, observer)?;
        self.done = round;
        take_part(&mut self.histories, clients, index);
        self.commit(started.elapsed().as_secs_f64(), observer)
    }

    /// Lets the clients of a wave train, in teams of at most `members` that share passes; yields the
    /// size of the largest team, too.
    fn train(
        &mut self,
        round: u32,
        wave: &[u32],
        members: usize,
        observer: &mut dyn Observer,
    ) -> Result<(usize, Vec<(Served, Trained)>), SimulateError> {
        let assign = |&client: &u32| self.assign(round, client);
        let assignments = wave.iter().map(assign).collect::<Result<Vec<_>, _>>()?;
        let served: Vec<Served> = assignments.iter().map(Served::of).collect();
        let mut teams: Vec<Vec<Assignment>> = Vec::new();
        for assignment in assignments {
            match teams.last_mut() {
                Some(team) if team.len() < members && team[0].goes_with(&assignment) => {
                    team.push(assignment);
                }
                _ => teams.push(vec![assignment]),
            }
        }
        let largest = teams.iter().map(Vec::len).max().unwrap_or(0);
        let fleet = TrainingFleet::of(self.environment);
        let trained = self.crew.train(
            teams,
            |team, watch| assignment::train(team, &fleet, watch),
            |i, step| match tell(observer, Event::Stepped { round, client: wave[i], step }) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            },
        );
        let trained =
            trained.map_err(|source| match self.environment.device.cancel.is_cancelled() {
                // Who interrupts a run may end its workers as well.
                true => SimulateError::Stopped,
                false => SimulateError::Worker { round, source },
            })?;
        Ok((largest, served.into_iter().zip(trained).collect()))
    }

    /// What client `client` is given.
    fn assign(&self, round: u32, client: u32) -> Result<Assignment, SimulateError> {
        let kept = |store: &Option<ClientStore>| match store {
            Some(store) => store.load(client),
            None => Ok(None),
        };
        let (control, residual) = (kept(&self.controls)?, kept(&self.residuals)?);
        let history = self.histories.get(&client).copied().unwrap_or_default();
        let rank = self.ranks[client as usize];
        let (download, held) = self.server.download(round, rank, history.last)?;
        let lora = self.adapter.config.at_rank(rank);
        let plan = self.config.round_plan(lora, self.server.trained(), round, u64::from(client));
        let rows = self.environment.fleet.rows_of(client);
        let order = self.config.row_schedule().rows(client, round - 1, history.rounds, rows);
        let memory = DeviceMemory { control, residual, held };
        Ok(Assignment { client, plan, download, memory, order })
    }

    /// Keeps what a client remembers, and puts its part of the round on record. `None` where its rows
    /// have nothing to learn.
    fn received(
        &mut self,
        round: u32,
        served: Served,
        trained: Trained,
    ) -> Result<Option<(RoundOutcome, ClientRecord)>, SimulateError> {
        let Served { id: client, rank, bytes_down } = served;
        let Trained { outcome, seconds } = trained;
        let drawn = match self.environment.fleet.rows_of(client) {
            0 => 0,
            _ => self.config.row_schedule().rows_per_round as u64,
        };
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(ClientError::NothingToLearn) => {
                self.tell_of_skipped(client, drawn, drawn);
                return Ok(None);
            }
            Err(ClientError::Stopped) => return Err(SimulateError::Stopped),
            Err(source) => return Err(SimulateError::Client { round, client, source }),
        };
        if let (Some(controls), Some(control)) = (&self.controls, &outcome.memory.control) {
            controls.save(client, round, control)?;
        }
        if let (Some(residuals), Some(residual)) = (&self.residuals, &outcome.memory.residual) {
            residuals.save(client, round, residual)?;
        }
        let report = outcome.report;
        let rows_skipped = drawn - report.rows;
        self.tell_of_skipped(client, rows_skipped, drawn);
        let travels = |bytes: usize| if self.server.shares() { bytes as u64 } else { 0 };
        let record = ClientRecord {
            round,
            client,
            rank,
            rows: self.environment.fleet.rows_of(client) as u64,
            rows_skipped,
            steps: report.steps as u64,
            tokens: report.tokens,
            supervised_tokens: report.supervised_tokens,
            loss: report.loss,
            first_loss: report.first_loss,
            last_loss: report.last_loss,
            update_norm: report.update_norm,
            preference: report.preference,
            bytes_up: travels(outcome.upload.byte_len()),
            bytes_down: travels(bytes_down),
            seconds,
        };
        Ok(Some((outcome, record)))
    }

    /// Warns, once for each client, of rows that the sequence length left nothing to learn of.
    fn tell_of_skipped(&mut self, client: u32, skipped: u64, drawn: u64) {
        let sits_out = skipped == drawn;
        if (skipped == 0 && !sits_out) || !self.told_of.insert(client) {
            return;
        }
        tracing::warn!(
            "client {client}: {skipped} of {} drawn have nothing left to learn within {} tokens{}",
            plural(drawn, "row"),
            self.environment.encoder.seq_len(),
            if sits_out { "; it sits the round out" } else { "" }
        );
    }

    fn evaluate_if_due(
        &mut self,
        round: u32,
        observer: &mut dyn Observer,
    ) -> Result<(), SimulateError> {
        let every = self.config.eval_every;
        let last = round == self.config.rounds;
        if !last && (every == 0 || !round.is_multiple_of(every)) {
            return Ok(());
        }
        let answers = if last { self.config.answers } else { 0 };
        let found = self.evaluate(round, answers, observer)?;
        self.record(found, observer)
    }

    /// Measures the shared adapter as it is.
    fn evaluate(
        &self,
        round: u32,
        answers: usize,
        observer: &mut dyn Observer,
    ) -> Result<Found, SimulateError> {
        let evaluation = measure(self.environment, &self.adapter, round, answers, observer)?;
        let suites = match self.environment.suites {
            Some(suites) => {
                let folder = self.folder.join(suites::FOLDER);
                let found = suites.ask(&self.adapter, round, &folder, observer)?;
                // Rounds do not wait for a judge; the answers are in the folder's journal.
                for unfinished in found.unfinished {
                    tracing::warn!("after round {round} {unfinished}");
                }
                found.records
            }
            None => Vec::new(),
        };
        Ok(Found { evaluation, suites })
    }

    fn record(&mut self, found: Found, observer: &mut dyn Observer) -> Result<(), SimulateError> {
        if let Some(evaluation) = found.evaluation {
            self.journal.append(&Record::Evaluation(evaluation.clone()))?;
            tell(observer, Event::Evaluated(&evaluation))?;
        }
        for suite in found.suites {
            self.journal.append(&Record::Suite(suite.clone()))?;
            tell(observer, Event::Asked(&suite))?;
        }
        Ok(())
    }

    /// Makes the rounds done so far count.
    fn commit(&mut self, seconds: f64, observer: &mut dyn Observer) -> Result<(), SimulateError> {
        self.elapsed_seconds += seconds;
        let round = self.done;
        self.journal.sync()?;
        tell(observer, Event::Recorded { round })?;
        let checkpoint = Checkpoint {
            round,
            elapsed_seconds: self.elapsed_seconds,
            adapter: self.adapter.clone(),
            server: self.server.files(round)?,
        };
        self.checkpoints.commit(&checkpoint, self.environment.base_name)?;
        tell(observer, Event::Committed { round })?;
        let oldest = self.checkpoints.prune()?;
        // What no checkpoint needs any more are earlier sets of those who trained in the round of the
        // oldest one.
        if let Some(index) = oldest.checked_sub(1) {
            for store in [&self.controls, &self.residuals].into_iter().flatten() {
                for client in clients(self.config, index) {
                    store.prune(client, oldest)?;
                }
            }
        }
        tell(observer, Event::Pruned { round })
    }
}

/// Notes that `clients` were drawn in the round with index `index`.
fn take_part(histories: &mut HashMap<u32, Participation>, clients: Vec<u32>, index: u32) {
    for client in clients {
        let history = histories.entry(client).or_default();
        *history = Participation { rounds: history.rounds + 1, last: Some(index) };
    }
}

/// The clients of the round with index `index`.
fn clients(config: &RunConfig, index: u32) -> Vec<u32> {
    match config.algorithm {
        // The configuration's check keeps the number below that of the clients, a u32.
        Algorithm::Local { client } => vec![client as u32],
        _ => {
            let RunConfig { sampling, seed, clients, sample, .. } = *config;
            clients_of_round(sampling, seed, index, clients, sample)
        }
    }
}

/// L2 norm of the difference.
fn distance(a: &ParameterSet, b: &ParameterSet) -> Result<f64, SimulateError> {
    let mut difference = a.clone();
    difference.zip_apply(b, |a, b| *a -= b)?;
    Ok(difference.l2_norm())
}
