//! What the operator's page shows: a piece of HTML that the page's script puts in place.

use std::fmt::Write;
use std::sync::atomic::Ordering;

use crate::coordinator::{Coordinator, Federation, RoundSummary};
use crate::operator::{Standing, SuiteScore, date, evaluations, standing, suites, summaries};
use crate::report::chart::{BarChart, LineChart, Series};
use crate::report::parts::{self, Card, Tile, cell, table};
use crate::report::text::{self, Escaped};
use crate::simulate::journal::EvaluationRecord;
use crate::store::{
    DeviceRecord, Ended, FederationRow, MemberRow, Outcome, OutcomeCount, Status, SummaryRow,
};

use crate::operator::OperatorError;

/// Rows of a table of devices, of parts in a round, of failures; more are counted only.
const MAX_ROWS: usize = 100;
/// Failures that are shown.
const MAX_FAILURES: u32 = 20;
/// Rounds that the table shows, the newest first.
const MAX_ROUNDS: usize = 50;

/// One federation at one moment.
struct Seen {
    standing: Standing,
    /// Milliseconds until the round's time is over.
    left: Option<u64>,
    rounds: u32,
    target: usize,
    members: Vec<MemberRow>,
    summaries: Vec<(SummaryRow, RoundSummary)>,
    outcomes: Vec<OutcomeCount>,
    evaluations: Vec<EvaluationRecord>,
    suites: Vec<SuiteScore>,
    failures: Vec<Ended>,
}

/// The page's content.
///
/// # Errors
/// When the store cannot be read.
pub fn render(coordinator: &Coordinator) -> Result<String, OperatorError> {
    let store = coordinator.store();
    let devices = store.devices()?;
    let mut html = String::new();
    parts::tiles(&mut html, &tiles(coordinator, &devices));
    for federation in coordinator.federations() {
        if let Some(row) = store.federation(federation.name())? {
            render_federation(&mut html, &look(coordinator, federation, row)?);
        }
    }
    parts::card(&mut html, "Devices", None, device_table(&devices));
    Ok(html)
}

fn look(
    coordinator: &Coordinator,
    federation: &Federation,
    row: FederationRow,
) -> Result<Seen, OperatorError> {
    let (store, config) = (coordinator.store(), &federation.config);
    Ok(Seen {
        left: row.deadline.map(|at| at.saturating_sub(coordinator.clock().now())),
        rounds: config.training.rounds,
        target: config.training.sample as usize,
        members: store.members_since(&row.name, row.epoch, row.round)?,
        summaries: summaries(store, &row.name)?,
        outcomes: store.outcomes(&row)?,
        evaluations: evaluations(store, &row)?,
        suites: suites(store, &row)?,
        failures: store.failures(&row.name, MAX_FAILURES)?,
        standing: standing(store, row)?,
    })
}

fn tiles(coordinator: &Coordinator, devices: &[DeviceRecord]) -> Vec<Tile> {
    let metrics = coordinator.metrics();
    let revoked = devices.iter().filter(|device| device.revoked_at.is_some()).count();
    let refused = metrics.requests_failed.load(Ordering::Relaxed);
    let answered = metrics.requests.load(Ordering::Relaxed);
    vec![
        Tile::plain(
            "devices",
            text::count((devices.len() - revoked) as u64),
            match revoked {
                0 => String::new(),
                _ => format!("{} revoked", text::count(revoked as u64)),
            },
        ),
        Tile::plain("connected now", text::count(metrics.connections.load(Ordering::Relaxed)), ""),
        Tile::plain("received", text::bytes(metrics.bytes_received()), "since the server started"),
        Tile::plain("sent", text::bytes(metrics.bytes_sent()), "since the server started"),
        Tile::plain(
            "requests refused",
            text::count(refused),
            format!("of {}", text::count(answered)),
        ),
    ]
}

fn render_federation(html: &mut String, seen: &Seen) {
    let name = Escaped(&seen.standing.name);
    let _ = write!(html, r#"<section class="federation" data-federation="{name}">"#);
    let _ = write!(html, r#"<div class="card"><div class="head"><h2>{name}</h2>"#);
    let (status, order, label) = match seen.standing.status {
        Status::Running => ("running", "pause", "Pause"),
        Status::Paused => ("paused", "resume", "Resume"),
        Status::Finished => ("finished", "", ""),
    };
    let _ = write!(html, r#"<span class="status {status}">{status}</span>"#);
    if !order.is_empty() {
        let _ = write!(html, r#"<button data-post="/federations/{name}/{order}">{label}</button>"#);
    }
    html.push_str("</div>");
    live(html, seen);
    html.push_str("</div>");
    parts::cards(html, [losses(seen), accuracy(seen), updates(seen), traffic(seen)]);
    parts::card(html, "Suites of questions", None, scores(seen));
    parts::card(html, "At work now", None, members(seen));
    parts::card(html, "Latest failures", None, failures(seen));
    parts::card(html, "Rounds", None, rounds(seen));
    html.push_str("</section>\n");
}

/// The round that is open.
fn live(html: &mut String, seen: &Seen) {
    let Standing { status, reason, round, training, updates, .. } = &seen.standing;
    if *status == Status::Finished {
        let reason = reason.as_deref().unwrap_or("all rounds are done");
        let _ = write!(html, r#"<p class="about">{}</p>"#, Escaped(reason));
        return;
    }
    let _ = write!(
        html,
        r#"<p>Round <b>{round}</b> of {}: <b>{updates}</b> of {} updates in, {training} training"#,
        seen.rounds, seen.target,
    );
    if let Some(left) = seen.left {
        let _ = write!(html, ", {} left", text::duration(left as f64 / 1000.0));
    }
    let _ = write!(
        html,
        r#"</p><progress max="{}" value="{updates}" aria-label="updates of this round"></progress>"#,
        seen.target,
    );
}

fn losses(seen: &Seen) -> Card {
    let training = seen.summaries.iter();
    let training = training.filter_map(|(row, did)| Some((f64::from(row.round), did.loss?)));
    let held_out = seen.evaluations.iter().map(|e| (f64::from(e.round), e.score.loss));
    let chart = LineChart {
        label: "loss by round",
        x_label: "round",
        series: vec![
            Series { name: "training".into(), points: training.collect() },
            Series { name: "held-out rows".into(), points: held_out.collect() },
        ],
        dots: Vec::new(),
        format: text::loss,
    };
    Some(("Loss", chart.render()?))
}

fn accuracy(seen: &Seen) -> Card {
    let name = seen.evaluations.first()?.score.accuracy().0;
    let points = seen.evaluations.iter().map(|e| (f64::from(e.round), e.score.accuracy().1));
    let chart = LineChart {
        label: "accuracy on held-out rows by round",
        x_label: "round",
        series: vec![Series { name: name.into(), points: points.collect() }],
        dots: Vec::new(),
        format: text::percent,
    };
    Some(("Accuracy on held-out rows", chart.render()?))
}

/// Numbers of suites, newest round first.
fn scores(seen: &Seen) -> Option<String> {
    let mut newest: Vec<&SuiteScore> = seen.suites.iter().collect();
    // Stable: within a round, suites and numbers keep their order.
    newest.sort_by_key(|score| std::cmp::Reverse(score.round));
    let rows = newest.iter().take(MAX_ROWS).map(|score| {
        let error = score.standard_error.map_or("–".into(), |error| format!("{error:.4}"));
        let cells = vec![
            cell(score.round),
            cell(&score.suite),
            cell(&score.metric),
            cell(format!("{:.4}", score.value)),
            cell(error),
            cell(score.rows),
        ];
        ("", cells)
    });
    let headings = ["round", "suite", "metric", "value", "standard error", "questions"];
    (!newest.is_empty()).then(|| table(&headings, rows))
}

/// The ways in which a part in a round can end, as the chart stacks them.
const ENDS: [(&str, Outcome); 5] = [
    ("accepted", Outcome::Accepted),
    ("late, counted", Outcome::Folded),
    ("late", Outcome::Late),
    ("refused", Outcome::Refused(String::new())),
    ("never came", Outcome::Dropped),
];

fn updates(seen: &Seen) -> Card {
    let last = seen.outcomes.last()?.round;
    let bar = |round: u32| {
        let count = |outcome: &Outcome| {
            let of_it = seen.outcomes.iter().filter(|c| c.round == round && c.outcome == *outcome);
            of_it.map(|count| count.parts as f64).sum()
        };
        (round, ENDS.iter().map(|(_, outcome)| count(outcome)).collect())
    };
    let chart = BarChart {
        label: "what became of the devices of each round",
        x_label: "round",
        parts: ENDS.iter().map(|(name, _)| (*name).to_owned()).collect(),
        bars: (1..=last).map(bar).collect(),
        // Parts of a device are none.
        format: |value| if value.fract() == 0.0 { format!("{value:.0}") } else { String::new() },
        unit: 1.0,
    };
    Some(("Updates", chart.render()?))
}

fn traffic(seen: &Seen) -> Card {
    let closed = seen.summaries.iter().filter(|(row, _)| row.round > 0);
    let chart = BarChart {
        label: "bytes of the updates of each round",
        x_label: "round",
        parts: vec!["received".into()],
        bars: closed.map(|(row, did)| (row.round, vec![did.bytes as f64])).collect(),
        format: |value| text::bytes(value as u64),
        unit: 1024.0,
    };
    Some(("Bytes of updates", chart.render()?))
}

fn members(seen: &Seen) -> Option<String> {
    let at_work = || seen.members.iter().filter(|m| m.outcome == Outcome::Training);
    let rows = at_work()
        .take(MAX_ROWS)
        .map(|member| ("", vec![cell(member.device), cell(format!("round {}", member.round))]));
    let rows: Vec<_> = rows.collect();
    let more = at_work().count().saturating_sub(MAX_ROWS);
    (!rows.is_empty()).then(|| table(&["device", "trains for"], rows.into_iter()) + &and_more(more))
}

fn failures(seen: &Seen) -> Option<String> {
    let rows = seen.failures.iter().map(|Ended { member, at }| {
        let why = match &member.outcome {
            Outcome::Refused(reason) => format!("refused: {reason}"),
            Outcome::Late => "came too late".into(),
            _ => "never came".into(),
        };
        let round = format!("round {}", member.round);
        ("", vec![cell(date(*at)), cell(member.device), cell(round), cell(why)])
    });
    let headings = ["when", "device", "round", "what happened"];
    (!seen.failures.is_empty()).then(|| table(&headings, rows))
}

fn rounds(seen: &Seen) -> Option<String> {
    let current = seen.standing.round;
    let rows = seen.summaries.iter().rev().take(MAX_ROUNDS).map(|(row, did)| {
        let found = seen.evaluations.iter().find(|e| e.round == row.round);
        let back = match row.kept && row.round + 1 < current {
            true => format!(
                "<td><button data-post=\"/federations/{}/rollback\" data-round=\"{1}\" \
                 data-confirm=\"Go back to the adapter after round {1}? Later rounds are \
                 forgotten.\">Go back here</button></td>",
                Escaped(&seen.standing.name),
                row.round,
            ),
            false => cell(""),
        };
        let cells = vec![
            cell(row.round),
            cell(date(row.closed_at)),
            cell(did.updates),
            cell(text::count(did.rows)),
            cell(did.loss.map_or("–".into(), text::loss)),
            cell(found.map_or("–".into(), |found| text::loss(found.score.loss))),
            cell(format!("{:.4}", did.step_norm)),
            cell(text::bytes(did.bytes)),
            back,
        ];
        ("", cells)
    });
    let headings = [
        "round",
        "closed",
        "updates",
        "rows",
        "training loss",
        "held-out loss",
        "step (L2)",
        "received",
        "",
    ];
    (!seen.summaries.is_empty()).then(|| table(&headings, rows))
}

fn device_table(devices: &[DeviceRecord]) -> Option<String> {
    let rows = devices.iter().rev().take(MAX_ROWS).map(|device| {
        let (state, revoke) = match (device.revoked_at, device.not_after) {
            (Some(at), _) => (format!("revoked {}", date(at)), cell("")),
            (None, until) => (
                until.map_or("without certificate".into(), |at| {
                    format!("certificate until {}", date(at.max(0) as u64 * 1000))
                }),
                format!(
                    "<td><button data-post=\"/devices/{0}/revoke\" data-confirm=\"Shut {0} out for \
                     good?\">Revoke</button></td>",
                    device.id,
                ),
            ),
        };
        let federation = device.federation.as_deref().unwrap_or("any");
        let cells = vec![
            cell(device.id),
            cell(&device.app),
            cell(federation),
            cell(date(device.enrolled_at)),
            cell(state),
            revoke,
        ];
        ("", cells)
    });
    let headings = ["device", "app", "federation", "enrolled", "state", ""];
    let more = devices.len().saturating_sub(MAX_ROWS);
    (!devices.is_empty()).then(|| table(&headings, rows) + &and_more(more))
}

fn and_more(more: usize) -> String {
    match more {
        0 => String::new(),
        _ => format!(r#"<p class="about">and {} more</p>"#, text::count(more as u64)),
    }
}
