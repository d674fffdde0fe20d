//! What a run and its workers tell each other: length-prefixed messages over stdin and stdout.
//!
//! Numbers travel as their bits. Both sides are one program, so messages need no versions.

use std::io::{self, Read, Write};
use std::path::PathBuf;

use fleetune_core::adapter::{LoraConfig, TrainedFactors};
use fleetune_core::client::{DeviceMemory, Download, RoundOutcome, RoundPlan, Task};
use fleetune_core::memory::MemoryPlan;
use fleetune_core::train::{PreferenceLoss, StepReport};
use fleetune_core::update::Codec;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::simulate::assignment::Assignment;

/// Longest message: beyond the adapters, variates and residuals of any team, and far below what a
/// stray line of text says when it is read as a length.
const MAX_MESSAGE: u64 = 1 << 36;

/// What a worker is to be for a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// The run's configuration, TOML.
    pub config: String,
    /// The base model's files.
    pub model: PathBuf,
    /// Hash of the base model, where the task needs it.
    pub model_hash: String,
}

/// What the run tells a worker.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// The first message, and the only one of its kind.
    Open(Job),
    /// To train the clients of a team through common passes.
    Train { memory: MemoryPlan, team: Vec<Part> },
}

/// What a worker tells the run.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Report {
    /// Model and data are open.
    Ready,
    /// A client took a step; clients are named by their places in the team.
    Stepped { place: usize, step: StepReport },
    /// What became of each client of the team.
    Trained(Vec<PartOutcome>),
    /// The worker cannot go on.
    Failed(String),
}

/// A client's assignment.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Part {
    client: u32,
    #[serde(with = "PlanMessage")]
    plan: RoundPlan,
    download: Download,
    memory: DeviceMemory,
    order: Vec<usize>,
}

/// What became of a client's part.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum PartOutcome {
    /// It trained. The version of the adapter that it held is left out: the run handed it out.
    Done(Box<RoundOutcome>),
    /// None of its rows had anything to learn.
    NothingToLearn,
    /// It was stopped.
    Stopped,
    /// It failed.
    Failed(String),
}

impl From<Assignment> for Part {
    fn from(assignment: Assignment) -> Self {
        let Assignment { client, plan, download, memory, order } = assignment;
        Self { client, plan, download, memory, order }
    }
}

impl From<Part> for Assignment {
    fn from(part: Part) -> Self {
        let Part { client, plan, download, memory, order } = part;
        Self { client, plan, download, memory, order }
    }
}

/// [`RoundPlan`], whose own form names the task by a tag that only self-describing formats can read.
#[derive(Serialize, Deserialize)]
#[serde(remote = "RoundPlan")]
struct PlanMessage {
    round: u32,
    #[serde(with = "TaskMessage")]
    task: Task,
    lora: LoraConfig,
    steps: usize,
    batch_size: usize,
    learning_rate: f64,
    weight_decay: f64,
    max_grad_norm: Option<f64>,
    prox_mu: Option<f64>,
    trained: TrainedFactors,
    codec: Codec,
    seed: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Task")]
enum TaskMessage {
    Sft,
    Dpo { loss: PreferenceLoss, beta: f64 },
}

/// Why messages cannot be exchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The other side is gone.
    #[error("the other process closed the connection")]
    Closed,
    /// Bytes cannot be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What came says that it is longer than any message.
    #[error("it sent {0} bytes, which is longer than any message")]
    TooLong(u64),
    /// What came is no message.
    #[error("it sent something that is no message: {0}")]
    Malformed(postcard::Error),
    /// A message has no bytes.
    #[error("a message cannot be written: {0}")]
    Encode(postcard::Error),
    /// A message came at the wrong time.
    #[error("it sent a message out of turn")]
    OutOfTurn,
}

/// Writes a message and hands it to the other side.
///
/// # Errors
/// When the other side takes no bytes any more.
pub(super) fn send(to: &mut impl Write, message: &impl Serialize) -> Result<(), LinkError> {
    let mut bytes =
        postcard::to_extend(message, vec![0; size_of::<u64>()]).map_err(LinkError::Encode)?;
    let len = (bytes.len() - size_of::<u64>()) as u64;
    bytes[..size_of::<u64>()].copy_from_slice(&len.to_le_bytes());
    to.write_all(&bytes)?;
    Ok(to.flush()?)
}

/// Reads the next message.
///
/// # Errors
/// When the other side is gone or what came is no message.
pub(super) fn receive<T: DeserializeOwned>(from: &mut impl Read) -> Result<T, LinkError> {
    let mut len = [0; size_of::<u64>()];
    from.read_exact(&mut len).map_err(closed)?;
    let len = u64::from_le_bytes(len);
    if len > MAX_MESSAGE {
        return Err(LinkError::TooLong(len));
    }
    // Grows with what comes: a length alone takes no memory.
    let mut bytes = Vec::new();
    if from.take(len).read_to_end(&mut bytes)? as u64 != len {
        return Err(LinkError::Closed);
    }
    match postcard::take_from_bytes(&bytes) {
        Ok((message, [])) => Ok(message),
        Ok(_) => Err(LinkError::Malformed(postcard::Error::DeserializeBadEncoding)),
        Err(error) => Err(LinkError::Malformed(error)),
    }
}

fn closed(error: io::Error) -> LinkError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => LinkError::Closed,
        _ => LinkError::Io(error),
    }
}

#[cfg(test)]
mod tests {
    use fleetune_core::adapter::{Parameter, ParameterSet, Target};

    use super::*;

    fn part() -> Part {
        let values = vec![1.0, -0.0, 1e-42, f32::MAX];
        let set = ParameterSet::new(vec![Parameter { name: "w".into(), shape: vec![4], values }]);
        Part {
            client: 3,
            plan: RoundPlan {
                round: 2,
                task: Task::Dpo {
                    loss: PreferenceLoss::Robust { label_smoothing: 0.1 },
                    beta: 1.0 / 3.0,
                },
                lora: LoraConfig::new(8, 16.0, &[Target::QProj, Target::VProj]).unwrap(),
                steps: 2,
                batch_size: 4,
                learning_rate: 0.1 + 0.2,
                weight_decay: 0.0,
                max_grad_norm: None,
                prox_mu: Some(1e-300),
                trained: TrainedFactors::B,
                codec: "top-k:0.1+int4".parse().unwrap(),
                seed: u64::MAX,
            },
            download: Download { adapter: vec![1, 2, 255], control: None },
            memory: DeviceMemory { control: Some(set), residual: None, held: None },
            order: vec![5, 0, 9],
        }
    }

    fn sent(message: &impl Serialize) -> Vec<u8> {
        let mut bytes = Vec::new();
        send(&mut bytes, message).unwrap();
        bytes
    }

    #[test]
    fn an_order_arrives_bit_by_bit() {
        let memory = MemoryPlan {
            max_pass_tokens: 1,
            shared_pass_tokens: 2,
            clients: 3,
            kept_layers: 4,
            score_rows: 5,
            peak_bytes: u64::MAX,
        };
        let bytes = sent(&Order::Train { memory, team: vec![part(), part()] });
        let Order::Train { memory: arrived, team } = receive(&mut &bytes[..]).unwrap() else {
            panic!("another order");
        };
        assert_eq!((arrived, team.len()), (memory, 2));
        let (left, right) = (&team[1], part());
        assert_eq!(left.plan, right.plan);
        assert_eq!((&left.download, &left.order), (&right.download, &right.order));
        // Equal bytes tell zeros of different sign apart, too.
        assert_eq!(sent(&left.memory), sent(&right.memory));
    }

    #[test]
    fn what_is_cut_short_or_no_message_is_told() {
        let bytes = sent(&Order::Train {
            memory: MemoryPlan {
                max_pass_tokens: 1,
                shared_pass_tokens: 1,
                clients: 1,
                kept_layers: 0,
                score_rows: 1,
                peak_bytes: 0,
            },
            team: vec![part()],
        });
        for len in 0..bytes.len() {
            let read = receive::<Order>(&mut &bytes[..len]);
            assert!(matches!(read, Err(LinkError::Closed)), "{len} bytes: {read:?}");
        }
        let stray = b"thread 'main' panicked";
        assert!(matches!(receive::<Order>(&mut &stray[..]), Err(LinkError::TooLong(_))));
        let mut longer = bytes.clone();
        longer[0] += 1;
        longer.push(0);
        assert!(matches!(receive::<Order>(&mut &longer[..]), Err(LinkError::Malformed(_))));
    }
}
