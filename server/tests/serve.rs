//! The server as a device sees it: the real program, QUIC and TLS, devices that train nothing.
#![cfg(target_os = "linux")]

mod support;

use std::time::Duration;

use fleetune_core::adapter::{Parameter, ParameterSet};
use fleetune_core::client::Upload;
use fleetune_core::protocol::{
    Assignment, BlobId, CommitStatus, ErrorCode, Request, Response, RoundAssignment, UploadOffer,
};
use fleetune_server::load::{LoadDevice, LoadError, offer};
use support::server::{Place, Running};

/// Three devices, connected.
async fn three(place: &Place) -> (Running, Vec<LoadDevice>) {
    let identities = place.enrol(3).await;
    let running = place.serve(None, None);
    let site = place.site(running.address);
    let mut devices = Vec::new();
    for identity in &identities {
        devices.push(site.connect(identity).await.unwrap());
    }
    devices.sort_by_key(|device| device.id);
    (running, devices)
}

/// The rounds in which each of the three had an update accepted, until the federation is done.
async fn all_take_part(place: &Place, devices: &[LoadDevice]) -> [Vec<u32>; 3] {
    let (a, b, c) = tokio::join!(
        place.take_part(&devices[0]),
        place.take_part(&devices[1]),
        place.take_part(&devices[2])
    );
    [a, b, c].map(Result::unwrap)
}

/// Asks until all of them have work.
async fn all_at_work(devices: &[LoadDevice]) -> Vec<RoundAssignment> {
    loop {
        let mut works = Vec::new();
        for device in devices {
            if let Assignment::Round(work) = device.check_in(None).await.unwrap() {
                works.push(*work);
            }
        }
        if works.len() == devices.len() {
            return works;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn refusal(answer: Result<Response, LoadError>) -> ErrorCode {
    match answer {
        Ok(Response::Error(refusal)) => refusal.code,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_federation_runs_to_its_end_and_leaves_a_peft_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new(folder.path(), "", "");
    let (running, devices) = three(&place).await;
    for rounds in all_take_part(&place, &devices).await {
        assert_eq!(rounds, [1, 2]);
    }
    let status = place.admin(&["status"]).json();
    assert_eq!(status[0]["status"], "finished");
    assert!(place.adapter().len() > 1000);
    let rounds = place.admin(&["rounds", "notes"]).json();
    assert_eq!(rounds[2]["summary"]["updates"], 3);
    running.stop();
}

#[cfg(target_env = "gnu")]
#[test]
fn a_server_limits_the_heaps_that_its_threads_scatter_memory_over() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new(folder.path(), "", "");
    let running = place.serve(None, None);
    // The process that was started is the one that serves: whoever supervises it keeps its number.
    let environment = std::fs::read(format!("/proc/{}/environ", running.child.id())).unwrap();
    let heaps = environment.split(|&byte| byte == 0).filter_map(|variable| {
        std::str::from_utf8(variable).ok()?.strip_prefix("MALLOC_ARENA_MAX=")?.parse().ok()
    });
    let heaps: Vec<usize> = heaps.collect();
    let cores = std::thread::available_parallelism().unwrap().get();
    assert_eq!(heaps, [cores.max(2)]);
    running.stop();
}

#[test]
fn the_operator_is_told_that_a_folder_handed_out_lets_nobody_train() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new(folder.path(), "", "");
    place.serve(None, None).stop();
    assert!(place.log().contains("federation notes: devices that fetch"), "{}", place.log());
}

#[tokio::test]
async fn who_was_not_invited_does_not_get_in() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new(folder.path(), "", "");
    let running = place.serve(None, None);
    let (code, site) = (place.invite(1), place.site(running.address));
    let refused = |outcome: Result<_, LoadError>| match outcome {
        Err(LoadError::Refused(refusal)) => refusal.code,
        other => panic!("{other:?}"),
    };
    let wrong = site.enrol(code.invite, [0; 16]).await;
    assert_eq!(refused(wrong), ErrorCode::Invite);
    let identity = site.enrol(code.invite, code.secret).await.unwrap();
    let second = site.enrol(code.invite, code.secret).await;
    assert_eq!(refused(second), ErrorCode::Invite);

    // A server of another authority is not ours to talk to, nor are its devices ours.
    let other_folder = tempfile::tempdir().unwrap();
    let other = Place::new(other_folder.path(), "", "");
    let other_running = other.serve(None, None);
    assert!(place.site(other_running.address).connect(&identity).await.is_err());
    let stranger = other.site(other_running.address).connect(&identity).await;
    let asked = match stranger {
        Err(_) => return,
        Ok(device) => device.check_in(None).await,
    };
    assert!(asked.is_err(), "{asked:?}");
}

#[tokio::test]
async fn an_update_counts_once_however_often_it_is_handed_in() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new(folder.path(), "", "");
    let (_running, devices) = three(&place).await;
    let works = all_at_work(&devices).await;
    let (device, work) = (&devices[0], &works[0]);
    let global = place.global(device, work).await;
    let update = place.update(device, 1, &global);
    for _ in 0..3 {
        let status = device.hand_in(work, &update, 5).await.unwrap();
        assert_eq!(status, CommitStatus::Accepted);
    }
    // Asking again gives the same assignment no more, and another update is not taken.
    assert!(matches!(device.check_in(None).await.unwrap(), Assignment::Wait { .. }));
    let other = place.update(device, 2, &global);
    let status = device.hand_in(work, &other, 5).await.unwrap();
    assert!(matches!(status, CommitStatus::Refused { .. }), "{status:?}");
    assert_eq!(place.admin(&["status"]).json()[0]["updates"], 1);
}

#[tokio::test]
async fn a_device_cannot_write_for_another() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new(folder.path(), "", "");
    let (_running, devices) = three(&place).await;
    let works = all_at_work(&devices).await;
    let global = place.global(&devices[0], &works[0]).await;
    let update = place.update(&devices[0], 1, &global);
    let offered = offer(&works[0], &update, 5);
    let begin = Request::UploadBegin(Box::new(offered.clone()));
    assert_eq!(refusal(devices[1].ask(&begin, &[]).await), ErrorCode::Unknown);
    assert!(matches!(devices[0].ask(&begin, &[]).await, Ok(Response::Missing(_))));
    let chunk = Request::UploadChunk { blob: offered.key.blob, index: 0 };
    assert_eq!(refusal(devices[1].ask(&chunk, &update).await), ErrorCode::Unknown);
    let commit = Request::Commit(offered.key);
    assert_eq!(refusal(devices[1].ask(&commit, &[]).await), ErrorCode::Unknown);
    // Nor read what another one hands in.
    let status = devices[0].hand_in(&works[0], &update, 5).await.unwrap();
    assert_eq!(status, CommitStatus::Accepted);
    let fetch = Request::Fetch { blob: BlobId::of(&update), first: 0, count: 1 };
    assert_eq!(refusal(devices[1].ask(&fetch, &[]).await), ErrorCode::Unknown);
}

#[tokio::test]
async fn updates_that_cannot_be_are_refused_and_the_round_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new(folder.path(), "", "minimum = 1\nmax_update_norm = 10.0\n");
    let (_running, devices) = three(&place).await;
    let works = all_at_work(&devices).await;
    let global = place.global(&devices[0], &works[0]).await;
    // An absurd norm.
    let mut huge = global.clone();
    huge.values_mut().flatten().for_each(|value| *value += 100.0);
    let huge = Upload::encode(&global, &huge, None).unwrap().to_bytes().unwrap();
    let status = devices[0].hand_in(&works[0], &huge, 5).await.unwrap();
    let CommitStatus::Refused { reason } = status else { panic!("{status:?}") };
    assert!(reason.contains("at most 10"), "{reason}");
    // Another shape.
    let entry = Parameter { name: "w".into(), shape: vec![2], values: vec![1.0, f32::MAX] };
    let other = ParameterSet::new(vec![entry]);
    let other = Upload::encode(&other.zeros_like(), &other, None).unwrap().to_bytes().unwrap();
    let status = devices[1].hand_in(&works[1], &other, 5).await.unwrap();
    assert!(matches!(status, CommitStatus::Refused { .. }), "{status:?}");
    // A good one, and the round closes with it.
    let update = place.update(&devices[2], 1, &global);
    assert_eq!(devices[2].hand_in(&works[2], &update, 5).await.unwrap(), CommitStatus::Accepted);
    let next = place.work(&devices[2]);
    let next = tokio::time::timeout(Duration::from_secs(30), next).await.unwrap();
    let _ = next;
}

#[tokio::test]
async fn hostile_requests_are_refused_and_the_connection_lives() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new(folder.path(), "", "");
    let (_running, devices) = three(&place).await;
    let works = all_at_work(&devices).await;
    let (device, work) = (&devices[0], &works[0]);
    let update = place.update(device, 1, &place.global(device, work).await);
    let good = offer(work, &update, 5);
    for (wrong, code) in [
        (UploadOffer { size: u64::MAX, ..good.clone() }, ErrorCode::TooLarge),
        (UploadOffer { size: 1 << 30, ..good.clone() }, ErrorCode::TooLarge),
        (UploadOffer { size: 0, ..good.clone() }, ErrorCode::Malformed),
        (UploadOffer { chunks: vec![[0; 32]; 1000], ..good.clone() }, ErrorCode::Malformed),
        (UploadOffer { codec: 99, ..good.clone() }, ErrorCode::Malformed),
        (UploadOffer { report: "{".into(), ..good.clone() }, ErrorCode::Malformed),
    ] {
        let begin = Request::UploadBegin(Box::new(wrong));
        assert_eq!(refusal(device.ask(&begin, &[]).await), code);
    }
    for bytes in [&[][..], &[1, 2, 3], &u32::MAX.to_le_bytes(), &[4, 0, 0, 0, 0xff, 0xff, 1, 1]] {
        let (mut to, mut from) = device.connection.open_bi().await.unwrap();
        to.write_all(bytes).await.unwrap();
        let _ = to.finish();
        let answer = from.read_to_end(1 << 16).await.unwrap();
        let answer: Response = fleetune_core::protocol::decode_frame(&answer[4..]).unwrap();
        assert_eq!(refusal(Ok(answer)), ErrorCode::Malformed);
    }
    // A damaged chunk is asked for again.
    let begin = Request::UploadBegin(Box::new(good.clone()));
    assert!(matches!(device.ask(&begin, &[]).await, Ok(Response::Missing(_))));
    let mut damaged = update.clone();
    damaged[0] ^= 1;
    let chunk = Request::UploadChunk { blob: good.key.blob, index: 0 };
    assert_eq!(device.ask(&chunk, &damaged).await.unwrap(), Response::Corrupt);
    assert_eq!(device.hand_in(work, &update, 5).await.unwrap(), CommitStatus::Accepted);
}

#[tokio::test]
async fn a_straggler_past_its_round_is_told_so_and_does_not_count() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new(folder.path(), "", "minimum = 1\ndeadline = \"1500ms\"\n");
    let (_running, devices) = three(&place).await;
    let works = all_at_work(&devices).await;
    let global = place.global(&devices[0], &works[0]).await;
    let update = place.update(&devices[0], 1, &global);
    assert_eq!(devices[0].hand_in(&works[0], &update, 5).await.unwrap(), CommitStatus::Accepted);
    loop {
        let rounds = place.admin(&["rounds", "notes"]).json();
        if rounds.as_array().unwrap().len() > 1 {
            assert_eq!(rounds[1]["summary"]["updates"], 1);
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let late = place.update(&devices[1], 1, &global);
    for _ in 0..2 {
        let status = devices[1].hand_in(&works[1], &late, 5).await.unwrap();
        assert_eq!(status, CommitStatus::Late { folded: false });
    }
}

#[tokio::test]
async fn a_late_update_counts_less_in_a_buffer() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new(
        folder.path(),
        "rounds = 3",
        "mode = \"buffered\"\nminimum = 1\nover_selection = 2.0\n",
    )
    .with_sample(2);
    let (_running, devices) = three(&place).await;
    let works = all_at_work(&devices).await;
    let global = place.global(&devices[0], &works[0]).await;
    for i in 0..2 {
        let update = place.update(&devices[i], 1, &global);
        let status = devices[i].hand_in(&works[i], &update, 5).await.unwrap();
        assert_eq!(status, CommitStatus::Accepted);
    }
    while place.admin(&["status"]).json()[0]["round"] == 1 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let late = place.update(&devices[2], 1, &global);
    let status = devices[2].hand_in(&works[2], &late, 5).await.unwrap();
    assert_eq!(status, CommitStatus::Late { folded: true });
}

#[tokio::test]
async fn a_revoked_device_is_shut_out_in_the_middle_of_a_round_and_its_update_does_not_count() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new(folder.path(), "", "minimum = 1\n");
    let (_running, devices) = three(&place).await;
    let works = all_at_work(&devices).await;
    let global = place.global(&devices[0], &works[0]).await;
    let update = place.update(&devices[0], 1, &global);
    assert_eq!(devices[0].hand_in(&works[0], &update, 5).await.unwrap(), CommitStatus::Accepted);
    for device in &devices[..2] {
        place.admin(&["revoke", &device.id.to_string()]).json();
        match device.check_in(None).await {
            Err(LoadError::Refused(refusal)) => assert_eq!(refusal.code, ErrorCode::Revoked),
            other => panic!("{other:?}"),
        }
    }
    let update = place.update(&devices[2], 1, &global);
    // The server has to see the revocation before the round closes.
    while place.admin(&["status"]).json()[0]["updates"] != 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(devices[2].hand_in(&works[2], &update, 5).await.unwrap(), CommitStatus::Accepted);
    loop {
        let rounds = place.admin(&["rounds", "notes"]).json();
        if rounds.as_array().unwrap().len() > 1 {
            assert_eq!(rounds[1]["summary"]["updates"], 1);
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn the_operator_pauses_and_goes_back() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new(folder.path(), "", "");
    let (running, devices) = three(&place).await;
    all_take_part(&place, &devices).await;
    let done = place.adapter();
    let wait_for = async |field: &str, value: serde_json::Value| {
        while place.admin(&["status"]).json()[0][field] != value {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    place.admin(&["rollback", "notes", "--round", "1"]).json();
    wait_for("round", 2.into()).await;
    place.admin(&["pause", "notes"]).json();
    wait_for("status", "paused".into()).await;
    for device in &devices {
        assert!(matches!(device.check_in(None).await.unwrap(), Assignment::Wait { .. }));
    }
    place.admin(&["resume", "notes"]).json();
    for rounds in all_take_part(&place, &devices).await {
        assert_eq!(rounds, [2]);
    }
    running.stop();
    assert_eq!(place.adapter(), done, "the same devices make the same of the same adapter");
    let unknown = place.admin(&["rollback", "notes", "--round", "9"]);
    assert!(unknown.error(2).contains("is not kept"), "{}", unknown.err);
}
