//! What is counted, for people and for Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::RoundSummary;
use crate::evaluate::suite::Metric;
use crate::store::Outcome;

/// Counters of a running server. They start at zero with it; what lasts is in the store.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Connections that are open.
    pub connections: AtomicU64,
    /// Connections that were refused because of limits.
    pub connections_refused: AtomicU64,
    /// Requests answered.
    pub requests: AtomicU64,
    /// Requests that failed, whoever was at fault.
    pub requests_failed: AtomicU64,
    bytes_received: AtomicU64,
    bytes_sent: AtomicU64,
    failures: AtomicU64,
    federations: Mutex<BTreeMap<String, OfFederation>>,
}

#[derive(Debug, Default)]
struct OfFederation {
    outcomes: BTreeMap<&'static str, u64>,
    rounds: u64,
    loss: Option<f64>,
    evaluation_loss: Option<f64>,
    /// By suite and metric.
    suites: BTreeMap<(String, String), f64>,
    aggregation_seconds: f64,
}

impl Metrics {
    /// Bytes of updates came in.
    pub fn received(&self, bytes: usize) {
        self.bytes_received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes of adapters and models went out.
    pub fn sent(&self, bytes: usize) {
        self.bytes_sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes of updates so far.
    pub fn bytes_received(&self) -> u64 {
        self.bytes_received.load(Ordering::Relaxed)
    }

    /// Bytes of adapters and models so far.
    pub fn bytes_sent(&self) -> u64 {
        self.bytes_sent.load(Ordering::Relaxed)
    }

    /// A round's driver failed and tries again.
    pub(super) fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn settled(&self, federation: &str, outcome: &Outcome) {
        let outcome = match outcome {
            Outcome::Accepted => "accepted",
            Outcome::Folded => "folded",
            Outcome::Late => "late",
            Outcome::Refused(_) => "refused",
            Outcome::Training | Outcome::Dropped => return,
        };
        self.with(federation, |it| *it.outcomes.entry(outcome).or_default() += 1);
    }

    pub(super) fn round_closed(&self, federation: &str, summary: &RoundSummary) {
        self.with(federation, |it| {
            it.rounds += 1;
            it.loss = summary.loss.or(it.loss);
            it.aggregation_seconds += summary.seconds;
        });
    }

    pub(super) fn evaluated(&self, federation: &str, loss: f64) {
        self.with(federation, |it| it.evaluation_loss = Some(loss));
    }

    pub(super) fn asked<'a>(
        &self,
        federation: &str,
        suite: &str,
        metrics: impl Iterator<Item = &'a Metric>,
    ) {
        self.with(federation, |it| {
            for metric in metrics {
                it.suites.insert((suite.to_owned(), metric.name.clone()), metric.value);
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, OfFederation>> {
        // Numbers for people: a panic in between leaves nothing worse than one uncounted event.
        self.federations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with(&self, federation: &str, change: impl FnOnce(&mut OfFederation)) {
        change(self.lock().entry(federation.to_owned()).or_default());
    }

    /// All counters in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut page = Page::default();
        let global: [(&str, &str, &str, &AtomicU64); 7] = [
            ("connections", "gauge", "Open connections.", &self.connections),
            (
                "connections_refused_total",
                "counter",
                "Connections refused because of limits.",
                &self.connections_refused,
            ),
            ("requests_total", "counter", "Requests answered.", &self.requests),
            ("requests_failed_total", "counter", "Requests refused.", &self.requests_failed),
            ("received_bytes_total", "counter", "Bytes of updates.", &self.bytes_received),
            ("sent_bytes_total", "counter", "Bytes of adapters and models.", &self.bytes_sent),
            ("round_failures_total", "counter", "Failures of rounds.", &self.failures),
        ];
        for (name, kind, help, value) in global {
            page.head(name, kind, help);
            page.line(name, "", value.load(Ordering::Relaxed) as f64);
        }
        let federations = self.lock();
        page.head("updates_total", "counter", "Updates, by what became of them.");
        for (name, it) in &*federations {
            for (outcome, count) in &it.outcomes {
                let labels = format!("federation=\"{name}\",outcome=\"{outcome}\"");
                page.line("updates_total", &labels, *count as f64);
            }
        }
        type Read = fn(&OfFederation) -> Option<f64>;
        let each: [(&str, &str, &str, Read); 4] = [
            ("rounds_total", "counter", "Rounds closed.", |it| Some(it.rounds as f64)),
            ("training_loss", "gauge", "Training loss of the last round, nats.", |it| it.loss),
            ("evaluation_loss", "gauge", "Held-out loss, nats.", |it| it.evaluation_loss),
            ("aggregation_seconds_total", "counter", "Time spent on aggregation.", |it| {
                Some(it.aggregation_seconds)
            }),
        ];
        for (name, kind, help, read) in each {
            page.head(name, kind, help);
            for (federation, it) in &*federations {
                if let Some(value) = read(it) {
                    page.line(name, &format!("federation=\"{federation}\""), value);
                }
            }
        }
        page.head("suite_score", "gauge", "Numbers of suites of questions, newest adapter asked.");
        for (federation, it) in &*federations {
            for ((suite, metric), value) in &it.suites {
                let labels =
                    format!("federation=\"{federation}\",suite=\"{suite}\",metric=\"{metric}\"");
                page.line("suite_score", &labels, *value);
            }
        }
        page.text
    }
}

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "# HELP fleetune_{name} {help}\n# TYPE fleetune_{name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &str, value: f64) {
        let braces = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        let _ = writeln!(self.text, "fleetune_{name}{braces} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_written_as_prometheus_reads_them() {
        let metrics = Metrics::default();
        metrics.received(12);
        metrics.settled("notes", &Outcome::Accepted);
        metrics.settled("notes", &Outcome::Accepted);
        metrics.evaluated("notes", 1.5);
        let accuracy = Metric {
            name: "accuracy".to_owned(),
            group: None,
            value: 0.5,
            standard_error: None,
            rows: 2,
        };
        metrics.asked("notes", "fpb", [&accuracy].into_iter());
        let page = metrics.render();
        for line in [
            "fleetune_received_bytes_total 12",
            "fleetune_updates_total{federation=\"notes\",outcome=\"accepted\"} 2",
            "fleetune_evaluation_loss{federation=\"notes\"} 1.5",
            "fleetune_suite_score{federation=\"notes\",suite=\"fpb\",metric=\"accuracy\"} 0.5",
            "# TYPE fleetune_connections gauge",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
        }
    }
}
