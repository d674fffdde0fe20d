//! Decoders of any small shape with random weights.

use fleetune_core::adapter::ParameterSet;
use fleetune_core::model::{DecoderWeights, Family, LayerWeights, ModelConfig, RopeScaling};
use fleetune_core::weight::FrozenWeight;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Tokens every small model has.
pub const VOCABULARY: u32 = 17;

/// What varies between small models.
#[derive(Debug, Clone, Copy)]
pub struct SmallShape {
    /// Layers.
    pub layers: usize,
    /// Query heads per key head.
    pub groups: usize,
    /// Key heads.
    pub kv_heads: usize,
    /// Half of a head's width.
    pub half_head: usize,
    /// Biases on the query, key and value projections.
    pub biases: bool,
    /// RMSNorm of queries and keys.
    pub qk_norm: bool,
    /// One matrix for embedding and head.
    pub tied: bool,
    /// Sliding window of the attention.
    pub window: Option<usize>,
}

/// A configuration of that shape, with 11 features.
pub fn config(shape: SmallShape) -> ModelConfig {
    ModelConfig {
        family: if shape.qk_norm { Family::Qwen3 } else { Family::Llama },
        vocab_size: VOCABULARY as usize,
        hidden_size: 11,
        intermediate_size: 13,
        num_layers: shape.layers,
        num_heads: shape.groups * shape.kv_heads,
        num_kv_heads: shape.kv_heads,
        head_dim: 2 * shape.half_head,
        rms_norm_eps: 1e-5,
        rope_theta: 100.0,
        rope_scaling: RopeScaling::None,
        max_context: 64,
        sliding_window: shape.window,
        sliding_window_from_layer: 0,
        tie_word_embeddings: shape.tied,
    }
}

/// Random weights for `config`.
pub fn weights(config: &ModelConfig, shape: SmallShape, seed: u64) -> DecoderWeights {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut values = |n: usize, scale: f32, mean: f32| -> Vec<f32> {
        (0..n).map(|_| mean + scale * random.random_range(-1.0f32..1.0)).collect()
    };
    let mut matrix = |name: &str, rows: usize, cols: usize| {
        let scale = 1.7 / (cols as f32).sqrt();
        FrozenWeight::from_f32(name, (rows, cols), &values(rows * cols, scale, 0.0)).unwrap()
    };
    let (hidden, wide) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = (config.query_size(), config.kv_size());
    let embedding = matrix("embedding", config.vocab_size, hidden);
    let head = match config.tie_word_embeddings {
        true => embedding.clone(),
        false => matrix("head", config.vocab_size, hidden),
    };
    let projections: Vec<[FrozenWeight; 7]> = (0..config.num_layers)
        .map(|_| {
            [
                matrix("q_proj", q, hidden),
                matrix("k_proj", kv, hidden),
                matrix("v_proj", kv, hidden),
                matrix("o_proj", hidden, q),
                matrix("gate_proj", wide, hidden),
                matrix("up_proj", wide, hidden),
                matrix("down_proj", hidden, wide),
            ]
        })
        .collect();
    let layers = projections.into_iter().map(|projections| {
        let [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj] = projections;
        LayerWeights {
            attention_norm: values(hidden, 0.3, 1.0),
            q_proj,
            k_proj,
            v_proj,
            o_proj,
            q_bias: shape.biases.then(|| values(q, 0.3, 0.0)),
            k_bias: shape.biases.then(|| values(kv, 0.3, 0.0)),
            v_bias: shape.biases.then(|| values(kv, 0.3, 0.0)),
            q_norm: shape.qk_norm.then(|| values(config.head_dim, 0.3, 1.0)),
            k_norm: shape.qk_norm.then(|| values(config.head_dim, 0.3, 1.0)),
            mlp_norm: values(hidden, 0.3, 1.0),
            gate_proj,
            up_proj,
            down_proj,
        }
    });
    let layers = layers.collect();
    DecoderWeights { embedding, layers, final_norm: values(hidden, 0.3, 1.0), head }
}

/// Values between −½ and ½ that look random.
pub fn scatter(set: &mut ParameterSet, mut state: f32) {
    for value in set.values_mut().flatten() {
        state = (state * 91.7).fract();
        *value = state - 0.5;
    }
}
