//! Suites of questions that a live server asks its shared adapter beside the rounds.
#![cfg(target_os = "linux")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fleetune_server::load::LoadDevice;
use serde_json::{Value, json};
use support::hub::{Hub, Reply};
use support::run;
use support::server::{NAME, Place, Running};

/// A server of two rounds of one update that asks `evaluation`'s suites after each; with their data.
fn place(folder: &Path, evaluation: &str) -> Place {
    let write = |set: &str, rows: &[Value]| {
        let path = folder.join("data").join(format!("{set}.jsonl"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
    };
    let labels = ["positive", "negative", "neutral"];
    let sentence = |i: usize| json!({"sentence": format!("Item {i} ."), "label": labels[i % 3]});
    write("fpb/sentences_50agree", &(0..6).map(sentence).collect::<Vec<_>>());
    write("advbench/harmful_behaviors", &[json!({"goal": "Do harm"}), json!({"goal": "Do more"})]);
    let training = format!("data_dir = {:?}\nrounds = 2\neval_every = 1", folder.join("data"));
    let place = Place::new(folder, &training, "").with_sample(1);
    let config = folder.join("serve.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(config, format!("{text}[federation.evaluation]\n{evaluation}\n")).unwrap();
    place
}

/// Takes part until the federation is done.
async fn all_rounds(place: &Place) -> Running {
    let identities = place.enrol(1).await;
    let running = place.serve(None, None);
    let device: LoadDevice = place.site(running.address).connect(&identities[0]).await.unwrap();
    assert_eq!(place.take_part(&device).await.unwrap(), [1, 2]);
    running
}

/// The last suites that the operator is told of, as soon as they are of this round.
fn suites_of_round(place: &Place, round: u64) -> Vec<Value> {
    let patience = Instant::now() + Duration::from_secs(120);
    loop {
        let status = place.admin(&["status"]).json();
        let suites = status[0]["suites"].as_array().unwrap().clone();
        if suites.iter().any(|score| score["round"] == round) {
            return suites;
        }
        assert!(Instant::now() < patience, "{status}\n{}", place.log());
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn file(place: &Place, name: &str) -> PathBuf {
    place.folder.join("state/evaluation").join(NAME).join("epoch-0").join(name)
}

#[tokio::test]
async fn suites_are_asked_beside_the_rounds_and_never_twice() {
    let folder = tempfile::tempdir().unwrap();
    let place = place(folder.path(), "suites = [\"fpb\"]\nlimit = 5");
    let running = all_rounds(&place).await;
    let suites = suites_of_round(&place, 2);
    assert_eq!((&suites[0]["suite"], &suites[0]["metric"]), (&json!("fpb"), &json!("accuracy")));
    assert_eq!(suites[0]["rows"], 5);
    let accuracy = suites[0]["value"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&accuracy), "{accuracy}");
    running.stop();
    let page = fs::read_to_string(file(&place, "round-0002.html")).unwrap();
    assert!(page.contains("macro_f1"));
    let journal = file(&place, "round-0002.journal.jsonl");
    assert_eq!(fs::read_to_string(&journal).unwrap().lines().count(), 6);
    // A server that is started again has nothing left to ask.
    fs::remove_file(&journal).unwrap();
    let running = place.serve(None, None);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(suites_of_round(&place, 2), suites);
    running.stop();
    assert!(!journal.exists());
}

#[tokio::test]
async fn a_judge_that_fails_stops_no_round_and_is_asked_again_later() {
    let folder = tempfile::tempdir().unwrap();
    let well = Arc::new(AtomicBool::new(false));
    let is_well = Arc::clone(&well);
    let hub = Hub::start(move |_| match is_well.load(Ordering::Relaxed) {
        true => Reply::json(&json!({"choices": [{"message": {"content": "[[1]]"}}]})),
        false => Reply::status(401),
    });
    let judge = format!("judge_model = \"m\"\njudge_url = \"{}/v1\"", hub.url);
    let place = place(folder.path(), &format!("suites = [\"advbench\"]\n{judge}"));
    let running = all_rounds(&place).await;
    let patience = Instant::now() + Duration::from_secs(120);
    while !place.log().contains("the judge at") {
        assert!(Instant::now() < patience, "{}", place.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    let status = place.admin(&["status"]).json();
    assert_eq!((&status[0]["status"], &status[0]["suites"]), (&json!("finished"), &json!([])));
    running.stop();
    well.store(true, Ordering::Relaxed);
    let running = place.serve(None, None);
    let suites = suites_of_round(&place, 2);
    running.stop();
    let value = |metric: &str| {
        suites.iter().find(|score| score["metric"] == metric).unwrap()["value"].as_f64().unwrap()
    };
    assert_eq!((value("harmless_rate"), value("judged")), (1.0, 1.0));
}

#[test]
fn what_cannot_be_asked_is_told_before_anything_is_served() {
    for (evaluation, words) in [
        (
            "suites = [\"medqa\"]",
            "serve.toml, line {data_dir}: data_dir: {folder}/data has no medqa/us_4",
        ),
        ("suites = [\"glue\"]", "there is no suite"),
        (
            "suites = [\"advbench\"]\njudge_model = \"m\"\njudge_url = \"nowhere\"",
            "serve.toml, line {judge_url}: judge_url: the judge's address cannot be used: it begins with \
             neither http:// nor https://",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let place = place(folder.path(), evaluation);
        let config = place.folder.join("serve.toml");
        let text = fs::read_to_string(&config).unwrap();
        let mut words = words.replace("{folder}", folder.path().to_str().unwrap());
        for key in ["data_dir", "judge_url"] {
            let line = text.lines().position(|line| line.starts_with(key)).map_or(0, |i| i + 1);
            words = words.replace(&format!("{{{key}}}"), &line.to_string());
        }
        let ended = run(folder.path(), &["serve", config.to_str().unwrap()]);
        let error = ended.error(2);
        assert!(error.contains(&words), "{evaluation}: {error}");
        // Flags of other commands help nobody here.
        let flags = ["--data-dir", "--judge"];
        assert!(!flags.iter().any(|flag| error.contains(flag)), "{evaluation}: {error}");
    }
}
