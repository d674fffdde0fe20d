//! `fleetune aggregate` as a script uses it, against the numbers of `tests/fixtures/aggregators`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use fleetune_core::adapter::{CONFIG_FILE, Parameter, ParameterSet, read_parameters, write_folder};
use serde_json::Value;

/// A configuration that the engine itself would not load; aggregation carries it over as it is.
const CONFIG: &str = r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "some_later_field": [1]}"#;

fn fixture(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "tests", "fixtures", "aggregators", name].iter().collect()
}

fn meta() -> Value {
    serde_json::from_slice(&fs::read(fixture("meta.json")).unwrap()).unwrap()
}

/// The tensors of `file` under `prefix/`.
fn set(file: &str, prefix: &str) -> ParameterSet {
    let all = ParameterSet::from_safetensors(&fs::read(fixture(file)).unwrap()).unwrap();
    let entries = all.iter().filter_map(|entry| {
        let name = entry.name.strip_prefix(prefix)?.strip_prefix('/')?;
        Some(Parameter { name: name.into(), ..entry.clone() })
    });
    ParameterSet::new(entries.collect())
}

fn run(folder: &Path, args: &[String]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fleetune"));
    command.arg("aggregate").args(args).current_dir(folder).env_remove("RUST_BACKTRACE");
    command.output().unwrap()
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(String::from).collect()
}

/// Runs every round of the fixtures through the command.
fn follow(golden: &str, flags: &str, scaffold: bool) {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, set: &ParameterSet| {
        write_folder(&folder.path().join(name), CONFIG.as_bytes(), set).unwrap();
    };
    write("round0", &set("inputs.safetensors", "init"));
    let meta = meta();
    for (t, clients) in meta["clients_per_round"].as_array().unwrap().iter().enumerate() {
        let out = format!("round{}", t + 1);
        let mut args =
            words(&format!("{flags} --global round{t} --out {out} --state server.state --json"));
        for client in clients.as_array().unwrap() {
            let name = format!("round{t}/client{client}");
            write(&name, &set("inputs.safetensors", &name));
            let samples = &meta["sample_counts"][client.as_u64().unwrap() as usize];
            args.extend(["--update".into(), format!("{name}:{samples}")]);
            if scaffold {
                let name = format!("round{t}/delta_c/client{client}");
                write(&name, &set("inputs.safetensors", &name));
                args.extend(["--control-delta".into(), name]);
            }
        }
        let output = run(folder.path(), &args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["round"], t);
        assert_eq!(report["clients"], clients.as_array().unwrap().len());

        let found = read_parameters(&folder.path().join(&out)).unwrap();
        let expected = set(&format!("{golden}.safetensors"), &format!("round{t}/global"));
        found.check_layout(&expected).unwrap();
        for (found, expected) in found.iter().zip(expected.iter()) {
            let scale = expected.values.iter().fold(0.0f32, |scale, v| scale.max(v.abs()));
            for (a, b) in found.values.iter().zip(&expected.values) {
                assert!((a - b).abs() <= 1e-6 * scale, "{golden} {}: {a} is not {b}", found.name);
            }
        }
        let config = fs::read_to_string(folder.path().join(&out).join(CONFIG_FILE)).unwrap();
        assert_eq!(config, CONFIG);
    }
}

#[test]
fn every_algorithm_and_variant_gives_the_reference_numbers_round_after_round() {
    for algorithm in ["fedavg", "fedprox", "fedavgm", "fedadagrad", "fedyogi", "fedadam"] {
        follow(&format!("openfedllm_{algorithm}"), &format!("--algorithm {algorithm}"), false);
    }
    follow("openfedllm_scaffold", "--algorithm scaffold --clients 6", true);
    for algorithm in ["fedavgm", "fedadagrad", "fedyogi", "fedadam"] {
        let flags = format!("--algorithm {algorithm} --variant paper");
        follow(&format!("reddi2021_{algorithm}"), &flags, false);
        let flags = format!("{flags} --weighting uniform");
        follow(&format!("reddi2021_uniform_{algorithm}"), &flags, false);
    }
}

/// A folder with adapters `global`, `a` and `b`.
fn workplace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, source) in [("global", "init"), ("a", "round0/client0"), ("b", "round0/client1")] {
        let set = set("inputs.safetensors", source);
        write_folder(&folder.path().join(name), CONFIG.as_bytes(), &set).unwrap();
    }
    folder
}

#[test]
fn wrong_usage_exits_with_two_and_says_how_to_mend_it() {
    let folder = workplace();
    for (flags, expected) in [
        (
            "--algorithm fedsgd --update a:1",
            "unknown algorithm: use one of fedavg, fedprox, scaffold, fedavgm, fedadagrad, fedyogi, fedadam\n",
        ),
        ("--algorithm local:1 --update a:1", "never aggregates"),
        ("--algorithm fedavg", "--update"),
        ("--algorithm fedavg --update a", "DIR:NUM_SAMPLES"),
        ("--algorithm fedavg --update a:0", "0 samples"),
        ("--algorithm fedadam --beta1 2 --update a:1", "--beta1 is 2"),
        ("--algorithm fedadam --server-lr nan --update a:1", "--server-lr is NaN"),
        ("--algorithm fedadam --server-lr -1 --update a:1", "--server-lr is -1"),
        (
            "--algorithm scaffold --clients 1 --update a:1 nowhere:2 --control-delta a b",
            "2 clients, but the population is said to be 1",
        ),
        ("--algorithm scaffold --update a:1 --control-delta b", "--clients N"),
        ("--algorithm scaffold --clients 3 --update a:1", "one --control-delta per --update"),
        ("--algorithm fedavg --update a:1 --control-delta b", "belongs to scaffold"),
    ] {
        let output = run(folder.path(), &words(&format!("{flags} --global global --out out")));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{flags}: {stderr}");
        assert!(stderr.contains(expected), "{flags}: {stderr}");
        assert!(!folder.path().join("out").exists());
    }
}

#[test]
fn adapters_that_cannot_be_used_exit_with_one_and_nothing_is_written() {
    let folder = workplace();
    let at = |name: &str| folder.path().join(name);
    write_folder(&at("other"), CONFIG.as_bytes(), &set("inputs.safetensors", "round0")).unwrap();
    let scaled = CONFIG.replace("\"lora_alpha\": 8", "\"lora_alpha\": 16");
    let same = set("inputs.safetensors", "round0/client0");
    write_folder(&at("scaled"), scaled.as_bytes(), &same).unwrap();
    let mut diverged = same.clone();
    diverged.values_mut().next().unwrap()[3] = f32::NAN;
    write_folder(&at("diverged"), CONFIG.as_bytes(), &diverged).unwrap();
    write_folder(&at("cut"), CONFIG.as_bytes(), &same).unwrap();
    let tensors = at("cut").join("adapter_model.safetensors");
    let bytes = fs::read(&tensors).unwrap();
    fs::write(&tensors, &bytes[..bytes.len() / 2]).unwrap();
    for (update, expected) in [
        ("nowhere", "cannot read nowhere"),
        ("other", "does not fit the global adapter"),
        ("scaled", "lora_alpha is 16, but the global adapter's is 8"),
        ("diverged", "holds NaN at position 3"),
        ("cut", "no complete safetensors file"),
    ] {
        let flags = format!(
            "--algorithm fedavg --global global --update a:3 --update {update}:5 --state s --out out"
        );
        let output = run(folder.path(), &words(&flags));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{update}: {stderr}");
        assert!(stderr.contains(expected), "{update}: {stderr}");
        assert!(!at("out").exists() && !at("s").exists());
    }
}

#[test]
fn a_client_s_folder_is_never_replaced_but_the_global_one_may_be() {
    let folder = workplace();
    let common = "--algorithm fedavg --global global --update a:3 b:4 --state s";
    for out in ["a", "./b", "a/../a"] {
        let output = run(folder.path(), &words(&format!("{common} --out {out}")));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains("which a client sent"), "{stderr}");
    }
    for round in 0..3 {
        let output = run(folder.path(), &words(&format!("{common} --out global --json")));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["round"], round);
    }
}

#[test]
fn without_a_place_for_the_state_there_is_no_new_adapter() {
    let folder = workplace();
    let args = "--algorithm fedadam --global global --update a:3 --state no/such/s --out out";
    let output = run(folder.path(), &words(args));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("cannot write no/such/s"), "{stderr}");
    assert!(!folder.path().join("out").exists());
}

#[test]
fn a_state_of_another_algorithm_is_refused() {
    let folder = workplace();
    let common = "--global global --update a:3 b:4 --state s --out out";
    let output = run(folder.path(), &words(&format!("--algorithm fedadam {common}")));
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let state = fs::read(folder.path().join("s")).unwrap();
    let output = run(folder.path(), &words(&format!("--algorithm fedyogi {common}")));
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("belongs to fedadam (openfedllm)"), "{stderr}");
    assert_eq!(fs::read(folder.path().join("s")).unwrap(), state);
}

/// An adapter of one module, 6 × 5, whose values follow from `seed`.
fn small_adapter(rank: usize, seed: f32) -> ParameterSet {
    let tensor = |name: &str, rows: usize, columns: usize, seed: f32| Parameter {
        name: format!("model.{name}.weight"),
        shape: vec![rows, columns],
        values: (0..rows * columns).map(|i| (i as f32 * 1.7 + seed).sin()).collect(),
    };
    ParameterSet::new(vec![tensor("lora_A", rank, 5, seed), tensor("lora_B", 6, rank, seed + 0.5)])
}

/// What a model adds to its weights: alpha / r · B·A.
fn product(folder: &Path) -> Vec<f64> {
    let config: Value =
        serde_json::from_slice(&fs::read(folder.join(CONFIG_FILE)).unwrap()).unwrap();
    let rank = config["r"].as_u64().unwrap() as usize;
    let scale = config["lora_alpha"].as_f64().unwrap() / rank as f64;
    let adapter = read_parameters(folder).unwrap();
    let values = |name: &str| &adapter.get(&format!("model.{name}.weight")).unwrap().values;
    let (a, b) = (values("lora_A"), values("lora_B"));
    let element = |row: usize, column: usize| -> f64 {
        (0..rank).map(|i| f64::from(b[row * rank + i]) * f64::from(a[i * 5 + column])).sum()
    };
    (0..30).map(|at| scale * element(at / 5, at % 5)).collect()
}

#[test]
fn products_of_adapters_of_other_rank_and_strength_add_up() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, rank: usize, alpha: f64, set: &ParameterSet| {
        let config = format!(r#"{{"peft_type": "LORA", "r": {rank}, "lora_alpha": {alpha}}}"#);
        write_folder(&folder.path().join(name), config.as_bytes(), set).unwrap();
    };
    let mut fresh = small_adapter(4, 9.0);
    fresh.values_mut().nth(1).unwrap().fill(0.0);
    write("global", 4, 8.0, &fresh);
    write("small", 1, 5.0, &small_adapter(1, 1.0));
    write("large", 3, 6.0, &small_adapter(3, 2.0));
    let at = |name: &str| product(&folder.path().join(name));
    let mean: Vec<f64> =
        at("small").iter().zip(at("large")).map(|(s, l)| 0.25 * s + 0.75 * l).collect();
    for (how, rank) in [("product --state state", 4), ("stack", 4)] {
        let args = format!(
            "--algorithm fedavg --combine {how} --global global --update small:10 --update large:30 --out next --json"
        );
        let output = run(folder.path(), &words(&args));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["rank"], rank, "{how}");
        for (found, expected) in at("next").iter().zip(&mean) {
            assert!((found - expected).abs() < 1e-5, "{how}: {found} is not {expected}");
        }
    }
    let args = "--algorithm fedadam --combine product --global global --update large:1 --out x";
    let output = run(folder.path(), &words(args));
    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("combination product does not go with fedadam"), "{told}");
}
