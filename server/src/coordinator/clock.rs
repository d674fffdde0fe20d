//! The server's clock.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970 that never jump: the system's time when the server started, and what has
/// passed since. Somebody who sets the system's clock moves no deadline of a running server.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: u64,
    since: Instant,
}

impl Clock {
    /// A clock that starts at the system's time.
    pub fn start() -> Self {
        let start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self { start: start.as_millis() as u64, since: Instant::now() }
    }

    /// Milliseconds since 1970.
    pub fn now(&self) -> u64 {
        self.start + self.since.elapsed().as_millis() as u64
    }

    /// The same for certificates.
    pub fn date(&self) -> time::OffsetDateTime {
        let seconds = i64::try_from(self.now() / 1000).unwrap_or(i64::MAX);
        // Years up to 9999 are within range.
        time::OffsetDateTime::from_unix_timestamp(seconds)
            .unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
    }
}
