//! Training and writing from the command line, on a tiny model.

mod support;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Ended, fleetune, run, tiny};

/// A folder with a tiny model and rows for it.
struct Place {
    folder: tempfile::TempDir,
    model: PathBuf,
    rows: PathBuf,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = tiny::model(folder.path());
        let rows = tiny::instructions(folder.path(), 10);
        Self { folder, model, rows }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn train_command(&self, out: &str, args: &[&str]) -> Command {
        let mut command = fleetune(self.folder.path());
        command.args([
            "train",
            "--json",
            "--dataset",
            "instruction",
            "--batch-size",
            "2",
            "--lr",
            "0.01",
        ]);
        command.arg("--model").arg(&self.model).arg("--data").arg(&self.rows);
        command.arg("--out").arg(self.path(out)).args(args);
        command
    }

    fn train(&self, out: &str, args: &[&str]) -> Ended {
        Ended::of(self.train_command(out, args).output().unwrap())
    }

    fn metrics(&self, out: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.path(out).join("metrics.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn adapter(&self, out: &str) -> Vec<u8> {
        fs::read(self.path(out).join("adapter_model.safetensors")).unwrap()
    }
}

fn losses(metrics: &[Value]) -> Vec<f64> {
    metrics.iter().map(|step| step["loss"].as_f64().unwrap()).collect()
}

#[test]
fn rows_are_written_as_training_reads_them() {
    let place = Place::new();
    let (model, rows) = (place.model.to_str().unwrap(), place.rows.to_str().unwrap());
    let tokens = place.path("tokens.jsonl");
    let written = run(
        place.folder.path(),
        &[
            "data",
            "tokens",
            "--json",
            "--model",
            model,
            "--dataset",
            "instruction",
            "--data",
            rows,
            "--limit",
            "6",
            "--seq-len",
            "512",
            "--out",
            tokens.to_str().unwrap(),
        ],
    );
    assert_eq!(written.json()["rows"], 6);
    let text = fs::read_to_string(tokens).unwrap();
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let list = |row: &Value, key: &str| row[key].as_array().unwrap().clone();
    for row in &rows {
        for (id, label) in list(row, "input_ids").into_iter().zip(list(row, "labels")) {
            assert!(label == id || label == -100, "{row}");
        }
    }
    let trained = place.train("out", &["--no-shuffle", "--max-steps", "3", "--seq-len", "512"]);
    assert_eq!(trained.code, Some(0), "{}", trained.err);
    let steps = place.metrics("out");
    for (step, rows) in steps.iter().zip(rows.chunks(2)) {
        let ids: usize = rows.iter().map(|row| list(row, "input_ids").len()).sum();
        let learnt = rows.iter().flat_map(|row| list(row, "labels"));
        // The first token of a row is predicted by none.
        let learnt = learnt.filter(|label| *label != -100).count();
        assert_eq!(step["tokens"], ids);
        assert_eq!(step["supervised_tokens"], learnt);
    }
}

#[test]
fn training_learns_and_leaves_an_adapter_and_its_metrics() {
    let place = Place::new();
    let outcome = place.train("a", &["--max-steps", "40"]).json();
    assert_eq!((&outcome["steps"], &outcome["finished"]), (&40.into(), &true.into()));
    let metrics = place.metrics("a");
    let steps: Vec<_> = metrics.iter().map(|step| step["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, (1..=40).collect::<Vec<_>>());
    for key in ["tokens", "supervised_tokens", "learning_rate", "grad_norm", "seconds"] {
        assert!(metrics[0][key].as_f64().unwrap() > 0.0, "{key}");
    }
    let losses = losses(&metrics);
    assert!(losses[39] < 0.9 * losses[0], "{losses:?}");
    let config = fs::read(place.path("a/adapter_config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!((config["r"].as_f64(), config["lora_alpha"].as_f64()), (Some(8.0), Some(16.0)));
    assert_eq!(config["target_modules"].as_array().unwrap().len(), 2);
}

#[test]
fn training_in_two_parts_ends_in_the_same_bytes_as_in_one() {
    let place = Place::new();
    let common = ["--lora-dropout", "0.1", "--seed", "3"];
    let with = |steps: &'static str, more: &[&'static str]| {
        [&common[..], &["--max-steps", steps], more].concat()
    };
    assert_eq!(place.train("whole", &with("9", &[])).code, Some(0));
    assert_eq!(place.train("parts", &with("4", &[])).code, Some(0));
    assert_eq!(place.train("parts", &with("9", &["--resume"])).code, Some(0));
    assert_eq!(place.adapter("parts"), place.adapter("whole"));
    assert_eq!(losses(&place.metrics("parts")), losses(&place.metrics("whole")));
}

#[test]
#[cfg(unix)]
fn ctrl_c_leaves_a_state_that_resumes_to_the_same_bytes() {
    let place = Place::new();
    let mut child = place
        .train_command("cut", &["--max-steps", "100000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let metrics = place.path("cut/metrics.jsonl");
    let deadline = Instant::now() + Duration::from_secs(60);
    while fs::read_to_string(&metrics).map_or(0, |text| text.lines().count()) < 5 {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(
        Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success()
    );
    let ended = Ended::of(child.wait_with_output().unwrap());
    assert!(ended.error(130).contains("the same command with --resume goes on"), "{}", ended.err);
    assert!(!place.path("cut/adapter_config.json").exists());

    let steps = (place.metrics("cut").len() + 3).to_string();
    let outcome = place.train("cut", &["--max-steps", &steps, "--resume"]).json();
    assert_eq!(outcome["finished"], true);
    place.train("whole", &["--max-steps", &steps]).json();
    assert_eq!(place.adapter("cut"), place.adapter("whole"));
}

#[test]
fn rows_keep_their_order_where_shuffling_is_switched_off() {
    let place = Place::new();
    // One row a step: ten rows, then the first one again.
    let args = ["--no-shuffle", "--batch-size", "1", "--max-steps", "11", "--lr", "1e-30"];
    place.train("ordered", &args).json();
    let tokens: Vec<_> =
        place.metrics("ordered").iter().map(|step| step["tokens"].clone()).collect();
    assert_eq!(tokens[0], tokens[10]);
    let mut sorted = tokens.clone();
    sorted[..10].sort_by_key(|tokens| tokens.as_u64());
    assert_eq!(tokens, sorted, "the fixture's rows get longer");
}

#[test]
fn accumulated_batches_are_one_larger_batch() {
    let place = Place::new();
    place.train("batch", &["--max-steps", "3", "--batch-size", "4"]).json();
    place.train("accumulated", &["--max-steps", "3", "--grad-accum", "2"]).json();
    assert_eq!(place.adapter("batch"), place.adapter("accumulated"));
}

#[test]
fn an_adapter_is_written_fresh_and_trained_on() {
    let place = Place::new();
    place
        .train("fresh", &["--max-steps", "0", "--lora-rank", "4", "--lora-targets", "k_proj"])
        .json();
    let init = place.path("fresh");
    let init = init.to_str().unwrap();
    place.train("next", &["--max-steps", "2", "--init-adapter", init, "--lora-rank", "4"]).json();
    assert_ne!(place.adapter("next"), place.adapter("fresh"));
    let other = place.train("other", &["--init-adapter", init, "--lora-rank", "8"]);
    assert!(other.error(2).contains("--lora-rank contradicts --init-adapter, which has rank 4"));
    assert!(!place.path("other").exists());
}

#[test]
fn an_earlier_training_is_neither_mixed_nor_lost_by_accident() {
    let place = Place::new();
    place.train("run", &["--max-steps", "2"]).json();
    let again = place.train("run", &["--max-steps", "2"]);
    assert!(again.error(2).contains("go on with --resume"), "{}", again.err);
    let changed = place.train("run", &["--max-steps", "4", "--resume", "--seed", "5"]);
    assert!(
        changed.error(2).contains("the interrupted training had seed 0, not 5"),
        "{}",
        changed.err
    );
    for (args, words) in [
        (&["--weight-decay", "0.5"][..], "weight_decay 0.0, not 0.5"),
        (&["--max-grad-norm", "2"], "max_grad_norm 0.0, not 2.0"),
        (&["--precision", "bf16"], "precision \"f32\", not \"bf16\""),
        (&["--seq-len", "64"], "seq_len 512, not 64"),
        (
            &["--lora-rank", "4"],
            "--lora-rank contradicts the interrupted training, which has rank 8",
        ),
        (&["--lora-alpha", "4"], "--lora-alpha contradicts the interrupted training"),
        (&["--lora-targets", "k_proj"], "--lora-targets contradicts the interrupted training"),
        (&["--lora-rslora"], "--lora-rslora contradicts the interrupted training"),
        (&["--init-adapter", "other"], "init_adapter null, not \"other\""),
    ] {
        let changed = place.train("run", &[&["--max-steps", "4", "--resume"], args].concat());
        assert!(changed.error(2).contains(words), "{}", changed.err);
    }
    let rows = fs::read_to_string(&place.rows).unwrap();
    fs::write(&place.rows, rows.replace("It is", "That is")).unwrap();
    let changed = place.train("run", &["--max-steps", "4", "--resume"]);
    assert!(changed.error(2).contains("rows_sha256"), "{}", changed.err);
    fs::write(&place.rows, rows).unwrap();
    place.train("run", &["--max-steps", "3", "--resume", "--lr", "0.02"]).json();

    place.train("run", &["--max-steps", "1", "--overwrite"]).json();
    assert_eq!(place.metrics("run").len(), 1);
    let nothing = place.train("empty", &["--resume"]);
    assert!(nothing.error(2).contains("no checkpoint to resume from"), "{}", nothing.err);
}

#[test]
fn a_step_takes_no_more_rows_than_there_are() {
    let place = Place::new();
    let all = place.train("all", &["--max-steps", "1", "--batch-size", "10"]).json();
    for (flag, count) in [("--batch-size", "1000000000"), ("--grad-accum", "10000000000")] {
        let ended = place.train("most", &["--max-steps", "1", "--overwrite", flag, count]);
        assert_eq!(ended.json()["tokens"], all["tokens"]);
        assert!(ended.err.contains("each step takes all 10 rows"), "{}", ended.err);
        assert_eq!(place.adapter("most"), place.adapter("all"));
    }
}

#[test]
fn rows_without_anything_to_learn_are_counted_once() {
    let place = Place::new();
    let long = "long ".repeat(200);
    let row = format!("{{\"instruction\": \"{long}\", \"response\": \"no\"}}\n");
    let rows = fs::read_to_string(&place.rows).unwrap();
    fs::write(&place.rows, rows + &row).unwrap();
    let outcome = place.train("a", &["--max-steps", "20"]).json();
    assert_eq!(outcome["rows_skipped"], 1);
}

/// A model whose every logit is NaN.
fn broken_model(place: &Place) -> PathBuf {
    let path = place.model.join("model.safetensors");
    let mut weights = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    weights[8 + header..].fill(0xff);
    fs::write(&path, weights).unwrap();
    place.model.clone()
}

#[test]
fn a_model_that_computes_no_numbers_is_named_as_the_cause() {
    let place = Place::new();
    broken_model(&place);
    let written = generate(&place, &["--prompt", "a"]);
    assert!(written.error(1).contains("the model's logits are not finite"), "{}", written.err);
    let trained = place.train("a", &["--max-steps", "1"]);
    assert!(trained.error(1).contains("the model or the adapter that training starts from"));
}

#[test]
fn preferences_are_learnt_and_their_rewards_reported() {
    let place = Place::new();
    let rows = tiny::preferences(place.folder.path(), 6);
    let mut command = fleetune(place.folder.path());
    command.args(["train", "--task", "dpo", "--dataset", "preference", "--batch-size", "3"]);
    command.args(["--lr", "0.005", "--max-steps", "20", "--json", "--data"]).arg(rows);
    command.arg("--model").arg(&place.model).arg("--out").arg(place.path("dpo"));
    Ended::of(command.output().unwrap()).json();
    let metrics = place.metrics("dpo");
    let value = |step: usize, key: &str| metrics[step][key].as_f64().unwrap();
    assert!((value(0, "loss") - 2f64.ln()).abs() < 1e-6, "the policy begins as the reference");
    assert_eq!(value(0, "reward_margin"), 0.0);
    assert!(value(19, "reward_margin") > 0.1 && value(19, "loss") < 0.65, "{metrics:?}");
    assert_eq!(value(19, "reward_accuracy"), 1.0);
    assert!(value(19, "reward_chosen") > value(19, "reward_rejected"));
}

#[test]
fn what_cannot_be_trained_is_refused_with_the_reason() {
    let place = Place::new();
    let rows = place.path("broken.jsonl");
    fs::write(&rows, "{\"instruction\": \"a\", \"response\": \"b\"}\n{\"instruction\": \"a\"}\n")
        .unwrap();
    let rows = rows.to_str().unwrap();
    for (args, code, words) in [
        (&["--data", rows][..], 1, "broken.jsonl:2"),
        (&["--data", "/no/such.jsonl"], 1, "/no/such.jsonl"),
        (&["--task", "dpo"], 2, "use --task sft"),
        (&["--model", "/no/such/model"], 2, "no model"),
        (&["--memory-budget", "1MiB"], 2, "the smallest"),
        (&["--lr", "-1"], 2, "use a number above 0"),
        (&["--seq-len", "2"], 2, "sequence length of 2"),
        (&["--seq-len", "99999999999"], 2, "99999999999 is more than the model's context of 1024"),
        (&["--lora-rank", "0"], 2, "rank 0 is out of range"),
        (&["--lora-alpha", "-1"], 2, "'-1' for '--lora-alpha <A>': use a number above 0"),
        (&["--lora-dropout", "-1"], 2, "'-1' for '--lora-dropout <P>': use 0 up to"),
        (&["--seed", "-1"], 2, "invalid value '-1' for '--seed <N>'"),
        (&["--dpo-beta", "0.2"], 2, "--dpo-beta belongs to --task dpo"),
        (&["--dpo-loss", "ipo"], 2, "--dpo-loss belongs to --task dpo"),
        (&["--reference-adapter", "a"], 2, "--reference-adapter belongs to --task dpo"),
        (&["--init-adapter", "/no/such/adapter"], 1, "/no/such/adapter"),
    ] {
        let ended = place.train_with(args);
        ended.error(code);
        assert!(ended.err.contains(words), "{args:?}: {}", ended.err);
    }
}

impl Place {
    /// Trains on model and rows of the place, unless `args` name others.
    fn train_with(&self, args: &[&str]) -> Ended {
        let mut command = fleetune(self.folder.path());
        command.args(["train", "--dataset", "instruction", "--max-steps", "1"]);
        for (flag, path) in [("--model", &self.model), ("--data", &self.rows)] {
            if !args.contains(&flag) {
                command.arg(flag).arg(path);
            }
        }
        Ended::of(command.arg("--out").arg(self.path("refused")).args(args).output().unwrap())
    }
}

// ---- generate ----

fn generate(place: &Place, args: &[&str]) -> Ended {
    let model = place.model.to_str().unwrap();
    run(place.folder.path(), &[&["generate", "--model", model], args].concat())
}

#[test]
fn text_is_written_the_same_way_streamed_and_as_json() {
    let place = Place::new();
    let args = ["--prompt", "Once", "--max-tokens", "12"];
    let streamed = generate(&place, &args);
    let written = generate(&place, &[&args[..], &["--json"]].concat()).json();
    assert_eq!(streamed.out.strip_suffix('\n'), written["text"].as_str());
    assert_eq!((&written["prompt_tokens"], &written["tokens"]), (&4.into(), &12.into()));
    assert_eq!(written["ended"], false);
}

#[test]
fn text_ends_where_the_context_is_full() {
    let place = Place::new();
    let prompt = "a".repeat(1016);
    let ended = generate(&place, &["--prompt", &prompt, "--max-tokens", "1000000", "--json"]);
    assert_eq!(ended.json()["tokens"], 8, "the model's context holds 1024");
    assert!(ended.err.contains("the model's context of 1024 tokens is full"), "{}", ended.err);
    let long = generate(&place, &["--prompt", &"a".repeat(1024)]);
    assert!(long.error(2).contains("the prompt has 1024 tokens"), "{}", long.err);
    let unasked = generate(&place, &["--prompt", "a", "--system", "You are kind."]);
    assert!(unasked.err.contains("--chat"), "{}", unasked.err);
    assert_eq!(unasked.code, Some(2));
}

#[test]
fn the_stand_in_is_a_model_of_every_command() {
    let place = Place::new();
    let args = ["generate", "--model", "stand-in", "--prompt", "a", "--max-tokens", "2", "--json"];
    assert_eq!(run(place.folder.path(), &args).json()["tokens"], 2);
}

#[test]
fn draws_repeat_with_their_seed_and_differ_without() {
    let place = Place::new();
    let draw = |seed: &str| {
        let args = [
            "--prompt",
            "a",
            "--max-tokens",
            "24",
            "--temperature",
            "1.5",
            "--seed",
            seed,
            "--json",
        ];
        generate(&place, &args).json()["text"].clone()
    };
    assert_eq!(draw("1"), draw("1"));
    assert_ne!(draw("1"), draw("2"));
}

#[test]
fn an_adapter_changes_what_is_written() {
    let place = Place::new();
    place.train("learnt", &["--max-steps", "60", "--template", "chat"]).json();
    let adapter = place.path("learnt");
    let ask = ["--chat", "--prompt", "Say 3.", "--max-tokens", "9", "--json"];
    let plain = generate(&place, &ask).json();
    let with = [&ask[..], &["--adapter", adapter.to_str().unwrap()]].concat();
    let learnt = generate(&place, &with).json();
    assert_ne!(plain["text"], learnt["text"]);
    assert!(learnt["text"].as_str().unwrap().starts_with("It is"), "{learnt}");
}

#[test]
fn prompts_come_from_stdin_too_and_must_say_something() {
    let place = Place::new();
    let mut child = fleetune(place.folder.path())
        .args(["generate", "--prompt", "-", "--max-tokens", "3", "--json", "--model"])
        .arg(&place.model)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"five!").unwrap();
    let written = Ended::of(child.wait_with_output().unwrap()).json();
    assert_eq!(written["prompt_tokens"], 5);
    for (args, words) in [
        (&["--prompt", ""][..], "the prompt is empty"),
        (&["--prompt", "a", "--temperature", "-1"], "'-1' for '--temperature <F>': use 0 or more"),
        (
            &["--prompt", "a", "--temperature", "1", "--top-p", "1.5"],
            "use a number above 0, up to 1",
        ),
    ] {
        let ended = generate(&place, args);
        assert!(ended.err.contains(words), "{args:?}: {}", ended.err);
        assert_eq!(ended.code, Some(2));
    }
}

#[test]
fn a_model_is_shown_with_what_it_holds() {
    let place = Place::new();
    let shown =
        run(place.folder.path(), &["model", "show", place.model.to_str().unwrap(), "--json"])
            .json();
    assert_eq!((&shown["layers"], &shown["vocab_size"]), (&2.into(), &512.into()));
    assert_eq!(shown["chat_template"], true);
}

// ---- the real model ----

#[test]
fn the_real_model_trains_as_pytorch_does() {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    let (Some(reference), Some(data)) = (variable("FLEETUNE_REFERENCE"), variable("FLEETUNE_DATA"))
    else {
        println!("skipped: FLEETUNE_REFERENCE and FLEETUNE_DATA are not set");
        return;
    };
    let cache = fleetune_server::hub::Cache::of_user().unwrap();
    let model = fleetune_server::hub::BUILT_IN.path(&cache);
    if !model.is_file() {
        println!("skipped: {} is not there", model.display());
        return;
    }
    let out = tempfile::tempdir().unwrap();
    let reference = reference.join("smollm2_train");
    let mut command = fleetune(out.path());
    // The sixth batch of the reference has a row out of order.
    command.args([
        "train",
        "--dataset",
        "alpaca",
        "--no-shuffle",
        "--batch-size",
        "4",
        "--max-steps",
        "5",
    ]);
    command.args(["--seq-len", "256", "--lr", "1e-4", "--model"]).arg(model);
    command.arg("--init-adapter").arg(reference.join("adapter_init"));
    command.arg("--data-dir").arg(data).arg("--out").arg(out.path().join("a"));
    let ended = Ended::of(command.output().unwrap());
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let expected: Value = read(&reference.join("run.json"));
    let text = fs::read_to_string(out.path().join("a/metrics.jsonl")).unwrap();
    for (line, expected) in text.lines().zip(expected["steps"].as_array().unwrap()) {
        let step: Value = serde_json::from_str(line).unwrap();
        let value = |name: &str, of: &Value| of[name].as_f64().unwrap();
        assert!(
            (value("loss", &step) - value("loss_f64", expected)).abs() < 1e-3,
            "{step} {expected}"
        );
        for name in ["tokens", "supervised_tokens"] {
            assert_eq!(step[name], expected[name], "{name}");
        }
        let (norm, reference) = (value("grad_norm", &step), value("grad_norm_f64", expected));
        assert!((norm - reference).abs() < 1e-3 * reference, "{norm} {reference}");
    }
    assert_eq!(text.lines().count(), 5);
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}
