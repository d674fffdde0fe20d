use proptest::prelude::*;

use super::*;
use crate::protocol::{AttemptToken, Blob, BlobId, ModelOffer, UploadKey};

const NOW: Time = Time::from_secs(100);

fn assignment() -> RoundAssignment {
    let blob = Blob { id: BlobId([1; 32]), size: 10 };
    RoundAssignment {
        federation: "notes".into(),
        round: 4,
        attempt: AttemptToken([7; 16]),
        instructions: "{}".into(),
        model: ModelOffer { name: "tiny".into(), blob, offered: false },
        adapter: blob,
        control: None,
        milliseconds_left: 60_000,
    }
}

fn offer() -> UploadOffer {
    let RoundAssignment { federation, round, attempt, .. } = assignment();
    UploadOffer {
        key: UploadKey { federation, round, attempt, blob: BlobId([2; 32]) },
        size: 10,
        chunks: vec![[3; 32]],
        codec: 1,
        rows: 5,
        report: "{}".into(),
    }
}

fn missing() -> Response {
    Response::Missing([0].into_iter().collect())
}

fn error(code: ErrorCode, retry_milliseconds: Option<u32>) -> Response {
    Response::Error(Refusal { code, message: "no".into(), retry_milliseconds })
}

/// A session whose update is on its way.
fn sending() -> Session {
    let mut session = Session::new(Some(offer()));
    assert_eq!(session.answered(NOW, 0, missing()), None);
    assert!(matches!(session.next(NOW), Action::Send(..)));
    session
}

#[test]
fn a_federation_that_is_done_leaves_its_adapter() {
    let RoundAssignment { instructions, model, adapter, .. } = assignment();
    let last = Box::new(FinalAdapter { instructions, model, adapter });
    let mut session = Session::new(None);
    let done = Response::Assignment(Assignment::Finished(last.clone()));
    assert_eq!(session.answered(NOW, 0, done.clone()), None);
    assert_eq!(session.next(NOW), Action::Receive(last.clone()));
    // A lost connection is waited out, and the adapter brought all the same.
    session.failed(NOW, 0);
    assert!(matches!(session.next(NOW), Action::Wait(_)));
    assert_eq!(session.next(2 * NOW), Action::Receive(last));
    // The operator went back in the meantime: it is not offered any more, and there may be work.
    let mut rolled_back = session.clone();
    rolled_back.answered(2 * NOW, 0, error(ErrorCode::Unknown, None));
    assert_eq!(rolled_back.next(3 * NOW), Action::CheckIn);
    session.received();
    assert_eq!(session.next(2 * NOW), Action::End(Ending::Finished));
}

#[test]
fn a_round_goes_from_check_in_to_acknowledgement() {
    let mut session = Session::new(None);
    assert_eq!(session.next(NOW), Action::CheckIn);
    let work = Response::Assignment(Assignment::Round(Box::new(assignment())));
    assert!(matches!(session.answered(NOW, 0, work), Some(Event::Assigned(_))));
    assert!(matches!(session.next(NOW), Action::Fetch(_)));
    session.fetched();
    assert!(matches!(session.next(NOW), Action::Train(_)));
    session.trained(offer());
    assert!(matches!(session.next(NOW), Action::Ask(Request::UploadBegin(_))));
    session.answered(NOW, 0, missing());
    assert!(matches!(session.next(NOW), Action::Send(..)));
    session.sent();
    assert!(matches!(session.next(NOW), Action::Ask(Request::Commit(_))));
    let settled = session.answered(NOW, 0, Response::Committed(CommitStatus::Accepted));
    assert!(matches!(settled, Some(Event::Settled(_, CommitStatus::Accepted))));
    assert_eq!(session.next(NOW), Action::CheckIn);
}

#[test]
fn an_acknowledgement_that_is_lost_is_asked_for_until_it_comes() {
    let mut session = sending();
    session.sent();
    let mut now = NOW;
    for _ in 0..20 {
        session.failed(now, u32::MAX);
        let Action::Wait(until) = session.next(now) else { panic!("it does not wait") };
        assert!(until > now);
        now = until;
        assert!(matches!(session.next(now), Action::Ask(Request::UploadBegin(_))));
    }
    let settled = session.answered(now, 0, Response::Committed(CommitStatus::Accepted));
    assert!(matches!(settled, Some(Event::Settled(..))));
}

#[test]
fn an_update_of_an_earlier_life_comes_before_new_work() {
    let session = Session::new(Some(offer()));
    let Action::Ask(Request::UploadBegin(offered)) = session.next(NOW) else {
        panic!("it asks for work first");
    };
    assert_eq!(*offered, offer());
}

#[test]
fn chunks_that_arrive_damaged_are_sent_again_but_not_without_a_pause() {
    let mut session = sending();
    session.sent();
    session.answered(NOW, 0, missing());
    let Action::Wait(until) = session.next(NOW) else { panic!("it does not wait") };
    assert!(matches!(session.next(until), Action::Send(..)));
}

#[test]
fn a_busy_server_is_asked_when_it_says() {
    let mut session = sending();
    session.answered(NOW, 0, error(ErrorCode::Busy, Some(5_000)));
    assert_eq!(session.next(NOW), Action::Wait(NOW + Duration::from_secs(5)));
    assert!(matches!(session.next(NOW + Duration::from_secs(5)), Action::Send(..)));
}

#[test]
fn an_update_that_the_server_has_forgotten_is_announced_again() {
    let mut session = sending();
    session.answered(NOW, 0, error(ErrorCode::Unknown, None));
    let Action::Wait(until) = session.next(NOW) else { panic!("it does not wait") };
    assert!(matches!(session.next(until), Action::Ask(Request::UploadBegin(_))));
}

#[test]
fn an_update_that_the_server_will_never_take_is_let_go() {
    let mut session = Session::new(Some(offer()));
    let event = session.answered(NOW, 0, error(ErrorCode::Unknown, None));
    assert!(matches!(event, Some(Event::Settled(_, CommitStatus::Refused { .. }))));
    assert!(matches!(session.next(NOW), Action::Wait(_)));
    assert_eq!(session.next(NOW + Duration::from_secs(60)), Action::CheckIn);
}

#[test]
fn a_revoked_device_stops_whatever_it_does() {
    for mut session in [Session::new(None), sending()] {
        session.answered(NOW, 0, error(ErrorCode::Revoked, None));
        assert!(matches!(session.next(NOW), Action::End(Ending::Refused(_))));
    }
}

#[test]
fn an_answer_to_another_question_changes_nothing() {
    let mut session = sending();
    session.answered(NOW, 0, Response::Left);
    assert!(matches!(session.next(NOW + Duration::from_secs(60)), Action::Send(..)));
}
/// What may happen to a session, in any order.
#[derive(Debug, Clone)]
enum Happening {
    Answer(Response),
    Fetched,
    Trained,
    Sent,
    Failed,
    GaveUp,
    Later(u16),
}

fn happening() -> impl Strategy<Value = Happening> {
    let code = prop_oneof![
        Just(ErrorCode::Malformed),
        Just(ErrorCode::Unknown),
        Just(ErrorCode::Storage),
        Just(ErrorCode::Busy),
    ];
    let refused = (code, proptest::option::of(0..5_000_u32));
    let status = prop_oneof![
        Just(CommitStatus::Accepted),
        any::<bool>().prop_map(|folded| CommitStatus::Late { folded }),
    ];
    let assigned = prop_oneof![
        Just(Assignment::Round(Box::new(assignment()))),
        (0..5_000_u32).prop_map(|milliseconds| Assignment::Wait { milliseconds }),
    ];
    prop_oneof![
        assigned.prop_map(|assignment| Happening::Answer(Response::Assignment(assignment))),
        Just(Happening::Answer(missing())),
        Just(Happening::Answer(Response::Missing(ChunkSet::default()))),
        Just(Happening::Answer(Response::Stored)),
        status.prop_map(|status| Happening::Answer(Response::Committed(status))),
        refused.prop_map(|(code, retry)| Happening::Answer(error(code, retry))),
        Just(Happening::Fetched),
        Just(Happening::Trained),
        Just(Happening::Sent),
        Just(Happening::Failed),
        Just(Happening::GaveUp),
        any::<u16>().prop_map(Happening::Later),
    ]
}

/// Whether the session is about to do something for the update.
fn is_about_the_update(action: &Action) -> bool {
    match action {
        Action::Ask(Request::UploadBegin(offered)) => **offered == offer(),
        Action::Ask(Request::Commit(key)) => *key == offer().key,
        Action::Send(offered, _) => **offered == offer(),
        _ => false,
    }
}

proptest! {
    /// Whatever happens, in whatever order: a trained update is not forgotten before the server has
    /// answered what became of it, and the session never waits for ever.
    #[test]
    fn no_update_is_forgotten(happenings in proptest::collection::vec(happening(), 0..60)) {
        let mut session = Session::new(None);
        let (mut now, mut kept) = (NOW, false);
        for happening in happenings {
            let training = matches!(session.state, State::Training(_));
            match happening {
                Happening::Answer(response) => {
                    if let Some(Event::Settled(settled, _)) = session.answered(now, 7, response) {
                        prop_assert_eq!(*settled, offer());
                        kept = false;
                    }
                }
                Happening::Fetched => session.fetched(),
                Happening::Trained => {
                    session.trained(offer());
                    kept |= training;
                }
                Happening::Sent => session.sent(),
                Happening::Failed => session.failed(now, 7),
                Happening::GaveUp => session.gave_up(now, 7),
                Happening::Later(milliseconds) => now += Duration::from_millis(milliseconds.into()),
            }
            let then = match session.next(now) {
                Action::Wait(until) => {
                    prop_assert!(until > now && until - now <= Duration::from_secs(60));
                    until
                }
                _ => now,
            };
            let action = session.next(then);
            prop_assert!(!matches!(action, Action::Wait(_)));
            prop_assert_eq!(kept, is_about_the_update(&action), "{:?}", action);
            if matches!(action, Action::End(_)) {
                break;
            }
        }
    }
}
