//! How long to wait before trying again.

use std::time::Duration;

/// Shortest wait.
const FIRST: Duration = Duration::from_millis(500);
/// Longest wait.
const LONGEST: Duration = Duration::from_secs(60);

/// Waits that double with each failure in a row, up to a minute, and are drawn from their upper
/// half, so that devices that failed together do not come back together.
#[derive(Debug, Clone, Copy, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait after one more failure; `random` is any random number.
    pub fn next(&mut self, random: u32) -> Duration {
        let doubled = FIRST.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        let half = doubled.min(LONGEST) / 2;
        half + half.mul_f64(f64::from(random) / f64::from(u32::MAX))
    }

    /// Something worked: the next failure is a first one.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_minute_and_begin_anew_after_success() {
        let mut backoff = Backoff::default();
        let waits: Vec<Duration> = (0..40).map(|_| backoff.next(u32::MAX)).collect();
        assert_eq!(waits[..3], [500, 1000, 2000].map(Duration::from_millis));
        assert!(waits.is_sorted() && waits[39] == LONGEST);
        backoff.reset();
        assert_eq!(backoff.next(0), FIRST / 2);
    }
}
