//! A model as it lies on disk, opened.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use sha2::{Digest, Sha256};

use super::chat::ChatTemplate;
use super::error::ModelError;
use super::gguf::GgufModel;
use super::hf::{HfFolder, files_with_extension};
use super::names::Naming;
use super::summary::ModelSummary;
use super::tokenizer::{self, TextTokenizer};
use super::weights::DecoderWeights;
use crate::config::ModelConfig;

/// A frozen base model: hyperparameters, memory-mapped weights, tokenizer.
#[derive(Debug)]
pub struct LoadedModel {
    /// Shape and constants.
    pub config: ModelConfig,
    /// The frozen tensors, in the formats of their files.
    pub weights: DecoderWeights,
    tokenizer: Option<TextTokenizer>,
    weight_files: Vec<PathBuf>,
    /// What says how to compute and to write, where that lies beside the weights.
    settings_files: Vec<PathBuf>,
    content_hash: OnceLock<String>,
}

impl LoadedModel {
    /// Opens a GGUF file, a Hugging Face folder (`config.json`, one or many `*.safetensors`), or a
    /// folder that holds exactly one GGUF file.
    ///
    /// Only headers are read; the weights are mapped and paged in as they are used.
    ///
    /// # Errors
    /// When a file is missing, malformed or cut off, or the model is none that can be computed.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        if !path.is_dir() {
            return Self::open_gguf(path);
        }
        if path.join("config.json").exists() {
            return Self::open_hugging_face(path);
        }
        match files_with_extension(path, "gguf")?.as_slice() {
            [file] => Self::open_gguf(file),
            found => Err(ModelError::NotAModel {
                path: path.to_owned(),
                problem: format!(
                    "the folder holds no config.json and {} GGUF files; name a GGUF file or a \
                     Hugging Face folder",
                    found.len()
                ),
            }),
        }
    }

    fn open_hugging_face(folder: &Path) -> Result<Self, ModelError> {
        let HfFolder { spec, config, tensors, weight_files } = HfFolder::open(folder)?;
        let weights = spec.assemble(&config, Naming::HuggingFace, tensors)?;
        let tokenizer = tokenizer::from_folder(folder, config.vocab_size)?;
        let settings_files = SETTINGS.map(|name| folder.join(name)).into_iter();
        let settings_files = settings_files.filter(|file| file.exists()).collect();
        let content_hash = OnceLock::new();
        Ok(Self { config, weights, tokenizer, weight_files, settings_files, content_hash })
    }

    fn open_gguf(path: &Path) -> Result<Self, ModelError> {
        let GgufModel { spec, config, tensors, header } = GgufModel::open(path)?;
        let weights = spec.assemble(&config, Naming::Gguf, tensors)?;
        let tokenizer = tokenizer::from_gguf(&header, config.vocab_size)?;
        let weight_files = vec![header.path().to_owned()];
        let (settings_files, content_hash) = (Vec::new(), OnceLock::new());
        Ok(Self { config, weights, tokenizer, weight_files, settings_files, content_hash })
    }

    /// The model's tokenizer, with its chat template.
    ///
    /// # Errors
    /// When the model came without one, as models made for tests do.
    pub fn tokenizer(&self) -> Result<&TextTokenizer, ModelError> {
        self.tokenizer.as_ref().ok_or_else(|| ModelError::NotAModel {
            path: self.location().to_owned(),
            problem: "there is no tokenizer; a Hugging Face folder needs a tokenizer.json (a \
                      tokenizer.model alone cannot be read), a GGUF file its own vocabulary \
                      (tokenizer.ggml.tokens)"
                .to_owned(),
        })
    }

    /// The model's chat template, if it has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.tokenizer.as_ref().and_then(TextTokenizer::chat_template)
    }

    /// What the model is, for people.
    pub fn summary(&self) -> ModelSummary {
        ModelSummary::new(self)
    }

    /// The GGUF file, or the folder of the safetensors files.
    fn location(&self) -> &Path {
        match self.weight_files.as_slice() {
            [file] => file,
            files => files.first().and_then(|file| file.parent()).unwrap_or(Path::new("")),
        }
    }

    /// The files that hold the weights, in the order of their names.
    pub fn files(&self) -> &[PathBuf] {
        &self.weight_files
    }

    /// Bytes of the weight files.
    pub fn stored_bytes(&self) -> u64 {
        self.weight_files.iter().filter_map(|file| Some(file.metadata().ok()?.len())).sum()
    }

    /// SHA-256 of the weight files, in hexadecimal: what `sha256sum` prints for one file, and for
    /// many the SHA-256 of what it prints for all of them (`sha256sum *.safetensors | sha256sum`
    /// in the folder). The first call reads the files; later ones remember.
    ///
    /// # Errors
    /// When a file cannot be read any more.
    pub fn content_hash(&self) -> Result<&str, ModelError> {
        if let Some(hash) = self.content_hash.get() {
            return Ok(hash);
        }
        let hash = match self.weight_files.as_slice() {
            [file] => file_hash(file)?,
            files => listing_hash(files)?,
        };
        Ok(self.content_hash.get_or_init(|| hash))
    }

    /// SHA-256, in hexadecimal, of what `sha256sum` prints for the files of a Hugging Face folder that
    /// say how to compute and to write: configurations, tokenizer and chat template. All of that is
    /// within a GGUF file, for which it is the hash of nothing.
    ///
    /// # Errors
    /// When a file cannot be read any more.
    pub fn settings_hash(&self) -> Result<String, ModelError> {
        listing_hash(&self.settings_files)
    }
}

/// Files of a Hugging Face folder that count besides the weights, in the order of their names.
const SETTINGS: [&str; 5] = [
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

fn listing_hash(files: &[PathBuf]) -> Result<String, ModelError> {
    let mut listing = String::new();
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        listing += &format!("{}  {name}\n", file_hash(file)?);
    }
    Ok(hexadecimal(Sha256::digest(listing)))
}

/// Reads through the file system, not the map: hashing should not page a model into this
/// process's memory.
fn file_hash(path: &Path) -> Result<String, ModelError> {
    let mut hasher = Sha256::new();
    let mut file = File::open(path).map_err(ModelError::io(path))?;
    std::io::copy(&mut file, &mut hasher).map_err(ModelError::io(path))?;
    Ok(hexadecimal(hasher.finalize()))
}

fn hexadecimal(digest: impl AsRef<[u8]>) -> String {
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
