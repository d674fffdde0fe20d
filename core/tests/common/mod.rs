//! Tiny models written for tests.
#![allow(dead_code, reason = "every test file uses its own part")]

use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

/// A file of the repository's fixtures.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures")).join(name)
}

/// The built-in model in the cache, or `None` with a line that says so.
pub fn smollm2() -> Option<PathBuf> {
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

/// A GGUF file in the making: a decoder of one layer whose parts can be changed before it is
/// written by candle.
pub struct TinyGguf {
    pub metadata: Vec<(String, Value)>,
    pub tensors: Vec<(String, QTensor)>,
}

/// Width of the tiny decoder: one block of a K-quant.
pub const HIDDEN: usize = 256;
pub const INTERMEDIATE: usize = 512;
pub const VOCAB: usize = 32;
pub const HEADS: usize = 4;
pub const KV_HEADS: usize = 2;

impl TinyGguf {
    /// A decoder of `architecture` with all matrices in `format` and a head of its own.
    pub fn new(architecture: &str, format: GgmlDType) -> Self {
        let mut tiny = Self { metadata: Vec::new(), tensors: Vec::new() };
        tiny.set("general.architecture", Value::String(architecture.to_owned()));
        for (key, value) in [
            ("block_count", 1),
            ("context_length", 64),
            ("embedding_length", HIDDEN),
            ("feed_forward_length", INTERMEDIATE),
            ("attention.head_count", HEADS),
            ("attention.head_count_kv", KV_HEADS),
        ] {
            tiny.set(&format!("{architecture}.{key}"), Value::U32(value as u32));
        }
        let epsilon = format!("{architecture}.attention.layer_norm_rms_epsilon");
        tiny.set(&epsilon, Value::F32(1e-5));
        let kv = HIDDEN / HEADS * KV_HEADS;
        for (name, shape) in [
            ("token_embd", [VOCAB, HIDDEN]),
            ("output", [VOCAB, HIDDEN]),
            ("blk.0.attn_q", [HIDDEN, HIDDEN]),
            ("blk.0.attn_k", [kv, HIDDEN]),
            ("blk.0.attn_v", [kv, HIDDEN]),
            ("blk.0.attn_output", [HIDDEN, HIDDEN]),
            ("blk.0.ffn_gate", [INTERMEDIATE, HIDDEN]),
            ("blk.0.ffn_up", [INTERMEDIATE, HIDDEN]),
            ("blk.0.ffn_down", [HIDDEN, INTERMEDIATE]),
        ] {
            tiny.put(&format!("{name}.weight"), &shape, format);
        }
        for name in ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"] {
            tiny.put(&format!("{name}.weight"), &[HIDDEN], GgmlDType::F32);
        }
        match architecture {
            "qwen2" => {
                for (name, len) in [("q", HIDDEN), ("k", kv), ("v", kv)] {
                    tiny.put(&format!("blk.0.attn_{name}.bias"), &[len], GgmlDType::F32);
                }
            }
            "qwen3" => {
                for name in ["q", "k"] {
                    let name = format!("blk.0.attn_{name}_norm.weight");
                    tiny.put(&name, &[HIDDEN / HEADS], GgmlDType::F32);
                }
            }
            _ => {}
        }
        tiny
    }

    /// Sets or replaces a metadata value.
    pub fn set(&mut self, key: &str, value: Value) -> &mut Self {
        self.unset(key);
        self.metadata.push((key.to_owned(), value));
        self
    }

    /// Removes a metadata value.
    pub fn unset(&mut self, key: &str) -> &mut Self {
        self.metadata.retain(|(k, _)| k != key);
        self
    }

    /// Adds or replaces a tensor of made-up values.
    pub fn put(&mut self, name: &str, shape: &[usize], format: GgmlDType) -> &mut Self {
        let len: usize = shape.iter().product();
        let seed = name.len();
        let values: Vec<f32> =
            (0..len).map(|i| ((i * 31 + seed) as f32 * 0.37).sin() * 0.5).collect();
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        self.remove(name);
        self.tensors.push((name.to_owned(), QTensor::quantize(&tensor, format).unwrap()));
        self
    }

    /// Removes a tensor.
    pub fn remove(&mut self, name: &str) -> &mut Self {
        self.tensors.retain(|(n, _)| n != name);
        self
    }

    /// The bytes of a tensor, as candle stores them.
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        let (_, tensor) = self.tensors.iter().find(|(n, _)| n == name).unwrap();
        tensor.data().unwrap().into_owned()
    }

    /// Gives the file a SentencePiece vocabulary of `pieces` with falling scores.
    pub fn with_pieces(&mut self, pieces: &[&str]) -> &mut Self {
        let scores = (0..pieces.len()).map(|i| Value::F32(-(i as f32))).collect();
        let types = (0..pieces.len()).map(|i| Value::I32(if i < 3 { 3 } else { 1 })).collect();
        let pieces = pieces.iter().map(|piece| Value::String((*piece).to_owned())).collect();
        self.set("tokenizer.ggml.model", Value::String("llama".to_owned()))
            .set("tokenizer.ggml.tokens", Value::Array(pieces))
            .set("tokenizer.ggml.scores", Value::Array(scores))
            .set("tokenizer.ggml.token_type", Value::Array(types))
    }

    /// Writes the file with candle.
    pub fn write(&self, path: &Path) {
        let metadata: Vec<_> = self.metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
        let tensors: Vec<_> = self.tensors.iter().map(|(n, t)| (n.as_str(), t)).collect();
        gguf_file::write(&mut File::create(path).unwrap(), &metadata, &tensors).unwrap();
    }

    /// Writes the file into `folder` and returns its path.
    pub fn write_in(&self, folder: &Path) -> PathBuf {
        let path = folder.join("model.gguf");
        self.write(&path);
        path
    }
}
