//! What training takes against what its plan foretold, as the system counts it, on the built-in model.

#![cfg(target_os = "linux")]

mod support;

use std::path::{Path, PathBuf};

use fleetune_server::hub::Cache;
use serde_json::{Value, json};
use support::{Ended, fleetune};

/// Eight rows whose prompt and answers have this many words each.
fn rows(folder: &Path, words: usize) -> PathBuf {
    let path = folder.join(format!("rows-{words}.jsonl"));
    let text = |start: usize| -> String {
        let words = (0..words).map(|i| ["river", "stone", "light", "seven"][(start + i * i) % 4]);
        words.collect::<Vec<_>>().join(" ")
    };
    let row = |i: usize| {
        json!({
            "instruction": text(i), "response": text(i + 1),
            "prompt": text(i), "chosen": text(i + 1), "rejected": text(i + 2),
        })
    };
    let lines: Vec<String> = (0..8).map(|i| row(i).to_string()).collect();
    std::fs::write(&path, lines.join("\n")).unwrap();
    path
}

/// Trains for a step of four rows; `(planned, seen)` in bytes. The lower of two runs: in one run of
/// twenty or so glibc leaves most of a heap of 64 MB aside.
fn train(model: &Path, rows: &Path, args: &[&str]) -> (f64, f64) {
    let (first, second) = (train_once(model, rows, args), train_once(model, rows, args));
    assert_eq!(first.0, second.0, "one plan for one workload");
    (first.0, first.1.min(second.1))
}

fn train_once(model: &Path, rows: &Path, args: &[&str]) -> (f64, f64) {
    let folder = tempfile::tempdir().unwrap();
    let mut command = fleetune(folder.path());
    command.args(["train", "--json", "--batch-size", "4", "--max-steps", "1", "--threads", "2"]);
    command.arg("--model").arg(model).arg("--data").arg(rows);
    command.arg("--out").arg(folder.path().join("out")).args(args);
    let outcome: Value = Ended::of(command.output().unwrap()).json();
    let bytes = |key: &str| outcome[key].as_f64().unwrap();
    (bytes("planned_bytes"), bytes("peak_rss_bytes"))
}

#[test]
fn training_takes_no_more_than_planned_and_nearly_as_much() {
    let model = Cache::of_user().unwrap().models().join("smollm2-135m-instruct");
    if !model.is_dir() {
        eprintln!("skipped: the built-in model is not in the cache");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let sft = ["--dataset", "instruction"];
    let dpo = ["--task", "dpo", "--dataset", "preference"];
    let budget = &["--memory-budget", "330MiB"][..];
    for (task, words, budget) in [
        (&sft[..], 60, &[][..]),
        (&sft[..], 200, budget),
        (&dpo[..], 60, budget),
        (&dpo[..], 200, &[]),
    ] {
        let args = [task, budget].concat();
        let (planned, seen) = train(&model, &rows(folder.path(), words), &args);
        eprintln!("{args:?}, {words} words: {planned} planned, {seen} seen");
        assert!(seen <= planned, "{args:?}, {words} words: {seen} bytes, {planned} planned");
        assert!(planned <= 1.15 * seen, "{args:?}, {words} words: {planned} for {seen} bytes");
        assert!(budget.is_empty() || planned <= 330.0 * f64::from(1 << 20), "{planned}");
    }
}
