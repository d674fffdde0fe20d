//! A federation on bad networks: whatever happens to packets, connections and devices on the way,
//! it ends with the same adapter, to the bit, as one that nothing happened to.
#![cfg(target_os = "linux")]

mod support;

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fleetune_core::client::{ParticipantError, Progress};
use fleetune_core::model::CancelToken;
use fleetune_core::protocol::{CommitStatus, ErrorCode, JoinCode};
use support::participant::Device;
use support::relay::{Faults, Relay};
use support::server::{NAME, Place, Running, copy, twin};

/// Devices of every federation here; a round takes all of them.
const DEVICES: u32 = 3;
/// An adapter of 1.7 MB, and updates of half of that, in several chunks each.
const LARGE: &str = "lora_targets = [\"q_proj\", \"k_proj\", \"v_proj\", \"o_proj\", \"gate_proj\", \
                     \"up_proj\", \"down_proj\"]\nrounds = 2";
/// Longest time that anything here takes.
const PATIENCE: Duration = Duration::from_secs(240);

/// A place whose devices have joined, kept for all tests, and the adapter that its federation ends
/// with when nothing happens.
struct Original {
    place: Place,
    code: JoinCode,
    adapter: Vec<u8>,
}

fn original() -> &'static Original {
    static ORIGINAL: OnceLock<Original> = OnceLock::new();
    ORIGINAL.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("faults");
        // What an earlier run left.
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        let place = new_place(&folder);
        let server = place.serve(None, None);
        let code = at(&place.invite(DEVICES as usize), server.address);
        for number in 0..DEVICES {
            let device = Device::new(&folder, number);
            let stop = CancelToken::default();
            let joined = device.run(&model(&place), &code, Some(0), &stop, &mut |_| go_on());
            joined.unwrap();
        }
        server.stop();
        let mut original = Original { place, code, adapter: Vec::new() };
        let undisturbed = tempfile::tempdir().unwrap();
        let place = twin(&original.place, undisturbed.path());
        let server = place.serve(None, None);
        let code = at(&original.code, server.address);
        all_devices(&place, &code, |_, _| go_on());
        server.stop();
        original.adapter = place.adapter();
        original
    })
}

fn new_place(folder: &Path) -> Place {
    let place = Place::new(folder, LARGE, "");
    let path = folder.join("serve.toml");
    let config = std::fs::read_to_string(&path).unwrap();
    std::fs::write(path, config.replace("lora_rank = 4", "lora_rank = 192")).unwrap();
    place
}

fn model(place: &Place) -> PathBuf {
    place.folder.join("model")
}

fn go_on() -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// The join code with the server at this address.
fn at(code: &JoinCode, address: SocketAddr) -> JoinCode {
    JoinCode { addresses: vec![address.to_string()], ..code.clone() }
}

/// A device's life until the federation is done: where `watch` breaks off, the device is killed and
/// started again. A test that fails in one device ends all of them.
fn live(
    place: &Place,
    code: &JoinCode,
    number: u32,
    over: &CancelToken,
    watch: &dyn Fn(&Progress<'_>) -> ControlFlow<()>,
) {
    let (device, started) = (Device::new(&place.folder, number), Instant::now());
    let _ends_all = CancelOnPanic(over.clone());
    loop {
        let lived = device.run(&model(place), code, None, over, &mut |progress| {
            assert!(started.elapsed() < PATIENCE, "device {number}: {progress:?}");
            watch(progress)
        });
        match lived {
            Ok(_) => return,
            Err(ParticipantError::Stopped) if over.is_cancelled() => return,
            Err(ParticipantError::Stopped) => {}
            Err(error) => panic!("device {number}: {error}\n{}", place.log()),
        }
    }
}

struct CancelOnPanic(CancelToken);

impl Drop for CancelOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.cancel();
        }
    }
}

/// All devices' lives at once.
fn all_devices(
    place: &Place,
    code: &JoinCode,
    watch: impl Fn(u32, &Progress<'_>) -> ControlFlow<()> + Sync,
) {
    let over = CancelToken::default();
    thread::scope(|scope| {
        for number in 0..DEVICES {
            let (watch, over) = (&watch, &over);
            scope.spawn(move || {
                live(place, code, number, over, &|progress| watch(number, progress));
            });
        }
    });
}

/// A copy of the original behind a bad network.
struct Disturbed {
    _folder: tempfile::TempDir,
    place: Place,
    server: Running,
    relay: Relay,
    code: JoinCode,
}

impl Disturbed {
    fn new(faults: Faults, seed: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = twin(&original().place, folder.path());
        let server = place.serve(None, None);
        let relay = Relay::start(server.address, faults, seed);
        let code = at(&original().code, relay.address());
        Self { _folder: folder, place, server, relay, code }
    }

    /// Checks that nothing was lost and nothing counted twice.
    fn ends_as_the_original(self) {
        let rounds = self.place.admin(&["rounds", NAME]).json();
        for round in 1..=2 {
            assert_eq!(rounds[round]["summary"]["updates"], DEVICES, "{}", self.place.log());
        }
        self.server.stop();
        assert!(
            self.place.adapter() == original().adapter,
            "another adapter: {}",
            self.place.log()
        );
    }
}

/// True once, whoever asks.
#[derive(Default)]
struct Once(AtomicU32);

impl Once {
    fn first(&self) -> bool {
        self.0.fetch_add(1, Ordering::SeqCst) == 0
    }
}

#[test]
fn packets_lost_late_twice_damaged_and_cut_change_nothing() {
    for seed in [1, 2] {
        let run = Disturbed::new(Faults::ALL, seed);
        all_devices(&run.place, &run.code, |_, _| go_on());
        assert!(run.relay.passed() > 1000, "seed {seed}");
        run.ends_as_the_original();
    }
}

#[test]
fn a_tenth_of_the_packets_lost_at_fifty_milliseconds_fails_no_upload() {
    let delay = Duration::from_millis(50);
    let run = Disturbed::new(Faults { loss: 0.1, delay, ..Faults::default() }, 3);
    all_devices(&run.place, &run.code, |_, progress| match progress {
        Progress::Trouble(problem) => panic!("{problem}"),
        _ => go_on(),
    });
    run.ends_as_the_original();
}

#[test]
fn a_transfer_goes_on_from_a_new_address() {
    let run = Disturbed::new(Faults { delay: Duration::from_millis(2), ..Faults::default() }, 4);
    all_devices(&run.place, &run.code, |_, progress| {
        if matches!(progress, Progress::Sent { .. } | Progress::Fetching { .. }) {
            run.relay.rebind();
        }
        match progress {
            Progress::Trouble(problem) => panic!("the connection did not move: {problem}"),
            _ => go_on(),
        }
    });
    run.ends_as_the_original();
}

#[test]
fn a_device_killed_in_the_middle_of_its_upload_sends_the_rest() {
    let run = Disturbed::new(Faults::default(), 5);
    let (killed, sent, chunks) = (Once::default(), AtomicU32::new(0), AtomicU32::new(0));
    all_devices(&run.place, &run.code, |number, progress| match progress {
        Progress::Sent { chunks: all, .. } if number == 0 => {
            sent.fetch_add(1, Ordering::SeqCst);
            chunks.store(*all, Ordering::SeqCst);
            if killed.first() { ControlFlow::Break(()) } else { go_on() }
        }
        _ => go_on(),
    });
    // Two rounds: had it begun anew after the kill, a chunk would have been counted twice.
    assert!(chunks.load(Ordering::SeqCst) >= 3);
    assert!(sent.load(Ordering::SeqCst) <= 2 * chunks.load(Ordering::SeqCst));
    run.ends_as_the_original();
}

#[test]
fn devices_killed_wherever_they_are_end_with_the_same_adapter() {
    let run = Disturbed::new(Faults::default(), 6);
    let moments = AtomicU32::new(0);
    all_devices(&run.place, &run.code, |_, progress| {
        // Waiting is no moment: a device would never get beyond.
        if matches!(progress, Progress::Idle(_)) {
            return go_on();
        }
        match moments.fetch_add(1, Ordering::SeqCst) {
            moment if moment < 60 && moment % 4 == 3 => ControlFlow::Break(()),
            _ => go_on(),
        }
    });
    assert!(moments.load(Ordering::SeqCst) > 60);
    run.ends_as_the_original();
}

#[test]
fn an_acknowledgement_that_is_lost_is_had_later_without_sending_anything_again() {
    let run = Disturbed::new(Faults::default(), 7);
    let (lost, sent_after) = (Once::default(), AtomicU32::new(0));
    let over = CancelToken::default();
    thread::scope(|scope| {
        let over = &over;
        let _ends_all = CancelOnPanic(over.clone());
        for number in 1..DEVICES {
            let run = &run;
            scope.spawn(move || live(&run.place, &run.code, number, over, &|_| go_on()));
        }
        let device = Device::new(&run.place.folder, 0);
        let stop = CancelToken::default();
        let (relay, killer) = (&run.relay, stop.clone());
        let outcome = device.run(&model(&run.place), &run.code, None, &stop, &mut |progress| {
            if matches!(progress, Progress::Committing) && lost.first() {
                // The update is handed in; nothing comes back; the app is killed.
                relay.cut_answers(true);
                let killer = killer.clone();
                scope.spawn(move || {
                    thread::sleep(Duration::from_millis(1500));
                    killer.cancel();
                });
            }
            go_on()
        });
        assert!(matches!(outcome, Err(ParticipantError::Stopped)), "{outcome:?}");
        relay.cut_answers(false);
        let stop = CancelToken::default();
        let outcome = device.run(&model(&run.place), &run.code, Some(1), &stop, &mut |progress| {
            match progress {
                Progress::Settled(key, status) => {
                    assert_eq!((key.round, *status), (1, &CommitStatus::Accepted));
                }
                Progress::Sent { .. } => drop(sent_after.fetch_add(1, Ordering::SeqCst)),
                _ => {}
            }
            go_on()
        });
        outcome.unwrap();
        assert_eq!(sent_after.load(Ordering::SeqCst), 0);
        live(&run.place, &run.code, 0, over, &|_| go_on());
    });
    run.ends_as_the_original();
}

#[test]
fn a_line_that_is_cut_until_the_connection_is_dead_is_found_again() {
    let run = Disturbed::new(Faults::default(), 8);
    let (cut, troubles) = (Once::default(), AtomicU32::new(0));
    thread::scope(|scope| {
        all_devices(&run.place, &run.code, |_, progress| {
            if matches!(progress, Progress::Sent { .. }) && cut.first() {
                run.relay.cut(true);
                scope.spawn(|| {
                    thread::sleep(Duration::from_secs(23));
                    run.relay.cut(false);
                });
            }
            troubles
                .fetch_add(u32::from(matches!(progress, Progress::Trouble(_))), Ordering::SeqCst);
            go_on()
        });
    });
    assert!(troubles.load(Ordering::SeqCst) > 0, "the cut was not felt");
    run.ends_as_the_original();
}

#[test]
fn a_server_killed_in_the_middle_of_transfers_finds_its_devices_again() {
    let mut run = Disturbed::new(Faults::default(), 9);
    let killed = Once::default();
    let (address, (say, heard)) = (run.server.address, std::sync::mpsc::channel());
    thread::scope(|scope| {
        let (place, code, server) = (&run.place, &run.code, &mut run.server);
        scope.spawn(move || {
            heard.recv().unwrap();
            server.child.kill().unwrap();
            server.child.wait().unwrap();
            *server = place.serve(Some(address), None);
        });
        all_devices(place, code, |_, progress| {
            if matches!(progress, Progress::Sent { .. }) && killed.first() {
                say.send(()).unwrap();
            }
            go_on()
        });
    });
    run.ends_as_the_original();
}

#[test]
fn two_devices_with_one_identity_count_as_one() {
    let run = Disturbed::new(Faults::default(), 10);
    // Somebody restored a backup of the device on another one.
    let copied = run.place.folder.join("copied");
    copy(&Device::new(&run.place.folder, 0).folder, &copied);
    let double = Device { folder: copied, ..Device::new(&run.place.folder, 77) };
    let (over, started) = (CancelToken::default(), Instant::now());
    thread::scope(|scope| {
        let (run, over) = (&run, &over);
        for device in
            (0..DEVICES).map(|number| Device::new(&run.place.folder, number)).chain([double])
        {
            scope.spawn(move || {
                let _ends_all = CancelOnPanic(over.clone());
                let lived =
                    device.run(&model(&run.place), &run.code, None, over, &mut |progress| {
                        assert!(started.elapsed() < PATIENCE, "{progress:?}\n{}", run.place.log());
                        go_on()
                    });
                assert!(lived.is_ok() || over.is_cancelled(), "{lived:?}");
            });
        }
    });
    // Whichever of the two was first counts: the adapter is not the original's.
    let rounds = run.place.admin(&["rounds", NAME]).json();
    assert_eq!(rounds[1]["summary"]["updates"], DEVICES);
    assert_eq!(rounds[2]["summary"]["updates"], DEVICES);
}

#[test]
fn a_revoked_device_ends_in_the_middle_of_its_round() {
    let run = Disturbed::new(Faults::default(), 11);
    let device = Device { training: Duration::from_secs(2), ..Device::new(&run.place.folder, 0) };
    thread::scope(|scope| {
        // A round begins when all of them are there; the others are never done.
        let others = CancelToken::default();
        for number in 1..DEVICES {
            let (run, stop) = (&run, others.clone());
            let device = Device::new(&run.place.folder, number);
            scope.spawn(move || {
                let _ = device.run(&model(&run.place), &run.code, None, &stop, &mut |_| go_on());
            });
        }
        let (stop, revoked) = (CancelToken::default(), Once::default());
        let id = device.run(&model(&run.place), &run.code, Some(0), &stop, &mut |_| go_on());
        let id = id.unwrap().to_string();
        let outcome = device.run(&model(&run.place), &run.code, None, &stop, &mut |progress| {
            if matches!(progress, Progress::Assigned(_)) && revoked.first() {
                assert_eq!(run.place.admin(&["revoke", &id]).code, Some(0));
            }
            go_on()
        });
        others.cancel();
        let Err(ParticipantError::Refused(refusal)) = outcome else { panic!("{outcome:?}") };
        assert_eq!(refusal.code, ErrorCode::Revoked);
    });
}
