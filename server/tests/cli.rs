//! The command line as a user meets it: exit codes, words, streams.

mod support;

use std::fs;
use std::process::Stdio;

use support::{Ended, fleetune, run};

#[test]
fn help_goes_to_stdout_and_is_no_failure() {
    let folder = tempfile::tempdir().unwrap();
    let output = run(folder.path(), &["model", "list", "--help"]);
    assert_eq!((output.code, output.err.as_str()), (Some(0), ""));
    assert!(output.out.contains("Example:\n  fleetune model list"));
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
        assert_eq!((output.code, output.out.as_str()), (Some(2), ""), "{args:?}");
        assert!(!output.err.is_empty(), "{args:?}");
    }
}

#[test]
fn settings_in_the_environment_that_make_no_sense_are_named() {
    let folder = tempfile::tempdir().unwrap();
    for (variable, value, words) in [
        ("FLEETUNE_LOG", "a=b=c", "error: FLEETUNE_LOG=a=b=c is no log filter"),
        ("FLEETUNE_KERNELS", "abacus", "error: "),
    ] {
        let mut command = fleetune(folder.path());
        let output = command.env(variable, value).args(["model", "list"]).output().unwrap();
        let ended = Ended::of(output);
        assert!(ended.error(2).starts_with(words), "{}", ended.err);
        assert!(ended.err.contains(value), "{}", ended.err);
    }
}

#[test]
fn json_output_is_one_value_on_stdout_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let empty = run(folder.path(), &["model", "list", "--json"]);
    assert_eq!((empty.out.as_str(), empty.err.as_str()), ("[]\n", ""));
    let model = folder.path().join("models/tiny/model.gguf");
    fs::create_dir_all(model.parent().unwrap()).unwrap();
    fs::write(&model, [0; 10]).unwrap();
    let models = run(folder.path(), &["--json", "model", "list"]).json();
    assert_eq!(models[0]["name"], "tiny");
    assert_eq!(models[0]["bytes"], 10);
}

#[test]
fn a_failure_is_one_sentence_and_exits_with_one() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("models"), "a file where a folder belongs").unwrap();
    let inside = folder.path().join("models");
    let output = run(&inside, &["model", "list"]);
    assert_eq!(output.code, Some(0), "a cache that does not exist is empty");

    let broken = tempfile::tempdir().unwrap();
    fs::create_dir(broken.path().join("models")).unwrap();
    std::os::unix::fs::symlink("/no/such/place", broken.path().join("models/gone")).unwrap();
    let output = run(broken.path(), &["model", "list"]);
    assert!(output.error(1).starts_with("error: cannot read the cache folder"), "{}", output.err);
    assert_eq!(output.err.lines().count(), 1, "{}", output.err);
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
    let ended = Ended::of(child.wait_with_output().unwrap());
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""));
}
