//! A tiny model made up on the spot: for machines that cannot fetch one, and for tests.
//!
//! Its weights are random numbers from a fixed seed, so it knows nothing and answers nonsense; it
//! is there to show the federation at work, and an adapter does learn on it. It is an ordinary
//! Hugging Face folder and takes the same way through the program as any other model.

use std::fs;
use std::io;
use std::path::Path;

use fleetune_core::adapter::{Parameter, ParameterSet};
use fleetune_core::files::write_atomically;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::StandardNormal;
use serde_json::{Map, Value, json};

/// The name by which users ask for the stand-in.
pub const NAME: &str = "stand-in";

const SEED: u64 = 2402_06954;
const HIDDEN: usize = 64;
const INTERMEDIATE: usize = 160;
const LAYERS: usize = 2;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = HIDDEN / HEADS;
/// After the 256 bytes.
const SPECIAL_TOKENS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
const VOCABULARY: usize = 256 + SPECIAL_TOKENS.len();
const END: usize = 258;

const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Writes the model to `folder`, which is made where needed. Every call writes the same bytes.
///
/// # Errors
/// When the folder cannot be written.
pub fn write_model(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let weights = weights().to_safetensors().map_err(io::Error::other)?;
    write_atomically(&folder.join("model.safetensors"), &weights)?;
    for (name, value) in [
        ("tokenizer.json", tokenizer()),
        ("tokenizer_config.json", tokenizer_config()),
        ("config.json", config()),
    ] {
        write_atomically(&folder.join(name), &serde_json::to_vec_pretty(&value)?)?;
    }
    Ok(())
}

fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": true,
        "attention_bias": false,
        "mlp_bias": false,
        "bos_token_id": END - 1,
        "eos_token_id": END,
        "torch_dtype": "float32",
    })
}

fn tokenizer_config() -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL_TOKENS[2],
        "pad_token": SPECIAL_TOKENS[2],
        "chat_template": CHAT_TEMPLATE,
    })
}

/// A byte-level tokenizer without merges: one token a byte.
fn tokenizer() -> Value {
    let bytes = (0..=u8::MAX).map(|byte| (byte_symbol(byte).to_string(), json!(byte)));
    let specials = SPECIAL_TOKENS.iter().zip(256..);
    let vocabulary: Map<String, Value> =
        bytes.chain(specials.clone().map(|(&name, id)| (name.to_owned(), json!(id)))).collect();
    let added: Vec<Value> = specials
        .map(|(name, id)| {
            json!({
                "id": id, "content": name, "special": true, "normalized": false,
                "single_word": false, "lstrip": false, "rstrip": false,
            })
        })
        .collect();
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": byte_level.clone(),
        "post_processor": null,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": false, "vocab": vocabulary, "merges": [],
        },
    })
}

/// The character by which GPT-2's byte-level tokenizers write a byte: itself where it is a visible
/// character, else the next one from U+0100.
fn byte_symbol(byte: u8) -> char {
    let visible = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if visible(byte) {
        return byte.into();
    }
    let earlier = (0..byte).filter(|&b| !visible(b)).count() as u32;
    char::from_u32(0x100 + earlier).unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn weights() -> ParameterSet {
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let mut matrix = |name: String, rows: usize, cols: usize, deviation: f32| Parameter {
        name,
        shape: vec![rows, cols],
        values: (0..rows * cols)
            .map(|_| deviation * random.sample::<f32, _>(StandardNormal))
            .collect(),
    };
    let gain = |name: String| Parameter { name, shape: vec![HIDDEN], values: vec![1.0; HIDDEN] };
    // A small embedding, which is also the head: all tokens begin about equally likely.
    let mut entries = vec![matrix("model.embed_tokens.weight".into(), VOCABULARY, HIDDEN, 0.12)];
    let kv = KV_HEADS * HEAD_DIM;
    let projections = [
        ("self_attn.q_proj", HIDDEN, HIDDEN),
        ("self_attn.k_proj", kv, HIDDEN),
        ("self_attn.v_proj", kv, HIDDEN),
        ("self_attn.o_proj", HIDDEN, HIDDEN),
        ("mlp.gate_proj", INTERMEDIATE, HIDDEN),
        ("mlp.up_proj", INTERMEDIATE, HIDDEN),
        ("mlp.down_proj", HIDDEN, INTERMEDIATE),
    ];
    for layer in 0..LAYERS {
        for (name, rows, cols) in projections {
            let name = format!("model.layers.{layer}.{name}.weight");
            entries.push(matrix(name, rows, cols, (cols as f32).sqrt().recip()));
        }
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            entries.push(gain(format!("model.layers.{layer}.{norm}.weight")));
        }
    }
    entries.push(gain("model.norm.weight".into()));
    ParameterSet::new(entries)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_byte_has_a_symbol_of_its_own_as_in_gpt2() {
        let symbols: HashSet<char> = (0..=u8::MAX).map(byte_symbol).collect();
        assert_eq!(symbols.len(), 256);
        assert_eq!(byte_symbol(b' '), 'Ġ');
        assert_eq!(byte_symbol(b'\n'), 'Ċ');
        assert_eq!(byte_symbol(0xad), '\u{143}');
    }

    #[test]
    fn the_model_is_the_same_bytes_each_time() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        for folder in &folders {
            write_model(folder.path()).unwrap();
        }
        for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
        {
            let [a, b] = folders.each_ref().map(|f| fs::read(f.path().join(name)).unwrap());
            assert!(a == b, "{name}");
        }
    }
}
