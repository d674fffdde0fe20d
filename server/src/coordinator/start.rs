//! What the devices of a round start from.
//!
//! Devices of each rank of the federation are a class with an adapter of its own. Where the shared
//! adapter has one rank and goes down exactly, the class's adapter is the shared one. Else it is a
//! version ([`Versions`]) that follows from the one before, so that versions are kept with the round:
//! after a restart devices get the same bits as before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fleetune_core::adapter::{Adapter, LoraConfig, ParameterSet};
use fleetune_core::client::{Difference, Download, MAX_DIFFERENCES, MessageError};
use fleetune_core::model::ModelConfig;
use fleetune_core::protocol::{Blob, BlobId};
use fleetune_core::update::{BaseId, Codec, Header, Versions, decode};

use super::error::FederationError;
use super::offers::{Offered, Offers};
use crate::aggregate::ServerState;
use crate::simulate::config::RunConfig;
use crate::store::{RoundRow, Store};

/// What leads from one round to the next, of each class.
#[derive(Debug)]
pub struct ClassVersions(BTreeMap<usize, Versions>);

/// What the devices of a round start from.
#[derive(Debug)]
pub struct Start {
    /// What the store knows of it.
    pub row: RoundRow,
    /// The shared adapter, at the largest rank and as the aggregator has it.
    pub adapter: Arc<ParameterSet>,
    /// By rank, the smallest first; never empty.
    classes: Vec<Class>,
}

/// What the devices of one rank start from.
#[derive(Debug)]
pub struct Class {
    /// The adapter's shape.
    pub lora: LoraConfig,
    /// Its parameters, as devices decode them.
    pub adapter: Arc<ParameterSet>,
    /// All of it in one message.
    pub whole: Blob,
    /// What leads to it from the versions before; empty where it only comes whole.
    pub differences: Vec<Difference>,
    base: BaseId,
}

impl ClassVersions {
    /// The first versions; `None` where devices are handed the shared adapter itself.
    ///
    /// # Errors
    /// When the adapter cannot be had at a rank or packed.
    pub fn begin(
        state: &ServerState,
        training: &RunConfig,
    ) -> Result<Option<Self>, FederationError> {
        if training.ranks.is_empty() && training.codec_down.is_exact() {
            return Ok(None);
        }
        let begin = |rank| {
            let versions = Versions::begin(&state.handed_out(rank)?, training.codec_down);
            Ok((rank, versions.map_err(MessageError::from)?))
        };
        let ranks = training.device_ranks().into_iter();
        ranks.map(begin).collect::<Result<_, FederationError>>().map(Self).map(Some)
    }

    /// The next versions, which lead to what the aggregator has now.
    ///
    /// # Errors
    /// When the adapter cannot be had at a rank or packed.
    pub fn publish(&mut self, state: &ServerState) -> Result<(), FederationError> {
        for (rank, versions) in &mut self.0 {
            versions.publish(&state.handed_out(*rank)?).map_err(MessageError::from)?;
        }
        Ok(())
    }

    /// For each class, the smallest first: rank (u32), length (u64) and [`Versions::to_bytes`].
    fn to_bytes(&self) -> Result<Vec<u8>, MessageError> {
        let mut bytes = Vec::new();
        for (rank, versions) in &self.0 {
            let versions = versions.to_bytes()?;
            bytes.extend((*rank as u32).to_le_bytes());
            bytes.extend((versions.len() as u64).to_le_bytes());
            bytes.extend(versions);
        }
        Ok(bytes)
    }

    fn from_bytes(
        mut bytes: &[u8],
        lora: &LoraConfig,
        model: &ModelConfig,
        codec: Codec,
    ) -> Result<Self, FederationError> {
        let damaged = || MessageError::Container("they are no versions of a shared adapter");
        let mut classes = BTreeMap::new();
        while !bytes.is_empty() {
            let (rank, rest) = bytes.split_first_chunk().ok_or_else(damaged)?;
            let (len, rest) = rest.split_first_chunk().ok_or_else(damaged)?;
            let len = usize::try_from(u64::from_le_bytes(*len)).unwrap_or(usize::MAX);
            let (versions, rest) = rest.split_at_checked(len).ok_or_else(damaged)?;
            let rank = u32::from_le_bytes(*rank) as usize;
            let layout = Adapter::new(lora.at_rank(rank), model, 0)?.parameters;
            let versions = Versions::from_bytes(versions, &layout, codec);
            classes.insert(rank, versions.map_err(MessageError::from)?);
            bytes = rest;
        }
        if classes.is_empty() { Err(damaged().into()) } else { Ok(Self(classes)) }
    }

    /// Those that the round of `row` left; `None` where devices are handed the shared adapter.
    ///
    /// # Errors
    /// When they are missing or damaged.
    pub fn of_round(
        row: &RoundRow,
        lora: &LoraConfig,
        model: &ModelConfig,
        codec: Codec,
        store: &Store,
    ) -> Result<Option<Self>, FederationError> {
        let Some(id) = row.versions else { return Ok(None) };
        Self::from_bytes(&store.blobs().read(id)?, lora, model, codec).map(Some)
    }
}

impl Start {
    /// What the round of `row` left, put on offer.
    ///
    /// # Errors
    /// When it is missing or damaged.
    pub fn load(
        row: RoundRow,
        lora: &LoraConfig,
        model: &ModelConfig,
        codec_down: Codec,
        store: &Store,
        offers: &Offers,
    ) -> Result<Self, FederationError> {
        let bytes = store.blobs().read(row.adapter.id)?;
        let layout = Adapter::new(lora.clone(), model, 0)?.parameters;
        let adapter = Arc::new(decode(&bytes, &layout).map_err(MessageError::from)?);
        let classes = match ClassVersions::of_round(&row, lora, model, codec_down, store)? {
            Some(ClassVersions(classes)) => {
                let class = |(rank, versions)| Class::offer(lora.at_rank(rank), &versions, offers);
                classes.into_iter().map(class).collect::<Result<_, _>>()?
            }
            None => {
                offers.add(Offered::bytes(bytes));
                let (lora, adapter) = (lora.clone(), Arc::clone(&adapter));
                let base = BaseId::of(&adapter);
                vec![Class { lora, adapter, whole: row.adapter, differences: Vec::new(), base }]
            }
        };
        if let Some(control) = row.control {
            offers.add(Offered::bytes(store.blobs().read(control.id)?));
        }
        Ok(Self { row, adapter, classes })
    }

    /// The class of a device that trains ranks up to `max_rank`: the largest that it can hold, or the
    /// smallest there is.
    pub fn class_for(&self, max_rank: u32) -> &Class {
        let fits = |class: &&Class| class.lora.rank <= max_rank as usize;
        self.classes.iter().rev().find(fits).unwrap_or(&self.classes[0])
    }

    /// The class whose adapter the update `message` says that it starts from; the largest where it is
    /// none's, so that decoding tells what is wrong.
    pub fn class_of(&self, message: &[u8]) -> &Class {
        let base = Header::read(message).ok().map(|header| header.base);
        let found = self.classes.iter().find(|class| Some(class.base) == base);
        found.unwrap_or(&self.classes[self.classes.len() - 1])
    }

    /// All that it has put on offer.
    pub fn blobs(&self) -> BTreeSet<BlobId> {
        let of_class = |class: &Class| {
            let differences = class.differences.iter().map(|difference| difference.blob);
            differences.chain([class.whole.id]).collect::<Vec<_>>()
        };
        let control = self.row.control.map(|control| control.id);
        self.classes.iter().flat_map(of_class).chain(control).collect()
    }
}

impl Class {
    fn offer(
        lora: LoraConfig,
        versions: &Versions,
        offers: &Offers,
    ) -> Result<Self, FederationError> {
        let put = |bytes: Vec<u8>| {
            let offered = Offered::bytes(bytes);
            let blob = offered.manifest.blob();
            offers.add(offered);
            blob
        };
        let skipped = versions.steps().len().saturating_sub(MAX_DIFFERENCES);
        let difference = |step: &[u8]| {
            let from = Header::read(step)?.base;
            let Blob { id, size } = put(step.to_vec());
            Ok(Difference { from, blob: id, size })
        };
        let differences: Result<_, _> = versions.steps().skip(skipped).map(difference).collect();
        Ok(Self {
            lora,
            adapter: Arc::new(versions.newest().clone()),
            whole: put(versions.download(None)),
            differences: differences.map_err(MessageError::Update)?,
            base: BaseId::of(versions.newest()),
        })
    }
}

/// Writes what a round leaves as blobs, to be named in the store.
///
/// # Errors
/// When a value is not finite or the disk does not take it.
pub fn store_round(
    store: &Store,
    round: u32,
    state: &ServerState,
    versions: Option<&ClassVersions>,
) -> Result<RoundRow, FederationError> {
    let download = Download::encode(&state.global(), state.control().as_ref())?;
    let blobs = store.blobs();
    let control: Option<Blob> =
        download.control.as_deref().map(|control| blobs.put(control)).transpose()?;
    let versions = versions.map(ClassVersions::to_bytes).transpose()?;
    Ok(RoundRow {
        round,
        adapter: blobs.put(&download.adapter)?,
        control,
        state: blobs.put(&state.to_bytes()?)?.id,
        versions: versions.map(|bytes| blobs.put(&bytes)).transpose()?.map(|blob| blob.id),
    })
}
