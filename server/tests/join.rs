//! `fleetune join` as its user meets it: the real program on both sides, training on real rows.
#![cfg(target_os = "linux")]

mod support;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use fleetune_core::client::Progress;
use fleetune_core::model::CancelToken;
use fleetune_core::protocol::JoinCode;
use fleetune_server::hub::Cache;
use support::participant::Device;
use support::server::{Place, twin};
use support::{Ended, fleetune};

/// A place for two devices with rows of their own; `training` is more TOML of that table.
fn place(folder: &Path, training: &str) -> Place {
    let training = format!("steps = 3\nbatch_size = 2\n{training}");
    let place = Place::new(folder, &training, "").with_sample(2);
    // The stand-in's tokens are bytes.
    edit_config(&place, "seq_len = 64", "seq_len = 512");
    for (device, topic) in ["rivers", "mountains"].into_iter().enumerate() {
        let rows: Vec<String> = (0..40)
            .map(|i| {
                let instruction = format!("Name fact {i} about {topic}.");
                serde_json::json!({ "instruction": instruction, "response": format!("{topic} {i}") })
                    .to_string()
            })
            .collect();
        std::fs::write(folder.join(format!("rows-{device}.jsonl")), rows.join("\n")).unwrap();
    }
    place
}

fn edit_config(place: &Place, from: &str, to: &str) {
    let path = place.folder.join("serve.toml");
    let config = std::fs::read_to_string(&path).unwrap();
    assert!(config.contains(from), "{config}");
    std::fs::write(path, config.replace(from, to)).unwrap();
}

fn state(place: &Place, device: u32) -> PathBuf {
    Device::new(&place.folder, device).folder
}

/// The command of one device; its model, rows and folder are the place's.
fn join(place: &Place, device: u32) -> Command {
    let mut command = fleetune(&place.folder.join("cache"));
    command.arg("join").arg("--state").arg(state(place, device));
    command.arg("--model").arg(place.folder.join("model"));
    command.args(["--dataset", "instruction", "--data"]);
    command.arg(place.folder.join(format!("rows-{device}.jsonl")));
    command.args(["--threads", "1", "--json", "--conditions", "charging,unmetered,idle"]);
    command
}

fn at(code: &JoinCode, address: SocketAddr) -> String {
    JoinCode { addresses: vec![address.to_string()], ..code.clone() }.to_string()
}

/// Starts a device and reads what it says until a line contains `until`.
fn start_until(command: &mut Command, until: &str) -> Child {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        let line = line.unwrap();
        if line.contains(until) {
            return child;
        }
        said += &line;
        said.push('\n');
    }
    child.wait().unwrap();
    panic!("it ended without {until:?}: {said}");
}

/// Two devices take a federation to its end, once undisturbed, once with one of them killed between
/// training and upload. The adapter they end with.
fn with_and_without_a_kill(training: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let original = folder.path().join("original");
    std::fs::create_dir(&original).unwrap();
    let first = place(&original, training);
    let server = first.serve(None, None);
    let code = first.invite(2);
    for number in 0..2 {
        let (device, stop) = (Device::new(&original, number), CancelToken::default());
        let code: JoinCode = at(&code, server.address).parse().unwrap();
        let mut watch = |_: &Progress<'_>| ControlFlow::Continue(());
        device.run(&original.join("model"), &code, Some(0), &stop, &mut watch).unwrap();
    }
    server.stop();

    let adapters = [false, true].map(|kill| {
        let place = twin(&first, &folder.path().join(kill.to_string()));
        let server = place.serve(None, None);
        let code = at(&code, server.address);
        let other = join(&place, 1).arg(&code).stdout(Stdio::piped()).spawn().unwrap();
        if kill {
            let mut killed = start_until(join(&place, 0).arg(&code), "sending");
            killed.kill().unwrap();
            killed.wait().unwrap();
        }
        // Without the code: the device knows its server by now.
        let ended = match kill {
            true => Ended::of(join(&place, 0).output().unwrap()),
            false => Ended::of(join(&place, 0).arg(&code).output().unwrap()),
        };
        assert_eq!(ended.json()["refused"], 0, "{}", ended.err);
        let other = Ended::of(other.wait_with_output().unwrap()).json();
        assert_eq!(other["accepted"], 2);
        server.stop();
        for device in 0..2 {
            let received = state(&place, device).join("adapter/adapter_model.safetensors");
            assert!(std::fs::read(received).unwrap() == place.adapter(), "what it ended with");
        }
        place.adapter()
    });
    let [undisturbed, killed] = adapters;
    assert!(undisturbed == killed, "the kill changed the adapter");
    undisturbed
}

#[test]
fn two_devices_take_a_federation_to_its_end_and_one_is_killed_on_the_way() {
    let plain = with_and_without_a_kill("");
    // SCAFFOLD's control variates travel with the adapter and outlive the device's process. In the
    // first round they are zero, in the second they bend the way.
    assert!(with_and_without_a_kill("algorithm = \"scaffold\"\nclients = 2") != plain);
}

#[test]
fn a_certificate_is_renewed_in_time_and_the_device_stays_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let place = place(folder.path(), "rounds = 2");
    edit_config(&place, "sample = 2", "sample = 1");
    let server = place.serve(None, None);
    let code = at(&place.invite(1), server.address);
    let first = Ended::of(join(&place, 0).args(["--rounds", "1"]).arg(code).output().unwrap());
    assert_eq!(first.json()["accepted"], 1, "{}", first.err);
    let path = state(&place, 0).join("identity.json");
    let identity =
        || -> serde_json::Value { serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap() };
    let mut old = identity();
    old["renew_after"] = 1.into();
    std::fs::write(&path, old.to_string()).unwrap();
    let second = Ended::of(join(&place, 0).output().unwrap());
    assert_eq!(second.json()["accepted"], 1, "{}", second.err);
    let new = identity();
    assert!(new["renew_after"].as_u64().unwrap() > 1 && new["certificate"] != old["certificate"]);
    assert_eq!(new["device"], old["device"]);
    assert_eq!(place.admin(&["devices"]).json().as_array().unwrap().len(), 1);
    server.stop();
}

#[test]
fn a_device_without_the_base_model_fetches_what_it_lacks_of_it() {
    let model = Cache::of_user().unwrap().models().join("smollm2-135m-instruct");
    if !model.is_dir() {
        println!(
            "skipped: the built-in model is not in the cache (`fleetune model pull` brings it)"
        );
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let place = place(folder.path(), "rounds = 1");
    edit_config(&place, "steps = 3", "steps = 1");
    edit_config(&place, "sample = 2", "sample = 1");
    edit_config(&place, "seq_len = 512", "seq_len = 64");
    let file = model.join("SmolLM2-135M-Instruct.Q4_1.gguf");
    edit_config(&place, &format!("{:?}", place.folder.join("model")), &format!("{file:?}"));
    let server = place.serve(None, None);
    let code = at(&place.invite(1), server.address);
    let join = || {
        let mut command = fleetune(&place.folder.join("cache"));
        command.arg("join").arg("--state").arg(state(&place, 0));
        command.args(["--dataset", "instruction", "--data"]).arg(place.folder.join("rows-0.jsonl"));
        command.args(["--json", "--conditions", "charging,unmetered,idle"]);
        command
    };
    let size = file.metadata().unwrap().len();
    let models = state(&place, 0).join("models");
    let part = || -> Option<PathBuf> {
        let entries = std::fs::read_dir(&models).ok()?.map(|entry| entry.unwrap().path());
        entries.into_iter().find(|path| path.extension().is_some_and(|end| end == "part"))
    };
    let mut killed = join().arg(&code).stderr(Stdio::null()).spawn().unwrap();
    while part().is_none() {
        assert!(killed.try_wait().unwrap().is_none(), "it ended: {}", place.log());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(part().is_some(), "it was killed too late to say anything");
    let ended = Ended::of(join().output().unwrap());
    assert_eq!(ended.json()["accepted"], 1, "{}", ended.err);
    let fetched: Vec<_> = std::fs::read_dir(&models).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(fetched.len(), 1, "{fetched:?}");
    assert_eq!(fetched[0].metadata().unwrap().len(), size);
    server.stop();
}

#[test]
fn a_server_of_another_authority_gets_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let place = place(folder.path(), "");
    let server = place.serve(None, None);
    let mut code = place.invite(1);
    code.authority[0] ^= 1;
    let mut command = join(&place, 0);
    let mut device = start_until(command.arg(at(&code, server.address)), "UnknownIssuer");
    device.kill().unwrap();
    device.wait().unwrap();
    assert!(!state(&place, 0).join("identity.json").exists());
    let invites = place.admin(&["devices"]);
    assert_eq!(invites.json().as_array().map(Vec::len), Some(0), "{}", invites.out);
    server.stop();
}

#[test]
fn what_the_user_has_to_do_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let place = place(folder.path(), "");
    let without_code = Ended::of(join(&place, 0).output().unwrap());
    assert!(without_code.error(2).contains("give the join code"), "{}", without_code.err);

    let server = place.serve(None, None);
    let code = at(&place.invite(1), server.address);
    let typo = format!("{}x", &code[..code.len() - 1]);
    let damaged = Ended::of(join(&place, 0).arg(&typo).output().unwrap());
    assert_eq!(damaged.code, Some(2));
    assert!(damaged.err.contains("damaged"), "{}", damaged.err);

    let mut waiting = start_until(join(&place, 0).arg(&code), "waiting");
    let second = Ended::of(join(&place, 0).output().unwrap());
    assert!(second.error(1).contains("another process uses"), "{}", second.err);
    waiting.kill().unwrap();
    waiting.wait().unwrap();

    // The invitation was good for one device.
    let third = Ended::of(join(&place, 1).arg(&code).output().unwrap());
    assert!(third.error(1).contains("refused"), "{}", third.err);

    let mut leave = fleetune(&place.folder.join("cache"));
    leave.args(["join", "--leave", "--state"]).arg(state(&place, 0));
    let left = Ended::of(leave.output().unwrap());
    assert_eq!(left.code, Some(0), "{}", left.err);
    let again = Ended::of(join(&place, 0).output().unwrap());
    assert!(again.error(1).contains("revoked"), "{}", again.err);
    server.stop();
}
