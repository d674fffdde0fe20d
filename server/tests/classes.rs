//! Devices of several ranks, and adapters that come down as differences: the real program and the real
//! client over QUIC, with a training that is a fixed nudge.
#![cfg(target_os = "linux")]

mod support;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use fleetune_core::adapter::ParameterSet;
use fleetune_core::client::{Instructions, ParticipantError, Progress};
use fleetune_core::model::CancelToken;
use fleetune_core::protocol::CommitStatus;
use fleetune_core::update::Codec;
use support::participant::Device;
use support::server::{NAME, Place, Running, nudged, twin};

/// A tenth of the values, each in half a byte: a difference is much shorter than an adapter.
const LOSSY: &str = "codec_down = \"top-k:0.1+int4\"";
/// Longest time that anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a device saw of one round.
#[derive(Debug, Default)]
struct Seen {
    rank: usize,
    /// Bytes of the blobs that it fetched.
    fetched: Vec<u64>,
    /// Bytes of the whole adapter.
    whole: u64,
    accepted: bool,
}

/// Lets a device take part in `rounds` rounds, or to the end, and tells what it saw of each.
fn live(
    place: &Place,
    device: &Device,
    rounds: Option<u32>,
) -> Result<BTreeMap<u32, Seen>, ParticipantError> {
    live_until(place, device, rounds, |_, _| false)
}

/// The same until `kill` says, of a round and what happens in it, that the device is killed.
fn live_until(
    place: &Place,
    device: &Device,
    rounds: Option<u32>,
    kill: impl Fn(u32, &Progress<'_>) -> bool,
) -> Result<BTreeMap<u32, Seen>, ParticipantError> {
    let (mut seen, mut round) = (BTreeMap::<u32, Seen>::new(), 0);
    let (code, stop, started) = (place.invite(1), CancelToken::default(), Instant::now());
    device.run(&model(place), &code, rounds, &stop, &mut |progress| {
        match progress {
            Progress::Assigned(work) => {
                round = work.round;
                let plan = Instructions::from_json(&work.instructions).unwrap().plan;
                let known = seen.entry(round).or_default();
                (known.rank, known.whole) = (plan.lora.rank, work.adapter.size);
            }
            Progress::Fetching { done, size } if done == size => {
                seen.entry(round).or_default().fetched.push(*size);
            }
            Progress::Settled(key, status) => {
                assert_eq!(**status, CommitStatus::Accepted, "round {}", key.round);
                seen.entry(key.round).or_default().accepted = true;
            }
            _ => {}
        }
        match kill(round, progress) || started.elapsed() > PATIENCE {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    })?;
    Ok(seen)
}

fn model(place: &Place) -> PathBuf {
    place.folder.join("model")
}

/// Lets all devices take part to the end beside a server that is started again when it ends. What each
/// saw, and how often the server was started.
fn all(
    place: &Place,
    devices: &[Device],
    crash_at: Option<&str>,
) -> (Vec<BTreeMap<u32, Seen>>, usize) {
    let mut running = place.serve(None, crash_at);
    let (address, mut starts) = (running.address, 1);
    let seen = thread::scope(|scope| {
        let lives = devices.iter().map(|device| {
            let device = Device {
                folder: place.folder.join(device.folder.file_name().unwrap()),
                ..device.clone()
            };
            scope.spawn(move || live(place, &device, None).unwrap())
        });
        let lives: Vec<_> = lives.collect();
        while !lives.iter().all(|life| life.is_finished()) {
            if running.child.try_wait().unwrap().is_some() {
                running = place.serve(Some(address), None);
                starts += 1;
            }
            thread::sleep(Duration::from_millis(20));
        }
        lives.into_iter().map(|life| life.join().unwrap()).collect()
    });
    running.stop();
    (seen, starts)
}

/// A federation of one update a round, so that a test says who takes part in which.
fn one_at_a_time(folder: &std::path::Path, training: &str) -> (Place, Running) {
    let place = Place::new(folder, &format!("rounds = 20\n{training}"), "").with_sample(1);
    let running = place.serve(None, None);
    (place, running)
}

#[test]
fn devices_of_several_ranks_share_an_adapter_however_often_the_server_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let original = folder.path().join("original");
    std::fs::create_dir(&original).unwrap();
    let training = format!("rounds = 3\nranks = [2, 4]\ncombine = \"product\"\n{LOSSY}");
    let place = Place::new(&original, &training, "");
    let ranks = [1, 3, 256];
    let devices: Vec<Device> = (0..)
        .zip(ranks)
        .map(|(number, max_rank)| Device { max_rank, ..Device::new(&original, number) })
        .collect();
    // One that cannot even train the smallest rank is not asked to.
    let (able, trained) = (&devices[1..], [2, 4]);
    let place = place.with_sample(able.len());
    let running = place.serve(None, None);
    for device in able {
        live(&place, device, Some(0)).unwrap();
    }
    running.stop();

    let undisturbed = twin(&place, &folder.path().join("undisturbed"));
    let (seen, starts) = all(&undisturbed, able, None);
    assert_eq!(starts, 1);
    for (seen, rank) in seen.iter().zip(trained) {
        assert_eq!(seen.len(), 3);
        assert!(seen.values().all(|round| round.rank == rank && round.accepted), "{seen:?}");
        // Only the first is whole, and after the last one what the federation ended with.
        let fetched = |round: u32| &seen[&round].fetched[..];
        assert_eq!(fetched(1), [seen[&1].whole]);
        assert_eq!((fetched(2).len(), fetched(3).len()), (1, 2), "{seen:?}");
        assert!(fetched(2)[0] * 3 < seen[&2].whole, "{seen:?}");
        assert!(fetched(3)[0] * 3 < seen[&3].whole, "{seen:?}");
    }
    let points = [
        "after-update-kept:2",
        "during-aggregate:3",
        "after-state-written:1",
        "after-round-closed",
    ];
    for point in points {
        let killed = twin(&place, &folder.path().join(point));
        let (_, starts) = all(&killed, able, Some(point));
        assert!(starts > 1, "{point} was never reached");
        assert!(killed.adapter() == undisturbed.adapter(), "{point}: {}", killed.log());
    }
    let rounds = undisturbed.admin(&["rounds", NAME]).json();
    assert_eq!(rounds[3]["summary"]["updates"], 2);

    let refused = place.serve(None, None);
    let mut reason = None;
    let (code, stop) = (place.invite(1), CancelToken::default());
    let ended = devices[0].run(&model(&place), &code, None, &stop, &mut |progress| {
        if let Progress::Idle(Some(said)) = progress {
            reason = Some((*said).to_owned());
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    });
    assert!(matches!(ended, Err(ParticipantError::Stopped)), "{ended:?}");
    assert!(reason.as_ref().unwrap().contains("rank 1, 2 is needed"), "{reason:?}");
    refused.stop();
}

#[test]
fn a_device_gets_the_differences_that_it_missed_or_the_whole_where_they_do_not_lead_on() {
    let folder = tempfile::tempdir().unwrap();
    let (place, running) = one_at_a_time(folder.path(), LOSSY);
    let (first, second) = (Device::new(folder.path(), 1), Device::new(folder.path(), 2));
    let round = |device: &Device| live(&place, device, Some(1)).unwrap().pop_last().unwrap();

    let (number, seen) = round(&first);
    assert_eq!((number, &seen.fetched[..]), (1, &[seen.whole][..]));
    let (number, seen) = round(&second);
    assert_eq!((number, &seen.fetched[..]), (2, &[seen.whole][..]), "it holds none");
    round(&second);
    let (number, seen) = round(&first);
    assert_eq!((number, seen.fetched.len()), (4, 3), "{seen:?}");
    assert!(seen.fetched.iter().sum::<u64>() * 2 < seen.whole, "{seen:?}");

    // The operator goes back: what the device holds never happened.
    round(&first);
    assert_eq!(place.admin(&["pause", NAME]).code, Some(0));
    assert_eq!(place.admin(&["rollback", NAME, "--round", "2"]).code, Some(0));
    assert_eq!(place.admin(&["resume", NAME]).code, Some(0));
    wait_for(|| place.admin(&["status"]).json()[0]["round"] == 3);
    let (number, seen) = round(&first);
    assert_eq!((number, &seen.fetched[..]), (3, &[seen.whole][..]));

    // Its disk damages what it holds.
    let version = || {
        let entries = std::fs::read_dir(first.folder.join("memory")).unwrap();
        let mut paths = entries.map(|entry| entry.unwrap().path());
        paths.find(|path| path.extension().is_some_and(|kind| kind == "version")).unwrap()
    };
    let mut bytes = std::fs::read(version()).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(version(), bytes).unwrap();
    let (number, seen) = round(&first);
    assert_eq!((number, seen.fetched.last()), (4, Some(&seen.whole)), "{seen:?}");
    assert!(seen.accepted);
    running.stop();
}

#[test]
fn a_device_killed_on_its_way_from_version_to_version_sends_the_same_update() {
    let folder = tempfile::tempdir().unwrap();
    let original = folder.path().join("original");
    std::fs::create_dir(&original).unwrap();
    let place = Place::new(&original, &format!("rounds = 3\n{LOSSY}"), "").with_sample(1);
    let running = place.serve(None, None);
    live(&place, &Device::new(&original, 1), Some(0)).unwrap();
    running.stop();
    let moments: [fn(&Progress<'_>) -> bool; 4] = [
        |progress| matches!(progress, Progress::Assigned(_)),
        |progress| matches!(progress, Progress::Fetching { .. }),
        |progress| matches!(progress, Progress::Trained(_)),
        |progress| matches!(progress, Progress::Committing),
    ];
    let end = |name: &str, kill: &dyn Fn(&Place, &Device)| {
        let place = twin(&place, &folder.path().join(name));
        let (running, device) = (place.serve(None, None), Device::new(&place.folder, 1));
        kill(&place, &device);
        live(&place, &device, None).unwrap();
        running.stop();
        place.adapter()
    };
    let killed_at = |place: &Place, device: &Device, moment: fn(&Progress<'_>) -> bool| {
        let ended =
            live_until(place, device, None, |round, progress| round == 2 && moment(progress));
        assert!(matches!(ended, Err(ParticipantError::Stopped)), "{ended:?}");
    };
    let undisturbed = end("undisturbed", &|_, _| ());
    // Each change counts added to what the server has, not to the version that came down, which lacks
    // what the codec left out.
    let mut expected = ParameterSet::from_safetensors(&place.adapter()).unwrap();
    (1..=3).for_each(|round| expected = nudged(&expected, 1, round));
    let ended = ParameterSet::from_safetensors(&undisturbed).unwrap();
    let difference = ended.difference(&expected).unwrap();
    let largest =
        difference.iter().flat_map(|entry| &entry.values).fold(0.0, |m: f32, v| m.max(v.abs()));
    // f16 rounds changes of up to 0.0005 three times.
    assert!(largest < 2e-6, "{largest}");
    for (i, moment) in moments.into_iter().enumerate() {
        let adapter = end(&i.to_string(), &|place, device| killed_at(place, device, moment));
        assert!(adapter == undisturbed, "moment {i}");
    }
    // Killed when it has kept the version and not yet the update: nothing leads on from there.
    let adapter = end("between", &|place, device| {
        killed_at(place, device, moments[2]);
        std::fs::remove_file(device.folder.join("outbox/offer.json")).unwrap();
    });
    assert!(adapter == undisturbed);
}

#[test]
fn a_device_that_does_not_know_the_codec_gets_the_whole_every_time() {
    let folder = tempfile::tempdir().unwrap();
    let (place, running) = one_at_a_time(folder.path(), LOSSY);
    let codecs = vec![Codec::F16.id()];
    let device = Device { codecs, ..Device::new(folder.path(), 1) };
    for expected in 1..=3 {
        let (round, seen) = live(&place, &device, Some(1)).unwrap().pop_last().unwrap();
        assert_eq!((round, &seen.fetched[..]), (expected, &[seen.whole][..]));
    }
    running.stop();
}

fn wait_for(condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE);
        thread::sleep(Duration::from_millis(20));
    }
}
