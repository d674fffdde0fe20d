//! Hugging Face folders: `config.json` and one or many `*.safetensors`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use candle_core::quantized::GgmlDType;
use safetensors::tensor::{Dtype, Metadata};
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer};
use serde_json::{Map, Value};

use super::error::ModelError;
use super::families::FamilySpec;
use super::tensors::{StoredAs, TensorEntry, TensorIndex};
use crate::adapter::misplaced;
use crate::config::{ModelConfig, RopeScaling};
use crate::weight::MappedFile;

/// The formats a safetensors matrix may have, for people.
const READABLE: &str = "F32, F16 and BF16";

/// The fields of `config.json` that decide what a decoder computes; all others are ignored.
///
/// Old and new spellings are both read: `rope_theta` and `rope_scaling` beside or inside
/// `rope_parameters`, `type` beside `rope_type`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct HfConfig {
    model_type: Option<String>,
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    hidden_act: Option<String>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeParameters>,
    rope_parameters: Option<RopeParameters>,
    partial_rotary_factor: Option<f64>,
    max_position_embeddings: Option<usize>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    quantization_config: Option<serde::de::IgnoredAny>,
    layer_types: Option<Vec<String>>,
    /// Outer `None`: the field is absent; inner `None`: it is `null`. Mistral tells them apart.
    #[serde(default, deserialize_with = "present")]
    pub sliding_window: Option<Option<usize>>,
    pub use_sliding_window: Option<bool>,
    pub max_window_layers: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
struct RopeParameters {
    rope_type: Option<String>,
    r#type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
    partial_rotary_factor: Option<f64>,
    /// One set of parameters per kind of layer, as models with two rotary bases have.
    full_attention: Option<serde::de::IgnoredAny>,
    sliding_attention: Option<serde::de::IgnoredAny>,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<usize>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// A model in a Hugging Face folder, not yet assembled.
pub(super) struct HfFolder {
    pub spec: &'static FamilySpec,
    pub config: ModelConfig,
    pub tensors: TensorIndex,
    /// The safetensors files, in the order of their names.
    pub weight_files: Vec<PathBuf>,
}

impl HfFolder {
    /// Reads `config.json` and the headers of the safetensors files.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let config_path = folder.join("config.json");
        let hf: HfConfig = read_json(&config_path)?;
        let (spec, config) = hf.decoder(&config_path)?;
        let weight_files = weight_files(folder)?;
        let mut tensors = TensorIndex::new(folder, READABLE);
        for path in &weight_files {
            index_safetensors(path, &mut tensors)?;
        }
        Ok(Self { spec, config, tensors, weight_files })
    }
}

impl HfConfig {
    fn decoder(&self, path: &Path) -> Result<(&'static FamilySpec, ModelConfig), ModelError> {
        let model_type = required(path, "model_type", self.model_type.as_deref())?;
        let spec = FamilySpec::by_model_type(model_type).ok_or_else(|| {
            ModelError::UnknownArchitecture {
                path: path.to_owned(),
                found: model_type.to_owned(),
                known: FamilySpec::known_model_types(),
            }
        })?;
        if let Some(activation) = self.hidden_act.as_deref().filter(|&name| name != "silu") {
            return Err(ModelError::unsupported(path, format!("hidden_act \"{activation}\"")));
        }
        let biases = [
            ("attention_bias", self.attention_bias.filter(|_| !spec.qkv_bias)),
            ("mlp_bias", self.mlp_bias),
        ];
        if let Some((field, _)) = biases.iter().find(|(_, asked)| *asked == Some(true)) {
            let feature = format!("{field} true in a {} model", spec.family.name());
            return Err(ModelError::unsupported(path, feature));
        }
        if self.quantization_config.is_some() {
            return Err(ModelError::unsupported(
                path,
                "a checkpoint with quantization_config (GPTQ, AWQ, bitsandbytes; use the \
                 unquantised one or a GGUF file)",
            ));
        }
        let num_layers = required(path, "num_hidden_layers", self.num_hidden_layers)?;
        let num_heads = required(path, "num_attention_heads", self.num_attention_heads)?;
        let hidden_size = required(path, "hidden_size", self.hidden_size)?;
        let head_dim = self.head_dim.or(spec.default_head_dim);
        let max_context = self.max_position_embeddings.unwrap_or(spec.default_context);
        let window = self.window(path, spec, num_layers)?;
        let config = ModelConfig {
            family: spec.family,
            vocab_size: required(path, "vocab_size", self.vocab_size)?,
            hidden_size,
            intermediate_size: required(path, "intermediate_size", self.intermediate_size)?,
            num_layers,
            num_heads,
            num_kv_heads: self.num_key_value_heads.unwrap_or(num_heads),
            // Zero heads are refused by `validate` below.
            head_dim: head_dim.unwrap_or_else(|| hidden_size / num_heads.max(1)),
            rms_norm_eps: self.rms_norm_eps.unwrap_or(1e-6),
            rope_theta: self.rope().rope_theta.or(self.rope_theta).unwrap_or(10_000.0),
            rope_scaling: self.rope_scaling(path, max_context)?,
            max_context,
            sliding_window: window.map(|(tokens, _)| tokens),
            sliding_window_from_layer: window.map_or(0, |(_, from_layer)| from_layer),
            tie_word_embeddings: self.tie_word_embeddings.unwrap_or(false),
        };
        config.validate().map_err(|(field, problem)| ModelError::field(path, field, problem))?;
        Ok((spec, config))
    }

    fn rope(&self) -> &RopeParameters {
        static ABSENT: RopeParameters = RopeParameters {
            rope_type: None,
            r#type: None,
            rope_theta: None,
            factor: None,
            low_freq_factor: None,
            high_freq_factor: None,
            original_max_position_embeddings: None,
            partial_rotary_factor: None,
            full_attention: None,
            sliding_attention: None,
        };
        self.rope_parameters.as_ref().or(self.rope_scaling.as_ref()).unwrap_or(&ABSENT)
    }

    fn rope_scaling(&self, path: &Path, max_context: usize) -> Result<RopeScaling, ModelError> {
        let rope = self.rope();
        let partial = rope.partial_rotary_factor.or(self.partial_rotary_factor);
        if let Some(share) = partial.filter(|&share| share != 1.0) {
            return Err(ModelError::unsupported(path, format!("partial_rotary_factor {share}")));
        }
        if rope.full_attention.is_some() || rope.sliding_attention.is_some() {
            return Err(ModelError::unsupported(path, "rope_parameters per kind of layer"));
        }
        let kind = rope.rope_type.as_deref().or(rope.r#type.as_deref()).unwrap_or("default");
        let number = |field: &str, value| required(path, &format!("rope_scaling.{field}"), value);
        match kind {
            "default" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor: number("factor", rope.factor)? }),
            "llama3" => Ok(RopeScaling::Llama3 {
                factor: number("factor", rope.factor)?,
                low_freq_factor: number("low_freq_factor", rope.low_freq_factor)?,
                high_freq_factor: number("high_freq_factor", rope.high_freq_factor)?,
                original_context: rope.original_max_position_embeddings.unwrap_or(max_context),
            }),
            other => Err(ModelError::unsupported(path, format!("rope scaling \"{other}\""))),
        }
    }

    /// The sliding window in tokens and the first layer it applies to.
    fn window(
        &self,
        path: &Path,
        spec: &FamilySpec,
        num_layers: usize,
    ) -> Result<Option<(usize, usize)>, ModelError> {
        let by_family = (spec.sliding_window)(self).map(|w| (w.tokens, w.from_layer));
        let Some(layer_types) = &self.layer_types else {
            return Ok(by_family.filter(|&(_, from_layer)| from_layer < num_layers));
        };
        if layer_types.len() != num_layers {
            let problem = format!("has {} entries for {num_layers} layers", layer_types.len());
            return Err(ModelError::field(path, "layer_types", problem));
        }
        for kind in layer_types {
            if kind != "full_attention" && kind != "sliding_attention" {
                return Err(ModelError::unsupported(path, format!("a layer of type \"{kind}\"")));
            }
        }
        let is_sliding = |kind: &String| kind == "sliding_attention";
        let Some(from_layer) = layer_types.iter().position(is_sliding) else { return Ok(None) };
        if !layer_types[from_layer..].iter().all(is_sliding) {
            return Err(ModelError::unsupported(
                path,
                "a sliding window in some layers below layers without one (layer_types)",
            ));
        }
        let tokens = required(path, "sliding_window", self.sliding_window.flatten())?;
        Ok(Some((tokens, from_layer)))
    }
}

fn required<T>(path: &Path, field: &str, value: Option<T>) -> Result<T, ModelError> {
    value.ok_or_else(|| ModelError::field(path, field, "is missing"))
}

/// Reads a JSON file, whose fields may all be absent; the error names file, field, line and column.
pub(super) fn read_json<T: DeserializeOwned + Default>(path: &Path) -> Result<T, ModelError> {
    let bytes = std::fs::read(path).map_err(ModelError::io(path))?;
    serde_json::from_slice(&bytes).map_err(|error| {
        let fields: Map<String, Value> = serde_json::from_slice(&bytes).unwrap_or_default();
        // The one that cannot be read alone either.
        let wrong = fields.into_iter().find_map(|(name, value)| {
            let alone = Value::Object(Map::from_iter([(name.clone(), value)]));
            T::deserialize(alone).is_err().then_some(name)
        });
        let problem = match wrong {
            Some(field) => format!("{field}: {error}"),
            None => error.to_string(),
        };
        ModelError::malformed(path, problem)
    })
}

/// The safetensors files of a folder: those an index names, else `model.safetensors`, else all
/// that are there.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, ModelError> {
    #[derive(Default, Deserialize)]
    struct Index {
        weight_map: Option<BTreeMap<String, String>>,
    }

    let index_path = folder.join("model.safetensors.index.json");
    if index_path.exists() {
        let index: Index = read_json(&index_path)?;
        let weight_map = required(&index_path, "weight_map", index.weight_map)?;
        let names: BTreeSet<_> = weight_map.into_values().collect();
        if let Some(name) = names.iter().find(|name| !is_plain_file_name(name)) {
            let problem = format!("weight_map names \"{name}\", which is no file of this folder");
            return Err(ModelError::malformed(&index_path, problem));
        }
        return Ok(names.into_iter().map(|name| folder.join(name)).collect());
    }
    let single = folder.join("model.safetensors");
    if single.exists() {
        return Ok(vec![single]);
    }
    let found = files_with_extension(folder, "safetensors")?;
    if found.is_empty() {
        return Err(ModelError::NotAModel {
            path: folder.to_owned(),
            problem: "there is a config.json but no *.safetensors file".to_owned(),
        });
    }
    Ok(found)
}

fn is_plain_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(_)), None))
}

/// Files of a folder by extension, in the order of their names.
pub(super) fn files_with_extension(
    folder: &Path,
    extension: &str,
) -> Result<Vec<PathBuf>, ModelError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(ModelError::io(folder))? {
        let path = entry.map_err(ModelError::io(folder))?.path();
        if path.extension().is_some_and(|e| e == extension) && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Adds the tensors of one safetensors file to the index, reading its header only.
fn index_safetensors(path: &Path, tensors: &mut TensorIndex) -> Result<(), ModelError> {
    let file = Arc::new(MappedFile::open(path).map_err(ModelError::io(path))?);
    let bytes = file.as_bytes();
    let cut_off = || ModelError::malformed(path, "the file ends inside its header");
    let (length, rest) = bytes.split_first_chunk().ok_or_else(cut_off)?;
    let header_len = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| cut_off())?;
    let header = rest.get(..header_len).ok_or_else(cut_off)?;
    // The crate checks that the ranges are as long as shapes and types ask for, in order, without
    // gaps; that the file reaches that far is checked when a tensor is taken.
    let metadata: Metadata = serde_json::from_slice(header).map_err(|error| {
        let problem = match misplaced(bytes) {
            Some(tensor) => {
                format!("tensor {tensor}'s place in the file contradicts its shape and type")
            }
            None => format!("safetensors header: {error}"),
        };
        ModelError::malformed(path, problem)
    })?;
    let data_start = (length.len() + header_len) as u64;
    for name in metadata.offset_keys() {
        let Some(info) = metadata.info(&name) else { continue };
        let stored_as = match info.dtype {
            Dtype::F32 => StoredAs::Known(GgmlDType::F32),
            Dtype::F16 => StoredAs::Known(GgmlDType::F16),
            Dtype::BF16 => StoredAs::Known(GgmlDType::BF16),
            other => StoredAs::Other(format!("{other:?}")),
        };
        let offset = data_start.saturating_add(info.data_offsets.0 as u64);
        let shape = info.shape.clone();
        tensors.insert(name, TensorEntry { file: file.clone(), offset, shape, stored_as })?;
    }
    Ok(())
}
