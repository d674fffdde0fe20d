//! Which client holds which rows.
//!
//! Every partition is disjoint, uses every row, and follows from the seed. Clients hold row numbers
//! (four bytes a row), never rows.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use rand::Rng;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Gamma};

use super::dataset::{Dataset, DatasetError};

/// How rows are spread over clients.
#[derive(Debug, Clone, PartialEq)]
pub enum Partition {
    /// Every client gets the same number of rows (give or take one), drawn at random.
    Iid,
    /// As Hsu et al. 2019 (arXiv 1909.06335): every client gets the same number of rows, whose
    /// classes follow proportions that the client draws from a Dirichlet distribution around those
    /// of the whole. Small `alpha`: few classes on each client; large `alpha`: nearly `Iid`.
    Dirichlet {
        /// Concentration, above 0.
        alpha: f64,
        /// The field that holds the class; `None` takes `label` where rows have it, else `source`.
        field: Option<String>,
    },
    /// One data set per client group, the cross-domain setting: rows go by their data set where
    /// several are mixed, else by the part of the set they are from.
    BySource,
    /// One value of this field per client group.
    ByField(String),
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Iid => f.write_str("iid"),
            Self::Dirichlet { alpha, field: None } => write!(f, "dirichlet:{alpha}"),
            Self::Dirichlet { alpha, field: Some(field) } => write!(f, "dirichlet:{alpha}:{field}"),
            Self::BySource => f.write_str("by-source"),
            Self::ByField(field) => write!(f, "by-field:{field}"),
        }
    }
}

/// A partition that nobody knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PartitionNameError {
    /// No partition of this name.
    #[error(
        "there is no partition \"{0}\"; choose iid, dirichlet:ALPHA, dirichlet:ALPHA:FIELD, by-source or by-field:FIELD"
    )]
    Unknown(String),
    /// Not a concentration.
    #[error(
        "\"{0}\" is no concentration for dirichlet; give a number above 0 such as dirichlet:0.5"
    )]
    Alpha(String),
}

impl FromStr for Partition {
    type Err = PartitionNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || PartitionNameError::Unknown(text.to_owned());
        let (kind, argument) = match text.split_once(':') {
            Some((kind, argument)) => (kind, Some(argument)),
            None => (text, None),
        };
        match (kind, argument) {
            ("iid", None) => Ok(Self::Iid),
            ("by-source", None) => Ok(Self::BySource),
            ("by-field", Some(field)) if !field.is_empty() => Ok(Self::ByField(field.to_owned())),
            ("dirichlet", Some(argument)) => {
                let (alpha, field) = match argument.split_once(':') {
                    Some((alpha, field)) if !field.is_empty() => (alpha, Some(field.to_owned())),
                    Some(_) => return Err(unknown()),
                    None => (argument, None),
                };
                match alpha.parse::<f64>() {
                    Ok(value) if value.is_finite() && value > 0.0 => {
                        Ok(Self::Dirichlet { alpha: value, field })
                    }
                    _ => Err(PartitionNameError::Alpha(alpha.to_owned())),
                }
            }
            _ => Err(unknown()),
        }
    }
}

/// The rows of one client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// Row numbers in random order.
    pub rows: Vec<u32>,
    /// The field values whose rows the client holds, where rows go by field; empty otherwise.
    pub groups: Vec<String>,
}

/// Why rows cannot be spread so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PartitionError {
    /// Nobody to spread rows over.
    #[error("rows cannot be spread over 0 clients")]
    NoClients,
    /// A client would have too few rows.
    #[error("client {client} would hold {rows} rows{}, fewer than the {min} it needs; use fewer clients or more rows", group_of(.groups))]
    TooFewRows {
        /// The client.
        client: usize,
        /// What it would hold.
        rows: usize,
        /// What it needs.
        min: usize,
        /// The field values whose rows it would hold.
        groups: Vec<String>,
    },
    /// A row does not have the field.
    #[error("{location}: the row has no field `{field}` to partition by; it has {present}")]
    NoField {
        /// File and line.
        location: String,
        /// The field.
        field: String,
        /// Fields that it has.
        present: String,
    },
    /// A row cannot be read.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
}

fn group_of(groups: &[String]) -> String {
    if groups.is_empty() { String::new() } else { format!(" of {}", groups.join(", ")) }
}

impl Partition {
    /// Spreads `rows` of `dataset` over `clients` clients, each of which needs `min_rows`.
    ///
    /// # Errors
    /// When a client would get too few rows, or a row lacks the field that decides.
    pub fn split(
        &self,
        dataset: &Dataset,
        rows: &[u32],
        clients: usize,
        min_rows: usize,
        seed: u64,
    ) -> Result<Vec<Shard>, PartitionError> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let source = if dataset.is_mixture() { "dataset" } else { "source" };
        let shards = match self {
            _ if clients == 0 => return Err(PartitionError::NoClients),
            Self::Iid => {
                let mut rows = rows.to_vec();
                rows.shuffle(&mut rng);
                deal(rows, clients)
            }
            Self::Dirichlet { alpha, field } => {
                let field = match field {
                    Some(field) => field.as_str(),
                    None => default_class_field(dataset, rows, source)?,
                };
                dirichlet(by_field(dataset, rows, field)?, clients, *alpha, &mut rng)
            }
            Self::BySource => grouped(by_field(dataset, rows, source)?, clients, &mut rng),
            Self::ByField(field) => grouped(by_field(dataset, rows, field)?, clients, &mut rng),
        };
        let poorest = shards.iter().enumerate().min_by_key(|(_, shard)| shard.rows.len());
        match poorest {
            Some((client, shard)) if shard.rows.len() < min_rows.max(1) => {
                Err(PartitionError::TooFewRows {
                    client,
                    rows: shard.rows.len(),
                    min: min_rows.max(1),
                    groups: shard.groups.clone(),
                })
            }
            _ => Ok(shards),
        }
    }
}

/// Rows of one field value.
struct Class {
    value: String,
    rows: Vec<u32>,
}

/// Rows sorted by the value of `field`, values in the order in which they first appear.
fn by_field(dataset: &Dataset, rows: &[u32], field: &str) -> Result<Vec<Class>, PartitionError> {
    let mut classes: Vec<Class> = Vec::new();
    let mut index: HashMap<String, usize> = HashMap::new();
    for &row in rows {
        let record = dataset.record(row)?;
        let Some(value) = record.field(field) else {
            return Err(PartitionError::NoField {
                location: dataset.location(row),
                field: field.to_owned(),
                present: record.field_names().collect::<Vec<_>>().join(", "),
            });
        };
        let class = match index.get(value) {
            Some(&class) => class,
            None => {
                index.insert(value.to_owned(), classes.len());
                classes.push(Class { value: value.to_owned(), rows: Vec::new() });
                classes.len() - 1
            }
        };
        classes[class].rows.push(row);
    }
    Ok(classes)
}

/// `label` where the first row has one.
fn default_class_field(
    dataset: &Dataset,
    rows: &[u32],
    source: &'static str,
) -> Result<&'static str, PartitionError> {
    let Some(&first) = rows.first() else { return Ok(source) };
    let labelled = dataset.record(first)?.field("label").is_some();
    Ok(if labelled { "label" } else { source })
}

/// Deals rows out in turn.
fn deal(rows: Vec<u32>, clients: usize) -> Vec<Shard> {
    let mut shards = vec![Shard { rows: Vec::new(), groups: Vec::new() }; clients];
    for (i, row) in rows.into_iter().enumerate() {
        shards[i % clients].rows.push(row);
    }
    shards
}

/// Clients take rows in turn, each time of a class drawn from their own proportions among the
/// classes that still have rows.
fn dirichlet(
    mut classes: Vec<Class>,
    clients: usize,
    alpha: f64,
    rng: &mut ChaCha8Rng,
) -> Vec<Shard> {
    let total: usize = classes.iter().map(|class| class.rows.len()).sum();
    for class in &mut classes {
        class.rows.shuffle(rng);
    }
    let prior: Vec<f64> =
        classes.iter().map(|class| class.rows.len() as f64 / total as f64).collect();
    let mut proportions: Vec<Vec<f64>> =
        (0..clients).map(|_| draw_proportions(&prior, alpha, rng)).collect();
    let mut shards = vec![Shard { rows: Vec::new(), groups: Vec::new() }; clients];
    for taken in 0..total {
        let client = taken % clients;
        let weights = &mut proportions[client];
        let mut sum: f64 = weights.iter().sum();
        // A client whose classes have run out takes what is left, in proportion.
        if sum <= 0.0 {
            *weights = classes.iter().map(|class| class.rows.len() as f64).collect();
            sum = weights.iter().sum();
        }
        let mut point = rng.random::<f64>() * sum;
        let mut drawn = None;
        for (class, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
            // The last class with any weight takes what rounding leaves over.
            drawn = Some(class);
            point -= weight;
            if point < 0.0 {
                break;
            }
        }
        let Some(class) = drawn else { continue };
        if let Some(row) = classes[class].rows.pop() {
            shards[client].rows.push(row);
        }
        if classes[class].rows.is_empty() {
            for weights in &mut proportions {
                weights[class] = 0.0;
            }
        }
    }
    shards
}

/// A draw from Dirichlet(`alpha` · `prior`).
fn draw_proportions(prior: &[f64], alpha: f64, rng: &mut ChaCha8Rng) -> Vec<f64> {
    let mut draws: Vec<f64> = prior
        .iter()
        .map(|p| Gamma::new(alpha * p, 1.0).map_or(0.0, |gamma| gamma.sample(rng)))
        .collect();
    let sum: f64 = draws.iter().sum();
    if sum > 0.0 && sum.is_finite() {
        draws.iter_mut().for_each(|draw| *draw /= sum);
        return draws;
    }
    // A tiny alpha: every draw rounds to zero. In the limit one class has all.
    let mut point = rng.random::<f64>();
    let class = prior.iter().position(|p| {
        point -= p;
        point < 0.0
    });
    draws.fill(0.0);
    if let Some(draw) = draws.get_mut(class.unwrap_or(0)) {
        *draw = 1.0;
    }
    draws
}

/// One class per group of clients. With at least as many clients as classes, client `i` belongs to
/// class `i` modulo their number and shares its rows; with fewer, the largest classes go first to
/// the client that has least.
fn grouped(mut classes: Vec<Class>, clients: usize, rng: &mut ChaCha8Rng) -> Vec<Shard> {
    for class in &mut classes {
        class.rows.shuffle(rng);
    }
    let mut shards = vec![Shard { rows: Vec::new(), groups: Vec::new() }; clients];
    if classes.len() <= clients {
        let count = classes.len();
        for (i, class) in classes.into_iter().enumerate() {
            let members = (clients - i).div_ceil(count);
            for (j, part) in deal(class.rows, members).into_iter().enumerate() {
                shards[i + j * count] =
                    Shard { rows: part.rows, groups: vec![class.value.clone()] };
            }
        }
        return shards;
    }
    classes.sort_by_key(|class| std::cmp::Reverse(class.rows.len()));
    for class in classes {
        // There is at least one client.
        if let Some(shard) = shards.iter_mut().min_by_key(|shard| shard.rows.len()) {
            shard.rows.extend(class.rows);
            shard.groups.push(class.value);
        }
    }
    for shard in &mut shards {
        shard.rows.shuffle(rng);
    }
    shards
}
