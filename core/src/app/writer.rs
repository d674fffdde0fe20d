//! Writing text with the base model and an adapter of this device.

use std::ops::ControlFlow;

use super::adapters::KeptAdapter;
use crate::adapter::AdapterError;
use crate::client::OpenModel;
use crate::data::{EncodeError, Encoder, Message, Role, Template, Tokenize};
use crate::generate::{GenerateOptions, generate};
use crate::model::{CancelToken, EngineError, ModelError, PassOptions, TokenizerError};

/// How text is written.
#[derive(Debug, Clone, PartialEq)]
pub struct WriteOptions {
    /// Most tokens.
    pub max_tokens: usize,
    /// 0 takes the likeliest token; larger values draw more freely.
    pub temperature: f64,
    /// Draws only among the likeliest tokens whose probabilities reach this sum.
    pub top_p: Option<f64>,
    /// Seed of the draws.
    pub seed: u64,
}

/// A text, written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenText {
    /// The text.
    pub text: String,
    /// Tokens of it.
    pub tokens: usize,
    /// Whether the model came to an end by itself.
    pub ended: bool,
}

/// Why no text is written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// There is nothing to answer.
    #[error("the prompt is empty: give some text")]
    EmptyPrompt,
    /// The prompt fills the model's context.
    #[error(
        "the prompt has {tokens} tokens and fills the model's context of {context}: shorten it"
    )]
    TooLong {
        /// Its tokens.
        tokens: usize,
        /// The model's context.
        context: usize,
    },
    /// The model has no tokenizer.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The prompt cannot be put into the template.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The tokenizer fails.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The adapter is another model's.
    #[error("the adapter does not fit this model: {0}")]
    Adapter(#[from] AdapterError),
    /// The engine fails or was cancelled.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// The template that suits a model by itself: its own, or Alpaca's where it has none.
pub fn template_of(model: &OpenModel) -> Template {
    if model.files.chat_template().is_some() { Template::Chat } else { Template::Alpaca }
}

/// Answers `prompt`, put into the template that the adapter was trained with (without an adapter, the
/// model's own). `each` gets every piece of text as it comes and may end the writing.
///
/// # Errors
/// When the prompt is empty or too long, the adapter is another model's, or `cancel` ends it.
pub fn write_text(
    model: &OpenModel,
    kept: Option<&KeptAdapter>,
    prompt: &str,
    options: &WriteOptions,
    cancel: CancelToken,
    each: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<WrittenText, WriteError> {
    if prompt.trim().is_empty() {
        return Err(WriteError::EmptyPrompt);
    }
    let OpenModel { files, decoder } = model;
    let (tokenizer, context) = (files.tokenizer()?, files.config.max_context);
    let template = kept.map_or_else(|| template_of(model), |kept| kept.template);
    let encoder = Encoder::new(template, tokenizer, context)?;
    let text = encoder.prompt_text(&[Message::new(Role::User, prompt)])?;
    let mut ids = tokenizer.encode(&text)?;
    if let Some(bos) = Tokenize::bos(tokenizer)
        && ids.first() != Some(&bos)
    {
        ids.insert(0, bos);
    }
    if ids.len() >= context {
        return Err(WriteError::TooLong { tokens: ids.len(), context });
    }
    let max_tokens = options.max_tokens.min(context - ids.len());
    let lora = match kept {
        Some(KeptAdapter { adapter, .. }) => {
            adapter.check_against(decoder.config())?;
            Some(decoder.lora_tensors(adapter)?)
        }
        None => None,
    };
    let pass = PassOptions { lora: lora.as_ref(), cancel, ..PassOptions::default() };
    let WriteOptions { temperature, top_p, seed, .. } = *options;
    let stop_ids = tokenizer.stop_ids().to_vec();
    let options = GenerateOptions { max_tokens, temperature, top_p, seed, stop_ids };
    let mut stream = tokenizer.stream(true);
    let (mut text, mut failure, mut stopped) = (String::new(), None, false);
    let written = generate(decoder, &ids, &options, &pass, |token| match stream.push(token) {
        Ok(piece) => {
            text += &piece;
            stopped = !piece.is_empty() && each(&piece).is_break();
            !stopped
        }
        Err(error) => {
            failure = Some(error);
            false
        }
    })?;
    if let Some(error) = failure {
        return Err(error.into());
    }
    let rest = stream.finish()?;
    if !stopped && !rest.is_empty() {
        // Whether to go on is no question any more.
        let _ = each(&rest);
    }
    text += &rest;
    Ok(WrittenText { text, tokens: written.len(), ended: !stopped && written.len() < max_tokens })
}
