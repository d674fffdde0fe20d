//! A tokenizer out of a Hugging Face folder: `tokenizer.json` and the files beside it.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokenizers::Tokenizer;

use super::{SpecialTokens, TextTokenizer, guarded};
use crate::model::chat::ChatTemplate;
use crate::model::error::ModelError;
use crate::model::hf::read_json;

/// The fields of `tokenizer_config.json` that matter here.
#[derive(Debug, Default, Deserialize)]
struct TokenizerConfig {
    add_bos_token: Option<bool>,
    bos_token: Option<NamedToken>,
    eos_token: Option<NamedToken>,
    pad_token: Option<NamedToken>,
    unk_token: Option<NamedToken>,
    chat_template: Option<ChatTemplates>,
}

/// A token by its text, alone or with properties that `tokenizer.json` repeats.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum NamedToken {
    Text(String),
    Properties { content: String },
}

/// One chat template, or several by name.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum ChatTemplates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Debug, Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

/// The ids that `config.json` and `generation_config.json` declare.
#[derive(Debug, Default, Deserialize)]
struct DeclaredIds {
    eos_token_id: Option<OneOrMany>,
    pad_token_id: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

/// Reads the tokenizer; `None` where the folder has no `tokenizer.json`.
pub(in crate::model) fn from_folder(
    folder: &Path,
    embedding_rows: usize,
) -> Result<Option<TextTokenizer>, ModelError> {
    let path = folder.join("tokenizer.json");
    if !path.exists() {
        return Ok(None);
    }
    let bytes = std::fs::read(&path).map_err(ModelError::io(&path))?;
    check_parts(&path, &bytes)?;
    let refused = |error: tokenizers::Error| ModelError::malformed(&path, error.to_string());
    let mut tokenizer = guarded(|| Tokenizer::from_bytes(&bytes)).map_err(refused)?;
    // Lengths are the business of whoever lays out the batch.
    tokenizer.with_truncation(None).map_err(refused)?;
    tokenizer.with_padding(None);

    let config: TokenizerConfig = optional_json(&folder.join("tokenizer_config.json"))?;
    let model: DeclaredIds = optional_json(&folder.join("config.json"))?;
    let generation: DeclaredIds = optional_json(&folder.join("generation_config.json"))?;
    let id = |token: &Option<NamedToken>| {
        token.as_ref().and_then(|token| tokenizer.token_to_id(token.text()))
    };
    let mut declared = model.end_ids();
    declared.extend(generation.end_ids());
    let eos = id(&config.eos_token).or(declared.first().copied()).ok_or_else(|| {
        let problem = "is missing, and config.json has no eos_token_id; one must name the token \
                       that ends a text";
        ModelError::field(&folder.join("tokenizer_config.json"), "eos_token", problem)
    })?;
    let prepended_bos = match config.add_bos_token {
        Some(add) => id(&config.bos_token).filter(|_| add),
        None => guarded(|| prepended_token(&tokenizer)).map_err(refused)?,
    };
    let pad = model.pad_token_id.and_then(|id| u32::try_from(id).ok());
    let pad = id(&config.pad_token).or(pad);
    let special = SpecialTokens::new(&tokenizer, prepended_bos, eos, declared, pad);
    let chat_template = chat_template(folder, &config)?.map(|source| {
        let text = |token: &Option<NamedToken>| token.as_ref().map(|t| t.text().to_owned());
        let named = [
            ("bos_token", text(&config.bos_token)),
            ("eos_token", text(&config.eos_token).or_else(|| tokenizer.id_to_token(eos))),
            ("pad_token", text(&config.pad_token)),
            ("unk_token", text(&config.unk_token)),
        ];
        ChatTemplate::new(source, named)
    });
    let description = "Hugging Face tokenizer.json".to_owned();
    Ok(Some(TextTokenizer { tokenizer, description, special, chat_template, embedding_rows }))
}

impl NamedToken {
    fn text(&self) -> &str {
        match self {
            NamedToken::Text(text) | NamedToken::Properties { content: text } => text,
        }
    }
}

impl DeclaredIds {
    fn end_ids(&self) -> Vec<u32> {
        match &self.eos_token_id {
            None => Vec::new(),
            Some(OneOrMany::One(id)) => vec![*id],
            Some(OneOrMany::Many(ids)) => ids.clone(),
        }
    }
}

/// The chat template: a file of its own before `tokenizer_config.json`, the one called `default`
/// before any other.
fn chat_template(folder: &Path, config: &TokenizerConfig) -> Result<Option<String>, ModelError> {
    let path = folder.join("chat_template.jinja");
    if path.exists() {
        return std::fs::read_to_string(&path).map(Some).map_err(ModelError::io(&path));
    }
    Ok(match &config.chat_template {
        None => None,
        Some(ChatTemplates::One(source)) => Some(source.clone()),
        Some(ChatTemplates::Named(templates)) => templates
            .iter()
            .find(|named| named.name == "default")
            .or(templates.first())
            .map(|named| named.template.clone()),
    })
}

/// The token that the tokenizer's post-processor writes before a text, if it writes one.
fn prepended_token(tokenizer: &Tokenizer) -> tokenizers::Result<Option<u32>> {
    let plain = tokenizer.encode_fast("a", false)?;
    let processed = tokenizer.encode_fast("a", true)?;
    let (plain, processed) = (plain.get_ids(), processed.get_ids());
    Ok(match processed.split_first() {
        Some((&first, rest)) if !processed.starts_with(plain) && rest.starts_with(plain) => {
            Some(first)
        }
        _ => None,
    })
}

fn optional_json<T: DeserializeOwned + Default>(path: &Path) -> Result<T, ModelError> {
    if path.exists() { read_json(path) } else { Ok(T::default()) }
}

/// Checks what the `tokenizers` crate relies on: that every merge joins two tokens to a third one,
/// and that the decoder can be parsed as JSON.
fn check_parts(path: &Path, bytes: &[u8]) -> Result<(), ModelError> {
    #[derive(Deserialize)]
    struct File {
        model: Model,
        #[serde(default, rename = "decoder")]
        _decoder: serde_json::Value,
    }
    #[derive(Deserialize)]
    struct Model {
        #[serde(default)]
        merges: Vec<Merge>,
        /// A list instead of an object where the model is no BPE; then there are no merges.
        #[serde(default)]
        vocab: Vocabulary,
        continuing_subword_prefix: Option<String>,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Merge {
        Line(String),
        Pair(String, String),
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Vocabulary {
        ByToken(HashMap<String, u32>),
        Other(serde::de::IgnoredAny),
    }
    impl Default for Vocabulary {
        fn default() -> Self {
            Vocabulary::ByToken(HashMap::new())
        }
    }

    let file: File = serde_json::from_slice(bytes)
        .map_err(|error| ModelError::malformed(path, error.to_string()))?;
    let Vocabulary::ByToken(vocab) = &file.model.vocab else { return Ok(()) };
    let prefix = file.model.continuing_subword_prefix.as_deref().unwrap_or_default();
    for merge in &file.model.merges {
        let pair = match merge {
            Merge::Line(line) => line.split_once(' '),
            Merge::Pair(left, right) => Some((left.as_str(), right.as_str())),
        };
        let joined = pair.and_then(|(left, right)| {
            let rest = right.strip_prefix(prefix)?;
            let known = vocab.contains_key(left) && vocab.contains_key(right);
            known.then(|| format!("{left}{rest}"))
        });
        if !joined.is_some_and(|token| vocab.contains_key(&token)) {
            let merge = match merge {
                Merge::Line(line) => line.clone(),
                Merge::Pair(left, right) => format!("{left} {right}"),
            };
            let problem = format!("the merge \"{merge}\" is no pair of two known tokens");
            return Err(ModelError::malformed(path, problem));
        }
    }
    Ok(())
}
