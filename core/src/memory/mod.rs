//! How much memory training takes, and how to make it fit.
//!
//! [`plan`] decides by arithmetic, before anything is allocated, how many tokens one pass computes,
//! how many layers keep their activations, and how many rows of logits exist at once. It predicts the
//! peak of the process and refuses a budget that cannot be met, naming the smallest that can.

use serde::{Deserialize, Serialize};

use crate::adapter::{LoraConfig, Target};
use crate::config::ModelConfig;
use crate::kernels::HEADS_PER_THREAD;

/// Bytes of the program and its tokenizer, measured on small runs.
const PROGRAM: u64 = 28 << 20;
/// What the allocator loses between the buffers of a pass, measured: hundredths of all of them, and
/// some of the widest.
const FRAGMENTATION: u64 = 10;
const WIDE_HOLES: usize = 3;
/// Largest chunk of logits.
const LOGITS: u64 = 64 << 20;
/// Rows of logits that are worth decoding the head for, at least.
const SMALLEST_CHUNK: usize = 16;
/// What of a client's time must be left for one more client in a pass to be worth its memory.
const WORTH_SHARING: f64 = 0.98;
/// Buffers `[longest, head_dim]` of each head whose attention gradients are computed.
const HEAD_BUFFERS: usize = 5;
const F32: u64 = 4;

/// What a pass costs beside the products of its tokens, in tokens whose products take as long: on the
/// processor, decoding every weight once.
pub const PROCESSOR_PASS: f64 = 48.0;
/// On a GPU, launching some thousand small kernels and decoding every weight: an estimate for a card
/// that computes a hundred times what a processor does.
pub const GPU_PASS: f64 = 16384.0;

/// What a training run is made of, as far as its memory is concerned.
#[derive(Debug, Clone, Copy)]
pub struct Workload<'a> {
    /// The model.
    pub model: &'a ModelConfig,
    /// Bytes of the base model's weights, mapped or in memory.
    pub model_bytes: u64,
    /// The adapter that is trained.
    pub lora: &'a LoraConfig,
    /// Parameter sets the size of the adapter besides its own state: the global adapter of FedProx,
    /// the correction of SCAFFOLD.
    pub extra_adapters: u64,
    /// Tokens of the shortest sequence, or preference pair. Where it is as long as the longest, passes
    /// are multiples of it; 1 where nothing is known.
    pub shortest: usize,
    /// Tokens of the longest sequence, or of the longest preference pair.
    pub longest: usize,
    /// Tokens of a batch.
    pub batch: usize,
    /// The largest share of a pass's rows that predict a target; 1 where nothing is known.
    pub target_share: f64,
    /// Clients whose batches these are: each has an adapter.
    pub clients: usize,
    /// What a pass costs beside the products of its tokens: [`PROCESSOR_PASS`] or [`GPU_PASS`].
    pub pass_cost: f64,
    /// Threads that compute.
    pub threads: usize,
}

/// How training is laid out in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPlan {
    /// Tokens of one client computed in one pass.
    pub max_pass_tokens: usize,
    /// Tokens of several clients computed in one pass; those of one where each has its own.
    pub shared_pass_tokens: usize,
    /// Clients that share passes at most.
    pub clients: usize,
    /// Layers that keep their activations, counted from the last.
    pub kept_layers: usize,
    /// Rows of logits that exist at once.
    pub score_rows: usize,
    /// Predicted peak of the process in bytes, the base model included.
    pub peak_bytes: u64,
}

/// A budget too small for the workload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a memory budget of {} MiB is too small for this model, rank and sequence length: the smallest \
     that can be met is {} MiB",
    budget >> 20,
    smallest.div_ceil(1 << 20)
)]
pub struct BudgetTooSmall {
    /// The budget, in bytes.
    pub budget: u64,
    /// The smallest that can be met, in bytes.
    pub smallest: u64,
}

/// The fastest layout within `budget` bytes. Without a budget, half a gibibyte besides the base model
/// is used, or more where a single sequence needs it.
///
/// # Errors
/// When even the smallest layout exceeds the budget.
pub fn plan(workload: &Workload, budget: Option<u64>) -> Result<MemoryPlan, BudgetTooSmall> {
    let smallest = layout(workload, workload.longest, 0, SMALLEST_CHUNK);
    if let Some(budget) = budget.filter(|&budget| budget < smallest.peak_bytes) {
        return Err(BudgetTooSmall { budget, smallest: smallest.peak_bytes });
    }
    Ok(fastest(workload, smallest, budget_or_default(workload, &smallest, budget)))
}

/// The layout for clients that share passes, up to `most` of them, each of which is cut into passes as
/// `alone` says. `workload` is that of one client; its batch may be what is expected rather than the
/// most there can be. As many clients share a pass as make it faster within `budget`, or within what
/// [`plan`] takes by itself; one where sharing is not worth it.
pub fn plan_shared(
    workload: &Workload,
    alone: &MemoryPlan,
    most: usize,
    budget: Option<u64>,
) -> MemoryPlan {
    let budget = budget_or_default(workload, alone, budget);
    let mut best = (cost(workload, alone), *alone);
    let next = |&clients: &usize| Some(clients + clients.div_ceil(4)).filter(|&next| next <= most);
    let counts = std::iter::successors(Some(2), next).chain([most]);
    for clients in counts.filter(|clients| (2..=most).contains(clients)) {
        let batch = workload.batch.saturating_mul(clients);
        let all = Workload { batch, clients, ..*workload };
        let smallest = layout(&all, alone.max_pass_tokens, 0, SMALLEST_CHUNK);
        if smallest.peak_bytes > budget {
            break;
        }
        let shared = fastest(&all, smallest, budget);
        let each = cost(&all, &shared) / clients as f64;
        if each < best.0 * WORTH_SHARING {
            let max_pass_tokens = alone.max_pass_tokens;
            best = (each, MemoryPlan { max_pass_tokens, ..shared });
        }
    }
    best.1
}

fn budget_or_default(workload: &Workload, smallest: &MemoryPlan, budget: Option<u64>) -> u64 {
    budget.unwrap_or((workload.model_bytes + (512 << 20)).max(smallest.peak_bytes))
}

/// The fastest layout within `budget`, of passes that are no smaller than those of `smallest`, which
/// is within it.
fn fastest(workload: &Workload, smallest: MemoryPlan, budget: u64) -> MemoryPlan {
    let most_rows = (LOGITS / (F32 * workload.model.vocab_size.max(1) as u64)) as usize;
    let most_rows = most_rows.clamp(SMALLEST_CHUNK, 1024);
    let mut best = (cost(workload, &smallest), smallest);
    let sizes = pass_sizes(workload).filter(|&tokens| tokens >= smallest.max_pass_tokens);
    for tokens in sizes.chain([smallest.max_pass_tokens]) {
        for rows in [SMALLEST_CHUNK, most_rows.div_ceil(4).max(SMALLEST_CHUNK), most_rows] {
            let Some(kept) = most_kept(workload, tokens, rows, budget) else { continue };
            let layout = layout(workload, tokens, kept, rows);
            let cost = cost(workload, &layout);
            if cost < best.0 {
                best = (cost, layout);
            }
        }
    }
    best.1
}

/// Sizes from one sequence to the whole batch, about a quarter apart.
fn pass_sizes(workload: &Workload) -> impl Iterator<Item = usize> {
    let end = workload.batch.max(workload.longest);
    let next = move |&tokens: &usize| (tokens < end).then(|| (tokens + tokens / 4 + 1).min(end));
    let sizes = std::iter::successors(Some(workload.longest.max(1)), next);
    sizes.map(|tokens| fullest(workload, tokens))
}

/// The most tokens that whole sequences can make of a pass of at most `tokens`.
fn fullest(workload: &Workload, tokens: usize) -> usize {
    let sequences = tokens / workload.shortest.clamp(1, workload.longest.max(1));
    tokens.min(sequences * workload.longest.max(1))
}

fn most_kept(workload: &Workload, tokens: usize, rows: usize, budget: u64) -> Option<usize> {
    let fits = |kept: &usize| layout(workload, tokens, *kept, rows).peak_bytes <= budget;
    (0..=workload.model.num_layers).rev().find(fits)
}

/// Time of a batch in units of one product with every weight for one token: forward, backward, and
/// forward again for layers that do not keep their activations.
fn cost(workload: &Workload, plan: &MemoryPlan) -> f64 {
    let layers = workload.model.num_layers.max(1) as f64;
    let sweeps = 3.0 - plan.kept_layers as f64 / layers;
    let passes = workload.batch.div_ceil(plan.shared_pass_tokens.max(1)) as f64;
    let head = workload.model.vocab_size as f64 * workload.model.hidden_size as f64;
    let head_share = head / (weights_per_layer(workload.model) as f64 * layers);
    let chunks = workload.batch as f64 / plan.score_rows as f64;
    workload.batch as f64 * sweeps
        + passes * sweeps * workload.pass_cost
        + chunks * 2.0 * head_share * workload.pass_cost.min(PROCESSOR_PASS)
}

fn weights_per_layer(model: &ModelConfig) -> u64 {
    let shapes = crate::adapter::Target::ALL.map(|target| model.projection_shape(target));
    shapes.iter().map(|(rows, cols)| (rows * cols) as u64).sum()
}

/// The peak of one layout. The names of the sums are those of `model/layer.rs`.
fn layout(workload: &Workload, tokens: usize, kept: usize, score_rows: usize) -> MemoryPlan {
    let model = workload.model;
    let row = |values: usize| values as u64 * F32 * tokens as u64;
    let targets = (tokens as f64 * workload.target_share).ceil() as usize;
    let target_row = |values: usize| values as u64 * F32 * targets as u64;
    let (hidden, wide) = (model.hidden_size, model.intermediate_size);
    let (query, kv) = (model.query_size(), model.kv_size());
    let normed_heads = usize::from(model.family == crate::config::Family::Qwen3);
    // Keys and values. Queries, attended output and log-sum-exp, stream, gate, up: of the last layer
    // only for rows that predict something.
    let keys = (2 + normed_heads) * kv;
    let queries = (2 + normed_heads) * query + model.num_heads + hidden + 2 * wide;
    let state = row(keys + queries);
    // Those that are kept; once they are used, that of one layer at a time, computed again.
    let states = match kept {
        0 => state,
        kept => state.max(state * (kept as u64 - 1) + row(keys) + target_row(queries)),
    };
    // Every layer's input, and the stream after the last.
    let inputs = row(hidden) * model.num_layers as u64 + target_row(hidden);

    // The backward pass of a layer: its state, dy, and then either what comes before
    // SwiGLU, whose own gradients take the place of its inputs, or, once these are gone, attention's
    // gradients and the heads that are computed at once.
    let adapts_down = workload.lora.targets.contains(&Target::DownProj);
    let around_swiglu = row(wide * (1 + usize::from(adapts_down)));
    let heads = model.num_heads.min(HEADS_PER_THREAD * workload.threads);
    let scratch = (heads * HEAD_BUFFERS * model.head_dim * workload.longest) as u64 * F32;
    let around_attention = row(2 * (query + kv)) + scratch;
    let around_attention = around_attention.saturating_sub(row(hidden + 2 * wide));
    let layer = states + row(hidden) + around_swiglu.max(around_attention);
    // The head: selected rows, their norm and its gradient, and a chunk of logits.
    let logits = (score_rows.min(targets) * model.vocab_size) as u64 * F32;
    let head = target_row(3 * hidden) + logits;
    let pass = inputs + layer.max(head + if kept > 0 { states } else { 0 });
    let pass = pass + pass / 100 * FRAGMENTATION + row(WIDE_HOLES * wide);

    // Parameters, their copy for the pass, two moments, and gradients as tensors and summed.
    let adapter = workload.lora.num_values(model) as u64 * F32;
    let adapters = adapter * (6 + workload.extra_adapters) * workload.clients.max(1) as u64;

    // The kernels' panels are counted with the program; the embedding rows with the inputs.
    let peak_bytes = PROGRAM + workload.model_bytes + adapters + pass;
    MemoryPlan {
        max_pass_tokens: tokens,
        shared_pass_tokens: tokens,
        clients: workload.clients.max(1),
        kept_layers: kept,
        score_rows,
        peak_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::Target;
    use crate::config::{Family, RopeScaling};

    fn model() -> ModelConfig {
        ModelConfig {
            family: Family::Llama,
            vocab_size: 49152,
            hidden_size: 576,
            intermediate_size: 1536,
            num_layers: 30,
            num_heads: 9,
            num_kv_heads: 3,
            head_dim: 64,
            rms_norm_eps: 1e-5,
            rope_theta: 1e5,
            rope_scaling: RopeScaling::None,
            max_context: 8192,
            sliding_window: None,
            sliding_window_from_layer: 0,
            tie_word_embeddings: true,
        }
    }

    fn with_workload<R>(f: impl FnOnce(&Workload) -> R) -> R {
        let lora = LoraConfig::new(32, 64.0, &[Target::QProj, Target::VProj]).unwrap();
        f(&Workload {
            model: &model(),
            model_bytes: 98 << 20,
            lora: &lora,
            extra_adapters: 0,
            shortest: 1,
            longest: 512,
            batch: 4000,
            target_share: 1.0,
            clients: 1,
            pass_cost: PROCESSOR_PASS,
            threads: 2,
        })
    }

    #[test]
    fn a_larger_budget_never_makes_a_slower_plan_and_is_never_exceeded() {
        with_workload(|workload| {
            let mut last = f64::INFINITY;
            for mib in [300, 400, 600, 800, 1600, 6400] {
                let plan = plan(workload, Some(mib << 20)).unwrap();
                assert!(plan.peak_bytes <= mib << 20, "{plan:?}");
                assert!(cost(workload, &plan) <= last, "{plan:?}");
                last = cost(workload, &plan);
            }
        });
    }

    #[test]
    fn a_budget_that_cannot_be_met_names_the_smallest_that_can() {
        with_workload(|workload| {
            let error = plan(workload, Some(100 << 20)).unwrap_err();
            assert!(plan(workload, Some(error.smallest)).is_ok());
            assert!(plan(workload, Some(error.smallest - 1)).is_err());
        });
    }

    #[test]
    fn passes_of_sequences_of_one_length_are_multiples_of_it() {
        with_workload(|workload| {
            for longest in [100, 256, 300] {
                let even =
                    Workload { shortest: longest, longest, batch: 16 * longest, ..*workload };
                assert!(pass_sizes(&even).all(|tokens| tokens % longest == 0));
                let plan = plan(&even, None).unwrap();
                assert_eq!(plan.max_pass_tokens % longest, 0, "{plan:?}");
            }
            // Sequences of any length fill a pass to the last token.
            assert_eq!(fullest(workload, 700), 700);
        });
    }

    #[test]
    fn clients_with_small_batches_share_a_pass_and_those_with_large_ones_do_not() {
        with_workload(|workload| {
            let sharing = |batch: usize, most, mib: u64| {
                let alone = plan(workload, Some(mib << 20)).unwrap();
                let client = Workload { batch, ..*workload };
                let shared = plan_shared(&client, &alone, most, Some(mib << 20));
                assert!(shared.peak_bytes <= mib << 20, "{shared:?}");
                assert_eq!(shared.max_pass_tokens, alone.max_pass_tokens);
                assert!(shared.shared_pass_tokens >= alone.max_pass_tokens);
                shared.clients
            };
            assert!(sharing(60, 20, 6400) > 4);
            assert!((2..=3).contains(&sharing(60, 3, 6400)));
            assert_eq!(sharing(60, 1, 6400), 1);
            // Each client has an adapter with its gradients and moments.
            assert!(sharing(60, 20, 800) < 5);
            assert_eq!(sharing(8000, 20, 800), 1);
            // A GPU has memory to fill, and needs large passes.
            let gpu = Workload { pass_cost: GPU_PASS, batch: 4000, ..*workload };
            let alone = plan(&gpu, Some(64 << 30)).unwrap();
            assert!(plan_shared(&gpu, &alone, 20, Some(64 << 30)).clients > 10);
        });
    }

    #[test]
    fn without_a_budget_a_long_sequence_still_fits() {
        with_workload(|workload| {
            let long = Workload { longest: 100_000, batch: 100_000, ..*workload };
            assert_eq!(plan(&long, None).unwrap().max_pass_tokens, 100_000);
        });
    }
}
