//! Writing text with a model, token by token.

use candle_core::{DType, Tensor};
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

/// A text to be continued.
#[derive(Debug, Clone)]
pub struct Continuation<'a> {
    /// Token ids of what is there.
    pub prompt: &'a [u32],
    /// How it goes on.
    pub options: GenerateOptions,
}

/// Follows texts while they are written; they are counted from 0.
pub trait Reader {
    /// A text has a new token. Answers whether it goes on.
    fn token(&mut self, text: usize, token: u32) -> bool;

    /// A text has come to its end. Answers whether the others go on.
    fn end(&mut self, text: usize) -> bool;
}

/// Keeps what is written of each text.
impl Reader for Vec<Vec<u32>> {
    fn token(&mut self, text: usize, token: u32) -> bool {
        self[text].push(token);
        true
    }

    fn end(&mut self, _: usize) -> bool {
        true
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
    let mut reader = Single { each, written: Vec::new() };
    let text = Continuation { prompt, options: options.clone() };
    generate_together(decoder, &Cache::new(), &[text], 1, pass, &mut reader)?;
    Ok(reader.written)
}

struct Single<F> {
    each: F,
    written: Vec<u32>,
}

impl<F: FnMut(u32) -> bool> Reader for Single<F> {
    fn token(&mut self, _: usize, token: u32) -> bool {
        self.written.push(token);
        (self.each)(token)
    }

    fn end(&mut self, _: usize) -> bool {
        true
    }
}

/// Continues texts that all begin with what `cache` holds, at most `together` of them at a time: a
/// pass through the layers writes a token of each, and where one ends the next begins. Each is
/// written as [`generate`] would write it alone, but for rounding, which depends on how many there
/// are.
///
/// # Errors
/// As [`generate`].
pub fn generate_together(
    decoder: &Decoder,
    cache: &Cache,
    texts: &[Continuation],
    together: usize,
    pass: &PassOptions,
    reader: &mut dyn Reader,
) -> Result<(), EngineError> {
    let context = decoder.config().max_context.saturating_sub(cache.len()?);
    let mut waiting = texts.iter().enumerate();
    let places = together.clamp(1, texts.len().max(1));
    let mut branches = decoder.branches(cache, places)?;
    let mut writers: Vec<Option<Writer>> = std::iter::repeat_with(|| None).take(places).collect();
    loop {
        let mut tokens = 0;
        for (place, writer) in writers.iter_mut().enumerate() {
            // A new text brings its whole prompt; not all of them at once.
            while writer.is_none() && tokens < PASS_TOKENS {
                let Some((number, text)) = waiting.next() else { break };
                let room = context.saturating_sub(text.prompt.len());
                match Writer::new(number, text, room) {
                    Some(new) => {
                        tokens += text.prompt.len();
                        branches.clear(place);
                        *writer = Some(new);
                    }
                    None if reader.end(number) => {}
                    None => return Ok(()),
                }
            }
        }
        let more: Vec<(usize, &[u32])> = writers
            .iter()
            .enumerate()
            .filter_map(|(place, writer)| Some((place, writer.as_ref()?.unread.as_slice())))
            .collect();
        if more.is_empty() {
            return Ok(());
        }
        let logits = decoder.extend_branches(&mut branches, &more, pass)?;
        let written = writers.iter_mut().filter(|writer| writer.is_some());
        for (row, place) in written.enumerate() {
            let Some(writer) = place else { continue };
            if writer.write(&logits.get(row)?, reader)? {
                continue;
            }
            if !reader.end(writer.text) {
                return Ok(());
            }
            *place = None;
        }
    }
}

/// Tokens of new prompts after which no other joins a pass.
const PASS_TOKENS: usize = 2048;

/// One of the texts that are being written.
struct Writer {
    text: usize,
    processor: LogitsProcessor,
    stop_ids: Vec<u32>,
    /// Tokens that may still come.
    left: usize,
    /// Tokens that the model has not seen yet.
    unread: Vec<u32>,
}

impl Writer {
    /// A writer with room for so many tokens behind the prompt; `None` where nothing can be written.
    fn new(text: usize, from: &Continuation, room: usize) -> Option<Self> {
        let Continuation { prompt, options } = from;
        let left = options.max_tokens.min(room);
        (left > 0 && !prompt.is_empty()).then(|| Self {
            text,
            processor: LogitsProcessor::from_sampling(options.seed, options.sampling()),
            stop_ids: options.stop_ids.clone(),
            left,
            unread: prompt.to_vec(),
        })
    }

    /// Writes the token that the logits `[vocabulary]` call for. Yields whether the text goes on.
    fn write(&mut self, logits: &Tensor, reader: &mut dyn Reader) -> Result<bool, EngineError> {
        if !logits.to_dtype(DType::F32)?.to_vec1::<f32>()?.iter().all(|logit| logit.is_finite()) {
            return Err(EngineError::NotFinite);
        }
        let token = self.processor.sample(logits)?;
        if self.stop_ids.contains(&token) {
            return Ok(false);
        }
        self.left -= 1;
        self.unread = vec![token];
        Ok(reader.token(self.text, token) && self.left > 0)
    }
}
