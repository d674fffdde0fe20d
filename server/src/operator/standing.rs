//! Where federations stand, and what their rounds did.

use serde::Serialize;

use super::OperatorError;
use super::orders::known;
use crate::coordinator::RoundSummary;
use crate::simulate::journal::{EvaluationRecord, SuiteRecord};
use crate::store::{FederationRow, Outcome, Status, Store, StoreError, SummaryRow};

/// Where a federation stands.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Standing {
    /// Its name.
    pub name: String,
    /// Whether it goes on.
    pub status: Status,
    /// Why it does not.
    pub reason: Option<String>,
    /// The round that collects updates.
    pub round: u32,
    /// Devices that train for it.
    pub training: usize,
    /// Updates that count in it so far.
    pub updates: usize,
    /// Training loss of the last round, nats.
    pub loss: Option<f64>,
    /// Held-out loss of the last evaluation, nats.
    pub evaluation_loss: Option<f64>,
    /// What suites of questions found when they were asked last.
    pub suites: Vec<SuiteScore>,
}

/// A number of a suite of questions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SuiteScore {
    /// The round whose adapter was asked.
    pub round: u32,
    /// The suite.
    pub suite: String,
    /// What the number is; a suite's main number comes first.
    pub metric: String,
    /// The number.
    pub value: f64,
    /// Its standard error.
    pub standard_error: Option<f64>,
    /// Questions it is made of.
    pub rows: usize,
}

/// Where all federations stand, by name.
///
/// # Errors
/// When the store cannot be read.
pub fn standings(store: &Store) -> Result<Vec<Standing>, StoreError> {
    store.federations()?.into_iter().map(|row| standing(store, row)).collect()
}

/// Where a federation stands.
///
/// # Errors
/// When the store cannot be read.
pub fn standing(store: &Store, row: FederationRow) -> Result<Standing, StoreError> {
    let members = store.members_since(&row.name, row.epoch, row.round)?;
    let last = store.summaries(&row.name, row.epoch)?.pop();
    let found = evaluations(store, &row)?.pop();
    let asked = suites(store, &row)?;
    let last_asked = asked.last().map(|score| score.round);
    Ok(Standing {
        suites: asked.into_iter().filter(|score| Some(score.round) == last_asked).collect(),
        training: members.iter().filter(|m| m.outcome == Outcome::Training).count(),
        updates: store.counting(&row.name, row.epoch, row.round)?.len(),
        loss: last.as_ref().and_then(|last| summary(last).loss),
        evaluation_loss: found.map(|found| found.score.loss),
        name: row.name,
        status: row.status,
        reason: row.reason,
        round: row.round,
    })
}

/// What the rounds of a federation did, oldest first.
///
/// # Errors
/// When the federation is not known or the store cannot be read.
pub fn summaries(
    store: &Store,
    federation: &str,
) -> Result<Vec<(SummaryRow, RoundSummary)>, OperatorError> {
    let epoch = known(store, federation)?.epoch;
    let with_summary = |row: SummaryRow| {
        let did = summary(&row);
        (row, did)
    };
    Ok(store.summaries(federation, epoch)?.into_iter().map(with_summary).collect())
}

/// What a round did. What an older build wrote and this one cannot read counts as nothing.
fn summary(row: &SummaryRow) -> RoundSummary {
    serde_json::from_str(&row.summary).unwrap_or_default()
}

/// What evaluations of the federation found, oldest first. Those that this build cannot read are left
/// out.
///
/// # Errors
/// When the store cannot be read.
pub fn evaluations(
    store: &Store,
    federation: &FederationRow,
) -> Result<Vec<EvaluationRecord>, StoreError> {
    let rows = store.evaluations(&federation.name, federation.epoch)?;
    Ok(rows.iter().filter_map(|row| serde_json::from_str(&row.found).ok()).collect())
}

/// Numbers of all of a suite's questions, by round, oldest first. What this build cannot read is left
/// out.
///
/// # Errors
/// When the store cannot be read.
pub fn suites(store: &Store, federation: &FederationRow) -> Result<Vec<SuiteScore>, StoreError> {
    let rows = store.suites(&federation.name, federation.epoch)?;
    let records = rows.iter().filter_map(|row| serde_json::from_str(&row.found).ok());
    let records = records.flat_map(|records: Vec<SuiteRecord>| records);
    let scores = records.flat_map(|SuiteRecord { round, result }| {
        let overall: Vec<_> = result.overall().cloned().collect();
        overall.into_iter().map(move |metric| SuiteScore {
            round,
            suite: result.suite.clone(),
            metric: metric.name,
            value: metric.value,
            standard_error: metric.standard_error.map(|error| error.value()),
            rows: metric.rows,
        })
    });
    Ok(scores.collect())
}

/// A moment, in milliseconds since 1970, as `2026-01-31T12:00:00Z`.
pub fn date(milliseconds: u64) -> String {
    let seconds = i64::try_from(milliseconds / 1000).unwrap_or(i64::MAX);
    let moment = time::OffsetDateTime::from_unix_timestamp(seconds)
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    let (date, (hour, minute, second)) = (moment.date(), moment.time().as_hms());
    format!("{date}T{hour:02}:{minute:02}:{second:02}Z")
}
