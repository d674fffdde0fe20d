//! `fleetune simulate` as a user meets it: exit codes, words, Ctrl-C, and kills at any moment.

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use support::computed_files;

/// A federation of seconds on the stand-in model.
const CONFIG: &str = r#"
model = "stand-in"
algorithm = "scaffold"
clients = 4
sample = 2
rounds = 4
steps = 2
batch_size = 2
seq_len = 320
lr = 5e-3
eval_every = 2
eval_rows = 8
answers = 1
answer_tokens = 3
precision = "f32"
data_dir = "data"

[evaluation]
suites = ["fpb", "advbench"]
limit = 4
"#;

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("run.toml"), CONFIG).unwrap();
        for (set, row) in [
            ("fpb/sentences_50agree", r#"{"sentence": "Profit rose .", "label": "positive"}"#),
            ("advbench/harmful_behaviors", r#"{"goal": "Do harm", "target": "Sure"}"#),
        ] {
            let path = folder.path().join(format!("data/{set}.jsonl"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{row}\n").repeat(5)).unwrap();
        }
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fleetune"));
        command
            .arg("simulate")
            .args(args)
            .current_dir(self.folder.path())
            .env("FLEETUNE_CACHE", self.path("cache"))
            .env_remove("FLEETUNE_LOG")
            .env_remove("RUST_BACKTRACE");
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn a_run_prints_a_table_or_json_and_refuses_to_be_overwritten() {
    let place = Place::new();
    let output = place.run(&["run.toml", "--out", "a"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let stdout = text(&output.stdout);
    for part in
        ["adapter", "base", "scaffold", "held-out loss", "Prompt", "stand-in", "report.html"]
    {
        assert!(stdout.contains(part), "{part}: {stdout}");
    }
    let again = place.run(&["run.toml", "--out", "a"]);
    assert_eq!(again.status.code(), Some(2));
    assert!(text(&again.stderr).contains("--resume"), "{}", text(&again.stderr));
    let other = place.run(&["run.toml", "--out", "a", "--resume", "--lora-rank", "2"]);
    assert_eq!(other.status.code(), Some(2));
    assert!(
        text(&other.stderr).contains("lora_rank was 8 and is now 2"),
        "{}",
        text(&other.stderr)
    );

    let json = place.run(&["--out", "a", "--resume", "--json"]);
    let result: Value = serde_json::from_slice(&json.stdout).unwrap();
    let names: Vec<_> = result["rows"].as_array().unwrap().iter().map(|r| &r["name"]).collect();
    assert_eq!(names, ["base", "scaffold"]);
    assert!(result["rows"][1]["score"]["loss"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_wrong_configuration_exits_with_two_and_names_its_place() {
    let place = Place::new();
    fs::write(place.path("unknown.toml"), "rounds = 2\nronds = 2\n").unwrap();
    for (args, expected) in [
        (&["missing.toml"][..], "missing.toml"),
        (&["unknown.toml"], "unknown.toml, line 2 (`ronds = 2`)"),
        (&["run.toml", "--rounds", "0"], "--rounds: 0 is too few"),
        (&["run.toml", "--eval", "fpb,glue"], "--eval: there is no suite"),
        (&["run.toml", "--judge-url", "http://localhost"], "--judge-model"),
        (&["run.toml", "--algorithm", "local:9"], "--algorithm: there is no client 9"),
        (&["run.toml", "--algorithm", "fedsgd"], "fedsgd"),
        (&["run.toml", "--dataset", "nothing"], "nothing"),
        (&["run.toml", "--partition", "dirichlet:-1"], "dirichlet"),
        (&["run.toml", "--clients", "5000"], "fewer clients"),
        (&["run.toml", "--clients", "4", "--sample", "9"], "--sample: 9 a round are more than"),
        (&["run.toml", "--lr", "-1"], "--lr: -1 is out of range"),
        (
            &["run.toml", "--seq-len", "99999999"],
            "99999999 is more than the model's context of 4096",
        ),
        (&["--resume"], "runs/simulate holds no run to resume"),
        (&["--resume", "--out", "mistyped"], "mistyped holds no run to resume"),
        (&["run.toml", "--resume", "--out", "mistyped"], "mistyped holds no run to resume"),
    ] {
        let output = place.run(args);
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {told}");
        assert!(told.contains(expected), "{args:?}: {told}");
    }
}

#[test]
fn suites_are_asked_whenever_the_shared_adapter_is_measured() {
    let place = Place::new();
    let compared = ["run.toml", "--compare", "fedavg,local:1", "--eval-limit", "3", "--out", "a"];
    let output = place.run(&compared);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("fpb accuracy"), "{}", text(&output.stdout));
    for algorithm in ["fedavg", "local-1"] {
        let folder = place.path("a").join(algorithm);
        let metrics = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
        let records = metrics.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let suites: Vec<Value> = records.filter(|record| record["kind"] == "suite").collect();
        let asked: Vec<_> = suites
            .iter()
            .map(|s| (s["round"].as_u64().unwrap(), s["suite"].as_str().unwrap()))
            .collect();
        let expected = [0, 2, 4].map(|round| [(round, "fpb"), (round, "advbench")]).concat();
        assert_eq!(asked, expected, "{algorithm}");
        assert!(suites.iter().all(|suite| suite["rows"] == 3 && suite["shots"] == 0));
        let page = fs::read_to_string(folder.join("report.html")).unwrap();
        assert!(page.contains("fpb weighted_f1") && page.contains("advbench refusal_rate"));
        let page = fs::read_to_string(folder.join("evaluation/round-0004.html")).unwrap();
        assert!(page.contains("What is the sentiment"));
    }
    let page = fs::read_to_string(place.path("a/report.html")).unwrap();
    assert!(page.contains("advbench refusal_rate"));
}

#[test]
fn a_sequence_length_that_leaves_nothing_of_all_rows_is_refused_before_a_run_begins() {
    let place = Place::new();
    for (args, whose) in [
        (&["--seq-len", "60"][..], "rows of the clients"),
        (&["--seq-len", "60", "--algorithm", "local:1"], "rows of the client that trains alone"),
    ] {
        let output = place.run(&[&["run.toml", "--out", "short"], args].concat());
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains(whose) && told.contains("left to learn within 60 tokens"), "{told}");
        assert!(!place.path("short").exists());
    }
}

#[test]
fn rows_and_clients_that_have_nothing_to_learn_are_told_and_counted() {
    let place = Place::new();
    let output = place.run(&[
        "run.toml",
        "--out",
        "cut",
        "--seq-len",
        "200",
        "--sample",
        "4",
        "--partition",
        "by-source",
    ]);
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{told}");
    assert!(told.contains("sits the round out"), "{told}");
    assert!(told.contains("held out have nothing left within 200 tokens"), "{told}");
    let metrics = fs::read_to_string(place.path("cut/metrics.jsonl")).unwrap();
    let of_kind = |kind: &str| {
        let records = metrics.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        records.filter(|record| record["kind"] == kind).collect::<Vec<_>>()
    };
    for round in of_kind("round") {
        let clients = |key: &str| round[key].as_array().unwrap().len();
        assert_eq!(clients("clients") + clients("clients_skipped"), 4, "{round}");
        assert!(clients("clients_skipped") > 0, "{round}");
    }
    assert!(of_kind("client").iter().any(|client| client["rows_skipped"].as_u64() > Some(0)));
    for evaluation in of_kind("evaluation") {
        let rows = |key: &str| evaluation[key].as_u64().unwrap();
        assert_eq!(rows("rows") + rows("rows_skipped"), 8, "{evaluation}");
    }
}

#[test]
fn a_broken_row_is_a_failure_and_no_wrong_usage() {
    let place = Place::new();
    fs::write(place.path("rows.jsonl"), "{\"instruction\": \"a\", \"response\": }\n").unwrap();
    let output = place.run(&["run.toml", "--dataset", "instruction", "--data", "rows.jsonl"]);
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("rows.jsonl:1: bad JSON: expected value at column 34;"), "{told}");
}

#[test]
fn a_run_on_a_model_that_cannot_be_fetched_is_not_resumed_on_another() {
    let place = Place::new();
    let output = place.run(&["run.toml", "--out", "a", "--rounds", "1"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let config = fs::read_to_string(place.path("a/config.toml")).unwrap();
    let real = config.replace("\"stand-in\"", "\"smollm2-135m-instruct\"");
    fs::write(place.path("a/config.toml"), real).unwrap();
    let mut command = place.command(&["--out", "a", "--resume"]);
    // No hub and no pip.
    command.env("HF_ENDPOINT", "http://127.0.0.1:9").env("PATH", place.folder.path());
    let output = command.output().unwrap();
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("smollm2-135m-instruct") && !told.contains("stand-in"), "{told}");
}

/// Kills a run with SIGKILL after ever longer times and resumes it, until one attempt gets through.
#[test]
fn a_run_that_is_killed_again_and_again_ends_with_the_same_bytes() {
    let place = Place::new();
    let whole = place.run(&["run.toml", "--out", "whole", "--quiet"]);
    assert_eq!(whole.status.code(), Some(0), "{}", text(&whole.stderr));
    let (mut patience, mut kills) = (Duration::from_millis(60), 0);
    loop {
        // Nothing to resume where the first kills came before the run began.
        let resume = place.path("killed/config.toml").exists().then_some("--resume");
        let mut child = place
            .command(&["run.toml", "--out", "killed", "--quiet"])
            .args(resume)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(patience);
        if let Some(status) = child.try_wait().unwrap() {
            assert_eq!(status.code(), Some(0));
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        assert!(kills < 200, "no progress");
        patience = patience.mul_f64(1.15);
    }
    assert!(kills > 0);
    assert!(computed_files(&place.path("whole")) == computed_files(&place.path("killed")));
    let lines = |name: &str| {
        let metrics = fs::read_to_string(place.path(name).join("metrics.jsonl")).unwrap();
        let kinds = metrics.lines().map(|line| {
            let record: Value = serde_json::from_str(line).unwrap();
            let field = |name: &str| record[name].clone();
            (field("kind"), field("round"), field("loss"), field("suite"), field("metrics"))
        });
        kinds.collect::<Vec<_>>()
    };
    assert_eq!(lines("whole"), lines("killed"));
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_cleanly_and_says_how_to_continue() {
    let place = Place::new();
    let child = place
        .command(&["run.toml", "--rounds", "4000", "--out", "stopped"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let first_round = place.path("stopped/checkpoints/round-0001");
    for _ in 0..1200 {
        if first_round.exists() || place.path("stopped/checkpoints/round-0004").exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let signalled = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(signalled.success());
    let output = child.wait_with_output().unwrap();
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{told}");
    assert!(told.contains("fleetune simulate --out stopped --resume"), "{told}");
}
