//! How far long work has come, on stderr.
//!
//! On a terminal: a bar with rate and remaining time. Elsewhere (logs, pipes): plain lines, at most
//! one every few seconds, so that a log stays readable. `--quiet` shows neither.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanDuration, MultiProgress, ProgressBar, ProgressStyle};

/// Time between two plain lines of one progress.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

static QUIET: AtomicBool = AtomicBool::new(false);

/// Switches progress off, or on again. For the whole process.
pub fn set_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// All bars of the process, drawn below each other.
fn bars() -> &'static MultiProgress {
    static BARS: OnceLock<MultiProgress> = OnceLock::new();
    BARS.get_or_init(MultiProgress::new)
}

/// Runs `write` while no bar is on the screen, so that its output does not mix with them.
pub fn suspend<T>(write: impl FnOnce() -> T) -> T {
    bars().suspend(write)
}

/// Says something to the person watching: a line on stderr, unless `--quiet`.
pub fn note(text: impl std::fmt::Display) {
    if !is_quiet() {
        // A stderr that is gone leaves nobody to tell.
        suspend(|| {
            let _ = writeln!(io::stderr(), "{text}");
        });
    }
}

/// Writes log records to stderr, above the bars.
#[derive(Debug, Default, Clone, Copy)]
pub struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        suspend(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes, shown as KiB, MiB, GiB.
    Bytes,
    /// Things of this name, in the plural: `"steps"`, `"rows"`.
    Items(&'static str),
}

/// The progress of one piece of work. It disappears from the terminal when dropped.
pub struct Progress {
    label: String,
    unit: Unit,
    total: Option<u64>,
    position: AtomicU64,
    /// Position when the work started: a resumed download's rate counts new bytes only.
    origin: AtomicU64,
    started: Instant,
    last: Mutex<Last>,
    bar: Option<ProgressBar>,
}

/// What plain lines were last told.
struct Last {
    line: Instant,
    position: Option<u64>,
    message: String,
}

impl Progress {
    /// Starts to show work of `total` units, or of unknown length.
    pub fn new(label: impl Into<String>, total: Option<u64>, unit: Unit) -> Self {
        let label = label.into();
        let now = Instant::now();
        let bar = (io::stderr().is_terminal() && !is_quiet()).then(|| {
            let bar = match total {
                Some(total) => ProgressBar::new(total),
                None => ProgressBar::new_spinner(),
            };
            let bar = bars().add(bar.with_style(style(total.is_some(), unit)));
            bar.set_prefix(label.clone());
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self {
            label,
            unit,
            total,
            position: AtomicU64::new(0),
            origin: AtomicU64::new(0),
            started: now,
            last: Mutex::new(Last { line: now, position: None, message: String::new() }),
            bar,
        }
    }

    /// Starts counting at `position`, work done before this process.
    pub fn resume_at(&self, position: u64) {
        self.position.store(position, Ordering::Relaxed);
        self.origin.store(position, Ordering::Relaxed);
        if let Some(bar) = &self.bar {
            bar.set_position(position);
            bar.reset_eta();
        }
    }

    /// `amount` more units are done.
    pub fn advance(&self, amount: u64) {
        self.position.fetch_add(amount, Ordering::Relaxed);
        match &self.bar {
            Some(bar) => bar.inc(amount),
            None => self.line_if_due(),
        }
    }

    /// Adds words to the progress: the loss, the file at hand.
    pub fn message(&self, message: impl Into<String>) {
        let message = message.into();
        match &self.bar {
            Some(bar) => bar.set_message(message),
            None => self.lock().message = message,
        }
    }

    /// Ends the work: the bar goes, and a last plain line stays where there is no terminal.
    pub fn finish(self) {
        if self.bar.is_some() || is_quiet() {
            return;
        }
        let last = self.lock();
        if last.position != Some(self.position.load(Ordering::Relaxed)) {
            note(self.describe(&last.message, Instant::now()));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn line_if_due(&self) {
        if is_quiet() {
            return;
        }
        let now = Instant::now();
        let mut last = self.lock();
        if now.duration_since(last.line) >= LINE_INTERVAL {
            last.line = now;
            last.position = Some(self.position.load(Ordering::Relaxed));
            let text = self.describe(&last.message, now);
            drop(last);
            note(text);
        }
    }

    /// `download: 12.00 MiB of 96.00 MiB (12%), 3.10 MiB/s, 27 seconds left, words`.
    fn describe(&self, message: &str, now: Instant) -> String {
        let position = self.position.load(Ordering::Relaxed);
        let seconds = now.duration_since(self.started).as_secs_f64().max(1e-3);
        let done = position.saturating_sub(self.origin.load(Ordering::Relaxed));
        let rate = done as f64 / seconds;
        let mut text = format!("{}: ", self.label);
        match (self.unit, self.total) {
            (Unit::Bytes, Some(total)) => {
                text += &format!("{} of {}", HumanBytes(position), HumanBytes(total));
            }
            (Unit::Bytes, None) => text += &HumanBytes(position).to_string(),
            (Unit::Items(name), Some(total)) => text += &format!("{position} of {total} {name}"),
            (Unit::Items(name), None) => text += &format!("{position} {name}"),
        }
        if let Some(total) = self.total.filter(|&total| total > 0) {
            text += &format!(" ({}%)", position.saturating_mul(100) / total);
        }
        match self.unit {
            Unit::Bytes => text += &format!(", {}/s", HumanBytes(rate as u64)),
            Unit::Items(_) => text += &format!(", {rate:.2}/s"),
        }
        if let Some(left) = self.total.and_then(|total| total.checked_sub(position))
            && left > 0
            && rate > 0.0
        {
            let left = Duration::from_secs_f64((left as f64 / rate).min(1e9));
            text += &format!(", {} left", HumanDuration(left));
        }
        if !message.is_empty() {
            text += ", ";
            text += message;
        }
        text
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style(known_total: bool, unit: Unit) -> ProgressStyle {
    let template = match (known_total, unit) {
        (true, Unit::Bytes) => {
            "{prefix} {bar:28} {bytes}/{total_bytes} {bytes_per_sec} {eta} left {wide_msg}"
                .to_owned()
        }
        (true, Unit::Items(name)) => {
            format!(
                "{{prefix}} {{bar:28}} {{pos}}/{{len}} {name} {{per_sec}} {{eta}} left {{wide_msg}}"
            )
        }
        (false, Unit::Bytes) => {
            "{prefix} {spinner} {bytes} {bytes_per_sec} {elapsed} {wide_msg}".to_owned()
        }
        (false, Unit::Items(name)) => {
            format!("{{prefix}} {{spinner}} {{pos}} {name} {{per_sec}} {{elapsed}} {{wide_msg}}")
        }
    };
    ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_line_tells_amount_rate_and_remaining_time() {
        let progress = Progress::new("train", Some(100), Unit::Items("steps"));
        progress.advance(25);
        let text = progress.describe("loss 2.10", progress.started + Duration::from_secs(10));
        assert_eq!(text, "train: 25 of 100 steps (25%), 2.50/s, 30 seconds left, loss 2.10");
    }

    #[test]
    fn a_resumed_download_counts_only_new_bytes_in_its_rate() {
        let progress = Progress::new("model", Some(4096), Unit::Bytes);
        progress.resume_at(2048);
        progress.advance(1024);
        let text = progress.describe("", progress.started + Duration::from_secs(1));
        assert_eq!(text, "model: 3.00 KiB of 4.00 KiB (75%), 1.00 KiB/s, 1 second left");
    }

    #[test]
    fn work_of_unknown_length_has_no_share_and_no_end() {
        let progress = Progress::new("read", None, Unit::Items("rows"));
        progress.advance(10);
        let text = progress.describe("", progress.started + Duration::from_secs(5));
        assert_eq!(text, "read: 10 rows, 2.00/s");
    }
}
