//! Opening real and tiny models.

use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use fleetune_core::model::{Family, LoadedModel};
use fleetune_core::weight::RowOrder;

fn fixture(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures")).join(name)
}

/// The built-in model in the cache, or `None` with a line that says so.
fn smollm2() -> Option<PathBuf> {
    let cache = std::env::var_os("FLEETUNE_CACHE").map(PathBuf::from).or_else(|| {
        std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache/fleetune"))
    })?;
    let path = cache.join("models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf");
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: {} is not there (fleetune model pull)", path.display());
    None
}

#[test]
fn hugging_face_folders_of_every_family_open() {
    for (name, family, tied, head_dim) in [
        ("tiny_llama", Family::Llama, false, 16),
        ("tiny_mistral", Family::Mistral, false, 16),
        ("tiny_qwen2", Family::Qwen2, true, 16),
        ("tiny_qwen3", Family::Qwen3, true, 32),
    ] {
        let model = LoadedModel::open(&fixture(name)).unwrap();
        assert_eq!(model.config.family, family);
        assert_eq!(model.config.tie_word_embeddings, tied, "{name}");
        assert_eq!(model.config.head_dim, head_dim, "{name}");
        assert_eq!(model.weights.layers.len(), 2);
        assert_eq!(model.config.sliding_window, None, "{name}");
        let layer = &model.weights.layers[1];
        assert_eq!(layer.q_bias.is_some(), family == Family::Qwen2);
        assert_eq!(layer.k_norm.as_ref().map(Vec::len), (family == Family::Qwen3).then_some(32));
        assert_eq!(layer.k_proj.rows(), 2 * head_dim);
        assert_eq!(layer.k_proj.format(), GgmlDType::F32);
    }
}

#[test]
fn the_built_in_model_opens_quantised() {
    let Some(path) = smollm2() else { return };
    let model = LoadedModel::open(&path).unwrap();
    let config = &model.config;
    assert_eq!(config.family, Family::Llama);
    assert_eq!((config.vocab_size, config.hidden_size, config.num_layers), (49152, 576, 30));
    assert_eq!((config.num_heads, config.num_kv_heads, config.head_dim), (9, 3, 64));
    assert_eq!(config.rms_norm_eps, 9.999999747378752e-06);
    assert_eq!(config.rope_theta, 100_000.0);
    assert!(config.tie_word_embeddings);
    assert_eq!(model.weights.embedding.format(), GgmlDType::Q8_0);
    let q_proj = &model.weights.layers[29].q_proj;
    assert_eq!(q_proj.format(), GgmlDType::Q4_1);
    let interleaved = q_proj.clone().with_row_order(RowOrder::InterleavedHeads { head_dim: 64 });
    assert_eq!(q_proj.row_bytes(1), interleaved.row_bytes(1));
    assert_eq!(model.files(), [path]);
}
