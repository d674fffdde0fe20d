//! A tokenizer out of the metadata of a GGUF file.

use std::path::Path;

use tokenizers::models::bpe::Vocab;
use tokenizers::{AddedToken, Tokenizer};

use super::{SpecialTokens, TextTokenizer, byte_level, sentencepiece};
use crate::model::chat::ChatTemplate;
use crate::model::error::ModelError;
use crate::model::gguf::GgufFile;

pub(super) const TOKENS_KEY: &str = "tokenizer.ggml.tokens";
const MODEL_KEY: &str = "tokenizer.ggml.model";
const TYPES_KEY: &str = "tokenizer.ggml.token_type";

/// What a token of the vocabulary is (`llama_token_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// A piece of text.
    Normal,
    /// Recognised in a text, left out of a decoded one.
    Special,
    /// Recognised in a text as a whole, and part of a decoded one.
    UserDefined,
    /// A single byte, or a row that is not in use.
    Other,
}

/// The tokens of a GGUF file.
pub(super) struct GgufVocabulary {
    /// By id.
    pub tokens: Vec<String>,
    /// The ids, by token.
    pub ids: Vocab,
    kinds: Vec<TokenKind>,
}

impl GgufVocabulary {
    fn read(header: &GgufFile) -> Result<Option<Self>, ModelError> {
        let path = header.path();
        let Some(mut tokens) = header.strings(TOKENS_KEY)? else { return Ok(None) };
        let mut ids = Vocab::default();
        for (id, token) in (0..).zip(&mut tokens) {
            // Rows without a text get one that no text holds by chance.
            if token.is_empty() {
                *token = format!("[EMPTY_{id}]");
            }
            if let Some(other) = ids.insert(token.clone(), id) {
                let problem = format!("has \"{token}\" twice, as {other} and {id}");
                return Err(ModelError::field(path, TOKENS_KEY, problem));
            }
        }
        let kinds = match header.numbers(TYPES_KEY)? {
            None => vec![TokenKind::Normal; tokens.len()],
            Some(types) if types.len() == tokens.len() => {
                types.into_iter().map(TokenKind::from_number).collect()
            }
            Some(types) => {
                let problem = format!("has {} types for {} tokens", types.len(), tokens.len());
                return Err(ModelError::field(path, TYPES_KEY, problem));
            }
        };
        Ok(Some(Self { tokens, ids, kinds }))
    }

    /// What the token `id` is.
    pub fn kind(&self, id: u32) -> TokenKind {
        self.kinds.get(id as usize).copied().unwrap_or(TokenKind::Other)
    }
}

impl TokenKind {
    fn from_number(number: f64) -> Self {
        match number as i64 {
            1 => TokenKind::Normal,
            2 | 3 => TokenKind::Special,
            4 => TokenKind::UserDefined,
            _ => TokenKind::Other,
        }
    }
}

/// Builds the tokenizer; `None` where the file has no vocabulary.
pub(in crate::model) fn from_gguf(
    header: &GgufFile,
    embedding_rows: usize,
) -> Result<Option<TextTokenizer>, ModelError> {
    let path = header.path();
    let Some(vocabulary) = GgufVocabulary::read(header)? else { return Ok(None) };
    let model = header
        .string(MODEL_KEY)?
        .ok_or_else(|| ModelError::field(path, MODEL_KEY, "is missing"))?;
    let id = |name: &str| token_id(header, &vocabulary, name);
    let mut bos = id("bos")?;
    let mut eos = id("eos")?;
    let unknown = id("unknown")?;
    let (mut tokenizer, description, add_bos_by_default) = match model.as_str() {
        "gpt2" => {
            let built = byte_level::build(header, &vocabulary)?;
            (built.tokenizer, built.description, built.add_bos_by_default)
        }
        "llama" => {
            // SentencePiece's own order of the first three pieces.
            bos = bos.or(Some(1));
            eos = eos.or(Some(2));
            let tokenizer = sentencepiece::build(header, &vocabulary, unknown.unwrap_or(0))?;
            (tokenizer, "SentencePiece BPE with byte fallback".to_owned(), true)
        }
        other => {
            let feature = format!("the tokenizer \"{other}\" ({MODEL_KEY}; known are gpt2, llama)");
            return Err(ModelError::unsupported(path, feature));
        }
    };
    let eos =
        eos.ok_or_else(|| ModelError::field(path, "tokenizer.ggml.eos_token_id", "is missing"))?;
    add_special_tokens(&mut tokenizer, &vocabulary, [bos, Some(eos)])
        .map_err(|error| refused(path, &error))?;
    let add_bos = header.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(add_bos_by_default);
    let (turn, message, pad) = (id("eot")?, id("eom")?, id("padding")?);
    let declared = [turn, message].into_iter().flatten();
    let special = SpecialTokens::new(&tokenizer, bos.filter(|_| add_bos), eos, declared, pad);
    let text = |id: Option<u32>| id.and_then(|id| vocabulary.tokens.get(id as usize)).cloned();
    let chat_template = header.string("tokenizer.chat_template")?.map(|source| {
        let named = [
            ("bos_token", text(bos)),
            ("eos_token", text(Some(eos))),
            ("pad_token", text(pad)),
            ("unk_token", text(unknown)),
        ];
        ChatTemplate::new(source, named)
    });
    Ok(Some(TextTokenizer { tokenizer, description, special, chat_template, embedding_rows }))
}

/// The id that `tokenizer.ggml.<name>_token_id` gives, if it is one of the vocabulary's.
fn token_id(
    header: &GgufFile,
    vocabulary: &GgufVocabulary,
    name: &str,
) -> Result<Option<u32>, ModelError> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    let Some(id) = header.size(&key)? else { return Ok(None) };
    match u32::try_from(id) {
        Ok(id) if (id as usize) < vocabulary.tokens.len() => Ok(Some(id)),
        _ => {
            let problem = format!("is {id}, the vocabulary has {}", vocabulary.tokens.len());
            Err(ModelError::field(header.path(), key, problem))
        }
    }
}

/// Special and user-defined tokens are found in a text before it is cut into words.
fn add_special_tokens(
    tokenizer: &mut Tokenizer,
    vocabulary: &GgufVocabulary,
    always: [Option<u32>; 2],
) -> tokenizers::Result<()> {
    let mut added = Vec::new();
    for (id, token) in (0..).zip(&vocabulary.tokens) {
        let special = vocabulary.kind(id) == TokenKind::Special || always.contains(&Some(id));
        if special || vocabulary.kind(id) == TokenKind::UserDefined {
            added.push(AddedToken::from(token.as_str(), special).normalized(false));
        }
    }
    tokenizer.add_tokens(added).map(|_| ())
}

/// An error of the `tokenizers` crate, with the file it came from.
pub(super) fn refused(path: &Path, error: &tokenizers::Error) -> ModelError {
    ModelError::malformed(path, format!("the tokenizer cannot be built: {error}"))
}
