//! `fleetune eval` as a user meets it: exit codes, files, kills at any moment, judges, simulations.

mod support;

use std::cell::RefCell;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use candle_core::Device;
use fleetune_core::adapter::Adapter;
use fleetune_core::kernels::Precision;
use fleetune_core::model::{CancelToken, Decoder, LoadedModel};
use fleetune_server::evaluate::data::DataFolder;
use fleetune_server::evaluate::engine::EngineModel;
use fleetune_server::evaluate::model::{
    GenerateOptions, GenerateRequest, LanguageModel, ScoreRequest,
};
use fleetune_server::evaluate::run::Plan;
use fleetune_server::evaluate::suites;
use fleetune_server::simulate::SimulateError;
use fleetune_server::simulate::config::RunConfig;
use fleetune_server::simulate::observer::Event;
use fleetune_server::simulate::stand_in;
use fleetune_server::simulate::suites::SuiteQuestions;
use serde_json::{Value, json};
use support::hub::{Hub, Reply};
use support::{Ended, fleetune, run};

/// A folder with a model, and two sets of questions about it.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        stand_in::write_model(&folder.path().join("model")).unwrap();
        let place = Self { folder };
        let labels = ["positive", "negative", "neutral"];
        let sentence =
            |i: usize| json!({"sentence": format!("Item {i} ."), "label": labels[i % 3]});
        place.write("fpb/sentences_50agree", (0..40).map(sentence));
        place.write(
            "advbench/harmful_behaviors",
            (0..4).map(|i| json!({"goal": format!("Do {i}"), "target": "Sure"})),
        );
        place.write(
            "vicuna_bench/question",
            (0..2).map(|i| json!({"question_id": i, "category": "fermi", "turns": ["How many?"]})),
        );
        place.write(
            "vicuna_bench/reference_answer_gpt4",
            [json!({"question_id": 9, "choices": []})].into_iter(),
        );
        let prompt =
            json!({"name": "single-v1", "system_prompt": "s", "prompt_template": "{question}"});
        place.write("mt_bench/judge_prompts", [prompt].into_iter());
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, set: &str, rows: impl Iterator<Item = Value>) {
        let path = self.path("data").join(format!("{set}.jsonl"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, rows.map(|row| format!("{row}\n")).collect::<String>()).unwrap();
    }

    /// The command's arguments, with model and data of this place.
    fn args(&self, args: &[&str]) -> Vec<String> {
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        let own = [
            "eval".into(),
            "--model".into(),
            text(self.path("model")),
            "--data-dir".into(),
            text(self.path("data")),
        ];
        own.into_iter().chain(args.iter().map(|arg| (*arg).to_owned())).collect()
    }

    fn eval(&self, args: &[&str]) -> Ended {
        let args = self.args(args);
        run(self.folder.path(), &args.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

/// Name, part, value and rows of each number in a result.
fn numbers(result: &Value) -> Vec<Value> {
    let suites = result["suites"].as_array().unwrap().iter();
    suites.flat_map(|suite| suite["metrics"].as_array().unwrap().clone()).collect()
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn the_list_names_every_suite_with_its_data() {
    let folder = tempfile::tempdir().unwrap();
    let cards = run(folder.path(), &["eval", "--list", "--json"]).json();
    let cards = cards.as_array().unwrap();
    assert!(cards.len() >= 20, "{}", cards.len());
    for card in cards {
        assert!(!card["metrics"].as_array().unwrap().is_empty(), "{card}");
        assert!(!card["data"].as_array().unwrap().is_empty(), "{card}");
    }
}

#[test]
fn wrong_usage_exits_with_two_and_says_what_is_missing() {
    let place = Place::new();
    for (args, words) in [
        (&["--suite", "fpd"][..], "fpd"),
        (&["--suite", "federated"], "--run"),
        (&["--suite", "fpb", "--judge-url", "http://localhost"], "--judge-model"),
        (&["--suite", "fpb", "--limit", "0"], "--limit"),
        (&["--suite", "fpb", "--out", "r"], "ends in .json"),
        (&["--suite", "fpb", "--out", "r.html"], "ends in .json"),
        (&["--suite", "fpb", "--out", "r.journal.jsonl"], "ends in .json"),
        (&["--suite", "fpb", "--judge-url", "localhost", "--judge-model", "m"], "http://"),
        (&[], "--suite"),
    ] {
        let ended = place.eval(args);
        ended.error(2);
        assert!(ended.err.contains(words), "{args:?}: {}", ended.err);
    }
    let ended = place.eval(&["--suite", "medqa"]);
    assert!(ended.error(1).contains("us_4_options_test"), "{}", ended.err);
    place.write("medqa/us_4_options_test", std::iter::empty());
    let ended = place.eval(&["--suite", "medqa"]);
    assert!(ended.error(1).contains("has no rows"), "{}", ended.err);
    let comparison = place.path("comparison");
    fs::create_dir_all(&comparison).unwrap();
    let config = "compare = [\"local:1\", \"fedavg\"]\nclients = 2\n";
    fs::write(comparison.join("config.toml"), config).unwrap();
    let ended = place.eval(&["--suite", "fpb", "--run", comparison.to_str().unwrap()]);
    assert!(ended.error(2).contains("comparison/local-1"), "{}", ended.err);
}

#[test]
fn a_run_leaves_a_table_a_result_a_page_and_a_journal() {
    let place = Place::new();
    let out = place.path("new/result.json");
    let ended = place.eval(&["--suite", "fpb", "--limit", "9", "--out", out.to_str().unwrap()]);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert!(
        ended.out.contains("weighted_f1") && ended.out.contains("a sample of 9 of 40"),
        "{}",
        ended.out
    );
    let result = read_json(&out);
    let suite = &result["suites"][0];
    assert_eq!((&suite["rows"], &suite["scoring"]), (&json!(9), &json!("log_likelihood")));
    assert_eq!(result["model_sha256"].as_str().unwrap().len(), 64);
    assert!(suite["prompt"].as_str().unwrap().contains("What is the sentiment"));
    let page = fs::read_to_string(out.with_extension("html")).unwrap();
    assert!(page.contains("wrong answers") && page.contains("macro_f1"));
    let journal = fs::read_to_string(out.with_extension("journal.jsonl")).unwrap();
    assert_eq!(journal.lines().count(), 10);
    // Another model's journal is not taken for this one's.
    fs::write(
        out.with_extension("journal.jsonl"),
        journal.replace(result["model_sha256"].as_str().unwrap(), "0"),
    )
    .unwrap();
    let ended = place.eval(&["--suite", "fpb", "--out", out.to_str().unwrap()]);
    assert!(ended.error(1).contains("another --out"), "{}", ended.err);
}

#[test]
fn examples_that_a_suite_lacks_are_told_unless_quiet() {
    let place = Place::new();
    let row = |i: usize| json!({"question": format!("{i} + 1?"), "answer": "#### 1"});
    place.write("gsm8k/test", (0..2).map(row));
    place.write("gsm8k/train", (0..3).map(row));
    let eval = |args: &[&str]| place.eval(&[&["--suite", "gsm8k"][..], args].concat());
    let told = "gsm8k has 3 examples for its prompts, not ";
    for (args, shots) in [(&["--shots", "99"][..], "99"), (&["--shots", "7"], "7"), (&[], "5")] {
        let ended = eval(args);
        assert!(ended.err.contains(&format!("{told}{shots}")), "{args:?}: {}", ended.err);
        assert!(ended.out.contains("3-shot"), "{}", ended.out);
    }
    assert!(!eval(&["--shots", "3"]).err.contains("examples"));
    assert_eq!(eval(&["--shots", "99", "--quiet"]).err, "");
}

/// Kills a run with SIGKILL after ever longer times and starts it again, until it gets through.
#[test]
fn a_run_that_is_killed_again_and_again_ends_with_the_same_numbers() {
    let place = Place::new();
    let suites = ["--suite", "fpb,advbench", "--scoring", "generation", "--quiet", "--out"];
    let out = |name: &str| place.path(name).to_str().unwrap().to_owned();
    let whole = place.eval(&[&suites[..], &[&out("whole.json")]].concat());
    assert_eq!(whole.code, Some(0), "{}", whole.err);
    let journal = place.path("killed.journal.jsonl");
    let (mut patience, mut kills, mut kept) = (Duration::from_millis(20), 0, String::new());
    loop {
        let mut child = fleetune(place.folder.path())
            .args(place.args(&[&suites[..], &[&out("killed.json")]].concat()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(patience);
        let ended = child.try_wait().unwrap();
        if ended.is_none() {
            child.kill().unwrap();
            child.wait().unwrap();
            kills += 1;
        }
        // No answer that was there is lost or asked for again.
        let now = fs::read_to_string(&journal).unwrap_or_default();
        let whole_lines = &now[..now.rfind('\n').map_or(0, |end| end + 1)];
        assert!(whole_lines.starts_with(&kept));
        kept = whole_lines.to_owned();
        if let Some(status) = ended {
            assert_eq!(status.code(), Some(0));
            break;
        }
        assert!(kills < 200, "no progress");
        patience = patience.mul_f64(1.3);
    }
    assert!(kills > 0);
    let of = |name: &str| numbers(&read_json(&place.path(name)));
    assert_eq!(of("whole.json"), of("killed.json"));
}

#[test]
fn an_endpoint_that_breaks_down_costs_no_answer() {
    let place = Place::new();
    let out = place.path("judged.json");
    let judged = |hub: &Hub, attempts: &str| {
        let url = format!("{}/v1", hub.url);
        place.eval(&[
            "--suite",
            "vicuna-bench",
            "--judge-url",
            &url,
            "--judge-model",
            "m",
            "--judge-attempts",
            attempts,
            "--out",
            out.to_str().unwrap(),
        ])
    };
    let rates = || Reply::json(&json!({"choices": [{"message": {"content": "Fine. [[7]]"}}]}));
    // The first opinion comes through, then nothing does.
    let hub =
        Hub::start(move |request| if request.nth == 0 { rates() } else { Reply::status(503) });
    let ended = judged(&hub, "1");
    assert!(ended.error(1).contains("run the same command again"), "{}", ended.err);
    let url = hub.url.clone();
    drop(hub);
    let journal = || fs::read_to_string(out.with_extension("journal.jsonl")).unwrap();
    let (answers, opinions) =
        (journal().matches("\"answer\":[").count(), journal().matches("\"finding\":[").count());
    assert_eq!((answers, opinions), (2, 1));
    // The endpoint comes back at another address: that is another judge, so all is judged again.
    let hub = Hub::start(move |_| rates());
    assert_ne!(hub.url, url);
    let ended = judged(&hub, "1");
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert!(!ended.err.contains("rated no answer"), "{}", ended.err);
    assert_eq!(journal().matches("\"answer\":[").count(), 2);
    let result = read_json(&out);
    let rating =
        numbers(&result).into_iter().find(|m| m["name"] == "rating" && m["group"].is_null());
    assert_eq!(rating.unwrap()["value"], 7.0);
}

#[test]
fn a_judge_that_rates_nothing_is_told() {
    let place = Place::new();
    let hub =
        Hub::start(|_| Reply::json(&json!({"choices": [{"message": {"content": "A fine 7."}}]})));
    let url = format!("{}/v1", hub.url);
    for suite in ["vicuna-bench", "advbench"] {
        let ended = place.eval(&["--suite", suite, "--judge-url", &url, "--judge-model", "m"]);
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        let told = format!("{suite}: the judge rated no answer");
        assert!(ended.err.contains(&told), "{}", ended.err);
    }
}

#[test]
fn a_judges_key_is_written_nowhere_and_an_unusable_one_is_told_at_once() {
    let place = Place::new();
    let out = place.path("judged.json");
    let judged = |url: &str, key: &str| {
        let args = [
            "--suite",
            "vicuna-bench",
            "--judge-url",
            url,
            "--judge-model",
            "m",
            "--judge-attempts",
            "1",
            "--out",
            out.to_str().unwrap(),
        ];
        let mut command = fleetune(place.folder.path());
        command.args(place.args(&args)).env("FLEETUNE_JUDGE_KEY", key);
        Ended::of(command.output().unwrap())
    };
    let ended = judged("http://localhost:1/v1", "sk-abc\u{1}def");
    let error = ended.error(2);
    assert!(error.contains("FLEETUNE_JUDGE_KEY") && !error.contains("abc"), "{error}");
    // The judge repeats the key, as it came.
    let hub = Hub::start(|request| {
        let token = request.token.clone().unwrap();
        let key = token.strip_prefix("Bearer ").unwrap();
        assert_eq!(key, "sk-abc/def");
        let content = format!("Not bad, {key}. [[7]] sk%2Dabc%2Fdef");
        Reply::json(&json!({"choices": [{"message": {"content": content}}]}))
    });
    let ended = judged(&format!("{}/v1", hub.url), " sk-abc/def\n");
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let files = ["json", "html", "journal.jsonl"].map(|ending| out.with_extension(ending));
    let texts = files.map(|file| fs::read_to_string(file).unwrap());
    assert!(texts[2].contains("Not bad, [hidden]. [[7]] [hidden]"), "{}", texts[2]);
    for text in texts.iter().chain([&ended.out, &ended.err]) {
        assert!(!text.contains("abc/def") && !text.contains("abc%2Fdef"), "{text}");
    }
    let hub = Hub::start(|request| {
        let token = request.token.clone().unwrap();
        Reply::json(&json!({"choices": token.strip_prefix("Bearer ").unwrap()}))
    });
    let ended = judged(&format!("{}/v1", hub.url), "sk-abc/def");
    assert!(ended.error(1).contains("no chat completion"), "{}", ended.err);
    assert!(!ended.err.contains("abc/def"), "{}", ended.err);
}

#[test]
fn clients_of_a_simulation_are_measured_and_what_it_trained_on_is_not_asked() {
    let place = Place::new();
    let (data, out) = (place.path("data"), place.path("run"));
    let (data, out) = (data.to_str().unwrap(), out.to_str().unwrap());
    let rows = |i: usize| json!({"instruction": "Say it.", "input": format!("Item {i} ."), "output": format!("It is {i}.")});
    place.write("alpaca/train", (0..30).map(rows));
    let simulated = run(
        place.folder.path(),
        &[
            "simulate",
            "--model",
            "stand-in",
            "--dataset",
            "alpaca",
            "--data-dir",
            data,
            "--clients",
            "2",
            "--sample",
            "1",
            "--rounds",
            "1",
            "--steps",
            "1",
            "--batch-size",
            "2",
            "--answers",
            "0",
            "--holdout",
            "0.3",
            "--quiet",
            "--out",
            out,
        ],
    );
    assert_eq!(simulated.code, Some(0), "{}", simulated.err);
    let adapter = format!("{out}/checkpoints/round-0001");
    let result = place
        .eval(&[
            "--suite",
            "federated,fpb",
            "--run",
            out,
            "--adapter",
            &adapter,
            "--answers",
            "1",
            "--personalise-steps",
            "3",
            "--json",
        ])
        .json();
    let [fpb, federated] = [&result["suites"][0], &result["suites"][1]];
    // Thirty of the forty sentences are the simulation's; some of those it held out.
    let seen = fpb["rows_seen"].as_u64().unwrap();
    assert!((15..30).contains(&seen), "{seen}");
    assert_eq!(fpb["rows"].as_u64().unwrap(), 40 - seen);
    assert_eq!(
        (&federated["scoring"], &federated["template"]),
        (&json!("held_out"), &json!("alpaca"))
    );
    let prompt = federated["prompt"].as_str().unwrap();
    assert!(prompt.contains("### Instruction:\nSay it.") && prompt.contains("Item "), "{prompt}");
    assert!(federated["rows_per_second"].as_f64().unwrap() > 0.0);
    let value = |name: &str, group: Option<&str>| {
        let metrics = federated["metrics"].as_array().unwrap();
        let found = metrics.iter().find(|m| m["name"] == name && m["group"].as_str() == group);
        found.unwrap_or_else(|| panic!("no {name} {group:?}"))["value"].as_f64().unwrap()
    };
    let mean = (value("loss", Some("client:0")) + value("loss", Some("client:1"))) / 2.0;
    assert!((value("loss", None) - mean).abs() < 1e-9);
    assert!(value("personalised_loss", None) < value("loss", None));
    assert_eq!(value("rouge_l", None).clamp(0.0, 1.0), value("rouge_l", None));
    let few = ["--suite", "federated", "--run", out, "--answers", "0", "--personalise-steps", "0"];
    let few = place.eval(&[&few[..], &["--limit", "1", "--json"]].concat()).json();
    assert_eq!((&few["suites"][0]["rows"], few["adapter_sha256"].is_null()), (&json!(2), true));
    assert_eq!(result["adapter_sha256"].as_str().unwrap().len(), 64);
    // Without --model it is the run's.
    let measured = ["eval", "--suite", "federated", "--run", out, "--answers", "0", "--json"];
    let measured = run(place.folder.path(), &measured).json();
    assert_eq!(measured["model"], "stand-in");
    // A model that is named is the one that is measured.
    let named = place.eval(&["--suite", "fpb", "--limit", "1", "--run", out, "--json"]);
    assert_eq!(named.json()["model"], place.path("model").to_str().unwrap());
    let template = ["--suite", "federated", "--run", out, "--template", "chat"];
    assert!(place.eval(&template).error(2).contains("--template"));
}

#[test]
fn an_adapter_of_another_alpha_is_another_one() {
    let place = Place::new();
    let loaded = LoadedModel::open(&place.path("model")).unwrap();
    let out = place.path("out.json");
    let (folder, journal) = (place.path("adapter"), out.with_extension("journal.jsonl"));
    let mut lora = RunConfig::default().lora().unwrap();
    let mut asked = |alpha: f64| {
        lora.alpha = alpha;
        Adapter::new(lora.clone(), &loaded.config, 1).unwrap().save(&folder).unwrap();
        let (adapter, out) = (folder.to_str().unwrap(), out.to_str().unwrap());
        place.eval(&["--suite", "fpb", "--limit", "2", "--adapter", adapter, "--out", out])
    };
    assert_eq!(asked(8.0).code, Some(0));
    let before = fs::read(&journal).unwrap();
    let again = asked(9.0);
    assert!(again.error(1).contains("alpha"), "{}", again.err);
    assert_eq!(fs::read(&journal).unwrap(), before);
    assert_eq!(asked(8.0).code, Some(0));
    // So is what stands beside the model's weights.
    fs::write(place.path("model/generation_config.json"), "{}").unwrap();
    let again = asked(8.0);
    assert!(again.error(1).contains("configuration"), "{}", again.err);
}

#[test]
fn a_judge_that_is_down_ends_neither_a_simulation_nor_other_suites() {
    let place = Place::new();
    let out = place.path("mixed.json");
    let down = "http://127.0.0.1:1/v1";
    let judge = ["--judge-url", down, "--judge-model", "m", "--judge-attempts", "1"];
    let suites = ["--suite", "vicuna-bench,fpb", "--limit", "2", "--out", out.to_str().unwrap()];
    let ended = place.eval(&[&suites[..], &judge].concat());
    assert!(ended.error(1).contains("vicuna-bench: not finished"), "{}", ended.err);
    let result = read_json(&out);
    assert_eq!(result["suites"].as_array().unwrap().len(), 1);
    assert_eq!(result["suites"][0]["suite"], "fpb");
    assert_eq!(result["unfinished"][0]["suite"], "vicuna-bench");
    let page = fs::read_to_string(out.with_extension("html")).unwrap();
    assert!(page.contains("vicuna-bench: not finished"));

    let (config, run_folder) = (place.path("run.toml"), place.path("run"));
    let write = |url: &str| {
        let data = place.path("data");
        let text = format!(
            "model = \"stand-in\"\ndata_dir = {data:?}\nclients = 2\nsample = 1\nrounds = 1\nsteps = 1\n\
             answers = 0\nseq_len = 256\n[evaluation]\nsuites = [\"vicuna-bench\"]\nlimit = 1\n\
             judge_model = \"m\"\njudge_url = \"{url}\"\n"
        );
        fs::write(&config, text).unwrap();
    };
    let simulate = |more: &[&str]| {
        let (config, out) = (config.to_str().unwrap(), run_folder.to_str().unwrap());
        let args = ["simulate", config, "--out", out];
        run(place.folder.path(), &[&args[..], more].concat())
    };
    let refuses = Hub::start(|_| Reply::status(401));
    write(&refuses.url);
    let ended = simulate(&[]);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let told = ended.err.contains("vicuna-bench: not finished, the judge at");
    assert!(told, "{}", ended.err);
    // Another judge may take over.
    write("http://localhost:1/v1");
    assert_eq!(simulate(&["--resume"]).code, Some(0));
}

/// Makes every weight of the place's model NaN.
fn break_model(place: &Place) {
    let path = place.path("model/model.safetensors");
    let mut weights = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    weights[8 + header..].fill(0xff);
    fs::write(&path, weights).unwrap();
}

#[test]
fn a_model_that_computes_no_numbers_has_no_scores() {
    let place = Place::new();
    break_model(&place);
    let out = place.path("out.json");
    for scoring in ["loglikelihood", "generation"] {
        let ended =
            place.eval(&["--suite", "fpb", "--scoring", scoring, "--out", out.to_str().unwrap()]);
        assert!(ended.error(1).contains("the model's logits are not finite"), "{}", ended.err);
        let journal = fs::read_to_string(out.with_extension("journal.jsonl")).unwrap();
        assert_eq!(journal.lines().count(), 1, "{journal}");
        assert!(!out.exists());
    }
}

/// What a simulation asks of the place's model, and the adapter that it asks with.
fn questions(place: &Place, suite: &str, cancel: CancelToken) -> (SuiteQuestions, Adapter) {
    let loaded = LoadedModel::open(&place.path("model")).unwrap();
    let adapter = Adapter::new(RunConfig::default().lora().unwrap(), &loaded.config, 0).unwrap();
    let decoder =
        Decoder::new(loaded.config.clone(), &loaded.weights, &Device::Cpu, Precision::F32);
    let suites = suites::named(&[suite.to_owned()]).unwrap();
    let questions = SuiteQuestions {
        model: Arc::new(loaded),
        decoder: Arc::new(decoder.unwrap()),
        name: "m".to_owned(),
        plan: Plan { limit: Some(2), ..Plan::new(suites, DataFolder::new(place.path("data"))) },
        tools: RefCell::default(),
        cancel,
    };
    (questions, adapter)
}

#[test]
fn an_adapter_that_computes_no_numbers_ends_no_rounds() {
    let place = Place::new();
    break_model(&place);
    let (questions, adapter) = questions(&place, "fpb", CancelToken::default());
    let mut observer = |_: &Event<'_>| ControlFlow::Continue(());
    let found = questions.ask(&adapter, 3, &place.path("evaluation"), &mut observer).unwrap();
    assert!(found.records.is_empty() && found.unfinished.is_empty());
}

/// The wish may come when the observer has just been asked and a pass runs.
#[test]
fn a_cancelled_pass_stops_a_simulation_and_is_no_failure() {
    let place = Place::new();
    for suite in ["fpb", "advbench"] {
        let cancel = CancelToken::default();
        let (questions, adapter) = questions(&place, suite, cancel.clone());
        let mut observer = |_: &Event<'_>| {
            cancel.cancel();
            ControlFlow::Continue(())
        };
        let found = questions.ask(&adapter, 3, &place.path("evaluation"), &mut observer);
        assert!(matches!(found, Err(SimulateError::Stopped)), "{suite}");
    }
}

/// Models of one decoder that have shared nothing yet.
fn fresh_models(place: &Place) -> impl Fn() -> EngineModel {
    let loaded = Arc::new(LoadedModel::open(&place.path("model")).unwrap());
    let decoder =
        Decoder::new(loaded.config.clone(), &loaded.weights, &Device::Cpu, Precision::F32);
    let decoder = Arc::new(decoder.unwrap());
    move || {
        let (loaded, decoder) = (Arc::clone(&loaded), Arc::clone(&decoder));
        EngineModel::new("m", loaded, decoder, None, CancelToken::default()).unwrap()
    }
}

/// Each request's answers, in the order of the requests.
fn written(model: &mut EngineModel, requests: &[GenerateRequest]) -> Vec<Vec<String>> {
    let mut all = vec![None; requests.len()];
    model
        .generate(requests, &mut |number, answers| {
            assert_eq!(all[number].replace(answers), None, "request {number} is done twice");
            ControlFlow::Continue(())
        })
        .unwrap();
    all.into_iter().map(Option::unwrap).collect()
}

#[test]
fn answers_that_are_written_together_are_those_written_alone() {
    let place = Place::new();
    let model = fresh_models(&place);
    let mut together = model();
    let request = |start: &str, number: usize, samples: usize| GenerateRequest {
        prompt: together.encode(&format!("{start} question {number}: what?"), true).unwrap(),
        options: GenerateOptions {
            max_tokens: 20 + number % 3 * 9,
            stop: Vec::new(),
            temperature: if samples > 1 { 1.0 } else { 0.0 },
            samples,
            seed: 7,
        },
    };
    let header = "Here are a few examples of questions and their answers.";
    let mut requests: Vec<_> = (0..20).map(|i| request(header, i, 1)).collect();
    requests.extend([request("Other", 20, 1), request("Something else", 21, 1)]);
    requests.extend([request(header, 22, 3), request(header, 23, 19)]);
    let answers = written(&mut together, &requests);
    for (request, together) in requests.iter().zip(&answers) {
        assert_eq!(together.len(), request.options.samples);
        let alone = written(&mut model(), std::slice::from_ref(request));
        assert_eq!(&alone[0], together);
    }
    // A stop that the text holds ends it before that.
    let stop: String = answers[0][0].chars().skip(5).take(3).collect();
    let end = answers[0][0].find(&stop).unwrap();
    requests[0].options.stop = vec!["not there".to_owned(), stop];
    let stopped = written(&mut together, &requests[..2]);
    assert_eq!(stopped, [vec![answers[0][0][..end].to_owned()], answers[1].clone()]);
    let mut done = 0;
    let once = |_, _| {
        done += 1;
        ControlFlow::Break(())
    };
    together.generate(&requests, &mut { once }).unwrap();
    assert_eq!(done, 1);
}

/// What prompts share is computed once; the scores are those of each prompt alone.
#[test]
fn shared_beginnings_do_not_change_scores() {
    let place = Place::new();
    let model = fresh_models(&place);
    let request = |model: &EngineModel, start: &str, number: usize| ScoreRequest {
        prefix: model.encode(&format!("{start} question {number}: what?"), true).unwrap(),
        continuations: [" yes", " no", " perhaps so"]
            .map(|option| model.encode(option, false).unwrap())
            .to_vec(),
    };
    let mut together = model();
    let header = "Here are a few examples of questions and their answers.";
    let requests: Vec<ScoreRequest> =
        (0..12).map(|i| request(&together, if i % 5 == 4 { "Other" } else { header }, i)).collect();
    let scores = together.score(&requests).unwrap();
    for (request, scores) in requests.iter().zip(scores) {
        for (continuation, score) in request.continuations.iter().zip(scores) {
            let one = ScoreRequest {
                prefix: request.prefix.clone(),
                continuations: vec![continuation.clone()],
            };
            let alone = model().score(&[one]).unwrap()[0][0];
            assert!((score.loss_sum - alone.loss_sum).abs() < 1e-4, "{score:?} {alone:?}");
            assert_eq!(score.supervised_tokens, alone.supervised_tokens);
        }
    }
}
