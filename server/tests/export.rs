//! `fleetune export` as a user meets it, on the small random models of `tests/fixtures`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use fleetune_core::adapter::{Adapter, base_model};
use fleetune_core::model::LoadedModel;

fn fixture(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "tests", "fixtures", name].iter().collect()
}

/// Exports `adapter` on tiny_llama to `out`.
fn export(format: &str, adapter: &str, out: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fleetune"));
    command.args(["export", "--format", format, "--json", "--adapter"]).arg(fixture(adapter));
    command.arg("--out").arg(out).args(more).env_remove("RUST_BACKTRACE");
    command.output().unwrap()
}

fn model() -> String {
    fixture("tiny_llama").display().to_string()
}

#[test]
fn each_format_is_written_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    for (format, tensors) in [("peft", 28), ("hf", 21), ("gguf-lora", 28)] {
        let out = folder.path().join(format);
        let output = export(format, "tiny_llama/adapter", &out, &["--model", &model()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&report["format"], &report["tensors"]), (&format.into(), &tensors.into()));
    }
    let adapter = Adapter::load(&fixture("tiny_llama/adapter")).unwrap();
    assert_eq!(Adapter::load(&folder.path().join("peft")).unwrap(), adapter);
    LoadedModel::open(&folder.path().join("hf")).unwrap();
    let gguf = std::fs::read(folder.path().join("gguf-lora")).unwrap();
    assert!(gguf.starts_with(b"GGUF"));
}

#[test]
fn wrong_usage_exits_with_two_and_failures_with_one() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let model = model();
    let with_model = ["--model", model.as_str()];
    for (format, adapter, more, code, expected) in [
        ("hf", "tiny_llama/adapter", &[][..], 2, "add --model"),
        ("onnx", "tiny_llama/adapter", &with_model[..], 2, "use peft, hf, gguf-lora or gguf"),
        ("peft", "tiny_llama/adapter", &["--dtype", "f16"][..], 2, "leave --dtype out"),
        ("gguf", "tiny_llama/adapter", &with_model[..], 2, "needs a GGUF base model"),
        ("hf", "tiny_qwen3/adapter", &with_model[..], 1, "does not fit the model"),
        ("hf", "nowhere", &with_model[..], 1, "cannot read"),
    ] {
        let output = export(format, adapter, &out, more);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{format}: {stderr}");
        assert!(stderr.contains(expected), "{format}: {stderr}");
        assert!(!out.exists(), "{format}");
    }
}

#[test]
fn what_is_there_is_replaced_on_demand_only_and_inputs_never() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base");
    std::fs::create_dir(&base).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture("tiny_llama").join(name), base.join(name)).unwrap();
    }
    let weights = std::fs::read(base.join("model.safetensors")).unwrap();
    let out = folder.path().join("out");
    let with_base = ["--model", base.to_str().unwrap()];
    let refused = |output: Output, words: &str| {
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(words), "{stderr}");
    };
    assert!(export("hf", "tiny_llama/adapter", &out, &with_base).status.success());
    let replace = [&with_base[..], &["--overwrite"]].concat();
    for format in ["hf", "peft"] {
        refused(export(format, "tiny_llama/adapter", &out, &with_base), "out is there already");
        refused(export(format, "tiny_llama/adapter", &base, &replace), "is the base model itself");
        assert!(export(format, "tiny_llama/adapter", &out, &replace).status.success());
    }
    let file = base.join("model.safetensors");
    refused(export("gguf-lora", "tiny_llama/adapter", &file, &replace), "is the base model itself");
    let adapter = fixture("tiny_llama/adapter");
    let output = export("peft", "tiny_llama/adapter", &adapter, &["--overwrite"]);
    refused(output, "is the adapter itself");
    assert_eq!(std::fs::read(file).unwrap(), weights);
}

#[test]
fn a_peft_folder_keeps_the_name_of_its_base_model() {
    let folder = tempfile::tempdir().unwrap();
    let named = folder.path().join("named");
    let adapter = Adapter::load(&fixture("tiny_llama/adapter")).unwrap();
    adapter.save_for_base(&named, Some("org/base")).unwrap();
    let out = folder.path().join("out");
    assert!(export("peft", named.to_str().unwrap(), &out, &[]).status.success());
    assert_eq!(base_model(&out).unwrap().as_deref(), Some("org/base"));
}
