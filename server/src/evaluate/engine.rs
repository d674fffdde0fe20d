//! The engine as a [`LanguageModel`]: shares what prompts have in common, pads nothing.
//!
//! The beginning that neighbouring prompts share (few-shot examples, a template's head) is computed
//! once and kept as keys and values; a question is computed once for all of its options; and many
//! questions go through the layers together, end to end.

use std::ops::ControlFlow;
use std::sync::Arc;

use data_encoding::HEXLOWER;
use fleetune_core::adapter::Adapter;
use fleetune_core::data::{EncodeError, Encoder, Message, Template, Tokenize};
use fleetune_core::generate::{self, Continuation, Reader, generate_together};
use fleetune_core::model::{
    Cache, CancelToken, Decoder, EngineError, LoadedModel, LoraTensors, PackedBatch, PassOptions,
    TextStream, TextTokenizer,
};
use fleetune_core::train::Evaluation;
use sha2::{Digest, Sha256};

use super::model::{GenerateRequest, Identity, LanguageModel, ModelError, ScoreRequest};

/// Longest sequence where the model allows longer ones: keys and values take memory.
const MAX_TOKENS: usize = 8192;
/// Rows of one pass through the layers: few enough that most of what they become stays in caches.
const PASS_TOKENS: usize = 1024;
/// Texts that are written at a time: more gain little.
const TOGETHER: usize = 16;
/// The most memory for keys and values of texts that are written at a time.
const WRITING_BYTES: usize = 512 << 20;
/// The shortest common beginning that is worth keeping.
const MIN_SHARED: usize = 16;
/// Rows that scoring must save for a pass of its own over the common beginning: a pass reads and decodes
/// all weights, however few its rows are.
const MIN_SAVED: usize = 256;

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
        let sha256 = HEXLOWER.encode(&digest);
        Ok(Self { name: name.to_owned(), sha256, adapter })
    }
}

/// Makes glibc's allocator keep what a layer gives up for the next one, which asks for as much. By
/// itself it may return every large piece to the system, which then clears it for each layer anew: up
/// to half of the time of a pass. What it returns follows the largest piece it ever took back, twice
/// that for the end of a heap; one of nearly 32 MiB, the most that counts, settles it. The piece is
/// never written, so it takes no memory. Other allocators see a piece come and go.
fn keep_freed_memory() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(31 << 20)));
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
        keep_freed_memory();
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
        let mut settings = Sha256::new_with_prefix(model.settings_hash()?);
        if let Some(Applied { adapter, .. }) = &applied {
            settings.update(serde_json::to_vec(&adapter.config)?);
        }
        let settings_sha256 = HEXLOWER.encode(&settings.finalize());
        let (adapter, adapter_sha256) = applied.map(|a| (a.name, a.sha256)).unzip();
        let precision = decoder.precision().into();
        let model_name = name.to_owned();
        let identity = Identity {
            model: model_name,
            model_sha256,
            adapter,
            adapter_sha256,
            settings_sha256,
            precision,
        };
        Ok(Self { model, decoder, lora, identity, cancel, shared: Shared::default() })
    }

    fn tokenizer(&self) -> Result<&TextTokenizer, ModelError> {
        self.model.tokenizer().map_err(|error| ModelError::Engine(error.into()))
    }

    fn options(&self) -> PassOptions<'_> {
        PassOptions { lora: self.lora.as_ref(), cancel: self.cancel.clone(), ..Default::default() }
    }

    /// Makes the kept beginning one that all `prompts` have, at least one token shorter than each. One
    /// that is shorter than `least`, or by less longer than what is kept already, is not computed.
    fn share<'a>(
        &mut self,
        mut prompts: impl Iterator<Item = &'a [u32]>,
        least: usize,
    ) -> Result<(), ModelError> {
        let Some(first) = prompts.next() else { return Ok(()) };
        let mut common = &first[..first.len().saturating_sub(1)];
        for prompt in prompts {
            let usable = &prompt[..prompt.len().saturating_sub(1)];
            common = &common[..common_length(common, usable)];
        }
        let kept = &self.shared.tokens;
        // What is there already serves when little would be won by more.
        if common.starts_with(kept) && common.len() < kept.len().saturating_add(least) {
            return Ok(());
        }
        let mut shared = Shared::default();
        if common.len() >= least {
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
        if !scores.log_probs.iter().all(|log_prob| log_prob.is_finite()) {
            return Err(ModelError::Engine(EngineError::NotFinite.into()));
        }
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
        for run in runs(requests, |request| &request.prefix, worth) {
            self.share(run.iter().map(|request| request.prefix.as_slice()), worth(run.len()))?;
            let kept = self.shared.tokens.len();
            for pass in passes(run, kept) {
                scores.extend(self.score_pass(pass)?);
            }
        }
        Ok(scores)
    }

    fn generate(
        &mut self,
        requests: &[GenerateRequest],
        done: &mut dyn FnMut(usize, Vec<String>) -> ControlFlow<()>,
    ) -> Result<(), ModelError> {
        let mut first = 0;
        // The samples of a request share all of its prompt.
        let alike = requests.chunk_by(|a, b| a.options.samples == 1 && b.options.samples == 1);
        for run in alike.flat_map(|alike| runs(alike, |request| &request.prompt, |_| MIN_SHARED)) {
            let flow = self.write(run, &mut |number, answers| done(first + number, answers))?;
            if flow.is_break() {
                break;
            }
            first += run.len();
        }
        Ok(())
    }
}

impl EngineModel {
    /// Writes the answers to requests that share what is worth sharing.
    fn write(
        &mut self,
        run: &[GenerateRequest],
        done: &mut dyn FnMut(usize, Vec<String>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, ModelError> {
        for GenerateRequest { prompt, options } in run {
            let needed = prompt.len() + options.max_tokens;
            if needed > self.max_tokens() {
                return Err(ModelError::TooLong { needed, limit: self.max_tokens() });
            }
        }
        let prompts = run.iter().map(|request| request.prompt.as_slice());
        match run {
            [GenerateRequest { prompt, options }] if options.samples == 1 => {
                // Prompts may come one by one: what this one has in common with the last is likely
                // to be common to the next.
                let last = std::mem::take(&mut self.shared.last_prompt);
                self.share(prompts.chain([last.as_slice()]), MIN_SHARED)?;
                self.shared.last_prompt.clone_from(prompt);
            }
            _ => self.share(prompts, MIN_SHARED)?,
        }
        let kept = self.shared.tokens.len();
        let tokenizer = self.tokenizer()?;
        let mut texts = Vec::new();
        let mut drafts = Vec::new();
        for (number, GenerateRequest { prompt, options }) in run.iter().enumerate() {
            for sample in 0..options.samples as u64 {
                let options = generate::GenerateOptions {
                    max_tokens: options.max_tokens,
                    temperature: options.temperature,
                    top_p: None,
                    seed: options.seed ^ sample << 32,
                    stop_ids: tokenizer.stop_ids().to_vec(),
                };
                texts.push(Continuation { prompt: &prompt[kept..], options });
                drafts.push(Draft {
                    request: number,
                    stop: &run[number].options.stop,
                    stream: Some(tokenizer.stream(true)),
                    text: String::new(),
                });
            }
        }
        let answers = run.iter().map(|request| Vec::with_capacity(request.options.samples));
        let mut desk = Desk {
            drafts,
            answers: answers.collect(),
            run,
            done,
            outcome: Ok(ControlFlow::Continue(())),
        };
        let together = self.together(&texts);
        let (cache, options) = (&self.shared.cache, self.options());
        generate_together(&self.decoder, cache, &texts, together, &options, &mut desk)
            .map_err(|error| ModelError::Engine(error.into()))?;
        desk.outcome
    }

    /// How many of these texts to write at a time.
    fn together(&self, texts: &[Continuation]) -> usize {
        let config = &self.model.config;
        let row = 2 * config.num_layers * config.num_kv_heads * config.head_dim * size_of::<f32>();
        let longest = texts.iter().map(|text| text.prompt.len() + text.options.max_tokens).max();
        let fit = WRITING_BYTES / (row * longest.unwrap_or(0)).max(1);
        fit.clamp(1, TOGETHER)
    }
}

/// A text that is being written.
struct Draft<'a> {
    request: usize,
    stop: &'a [String],
    stream: Option<TextStream<'a>>,
    text: String,
}

/// Where the texts of a run are written.
struct Desk<'a> {
    drafts: Vec<Draft<'a>>,
    /// Texts that are complete, by request, in the order of their samples.
    answers: Vec<Vec<(usize, String)>>,
    run: &'a [GenerateRequest],
    done: &'a mut dyn FnMut(usize, Vec<String>) -> ControlFlow<()>,
    outcome: Result<ControlFlow<()>, ModelError>,
}

impl Reader for Desk<'_> {
    fn token(&mut self, text: usize, token: u32) -> bool {
        let draft = &mut self.drafts[text];
        let Some(stream) = &mut draft.stream else { return false };
        match stream.push(token) {
            Ok(piece) => {
                draft.text.push_str(&piece);
                !draft.stop.iter().any(|stop| draft.text.contains(stop))
            }
            Err(error) => {
                self.outcome = Err(ModelError::Engine(error.into()));
                false
            }
        }
    }

    fn end(&mut self, text: usize) -> bool {
        if self.outcome.is_err() {
            return false;
        }
        let draft = &mut self.drafts[text];
        match draft.stream.take().map_or(Ok(String::new()), TextStream::finish) {
            Ok(piece) => draft.text.push_str(&piece),
            Err(error) => {
                self.outcome = Err(ModelError::Engine(error.into()));
                return false;
            }
        }
        let end = draft.stop.iter().filter_map(|stop| draft.text.find(stop)).min();
        draft.text.truncate(end.unwrap_or(draft.text.len()));
        let answers = &mut self.answers[draft.request];
        answers.push((text, std::mem::take(&mut draft.text)));
        if answers.len() < self.run[draft.request].options.samples {
            return true;
        }
        answers.sort_unstable_by_key(|(sample, _)| *sample);
        let answers = std::mem::take(answers).into_iter().map(|(_, text)| text).collect();
        let flow = (self.done)(draft.request, answers);
        self.outcome = Ok(flow);
        flow.is_continue()
    }
}

/// The shortest common beginning of so many prompts to be scored that is worth a pass of its own.
fn worth(prompts: usize) -> usize {
    match prompts {
        0 | 1 => usize::MAX,
        more => MIN_SAVED.div_ceil(more - 1).max(MIN_SHARED),
    }
}

/// Cuts requests into runs of neighbours: whose prompts share a beginning, or none that is as long as
/// is `worth` it for so many; no run is empty.
fn runs<T>(
    requests: &[T],
    prompt: impl Fn(&T) -> &[u32],
    worth: impl Fn(usize) -> usize,
) -> Vec<&[T]> {
    let shared = |a: &T, b: &T| common_length(prompt(a), prompt(b));
    // Where runs begin, and whether each shares enough.
    let mut runs: Vec<(usize, bool)> = Vec::new();
    let mut start = 0;
    while let [first, others @ ..] = &requests[start..] {
        let mut common = others.first().map_or(0, |other| shared(first, other));
        let joining = others.iter().take_while(|other| {
            let with = shared(first, other).min(common);
            // A neighbour that shares much less would take it from all.
            let joins = with >= MIN_SHARED && with * 2 >= common;
            if joins {
                common = with;
            }
            joins
        });
        let count = 1 + joining.count();
        let enough = count > 1 && common >= worth(count);
        // Those that do not share enough go on together.
        if enough || runs.last().is_none_or(|(_, before)| *before) {
            runs.push((start, enough));
        }
        start += count;
    }
    let ends = runs.iter().skip(1).map(|(start, _)| *start).chain([requests.len()]);
    runs.iter().zip(ends).map(|((start, _), end)| &requests[*start..end]).collect()
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

    /// Of runs where so many common tokens are worth a pass.
    fn lengths(requests: &[ScoreRequest], worth: usize) -> Vec<usize> {
        let runs = runs(requests, |request| &request.prefix, |_| worth);
        runs.iter().map(|run| run.len()).collect()
    }

    #[test]
    fn neighbours_that_share_a_beginning_run_together() {
        let a = |last| request((0..40).chain([last]));
        let b = |last| request((100..140).chain([last]));
        let requests = [a(1), a(2), b(1), b(2), b(3), request([7])];
        assert_eq!(lengths(&requests, 16), [2, 3, 1]);
        assert_eq!(lengths(&[], 16).len(), 0);
    }

    #[test]
    fn neighbours_that_share_nothing_run_together() {
        let a = |last| request((0..40).chain([last]));
        let alone = |first| request(first..first + 9);
        let requests = [alone(100), alone(200), alone(300), a(1), a(2), alone(400), alone(500)];
        assert_eq!(lengths(&requests, 16), [3, 2, 2]);
        assert_eq!(lengths(&requests[..2], 16), [2]);
        assert_eq!(lengths(&requests[2..4], 16), [2]);
    }

    #[test]
    fn neighbours_that_share_too_little_for_a_pass_run_together() {
        let a = |last| request((0..40).chain([last]));
        let b = |last| request((100..140).chain([last]));
        let requests = [a(1), a(2), b(1), b(2), request([7])];
        assert_eq!(lengths(&requests, 41), [5]);
        assert_eq!([worth(1), worth(2), worth(9), worth(1000)], [usize::MAX, 256, 32, 16]);
    }

    #[test]
    fn a_short_beginning_does_not_join_a_long_one() {
        let long = |last| request((0..400).chain([last]));
        let short = request((0..20).chain([900]));
        let requests = [long(1), long(2), short];
        assert_eq!(lengths(&requests, 16), [2, 1]);
    }

    #[test]
    fn passes_are_bounded_and_take_at_least_one_request() {
        let requests = [request(0..1000), request(0..100), request(0..5000), request(0..10)];
        let lengths: Vec<usize> = passes(&requests, 0).iter().map(|pass| pass.len()).collect();
        assert_eq!(lengths, [1, 1, 1, 1]);
        let lengths: Vec<usize> =
            passes(&requests[..2], 90).iter().map(|pass| pass.len()).collect();
        assert_eq!(lengths, [2]);
    }
}
