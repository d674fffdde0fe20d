//! Tokenizers against the libraries that defined them; the expectations come from
//! `tests/fixtures/tokenizers/generate.py`.

mod common;

use std::path::Path;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use fleetune_core::data::{Message, Role};
use fleetune_core::model::{LoadedModel, TextTokenizer};
use tempfile::tempdir;

use common::{HIDDEN, TinyGguf, fixture};

fn json(name: &str) -> serde_json::Value {
    let path = fixture("tokenizers").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn strings(value: &serde_json::Value) -> Value {
    let items = value.as_array().unwrap();
    Value::Array(items.iter().map(|s| Value::String(s.as_str().unwrap().to_owned())).collect())
}

fn integers(value: &serde_json::Value) -> Value {
    let items = value.as_array().unwrap();
    Value::Array(items.iter().map(|n| Value::I32(n.as_i64().unwrap() as i32)).collect())
}

fn ids(case: &serde_json::Value) -> Vec<u32> {
    serde_json::from_value(case["ids"].clone()).unwrap()
}

/// A llama whose embedding is large enough for the vocabulary of the fixtures.
fn tiny_llama() -> TinyGguf {
    let mut tiny = TinyGguf::new("llama", GgmlDType::Q4_0);
    tiny.put("token_embd.weight", &[640, HIDDEN], GgmlDType::Q4_0);
    tiny.put("output.weight", &[640, HIDDEN], GgmlDType::Q4_0);
    tiny
}

fn open(tiny: &TinyGguf) -> LoadedModel {
    let folder = tempdir().unwrap();
    LoadedModel::open(&tiny.write_in(folder.path())).unwrap()
}

fn streamed(tokenizer: &TextTokenizer, ids: &[u32]) -> String {
    let mut stream = tokenizer.stream(false);
    let mut text = String::new();
    for &id in ids {
        let piece = stream.push(id).unwrap();
        assert!(!piece.contains(char::REPLACEMENT_CHARACTER), "{piece:?}");
        text += &piece;
    }
    text + &stream.finish().unwrap()
}

#[test]
fn sentencepiece_vocabularies_give_the_ids_of_sentencepiece() {
    let reference = json("sentencepiece.json");
    let scores = reference["scores"].as_array().unwrap();
    let mut tiny = tiny_llama();
    tiny.set("tokenizer.ggml.model", Value::String("llama".into()))
        .set("tokenizer.ggml.tokens", strings(&reference["pieces"]))
        .set(
            "tokenizer.ggml.scores",
            Value::Array(scores.iter().map(|s| Value::F32(s.as_f64().unwrap() as f32)).collect()),
        )
        .set("tokenizer.ggml.token_type", integers(&reference["types"]));
    let model = open(&tiny);
    let tokenizer = model.tokenizer().unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), 2));
    for case in reference["cases"].as_array().unwrap() {
        let (text, ids) = (case["text"].as_str().unwrap(), ids(case));
        assert_eq!(tokenizer.encode(text).unwrap(), ids, "{text:?}");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), case["decoded"].as_str().unwrap());
        assert_eq!(streamed(tokenizer, &ids), case["decoded"].as_str().unwrap());
    }

    tiny.set("tokenizer.ggml.add_space_prefix", Value::Bool(false));
    tiny.set("tokenizer.ggml.add_bos_token", Value::Bool(false));
    let model = open(&tiny);
    let tokenizer = model.tokenizer().unwrap();
    assert_eq!(tokenizer.bos(), None);
    let ids = tokenizer.encode("the").unwrap();
    assert_ne!(tokenizer.token(ids[0]).unwrap().chars().next(), Some('▁'));
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), "the");
}

fn byte_level(reference: &serde_json::Value, pre: Option<&str>) -> TinyGguf {
    let mut tiny = tiny_llama();
    tiny.set("tokenizer.ggml.model", Value::String("gpt2".into()))
        .set("tokenizer.ggml.tokens", strings(&reference["tokens"]))
        .set("tokenizer.ggml.merges", strings(&reference["merges"]))
        .set("tokenizer.ggml.token_type", integers(&reference["types"]))
        .set("tokenizer.ggml.bos_token_id", Value::U32(0))
        .set("tokenizer.ggml.eos_token_id", Value::U32(1));
    if let Some(pre) = pre {
        tiny.set("tokenizer.ggml.pre", Value::String(pre.to_owned()));
    }
    tiny
}

#[test]
fn byte_level_vocabularies_give_the_ids_of_their_published_tokenizers() {
    let reference = json("byte_level.json");
    for (pre, cases) in reference["cases"].as_object().unwrap() {
        let model = open(&byte_level(&reference, Some(pre)));
        let tokenizer = model.tokenizer().unwrap();
        for case in cases.as_array().unwrap() {
            let (text, ids) = (case["text"].as_str().unwrap(), ids(case));
            assert_eq!(tokenizer.encode(text).unwrap(), ids, "{pre}: {text:?}");
            let decoded = tokenizer.decode(&ids, false).unwrap();
            assert_eq!(decoded, case["decoded"].as_str().unwrap());
            assert_eq!(streamed(tokenizer, &ids), decoded);
            let plain = tokenizer.decode(&ids, true).unwrap();
            assert_eq!(plain, case["decoded_plain"].as_str().unwrap());
        }
        assert_eq!(tokenizer.bos().is_some(), ["llama-bpe", "tekken"].contains(&pre.as_str()));
        assert_eq!(tokenizer.stop_ids(), [1, 2], "<|end|>, then <|im_end|> by its name");
    }
}

#[test]
fn a_missing_pre_tokenizer_is_taken_for_gpt_2s_and_said_so() {
    let reference = json("byte_level.json");
    let model = open(&byte_level(&reference, None));
    let tokenizer = model.tokenizer().unwrap();
    assert!(tokenizer.description().contains("GPT-2's is assumed"));
    let case = &reference["cases"]["gpt-2"][5];
    assert_eq!(tokenizer.encode(case["text"].as_str().unwrap()).unwrap(), ids(case));
}

#[test]
fn an_unfinished_character_waits_for_its_rest() {
    let reference = json("byte_level.json");
    let model = open(&byte_level(&reference, Some("gpt-2")));
    let tokenizer = model.tokenizer().unwrap();
    let ids = tokenizer.encode("🙂").unwrap();
    assert!(ids.len() > 1, "the vocabulary has no token for it");
    let mut stream = tokenizer.stream(false);
    for &id in &ids[..ids.len() - 1] {
        assert_eq!(stream.push(id).unwrap(), "");
    }
    assert_eq!(stream.push(ids[ids.len() - 1]).unwrap(), "🙂");
    stream.push(ids[0]).unwrap();
    assert_eq!(stream.finish().unwrap(), "\u{fffd}");
}

#[test]
fn a_token_beyond_the_embedding_is_refused() {
    let reference = json("byte_level.json");
    let mut tiny = byte_level(&reference, Some("gpt-2"));
    tiny.put("token_embd.weight", &[4, HIDDEN], GgmlDType::Q4_0);
    tiny.put("output.weight", &[4, HIDDEN], GgmlDType::Q4_0);
    let model = open(&tiny);
    let tokenizer = model.tokenizer().unwrap();
    assert_eq!(tokenizer.encode("<tool>").unwrap(), [3]);
    let error = tokenizer.encode("a").unwrap_err().to_string();
    assert!(error.contains("ends after 4 tokens"), "{error}");
}

/// A copy of tiny_llama with a tokenizer.json and the given files beside it. The tokenizer has more
/// tokens than the model, which nothing but encoding them minds.
fn hugging_face(folder: &Path, files: &[(&str, serde_json::Value)]) -> LoadedModel {
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture("tiny_llama").join(name), folder.join(name)).unwrap();
    }
    let tokenizer = fixture("tokenizers/bos.tokenizer.json");
    std::fs::copy(tokenizer, folder.join("tokenizer.json")).unwrap();
    for (name, value) in files {
        std::fs::write(folder.join(name), value.to_string()).unwrap();
    }
    LoadedModel::open(folder).unwrap()
}

#[test]
fn a_post_processor_that_prepends_a_token_makes_it_the_begin_token() {
    let folder = tempdir().unwrap();
    let model = hugging_face(folder.path(), &[]);
    let tokenizer = model.tokenizer().unwrap();
    // config.json of the fixture: eos_token_id 2.
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(0), 2));
    let cases = json("byte_level.json");
    let case = &cases["cases"]["llama-bpe"][3];
    assert_eq!(tokenizer.encode(case["text"].as_str().unwrap()).unwrap(), ids(case));
}

#[test]
fn tokenizer_config_names_special_tokens_and_chat_templates() {
    let folder = tempdir().unwrap();
    let config = serde_json::json!({
        "add_bos_token": false,
        "bos_token": {"content": "<|begin|>", "lstrip": false},
        "eos_token": "<|end|>",
        "pad_token": "<|im_end|>",
        "chat_template": [
            {"name": "tool_use", "template": "wrong"},
            {"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"},
        ],
    });
    let generation = serde_json::json!({"eos_token_id": [1, 7]});
    let model = hugging_face(
        folder.path(),
        &[("tokenizer_config.json", config), ("generation_config.json", generation)],
    );
    let tokenizer = model.tokenizer().unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.pad()), (None, 1, Some(2)));
    assert_eq!(tokenizer.stop_ids(), [1, 2, 7]);
    let messages = [Message::new(Role::User, "hi")];
    let chat = |model: &LoadedModel| model.chat_template().unwrap().render(&messages, false);
    assert_eq!(chat(&model).unwrap(), "<|begin|>hi<|end|>");

    std::fs::write(folder.path().join("chat_template.jinja"), "file: {{ messages[0].role }}")
        .unwrap();
    assert_eq!(chat(&LoadedModel::open(folder.path()).unwrap()).unwrap(), "file: user");
}

#[test]
fn a_folder_without_a_tokenizer_opens_but_cannot_encode() {
    let model = LoadedModel::open(&fixture("tiny_llama")).unwrap();
    let error = model.tokenizer().unwrap_err().to_string();
    assert!(error.contains("tokenizer.json"), "{error}");
}
