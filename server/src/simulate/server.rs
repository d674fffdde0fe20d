//! The server's side of a simulated run: what is shared, and how updates change it.

use fleetune_core::adapter::{ParameterSet, TrainedFactors};
use fleetune_core::client::{Download, RoundOutcome};
use fleetune_core::update::{Codec, UpdateError, Versions};

use super::checkpoint::ServerFiles;
use super::config::RunConfig;
use super::error::SimulateError;
use crate::aggregate::{
    AggregateError, Aggregator, AggregatorConfig, Algorithm, Combine, ProductReport, Round,
    ServerState,
};

/// What the server holds between rounds.
#[derive(Debug)]
pub enum Server {
    /// Clients' updates become one adapter.
    Sharing(Box<Sharing>),
    /// One client trains alone; nothing travels.
    Alone {
        /// Its adapter.
        adapter: ParameterSet,
    },
}

/// A server whose clients' updates become one adapter.
#[derive(Debug)]
pub struct Sharing {
    aggregator: Aggregator,
    /// The shared adapter and what the algorithm remembers.
    state: ServerState,
    codec_down: Codec,
    /// What devices of each rank receive. Version n is handed out in the round with index n.
    classes: Vec<(usize, Versions)>,
}

/// A round in progress on the server.
#[derive(Debug)]
pub enum OpenRound {
    /// Sums of the updates so far.
    Sharing(Box<Round>),
    /// The lone client's adapter, once it has trained.
    Alone(Option<ParameterSet>),
}

impl Server {
    /// The server of `config` before its first round, or with what a checkpoint after `round` rounds
    /// has of it.
    ///
    /// # Errors
    /// When the algorithm's constants are out of range, or the state is damaged or another's.
    pub fn new(
        config: &RunConfig,
        adapter: &ParameterSet,
        files: &ServerFiles,
        round: u32,
    ) -> Result<Self, SimulateError> {
        if let Algorithm::Local { .. } = config.algorithm {
            return Ok(Self::Alone { adapter: adapter.clone() });
        }
        let aggregate = |source| SimulateError::Aggregate { round, source };
        let aggregator = Aggregator::new(AggregatorConfig {
            algorithm: config.algorithm,
            variant: config.variant,
            weighting: config.weighting,
            hyperparameters: config.hyperparameters(),
            population: Some(config.clients as usize),
            combination: config.combination(),
        })
        .map_err(aggregate)?;
        let state = match &files.state {
            Some(bytes) => ServerState::from_bytes(bytes)?,
            None if round > 0 => return Err(SimulateError::NoState { round }),
            None => aggregator.initial_state(adapter).map_err(aggregate)?,
        };
        // Refuses the state of another algorithm now rather than after the clients have trained.
        aggregator.begin(&state).map_err(aggregate)?;
        let codec_down = config.codec_down;
        let class = |rank| {
            let shared = state.handed_out(rank).map_err(aggregate)?;
            let versions = match files.versions.get(&rank) {
                Some(bytes) => Versions::from_bytes(bytes, &shared, codec_down),
                // Versions that lose nothing follow from the state.
                None if round > 0 && !codec_down.is_exact() => {
                    return Err(SimulateError::NoState { round });
                }
                None => Versions::begin(&shared, codec_down),
            };
            Ok((rank, versions.map_err(message(round))?))
        };
        let classes = config.device_ranks().into_iter().map(class).collect::<Result<_, _>>()?;
        Ok(Self::Sharing(Box::new(Sharing { aggregator, state, codec_down, classes })))
    }

    /// The shared adapter's parameters, at the largest rank.
    pub fn adapter(&self) -> ParameterSet {
        match self {
            Self::Sharing(sharing) => sharing.state.global(),
            Self::Alone { adapter } => adapter.clone(),
        }
    }

    /// What a checkpoint keeps beside the adapter.
    ///
    /// # Errors
    /// When the state has no file form.
    pub fn files(&self, round: u32) -> Result<ServerFiles, SimulateError> {
        let Self::Sharing(sharing) = self else { return Ok(ServerFiles::default()) };
        let state = Some(sharing.state.to_bytes()?);
        let mut files = ServerFiles { state, ..ServerFiles::default() };
        if !sharing.codec_down.is_exact() {
            for (rank, versions) in &sharing.classes {
                let bytes = versions.to_bytes().map_err(message(round))?;
                files.versions.insert(*rank, bytes);
            }
        }
        Ok(files)
    }

    /// Whether updates travel at all.
    pub fn shares(&self) -> bool {
        matches!(self, Self::Sharing { .. })
    }

    /// What clients train in the coming round.
    pub fn trained(&self) -> TrainedFactors {
        match self {
            Self::Sharing(sharing) => {
                let combine: Combine = sharing.aggregator.config().combination.combine;
                combine.trained(sharing.state.round())
            }
            Self::Alone { .. } => TrainedFactors::Both,
        }
    }

    /// The adapter that clients of rank `rank` start from, bit by bit as they have it.
    ///
    /// # Errors
    /// When there is no such rank.
    pub fn shared(&self, round: u32, rank: usize) -> Result<&ParameterSet, SimulateError> {
        match self {
            Self::Sharing(sharing) => Ok(sharing.versions(round, rank)?.newest()),
            Self::Alone { adapter } => Ok(adapter),
        }
    }

    /// What a client of rank `rank` receives in round `round`, and the adapter that it holds. `held`
    /// is the index of the round in which it last received one.
    ///
    /// # Errors
    /// When it cannot be packed.
    pub fn download(
        &self,
        round: u32,
        rank: usize,
        held: Option<u32>,
    ) -> Result<(Download, Option<ParameterSet>), SimulateError> {
        let packed = |source| SimulateError::Message { round, source };
        match self {
            Self::Sharing(sharing) => {
                let versions = sharing.versions(round, rank)?;
                let held = held.map(u64::from).filter(|_| !sharing.codec_down.is_exact());
                let adapter = held.map(|held| versions.held(held)).transpose();
                let adapter = adapter.map_err(message(round))?.flatten();
                let control = sharing.state.control();
                let download = Download::of_version(versions, held, control.as_ref());
                Ok((download.map_err(packed)?, adapter))
            }
            Self::Alone { adapter } => Ok((Download::encode(adapter, None).map_err(packed)?, None)),
        }
    }

    /// Opens a round.
    ///
    /// # Errors
    /// When the state is another algorithm's.
    pub fn begin(&self, round: u32) -> Result<OpenRound, SimulateError> {
        match self {
            Self::Sharing(sharing) => {
                let opened = sharing.aggregator.begin(&sharing.state);
                let opened = opened.map_err(|source| SimulateError::Aggregate { round, source })?;
                Ok(OpenRound::Sharing(Box::new(opened)))
            }
            Self::Alone { .. } => Ok(OpenRound::Alone(None)),
        }
    }

    /// Closes round `round`, and says how the mean of the products fared. Without updates nothing
    /// changes.
    ///
    /// # Errors
    /// When the result leaves the range of f32.
    pub fn finish(
        &mut self,
        round: u32,
        opened: OpenRound,
    ) -> Result<Option<ProductReport>, SimulateError> {
        match (self, opened) {
            (Self::Sharing(sharing), OpenRound::Sharing(opened)) => sharing.finish(round, *opened),
            (Self::Alone { adapter }, OpenRound::Alone(Some(trained))) => {
                *adapter = trained;
                Ok(None)
            }
            _ => Ok(None),
        }
    }
}

impl Sharing {
    fn versions(&self, round: u32, rank: usize) -> Result<&Versions, SimulateError> {
        let found = self.classes.iter().find(|(known, _)| *known == rank);
        found.map(|(_, versions)| versions).ok_or(SimulateError::NoState { round })
    }

    fn finish(
        &mut self,
        round: u32,
        opened: Round,
    ) -> Result<Option<ProductReport>, SimulateError> {
        let aggregate = |source: AggregateError| SimulateError::Aggregate { round, source };
        let mut product = None;
        if opened.clients() > 0 {
            let (next, summary) = self.aggregator.finish(&self.state, opened).map_err(aggregate)?;
            self.state = next;
            product = summary.product;
        }
        // A round without updates has a version too: versions are numbered as rounds are.
        for (rank, versions) in &mut self.classes {
            let shared = self.state.handed_out(*rank).map_err(aggregate)?;
            versions.publish(&shared).map_err(message(round))?;
        }
        Ok(product)
    }
}

impl OpenRound {
    /// Takes in what a client made of the adapter `start` that it received. What travels is decoded
    /// as a server decodes it; a lone client's adapter is taken as it is.
    ///
    /// # Errors
    /// When the upload is damaged or does not fit.
    pub fn accumulate(
        &mut self,
        round: u32,
        start: &ParameterSet,
        outcome: RoundOutcome,
        rows: u64,
    ) -> Result<(), SimulateError> {
        match self {
            Self::Sharing(opened) => {
                let (adapter, control_delta) = outcome
                    .upload
                    .decode(start)
                    .map_err(|source| SimulateError::Message { round, source })?;
                opened
                    .accumulate_from(start, &adapter, rows, control_delta.as_ref())
                    .map_err(|source| SimulateError::Aggregate { round, source })?;
            }
            Self::Alone(trained) => *trained = Some(outcome.adapter),
        }
        Ok(())
    }
}

fn message(round: u32) -> impl Fn(UpdateError) -> SimulateError + Copy {
    move |source| SimulateError::Message { round, source: source.into() }
}
