//! From text to token ids and back.
//!
//! A [`TextTokenizer`] is read from a Hugging Face folder ([`hugging_face`]) or built from the
//! vocabulary in a GGUF file ([`gguf`]); either way Hugging Face's `tokenizers` does the work, so
//! that both give the same ids.

mod byte_level;
mod gguf;
mod hugging_face;
mod sentencepiece;
mod stream;

pub(super) use gguf::from_gguf;
pub(super) use hugging_face::from_folder;

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokenizers::Tokenizer;
use tokenizers::processors::template::TemplateProcessing;

use super::chat::{ChatTemplate, ChatTemplateError};
use crate::data::{Message, Tokenize};

pub use stream::TextStream;

/// Tokens that end an answer or a turn under these names, whatever the files declare. A model that
/// writes one of them is done.
const END_TOKENS: [&str; 7] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
];

/// Why a text cannot be encoded, or ids not decoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The tokenizer failed.
    #[error("the tokenizer failed: {0}")]
    Failed(String),
    /// The text has a token that the model does not know.
    #[error(
        "the text has the token \"{token}\" ({id}), but the model's embedding ends after {rows} \
         tokens"
    )]
    OutsideEmbedding {
        /// The token.
        token: String,
        /// Its id.
        id: u32,
        /// Rows of the embedding.
        rows: usize,
    },
    /// The model brings no chat template.
    #[error("the model has no chat template; use another template")]
    NoChatTemplate,
    /// The chat template failed.
    #[error(transparent)]
    ChatTemplate(#[from] ChatTemplateError),
}

/// The tokens with a meaning of their own.
#[derive(Debug, Clone, Default)]
struct SpecialTokens {
    /// The token the model wants before every text.
    prepended_bos: Option<u32>,
    eos: u32,
    /// `eos` first, then every other token that ends an answer.
    stop_ids: Vec<u32>,
    pad: Option<u32>,
}

/// A model's tokenizer, with its special tokens and its chat template.
#[derive(Debug)]
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    description: String,
    special: SpecialTokens,
    chat_template: Option<ChatTemplate>,
    /// Rows of the model's embedding.
    embedding_rows: usize,
}

impl TextTokenizer {
    /// The token ids of `text`. Special tokens in the text are recognised, none is added.
    ///
    /// # Errors
    /// When the tokenizer fails or the model's embedding has no row for a token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = guarded(|| self.tokenizer.encode_fast(text, false)).map_err(failed)?;
        let ids = encoding.get_ids();
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= self.embedding_rows) {
            return Err(TokenizerError::OutsideEmbedding {
                token: self.token(id).unwrap_or_default(),
                id,
                rows: self.embedding_rows,
            });
        }
        Ok(ids.to_vec())
    }

    /// The text of `ids`. Bytes that are no UTF-8 become `�`; ids without a token are left out, and
    /// with `skip_special` special tokens too.
    ///
    /// # Errors
    /// When the decoder of an unusual `tokenizer.json` fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        guarded(|| self.tokenizer.decode(ids, skip_special)).map_err(failed)
    }

    /// Decodes a text token by token, as it is generated.
    pub fn stream(&self, skip_special: bool) -> TextStream<'_> {
        TextStream::new(self, skip_special)
    }

    /// The token that the model wants before every text, if it wants one.
    pub fn bos(&self) -> Option<u32> {
        self.special.prepended_bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> u32 {
        self.special.eos
    }

    /// All tokens that end an answer: the end of text, the end of turn.
    pub fn stop_ids(&self) -> &[u32] {
        &self.special.stop_ids
    }

    /// The token for padding, if the model names one.
    pub fn pad(&self) -> Option<u32> {
        self.special.pad
    }

    /// Tokens in the vocabulary, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// The token with the id `id`, as the vocabulary writes it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }

    /// The id of a token, written as the vocabulary writes it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// The kind of tokenizer, for people.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// The tokenizer as a `tokenizer.json`, which puts the token before every text that the model
    /// wants there.
    ///
    /// # Errors
    /// When a part of the tokenizer cannot be written.
    pub fn to_json(&self) -> Result<String, TokenizerError> {
        let mut tokenizer = self.tokenizer.clone();
        if let Some((id, token)) = self.bos().and_then(|id| Some((id, self.token(id)?))) {
            let mut builder = TemplateProcessing::builder();
            builder.try_single(format!("{token} $A")).map_err(TokenizerError::Failed)?;
            builder
                .try_pair(format!("{token} $A {token}:1 $B:1"))
                .map_err(TokenizerError::Failed)?;
            let template = builder.special_tokens(vec![(token, id)]).build();
            let template = template.map_err(|error| TokenizerError::Failed(error.to_string()))?;
            tokenizer.with_post_processor(Some(template));
        }
        tokenizer.to_string(true).map_err(failed)
    }

    /// The model's chat template.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }
}

impl Tokenize for TextTokenizer {
    fn encode(&self, text: &str) -> Result<Vec<u32>, crate::data::TokenizerError> {
        Ok(TextTokenizer::encode(self, text)?)
    }

    fn bos(&self) -> Option<u32> {
        TextTokenizer::bos(self)
    }

    fn eos(&self) -> u32 {
        TextTokenizer::eos(self)
    }

    fn render_chat(
        &self,
        turns: &[Message],
        open_answer: bool,
    ) -> Result<String, crate::data::TokenizerError> {
        let template = self.chat_template.as_ref().ok_or(TokenizerError::NoChatTemplate)?;
        Ok(template.render(turns, open_answer)?)
    }
}

impl SpecialTokens {
    /// Collects the tokens that end an answer: `eos`, `declared` ones, and special tokens by
    /// [`END_TOKENS`].
    fn new(
        tokenizer: &Tokenizer,
        prepended_bos: Option<u32>,
        eos: u32,
        declared: impl IntoIterator<Item = u32>,
        pad: Option<u32>,
    ) -> Self {
        let mut stop_ids = vec![eos];
        let added = tokenizer.get_added_tokens_decoder();
        let by_name = END_TOKENS
            .iter()
            .filter_map(|name| tokenizer.token_to_id(name))
            .filter(|id| added.get(id).is_some_and(|token| token.special));
        for id in declared.into_iter().chain(by_name) {
            if !stop_ids.contains(&id) {
                stop_ids.push(id);
            }
        }
        Self { prepended_bos, eos, stop_ids, pad }
    }
}

/// Calls the `tokenizers` crate, which panics over some damaged parts of a `tokenizer.json`. A call
/// only reads the tokenizer, so that it stays usable.
fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|_| Err("its description is damaged: the tokenizers crate panicked".into()))
}

fn failed(error: tokenizers::Error) -> TokenizerError {
    TokenizerError::Failed(error.to_string())
}
