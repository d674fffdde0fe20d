use std::path::PathBuf;

use candle_core::Device;

use super::*;
use crate::adapter::{Adapter, LoraConfig, Parameter, ParameterSet, Target};
use crate::kernels::Precision;
use crate::model::gguf::GgufFile;
use crate::model::{Decoder, LoadedModel, PackedBatch, PassOptions};

const FAMILIES: [&str; 4] = ["tiny_llama", "tiny_qwen2", "tiny_qwen3", "tiny_mistral"];

fn fixture(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures")).join(name)
}

fn open(family: &str) -> (LoadedModel, Adapter) {
    let folder = fixture(family);
    let model = LoadedModel::open(&folder).unwrap();
    (model, Adapter::load(&folder.join("adapter")).unwrap())
}

fn logits(model: &LoadedModel, adapter: Option<&Adapter>, ids: &[u32]) -> Vec<f32> {
    let config = model.config.clone();
    let decoder = Decoder::new(config, &model.weights, &Device::Cpu, Precision::F32).unwrap();
    let tensors = adapter.map(|adapter| decoder.lora_tensors(adapter).unwrap());
    let options = PassOptions { lora: tensors.as_ref(), ..PassOptions::default() };
    let logits = decoder.logits(&PackedBatch::from_sequences([ids]), &options).unwrap();
    logits.flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_close(a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    let worst = a.iter().zip(b).fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs()));
    assert!(worst <= tolerance, "off by {worst}");
}

fn to_the_end(_: usize, _: usize) -> bool {
    true
}

/// An adapter whose B is not zero.
fn busy_adapter(model: &LoadedModel, targets: &[Target]) -> Adapter {
    let config = LoraConfig::new(4, 8.0, targets).unwrap();
    let mut adapter = Adapter::new(config, &model.config, 3).unwrap();
    let entries = adapter.parameters.iter().map(|entry| {
        let values = (0..entry.values.len()).map(|i| ((i * 37 % 101) as f32 - 50.0) * 2e-3);
        Parameter { values: values.collect(), ..entry.clone() }
    });
    adapter.parameters = ParameterSet::new(entries.collect());
    adapter
}

/// The small model in the cache, or `None` with one line.
fn cached_model() -> Option<LoadedModel> {
    let cache = std::env::var_os("FLEETUNE_CACHE").map(PathBuf::from).or_else(|| {
        std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache/fleetune"))
    })?;
    let file = cache.join("models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf");
    if !file.exists() {
        println!("skipped: smollm2-135m-instruct is not in the cache");
        return None;
    }
    Some(LoadedModel::open(&file).unwrap())
}

#[test]
fn a_merged_folder_computes_what_model_and_adapter_compute() {
    let ids = [3, 141, 59, 265, 358, 97];
    for family in FAMILIES {
        let (model, adapter) = open(family);
        let folder = tempfile::tempdir().unwrap();
        for (format, tolerance) in [(FloatFormat::F32, 2e-5), (FloatFormat::F16, 5e-2)] {
            hugging_face(&model, &adapter, format, folder.path(), &to_the_end).unwrap();
            let merged = LoadedModel::open(folder.path()).unwrap();
            assert_eq!(merged.config, model.config);
            let expected = logits(&model, Some(&adapter), &ids);
            assert_close(&logits(&merged, None, &ids), &expected, tolerance);
        }
    }
}

#[test]
fn a_gguf_base_becomes_a_folder_and_another_gguf_with_the_same_logits() {
    let Some(model) = cached_model() else { return };
    let adapter = busy_adapter(&model, &[Target::QProj, Target::KProj, Target::DownProj]);
    let tokenizer = model.tokenizer().unwrap();
    let text = "<|im_start|>user\nWhat is 12 times 7?<|im_end|>\n";
    let ids = tokenizer.encode(text).unwrap();
    let expected = logits(&model, Some(&adapter), &ids);
    let plain = logits(&model, None, &ids);
    assert!(expected.iter().zip(&plain).any(|(a, b)| (a - b).abs() > 0.5), "a weak adapter");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("merged.gguf");
    merged_gguf(&model, &adapter, FloatFormat::F32, &path, &to_the_end).unwrap();
    let merged = LoadedModel::open(&path).unwrap();
    assert_eq!(merged.config, model.config);
    assert_eq!(merged.weights.layers[3].v_proj.format(), model.weights.layers[3].v_proj.format());
    assert_eq!(merged.tokenizer().unwrap().encode(text).unwrap(), ids);
    // Quantised matrices and f32 ones may take different kernels.
    assert_close(&logits(&merged, None, &ids), &expected, 2e-2);

    let path = folder.path().join("folder");
    hugging_face(&model, &adapter, FloatFormat::F32, &path, &to_the_end).unwrap();
    let merged = LoadedModel::open(&path).unwrap();
    let rest = |model: &LoadedModel| {
        let tokenizer = model.tokenizer().unwrap();
        let template = tokenizer.chat_template().map(|template| template.source().to_owned());
        (tokenizer.stop_ids().to_vec(), tokenizer.bos(), template, model.config.clone())
    };
    assert_eq!(rest(&merged), rest(&model));
    assert_eq!(merged.tokenizer().unwrap().encode(text).unwrap(), ids);
    assert_close(&logits(&merged, None, &ids), &expected, 2e-2);
}

#[test]
fn a_gguf_adapter_has_llama_cpp_s_names_alpha_and_row_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.gguf");
    for (family, architecture, interleaved) in [
        ("tiny_llama", "llama", true),
        ("tiny_mistral", "llama", true),
        ("tiny_qwen3", "qwen3", false),
    ] {
        let (model, mut adapter) = open(family);
        adapter.config.rslora = true;
        gguf_adapter(&model, &adapter, FloatFormat::F32, &path, &to_the_end).unwrap();
        let (header, mut tensors) = GgufFile::open(&path).unwrap();
        let text = |key| header.string(key).unwrap().unwrap();
        assert_eq!(text("general.type"), "adapter");
        assert_eq!(text("general.architecture"), architecture);
        assert_eq!(text("adapter.type"), "lora");
        // alpha / √8 in rank-stabilised scaling, alpha' / 8 in llama.cpp's.
        let alpha = header.float("adapter.lora.alpha").unwrap().unwrap();
        assert!((alpha - 16.0 * 8f64.sqrt()).abs() < 1e-5);
        assert_eq!(tensors.remaining().count(), 28);

        let row =
            |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
        let (a, b) = Target::QProj.tensor_names(1);
        let (a, b) = (adapter.parameters.get(&a).unwrap(), adapter.parameters.get(&b).unwrap());
        let written = tensors.take_any("blk.1.attn_q.weight.lora_a").unwrap();
        assert_eq!((written.rows(), written.cols()), (8, 64));
        assert_eq!(written.row_bytes(5), row(&a.values[5 * 64..6 * 64]));
        let written = tensors.take_any("blk.1.attn_q.weight.lora_b").unwrap();
        // Row 1 of a head is row 2 of the file where rows are interleaved.
        let file_row = if interleaved { 2 } else { 1 };
        assert_eq!(written.row_bytes(file_row), row(&b.values[8..16]));
        let written = tensors.take_any("blk.1.ffn_down.weight.lora_b").unwrap();
        assert_eq!((written.rows(), written.cols()), (64, 8));
    }
}

#[test]
fn what_cannot_be_exported_is_refused_and_leaves_nothing() {
    let (model, mut adapter) = open("tiny_llama");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    let error = merged_gguf(&model, &adapter, FloatFormat::F32, &path, &to_the_end).unwrap_err();
    assert!(matches!(error, ExportError::NotGguf { .. }), "{error}");
    let stopped = gguf_adapter(&model, &adapter, FloatFormat::F32, &path, &|done, _| done < 3);
    assert!(matches!(stopped, Err(ExportError::File { .. })));
    adapter.parameters.values_mut().next().unwrap()[0] = 1e6;
    let error = gguf_adapter(&model, &adapter, FloatFormat::F16, &path, &to_the_end).unwrap_err();
    assert!(error.to_string().contains("beyond the range of f16"), "{error}");
    let (other, _) = open("tiny_qwen3");
    let error = gguf_adapter(&other, &adapter, FloatFormat::F32, &path, &to_the_end).unwrap_err();
    assert!(matches!(error, ExportError::Adapter(_)), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
