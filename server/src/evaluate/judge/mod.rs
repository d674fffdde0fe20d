//! Opinions about free answers: from an endpoint of OpenAI's interface, or from a local model.

mod endpoint;
mod opinion;
mod secrets;

pub use endpoint::{Endpoint, EndpointOptions, check_address};
pub use opinion::{Opinion, rating, verdict_bit};

use std::ops::ControlFlow;

use fleetune_core::data::{Message, Role, Template};

use super::ask::cut;
use super::model::{GenerateOptions, GenerateRequest, LanguageModel, ModelError};

/// Longest opinion, in tokens; MT-Bench's own setting.
const MAX_TOKENS: usize = 2048;

/// No opinion could be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JudgeError {
    /// The endpoint's address is none.
    #[error("the judge's address cannot be used: {0}")]
    Address(String),
    /// The key cannot be sent.
    #[error("the key holds characters that cannot be sent in a header: it must be the key alone")]
    Key,
    /// The user asked to stop.
    #[error("stopped while the judge was asked")]
    Stopped,
    /// The endpoint did not answer, whatever the patience.
    #[error("the judge at {url} failed {attempts} times, at last with: {problem}")]
    Unreachable {
        /// The endpoint.
        url: String,
        /// How often it was asked.
        attempts: u32,
        /// What it said last.
        problem: String,
    },
    /// The endpoint refuses the request, and would again.
    #[error(
        "the judge at {url} refuses the request ({problem}): check its address, its model's name and the key in FLEETUNE_JUDGE_KEY"
    )]
    Refused {
        /// The endpoint.
        url: String,
        /// What it said.
        problem: String,
    },
    /// The endpoint has no opinion on this question; it may on others.
    #[error("{problem}")]
    Withheld {
        /// What it said.
        problem: String,
    },
    /// The judge failed at another question, and is left alone since.
    #[error("the judge is not asked again after it failed")]
    Down,
    /// The local judge failed.
    #[error("the judging model failed: {0}")]
    Local(#[from] ModelError),
}

/// Somebody who gives opinions.
pub trait Judge: Send {
    /// Who it is: opinions of different judges are never mixed.
    fn name(&self) -> String;

    /// The judge's answer to a message, with a system message before it.
    ///
    /// # Errors
    /// When it does not answer.
    fn ask(&mut self, system: &str, message: &str) -> Result<String, JudgeError>;
}

/// Stands in for a judge that failed, so that nobody waits for it again.
pub struct DownJudge(pub String);

impl Judge for DownJudge {
    fn name(&self) -> String {
        self.0.clone()
    }

    fn ask(&mut self, _system: &str, _message: &str) -> Result<String, JudgeError> {
        Err(JudgeError::Down)
    }
}

/// A local model as judge.
pub struct LocalJudge<M> {
    model: M,
}

impl<M: LanguageModel> LocalJudge<M> {
    /// Lets `model` judge, in its own chat template and without chance.
    pub fn new(model: M) -> Self {
        Self { model }
    }
}

impl<M: LanguageModel + Send> Judge for LocalJudge<M> {
    fn name(&self) -> String {
        self.model.identity().to_string()
    }

    fn ask(&mut self, system: &str, message: &str) -> Result<String, JudgeError> {
        let mut messages = Vec::new();
        if !system.is_empty() {
            messages.push(Message::new(Role::System, system));
        }
        messages.push(Message::new(Role::User, message));
        let text = self.model.render(Template::Chat, &messages)?;
        let mut prompt = self.model.encode(&text, true)?;
        let room = self.model.max_tokens().saturating_sub(prompt.len());
        // A question too long for the judge loses its beginning, never the request at its end.
        let max_tokens = MAX_TOKENS.min(room.max(self.model.max_tokens() / 4)).max(1);
        cut(&self.model, &mut prompt, max_tokens)?;
        let options =
            GenerateOptions { max_tokens, stop: Vec::new(), temperature: 0.0, samples: 1, seed: 0 };
        let mut answer = None;
        self.model.generate(&[GenerateRequest { prompt, options }], &mut |_, mut answers| {
            answer = answers.pop();
            ControlFlow::Continue(())
        })?;
        Ok(answer.unwrap_or_default())
    }
}
