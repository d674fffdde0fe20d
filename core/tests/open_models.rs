//! Opening real and tiny models.

mod common;

use std::path::Path;

use candle_core::quantized::GgmlDType;
use fleetune_core::data::{Message, Role};
use fleetune_core::model::{Family, LoadedModel};
use fleetune_core::weight::RowOrder;

use common::{fixture, smollm2};

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

#[test]
fn the_built_in_models_tokens_and_chats_are_the_references() {
    let Some(path) = smollm2() else { return };
    let Some(reference) = std::env::var_os("FLEETUNE_REFERENCE") else {
        eprintln!("skipped: FLEETUNE_REFERENCE is not set");
        return;
    };
    let read = |name: &str| -> Vec<serde_json::Value> {
        let path = Path::new(&reference).join("smollm2").join(name);
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    };
    let ids_of = |value: &serde_json::Value| -> Vec<u32> {
        serde_json::from_value(value["ids"].clone()).unwrap()
    };
    let model = LoadedModel::open(&path).unwrap();
    let tokenizer = model.tokenizer().unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.pad()), (None, 2, Some(2)));
    assert_eq!(tokenizer.stop_ids(), [2, 0]);
    assert_eq!(tokenizer.vocab_size(), 49152);

    let strings = read("tokenizer.json");
    assert!(!strings.is_empty());
    for case in &strings {
        let (text, ids) = (case["text"].as_str().unwrap(), ids_of(case));
        assert_eq!(tokenizer.encode(text).unwrap(), ids, "{text:?}");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), case["decoded"].as_str().unwrap());
        let mut stream = tokenizer.stream(false);
        let mut streamed: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        streamed += &stream.finish().unwrap();
        assert_eq!(streamed, case["decoded"].as_str().unwrap());
    }

    let chats = read("chat.json");
    assert!(!chats.is_empty());
    for case in &chats {
        let messages: Vec<Message> = case["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|message| {
                let role = Role::from_name(message["role"].as_str().unwrap()).unwrap();
                Message::new(role, message["content"].as_str().unwrap())
            })
            .collect();
        let open = case["add_generation_prompt"].as_bool().unwrap();
        let text = model.chat_template().unwrap().render(&messages, open).unwrap();
        assert_eq!(text, case["text"].as_str().unwrap());
        assert_eq!(tokenizer.encode(&text).unwrap(), ids_of(case));
    }
}

#[test]
fn the_summary_counts_parameters_once() {
    let Some(path) = smollm2() else { return };
    let summary = LoadedModel::open(&path).unwrap().summary();
    assert_eq!(summary.parameters, 134_515_008);
    assert_eq!(summary.formats.values().sum::<u64>(), summary.parameters);
    assert!(summary.chat_template && summary.tied_head);
    let text = summary.to_string();
    assert!(text.contains("134,515,008"), "{text}");
    assert!(text.contains("pre-tokenizer smollm"), "{text}");
}
