//! What a suite needs of a language model, and no more.
//!
//! The seam between evaluation and engine: suites and runner know this trait only, so they are
//! tested against a model that a test makes up, and the engine is free in how it shares prefixes,
//! caches keys and values, and batches.

use std::fmt;
use std::ops::ControlFlow;

use fleetune_core::data::{EncodeError, Message, Template};
use fleetune_core::train::Evaluation;
use serde::{Deserialize, Serialize};

use crate::training::ComputePrecision;

/// Which model an evaluation was of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The model as the user named it.
    pub model: String,
    /// SHA-256 of its weights file or files.
    pub model_sha256: String,
    /// The adapter's folder, if one is applied.
    pub adapter: Option<String>,
    /// SHA-256 of the adapter's tensors.
    pub adapter_sha256: Option<String>,
    /// SHA-256 of what else answers depend on: the files beside a model's weights that say how to
    /// compute and to write, and the adapter's rank, alpha and targets.
    #[serde(default)]
    pub settings_sha256: String,
    /// How its products round.
    #[serde(default)]
    pub precision: ComputePrecision,
}

impl Identity {
    /// Whether both compute the same numbers, whatever they are called.
    pub fn computes_as(&self, other: &Self) -> bool {
        self.model_sha256 == other.model_sha256
            && self.adapter_sha256 == other.adapter_sha256
            && self.settings_sha256 == other.settings_sha256
            && self.precision == other.precision
    }

    /// What of two models that do not compute the same numbers is different, in words.
    pub fn difference(&self, other: &Self) -> &'static str {
        if self.model_sha256 != other.model_sha256 {
            "the model's weights differ"
        } else if self.adapter_sha256 != other.adapter_sha256 {
            "the adapter's weights differ"
        } else if self.precision != other.precision {
            "the precision differs"
        } else {
            "the model's configuration or tokenizer, or the adapter's rank, alpha or targets, differ"
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.adapter {
            Some(adapter) => write!(f, "{} with the adapter {adapter}", self.model)?,
            None => f.write_str(&self.model)?,
        }
        // f32 goes without saying.
        if self.precision == ComputePrecision::F32 {
            Ok(())
        } else {
            write!(f, " in {}", self.precision)
        }
    }
}

/// Continuations of one prefix, to be scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScoreRequest {
    /// Token ids that come first; at least one.
    pub prefix: Vec<u32>,
    /// Token ids of each continuation; at least one each.
    pub continuations: Vec<Vec<u32>>,
}

/// One prompt to be continued by the model.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateRequest {
    /// Token ids of the prompt; at least one.
    pub prompt: Vec<u32>,
    /// How to continue.
    pub options: GenerateOptions,
}

/// How a model continues a prompt. It always stops at the end of its turn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerateOptions {
    /// Most tokens to write.
    pub max_tokens: usize,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// 0 always takes the likeliest token.
    pub temperature: f64,
    /// Independent answers to draw.
    pub samples: usize,
    /// Where the chance comes from.
    pub seed: u64,
}

/// Why a model could not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// What is asked needs more tokens than the model takes.
    #[error("{needed} tokens are needed, but the model takes {limit}: ask for fewer --shots")]
    TooLong {
        /// Tokens needed.
        needed: usize,
        /// Tokens the model takes.
        limit: usize,
    },
    /// A text cannot be tokenised, or a template cannot hold a conversation.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] anyhow::Error),
}

/// A language model that can be asked.
pub trait LanguageModel {
    /// Which model this is.
    fn identity(&self) -> Identity;

    /// Longest sequence of prompt and answer, in tokens.
    fn max_tokens(&self) -> usize;

    /// Token ids of a text. `start` adds the tokens that the model expects before a text (its
    /// beginning-of-text token, if it has one and the text does not begin with it).
    ///
    /// # Errors
    /// When the tokenizer fails.
    fn encode(&self, text: &str, start: bool) -> Result<Vec<u32>, ModelError>;

    /// What the model reads before it answers the last of `messages`.
    ///
    /// # Errors
    /// When the template cannot hold the conversation, or the model has none of its own.
    fn render(&self, template: Template, messages: &[Message]) -> Result<String, ModelError>;

    /// For each request, for each of its continuations, the sums over its tokens.
    ///
    /// # Errors
    /// When a sequence is too long, or the engine fails.
    fn score(&mut self, requests: &[ScoreRequest]) -> Result<Vec<Vec<Evaluation>>, ModelError>;

    /// Writes as many answers to each request as it asks for. `done` is given a request's number and
    /// its answers as soon as they are complete, in any order, and says whether to go on with the
    /// others.
    ///
    /// # Errors
    /// When a prompt leaves no room for an answer, or the engine fails.
    fn generate(
        &mut self,
        requests: &[GenerateRequest],
        done: &mut dyn FnMut(usize, Vec<String>) -> ControlFlow<()>,
    ) -> Result<(), ModelError>;
}
