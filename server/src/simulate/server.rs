//! The server's side of a simulated run: what is shared, and how updates change it.

use fleetune_core::adapter::ParameterSet;
use fleetune_core::client::{Download, RoundOutcome};

use super::config::RunConfig;
use super::error::SimulateError;
use crate::aggregate::{Aggregator, AggregatorConfig, Algorithm, Round, ServerState};

/// What the server holds between rounds.
#[derive(Debug)]
pub enum Server {
    /// Clients' updates become one adapter.
    Sharing {
        /// The algorithm.
        aggregator: Box<Aggregator>,
        /// The shared adapter and what the algorithm remembers.
        state: Box<ServerState>,
    },
    /// One client trains alone; nothing travels.
    Alone {
        /// Its adapter.
        adapter: ParameterSet,
    },
}

/// A round in progress on the server.
#[derive(Debug)]
pub enum OpenRound {
    /// Sums of the updates so far.
    Sharing(Round),
    /// The lone client's adapter, once it has trained.
    Alone(Option<ParameterSet>),
}

impl Server {
    /// The server of `config` before its first round, or with the state of a checkpoint.
    ///
    /// # Errors
    /// When the algorithm's constants are out of range, or the state is damaged or another's.
    pub fn new(
        config: &RunConfig,
        adapter: &ParameterSet,
        state: Option<&[u8]>,
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
        })
        .map_err(aggregate)?;
        let state = match state {
            Some(bytes) => ServerState::from_bytes(bytes)?,
            None if round > 0 => return Err(SimulateError::NoState { round }),
            None => aggregator.initial_state(adapter).map_err(aggregate)?,
        };
        // Refuses the state of another algorithm now rather than after the clients have trained.
        aggregator.begin(&state).map_err(aggregate)?;
        Ok(Self::Sharing { aggregator: Box::new(aggregator), state: Box::new(state) })
    }

    /// The shared adapter's parameters.
    pub fn adapter(&self) -> ParameterSet {
        match self {
            Self::Sharing { state, .. } => state.global(),
            Self::Alone { adapter } => adapter.clone(),
        }
    }

    /// The state that a checkpoint keeps beside the adapter.
    ///
    /// # Errors
    /// When the state has no file form.
    pub fn state_bytes(&self) -> Result<Option<Vec<u8>>, SimulateError> {
        match self {
            Self::Sharing { state, .. } => Ok(Some(state.to_bytes()?)),
            Self::Alone { .. } => Ok(None),
        }
    }

    /// Whether updates travel at all.
    pub fn shares(&self) -> bool {
        matches!(self, Self::Sharing { .. })
    }

    /// What the clients of round `round` receive.
    ///
    /// # Errors
    /// When it cannot be packed.
    pub fn download(&self, round: u32) -> Result<Download, SimulateError> {
        let control = match self {
            Self::Sharing { state, .. } => state.control(),
            Self::Alone { .. } => None,
        };
        Download::encode(&self.adapter(), control.as_ref())
            .map_err(|source| SimulateError::Message { round, source })
    }

    /// Opens a round.
    ///
    /// # Errors
    /// When the state is another algorithm's.
    pub fn begin(&self, round: u32) -> Result<OpenRound, SimulateError> {
        match self {
            Self::Sharing { aggregator, state } => {
                let opened = aggregator.begin(state);
                let opened = opened.map_err(|source| SimulateError::Aggregate { round, source })?;
                Ok(OpenRound::Sharing(opened))
            }
            Self::Alone { .. } => Ok(OpenRound::Alone(None)),
        }
    }

    /// Closes round `round`. Without updates nothing changes.
    ///
    /// # Errors
    /// When the result leaves the range of f32.
    pub fn finish(&mut self, round: u32, opened: OpenRound) -> Result<(), SimulateError> {
        match (self, opened) {
            (Self::Sharing { aggregator, state }, OpenRound::Sharing(opened))
                if opened.clients() > 0 =>
            {
                let finished = aggregator.finish(state, opened);
                let (next, _) =
                    finished.map_err(|source| SimulateError::Aggregate { round, source })?;
                **state = next;
            }
            (Self::Alone { adapter }, OpenRound::Alone(Some(trained))) => *adapter = trained,
            _ => {}
        }
        Ok(())
    }
}

impl OpenRound {
    /// Takes in what a client made of the adapter `global` that it received. What travels is
    /// decoded as a server decodes it; a lone client's adapter is taken as it is.
    ///
    /// # Errors
    /// When the upload is damaged or does not fit.
    pub fn accumulate(
        &mut self,
        round: u32,
        global: &ParameterSet,
        outcome: RoundOutcome,
        rows: u64,
    ) -> Result<(), SimulateError> {
        match self {
            Self::Sharing(opened) => {
                let (adapter, control_delta) = outcome
                    .upload
                    .decode(global)
                    .map_err(|source| SimulateError::Message { round, source })?;
                opened
                    .accumulate(&adapter, rows, control_delta.as_ref())
                    .map_err(|source| SimulateError::Aggregate { round, source })?;
            }
            Self::Alone(trained) => *trained = Some(outcome.adapter),
        }
        Ok(())
    }
}
