//! GGUF files that candle wrote: every format, every architecture.

mod common;

use std::sync::Arc;

use candle_core::quantized::gguf_file::Value;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use fleetune_core::model::{Family, LoadedModel, RopeScaling};
use fleetune_core::weight::FrozenWeight;
use tempfile::tempdir;

use common::{HEADS, HIDDEN, TinyGguf, fixture};

fn all_bytes(weight: &FrozenWeight) -> Vec<u8> {
    (0..weight.rows()).flat_map(|row| weight.row_bytes(row)).copied().collect()
}

#[test]
fn matrices_of_every_format_keep_their_bytes() {
    use GgmlDType as G;
    for format in [
        G::F32,
        G::F16,
        G::BF16,
        G::Q4_0,
        G::Q4_1,
        G::Q5_0,
        G::Q5_1,
        G::Q8_0,
        G::Q2K,
        G::Q3K,
        G::Q4K,
        G::Q5K,
        G::Q6K,
        G::Q8K,
    ] {
        let folder = tempdir().unwrap();
        let tiny = TinyGguf::new("qwen2", format);
        let model = LoadedModel::open(&tiny.write_in(folder.path())).unwrap();
        let layer = &model.weights.layers[0];
        for (weight, name) in [
            (&model.weights.embedding, "token_embd.weight"),
            (&model.weights.head, "output.weight"),
            (&layer.q_proj, "blk.0.attn_q.weight"),
            (&layer.k_proj, "blk.0.attn_k.weight"),
            (&layer.down_proj, "blk.0.ffn_down.weight"),
        ] {
            assert_eq!(weight.format(), format);
            assert_eq!(all_bytes(weight), tiny.bytes(name), "{name} in {format:?}");
        }
        let q_bias: Vec<u8> =
            layer.q_bias.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(q_bias, tiny.bytes("blk.0.attn_q.bias"));
    }
}

#[test]
fn every_architecture_opens_as_its_family() {
    for (architecture, family) in [
        ("llama", Family::Llama),
        ("mistral", Family::Mistral),
        ("qwen2", Family::Qwen2),
        ("qwen3", Family::Qwen3),
    ] {
        let folder = tempdir().unwrap();
        TinyGguf::new(architecture, GgmlDType::F32).write_in(folder.path());
        // The folder holds exactly one GGUF file, so its name is enough.
        let model = LoadedModel::open(folder.path()).unwrap();
        assert_eq!(model.config.family, family);
        assert!(!model.config.tie_word_embeddings);
        let layer = &model.weights.layers[0];
        assert_eq!(layer.q_bias.is_some(), family == Family::Qwen2);
        assert_eq!(layer.q_norm.is_some(), family == Family::Qwen3);
    }
}

/// The rows of a query or key projection as llama.cpp's converter permutes them for files of
/// architecture `llama`: `reshape(heads, 2, half, cols).swapaxes(1, 2)`.
fn permuted(weight: &Tensor, heads: usize) -> Tensor {
    let (rows, cols) = weight.dims2().unwrap();
    let half = rows / heads / 2;
    let halves = weight.reshape((heads, 2, half, cols)).unwrap();
    halves.transpose(1, 2).unwrap().contiguous().unwrap().reshape((rows, cols)).unwrap()
}

#[test]
fn a_converted_llama_has_the_rows_of_the_original() {
    let original = LoadedModel::open(&fixture("tiny_llama")).unwrap();
    let tensors =
        candle_core::safetensors::load(fixture("tiny_llama/model.safetensors"), &Device::Cpu)
            .unwrap();
    let mut tiny = TinyGguf { metadata: Vec::new(), tensors: Vec::new() };
    tiny.set("general.architecture", Value::String("llama".into()));
    for (key, value) in [
        ("block_count", 2),
        ("context_length", 128),
        ("embedding_length", 64),
        ("feed_forward_length", 160),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
    ] {
        tiny.set(&format!("llama.{key}"), Value::U32(value));
    }
    tiny.set("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5));
    for (name, tensor) in &tensors {
        let gguf_name = name
            .replace("model.layers.", "blk.")
            .replace("self_attn.o_proj", "attn_output")
            .replace("self_attn.", "attn_")
            .replace("mlp.", "ffn_")
            .replace("_proj", "")
            .replace("input_layernorm", "attn_norm")
            .replace("post_attention_layernorm", "ffn_norm")
            .replace("model.embed_tokens", "token_embd")
            .replace("model.norm", "output_norm")
            .replace("lm_head", "output");
        let tensor = match gguf_name.as_str() {
            name if name.ends_with("attn_q.weight") => permuted(tensor, 4),
            name if name.ends_with("attn_k.weight") => permuted(tensor, 2),
            _ => tensor.clone(),
        };
        let stored = QTensor::quantize(&tensor, GgmlDType::F32).unwrap();
        tiny.tensors.push((gguf_name, stored));
    }
    let folder = tempdir().unwrap();
    let converted = LoadedModel::open(&tiny.write_in(folder.path())).unwrap();
    assert_eq!(converted.config.rms_norm_eps as f32, original.config.rms_norm_eps as f32);
    for (a, b) in converted.weights.layers.iter().zip(&original.weights.layers) {
        assert_eq!(all_bytes(&a.q_proj), all_bytes(&b.q_proj));
        assert_eq!(all_bytes(&a.k_proj), all_bytes(&b.k_proj));
        assert_eq!(all_bytes(&a.v_proj), all_bytes(&b.v_proj));
        assert_eq!(a.mlp_norm, b.mlp_norm);
    }
    assert_eq!(all_bytes(&converted.weights.head), all_bytes(&original.weights.head));
}

#[test]
fn a_file_without_a_head_ties_it_to_the_embedding() {
    let folder = tempdir().unwrap();
    let mut tiny = TinyGguf::new("qwen3", GgmlDType::Q8_0);
    let path = tiny.remove("output.weight").write_in(folder.path());
    let model = LoadedModel::open(&path).unwrap();
    assert!(model.config.tie_word_embeddings);
    assert_eq!(all_bytes(&model.weights.head), all_bytes(&model.weights.embedding));
}

#[test]
fn rope_scaling_is_read_from_keys_and_from_divisors() {
    let open = |tiny: &TinyGguf| {
        let folder = tempdir().unwrap();
        LoadedModel::open(&tiny.write_in(folder.path())).unwrap().config
    };
    let mut tiny = TinyGguf::new("llama", GgmlDType::F32);
    assert_eq!(open(&tiny).rope_scaling, RopeScaling::None);
    tiny.set("llama.rope.freq_base", Value::F32(5e5));
    tiny.set("llama.rope.scaling.type", Value::String("linear".into()));
    tiny.set("llama.rope.scaling.factor", Value::F32(4.0));
    let config = open(&tiny);
    assert_eq!(config.rope_theta, 5e5);
    assert_eq!(config.rope_scaling, RopeScaling::Linear { factor: 4.0 });
    tiny.unset("llama.rope.scaling.type");
    let half = HIDDEN / HEADS / 2;
    let divisors: Vec<f32> = (0..half).map(|i| 1.0 + i as f32).collect();
    let tensor = Tensor::from_vec(divisors.clone(), half, &Device::Cpu).unwrap();
    let stored = QTensor::quantize(&tensor, GgmlDType::F32).unwrap();
    tiny.tensors.push(("rope_freqs.weight".into(), stored));
    assert_eq!(open(&tiny).rope_scaling, RopeScaling::PerFrequency(divisors));
}

#[test]
fn version_3_differs_from_version_2_by_its_number_only() {
    let folder = tempdir().unwrap();
    let path = TinyGguf::new("llama", GgmlDType::Q4_0).write_in(folder.path());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4] = 3;
    std::fs::write(&path, bytes).unwrap();
    LoadedModel::open(&path).unwrap();
}

#[test]
fn a_models_content_hash_is_that_of_its_file() {
    use sha2::{Digest, Sha256};
    let folder = tempdir().unwrap();
    let path = TinyGguf::new("llama", GgmlDType::Q4_0).write_in(folder.path());
    let model = LoadedModel::open(&path).unwrap();
    let expected = Sha256::digest(std::fs::read(&path).unwrap());
    let expected: String = expected.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(model.content_hash().unwrap(), expected);
    assert_eq!(Arc::new(model).content_hash().unwrap(), expected);
}
