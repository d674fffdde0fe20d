//! Hugging Face folders: `config.json`, `model.safetensors`, tokenizer.

use std::fs;
use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::content::{Planned, folded};
use super::{ExportError, FloatFormat, OnTensor, WriteError, write_tensors};
use crate::adapter::Adapter;
use crate::files::{stream_atomically, write_atomically};
use crate::model::families::FamilySpec;
use crate::model::{Family, LoadedModel, ModelConfig, RopeScaling};

/// Files of a Hugging Face folder that hold no weights and are copied where the base has them.
const COMPANIONS: [&str; 10] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
];

/// Writes the base model with the adapter folded in as a folder that transformers and this library
/// load. Quantised weights are decoded. A base in a Hugging Face folder gives its configuration and
/// tokenizer as they are; for a GGUF base both are written anew.
///
/// # Errors
/// When the adapter does not fit the model, a value does not fit `format`, the base has a property
/// that `config.json` cannot express, or the folder cannot be written.
pub fn hugging_face(
    model: &LoadedModel,
    adapter: &Adapter,
    format: FloatFormat,
    folder: &Path,
    on_tensor: OnTensor<'_>,
) -> Result<(), ExportError> {
    adapter.check_against(&model.config)?;
    let base = model.files().first().and_then(|file| file.parent()).unwrap_or(Path::new(""));
    let base_config = base.join("config.json");
    let from_folder = base_config.exists()
        && model.files().iter().all(|file| file.extension().is_some_and(|e| e == "safetensors"));
    let mut config = match from_folder {
        true => read_object(&base_config)?,
        false => config_json(model)?,
    };
    let dtype = match format {
        FloatFormat::F32 => "float32",
        FloatFormat::F16 => "float16",
        FloatFormat::Bf16 => "bfloat16",
    };
    config.remove("dtype");
    config.insert("torch_dtype".into(), dtype.into());

    fs::create_dir_all(folder).map_err(ExportError::file(folder))?;
    let tensors = folded(model, adapter, format);
    write_safetensors(&folder.join("model.safetensors"), &tensors, on_tensor)?;
    match from_folder {
        true => copy_companions(base, folder)?,
        false => write_tokenizer(model, folder)?,
    }
    // The configuration last: a folder that has one is complete.
    write_json(&folder.join("config.json"), &Value::Object(config))
}

fn copy_companions(base: &Path, folder: &Path) -> Result<(), ExportError> {
    for name in COMPANIONS {
        let (from, to) = (base.join(name), folder.join(name));
        if from.exists() {
            let bytes = fs::read(&from).map_err(ExportError::file(&to))?;
            write_atomically(&to, &bytes).map_err(ExportError::file(&to))?;
        }
    }
    Ok(())
}

fn read_object(path: &Path) -> Result<Map<String, Value>, ExportError> {
    let bytes = fs::read(path).map_err(ExportError::file(path))?;
    serde_json::from_slice(&bytes).map_err(|error| ExportError::file(path)(error.into()))
}

fn write_json(path: &Path, value: &Value) -> Result<(), ExportError> {
    write_atomically(path, format!("{value:#}\n").as_bytes()).map_err(ExportError::file(path))
}

fn write_safetensors(
    path: &Path,
    tensors: &[Planned<'_>],
    on_tensor: OnTensor<'_>,
) -> Result<(), ExportError> {
    let mut header = Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + tensor.byte_len();
        let dtype = format!("{:?}", tensor.format());
        let entry = json!({"dtype": dtype, "shape": tensor.shape, "data_offsets": [offset, end]});
        header.insert(tensor.name.clone(), entry);
        offset = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    // Spaces keep the values aligned for readers that map the file.
    header.resize(header.len().next_multiple_of(8), b' ');
    stream_atomically(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        write_tensors(out, tensors, 1, on_tensor)
    })
    .map_err(|error: WriteError| error.at(path))
}

/// `config.json` of a model that came without one.
fn config_json(model: &LoadedModel) -> Result<Map<String, Value>, ExportError> {
    let config = &model.config;
    let spec = FamilySpec::of(config.family).ok_or(inexpressible("architecture"))?;
    let tokenizer = model.tokenizer().ok();
    let object = json!({
        "architectures": [format!("{}ForCausalLM", config.family.name())],
        "model_type": spec.model_types.first(),
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": rope_scaling(config)?,
        "max_position_embeddings": config.max_context,
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": spec.qkv_bias,
        "attention_dropout": 0.0,
        "bos_token_id": tokenizer.and_then(|tokenizer| tokenizer.bos()),
        "eos_token_id": tokenizer.map(|tokenizer| tokenizer.stop_ids()),
        "pad_token_id": tokenizer.and_then(|tokenizer| tokenizer.pad()),
        "use_cache": true,
    });
    let Value::Object(mut object) = object else { return Err(inexpressible("shape")) };
    match (config.family, config.sliding_window) {
        // Absent, Mistral's window would be 4096.
        (Family::Mistral, window) => {
            object.insert("sliding_window".into(), json!(window));
        }
        (_, None) => {}
        (Family::Qwen2 | Family::Qwen3, Some(window)) => {
            object.insert("use_sliding_window".into(), json!(true));
            object.insert("sliding_window".into(), json!(window));
            object.insert("max_window_layers".into(), json!(config.sliding_window_from_layer));
        }
        (_, Some(_)) => return Err(inexpressible("sliding window")),
    }
    Ok(object)
}

fn rope_scaling(config: &ModelConfig) -> Result<Value, ExportError> {
    let scaling = match &config.rope_scaling {
        RopeScaling::PerFrequency(divisors) => {
            &llama3_of(config, divisors).ok_or(inexpressible("divisors of rotary frequencies"))?
        }
        other => other,
    };
    Ok(match scaling {
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_context,
            })
        }
        _ => Value::Null,
    })
}

/// Llama 3.1 and later come to GGUF as a divisor for each frequency. The published models use two
/// factors; where one of them gives these very divisors, it is what they were made from.
fn llama3_of(config: &ModelConfig, divisors: &[f32]) -> Option<RopeScaling> {
    let plain = ModelConfig { rope_scaling: RopeScaling::None, ..config.clone() };
    [8.0, 32.0].into_iter().find_map(|factor| {
        let rope_scaling = RopeScaling::Llama3 {
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192,
        };
        let scaled = ModelConfig { rope_scaling: rope_scaling.clone(), ..config.clone() };
        let (plain, scaled) = (plain.inverse_frequencies(), scaled.inverse_frequencies());
        let made = plain.iter().zip(&scaled).map(|(plain, scaled)| plain / scaled);
        let same = made
            .zip(divisors)
            .all(|(made, &divisor)| (made - f64::from(divisor)).abs() <= 1e-4 * made);
        same.then_some(rope_scaling)
    })
}

fn write_tokenizer(model: &LoadedModel, folder: &Path) -> Result<(), ExportError> {
    let Ok(tokenizer) = model.tokenizer() else { return Ok(()) };
    let path = folder.join("tokenizer.json");
    let json = tokenizer.to_json().map_err(|error| ExportError::Tokenizer(error.to_string()))?;
    write_atomically(&path, json.as_bytes()).map_err(ExportError::file(&path))?;
    let text = |id: Option<u32>| id.and_then(|id| tokenizer.token(id));
    let template = tokenizer.chat_template().map(|template| template.source());
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": tokenizer.bos().is_some(),
        "bos_token": text(tokenizer.bos()),
        "eos_token": text(Some(tokenizer.eos())),
        "pad_token": text(tokenizer.pad()),
        "chat_template": template,
        "model_max_length": model.config.max_context,
        "clean_up_tokenization_spaces": false,
    });
    write_json(&folder.join("tokenizer_config.json"), &config)
}

fn inexpressible(what: &'static str) -> ExportError {
    ExportError::Inexpressible { format: "config.json", what }
}
