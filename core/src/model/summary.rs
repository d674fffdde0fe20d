//! What a model is, in a few lines.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::loaded::LoadedModel;
use super::weights::DecoderWeights;
use crate::config::RopeScaling;
use crate::weight::FrozenWeight;

/// A model's architecture, size and equipment, to be shown or written as JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelSummary {
    /// The weight files.
    pub files: Vec<String>,
    /// The family of decoders.
    pub architecture: &'static str,
    /// Parameters; a head that shares the embedding's matrix is counted once.
    pub parameters: u64,
    /// Bytes of the matrices in their files.
    pub matrix_bytes: u64,
    /// Parameters per storage format, vectors as `F32` (the form they are kept in).
    pub formats: BTreeMap<String, u64>,
    /// Number of layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward part.
    pub intermediate_size: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest context of the training, in tokens.
    pub context: usize,
    /// Sliding attention window in tokens, with the first layer that has it.
    pub sliding_window: Option<(usize, usize)>,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the rotary frequencies are stretched.
    pub rope_scaling: Option<String>,
    /// RMSNorm's epsilon.
    pub rms_norm_eps: f64,
    /// Whether the head shares the embedding's matrix.
    pub tied_head: bool,
    /// The kind of tokenizer, if there is one.
    pub tokenizer: Option<String>,
    /// Tokens that end an answer.
    pub stop_tokens: Vec<String>,
    /// Whether there is a chat template.
    pub chat_template: bool,
}

impl ModelSummary {
    pub(super) fn new(model: &LoadedModel) -> Self {
        let config = &model.config;
        let mut parameters = 0;
        let mut matrix_bytes = 0;
        let mut formats = BTreeMap::new();
        for matrix in matrices(&model.weights, config.tie_word_embeddings) {
            let values = matrix.rows() as u64 * matrix.cols() as u64;
            parameters += values;
            matrix_bytes += matrix.byte_len() as u64;
            *formats.entry(format!("{:?}", matrix.format())).or_insert(0) += values;
        }
        let vector_values = vector_values(&model.weights);
        parameters += vector_values;
        *formats.entry("F32".to_owned()).or_insert(0) += vector_values;
        let tokenizer = model.tokenizer().ok();
        Self {
            files: model.files().iter().map(|path| path.display().to_string()).collect(),
            architecture: config.family.name(),
            parameters,
            matrix_bytes,
            formats,
            layers: config.num_layers,
            hidden_size: config.hidden_size,
            intermediate_size: config.intermediate_size,
            heads: config.num_heads,
            kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            vocab_size: config.vocab_size,
            context: config.max_context,
            sliding_window: config
                .sliding_window
                .map(|tokens| (tokens, config.sliding_window_from_layer)),
            rope_theta: config.rope_theta,
            rope_scaling: rope_scaling(&config.rope_scaling),
            rms_norm_eps: config.rms_norm_eps,
            tied_head: config.tie_word_embeddings,
            tokenizer: tokenizer.map(|tokenizer| tokenizer.description().to_owned()),
            stop_tokens: tokenizer
                .map(|t| t.stop_ids().iter().filter_map(|&id| t.token(id)).collect())
                .unwrap_or_default(),
            chat_template: model.chat_template().is_some(),
        }
    }
}

fn matrices(weights: &DecoderWeights, tied: bool) -> impl Iterator<Item = &FrozenWeight> {
    let layers = weights.layers.iter().flat_map(|layer| {
        [
            &layer.q_proj,
            &layer.k_proj,
            &layer.v_proj,
            &layer.o_proj,
            &layer.gate_proj,
            &layer.up_proj,
            &layer.down_proj,
        ]
    });
    let head = (!tied).then_some(&weights.head);
    std::iter::once(&weights.embedding).chain(layers).chain(head)
}

fn vector_values(weights: &DecoderWeights) -> u64 {
    let layers = weights.layers.iter().flat_map(|layer| {
        let norms = [Some(&layer.attention_norm), Some(&layer.mlp_norm)];
        let optional = [&layer.q_bias, &layer.k_bias, &layer.v_bias, &layer.q_norm, &layer.k_norm];
        norms.into_iter().chain(optional.map(Option::as_ref)).flatten()
    });
    layers.chain([&weights.final_norm]).map(|vector| vector.len() as u64).sum()
}

fn rope_scaling(scaling: &RopeScaling) -> Option<String> {
    match scaling {
        RopeScaling::None => None,
        RopeScaling::Linear { factor } => Some(format!("linear, factor {factor}")),
        RopeScaling::Llama3 { factor, original_context, .. } => {
            Some(format!("llama3, factor {factor} over {original_context} tokens"))
        }
        RopeScaling::PerFrequency(_) => Some("divisors per frequency".to_owned()),
    }
}

impl fmt::Display for ModelSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for file in &self.files {
            writeln!(f, "{file}")?;
        }
        let mut line = |name: &str, value: String| writeln!(f, "  {name:<16} {value}");
        line("architecture", self.architecture.to_owned())?;
        line("parameters", grouped(self.parameters))?;
        line("matrix bytes", grouped(self.matrix_bytes))?;
        let formats: Vec<_> = self
            .formats
            .iter()
            .map(|(format, values)| {
                let share = 100.0 * *values as f64 / self.parameters as f64;
                format!("{format} {share:.1} %")
            })
            .collect();
        line("formats", formats.join(", "))?;
        line("layers", self.layers.to_string())?;
        line("hidden size", self.hidden_size.to_string())?;
        line("feed-forward", self.intermediate_size.to_string())?;
        line(
            "attention",
            format!("{} heads of {}, {} for keys/values", self.heads, self.head_dim, self.kv_heads),
        )?;
        if let Some((tokens, from_layer)) = self.sliding_window {
            line("sliding window", format!("{tokens} tokens from layer {from_layer}"))?;
        }
        let head = if self.tied_head { ", tied to the head" } else { "" };
        line("vocabulary", format!("{} tokens{head}", grouped(self.vocab_size as u64)))?;
        line("context", format!("{} tokens", grouped(self.context as u64)))?;
        let scaling = self.rope_scaling.as_deref().unwrap_or("not stretched");
        line("rotary base", format!("{}, {scaling}", self.rope_theta))?;
        line("norm epsilon", format!("{:e}", self.rms_norm_eps))?;
        line("tokenizer", self.tokenizer.clone().unwrap_or_else(|| "none".to_owned()))?;
        if !self.stop_tokens.is_empty() {
            line("stop tokens", self.stop_tokens.join(" "))?;
        }
        line("chat template", if self.chat_template { "yes" } else { "no" }.to_owned())
    }
}

/// A number with its digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
