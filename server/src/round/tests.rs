//! A round's life, without a clock.

use fleetune_core::protocol::{AttemptToken, DeviceId};

use super::{Mode, Phase, RoundState, Rules, Standing, Step, Verdict};

const SECOND: u64 = 1000;

fn rules() -> Rules {
    Rules {
        target: 2,
        minimum: 2,
        selected: 3,
        deadline: 600 * SECOND,
        gather: 60 * SECOND,
        presence: 30 * SECOND,
        mode: Mode::Synchronous,
        max_staleness: 2,
    }
}

fn device(n: u8) -> DeviceId {
    DeviceId([n; 16])
}

fn attempt(n: u8, round: u32) -> AttemptToken {
    let mut token = [n; 16];
    token[0] = round as u8;
    AttemptToken(token)
}

/// Does what the machine decides, as a server would; the devices that were selected.
fn step(state: &mut RoundState, now: u64) -> Vec<u8> {
    match state.next_step(now) {
        Some(Step::Select { devices, deadline }) => {
            let round = state.round();
            let members: Vec<_> =
                devices.iter().map(|&device| (device, attempt(device.0[0], round))).collect();
            state.select(&members, deadline);
            devices.iter().map(|device| device.0[0]).collect()
        }
        Some(Step::Extend { deadline }) => {
            state.extend(deadline);
            Vec::new()
        }
        Some(Step::Close) => {
            state.close();
            Vec::new()
        }
        None => Vec::new(),
    }
}

fn report(state: &mut RoundState, n: u8, round: u32) -> Verdict {
    let verdict = state.judge(state.epoch(), round);
    if let Verdict::Counts { round: counts_in } = verdict {
        state.reported(device(n), attempt(n, round), counts_in);
    }
    verdict
}

fn gathered(devices: impl IntoIterator<Item = u8>) -> RoundState {
    let mut state = RoundState::new(rules(), 1, 0, 1, 0);
    for n in devices {
        state.check_in(device(n), 0);
    }
    state
}

#[test]
fn a_round_waits_for_enough_devices_and_closes_with_its_target() {
    let mut state = gathered([1, 2]);
    assert!(step(&mut state, 1).is_empty());
    state.check_in(device(3), 2);
    assert_eq!(step(&mut state, 3), [1, 2, 3]);
    assert_eq!(state.phase(), Phase::Collecting { deadline: 3 + 600 * SECOND });
    assert_eq!(report(&mut state, 3, 1), Verdict::Counts { round: 1 });
    assert!(step(&mut state, 4).is_empty());
    assert_eq!(report(&mut state, 1, 1), Verdict::Counts { round: 1 });
    assert_eq!(report(&mut state, 2, 1), Verdict::Late, "the target was met");
    step(&mut state, 5);
    assert_eq!(state.phase(), Phase::Closing);
    state.advance(6);
    assert_eq!((state.round(), state.phase()), (2, Phase::Gathering { since: 6 }));
    assert_eq!(report(&mut state, 2, 1), Verdict::Late);
}

#[test]
fn who_asks_again_gets_the_same_assignment() {
    let mut state = gathered([1, 2, 3]);
    step(&mut state, 0);
    assert_eq!(state.resume(device(2)), Some((attempt(2, 1), 1)));
    report(&mut state, 2, 1);
    assert_eq!(state.resume(device(2)), None);
    state.check_in(device(2), 6);
    assert_eq!(state.waiting(), 0, "a device has one part in a round");
}

#[test]
fn fewer_devices_will_do_after_a_while_but_not_fewer_than_the_minimum() {
    let mut state = gathered([]);
    state.check_in(device(1), 59 * SECOND);
    assert!(step(&mut state, 60 * SECOND).is_empty());
    state.check_in(device(2), 60 * SECOND);
    assert_eq!(step(&mut state, 61 * SECOND), [1, 2]);
}

#[test]
fn a_device_that_asked_long_ago_is_not_selected() {
    let mut state = gathered([1, 2, 3]);
    state.check_in(device(4), 40 * SECOND);
    assert!(step(&mut state, 40 * SECOND).is_empty());
    assert_eq!(state.waiting(), 1);
}

#[test]
fn too_few_updates_at_the_deadline_are_kept_and_others_take_the_place_of_the_silent() {
    let mut state = gathered([1, 2, 3]);
    step(&mut state, 0);
    report(&mut state, 1, 1);
    let late = 600 * SECOND;
    step(&mut state, late);
    assert_eq!(state.phase(), Phase::Collecting { deadline: 2 * late });
    assert_eq!((state.reports(), state.count(Standing::Overdue)), (1, 2));
    state.check_in(device(7), late + 1);
    assert_eq!(step(&mut state, late + 2), [7]);
    // A silent one comes back, and its update counts.
    assert_eq!(state.resume(device(3)), Some((attempt(3, 1), 1)));
    assert_eq!(report(&mut state, 3, 1), Verdict::Counts { round: 1 });
    assert_eq!(state.next_step(late + 4), Some(Step::Close));
}

#[test]
fn the_minimum_is_enough_at_the_deadline() {
    let mut state = RoundState::new(Rules { minimum: 1, ..rules() }, 1, 0, 1, 0);
    (1..=3).for_each(|n| state.check_in(device(n), 0));
    step(&mut state, 0);
    report(&mut state, 2, 1);
    assert_eq!(state.next_step(600 * SECOND - 1), None);
    assert_eq!(state.next_step(600 * SECOND), Some(Step::Close));
}

#[test]
fn a_round_that_waits_for_nobody_closes() {
    let mut state = RoundState::new(Rules { minimum: 1, ..rules() }, 1, 0, 1, 0);
    (1..=3).for_each(|n| state.check_in(device(n), 0));
    step(&mut state, 0);
    report(&mut state, 1, 1);
    state.gone(device(2));
    assert_eq!(state.next_step(1), None);
    state.gone(device(3));
    assert_eq!(state.next_step(1), Some(Step::Close));
}

#[test]
fn an_update_taken_back_does_not_count() {
    let mut state = gathered([1, 2, 3]);
    step(&mut state, 0);
    report(&mut state, 1, 1);
    report(&mut state, 2, 1);
    state.gone(device(1));
    assert_eq!((state.reports(), state.next_step(1)), (1, None));
}

#[test]
fn a_pause_selects_nobody_and_lets_the_round_end() {
    let mut state = gathered([1, 2, 3]);
    state.set_paused(true);
    assert_eq!(state.next_step(1), None);
    state.set_paused(false);
    step(&mut state, 1);
    state.set_paused(true);
    report(&mut state, 1, 1);
    report(&mut state, 2, 1);
    assert_eq!(state.next_step(2), Some(Step::Close));
}

#[test]
fn whom_a_round_selects_follows_from_the_seed() {
    let draw = |seed| {
        let mut state = RoundState::new(rules(), seed, 0, 1, 0);
        (0..100).for_each(|n| state.check_in(device(n), 0));
        step(&mut state, 1)
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    assert_eq!(draw(1).len(), 3);
}

#[test]
fn a_restored_round_goes_on_with_a_deadline_no_further_than_a_rounds_time() {
    let mut state = RoundState::new(rules(), 1, 0, 4, 0);
    let members = [
        (device(1), attempt(1, 4), 4, Standing::Reported),
        (device(2), attempt(2, 4), 4, Standing::Training),
    ];
    state.restore(members, Some(u64::MAX), 1000);
    assert_eq!(state.phase(), Phase::Collecting { deadline: 1000 + 600 * SECOND });
    assert_eq!(state.resume(device(2)), Some((attempt(2, 4), 4)));
    report(&mut state, 2, 4);
    assert_eq!(state.next_step(1002), Some(Step::Close));
}

#[test]
fn a_buffer_gives_work_to_whoever_asks_and_takes_late_updates() {
    let rules = Rules { mode: Mode::Buffered, ..rules() };
    let mut state = RoundState::new(rules, 1, 0, 1, 0);
    (1..=4).for_each(|n| state.check_in(device(n), 0));
    assert_eq!(step(&mut state, 0).len(), 3, "no more than may train at once");
    let late: Vec<u8> = (1..=4).filter(|&n| state.resume(device(n)).is_some()).collect();
    report(&mut state, late[0], 1);
    assert_eq!(step(&mut state, 1).len(), 1, "who has reported makes room");
    report(&mut state, late[1], 1);
    step(&mut state, 2);
    assert_eq!(state.phase(), Phase::Closing);
    // While the first buffer is aggregated, a third update comes: it opens the second.
    assert_eq!(report(&mut state, late[2], 1), Verdict::Counts { round: 2 });
    state.advance(3);
    assert_eq!((state.round(), state.reports()), (2, 1));
    // The device that was selected last still trains on the first adapter.
    assert_eq!(state.count(Standing::Training), 1);
    assert_eq!(state.judge(0, 1), Verdict::Counts { round: 2 });
    for now in 4..6 {
        state.close();
        state.advance(now);
    }
    assert_eq!(state.judge(0, 1), Verdict::Late, "three rounds are more than two");
    assert_eq!(state.judge(1, 4), Verdict::Late, "of another epoch");
}

#[test]
fn old_updates_count_less() {
    assert_eq!(Rules::staleness_weight(0), 1.0);
    assert_eq!(Rules::staleness_weight(3), 0.5);
}
