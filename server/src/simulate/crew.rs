//! Clients that train at once.
//!
//! One client on all cores, or several on a few cores each: which is faster depends on the machine, the
//! model and the rows. So a crew tries both on the run's own clients and stays with the faster way.
//! Nothing else depends on it: a client computes the same bits on any number of threads, and outcomes
//! are handed over in the clients' order.

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use fleetune_core::client::{ClientError, RoundOutcome};
use fleetune_core::kernels::{Threads, ThreadsError};
use fleetune_core::train::StepReport;

use crate::system::available_memory_bytes;

/// What a client's training made, and the seconds it took.
pub(super) struct Trained {
    pub outcome: Result<RoundOutcome, ClientError>,
    pub seconds: f64,
}

/// Sees a client's step and says whether to go on.
pub(super) type Watch<'w> = &'w mut dyn FnMut(&StepReport) -> ControlFlow<()>;

/// The threads of clients that train at once.
#[derive(Debug)]
pub(super) struct Crew {
    /// A pool for each client of a wave; none where clients train one after the other.
    pools: Vec<Threads>,
    trial: Trial,
}

/// Which way is faster, as far as it is known.
#[derive(Debug, Default)]
struct Trial {
    /// Waves trained so far, until the trial is over.
    waves: usize,
    /// The most tokens a second that one client reached, and several together.
    alone: f64,
    together: f64,
    decided: Option<Way>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Alone,
    Together,
}

impl Trial {
    /// One client is tried twice, since the first of a run also brings the model into memory.
    const WAYS: [Way; 3] = [Way::Alone, Way::Together, Way::Alone];

    fn way(&self) -> Way {
        self.decided.unwrap_or(Self::WAYS[self.waves.min(Self::WAYS.len() - 1)])
    }

    fn observe(&mut self, way: Way, tokens_per_second: f64) {
        if self.decided.is_some() || way != self.way() {
            return;
        }
        let best = match way {
            Way::Alone => &mut self.alone,
            Way::Together => &mut self.together,
        };
        *best = best.max(tokens_per_second);
        self.waves += 1;
        if self.waves == Self::WAYS.len() {
            let faster = if self.together > self.alone { Way::Together } else { Way::Alone };
            tracing::info!(
                "clients train {} from now on: {:.0} tokens/s at once, {:.0} one after the other",
                if faster == Way::Together { "at once" } else { "one after the other" },
                self.together,
                self.alone
            );
            self.decided = Some(faster);
        }
    }
}

impl Crew {
    /// A crew for rounds of `clients` clients that shares `threads` threads among `at_once` of them.
    /// Of `None`, it shares them among as many as there are threads, if that turns out to be faster
    /// than one at a time, and if half of the memory that is free holds them: one takes up to
    /// `client_bytes`.
    ///
    /// # Errors
    /// When the system refuses to start threads.
    pub fn new(
        threads: usize,
        at_once: Option<NonZeroUsize>,
        clients: usize,
        client_bytes: u64,
    ) -> Result<Self, ThreadsError> {
        let mut trial = Trial::default();
        let size = match at_once {
            Some(size) => {
                trial.decided = Some(Way::Together);
                size.get()
            }
            None => {
                let free = available_memory_bytes().unwrap_or(u64::MAX);
                threads.min(usize::try_from(free / 2 / client_bytes.max(1)).unwrap_or(usize::MAX))
            }
        };
        let size = size.min(clients);
        if size < 2 {
            return Ok(Self { pools: Vec::new(), trial });
        }
        let pools = (0..size).map(|_| Threads::new((threads / size).max(1)));
        Ok(Self { pools: pools.collect::<Result<_, _>>()?, trial })
    }

    /// How many of `left` clients to train next.
    pub fn wave(&self, left: usize) -> usize {
        match self.trial.way() {
            Way::Together if left > 1 => self.pools.len().clamp(1, left),
            _ => left.min(1),
        }
    }

    /// Trains the clients of a wave with `train`, and yields what each made, in their order. `step`
    /// sees every step and whose it was, on the caller's thread; where it says to stop, all do.
    pub fn train<J: Send>(
        &mut self,
        wave: Vec<J>,
        train: impl Fn(J, Watch) -> Result<RoundOutcome, ClientError> + Sync,
        mut step: impl FnMut(usize, &StepReport) -> ControlFlow<()>,
    ) -> Vec<Trained> {
        let timed = |job, watch: Watch| {
            let started = Instant::now();
            let outcome = train(job, watch);
            Trained { outcome, seconds: started.elapsed().as_secs_f64() }
        };
        let (started, size) = (Instant::now(), wave.len());
        let trained: Vec<Trained> = match size {
            0 | 1 => {
                wave.into_iter().map(|job| timed(job, &mut |report| step(0, report))).collect()
            }
            _ => self.together(wave, &timed, step),
        };
        let outcomes = trained.iter().flat_map(|trained| &trained.outcome);
        let tokens: u64 = outcomes.map(|outcome| outcome.report.tokens).sum();
        // The last clients of a round may be too few to fill the pools: that says nothing.
        let way = if size == 1 { Way::Alone } else { Way::Together };
        if way == Way::Alone || size == self.pools.len() {
            self.trial.observe(way, tokens as f64 / started.elapsed().as_secs_f64());
        }
        trained
    }

    fn together<J: Send>(
        &self,
        wave: Vec<J>,
        train: &(impl Fn(J, Watch) -> Trained + Sync),
        mut step: impl FnMut(usize, &StepReport) -> ControlFlow<()>,
    ) -> Vec<Trained> {
        let stop = &AtomicBool::new(false);
        let (sender, steps) = mpsc::channel();
        std::thread::scope(|scope| {
            let trainings = wave.into_iter().zip(&self.pools).enumerate();
            let trainings: Vec<_> = trainings
                .map(|(i, (job, pool))| {
                    let sender = sender.clone();
                    let mut watch = move |report: &StepReport| {
                        // The receiver outlives all trainings.
                        let _ = sender.send((i, *report));
                        match stop.load(Ordering::Relaxed) {
                            true => ControlFlow::Break(()),
                            false => ControlFlow::Continue(()),
                        }
                    };
                    scope.spawn(move || pool.run(|| train(job, &mut watch)))
                })
                .collect();
            drop(sender);
            for (i, report) in steps {
                if step(i, &report).is_break() {
                    stop.store(true, Ordering::Relaxed);
                }
            }
            let done = |training: std::thread::ScopedJoinHandle<'_, Trained>| training.join();
            let rethrown = |panic| std::panic::resume_unwind(panic);
            trainings.into_iter().map(|training| done(training).unwrap_or_else(rethrown)).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use fleetune_core::adapter::ParameterSet;
    use fleetune_core::client::{DeviceMemory, TrainingReport, Upload};

    use super::*;

    fn crew(size: usize) -> Crew {
        Crew::new(size, NonZeroUsize::new(size), size, 0).unwrap()
    }

    fn outcome(tokens: u64) -> Result<RoundOutcome, ClientError> {
        Ok(RoundOutcome {
            upload: Upload { adapter: Vec::new(), control: None },
            adapter: ParameterSet::new(Vec::new()),
            report: TrainingReport { tokens, ..TrainingReport::default() },
            memory: DeviceMemory::default(),
        })
    }

    #[test]
    fn outcomes_come_in_the_order_of_the_clients_however_long_they_take() {
        let mut crew = crew(3);
        assert_eq!((crew.wave(5), crew.wave(2), crew.wave(1), crew.wave(0)), (3, 2, 1, 0));
        let (first, rest) = mpsc::channel::<()>();
        let rest = std::sync::Mutex::new(rest);
        // The first client waits until the last one is done.
        let trained = crew.train(
            vec![0, 1, 2],
            |client, _| {
                match client {
                    0 => rest.lock().unwrap().recv().unwrap(),
                    2 => first.send(()).unwrap(),
                    _ => {}
                }
                outcome(client)
            },
            |_, _| ControlFlow::Continue(()),
        );
        let tokens: Vec<u64> =
            trained.into_iter().map(|trained| trained.outcome.unwrap().report.tokens).collect();
        assert_eq!(tokens, [0, 1, 2]);
    }

    #[test]
    fn who_says_stop_to_one_client_stops_all() {
        let mut crew = crew(2);
        let train = |_, watch: Watch| {
            while watch(&StepReport::default()).is_continue() {}
            Err(ClientError::Stopped)
        };
        let trained = crew.train(vec![0, 1], train, |client, _| match client {
            0 => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        });
        assert!(trained.iter().all(|t| matches!(t.outcome, Err(ClientError::Stopped))));
    }

    #[test]
    fn a_crew_stays_with_the_faster_way() {
        for (together, chosen) in [(30.0, Way::Together), (10.0, Way::Alone)] {
            let mut trial = Trial::default();
            for rate in [5.0, together, 20.0] {
                trial.observe(trial.way(), rate);
            }
            assert_eq!(trial.decided, Some(chosen));
        }
    }
}
