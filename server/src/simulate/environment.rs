//! What all runs of one configuration share: one base model, one tokenizer, the clients' data.

use fleetune_core::adapter::Adapter;
use fleetune_core::client::{Task, TrainingDevice};
use fleetune_core::data::{Encoder, Record};
use fleetune_core::generate::{GenerateOptions, generate};
use fleetune_core::model::{PassOptions, TextTokenizer};

use super::error::SimulateError;
use super::fleet::Fleet;
use super::references::References;
use super::suites::SuiteQuestions;
use super::workers::Worker;

/// What all runs of one configuration share.
#[derive(Clone)]
pub struct Environment<'a> {
    /// What clients compute with, and the server measures with: one copy of the base model,
    /// whatever the number of clients.
    pub device: TrainingDevice<'a>,
    /// Processes that train clients on further devices.
    pub workers: &'a [Worker],
    /// Text to tokens and back.
    pub tokenizer: &'a TextTokenizer,
    /// Longest answer, tokens.
    pub answer_tokens: usize,
    /// Rows to tokens.
    pub encoder: &'a Encoder<'a>,
    /// What clients are asked to learn.
    pub task: Task,
    /// The clients' data.
    pub fleet: &'a Fleet,
    /// The adapter to start from, in place of a fresh one.
    pub initial_adapter: Option<&'a Adapter>,
    /// Preferences: what rewards are measured against.
    pub references: &'a References,
    /// What the shared adapter is asked besides the held-out rows.
    pub suites: Option<&'a SuiteQuestions>,
    /// How adapters name their base model.
    pub base_name: &'a str,
    /// Something that a reader of the results must know, such as a stand-in model.
    pub notice: Option<&'a str>,
}

impl Environment<'_> {
    /// What the model with `adapter` answers to the row's question, greedily.
    ///
    /// # Errors
    /// When the question cannot be tokenised or the engine fails.
    pub fn answer(&self, adapter: &Adapter, record: &Record) -> Result<String, SimulateError> {
        let prompt = self.encoder.prompt(record)?;
        let options = GenerateOptions {
            max_tokens: self.answer_tokens,
            stop_ids: self.tokenizer.stop_ids().to_vec(),
            ..GenerateOptions::default()
        };
        let TrainingDevice { decoder, cancel, .. } = &self.device;
        let lora = decoder.lora_tensors(adapter)?;
        let cancel = cancel.clone();
        let pass = PassOptions { lora: Some(&lora), cancel, ..PassOptions::default() };
        let ids = generate(decoder, &prompt, &options, &pass, |_| true)?;
        let text = self.tokenizer.decode(&ids, true)?;
        Ok(text.trim().to_owned())
    }
}
