//! How a caller holds up or ends a computation that runs on other threads.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::EngineError;

/// Asks a running computation to pause or to stop; it does so within one layer's time. Clones share
/// the wish.
///
/// A paused computation keeps its memory and uses no processor; it goes on where it was and computes
/// the same as if it had never paused.
#[derive(Debug, Clone, Default)]
pub struct CancelToken(Arc<Wish>);

#[derive(Debug, Default)]
struct Wish {
    cancelled: AtomicBool,
    /// Looked at before the lock is taken, which is rarely needed.
    paused: AtomicBool,
    /// Held while a wish changes, so that no computation falls asleep on a wish just taken back.
    changing: Mutex<()>,
    changed: Condvar,
}

impl CancelToken {
    /// Asks to stop. Cannot be taken back. A paused computation stops too.
    pub fn cancel(&self) {
        self.change(&self.0.cancelled, true);
    }

    /// Whether stopping was asked for.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Acquire)
    }

    /// Asks to pause until [`CancelToken::resume`].
    pub fn pause(&self) {
        self.change(&self.0.paused, true);
    }

    /// Lets a paused computation go on.
    pub fn resume(&self) {
        self.change(&self.0.paused, false);
    }

    /// Whether pausing was asked for.
    pub fn is_paused(&self) -> bool {
        self.0.paused.load(Ordering::Acquire)
    }

    /// Waits while a pause is asked for.
    ///
    /// # Errors
    /// [`EngineError::Cancelled`] where stopping is asked for.
    pub(super) fn check(&self) -> Result<(), EngineError> {
        if self.is_paused() {
            let mut changing = self.lock();
            while self.is_paused() && !self.is_cancelled() {
                // A lock that protects no data is as good after a panic as before.
                let woken = self.0.changed.wait(changing);
                changing = woken.unwrap_or_else(PoisonError::into_inner);
            }
        }
        if self.is_cancelled() { Err(EngineError::Cancelled) } else { Ok(()) }
    }

    fn change(&self, wish: &AtomicBool, value: bool) {
        let _changing = self.lock();
        wish.store(value, Ordering::Release);
        self.0.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.0.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_paused_computation_waits_until_it_may_go_on() {
        let token = CancelToken::default();
        token.pause();
        let (done, finished) = channel();
        let computation = token.clone();
        let thread = thread::spawn(move || done.send(computation.check().is_ok()));
        // It cannot end, however long one waits.
        assert!(finished.recv_timeout(Duration::from_millis(20)).is_err());
        token.resume();
        assert!(finished.recv().unwrap());
        thread.join().unwrap().unwrap();
    }

    #[test]
    fn a_paused_computation_can_be_stopped() {
        let token = CancelToken::default();
        token.pause();
        let computation = token.clone();
        let thread = thread::spawn(move || computation.check());
        token.cancel();
        assert!(matches!(thread.join().unwrap(), Err(EngineError::Cancelled)));
    }
}
