//! The engine as a [`LanguageModel`]: shares what prompts have in common, pads nothing.
//!
//! The beginning that neighbouring prompts share (few-shot examples, a template's head) is computed
//! once and kept as keys and values; a question is computed once for all of its options; and many
//! questions go through the layers together, end to end.

use std::sync::Arc;

use fleetune_core::adapter::Adapter;
use fleetune_core::data::{EncodeError, Encoder, Message, Template, Tokenize};
use fleetune_core::generate::{self, generate_after};
use fleetune_core::model::{
    Cache, CancelToken, Decoder, LoadedModel, LoraTensors, PackedBatch, PassOptions, TextTokenizer,
};
use fleetune_core::train::Evaluation;
use sha2::{Digest, Sha256};

use super::model::{GenerateRequest, Identity, LanguageModel, ModelError, ScoreRequest};

/// Longest sequence where the model allows longer ones: keys and values take memory.
const MAX_TOKENS: usize = 8192;
/// Rows of one pass through the layers.
const PASS_TOKENS: usize = 2048;
/// The shortest common beginning that is worth keeping.
const MIN_SHARED: usize = 16;

/// A model of the engine, with or without an adapter.
pub struct EngineModel {
    model: Arc<LoadedModel>,
    decoder: Arc<Decoder>,
    lora: Option<LoraTensors>,
    identity: Identity,
    cancel: CancelToken,
    shared: Shared,
}

/// A beginning that prompts share.
#[derive(Default)]
struct Shared {
    tokens: Vec<u32>,
    cache: Cache,
    /// The last prompt written after, whose beginning the next one may share.
    last_prompt: Vec<u32>,
}

/// An adapter that is applied to the model.
pub struct Applied<'a> {
    /// What the user calls it: its folder, or a round.
    pub name: String,
    /// SHA-256 of its file of tensors.
    pub sha256: String,
    /// The adapter.
    pub adapter: &'a Adapter,
}

impl<'a> Applied<'a> {
    /// An adapter that lies in no file; its hash is that of the file it would be saved to.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub fn from_memory(name: &str, adapter: &'a Adapter) -> anyhow::Result<Self> {
        let digest = Sha256::digest(adapter.parameters.to_safetensors()?);
        let sha256 = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { name: name.to_owned(), sha256, adapter })
    }
}

impl EngineModel {
    /// A model with an adapter, if there is one. `name` is what the user calls the model.
    ///
    /// # Errors
    /// When the model has no usable tokenizer, or the adapter does not belong to it.
    pub fn new(
        name: &str,
        model: Arc<LoadedModel>,
        decoder: Arc<Decoder>,
        applied: Option<Applied>,
        cancel: CancelToken,
    ) -> anyhow::Result<Self> {
        // Now rather than in the middle of a run.
        model.tokenizer()?;
        let lora = match &applied {
            Some(Applied { adapter, .. }) => {
                adapter.check_against(&model.config)?;
                Some(decoder.lora_tensors(adapter)?)
            }
            None => None,
        };
        let model_sha256 = model.content_hash()?.to_owned();
        let (adapter, adapter_sha256) = applied.map(|a| (a.name, a.sha256)).unzip();
        let identity = Identity { model: name.to_owned(), model_sha256, adapter, adapter_sha256 };
        Ok(Self { model, decoder, lora, identity, cancel, shared: Shared::default() })
    }

    fn tokenizer(&self) -> Result<&TextTokenizer, ModelError> {
        self.model.tokenizer().map_err(|error| ModelError::Engine(error.into()))
    }

    fn options(&self) -> PassOptions<'_> {
        PassOptions { lora: self.lora.as_ref(), cancel: self.cancel.clone(), ..Default::default() }
    }

    /// Makes the kept beginning one that all `prompts` have, at least one token shorter than each,
    /// as long as is worth it.
    fn share<'a>(
        &mut self,
        mut prompts: impl Iterator<Item = &'a [u32]>,
    ) -> Result<(), ModelError> {
        let Some(first) = prompts.next() else { return Ok(()) };
        let mut common = &first[..first.len().saturating_sub(1)];
        for prompt in prompts {
            let usable = &prompt[..prompt.len().saturating_sub(1)];
            common = &common[..common_length(common, usable)];
        }
        let kept = &self.shared.tokens;
        // What is there already serves when little would be won by more.
        if common.starts_with(kept) && common.len() < kept.len() + MIN_SHARED {
            return Ok(());
        }
        let mut shared = Shared::default();
        if common.len() >= MIN_SHARED {
            // A longer beginning goes on from the shorter one.
            if common.starts_with(kept) {
                shared = std::mem::take(&mut self.shared);
            }
            let more = &common[shared.tokens.len()..];
            let cancel = self.cancel.clone();
            let options = PassOptions { lora: self.lora.as_ref(), cancel, ..Default::default() };
            for part in more.chunks(PASS_TOKENS) {
                self.decoder
                    .extend(&mut shared.cache, part, &options)
                    .map_err(|error| ModelError::Engine(error.into()))?;
            }
            shared.tokens = common.to_vec();
        }
        shared.last_prompt = std::mem::take(&mut self.shared.last_prompt);
        self.shared = shared;
        Ok(())
    }

    /// Scores requests that all begin with what is kept.
    fn score_pass(&self, requests: &[ScoreRequest]) -> Result<Vec<Vec<Evaluation>>, ModelError> {
        let kept = self.shared.tokens.len();
        let batch = PackedBatch::from_continuations(
            requests.iter().map(|r| (&r.prefix[kept..], r.continuations.as_slice())),
        );
        let scores = self
            .decoder
            .score_after(&self.shared.cache, &batch, &self.options())
            .map_err(|error| ModelError::Engine(error.into()))?;
        let mut groups = vec![Evaluation::default(); batch.groups];
        let scored = scores.log_probs.iter().zip(&scores.correct);
        for (target, (log_prob, correct)) in batch.targets.iter().zip(scored) {
            groups[target.group as usize] += Evaluation {
                loss_sum: -log_prob,
                supervised_tokens: 1,
                correct_tokens: usize::from(*correct),
            };
        }
        let mut groups = groups.into_iter();
        let of =
            |request: &ScoreRequest| groups.by_ref().take(request.continuations.len()).collect();
        Ok(requests.iter().map(of).collect())
    }
}

impl LanguageModel for EngineModel {
    fn identity(&self) -> Identity {
        self.identity.clone()
    }

    fn max_tokens(&self) -> usize {
        self.model.config.max_context.min(MAX_TOKENS)
    }

    fn encode(&self, text: &str, start: bool) -> Result<Vec<u32>, ModelError> {
        let tokenizer = self.tokenizer()?;
        let mut ids = Tokenize::encode(tokenizer, text).map_err(EncodeError::Tokenizer)?;
        if let Some(bos) = tokenizer.bos().filter(|bos| start && ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        // An empty text still has to begin somewhere.
        if start && ids.is_empty() {
            ids.push(tokenizer.eos());
        }
        Ok(ids)
    }

    fn render(&self, template: Template, messages: &[Message]) -> Result<String, ModelError> {
        let encoder = Encoder::new(template, self.tokenizer()?, MAX_TOKENS)?;
        Ok(encoder.prompt_text(messages)?)
    }

    fn score(&mut self, requests: &[ScoreRequest]) -> Result<Vec<Vec<Evaluation>>, ModelError> {
        let mut scores = Vec::with_capacity(requests.len());
        for run in runs(requests) {
            self.share(run.iter().map(|request| request.prefix.as_slice()))?;
            let kept = self.shared.tokens.len();
            for pass in passes(run, kept) {
                scores.extend(self.score_pass(pass)?);
            }
        }
        Ok(scores)
    }

    fn generate(&mut self, requests: &[GenerateRequest]) -> Result<Vec<Vec<String>>, ModelError> {
        requests.iter().map(|request| self.write(request)).collect()
    }
}

impl EngineModel {
    fn write(&mut self, request: &GenerateRequest) -> Result<Vec<String>, ModelError> {
        let GenerateRequest { prompt, options } = request;
        let needed = prompt.len() + options.max_tokens;
        if needed > self.max_tokens() {
            return Err(ModelError::TooLong { needed, limit: self.max_tokens() });
        }
        // Prompts come one by one: what this one has in common with the last is likely to be
        // common to the next.
        let last = std::mem::take(&mut self.shared.last_prompt);
        self.share([prompt.as_slice(), last.as_slice()].into_iter())?;
        self.shared.last_prompt.clone_from(prompt);
        let rest = &prompt[self.shared.tokens.len()..];
        let samples = 0..options.samples as u64;
        samples.map(|sample| self.write_one(rest, request, options.seed ^ sample << 32)).collect()
    }

    fn write_one(
        &self,
        rest: &[u32],
        request: &GenerateRequest,
        seed: u64,
    ) -> Result<String, ModelError> {
        let tokenizer = self.tokenizer()?;
        let wanted = &request.options;
        let options = generate::GenerateOptions {
            max_tokens: wanted.max_tokens,
            temperature: wanted.temperature,
            top_p: None,
            seed,
            stop_ids: tokenizer.stop_ids().to_vec(),
        };
        let mut stream = tokenizer.stream(true);
        let mut text = String::new();
        let mut failed = None;
        let each = |token| match stream.push(token) {
            Ok(piece) => {
                text.push_str(&piece);
                !wanted.stop.iter().any(|stop| text.contains(stop))
            }
            Err(error) => {
                failed = Some(error);
                false
            }
        };
        let cache = self.shared.cache.clone();
        generate_after(&self.decoder, cache, rest, &options, &self.options(), each)
            .map_err(|error| ModelError::Engine(error.into()))?;
        if failed.is_none() {
            match stream.finish() {
                Ok(piece) => text.push_str(&piece),
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = failed {
            return Err(ModelError::Engine(error.into()));
        }
        let end = wanted.stop.iter().filter_map(|stop| text.find(stop)).min();
        text.truncate(end.unwrap_or(text.len()));
        Ok(text)
    }
}

/// Cuts requests into runs of neighbours that share a beginning; no run is empty.
fn runs(requests: &[ScoreRequest]) -> Vec<&[ScoreRequest]> {
    let mut runs = Vec::new();
    let mut rest = requests;
    while let [first, others @ ..] = rest {
        let mut common = usize::MAX;
        let with = others.iter().take_while(|other| {
            let shared = common_length(&first.prefix, &other.prefix).min(common);
            // A neighbour that shares much less would take it from all.
            let joins = shared >= MIN_SHARED && (common == usize::MAX || shared * 2 >= common);
            if joins {
                common = shared;
            }
            joins
        });
        let length = 1 + with.count();
        let (run, others) = rest.split_at(length);
        runs.push(run);
        rest = others;
    }
    runs
}

/// Cuts a run into passes of bounded size, given that `kept` tokens of each prefix are computed
/// already.
fn passes(run: &[ScoreRequest], kept: usize) -> Vec<&[ScoreRequest]> {
    let mut passes = Vec::new();
    let (mut start, mut rows) = (0, 0);
    for (i, request) in run.iter().enumerate() {
        let own: usize = request.continuations.iter().map(Vec::len).sum();
        let own = own + request.prefix.len() - kept;
        if i > start && rows + own > PASS_TOKENS {
            passes.push(&run[start..i]);
            (start, rows) = (i, 0);
        }
        rows += own;
    }
    passes.push(&run[start..]);
    passes
}

fn common_length(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(prefix: impl IntoIterator<Item = u32>) -> ScoreRequest {
        ScoreRequest { prefix: prefix.into_iter().collect(), continuations: vec![vec![1]] }
    }

    #[test]
    fn neighbours_that_share_a_beginning_run_together() {
        let a = |last| request((0..40).chain([last]));
        let b = |last| request((100..140).chain([last]));
        let requests = [a(1), a(2), b(1), b(2), b(3), request([7])];
        let lengths: Vec<usize> = runs(&requests).iter().map(|run| run.len()).collect();
        assert_eq!(lengths, [2, 3, 1]);
        assert_eq!(runs(&[]).len(), 0);
    }

    #[test]
    fn a_short_beginning_does_not_join_a_long_one() {
        let long = |last| request((0..400).chain([last]));
        let short = request((0..20).chain([900]));
        let requests = [long(1), long(2), short];
        let lengths: Vec<usize> = runs(&requests).iter().map(|run| run.len()).collect();
        assert_eq!(lengths, [2, 1]);
    }

    #[test]
    fn passes_are_bounded_and_take_at_least_one_request() {
        let requests = [request(0..2000), request(0..100), request(0..5000), request(0..10)];
        let lengths: Vec<usize> = passes(&requests, 0).iter().map(|pass| pass.len()).collect();
        assert_eq!(lengths, [1, 1, 1, 1]);
        let lengths: Vec<usize> =
            passes(&requests[..2], 90).iter().map(|pass| pass.len()).collect();
        assert_eq!(lengths, [2]);
    }
}
