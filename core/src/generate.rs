//! Writing text with a model, token by token.

use candle_core::DType;
use candle_transformers::generation::{LogitsProcessor, Sampling};
use serde::{Deserialize, Serialize};

use crate::model::{Cache, Decoder, EngineError, PassOptions};

/// How the next token is chosen, and how many of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerateOptions {
    /// Most tokens to write.
    pub max_tokens: usize,
    /// 0 takes the likeliest token; larger values draw more freely.
    pub temperature: f64,
    /// Draws only among the likeliest tokens whose probabilities reach this sum.
    pub top_p: Option<f64>,
    /// Seed of the draws.
    pub seed: u64,
    /// Tokens that end the text; they are not part of it.
    pub stop_ids: Vec<u32>,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self { max_tokens: 128, temperature: 0.0, top_p: None, seed: 0, stop_ids: Vec::new() }
    }
}

impl GenerateOptions {
    fn sampling(&self) -> Sampling {
        let temperature = self.temperature;
        match self.top_p {
            _ if temperature < 1e-7 => Sampling::ArgMax,
            None => Sampling::All { temperature },
            Some(p) => Sampling::TopP { p, temperature },
        }
    }
}

/// Continues `prompt`, calling `each` with every new token until it answers `false`. Yields the new
/// tokens. The text ends where the model's context is full at the latest; an empty prompt writes
/// nothing.
///
/// # Errors
/// When a token is unknown, the model computes no finite numbers, on cancellation, or when the
/// device fails.
pub fn generate(
    decoder: &Decoder,
    prompt: &[u32],
    options: &GenerateOptions,
    pass: &PassOptions,
    each: impl FnMut(u32) -> bool,
) -> Result<Vec<u32>, EngineError> {
    generate_after(decoder, Cache::new(), prompt, options, pass, each)
}

/// Continues what `cache` holds, followed by `prompt`, as [`generate`] does.
///
/// # Errors
/// As [`generate`].
pub fn generate_after(
    decoder: &Decoder,
    mut cache: Cache,
    prompt: &[u32],
    options: &GenerateOptions,
    pass: &PassOptions,
    mut each: impl FnMut(u32) -> bool,
) -> Result<Vec<u32>, EngineError> {
    let mut written = Vec::new();
    let room = decoder.config().max_context.saturating_sub(cache.len()? + prompt.len());
    let max_tokens = options.max_tokens.min(room);
    if prompt.is_empty() || max_tokens == 0 {
        return Ok(written);
    }
    let mut processor = LogitsProcessor::from_sampling(options.seed, options.sampling());
    let mut logits = decoder.extend(&mut cache, prompt, pass)?;
    loop {
        if !logits.to_dtype(DType::F32)?.to_vec1::<f32>()?.iter().all(|logit| logit.is_finite()) {
            return Err(EngineError::NotFinite);
        }
        let token = processor.sample(&logits)?;
        if options.stop_ids.contains(&token) {
            return Ok(written);
        }
        written.push(token);
        if !each(token) || written.len() == max_tokens {
            return Ok(written);
        }
        logits = decoder.extend(&mut cache, &[token], pass)?;
    }
}
