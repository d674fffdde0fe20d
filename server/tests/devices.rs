//! Simulations on several devices, one process for each: the same bits as on one, and a clear end
//! whatever happens to a process. Processors stand in for cards.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use support::{Ended, computed_files, fleetune};

/// A federation of seconds on the stand-in model; six clients a round, so that both of two devices
/// have some.
const CONFIG: &str = r#"
model = "stand-in"
clients = 8
sample = 6
rounds = 3
steps = 2
batch_size = 2
seq_len = 320
lr = 5e-3
eval_every = 2
eval_rows = 8
answers = 1
answer_tokens = 3
keep_checkpoints = 0
"#;

const FEDAVG: &[&str] = &[];
const SCAFFOLD: &[&str] =
    &["--algorithm", "scaffold", "--codec", "top-k:0.2+int8", "--codec-down", "int8"];
const DPO: &[&str] = &["--task", "dpo", "--dataset", "preference", "--data", "pairs.jsonl"];

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("run.toml"), CONFIG).unwrap();
        let pairs = (0..80).map(|i| {
            format!(
                "{{\"prompt\":\"Add {i} and 1\",\"chosen\":\"{}\",\"rejected\":\"no\"}}\n",
                i + 1
            )
        });
        fs::write(folder.path().join("pairs.jsonl"), pairs.collect::<String>()).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, devices: &str, out: &str, flags: &[&str]) -> Command {
        let mut command = fleetune(&self.path("cache"));
        command
            .args(["simulate", "run.toml", "--threads", "2", "--device", devices, "--out", out])
            .args(flags)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, devices: &str, out: &str, flags: &[&str]) -> Ended {
        Ended::of(self.command(devices, out, flags).output().unwrap())
    }

    /// What a run has made: every byte that computation decides, and its records.
    fn made(&self, out: &str) -> (Vec<(PathBuf, Vec<u8>)>, Vec<Value>) {
        let files = computed_files(&self.path(out)).into_iter().collect();
        (files, timeless(&self.path(out)))
    }
}

/// The records of a run without times, and without who shared passes.
fn timeless(run: &Path) -> Vec<Value> {
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let records = metrics.lines().map(|line| {
        let mut record: Value = serde_json::from_str(line).unwrap();
        for key in ["seconds", "elapsed_seconds", "clients_per_pass"] {
            record.as_object_mut().unwrap().remove(key);
        }
        record
    });
    records.collect()
}

#[test]
fn two_processes_end_with_the_bits_of_one() {
    for (name, flags) in [("fedavg", FEDAVG), ("scaffold", SCAFFOLD), ("dpo", DPO)] {
        let place = Place::new();
        let one = place.run("cpu", "one", flags);
        assert_eq!(one.code, Some(0), "{name}: {}", one.err);
        for (out, devices) in [("two", "cpu,cpu"), ("three", "cpu,cpu,cpu")] {
            let several = place.run(devices, out, flags);
            assert_eq!(several.code, Some(0), "{name}, {devices}: {}", several.err);
            let (one, several) = (place.made("one"), place.made(out));
            assert!(one.0 == several.0, "{name}, {devices}: other bytes");
            assert_eq!(one.1, several.1, "{name}, {devices}");
        }
    }
}

#[test]
fn algorithms_that_are_compared_use_the_same_processes() {
    let place = Place::new();
    let flags = ["--compare", "fedavg,scaffold", "--rounds", "2"];
    for devices in ["cpu", "cpu,cpu"] {
        let ended = place.run(devices, devices, &flags);
        assert_eq!(ended.code, Some(0), "{}", ended.err);
    }
    let [one, two] = ["cpu", "cpu,cpu"].map(|out| computed_files(&place.path(out)));
    assert!(one.len() > 8 && one == two);
}

/// Wherever the first client fails, the run says which and why.
#[test]
fn a_client_that_fails_is_named() {
    let place = Place::new();
    let ended = place.run("cpu,cpu", "out", &["--lr", "1e38"]);
    let told = ended.error(1);
    assert!(told.contains("round 1, client") || told.contains("round 1: client"), "{told}");
    assert!(told.contains("training diverged"), "{told}");
}

#[test]
fn other_commands_take_one_device() {
    let place = Place::new();
    let several = ["train", "--device", "cuda:0,1", "--dataset", "demo", "--out", "never"];
    let ended = Ended::of(fleetune(&place.path("cache")).args(several).output().unwrap());
    assert!(ended.error(2).contains("only fleetune simulate"), "{}", ended.err);
    let mixed = place.run("cpu,cuda:1", "mixed", FEDAVG);
    assert_eq!(mixed.code, Some(2));
    assert!(mixed.err.contains("one kind of device"), "{}", mixed.err);
}

#[test]
fn a_worker_without_a_run_says_who_starts_it() {
    let place = Place::new();
    let mut command = fleetune(&place.path("cache"));
    let ended = Ended::of(command.arg("simulate-worker").stdin(Stdio::null()).output().unwrap());
    assert!(ended.error(2).contains("fleetune simulate --device LIST"), "{}", ended.err);
}

#[cfg(target_os = "linux")]
mod processes {
    use std::process::{Child, Command};
    use std::time::{Duration, Instant};

    use super::{DPO, Ended, FEDAVG, Place, SCAFFOLD};

    /// The processes that `parent` has started.
    fn children(parent: u32) -> Vec<u32> {
        let processes = std::fs::read_dir("/proc").unwrap();
        let numbers = processes.filter_map(|entry| {
            entry.unwrap().file_name().to_str().and_then(|name| name.parse::<u32>().ok())
        });
        numbers.filter(|&process| parent_of(process) == Some(parent)).collect()
    }

    fn parent_of(process: u32) -> Option<u32> {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        // The name before it, in parentheses, may hold anything.
        let (_, rest) = stat.rsplit_once(')')?;
        rest.split_whitespace().nth(1)?.parse().ok()
    }

    fn runs(process: u32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().next());
        !matches!(state, None | Some("Z" | "X"))
    }

    fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !done() {
            assert!(begun.elapsed() < Duration::from_secs(300), "waited in vain for {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn signal(process: u32, name: &str) {
        let sent = Command::new("kill").args([name, &process.to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Starts a run that ends too late to be waited for, and waits for its first round.
    fn endless(place: &Place, flags: &[&str]) -> (Child, u32) {
        let flags = [flags, &["--rounds", "100000", "--eval-every", "0"]].concat();
        let run = place.command("cpu,cpu", "run", &flags).spawn().unwrap();
        wait_for("the first round", || place.path("run/checkpoints/round-0001").exists());
        let workers = children(run.id());
        assert_eq!(workers.len(), 1, "one process beside the run's own");
        (run, workers[0])
    }

    /// A run of which some process is killed is resumed to its end on one device, with the bits of a
    /// run that nothing happened to.
    fn check_resuming(place: &Place, flags: &[&str]) {
        let rounds = std::fs::read_dir(place.path("run/checkpoints")).unwrap().count();
        // The first checkpoint is that of round 0.
        let rounds = (rounds + 1).to_string();
        let config = std::fs::read_to_string(place.path("run/config.toml")).unwrap();
        let config = config.replace("rounds = 100000", &format!("rounds = {rounds}"));
        std::fs::write(place.path("run/config.toml"), config).unwrap();
        let flags = [flags, &["--rounds", &rounds, "--eval-every", "0"]].concat();
        let resumed = place.run("cpu,cpu", "run", &[&flags[..], &["--resume"]].concat());
        assert_eq!(resumed.code, Some(0), "{}", resumed.err);
        let whole = place.run("cpu", "whole", &flags);
        assert_eq!(whole.code, Some(0), "{}", whole.err);
        let (resumed, whole) = (place.made("run"), place.made("whole"));
        assert!(resumed.0 == whole.0, "other bytes");
        assert_eq!(resumed.1, whole.1);
    }

    #[test]
    fn a_worker_that_is_killed_ends_the_run_which_resumes() {
        for flags in [FEDAVG, SCAFFOLD, DPO] {
            let place = Place::new();
            let (run, worker) = endless(&place, flags);
            signal(worker, "-KILL");
            let ended = Ended::of(run.wait_with_output().unwrap());
            let told = ended.error(1);
            assert!(told.contains("the process for cpu ended before its work was done"), "{told}");
            assert!(told.contains("signal: 9") && told.contains("--resume"), "{told}");
            check_resuming(&place, flags);
        }
    }

    #[test]
    fn workers_do_not_outlive_a_run_that_is_killed() {
        let place = Place::new();
        let (mut run, worker) = endless(&place, SCAFFOLD);
        run.kill().unwrap();
        run.wait().unwrap();
        wait_for("the worker's end", || !runs(worker));
        check_resuming(&place, SCAFFOLD);
    }

    #[test]
    fn ctrl_c_stops_all_processes_and_says_how_to_continue() {
        let place = Place::new();
        let (run, worker) = endless(&place, FEDAVG);
        signal(run.id(), "-INT");
        let ended = Ended::of(run.wait_with_output().unwrap());
        assert_eq!(ended.code, Some(130), "{}", ended.err);
        assert!(ended.err.contains("fleetune simulate --out run --resume"), "{}", ended.err);
        assert!(!runs(worker), "the run waits for its workers");
        check_resuming(&place, FEDAVG);
    }
}
