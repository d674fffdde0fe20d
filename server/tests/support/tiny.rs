//! A tiny model with a tokenizer: the fixture's weights and one token per byte.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

/// Makes a Hugging Face folder in `folder`. The vocabulary has every byte and an end token.
pub fn model(folder: &Path) -> PathBuf {
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tiny_llama");
    let model = folder.join("tiny");
    fs::create_dir_all(&model).unwrap();
    fs::copy(Path::new(fixture).join("model.safetensors"), model.join("model.safetensors"))
        .unwrap();
    // A token is a byte here, and templates are long.
    let config = fs::read_to_string(Path::new(fixture).join("config.json")).unwrap();
    let (short, long) = ("\"max_position_embeddings\": 128", "\"max_position_embeddings\": 1024");
    assert!(config.contains(short));
    fs::write(model.join("config.json"), config.replace(short, long)).unwrap();
    let vocabulary: BTreeMap<String, u32> =
        (0..=255u8).map(|byte| (byte_character(byte).to_string(), u32::from(byte))).collect();
    let end = "<|endoftext|>";
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [{"id": 256, "content": end, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
            "byte_fallback": false, "vocab": vocabulary, "merges": []},
    });
    let chat = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}\
                {% if add_generation_prompt %}assistant: {% endif %}";
    let settings = json!({"eos_token": end, "chat_template": chat});
    fs::write(model.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    fs::write(model.join("tokenizer_config.json"), settings.to_string()).unwrap();
    model
}

/// GPT-2's printable stand-in for a byte.
fn byte_character(byte: u8) -> char {
    let printable = |b: u8| matches!(b, 33..=126 | 161..=172 | 174..=255);
    if printable(byte) {
        return char::from(byte);
    }
    let earlier = (0..byte).filter(|&b| !printable(b)).count() as u32;
    char::from_u32(256 + earlier).unwrap()
}

/// Rows to learn answers from.
pub fn instructions(folder: &Path, rows: usize) -> PathBuf {
    let row =
        |i| json!({"instruction": format!("Say {i}."), "response": format!("It is {}.", i * i)});
    lines(folder.join("instructions.jsonl"), (0..rows).map(row))
}

/// Rows to learn preferences from.
pub fn preferences(folder: &Path, rows: usize) -> PathBuf {
    let row = |i| json!({"prompt": format!("Is {i} even?"), "chosen": "Yes, it is.", "rejected": "No idea"});
    lines(folder.join("preferences.jsonl"), (0..rows).map(row))
}

fn lines(path: PathBuf, rows: impl Iterator<Item = serde_json::Value>) -> PathBuf {
    fs::write(&path, rows.map(|row| format!("{row}\n")).collect::<String>()).unwrap();
    path
}
