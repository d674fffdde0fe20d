//! The command line as a user meets it: exit codes, words, streams.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn fleetune(cache: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fleetune"));
    command.env("FLEETUNE_CACHE", cache).env_remove("FLEETUNE_LOG").env_remove("RUST_BACKTRACE");
    command
}

fn run(cache: &Path, args: &[&str]) -> Output {
    fleetune(cache).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn help_goes_to_stdout_and_is_no_failure() {
    let folder = tempfile::tempdir().unwrap();
    let output = run(folder.path(), &["model", "list", "--help"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).contains("Example:\n  fleetune model list"));
    assert!(output.stderr.is_empty());
}

#[test]
fn wrong_usage_exits_with_two() {
    let folder = tempfile::tempdir().unwrap();
    for args in [
        &["no-such-command"][..],
        &["model"],
        &["model", "list", "--no-such-flag"],
        &["model", "list", "--device", "abacus"],
        &["model", "list", "--threads", "0"],
        &["model", "list", "--quiet", "--verbose"],
    ] {
        let output = run(folder.path(), args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn a_log_filter_that_is_none_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let output = fleetune(folder.path())
        .env("FLEETUNE_LOG", "a=b=c")
        .args(["model", "list"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).starts_with("error: FLEETUNE_LOG=a=b=c is no log filter"));
}

#[test]
fn json_output_is_one_value_on_stdout_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let empty = run(folder.path(), &["model", "list", "--json"]);
    assert_eq!((text(&empty.stdout), text(&empty.stderr)), ("[]\n", ""));
    let model = folder.path().join("models/tiny/model.gguf");
    fs::create_dir_all(model.parent().unwrap()).unwrap();
    fs::write(&model, [0; 10]).unwrap();
    let output = run(folder.path(), &["--json", "model", "list"]);
    let models: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(models[0]["name"], "tiny");
    assert_eq!(models[0]["bytes"], 10);
}

#[test]
fn a_failure_is_one_sentence_and_exits_with_one() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("models"), "a file where a folder belongs").unwrap();
    let inside = folder.path().join("models");
    let output = run(&inside, &["model", "list"]);
    assert_eq!(output.status.code(), Some(0), "a cache that does not exist is empty");

    let broken = tempfile::tempdir().unwrap();
    fs::create_dir(broken.path().join("models")).unwrap();
    std::os::unix::fs::symlink("/no/such/place", broken.path().join("models/gone")).unwrap();
    let output = run(broken.path(), &["model", "list"]);
    assert_eq!(output.status.code(), Some(1));
    let words = text(&output.stderr);
    assert!(words.starts_with("error: cannot read the cache folder"), "{words}");
    assert_eq!(words.lines().count(), 1, "{words}");
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = fleetune(folder.path())
        .args(["model", "list"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Usually closed before the program writes; either way it must end well and silently.
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stderr), "");
}
