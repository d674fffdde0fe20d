//! GGUF files: one file with hyperparameters, tokenizer and tensors.

mod reader;

use std::path::Path;

pub(super) use reader::{DEFAULT_ALIGNMENT, GgufFile, MAGIC, number_of_format};

use super::error::ModelError;
use super::families::FamilySpec;
use super::names::{Naming, Tensor};
use super::tensors::TensorIndex;
use crate::config::{ModelConfig, RopeScaling};

/// Divisors of the rotary frequencies (Llama 3.1 and later).
const ROPE_DIVISORS: &str = "rope_freqs.weight";
const DEFAULT_ROPE_THETA: f64 = 10_000.0;

/// A model in a GGUF file, not yet assembled.
pub(super) struct GgufModel {
    pub spec: &'static FamilySpec,
    pub config: ModelConfig,
    pub tensors: TensorIndex,
    /// The header, for the tokenizer's sake.
    pub header: GgufFile,
}

impl GgufModel {
    /// Reads the header.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let (header, mut tensors) = GgufFile::open(path)?;
        let architecture = header
            .string("general.architecture")?
            .ok_or_else(|| ModelError::field(path, "general.architecture", "is missing"))?;
        let spec = FamilySpec::by_gguf_architecture(&architecture).ok_or_else(|| {
            ModelError::UnknownArchitecture {
                path: path.to_owned(),
                found: architecture.clone(),
                known: FamilySpec::known_gguf_architectures(),
            }
        })?;
        let keys = Keys { header: &header, architecture: &architecture };
        let config = keys.decoder(spec, &mut tensors)?;
        Ok(Self { spec, config, tensors, header })
    }
}

/// The metadata keys of one architecture.
struct Keys<'a> {
    header: &'a GgufFile,
    architecture: &'a str,
}

impl Keys<'_> {
    fn path(&self) -> &Path {
        self.header.path()
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn size(&self, name: &str) -> Result<Option<usize>, ModelError> {
        self.header.size(&self.key(name))
    }

    fn float(&self, name: &str) -> Result<Option<f64>, ModelError> {
        self.header.float(&self.key(name))
    }

    fn required<T>(&self, name: &str, value: Option<T>) -> Result<T, ModelError> {
        value.ok_or_else(|| ModelError::field(self.path(), self.key(name), "is missing"))
    }

    fn required_size(&self, name: &str) -> Result<usize, ModelError> {
        self.required(name, self.size(name)?)
    }

    fn decoder(
        &self,
        spec: &FamilySpec,
        tensors: &mut TensorIndex,
    ) -> Result<ModelConfig, ModelError> {
        self.refuse_what_is_not_computed()?;
        let hidden_size = self.required_size("embedding_length")?;
        let num_heads = self.required_size("attention.head_count")?;
        // Zero heads are refused by `validate` below.
        let head_dim =
            self.size("attention.key_length")?.unwrap_or_else(|| hidden_size / num_heads.max(1));
        for name in ["attention.value_length", "rope.dimension_count"] {
            if let Some(width) = self.size(name)?.filter(|&width| width != head_dim) {
                let feature = format!("{} of {width} with heads of {head_dim}", self.key(name));
                return Err(ModelError::unsupported(self.path(), feature));
            }
        }
        let embedding = Naming::Gguf.name(Tensor::Embedding);
        let vocab_size = tensors
            .shape(&embedding)
            .ok_or_else(|| ModelError::MissingTensor {
                path: self.path().to_owned(),
                tensor: embedding.clone(),
            })?
            .first()
            .copied()
            .unwrap_or(0);
        let epsilon = "attention.layer_norm_rms_epsilon";
        let rope_scaling = self.rope_scaling(head_dim, tensors)?;
        let config = ModelConfig {
            family: spec.family,
            vocab_size,
            hidden_size,
            intermediate_size: self.required_size("feed_forward_length")?,
            num_layers: self.required_size("block_count")?,
            num_heads,
            num_kv_heads: self.size("attention.head_count_kv")?.unwrap_or(num_heads),
            head_dim,
            rms_norm_eps: self.required(epsilon, self.float(epsilon)?)?,
            rope_theta: self.float("rope.freq_base")?.unwrap_or(DEFAULT_ROPE_THETA),
            rope_scaling,
            max_context: self.required_size("context_length")?,
            sliding_window: self.size("attention.sliding_window")?.filter(|&tokens| tokens > 0),
            sliding_window_from_layer: 0,
            tie_word_embeddings: !tensors.contains(&Naming::Gguf.name(Tensor::Head)),
        };
        config
            .validate()
            .map_err(|(field, problem)| ModelError::field(self.path(), field, problem))?;
        Ok(config)
    }

    fn refuse_what_is_not_computed(&self) -> Result<(), ModelError> {
        if self.size("expert_count")?.unwrap_or(0) > 0 {
            return Err(ModelError::unsupported(self.path(), "a mixture of experts"));
        }
        let pattern = self.key("attention.sliding_window_pattern");
        if self.header.contains(&pattern) {
            return Err(ModelError::unsupported(self.path(), pattern));
        }
        Ok(())
    }

    fn rope_scaling(
        &self,
        head_dim: usize,
        tensors: &mut TensorIndex,
    ) -> Result<RopeScaling, ModelError> {
        let kind = self.header.string(&self.key("rope.scaling.type"))?;
        // Files from before `rope.scaling.type` give a factor alone.
        let old_factor = self.float("rope.scale_linear")?;
        let factor = self.float("rope.scaling.factor")?.or(old_factor).unwrap_or(1.0);
        let factor = match kind.as_deref() {
            None if old_factor.is_some() => factor,
            None | Some("none") => 1.0,
            Some("linear") => factor,
            Some(other) => {
                let feature = format!("rope scaling \"{other}\"");
                return Err(ModelError::unsupported(self.path(), feature));
            }
        };
        if tensors.contains(ROPE_DIVISORS) {
            let mut divisors = tensors.take_vector(ROPE_DIVISORS, head_dim / 2)?;
            divisors.iter_mut().for_each(|divisor| *divisor *= factor as f32);
            return Ok(RopeScaling::PerFrequency(divisors));
        }
        Ok(if factor == 1.0 { RopeScaling::None } else { RopeScaling::Linear { factor } })
    }
}
