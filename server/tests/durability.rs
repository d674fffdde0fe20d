//! A server that is killed at the worst moments: the federation ends with the same adapter, to the
//! bit, as one that nobody disturbed.
#![cfg(target_os = "linux")]

mod support;

use std::time::Duration;

use fleetune_core::protocol::ErrorCode;
use fleetune_server::load::{Identity, LoadError};
use support::server::{NAME, Place, Running, twin};

/// Points at which the server ends, and how often it passes them before.
const POINTS: [&str; 8] = [
    "after-chunk-stored",
    "after-chunk-stored:4",
    "after-update-kept:1",
    "before-commit-ack",
    "during-aggregate:1",
    "after-state-written",
    "after-round-closed",
    "after-round-closed:1",
];

/// Lets all devices take part until the federation is done. A server that ends is started again, and
/// devices that lose it connect again. How often it was started.
async fn run_to_the_end(place: &Place, identities: &[Identity], crash_at: Option<&str>) -> usize {
    let mut starts = 1;
    let mut running = place.serve(None, crash_at);
    let address = running.address;
    loop {
        let site = place.site(address);
        let devices = async {
            let lives = identities.iter().map(async |identity| {
                let device = site.connect(identity).await.ok()?;
                place.take_part(&device).await.ok()
            });
            futures_join(lives.collect()).await
        };
        let ended = async {
            loop {
                if running.child.try_wait().unwrap().is_some() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            lives = devices => if lives.iter().all(Option::is_some) { break },
            () = ended => {}
        }
        if running.child.try_wait().unwrap().is_some() {
            running = place.serve(Some(address), None);
            starts += 1;
        }
    }
    running.stop();
    starts
}

/// All of them at once.
async fn futures_join<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.into_iter().map(|f| (Box::pin(f), None)).collect();
    std::future::poll_fn(|context| {
        let mut pending = false;
        for (future, output) in &mut futures {
            if output.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(value) => *output = Some(value),
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        if pending { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    futures.into_iter().filter_map(|(_, output)| output).collect()
}

#[tokio::test]
async fn a_server_killed_at_any_point_ends_with_the_adapter_of_an_undisturbed_one() {
    let folder = tempfile::tempdir().unwrap();
    let original = folder.path().join("original");
    std::fs::create_dir(&original).unwrap();
    let place = Place::new(&original, "algorithm = \"fedadam\"", "");
    let identities = place.enrol(3).await;

    let undisturbed = twin(&place, &folder.path().join("undisturbed"));
    assert_eq!(run_to_the_end(&undisturbed, &identities, None).await, 1);
    for (i, point) in POINTS.iter().enumerate() {
        let killed = twin(&place, &folder.path().join(i.to_string()));
        let run = run_to_the_end(&killed, &identities, Some(point));
        let starts = tokio::time::timeout(Duration::from_secs(120), run).await;
        let starts = starts.unwrap_or_else(|_| panic!("{point}: {}", killed.log()));
        assert!(starts > 1, "{point} was never reached");
        assert!(killed.adapter() == undisturbed.adapter(), "{point}: {}", killed.log());
        let rounds = killed.admin(&["rounds", NAME]).json();
        assert_eq!(rounds[2]["summary"]["updates"], 3, "{point}");
    }
}

#[tokio::test]
async fn an_acknowledgement_that_got_lost_is_given_again_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place::new(folder.path(), "", "");
    let identities = place.enrol(3).await;
    let running: Running = place.serve(None, Some("before-commit-ack"));
    let address = running.address;
    let site = place.site(address);
    let mut devices = Vec::new();
    for identity in &identities {
        devices.push(site.connect(identity).await.unwrap());
    }
    let (first, _, _) =
        tokio::join!(place.work(&devices[0]), place.work(&devices[1]), place.work(&devices[2]));
    let work = first.unwrap().unwrap();
    let global = place.global(&devices[0], &work).await;
    let update = place.update(&devices[0], 1, &global);
    assert!(devices[0].hand_in(&work, &update, 5).await.is_err(), "the server ended");
    drop(running);
    let _running = place.serve(Some(address), None);
    assert_eq!(place.admin(&["status"]).json()[0]["updates"], 1);
    let device = place.site(address).connect(&identities[0]).await.unwrap();
    let status = device.hand_in(&work, &update, 5).await.unwrap();
    assert_eq!(status, fleetune_core::protocol::CommitStatus::Accepted);
    assert_eq!(place.admin(&["status"]).json()[0]["updates"], 1);
}

#[tokio::test]
async fn a_full_disk_is_told_and_nothing_acknowledged_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let original = folder.path().join("original");
    std::fs::create_dir(&original).unwrap();
    let targets = "lora_targets = [\"q_proj\", \"k_proj\", \"v_proj\", \"up_proj\", \"down_proj\"]";
    let place = Place::new(&original, targets, "");
    let path = original.join("serve.toml");
    let config = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, config.replace("lora_rank = 4", "lora_rank = 192")).unwrap();
    let identities = place.enrol(3).await;
    let undisturbed = twin(&place, &folder.path().join("undisturbed"));
    run_to_the_end(&undisturbed, &identities, None).await;

    let running = place.serve(None, None);
    let address = running.address;
    let first = place.site(address).connect(&identities[0]).await.unwrap();
    let second = place.site(address).connect(&identities[1]).await.unwrap();
    let third = place.site(address).connect(&identities[2]).await.unwrap();
    let (work, other, _) =
        tokio::join!(place.work(&first), place.work(&second), place.work(&third));
    let (work, other) = (work.unwrap().unwrap(), other.unwrap().unwrap());
    let global = place.global(&first, &work).await;
    let update = place.update(&first, 1, &global);
    first.hand_in(&work, &update, u64::from(first.id.0[1]) + 1).await.unwrap();
    running.stop();

    let running = place.serve_on_a_full_disk(address, 400);
    let second = place.site(address).connect(&identities[1]).await.unwrap();
    let update = place.update(&second, 1, &global);
    assert!(update.len() > 450_000, "{}", update.len());
    let refused = second.hand_in(&other, &update, u64::from(second.id.0[1]) + 1).await;
    let Err(LoadError::Refused(refusal)) = refused else { panic!("{refused:?}") };
    assert_eq!(refusal.code, ErrorCode::Storage);
    assert!(refusal.message.contains("disk is full"), "{}", refusal.message);
    assert_eq!(place.admin(&["status"]).json()[0]["updates"], 1);
    running.stop();

    run_to_the_end(&place, &identities, None).await;
    assert!(place.adapter() == undisturbed.adapter(), "{}", place.log());
}
