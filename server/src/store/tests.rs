//! The server's memory, across restarts and damage.

use std::fs;

use fleetune_core::protocol::{
    AttemptToken, BlobId, CHUNK_LEN, DeviceId, InviteId, Manifest, UploadKey, UploadOffer,
};
use rcgen::{CertificateParams, KeyPair};
use time::OffsetDateTime;

use super::incoming::lock;
use super::*;
use crate::identity::{Authority, DeviceCertificate, Invite, secret_hash};

fn open() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    (folder, store)
}

fn certificate(folder: &Path) -> DeviceCertificate {
    let authority = Authority::open(folder, OffsetDateTime::now_utc()).unwrap();
    let request = CertificateParams::default().serialize_request(&KeyPair::generate().unwrap());
    authority.issue_device(request.unwrap().der(), None, OffsetDateTime::now_utc()).unwrap()
}

fn invite(uses_left: u32) -> Invite {
    let id = InviteId([3; 8]);
    let secret_hash = secret_hash(&id, b"secret");
    Invite { id, secret_hash, uses_left, expires_at: 100, federation: Some("a".into()) }
}

fn beginning(store: &Store) -> RoundRow {
    let adapter = store.blobs().put(b"adapter 0").unwrap();
    let state = store.blobs().put(b"state 0").unwrap().id;
    RoundRow { round: 0, adapter, control: None, state, versions: None }
}

fn summary(round: u32) -> SummaryRow {
    SummaryRow { round, summary: "{}".into(), closed_at: 1, kept: true }
}

fn offer(bytes: &[u8]) -> UploadOffer {
    let manifest = Manifest::of(bytes);
    UploadOffer {
        key: UploadKey {
            federation: "a".into(),
            round: 1,
            attempt: AttemptToken([1; 16]),
            blob: manifest.blob().id,
        },
        size: manifest.blob().size,
        chunks: manifest.chunks().to_vec(),
        codec: 1,
        rows: 8,
        report: String::new(),
    }
}

#[test]
fn an_invite_admits_as_many_devices_as_it_says_and_each_as_often_as_it_asks() {
    let (folder, store) = open();
    store.add_invite(&invite(1)).unwrap();
    let (first, second) = (certificate(folder.path()), certificate(folder.path()));
    let admit = |certificate, secret: &[u8], now| {
        store.admit(InviteId([3; 8]), secret, certificate, "app 1", now).unwrap()
    };
    assert_eq!(admit(&first, b"wrong", 5), Admission::NotInvited);
    assert_eq!(admit(&first, b"secret", 100), Admission::NotInvited, "its time is over");
    assert_eq!(admit(&first, b"secret", 5), Admission::Admitted);
    let again = DeviceCertificate { fingerprint: second.fingerprint, ..first.clone() };
    assert_eq!(admit(&again, b"secret", 6), Admission::Admitted);
    assert_eq!(store.device_of(again.fingerprint).unwrap(), Some(first.device));
    let other = certificate(folder.path());
    assert_eq!(admit(&other, b"secret", 7), Admission::NotInvited, "no use is left");
    assert_eq!(store.federation_of(first.device).unwrap().as_deref(), Some("a"));
}

#[test]
fn a_revoked_device_is_nobody_and_stays_so() {
    let (folder, store) = open();
    store.add_invite(&invite(9)).unwrap();
    let device = certificate(folder.path());
    let admit = |now| store.admit(InviteId([3; 8]), b"secret", &device, "app", now).unwrap();
    admit(1);
    assert!(store.revoke(device.device, 2).unwrap());
    assert!(!store.revoke(device.device, 3).unwrap());
    assert_eq!(store.device_of(device.fingerprint).unwrap(), None);
    assert_eq!(store.revoked().unwrap(), [device.device]);
    assert_eq!(admit(4), Admission::Revoked);
}

#[test]
fn a_federation_is_found_again_as_it_was_left() {
    let (folder, store) = open();
    let row = beginning(&store);
    store.begin_federation("a", "rounds = 3", &row, &summary(0)).unwrap();
    let federation = store.federation("a").unwrap().unwrap();
    let device = DeviceId([7; 16]);
    store.select(&federation, &[(device, AttemptToken([1; 16]))], 500, 10).unwrap();
    let mut member = store.member(AttemptToken([1; 16])).unwrap().unwrap();
    assert_eq!(member.outcome, Outcome::Training);
    member.outcome = Outcome::Accepted;
    (member.blob, member.samples) = (Some(BlobId([5; 32])), 12);
    member.counts_in = Some(1);
    store.settle(&member, 20).unwrap();
    drop(store);

    let store = Store::open(folder.path()).unwrap();
    let federation = store.federation("a").unwrap().unwrap();
    assert_eq!((federation.round, federation.deadline), (1, Some(500)));
    assert_eq!(store.counting("a", 0, 1).unwrap(), [member]);
    assert_eq!(store.rounds_since(device, 9).unwrap(), 1);
    assert_eq!(store.rounds_since(device, 10).unwrap(), 0);
    assert_eq!(store.round("a", 0, 0).unwrap(), Some(row));
}

#[test]
fn closing_a_round_drops_the_silent_and_a_rollback_forgets_later_rounds() {
    let (_folder, store) = open();
    store.begin_federation("a", "", &beginning(&store), &summary(0)).unwrap();
    for round in 1..=3 {
        let federation = store.federation("a").unwrap().unwrap();
        let attempt = AttemptToken([round as u8; 16]);
        store.select(&federation, &[(DeviceId([7; 16]), attempt)], 500, 10).unwrap();
        let closed = RoundRow { round, ..beginning(&store) };
        store.close_round("a", 0, &closed, &summary(round), round + 1, None).unwrap();
        let row = EvaluationRow { round, found: round.to_string() };
        store.set_evaluation("a", 0, &row).unwrap();
        store.set_suites("a", 0, &row).unwrap();
        assert_eq!(store.member(attempt).unwrap().unwrap().outcome, Outcome::Dropped);
    }
    let dropped = Outcome::Dropped;
    let counts = [1, 2, 3].map(|round| OutcomeCount { round, outcome: dropped.clone(), parts: 1 });
    let outcomes = || store.outcomes(&store.federation("a").unwrap().unwrap()).unwrap();
    assert_eq!(outcomes(), counts);
    assert_eq!(store.failures("a", 2).unwrap().len(), 2);
    store.roll_back("a", 0, 1, 99).unwrap();
    let federation = store.federation("a").unwrap().unwrap();
    assert_eq!((federation.epoch, federation.round), (1, 2));
    assert_eq!(store.summaries("a", 1).unwrap(), [summary(0), summary(1)]);
    assert_eq!(outcomes(), counts[..1]);
    assert_eq!(store.evaluations("a", 1).unwrap().len(), 1);
    assert_eq!(store.suites("a", 1).unwrap().len(), 1);
}

#[test]
fn what_a_round_did_stays_when_what_it_left_is_pruned() {
    let (_folder, store) = open();
    let row = beginning(&store);
    store.begin_federation("a", "", &row, &summary(0)).unwrap();
    for round in 1..=3 {
        let adapter = store.blobs().put(format!("adapter {round}").as_bytes()).unwrap();
        let closed = RoundRow { round, adapter, ..row.clone() };
        store.close_round("a", 0, &closed, &summary(round), round, None).unwrap();
    }
    let first = store.round("a", 0, 1).unwrap().unwrap();
    assert_eq!(store.prune_rounds("a", 0, 2).unwrap(), [first.adapter.id]);
    let kept: Vec<bool> = store.summaries("a", 0).unwrap().iter().map(|row| row.kept).collect();
    assert_eq!(kept, [true, false, true, true], "the beginning stays");
}

/// Written by the tables of version 1, which kept what a round did with what it left.
const VERSION_1: &str = "
DROP TABLE suites;
DROP TABLE summaries;
DROP TABLE rounds;
CREATE TABLE rounds (
    federation TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    round INTEGER NOT NULL,
    adapter BLOB NOT NULL,
    adapter_size INTEGER NOT NULL,
    control BLOB,
    control_size INTEGER,
    state BLOB NOT NULL,
    summary TEXT NOT NULL,
    closed_at INTEGER NOT NULL,
    PRIMARY KEY (federation, epoch, round)
) STRICT, WITHOUT ROWID;
INSERT INTO rounds VALUES ('a', 0, 0, zeroblob(32), 9, NULL, NULL, zeroblob(32), '{}', 1);
PRAGMA user_version = 1;
";

#[test]
fn a_state_folder_of_an_earlier_version_is_taken_up() {
    let (folder, store) = open();
    drop(store);
    let database = Connection::open(folder.path().join(DATABASE_FILE)).unwrap();
    database.execute_batch(VERSION_1).unwrap();
    drop(database);
    let store = Store::open(folder.path()).unwrap();
    assert_eq!(store.summaries("a", 0).unwrap(), [summary(0)]);
    assert_eq!(store.round("a", 0, 0).unwrap().unwrap().adapter.size, 9);
    drop(store);
    Store::open(folder.path()).unwrap();
}

#[test]
fn state_folders_from_before_versions_or_suites_were_kept_are_taken_up() {
    for before in [
        "DROP TABLE suites; ALTER TABLE rounds DROP COLUMN versions; PRAGMA user_version = 2;",
        "DROP TABLE suites; PRAGMA user_version = 3;",
    ] {
        let (folder, store) = open();
        let row = beginning(&store);
        store.begin_federation("a", "", &row, &summary(0)).unwrap();
        drop(store);
        let database = Connection::open(folder.path().join(DATABASE_FILE)).unwrap();
        database.execute_batch(before).unwrap();
        drop(database);
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(store.round("a", 0, 0).unwrap(), Some(row));
        let found = EvaluationRow { round: 0, found: "[]".to_owned() };
        store.set_suites("a", 0, &found).unwrap();
        assert_eq!(store.suites("a", 0).unwrap(), [found]);
    }
}

#[test]
fn versions_of_devices_are_kept_as_long_as_their_round() {
    let (_folder, store) = open();
    let row = |round: u32| {
        let versions = store.blobs().put(format!("versions {round}").as_bytes()).unwrap();
        RoundRow { round, versions: Some(versions.id), ..beginning(&store) }
    };
    let rows = [0, 1, 2, 3].map(row);
    store.begin_federation("a", "", &rows[0], &summary(0)).unwrap();
    for (round, row) in (1..).zip(&rows[1..]) {
        store.close_round("a", 0, row, &summary(round), round, None).unwrap();
    }
    store.roll_back("a", 0, 2, 5).unwrap();
    store.sweep().unwrap();
    let there = rows.clone().map(|row| store.blobs().read(row.versions.unwrap()).is_ok());
    assert_eq!(there, [true, true, true, false]);
    assert_eq!(store.round("a", 1, 2).unwrap().as_ref(), Some(&rows[2]));
    assert_eq!(store.prune_rounds("a", 1, 2).unwrap(), [rows[1].versions.unwrap()]);
}

#[test]
fn sweeping_keeps_what_is_named_and_what_is_on_its_way() {
    let (_folder, store) = open();
    store.begin_federation("a", "", &beginning(&store), &summary(0)).unwrap();
    let orphan = store.blobs().put(b"of a commit that was cut off").unwrap();
    let arriving = store.blobs().put(b"arriving").unwrap();
    store.incoming().unwrap().begin(DeviceId([7; 16]), offer(b"arriving")).unwrap();
    store.sweep().unwrap();
    assert!(!store.blobs().has(&orphan));
    assert!(store.blobs().has(&arriving));
    assert_eq!(store.blobs().read(beginning(&store).state).unwrap(), b"state 0");
}

#[test]
fn a_damaged_blob_is_found_out() {
    let (_folder, store) = open();
    let blob = store.blobs().put(b"content").unwrap();
    fs::write(store.blobs().path(blob.id), b"c0ntent").unwrap();
    assert!(matches!(store.blobs().read(blob.id), Err(StoreError::Blob { .. })));
}

#[test]
fn an_upload_goes_on_after_a_restart_with_the_chunks_that_are_whole() {
    let (_folder, store) = open();
    let device = DeviceId([7; 16]);
    let bytes: Vec<u8> = (0..3 * CHUNK_LEN as usize - 5).map(|i| (i % 251) as u8).collect();
    let chunk = |i: usize| {
        let start = i * CHUNK_LEN as usize;
        &bytes[start..(start + CHUNK_LEN as usize).min(bytes.len())]
    };
    let incoming = store.incoming().unwrap();
    let upload = incoming.begin(device, offer(&bytes)).unwrap();
    assert!(!lock(&upload).store(0, chunk(1)).unwrap(), "another chunk's bytes");
    assert!(lock(&upload).store(2, chunk(2)).unwrap());
    assert!(lock(&upload).store(0, chunk(0)).unwrap());
    assert!(lock(&upload).store(3, b"").is_err());
    // A part of the file is lost with the power.
    let data = lock(&upload).data();
    let mut damaged = fs::read(&data).unwrap();
    damaged[9] ^= 1;
    fs::write(&data, damaged).unwrap();

    let incoming = store.incoming().unwrap();
    let upload = incoming.find(device, Manifest::of(&bytes).blob().id).unwrap().unwrap();
    let blob = lock(&upload).blob();
    assert_eq!(lock(&upload).missing().of_blob(&blob).collect::<Vec<_>>(), [0, 1]);
    assert!(lock(&upload).store(0, chunk(0)).unwrap());
    assert!(lock(&upload).store(1, chunk(1)).unwrap());
    assert!(lock(&upload).missing().is_empty());
    assert_eq!(fs::read(data).unwrap(), bytes);
    assert!(incoming.find(DeviceId([8; 16]), blob.id).unwrap().is_none(), "another device's");
}

#[test]
fn two_uploads_of_a_device_go_on_side_by_side_and_a_third_drives_one_out() {
    let (_folder, store) = open();
    let (device, incoming) = (DeviceId([7; 16]), store.incoming().unwrap());
    let there = |bytes: &[u8]| incoming.find(device, BlobId::of(bytes)).unwrap().is_some();
    incoming.begin(device, offer(b"first")).unwrap();
    incoming.begin(device, offer(b"second")).unwrap();
    assert!(there(b"first") && there(b"second"));
    incoming.begin(DeviceId([8; 16]), offer(b"another device's")).unwrap();
    assert!(there(b"first") && there(b"second"));
    incoming.begin(device, offer(b"third")).unwrap();
    assert!(there(b"third"));
    assert_eq!(usize::from(there(b"first")) + usize::from(there(b"second")), 1);
    incoming.discard(device).unwrap();
    assert!(!there(b"first") && !there(b"second") && !there(b"third"));
    let wrong = UploadOffer { size: 1 + CHUNK_LEN, ..offer(b"third") };
    assert!(matches!(incoming.begin(device, wrong), Err(UploadError::Offer(_))));
}

#[test]
fn damage_to_the_database_is_told_in_a_sentence() {
    let (folder, store) = open();
    for n in 0..200 {
        store.set_note(&format!("key {n}"), &"x".repeat(500)).unwrap();
    }
    drop(store);
    let path = folder.path().join(DATABASE_FILE);
    let bytes = fs::read(&path).unwrap();
    for damaged in [&bytes[..bytes.len() / 2], b"no database at all, but long enough to be read"] {
        fs::write(&path, damaged).unwrap();
        let error = Store::open(folder.path()).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    }
}

#[test]
fn one_server_works_on_a_folder() {
    let (folder, store) = open();
    let _lock = store.lock().unwrap();
    let second = Store::open(folder.path()).unwrap();
    assert!(matches!(second.lock(), Err(StoreError::InUse { .. })));
}

#[test]
fn orders_are_kept_until_they_are_carried_out() {
    let (_folder, store) = open();
    store.order("a", OrderKind::Pause).unwrap();
    store.order("a", OrderKind::Rollback { round: 4 }).unwrap();
    let orders = store.orders().unwrap();
    let kinds: Vec<OrderKind> = orders.iter().map(|order| order.kind).collect();
    assert_eq!(kinds, [OrderKind::Pause, OrderKind::Rollback { round: 4 }]);
    store.order_done(orders[0].id).unwrap();
    assert_eq!(store.orders().unwrap(), orders[1..]);
}
