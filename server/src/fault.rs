//! Named points at which a test ends the process, as a kill or a loss of power would: no destructor
//! runs, nothing is flushed. Only builds with the feature `fault-injection` have them.

/// The environment variable that names the point, and after a colon how often it is passed first.
#[cfg(feature = "fault-injection")]
const VARIABLE: &str = "FLEETUNE_CRASH_AT";

/// Ends the process here if the environment says so.
#[cfg(feature = "fault-injection")]
pub fn point(name: &str) {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static PASSED: AtomicUsize = AtomicUsize::new(0);
    let Ok(wanted) = std::env::var(VARIABLE) else { return };
    let (point, passes) = wanted.split_once(':').unwrap_or((&wanted, "0"));
    if point == name && PASSED.fetch_add(1, Ordering::SeqCst) >= passes.parse().unwrap_or(0) {
        std::process::abort();
    }
}

/// Does nothing.
#[cfg(not(feature = "fault-injection"))]
#[inline(always)]
pub fn point(_name: &str) {}
