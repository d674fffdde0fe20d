//! Long work on threads of its own, awaited by whoever asked for it.
//!
//! A future that is dropped ends its work: in Kotlin, Swift and Python that is what cancelling a
//! coroutine or a task does. Closing ends all work and waits for it, except from inside a callback,
//! which would wait for itself.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use fleetune_core::app::Gate;
use fleetune_core::model::CancelToken;
use tokio::sync::oneshot;

/// By what work is held up or ended.
pub(crate) trait Control: Send + Sync {
    fn pause(&self);
    fn resume(&self);
    fn cancel(&self);
}

impl Control for CancelToken {
    fn pause(&self) {
        CancelToken::pause(self);
    }

    fn resume(&self) {
        CancelToken::resume(self);
    }

    fn cancel(&self) {
        CancelToken::cancel(self);
    }
}

impl Control for Gate {
    fn pause(&self) {
        Gate::pause(self);
    }

    fn resume(&self) {
        Gate::resume(self);
    }

    fn cancel(&self) {
        self.stop();
    }
}

/// Why work was not done that nothing is wrong with.
#[derive(Debug)]
pub(crate) enum WorkFault {
    /// Everything was closed.
    Closed,
    /// The system gives no thread, or the work panicked: in words.
    Internal(String),
}

/// All work of one instance.
#[derive(Default)]
pub(crate) struct Tasks {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    closed: bool,
    next: u64,
    running: Vec<Running>,
}

struct Running {
    number: u64,
    thread: Option<ThreadId>,
    control: Arc<dyn Control>,
}

impl Tasks {
    /// Does `work` on a thread of its own; `control` ends it.
    pub(crate) async fn run<T, E>(
        self: &Arc<Self>,
        name: &str,
        control: Arc<dyn Control>,
        work: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<WorkFault> + Send + 'static,
    {
        let entry = self.enter(control.clone())?;
        let (tell, told) = oneshot::channel();
        let thread = thread::Builder::new().name(format!("fleetune-{name}"));
        let started = thread.spawn(move || {
            entry.begin();
            let outcome = catch_unwind(AssertUnwindSafe(work));
            let outcome =
                outcome.unwrap_or_else(|panic| Err(WorkFault::Internal(words(&*panic)).into()));
            drop(entry);
            // Nobody waits any more where the future was dropped.
            let _ = tell.send(outcome);
        });
        started.map_err(|error| WorkFault::Internal(format!("no thread: {error}")))?;
        let mut ends = EndsWork { control, over: false };
        let outcome = told.await;
        ends.over = true;
        outcome.unwrap_or_else(|_| Err(WorkFault::Internal("the work vanished".into()).into()))
    }

    /// Does something to all work under way.
    pub(crate) fn each(&self, act: impl Fn(&dyn Control)) {
        let controls: Vec<_> = self.lock().running.iter().map(|r| r.control.clone()).collect();
        controls.iter().for_each(|control| act(&**control));
    }

    /// Ends all work, waits until it has ended, and lets none begin.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.each(|control| control.cancel());
        let me = thread::current().id();
        let others = |state: &mut State| state.running.iter().any(|r| r.thread != Some(me));
        let waited = self.ended.wait_while(self.lock(), others);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    fn enter(self: &Arc<Self>, control: Arc<dyn Control>) -> Result<Entry, WorkFault> {
        let mut state = self.lock();
        if state.closed {
            return Err(WorkFault::Closed);
        }
        let number = state.next;
        state.next += 1;
        state.running.push(Running { number, thread: None, control });
        Ok(Entry { tasks: self.clone(), number })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is whole at once.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one work among all.
struct Entry {
    tasks: Arc<Tasks>,
    number: u64,
}

impl Entry {
    fn begin(&self) {
        let mut state = self.tasks.lock();
        let mine = state.running.iter_mut().find(|running| running.number == self.number);
        if let Some(mine) = mine {
            mine.thread = Some(thread::current().id());
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.tasks.lock().running.retain(|running| running.number != self.number);
        self.tasks.ended.notify_all();
    }
}

/// Ends the work of a future that is dropped before it is over.
struct EndsWork {
    control: Arc<dyn Control>,
    over: bool,
}

impl Drop for EndsWork {
    fn drop(&mut self) {
        if !self.over {
            self.control.cancel();
        }
    }
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    impl From<WorkFault> for String {
        fn from(fault: WorkFault) -> Self {
            format!("{fault:?}")
        }
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn a_panic_is_an_error_and_work_goes_on() {
        let tasks = Arc::new(Tasks::default());
        let control: Arc<dyn Control> = Arc::new(CancelToken::default());
        let failed: Result<(), String> =
            block_on(tasks.run("test", control.clone(), || panic!("a bug in step {}", 3)));
        assert!(failed.unwrap_err().contains("a bug in step 3"));
        assert_eq!(block_on(tasks.run("test", control, || Ok::<_, String>(5))), Ok(5));
    }

    #[test]
    fn dropping_the_future_ends_the_work_and_closing_waits_for_it() {
        let tasks = Arc::new(Tasks::default());
        let token = CancelToken::default();
        let (begun, has_begun) = channel();
        let work = {
            let token = token.clone();
            move || {
                begun.send(()).unwrap();
                while !token.is_cancelled() {
                    thread::yield_now();
                }
                Ok::<_, String>(())
            }
        };
        block_on(async {
            let running = tasks.run("test", Arc::new(token), work);
            tokio::select! {
                biased;
                _ = running => panic!("nobody ended it"),
                () = async { has_begun.recv().unwrap() } => {}
            }
        });
        tasks.close();
        let control = Arc::new(CancelToken::default());
        let refused = block_on(tasks.run("test", control, || Ok::<_, String>(())));
        assert_eq!(refused.unwrap_err(), "Closed");
    }

    #[test]
    fn closing_from_inside_the_work_does_not_wait_for_itself() {
        let tasks = Arc::new(Tasks::default());
        let inside = tasks.clone();
        let control = Arc::new(CancelToken::default());
        let done = block_on(tasks.run("test", control, move || {
            inside.close();
            Ok::<_, String>(())
        }));
        assert_eq!(done, Ok(()));
    }
}
