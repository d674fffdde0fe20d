//! The clients' data: which rows a client holds, which are held out, read when they are needed.
//!
//! Memory holds row numbers (four bytes a row), never rows.

use std::collections::{BTreeMap, HashSet};

use fleetune_core::data::{
    Content, Dataset, DatasetError, Encoder, HoldOut, HoldOutError, PartitionError, Record, Shard,
};
use fleetune_core::train::{Learner, SampleLengths};
use rand::Rng;
use rand::seq::SliceRandom;

use super::config::RunConfig;
use crate::aggregate::Algorithm;
use crate::seed::{Choice, derived, generator};
use crate::training::TaskMismatch;

/// Why rows cannot be dealt to clients.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FleetError {
    /// Rows cannot be held out.
    #[error(transparent)]
    HoldOut(#[from] HoldOutError),
    /// Rows cannot be spread over clients.
    #[error(transparent)]
    Partition(#[from] PartitionError),
    /// A row cannot be read.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// Nobody can learn, or nothing can be scored.
    #[error(
        "none of the {rows} {whose} has anything left to learn within {seq_len} tokens: use a longer --seq-len"
    )]
    NothingToLearn {
        /// How many rows there are.
        rows: usize,
        /// What they are.
        whose: &'static str,
        /// Longest sequence.
        seq_len: usize,
    },
    /// The task and the data do not fit.
    #[error(transparent)]
    Task(#[from] TaskMismatch),
}

/// A held-out row and the group it is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct HeldOutRow {
    row: u32,
    /// Index into [`Fleet::groups`].
    group: u16,
}

/// The data of a federation.
#[derive(Debug)]
pub struct Fleet {
    dataset: Dataset,
    shards: Vec<Shard>,
    groups: Vec<String>,
    held_out: Vec<HeldOutRow>,
}

impl Fleet {
    /// Holds rows out and deals the others to clients, as the configuration says.
    ///
    /// # Errors
    /// When there are too few rows for the clients, or a row cannot be read.
    pub fn new(dataset: Dataset, config: &RunConfig) -> Result<Self, FleetError> {
        config.task.check(&dataset)?;
        dataset.check_template(config.template())?;
        let (train, held_out) = if dataset.marks_holdout() {
            let split = dataset.split_holdout(HoldOut::Marked, 0)?;
            (split.train, split.held_out)
        } else if config.holdout > 0.0 {
            let seed = derived(config.seed, Choice::HoldOut, &[]);
            let split = dataset.split_holdout(HoldOut::Fraction(config.holdout), seed)?;
            (split.train, split.held_out)
        } else {
            (dataset.rows(), Vec::new())
        };
        let seed = derived(config.seed, Choice::Partition, &[]);
        let shards = config.partition.split(&dataset, &train, config.clients as usize, 1, seed)?;
        let mut fleet = Self { dataset, shards, groups: Vec::new(), held_out: Vec::new() };
        fleet.choose_held_out(held_out, config)?;
        Ok(fleet)
    }

    /// Takes the held-out rows that evaluations read: of each group in turn, in a random order.
    fn choose_held_out(
        &mut self,
        mut rows: Vec<u32>,
        config: &RunConfig,
    ) -> Result<(), FleetError> {
        rows.shuffle(&mut generator(config.seed, Choice::HoldOut, &[1]));
        let mut by_group: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for row in rows.iter().copied() {
            let group = group_of(&self.dataset, &self.dataset.record(row)?);
            by_group.entry(group).or_default().push(row);
        }
        let wanted = if config.eval_rows == 0 { rows.len() } else { config.eval_rows };
        // Numbers of groups are small in every data set; beyond, rows are counted together.
        self.groups = by_group.keys().take(usize::from(u16::MAX)).cloned().collect();
        let mut queues: Vec<_> = by_group.into_values().map(Vec::into_iter).collect();
        while self.held_out.len() < wanted {
            let before = self.held_out.len();
            for (group, queue) in queues.iter_mut().enumerate() {
                if let Some(row) = queue.next().filter(|_| self.held_out.len() < wanted) {
                    let group = group.min(usize::from(u16::MAX) - 1) as u16;
                    self.held_out.push(HeldOutRow { row, group });
                }
            }
            if self.held_out.len() == before {
                break;
            }
        }
        Ok(())
    }

    /// Checks that every algorithm of `config` has a client that can learn, and that something can
    /// be scored where rows are held out. Reads until it finds a row of each.
    ///
    /// # Errors
    /// When the sequence length leaves nothing of all rows, or one cannot be read.
    pub fn check<L: Learner>(
        &self,
        config: &RunConfig,
        encoder: &Encoder<'_>,
    ) -> Result<(), FleetError> {
        let check = |whose, rows: Vec<u32>| {
            for &row in &rows {
                if L::sample(&self.dataset, row, encoder)?.is_some() {
                    return Ok(());
                }
            }
            let seq_len = encoder.seq_len();
            Err(FleetError::NothingToLearn { rows: rows.len(), whose, seq_len })
        };
        for algorithm in config.algorithms() {
            let (whose, shards) = match *algorithm {
                Algorithm::Local { client } => {
                    ("rows of the client that trains alone", self.shards.get(client..=client))
                }
                _ => ("rows of the clients", Some(&self.shards[..])),
            };
            let shards = shards.unwrap_or_default();
            check(whose, shards.iter().flat_map(|shard| shard.rows.iter().copied()).collect())?;
        }
        match self.held_out.as_slice() {
            [] => Ok(()),
            rows => check("held-out rows", rows.iter().map(|held_out| held_out.row).collect()),
        }
    }

    /// How long the rows are, held-out ones included.
    ///
    /// # Errors
    /// When a row cannot be read or tokenised.
    pub fn lengths<L: Learner>(
        &self,
        encoder: &Encoder<'_>,
    ) -> Result<SampleLengths, DatasetError> {
        SampleLengths::probe::<L>(&self.dataset, encoder)
    }

    /// Rows that client `client` holds.
    pub fn rows_of(&self, client: u32) -> usize {
        self.shards.get(client as usize).map_or(0, |shard| shard.rows.len())
    }

    /// The groups of rows that client `client` holds, where rows go by group.
    pub fn groups_of(&self, client: u32) -> &[String] {
        self.shards.get(client as usize).map_or(&[], |shard| &shard.groups)
    }

    /// The rows of client `client` in the order of `order` (numbers below [`Fleet::rows_of`]),
    /// tokenised as they are asked for; rows without anything to learn are passed over.
    pub fn samples<'a, L: Learner>(
        &'a self,
        client: u32,
        order: Vec<usize>,
        encoder: &'a Encoder<'_>,
    ) -> impl Iterator<Item = Result<L::Sample, DatasetError>> + 'a {
        let rows = self.shards.get(client as usize).map_or(&[][..], |shard| &shard.rows);
        let rows = order.into_iter().filter_map(move |i| rows.get(i).copied());
        rows.filter_map(|row| L::sample(&self.dataset, row, encoder).transpose())
    }

    /// What the inputs of all clients' rows say: texts that nobody should be examined on.
    ///
    /// # Errors
    /// When a row cannot be read.
    pub fn training_texts(&self) -> Result<HashSet<String>, DatasetError> {
        let mut texts = HashSet::new();
        for &row in self.shards.iter().flat_map(|shard| &shard.rows) {
            let record = self.dataset.record(row)?;
            if let Content::Instruction { input: Some(text), .. } = record.content {
                texts.insert(text);
            }
        }
        Ok(texts)
    }

    /// Names of the groups of the held-out rows.
    pub fn groups(&self) -> &[String] {
        &self.groups
    }

    /// Number of held-out rows.
    pub fn held_out(&self) -> usize {
        self.held_out.len()
    }

    /// Held-out row `i`, tokenised, with the index of its group; `None` where it has nothing to
    /// learn.
    ///
    /// # Errors
    /// When the row cannot be read or tokenised.
    pub fn held_out_sample<L: Learner>(
        &self,
        i: usize,
        encoder: &Encoder<'_>,
    ) -> Result<Option<(usize, L::Sample)>, DatasetError> {
        let HeldOutRow { row, group } = self.held_out[i];
        let sample = L::sample(&self.dataset, row, encoder)?;
        Ok(sample.map(|sample| (usize::from(group), sample)))
    }

    /// Held-out row `i` as it is in the data, with its group.
    ///
    /// # Errors
    /// When the row cannot be read.
    pub fn held_out_record(&self, i: usize) -> Result<(&str, Record), DatasetError> {
        let HeldOutRow { row, group } = self.held_out[i];
        Ok((&self.groups[usize::from(group)], self.dataset.record(row)?))
    }

    /// Deals the held-out rows to clients, as numbers below [`Fleet::held_out`]: each to a client
    /// drawn in proportion to how many training rows of the same class the client holds, so that a
    /// client is measured on what it is trained on.
    ///
    /// # Errors
    /// When a row cannot be read.
    pub fn deal_held_out(&self, seed: u64) -> Result<Vec<Vec<usize>>, FleetError> {
        let mut holdings: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (client, shard) in self.shards.iter().enumerate() {
            for &row in &shard.rows {
                let class = class_of(&self.dataset, &self.dataset.record(row)?);
                let counts = holdings.entry(class).or_default();
                counts.resize(self.shards.len(), 0);
                counts[client] += 1;
            }
        }
        let everything: Vec<usize> = self.shards.iter().map(|shard| shard.rows.len()).collect();
        let mut random = generator(seed, Choice::HoldOut, &[2]);
        let mut dealt = vec![Vec::new(); self.shards.len()];
        for (i, held_out) in self.held_out.iter().enumerate() {
            let class = class_of(&self.dataset, &self.dataset.record(held_out.row)?);
            let counts = holdings.get(&class).unwrap_or(&everything);
            let mut ticket = random.random_range(0..counts.iter().sum::<usize>().max(1));
            for (client, &count) in counts.iter().enumerate() {
                if ticket < count {
                    dealt[client].push(i);
                    break;
                }
                ticket -= count;
            }
        }
        Ok(dealt)
    }
}

/// What makes rows alike: their label where they have one, and where they are from.
fn class_of(dataset: &Dataset, record: &Record) -> String {
    format!("{}\n{}", record.field("label").unwrap_or_default(), group_of(dataset, record))
}

/// What a row is counted under: its data set where several are mixed, else its source.
fn group_of(dataset: &Dataset, record: &Record) -> String {
    let field = if dataset.is_mixture() { "dataset" } else { "source" };
    record.field(field).unwrap_or_default().to_owned()
}
