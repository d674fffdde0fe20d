//! Damaged and malicious files end in an error, never in a panic or an absurd allocation.

mod common;

use std::path::Path;
use std::sync::LazyLock;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use fleetune_core::model::{LoadedModel, ModelError};
use proptest::prelude::*;
use serde_json::{Value as Json, json};
use tempfile::{TempDir, tempdir};

use common::{TinyGguf, fixture};

/// Opens a model and, where that succeeds, touches everything that came out of the file.
fn open_and_use(path: &Path) {
    let Ok(model) = LoadedModel::open(path) else { return };
    let config = &model.config;
    assert_eq!(config.inverse_frequencies().len(), config.head_dim / 2);
    for layer in &model.weights.layers {
        for matrix in [&layer.q_proj, &layer.k_proj, &layer.o_proj, &layer.down_proj] {
            matrix.row_bytes(0);
            matrix.row_bytes(matrix.rows() - 1);
        }
    }
    model.weights.embedding.row_bytes(config.vocab_size - 1);
    model.weights.head.row_bytes(config.vocab_size - 1);
    model.summary().to_string();
    if let Ok(tokenizer) = model.tokenizer()
        && let Ok(ids) = tokenizer.encode("ab <s> é\u{1f642} 12")
    {
        tokenizer.decode(&ids, false).unwrap();
    }
    if let Some(template) = model.chat_template() {
        let _ = template.render(&[], true);
    }
}

fn tiny_with_tokenizer() -> TinyGguf {
    let mut tiny = TinyGguf::new("llama", GgmlDType::Q4_0);
    tiny.with_pieces(&["<unk>", "<s>", "</s>", "a", "b", "ab", "▁", "▁a", "<0x31>", "1"]);
    tiny.set("tokenizer.chat_template", Value::String("{{ messages | length }}".into()));
    tiny
}

static TINY_BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let folder = tempdir().unwrap();
    std::fs::read(tiny_with_tokenizer().write_in(folder.path())).unwrap()
});

/// A model's folder with weights, configuration and a tokenizer.
fn tiny_folder() -> TempDir {
    let folder = tempdir().unwrap();
    for (file, name) in [
        ("tiny_llama/config.json", "config.json"),
        ("tiny_llama/model.safetensors", "model.safetensors"),
        ("tokenizers/bos.tokenizer.json", "tokenizer.json"),
    ] {
        std::fs::copy(fixture(file), folder.path().join(name)).unwrap();
    }
    folder
}

/// Bytes to overwrite, more of them where the header is.
fn damage(header: usize) -> impl Strategy<Value = Vec<(usize, u8)>> {
    prop::collection::vec((0..header, prop_oneof![any::<u8>(), Just(0), Just(0xff)]), 1..8)
}

fn apply(bytes: &mut [u8], damage: &[(usize, u8)]) {
    for &(at, byte) in damage {
        if let Some(target) = bytes.get_mut(at) {
            *target = byte;
        }
    }
}

/// Where the values in `json` are, itself left out; of long lists and maps the first ones.
fn pointers(json: &Json) -> Vec<String> {
    let children: Vec<(String, &Json)> = match json {
        Json::Array(items) => {
            items.iter().enumerate().map(|(at, item)| (at.to_string(), item)).take(8).collect()
        }
        Json::Object(members) => members
            .iter()
            .map(|(name, member)| (name.replace('~', "~0").replace('/', "~1"), member))
            .take(48)
            .collect(),
        _ => Vec::new(),
    };
    let below = |(name, child): (String, &Json)| {
        let inside = pointers(child).into_iter().map(|rest| format!("/{name}{rest}"));
        std::iter::once(format!("/{name}")).chain(inside).collect::<Vec<_>>()
    };
    children.into_iter().flat_map(below).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn damaged_gguf_files_never_panic(damage in damage(2600), keep in 0.0..1.5f64) {
        let folder = tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let mut bytes = TINY_BYTES.clone();
        apply(&mut bytes, &damage);
        bytes.truncate((bytes.len() as f64 * keep) as usize);
        std::fs::write(&path, bytes).unwrap();
        open_and_use(&path);
    }

    #[test]
    fn absurd_gguf_numbers_never_panic(
        key in prop::sample::select(vec![
            "llama.block_count", "llama.context_length", "llama.embedding_length",
            "llama.feed_forward_length", "llama.attention.head_count",
            "llama.attention.head_count_kv", "llama.attention.key_length",
            "llama.attention.sliding_window", "llama.rope.dimension_count",
            "llama.rope.freq_base", "llama.rope.scaling.factor", "llama.rope.scale_linear",
            "llama.attention.layer_norm_rms_epsilon", "general.alignment",
            "tokenizer.ggml.eos_token_id", "tokenizer.ggml.unknown_token_id",
            "tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type",
        ]),
        value in prop_oneof![
            any::<u64>().prop_map(Value::U64),
            any::<u32>().prop_map(Value::U32),
            (0u32..600).prop_map(Value::U32),
            any::<i64>().prop_map(Value::I64),
            any::<f32>().prop_map(Value::F32),
            any::<f64>().prop_map(Value::F64),
            Just(Value::Array(vec![])),
            Just(Value::Array(vec![Value::Array(vec![Value::U8(1)])])),
        ],
    ) {
        let folder = tempdir().unwrap();
        let mut tiny = tiny_with_tokenizer();
        tiny.set(key, value);
        open_and_use(&tiny.write_in(folder.path()));
    }

    #[test]
    fn damaged_safetensors_files_never_panic(damage in damage(2400), keep in 0.0..1.5f64) {
        let folder = tempdir().unwrap();
        let config = fixture("tiny_qwen2/config.json");
        std::fs::copy(config, folder.path().join("config.json")).unwrap();
        let mut bytes = std::fs::read(fixture("tiny_qwen2/model.safetensors")).unwrap();
        apply(&mut bytes, &damage);
        bytes.truncate((bytes.len() as f64 * keep) as usize);
        std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        open_and_use(folder.path());
    }

    #[test]
    fn damaged_json_files_never_panic(
        damage in damage(13000),
        name in prop::sample::select(vec!["config.json", "tokenizer.json"]),
    ) {
        let folder = tiny_folder();
        let path = folder.path().join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        apply(&mut bytes, &damage);
        std::fs::write(&path, bytes).unwrap();
        open_and_use(folder.path());
    }
}

/// Every value of every JSON file, replaced by each of these.
#[test]
fn absurd_json_values_never_panic() {
    let absurd = [
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(3),
        json!(1e300),
        json!(4_294_967_295u64),
        json!(u64::MAX),
        json!(""),
        json!("\u{1f642}"),
        json!([]),
        json!([0]),
        json!([["a", "b"]]),
        json!({"a": 1}),
    ];
    let folder = tiny_folder();
    for file in ["generation_config.json", "tokenizer_config.json"] {
        let text = r#"{"eos_token_id": [1, 2], "add_bos_token": true, "bos_token": "<|begin|>",
            "eos_token": {"content": "<|end|>"}, "chat_template": [{"name": "default",
            "template": "{{ messages | length }}"}], "pad_token": "<|end|>"}"#;
        std::fs::write(folder.path().join(file), text).unwrap();
    }
    LoadedModel::open(folder.path()).unwrap().tokenizer().unwrap().encode("a").unwrap();
    let files =
        ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"];
    for path in files.map(|file| folder.path().join(file)) {
        let whole = std::fs::read(&path).unwrap();
        let json: Json = serde_json::from_slice(&whole).unwrap();
        for place in pointers(&json) {
            for value in &absurd {
                let mut json = json.clone();
                *json.pointer_mut(&place).unwrap() = value.clone();
                std::fs::write(&path, json.to_string()).unwrap();
                open_and_use(folder.path());
            }
        }
        std::fs::write(&path, whole).unwrap();
    }
}

/// A GGUF header with made-up counts and one string or array of a made-up length.
fn header(tensors: u64, entries: u64, value_type: u32, length: u64) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(tensors.to_le_bytes());
    bytes.extend(entries.to_le_bytes());
    bytes.extend(3u64.to_le_bytes());
    bytes.extend(b"key");
    bytes.extend(value_type.to_le_bytes());
    if value_type == 9 {
        // An array of arrays of arrays, each of `length` items.
        for item_type in [9u32, 9, 9, 9, 9, 9, 4] {
            bytes.extend(item_type.to_le_bytes());
            bytes.extend(length.to_le_bytes());
        }
    } else {
        bytes.extend(length.to_le_bytes());
    }
    bytes
}

#[test]
fn claimed_lengths_are_not_believed() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    for bytes in [
        header(u64::MAX, 0, 8, 0),
        header(0, u64::MAX, 8, 0),
        header(1, 1, 8, u64::MAX),
        header(1, 1, 8, u64::MAX - 60),
        header(1, 1, 9, u64::MAX),
        header(1, 1, 9, 1),
        header(1, 1, 77, 1),
    ] {
        std::fs::write(&path, bytes).unwrap();
        LoadedModel::open(&path).unwrap_err();
    }
    let mut header = u64::MAX.to_le_bytes().to_vec();
    header.extend(b"{}");
    std::fs::copy(fixture("tiny_llama/config.json"), folder.path().join("config.json")).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), header).unwrap();
    LoadedModel::open(folder.path()).unwrap_err();
}

#[test]
fn safetensors_ranges_beyond_the_address_space_are_refused() {
    let folder = tempdir().unwrap();
    std::fs::copy(fixture("tiny_llama/config.json"), folder.path().join("config.json")).unwrap();
    let huge = 1u64 << 61;
    let entries: Vec<String> = (0..8)
        .map(|i| {
            let (start, end) = (huge * i, (huge - 1) * (i + 1));
            format!(r#""t{i}":{{"dtype":"U8","shape":[{huge}],"data_offsets":[{start},{end}]}}"#)
        })
        .collect();
    let json = format!("{{{}}}", entries.join(","));
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.bytes());
    std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    LoadedModel::open(folder.path()).unwrap_err();
}

/// Opens the tiny model with `tokenizer.json` as `damage` leaves it.
fn open_with_tokenizer(
    damage: impl FnOnce(&mut Json) -> String,
) -> Result<LoadedModel, ModelError> {
    let folder = tiny_folder();
    let path = folder.path().join("tokenizer.json");
    let mut tokenizer: Json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let text = damage(&mut tokenizer);
    std::fs::write(path, text).unwrap();
    LoadedModel::open(folder.path())
}

#[test]
fn merges_that_the_vocabulary_does_not_know_are_refused() {
    // Two known tokens whose union is longer than every token: the tokenizers crate would write
    // past its buffer and panic.
    let opened = open_with_tokenizer(|tokenizer| {
        let vocabulary = tokenizer["model"]["vocab"].as_object().unwrap();
        let longest = vocabulary.keys().max_by_key(|token| token.len()).unwrap().clone();
        tokenizer["model"]["merges"][0] = json!([longest, longest]);
        tokenizer.to_string()
    });
    let error = opened.unwrap_err().to_string();
    assert!(error.contains("tokenizer.json: the merge"), "{error}");
}

#[test]
fn decoders_that_are_no_json_are_refused() {
    for damaged in [r#"{"type": "\udc00"}"#, r#"{"type": 1e999}"#] {
        let opened = open_with_tokenizer(|tokenizer| {
            tokenizer["decoder"] = json!("DECODER");
            tokenizer.to_string().replace("\"DECODER\"", damaged)
        });
        let error = opened.unwrap_err().to_string();
        assert!(error.contains("tokenizer.json") && error.contains("column"), "{error}");
    }
}

/// A part of a `tokenizer.json`, replaced.
fn open_with_part(name: &str, part: Json) -> Result<LoadedModel, ModelError> {
    open_with_tokenizer(|tokenizer| {
        tokenizer[name] = part;
        tokenizer.to_string()
    })
}

fn charsmap(base64: &str) -> Json {
    json!({"type": "Precompiled", "precompiled_charsmap": base64})
}

#[test]
fn tokenizers_over_which_their_crate_panics_are_refused() {
    // The one panics when it is read, the other over every text.
    let no_length = json!({"type": "FixedLength", "length": 0});
    for (name, part) in [("normalizer", charsmap("AA==")), ("pre_tokenizer", no_length)] {
        let error = open_with_part(name, part).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json") && error.contains("damaged"), "{error}");
    }
}

#[test]
fn texts_and_tokens_over_which_the_tokenizers_crate_panics_are_errors() {
    // A table of 98 entries, which has none for a "z".
    let short_table = format!("iAEA{}", "AAAA".repeat(131));
    let model = open_with_part("normalizer", charsmap(&short_table)).unwrap();
    let tokenizer = model.tokenizer().unwrap();
    tokenizer.encode("a").unwrap();
    let error = tokenizer.encode("z").unwrap_err().to_string();
    assert!(error.contains("damaged"), "{error}");
    tokenizer.encode("a").unwrap();

    // It strips more characters than a token has.
    let strip = json!({"type": "Strip", "content": "a", "start": 0, "stop": 99});
    let model = open_with_part("decoder", strip).unwrap();
    let tokenizer = model.tokenizer().unwrap();
    let ids = tokenizer.encode("a").unwrap();
    let error = tokenizer.decode(&ids, false).unwrap_err().to_string();
    assert!(error.contains("damaged"), "{error}");
}
