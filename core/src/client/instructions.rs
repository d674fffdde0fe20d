//! What a server tells a device about its part in a round, besides the bytes to fetch.

use serde::{Deserialize, Serialize};

use super::round::RoundPlan;
use crate::data::Template;
use crate::protocol::{Blob, BlobId, MAX_TEXT};
use crate::update::BaseId;

/// Instructions that cannot be followed or sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InstructionsError {
    /// They are not what this version knows.
    #[error("the server's instructions cannot be read: {0}")]
    Malformed(#[from] serde_json::Error),
    /// They are longer than a message carries.
    #[error("the instructions have {0} bytes, at most {MAX_TEXT} can be sent")]
    TooLong(usize),
    /// A value is out of range.
    #[error("the server's instructions make no sense: {0}")]
    Value(&'static str),
}

/// A device's part in a round. Which rows it takes follows from these and the device's own rows
/// alone, so that training again after a crash gives the same update.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Instructions {
    /// The training.
    pub plan: RoundPlan,
    /// The text around a row.
    #[serde(with = "template_name")]
    pub template: Template,
    /// Longest sequence, tokens.
    pub seq_len: usize,
    /// Seed of the order in which a device goes through its rows, round after round; the same in
    /// all rounds of a federation.
    pub order_seed: u64,
    /// The differences that lead to the shared adapter, oldest first: a device that holds the
    /// version that one of them starts from needs that one and those after it, any other the whole
    /// adapter. Absent where adapters only come whole; then a device need not keep a version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub differences: Option<Vec<Difference>>,
}

/// Differences that instructions list at most, so that they fit in a message: a device that missed
/// more rounds gets the whole adapter.
pub const MAX_DIFFERENCES: usize = 16;

/// What leads from one version of the shared adapter to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The version that it starts from.
    #[serde(with = "hexadecimal")]
    pub from: BaseId,
    /// The message, as [`crate::update::receive`] reads it.
    #[serde(with = "hexadecimal")]
    pub blob: BlobId,
    /// Its bytes.
    pub size: u64,
}

impl Instructions {
    /// The messages that lead from version `held` to the shared adapter, in order; `None` where they
    /// do not start from there.
    pub fn leading_from(&self, held: BaseId) -> Option<Vec<Blob>> {
        let differences = self.differences.as_deref()?;
        let first = differences.iter().position(|difference| difference.from == held)?;
        let blobs = differences[first..]
            .iter()
            .map(|&Difference { blob, size, .. }| Blob { id: blob, size });
        Some(blobs.collect())
    }

    /// As the JSON that travels.
    ///
    /// # Errors
    /// When it is longer than a message carries.
    pub fn to_json(&self) -> Result<String, InstructionsError> {
        let text = serde_json::to_string(self)?;
        if text.len() > MAX_TEXT {
            return Err(InstructionsError::TooLong(text.len()));
        }
        Ok(text)
    }

    /// Reads what [`Instructions::to_json`] wrote, here or in another version.
    ///
    /// # Errors
    /// When it is something else, or asks for what no device can do.
    pub fn from_json(text: &str) -> Result<Self, InstructionsError> {
        let instructions: Self = serde_json::from_str(text)?;
        let plan = &instructions.plan;
        plan.lora.check().map_err(|_| InstructionsError::Value("the adapter's shape"))?;
        let rows = plan.steps.checked_mul(plan.batch_size);
        if rows.is_none_or(|rows| rows == 0 || rows > MAX_ROWS) {
            return Err(InstructionsError::Value("the number of rows"));
        }
        if instructions.differences.as_ref().is_some_and(|list| list.len() > MAX_DIFFERENCES) {
            return Err(InstructionsError::Value("the number of differences"));
        }
        if plan.round == 0 || !(8..=MAX_SEQ_LEN).contains(&instructions.seq_len) {
            return Err(InstructionsError::Value("the round or the sequence length"));
        }
        if !(plan.learning_rate.is_finite() && plan.learning_rate > 0.0) {
            return Err(InstructionsError::Value("the learning rate"));
        }
        Ok(instructions)
    }
}

/// Most rows in one round.
const MAX_ROWS: usize = 1 << 24;
/// Longest sequence that any model of these families reads.
const MAX_SEQ_LEN: usize = 1 << 20;

/// Hashes as text: 32 numbers each would fill a message.
mod hexadecimal {
    use data_encoding::HEXLOWER;
    use serde::{Deserialize, Deserializer, Serializer, de};

    use crate::protocol::BlobId;
    use crate::update::BaseId;

    pub trait Hash {
        fn bytes(&self) -> &[u8; 32];
        fn of_bytes(bytes: [u8; 32]) -> Self;
    }

    impl Hash for BlobId {
        fn bytes(&self) -> &[u8; 32] {
            &self.0
        }

        fn of_bytes(bytes: [u8; 32]) -> Self {
            Self(bytes)
        }
    }

    impl Hash for BaseId {
        fn bytes(&self) -> &[u8; 32] {
            self.as_bytes()
        }

        fn of_bytes(bytes: [u8; 32]) -> Self {
            Self::from_bytes(bytes)
        }
    }

    pub fn serialize<T: Hash, S: Serializer>(hash: &T, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&HEXLOWER.encode(hash.bytes()))
    }

    pub fn deserialize<'a, T: Hash, D: Deserializer<'a>>(from: D) -> Result<T, D::Error> {
        let text = String::deserialize(from)?;
        let bytes = HEXLOWER.decode(text.as_bytes()).map_err(de::Error::custom)?;
        let bytes = bytes.try_into().map_err(|_| de::Error::custom("a hash has 32 bytes"))?;
        Ok(T::of_bytes(bytes))
    }
}

mod template_name {
    use serde::{Deserialize, Deserializer, Serializer, de};

    use crate::data::Template;

    pub fn serialize<S: Serializer>(template: &Template, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(template.name())
    }

    pub fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<Template, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::{LoraConfig, Target, TrainedFactors};
    use crate::client::Task;
    use crate::train::PreferenceLoss;

    fn instructions() -> Instructions {
        Instructions {
            plan: RoundPlan {
                round: 3,
                task: Task::Dpo { loss: PreferenceLoss::Sigmoid, beta: 0.1 },
                lora: LoraConfig::new(8, 16.0, &[Target::QProj]).unwrap(),
                steps: 10,
                batch_size: 4,
                learning_rate: 3e-4,
                weight_decay: 0.0,
                max_grad_norm: Some(1.0),
                prox_mu: None,
                trained: TrainedFactors::B,
                codec: "top-k:0.1+int4".parse().unwrap(),
                seed: u64::MAX,
            },
            template: Template::Vicuna,
            seq_len: 512,
            order_seed: u64::MAX - 1,
            differences: None,
        }
    }

    #[test]
    fn differences_lead_on_from_a_version_that_one_of_them_starts_from() {
        let [first, second, other] = [1, 2, 3].map(|byte| BaseId::from_bytes([byte; 32]));
        let blobs = [b"one", b"two"].map(|bytes| Blob::of(bytes));
        let step = |from, Blob { id, size }| Difference { from, blob: id, size };
        let differences = Some(vec![step(first, blobs[0]), step(second, blobs[1])]);
        let instructions = Instructions { differences, ..instructions() };
        let instructions = Instructions::from_json(&instructions.to_json().unwrap()).unwrap();
        assert_eq!(instructions.leading_from(first).unwrap(), blobs);
        assert_eq!(instructions.leading_from(second).unwrap(), blobs[1..]);
        assert_eq!(instructions.leading_from(other), None);
        let many = |count| Instructions {
            differences: Some(vec![Difference { size: u64::MAX, ..step(first, blobs[0]) }; count]),
            ..instructions.clone()
        };
        assert!(Instructions::from_json(&many(MAX_DIFFERENCES).to_json().unwrap()).is_ok());
        assert!(Instructions::from_json(&many(MAX_DIFFERENCES + 1).to_json().unwrap()).is_err());
    }

    #[test]
    fn instructions_read_back_as_they_were_written() {
        let text = instructions().to_json().unwrap();
        assert_eq!(Instructions::from_json(&text).unwrap(), instructions());
        let grown = text.replacen('{', r#"{"a_field_of_a_later_version":1,"#, 1);
        assert_eq!(Instructions::from_json(&grown).unwrap(), instructions());
    }

    #[test]
    fn instructions_that_no_device_can_follow_are_refused() {
        let text = instructions().to_json().unwrap();
        for (from, to) in [
            ("\"steps\":10", "\"steps\":0"),
            ("\"steps\":10", "\"steps\":18446744073709551615"),
            ("\"seq_len\":512", "\"seq_len\":0"),
            ("\"rank\":8", "\"rank\":0"),
            ("\"learning_rate\":0.0003", "\"learning_rate\":-1.0"),
            ("\"template\":\"vicuna\"", "\"template\":\"poem\""),
        ] {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text, "{from} is not in {text}");
            assert!(Instructions::from_json(&changed).is_err(), "{to}");
        }
    }
}
