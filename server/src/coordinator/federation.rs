//! One federation: its settings, its current round, and what devices of it are told.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use fleetune_core::adapter::{Adapter, LoraConfig, ParameterSet};
use fleetune_core::client::{Instructions, Upload};
use fleetune_core::model::ModelConfig;
use fleetune_core::protocol::{
    Assignment, AttemptToken, Capabilities, DeviceId, FinalAdapter, ModelOffer, RoundAssignment,
};

use super::close::RoundSummary;
use super::config::FederationConfig;
use super::eligibility::obstacle;
use super::error::{FederationError, RequestError};
use super::evaluate::{Evaluate, Measures, has_stalled};
use super::offers::{Offered, Offers};
use super::start::{Class, ClassVersions, Start, store_round};
use crate::aggregate::{Aggregator, AggregatorConfig, Algorithm, Combination};
use crate::round::{Mode, Phase, RoundState, Standing, Step};
use crate::seed::{Choice, derived};
use crate::simulate::config::RunConfig;
use crate::simulate::journal::EvaluationRecord;
use crate::simulate::suites::SuiteQuestions;
use crate::store::{FederationRow, MemberRow, Outcome, RoundRow, Status, Store, StoreError};

const DAY: u64 = 86_400_000;

/// The base model as a server knows it: it trains nothing and needs no weights.
#[derive(Debug, Clone)]
pub struct BaseModel {
    /// What devices are told.
    pub offer: ModelOffer,
    /// The model's shape.
    pub config: ModelConfig,
    /// Its file, where the server hands it out.
    pub file: Option<Offered>,
}

/// A federation.
pub struct Federation {
    /// Its settings.
    pub config: FederationConfig,
    /// The adapter's shape.
    pub lora: LoraConfig,
    /// The algorithm.
    pub aggregator: Aggregator,
    model: BaseModel,
    evaluator: Option<Mutex<Box<dyn Evaluate>>>,
    questions: Option<Mutex<SuiteQuestions>>,
    current: Mutex<Current>,
    wake: Condvar,
}

/// An update that may count.
#[derive(Debug)]
pub struct Update {
    /// The adapter that the device received.
    pub start: Arc<ParameterSet>,
    /// What it made of that.
    pub adapter: ParameterSet,
    /// SCAFFOLD: the change of the device's control variate.
    pub control: Option<ParameterSet>,
}

/// By round, the adapters that updates start from which may still come.
pub type Starts = BTreeMap<u32, Arc<Start>>;

/// What changes from round to round. Never ahead of the disk.
#[derive(Debug)]
pub struct Current {
    /// The round's state machine.
    pub state: RoundState,
    /// The federation's row in the store.
    pub row: FederationRow,
    /// What updates start from.
    pub starts: Starts,
    /// Whether an operator's order or a closed round asks for the driver.
    pub wanted: bool,
}

impl Federation {
    /// Takes a federation up where it was left, or begins it.
    ///
    /// # Errors
    /// When the settings contradict those it began with, or what it left is damaged.
    pub fn open(
        config: FederationConfig,
        model: BaseModel,
        measures: Measures,
        store: &Store,
        offers: &Offers,
        now: u64,
    ) -> Result<Self, FederationError> {
        let lora = config.training.lora()?;
        let aggregator = aggregator(&config.training)?;
        let mut row = match store.federation(&config.name)? {
            Some(row) => {
                check_unchanged(&config, &row)?;
                store.set_training(&config.name, &config.training.to_toml()?)?;
                row
            }
            None => begin(&config, &lora, &model.config, &aggregator, store, now)?,
        };
        if let Some(file) = &model.file {
            offers.add(file.clone());
        }
        let rules = config.rules();
        let mut state = RoundState::new(rules, config.training.seed, row.epoch, row.round, now);
        let oldest = match rules.mode {
            Mode::Synchronous => row.round,
            Mode::Buffered => row.round.saturating_sub(rules.max_staleness).max(1),
        };
        let members = store.members_since(&config.name, row.epoch, oldest)?;
        state.restore(
            members.iter().filter_map(|member| part_of(member, row.round)),
            row.deadline,
            now,
        );
        state.set_paused(row.status == Status::Paused);
        let losses = losses(store, &config.name, row.epoch)?;
        if row.round > config.training.rounds || has_stalled(&losses, config.rounds.patience) {
            state.finish();
        } else if row.status == Status::Finished {
            // Rounds were added since, or the patience was.
            store.set_status(&config.name, Status::Running, None)?;
            (row.status, row.reason) = (Status::Running, None);
        }
        let current = Current { state, row, starts: Starts::new(), wanted: false };
        let federation = Self {
            config,
            lora,
            aggregator,
            model,
            evaluator: measures.held_out.map(Mutex::new),
            questions: measures.suites.map(Mutex::new),
            current: Mutex::new(current),
            wake: Condvar::new(),
        };
        {
            let mut current = federation.lock();
            let last = current.row.round;
            for round in oldest..=last {
                federation.load_start(&mut current, round, store, offers)?;
            }
        }
        Ok(federation)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// What changes from round to round.
    pub fn lock(&self) -> MutexGuard<'_, Current> {
        // Changes are made after the disk has them, in single steps: a panic leaves it whole.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Suites of questions for the shared adapter.
    pub(super) fn questions(&self) -> Option<&Mutex<SuiteQuestions>> {
        self.questions.as_ref()
    }

    /// Who measures the shared adapter on held-out rows.
    pub fn evaluator(&self) -> Option<&Mutex<Box<dyn Evaluate>>> {
        self.evaluator.as_ref()
    }

    /// What devices of each rank held after the round of `row`.
    ///
    /// # Errors
    /// When it is missing or damaged.
    pub fn versions(
        &self,
        row: &RoundRow,
        store: &Store,
    ) -> Result<Option<ClassVersions>, FederationError> {
        let codec = self.config.training.codec_down;
        ClassVersions::of_round(row, &self.lora, &self.model.config, codec, store)
    }

    /// The base model's name, for people and PEFT.
    pub fn model_name(&self) -> &str {
        &self.model.offer.name
    }

    /// Has the driver look at the federation now.
    pub fn wake(&self, current: &mut Current) {
        current.wanted = true;
        self.wake.notify_one();
    }

    /// Waits until somebody wakes the driver, at most `time`.
    pub fn wait(&self, time: std::time::Duration) {
        let current = self.lock();
        let waited = self.wake.wait_timeout_while(current, time, |current| !current.wanted);
        waited.unwrap_or_else(PoisonError::into_inner).0.wanted = false;
    }

    /// Reads what the round before `round` left, and puts it on offer.
    ///
    /// # Errors
    /// When it is missing or damaged.
    pub fn load_start(
        &self,
        current: &mut Current,
        round: u32,
        store: &Store,
        offers: &Offers,
    ) -> Result<(), FederationError> {
        let (name, epoch, before) = (self.name(), current.row.epoch, round - 1);
        let row = store.round(name, epoch, before)?;
        let row =
            row.ok_or_else(|| FederationError::NoRound { name: name.to_owned(), round: before })?;
        let (lora, model) = (&self.lora, &self.model.config);
        let start = Start::load(row, lora, model, self.config.training.codec_down, store, offers)?;
        current.starts.insert(round, Arc::new(start));
        Ok(())
    }

    /// What a device that asks for work is told.
    ///
    /// # Errors
    /// When the store fails.
    pub fn check_in(
        &self,
        device: DeviceId,
        capabilities: &Capabilities,
        store: &Store,
        now: u64,
    ) -> Result<Assignment, RequestError> {
        let mut current = self.lock();
        if current.state.phase() == Phase::Finished {
            return self.finished(&current, device, capabilities);
        }
        if let Some(part) = current.state.resume(device) {
            return self.assignment(&current, device, capabilities, part, now);
        }
        let limit = self.config.eligibility.rounds_per_day;
        let today = match limit {
            0 => 0,
            _ => store.rounds_since(device, now.saturating_sub(DAY))?,
        };
        let rules = &self.config.eligibility;
        let milliseconds = self.config.rounds.check_in.as_millis() as u32;
        let (model, codec) = (&self.model.offer, self.config.training.codec);
        let rank = self.config.training.device_ranks().into_iter().min().unwrap_or(self.lora.rank);
        if let Some(reason) = obstacle(rules, model, (rank, codec), capabilities, today) {
            return Ok(Assignment::Ineligible { reason, milliseconds });
        }
        current.state.check_in(device, now);
        self.step(&mut current, store, now)?;
        match current.state.resume(device) {
            Some(part) => self.assignment(&current, device, capabilities, part, now),
            None => Ok(Assignment::Wait { milliseconds }),
        }
    }

    /// Does what the round asks for next, short of closing it, which is the driver's.
    ///
    /// # Errors
    /// When the store fails; the round is then as it was.
    pub fn step(&self, current: &mut Current, store: &Store, now: u64) -> Result<(), RequestError> {
        loop {
            match current.state.next_step(now) {
                None => return Ok(()),
                Some(Step::Select { devices, deadline }) => {
                    let members = devices
                        .into_iter()
                        .map(|device| Ok((device, AttemptToken(random()?))))
                        .collect::<Result<Vec<_>, RequestError>>()?;
                    store.select(&current.row, &members, deadline, now)?;
                    current.row.deadline = Some(deadline);
                    current.state.select(&members, deadline);
                    tracing::info!(
                        federation = self.name(),
                        round = current.row.round,
                        devices = members.len(),
                        "devices selected"
                    );
                }
                Some(Step::Extend { deadline }) => {
                    store.extend(self.name(), deadline)?;
                    current.row.deadline = Some(deadline);
                    current.state.extend(deadline);
                    tracing::warn!(
                        federation = self.name(),
                        round = current.row.round,
                        updates = current.state.reports(),
                        "too few updates at the deadline: the round gets more time"
                    );
                }
                Some(Step::Close) => {
                    self.wake(current);
                    return Ok(());
                }
            }
        }
    }

    fn assignment(
        &self,
        current: &Current,
        device: DeviceId,
        capabilities: &Capabilities,
        (attempt, round): (AttemptToken, u32),
        now: u64,
    ) -> Result<Assignment, RequestError> {
        let start = current.starts.get(&round).ok_or(RequestError::Busy)?;
        let class = start.class_for(capabilities.max_rank);
        let milliseconds_left = match current.state.phase() {
            Phase::Collecting { deadline } => deadline.saturating_sub(now),
            // In buffered mode a device may be at it while the next round has no deadline yet.
            _ => self.config.rounds.deadline.as_millis(),
        };
        Ok(Assignment::Round(Box::new(RoundAssignment {
            federation: self.name().to_owned(),
            round,
            attempt,
            instructions: self.instructions(device, capabilities, class, round)?,
            model: self.model.offer.clone(),
            adapter: class.whole,
            control: start.row.control,
            milliseconds_left,
        })))
    }

    /// What a device is to do in a round, as it travels.
    fn instructions(
        &self,
        device: DeviceId,
        capabilities: &Capabilities,
        class: &Class,
        round: u32,
    ) -> Result<String, RequestError> {
        let training = &self.config.training;
        let place = u64::from_le_bytes(first_bytes(device));
        let combine = self.aggregator.config().combination.combine;
        // Aggregators count rounds from 0.
        let trained = combine.trained(u64::from(round - 1));
        let codec = training.codec_down;
        let reads_differences = !codec.is_exact() && capabilities.codecs.contains(&codec.id());
        let instructions = Instructions {
            plan: training.round_plan(class.lora.clone(), trained, round, place),
            template: training.template(),
            seq_len: training.seq_len,
            order_seed: derived(training.seed, Choice::RowOrder, &[place]),
            differences: reads_differences.then(|| class.differences.clone()),
        };
        instructions.to_json().map_err(|error| RequestError::Internal(error.to_string()))
    }

    /// What a device is told once the federation is done.
    fn finished(
        &self,
        current: &Current,
        device: DeviceId,
        capabilities: &Capabilities,
    ) -> Result<Assignment, RequestError> {
        let round = current.row.round;
        let start = current.starts.get(&round).ok_or(RequestError::Busy)?;
        let class = start.class_for(capabilities.max_rank);
        Ok(Assignment::Finished(Box::new(FinalAdapter {
            instructions: self.instructions(device, capabilities, class, round)?,
            model: self.model.offer.clone(),
            adapter: class.whole,
        })))
    }

    /// The bytes that an update of this federation can have at most.
    pub fn largest_update(&self) -> u64 {
        let model = &self.model.config;
        let values = self.lora.num_values(model) as u64;
        let parts = if self.config.training.algorithm == Algorithm::Scaffold { 2 } else { 1 };
        // f32 that does not compress, and zstd's and the messages' own bytes.
        parts * (values * 4 + values / 64 + 16_384)
    }

    /// Reads an update and checks that it may count: what it says it is, in shape, finite and not
    /// absurdly long. What it says, or why not.
    pub fn examine(&self, bytes: &[u8], start: &Start) -> Result<Update, String> {
        let upload = Upload::from_bytes(bytes).map_err(|error| error.to_string())?;
        let start = &start.class_of(&upload.adapter).adapter;
        let (adapter, control) = upload.decode(start).map_err(|error| error.to_string())?;
        let scaffold = self.config.training.algorithm == Algorithm::Scaffold;
        if control.is_some() != scaffold {
            let wanted = if scaffold { "needs" } else { "takes no" };
            let algorithm = self.config.training.algorithm;
            return Err(format!("{algorithm} {wanted} changes of control variates"));
        }
        let change = adapter.difference(start).map_err(|error| error.to_string())?;
        let limit = self.config.rounds.max_update_norm;
        for (what, set) in [("adapter", Some(&change)), ("control variate", control.as_ref())] {
            let norm = set.map_or(0.0, ParameterSet::l2_norm);
            if norm.is_nan() || norm > limit {
                return Err(format!(
                    "the {what} changes by {norm:.3e}, at most {limit} is believed"
                ));
            }
        }
        Ok(Update { start: Arc::clone(start), adapter, control })
    }
}

impl std::fmt::Debug for Federation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Federation").field("config", &self.config).finish_non_exhaustive()
    }
}

fn first_bytes(device: DeviceId) -> [u8; 8] {
    let [a, b, c, d, e, f, g, h, ..] = device.0;
    [a, b, c, d, e, f, g, h]
}

/// Random bytes of the system.
///
/// # Errors
/// When the system has none.
pub fn random<const N: usize>() -> Result<[u8; N], RequestError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| RequestError::Internal(error.to_string()))?;
    Ok(bytes)
}

fn aggregator(training: &RunConfig) -> Result<Aggregator, FederationError> {
    let scaffold = training.algorithm == Algorithm::Scaffold;
    Ok(Aggregator::new(AggregatorConfig {
        algorithm: training.algorithm,
        variant: training.variant,
        weighting: training.weighting,
        hyperparameters: training.hyperparameters(),
        // Only SCAFFOLD asks how many devices there are; nobody knows exactly.
        population: scaffold.then_some(training.clients as usize),
        // How exact the mean of products is takes the factors of all devices to say, and minutes:
        // a question for simulations.
        combination: Combination { measure: false, ..training.combination() },
    })?)
}

/// A device's part in the current round, as the store knows it; `None` where it has none any more.
fn part_of(member: &MemberRow, current: u32) -> Option<(DeviceId, AttemptToken, u32, Standing)> {
    let part = |round, standing| Some((member.device, member.attempt, round, standing));
    match &member.outcome {
        Outcome::Training => part(member.round, Standing::Training),
        Outcome::Accepted | Outcome::Folded if member.counts_in == Some(current) => {
            part(current, Standing::Reported)
        }
        _ if member.round == current => part(current, Standing::Gone),
        _ => None,
    }
}

/// Rounds may be added under way; everything else stays.
fn check_unchanged(config: &FederationConfig, row: &FederationRow) -> Result<(), FederationError> {
    let began: RunConfig = toml::from_str(&row.training).map_err(|error| {
        FederationError::Began { name: row.name.clone(), problem: error.message().to_owned() }
    })?;
    let began =
        RunConfig { rounds: config.training.rounds, sample: config.training.sample, ..began };
    match began.difference(&config.training)? {
        Some(difference) => Err(FederationError::Changed { name: row.name.clone(), difference }),
        None => Ok(()),
    }
}

fn begin(
    config: &FederationConfig,
    lora: &LoraConfig,
    model: &ModelConfig,
    aggregator: &Aggregator,
    store: &Store,
    now: u64,
) -> Result<FederationRow, FederationError> {
    let training = &config.training;
    let adapter = match &training.init_adapter {
        Some(folder) => {
            let adapter = Adapter::load(folder)?;
            adapter.check_against(model)?;
            if adapter.config != *lora {
                let problem = "init_adapter has another shape than lora_rank, lora_alpha, \
                               lora_targets and lora_dropout say";
                return Err(FederationError::Began {
                    name: config.name.clone(),
                    problem: problem.into(),
                });
            }
            adapter
        }
        None => Adapter::new(lora.clone(), model, derived(training.seed, Choice::Adapter, &[]))?,
    };
    let state = aggregator.initial_state(&adapter.parameters)?;
    let versions = ClassVersions::begin(&state, training)?;
    let row = store_round(store, 0, &state, versions.as_ref())?;
    let summary = RoundSummary::default().row(0, now);
    store.begin_federation(&config.name, &training.to_toml()?, &row, &summary)?;
    let row = store.federation(&config.name)?;
    row.ok_or_else(|| FederationError::NoRound { name: config.name.clone(), round: 0 })
}

/// What evaluations of an epoch found, oldest first.
///
/// # Errors
/// When the store cannot be read.
pub fn losses(store: &Store, name: &str, epoch: u32) -> Result<Vec<f64>, StoreError> {
    let rows = store.evaluations(name, epoch)?;
    let records =
        rows.iter().filter_map(|row| serde_json::from_str::<EvaluationRecord>(&row.found).ok());
    Ok(records.map(|record| record.score.loss).collect())
}
