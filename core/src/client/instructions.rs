//! What a server tells a device about its part in a round, besides the bytes to fetch.

use serde::{Deserialize, Serialize};

use super::round::RoundPlan;
use crate::data::Template;
use crate::protocol::MAX_TEXT;

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
}

impl Instructions {
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
        }
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
