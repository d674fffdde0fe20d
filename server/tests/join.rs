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
use support::participant::Device;
use support::server::{Place, twin};
use support::{Ended, fleetune};

/// A place for two devices with rows of their own.
fn place(folder: &Path) -> Place {
    let place = Place::new(folder, "steps = 3\nbatch_size = 2", "").with_sample(2);
    let path = folder.join("serve.toml");
    let config = std::fs::read_to_string(&path).unwrap();
    // The stand-in's tokens are bytes.
    std::fs::write(path, config.replace("seq_len = 64", "seq_len = 512")).unwrap();
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

#[test]
fn two_devices_take_a_federation_to_its_end_and_one_is_killed_on_the_way() {
    let folder = tempfile::tempdir().unwrap();
    let original = folder.path().join("original");
    std::fs::create_dir(&original).unwrap();
    let first = place(&original);
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
        place.adapter()
    });
    assert!(adapters[0] == adapters[1], "the kill changed the adapter");
}

#[test]
fn a_server_of_another_authority_gets_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let place = place(folder.path());
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
    let place = place(folder.path());
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
