//! Where the parallel parts of the kernels run.

use std::sync::Arc;

/// A pool of threads of its own, apart from the caller's threads.
///
/// The kernels use the pool they are called in. Code run through [`Threads::run`] therefore computes
/// on this pool only; the calling thread sleeps meanwhile, and so do the pool's threads while there
/// is nothing to do. Run whole steps or rounds that way: a kernel called from a thread outside of any
/// pool has to wake the pool and wait for it, thousands of times a step. Cloning is cheap: clones
/// share the pool.
#[derive(Debug, Clone)]
pub struct Threads {
    pool: Arc<rayon::ThreadPool>,
}

/// The system refused to start threads.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {count} threads: {source}; ask for fewer")]
pub struct ThreadsError {
    count: usize,
    source: rayon::ThreadPoolBuildError,
}

impl Threads {
    /// A pool of `count` threads; zero means one per core.
    ///
    /// # Errors
    /// When the system refuses to start them.
    pub fn new(count: usize) -> Result<Self, ThreadsError> {
        Self::with_start(count, |_| {})
    }

    /// A pool of `count` threads, each of which first calls `start` with its number. An app uses
    /// this to pin the threads to slow cores or to lower their priority.
    ///
    /// # Errors
    /// When the system refuses to start them.
    pub fn with_start(
        count: usize,
        start: impl Fn(usize) + Send + Sync + 'static,
    ) -> Result<Self, ThreadsError> {
        rayon::ThreadPoolBuilder::new()
            .num_threads(count)
            .thread_name(|n| format!("fleetune-{n}"))
            // As much as a program's first thread has on most systems.
            .stack_size(8 << 20)
            .start_handler(start)
            .build()
            .map(|pool| Self { pool: Arc::new(pool) })
            .map_err(|source| ThreadsError { count, source })
    }

    /// How many threads the pool has.
    pub fn count(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Runs `work` on the pool and waits for it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.pool.install(work)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn each_thread_of_a_pool_starts_as_the_caller_wants_before_it_works() {
        let started = Arc::new(Mutex::new(Vec::new()));
        let starting = started.clone();
        let threads = Threads::with_start(3, move |n| starting.lock().unwrap().push(n)).unwrap();
        // Work on every thread: none of them can still be about to start.
        let names = threads.pool.broadcast(|_| std::thread::current().name().map(str::to_owned));
        assert_eq!(threads.count(), 3);
        assert_eq!(names[1].as_deref(), Some("fleetune-1"));
        let mut started = started.lock().unwrap().clone();
        started.sort_unstable();
        assert_eq!(started, [0, 1, 2]);
    }
}
