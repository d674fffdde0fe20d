//! What is wrong with a model's files is said with the file, and the tensor or field in it.

mod common;

use std::path::Path;

use candle_core::quantized::gguf_file::Value;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use fleetune_core::model::{LoadedModel, RopeScaling};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value as Json, json};
use tempfile::{TempDir, tempdir};

use common::{HIDDEN, TinyGguf, fixture};

/// The error of opening `path`; every one names the file or folder it is about.
fn error(path: &Path, named: &str) -> String {
    let error = LoadedModel::open(path).unwrap_err().to_string();
    assert!(error.contains(named), "{error} does not name {named}");
    error
}

fn gguf_error(change: impl FnOnce(&mut TinyGguf)) -> String {
    let folder = tempdir().unwrap();
    let mut tiny = TinyGguf::new("llama", GgmlDType::Q4_0);
    change(&mut tiny);
    error(&tiny.write_in(folder.path()), "model.gguf: ")
}

/// Says which parts of `error` are missing.
#[track_caller]
fn assert_says(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
}

#[test]
fn an_unknown_gguf_architecture_is_named_with_the_known_ones() {
    let error = gguf_error(|tiny| {
        tiny.set("general.architecture", Value::String("mamba".into()));
    });
    assert_says(&error, &["unknown architecture \"mamba\"", "llama, mistral, qwen2, qwen3"]);
    let error = gguf_error(|tiny| {
        tiny.unset("general.architecture");
    });
    assert_says(&error, &["general.architecture is missing"]);
}

#[test]
fn a_missing_or_misshapen_gguf_tensor_is_named() {
    let error = gguf_error(|tiny| {
        tiny.remove("blk.0.ffn_up.weight");
    });
    assert_says(&error, &["tensor blk.0.ffn_up.weight is missing"]);
    let error = gguf_error(|tiny| {
        tiny.put("blk.0.attn_k.weight", &[64, HIDDEN], GgmlDType::Q4_0);
    });
    assert_says(&error, &["blk.0.attn_k.weight has shape [64, 256]", "asks for [128, 256]"]);
    let error = gguf_error(|tiny| {
        tiny.put("output_norm.weight", &[HIDDEN], GgmlDType::Q4_0);
    });
    assert_says(&error, &["output_norm.weight is stored as Q4_0", "for vectors"]);
    let error = gguf_error(|tiny| {
        tiny.put("blk.0.attn_q.bias", &[HIDDEN], GgmlDType::F32);
    });
    assert_says(&error, &["blk.0.attn_q.bias has no place in a Llama model"]);
    let error = gguf_error(|tiny| {
        tiny.set("llama.block_count", Value::U32(1_000_000));
    });
    assert_says(&error, &["tensor blk.1.attn_q.weight is missing"]);
}

#[test]
fn a_gguf_format_that_cannot_be_read_is_named() {
    let folder = tempdir().unwrap();
    let path = TinyGguf::new("llama", GgmlDType::Q4_0).write_in(folder.path());
    let mut bytes = std::fs::read(&path).unwrap();
    let name = b"blk.0.ffn_gate.weight";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
    // After the name: the number of dimensions, two sizes, then the format.
    let format = at + name.len() + 4 + 16;
    assert_eq!(bytes[format], 2, "Q4_0's number");
    bytes[format] = 23;
    std::fs::write(&path, bytes).unwrap();
    let error = error(&path, "model.gguf: ");
    assert_says(&error, &["tensor blk.0.ffn_gate.weight is stored as IQ4_XS", "Q8_0"]);
}

#[test]
fn a_gguf_file_cut_off_anywhere_is_an_error_that_says_where() {
    let folder = tempdir().unwrap();
    let path = TinyGguf::new("llama", GgmlDType::Q4_0).write_in(folder.path());
    let bytes = std::fs::read(&path).unwrap();
    let cut = |len: usize| {
        std::fs::write(&path, &bytes[..len]).unwrap();
        error(&path, "model.gguf: ")
    };
    // The last matrix in the file and the norms behind it end within the last kilobytes.
    assert_says(&cut(bytes.len() - 2000), &["the file is cut off: tensor ", "fetch it again"]);
    assert_says(&cut(2000), &["the file is cut off"]);
    assert_says(&cut(300), &["the file is cut off in its header"]);
    assert_says(&cut(30), &["the file is cut off in its header"]);
    std::fs::write(&path, b"").unwrap();
    error(&path, "model.gguf: ");
    std::fs::write(&path, b"PK\x03\x04 no model at all").unwrap();
    assert_says(&error(&path, "model.gguf: "), &["no GGUF file"]);
}

#[test]
fn nonsense_in_gguf_metadata_is_named_by_its_key() {
    let set = |key: &str, value: Value| {
        gguf_error(|tiny| {
            tiny.set(key, value);
        })
    };
    let error = set("llama.attention.head_count_kv", Value::U32(3));
    assert_says(&error, &["num_key_value_heads is 3", "4 attention heads"]);
    let error = set("llama.attention.head_count", Value::U32(0));
    assert_says(&error, &["num_attention_heads is 0"]);
    let error = set("llama.attention.key_length", Value::U32(63));
    assert_says(&error, &["head_dim is 63"]);
    let error = set("llama.block_count", Value::String("many".into()));
    assert_says(&error, &["llama.block_count is not a whole number"]);
    let error = set("llama.block_count", Value::I32(-1));
    assert_says(&error, &["llama.block_count is not a whole number"]);
    let error = set("llama.embedding_length", Value::U64(u64::MAX));
    assert_says(&error, &["hidden_size is 18446744073709551615"]);
    let error = set("llama.attention.layer_norm_rms_epsilon", Value::F32(f32::NAN));
    assert_says(&error, &["rms_norm_eps is NaN"]);
    let error = set("general.alignment", Value::U32(0));
    assert_says(&error, &["general.alignment is not a power of two"]);
    let error = set("llama.rope.scaling.type", Value::String("yarn".into()));
    assert_says(&error, &["rope scaling \"yarn\" is not supported"]);
    let error = set("llama.expert_count", Value::U32(8));
    assert_says(&error, &["a mixture of experts is not supported"]);
    let error = set("llama.rope.dimension_count", Value::U32(32));
    assert_says(&error, &["llama.rope.dimension_count of 32 with heads of 64"]);
    let error = gguf_error(|tiny| {
        let zeros = QTensor::quantize(
            &Tensor::zeros(32, DType::F32, &Device::Cpu).unwrap(),
            GgmlDType::F32,
        );
        tiny.tensors.push(("rope_freqs.weight".into(), zeros.unwrap()));
    });
    assert_says(&error, &["rope_freqs.weight holds 0, not a positive number"]);
    let error = gguf_error(|tiny| {
        tiny.unset("llama.attention.layer_norm_rms_epsilon");
    });
    assert_says(&error, &["llama.attention.layer_norm_rms_epsilon is missing"]);
}

#[test]
fn a_gguf_vocabulary_that_contradicts_itself_is_refused() {
    let pieces = ["<unk>", "<s>", "</s>", "a", "b", "ab"];
    let vocabulary_error = |change: fn(&mut TinyGguf)| {
        gguf_error(|tiny| {
            tiny.with_pieces(&pieces);
            change(tiny);
        })
    };
    let error = vocabulary_error(|tiny| {
        tiny.with_pieces(&["<unk>", "<s>", "</s>", "a", "a"]);
    });
    assert_says(&error, &["tokenizer.ggml.tokens has \"a\" twice, as 3 and 4"]);
    let error = vocabulary_error(|tiny| {
        tiny.set("tokenizer.ggml.scores", Value::Array(vec![Value::F32(0.0)]));
    });
    assert_says(&error, &["tokenizer.ggml.scores has 1 scores for 6 tokens"]);
    let error = vocabulary_error(|tiny| {
        tiny.set("tokenizer.ggml.eos_token_id", Value::U32(6));
    });
    assert_says(&error, &["tokenizer.ggml.eos_token_id is 6, the vocabulary has 6"]);
    let error = vocabulary_error(|tiny| {
        tiny.set("tokenizer.ggml.model", Value::String("t5".into()));
    });
    assert_says(&error, &["the tokenizer \"t5\""]);
    let gpt2 = |tiny: &mut TinyGguf| {
        tiny.set("tokenizer.ggml.model", Value::String("gpt2".into()));
        tiny.set("tokenizer.ggml.eos_token_id", Value::U32(2));
    };
    let error = gguf_error(|tiny| {
        gpt2(tiny.with_pieces(&pieces));
        tiny.set("tokenizer.ggml.merges", Value::Array(vec![Value::String("a c".into())]));
    });
    assert_says(&error, &["tokenizer.ggml.merges entry 0 (\"a c\")"]);
    let error = gguf_error(|tiny| {
        gpt2(tiny.with_pieces(&pieces));
        tiny.set("tokenizer.ggml.pre", Value::String("viking".into()));
    });
    assert_says(&error, &["the pre-tokenizer \"viking\"", "smollm", "tokenizer.json"]);
}

/// A copy of a fixture whose `config.json` and tensors can be changed.
struct Folder {
    folder: TempDir,
    config: Json,
}

impl Folder {
    fn new(name: &str) -> Self {
        let folder = tempdir().unwrap();
        let source = fixture(name);
        let weights = "model.safetensors";
        std::fs::copy(source.join(weights), folder.path().join(weights)).unwrap();
        let config = std::fs::read(source.join("config.json")).unwrap();
        let folder = Self { folder, config: serde_json::from_slice(&config).unwrap() };
        folder.write_config();
        folder
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn write_config(&self) {
        std::fs::write(self.path().join("config.json"), self.config.to_string()).unwrap();
    }

    fn set(mut self, field: &str, value: Json) -> Self {
        self.config[field] = value;
        self.write_config();
        self
    }

    fn unset(mut self, field: &str) -> Self {
        self.config.as_object_mut().unwrap().remove(field);
        self.write_config();
        self
    }

    /// Rewrites the weights: `change` sees each tensor's name and may replace or drop it.
    fn rewrite(
        self,
        file: &str,
        change: impl for<'a> Fn(&str, TensorView<'a>) -> Option<TensorView<'a>>,
    ) -> Self {
        let bytes = std::fs::read(self.path().join("model.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let changed: Vec<_> = tensors
            .tensors()
            .into_iter()
            .filter_map(|(name, view)| change(&name, view).map(|view| (name, view)))
            .collect();
        let bytes = safetensors::serialize(changed, None).unwrap();
        std::fs::write(self.path().join(file), bytes).unwrap();
        self
    }

    fn config_error(self, field: &str, value: Json) -> String {
        let changed = self.set(field, value);
        error(changed.path(), "config.json: ")
    }
}

#[test]
fn what_config_json_asks_for_is_checked() {
    let llama = || Folder::new("tiny_llama");
    let error = llama().config_error("model_type", json!("gpt_neox"));
    assert_says(&error, &["unknown architecture \"gpt_neox\"", "llama, mistral, qwen2, qwen3"]);
    let error = llama().config_error("hidden_act", json!("gelu"));
    assert_says(&error, &["hidden_act \"gelu\" is not supported"]);
    let error = llama().config_error("quantization_config", json!({"quant_method": "gptq"}));
    assert_says(&error, &["quantization_config"]);
    let error = llama().config_error("num_key_value_heads", json!(3));
    assert_says(&error, &["num_key_value_heads is 3"]);
    let error = llama().config_error("head_dim", json!(0));
    assert_says(&error, &["head_dim is 0"]);
    let error = llama().config_error("num_attention_heads", json!(0));
    assert_says(&error, &["num_attention_heads is 0"]);
    let error = llama().config_error("rms_norm_eps", json!(-1.0));
    assert_says(&error, &["rms_norm_eps is -1"]);
    let error = llama().config_error("vocab_size", Json::Null);
    assert_says(&error, &["vocab_size is missing"]);
    let error = llama().config_error("hidden_size", json!("wide"));
    assert_says(&error, &["hidden_size: invalid type", "line 1"]);
    for (field, problem) in [("attention_bias", "Llama"), ("mlp_bias", "Llama")] {
        let error = llama().config_error(field, json!(true));
        assert_says(&error, &[field, problem, "is not supported"]);
    }
    let error = Folder::new("tiny_qwen3").config_error("attention_bias", json!(true));
    assert_says(&error, &["attention_bias true in a Qwen3 model is not supported"]);
    let error =
        llama().config_error("rope_parameters", json!({"rope_type": "linear", "factor": -2.0}));
    assert_says(&error, &["rope_scaling has the factor -2, not a positive one"]);
    let error = llama().config_error("partial_rotary_factor", json!(0.5));
    assert_says(&error, &["partial_rotary_factor 0.5 is not supported"]);
    for kind in ["yarn", "dynamic", "longrope"] {
        let rope = json!({"rope_type": kind, "factor": 2.0});
        let error = llama().config_error("rope_parameters", rope);
        assert_says(&error, &[kind, "is not supported"]);
    }
    let error = llama().config_error("rope_parameters", json!({"rope_type": "linear"}));
    assert_says(&error, &["rope_scaling.factor is missing"]);
}

#[test]
fn rope_parameters_are_read_in_the_old_and_the_new_spelling() {
    let llama3 = json!({
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64
    });
    let expected = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 64,
    };
    let mut new = llama3.clone();
    new["rope_type"] = json!("llama3");
    new["rope_theta"] = json!(5e5);
    let folder = Folder::new("tiny_llama").unset("rope_theta").set("rope_parameters", new);
    let config = LoadedModel::open(folder.path()).unwrap().config;
    assert_eq!((config.rope_scaling, config.rope_theta), (expected.clone(), 5e5));

    for key in ["type", "rope_type"] {
        let mut old = llama3.clone();
        old[key] = json!("llama3");
        let folder = Folder::new("tiny_llama").unset("rope_parameters");
        let folder = folder.set("rope_scaling", old).set("rope_theta", json!(5e5));
        let config = LoadedModel::open(folder.path()).unwrap().config;
        assert_eq!((config.rope_scaling, config.rope_theta), (expected.clone(), 5e5), "{key}");
    }
}

#[test]
fn sliding_windows_follow_each_familys_rules() {
    let window = |folder: Folder| {
        let config = LoadedModel::open(folder.path()).unwrap().config;
        [config.window(0), config.window(1)]
    };
    let mistral = || Folder::new("tiny_mistral");
    assert_eq!(window(mistral()), [None, None], "null");
    assert_eq!(window(mistral().set("sliding_window", json!(8))), [Some(8); 2]);
    assert_eq!(window(mistral().unset("sliding_window")), [Some(4096); 2], "the default");

    let qwen = || Folder::new("tiny_qwen2").unset("layer_types").set("sliding_window", json!(8));
    assert_eq!(window(qwen()), [None, None], "use_sliding_window is false");
    let used = || qwen().set("use_sliding_window", json!(true));
    assert_eq!(window(used()), [None, None], "28 layers without");
    assert_eq!(window(used().set("max_window_layers", json!(1))), [None, Some(8)]);
    let types = |kinds: [&str; 2]| used().set("layer_types", json!(kinds));
    assert_eq!(window(types(["full_attention", "sliding_attention"])), [None, Some(8)]);
    let upside_down = types(["sliding_attention", "full_attention"]);
    assert_says(&error(upside_down.path(), "config.json: "), &["layer_types"]);
    let unknown = types(["full_attention", "linear_attention"]);
    assert_says(&error(unknown.path(), "config.json: "), &["a layer of type \"linear_attention\""]);
}

#[test]
fn a_missing_misshapen_or_foreign_safetensors_tensor_is_named() {
    let name = "model.layers.1.self_attn.v_proj.weight";
    let file = "model.safetensors";
    let dropped = Folder::new("tiny_llama").rewrite(file, |n, view| (n != name).then_some(view));
    assert_says(&error(dropped.path(), ""), &["tensor model.layers.1.self_attn.v_proj.weight is"]);

    let reshaped = Folder::new("tiny_llama").rewrite(file, |n, view| {
        if n != name {
            return Some(view);
        }
        Some(TensorView::new(view.dtype(), vec![64, 32], view.data()).unwrap())
    });
    let message = error(reshaped.path(), "model.safetensors: ");
    assert_says(&message, &[name, "[64, 32]", "[32, 64]"]);

    let foreign = Folder::new("tiny_llama").rewrite(file, |n, view| {
        if n != name {
            return Some(view);
        }
        Some(TensorView::new(Dtype::F64, vec![32, 32], view.data()).unwrap())
    });
    let shaped = Folder::new("tiny_llama").rewrite(file, |n, view| {
        if n != name {
            return Some(view);
        }
        Some(TensorView::new(Dtype::I32, vec![32, 64], view.data()).unwrap())
    });
    assert_says(&error(foreign.path(), "model.safetensors: "), &[name, "has shape [32, 32]"]);
    let message = error(shaped.path(), "model.safetensors: ");
    assert_says(&message, &[name, "stored as I32", "F32, F16 and BF16"]);

    let untied = Folder::new("tiny_qwen2").set("tie_word_embeddings", json!(false));
    assert_says(&error(untied.path(), ""), &["tensor lm_head.weight is missing"]);
    let other_family = Folder::new("tiny_qwen2").set("model_type", json!("llama"));
    let message = error(other_family.path(), "model.safetensors: ");
    assert_says(&message, &["bias has no place in a Llama model"]);
}

#[test]
fn a_safetensors_tensor_whose_place_contradicts_its_shape_is_named() {
    let folder = Folder::new("tiny_llama");
    let path = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let at = text.find("model.layers.1.self_attn.v_proj.weight").unwrap();
    let shape = at + text[at..].find("\"shape\":[32,64]").unwrap() + 9;
    let mut broken = bytes.clone();
    broken[shape..shape + 2].copy_from_slice(b"16");
    std::fs::write(&path, broken).unwrap();
    let message = error(folder.path(), "model.safetensors: ");
    assert_says(&message, &["tensor model.layers.1.self_attn.v_proj.weight's place"]);
}

#[test]
fn a_cut_off_safetensors_file_is_an_error_that_says_where() {
    let folder = Folder::new("tiny_llama");
    let path = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let cut = |len: usize| {
        std::fs::write(&path, &bytes[..len]).unwrap();
        error(folder.path(), "model.safetensors: ")
    };
    let message = cut(bytes.len() - 4);
    assert_says(&message, &["the file is cut off: tensor ", "fetch it again"]);
    assert_says(&cut(100), &["ends inside its header"]);
    assert_says(&cut(4), &["ends inside its header"]);
}

#[test]
fn shards_are_found_by_their_index_or_by_being_there() {
    let first = |name: &str| name.contains("layers.0");
    let sharded = || {
        let folder = Folder::new("tiny_llama")
            .rewrite("model-00001-of-00002.safetensors", |n, view| first(n).then_some(view))
            .rewrite("model-00002-of-00002.safetensors", |n, view| (!first(n)).then_some(view));
        std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
        folder
    };
    let whole = LoadedModel::open(&fixture("tiny_llama")).unwrap();
    let without_index = sharded();
    let model = LoadedModel::open(without_index.path()).unwrap();
    assert_eq!(model.files().len(), 2);
    assert_eq!(model.weights.final_norm, whole.weights.final_norm);
    let row = |model: &LoadedModel| model.weights.layers[0].q_proj.row_bytes(3).to_vec();
    assert_eq!(row(&model), row(&whole));
    assert_ne!(model.content_hash().unwrap(), whole.content_hash().unwrap());

    let write_index = |folder: &Folder, second: &str| {
        let index = json!({"weight_map": {
            "a": "model-00001-of-00002.safetensors", "b": second
        }});
        let path = folder.path().join("model.safetensors.index.json");
        std::fs::write(path, index.to_string()).unwrap();
    };
    let folder = sharded();
    write_index(&folder, "model-00002-of-00002.safetensors");
    // A file that the index does not name does not count.
    std::fs::write(folder.path().join("consolidated.safetensors"), b"other").unwrap();
    LoadedModel::open(folder.path()).unwrap();
    write_index(&folder, "model-00003-of-00002.safetensors");
    error(folder.path(), "model-00003-of-00002.safetensors: ");
    write_index(&folder, "../elsewhere.safetensors");
    let message = error(folder.path(), "model.safetensors.index.json: ");
    assert_says(&message, &["\"../elsewhere.safetensors\", which is no file of this folder"]);
}

#[test]
fn a_path_without_a_model_is_told_apart() {
    let folder = tempdir().unwrap();
    assert_says(&error(folder.path(), ""), &["no config.json and 0 GGUF files"]);
    error(&folder.path().join("nowhere.gguf"), "nowhere.gguf: ");
    std::fs::write(folder.path().join("config.json"), "{\n  \"model_type\": }").unwrap();
    assert_says(&error(folder.path(), "config.json: "), &["line 2 column"]);
    let folder = Folder::new("tiny_llama");
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    assert_says(&error(folder.path(), ""), &["no *.safetensors file"]);
    std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    let folder = Folder::new("tiny_llama");
    std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    error(folder.path(), "tokenizer.json: ");
}
