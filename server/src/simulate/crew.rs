//! Clients that train at once.
//!
//! One client on all cores, several on a few cores each, several through one pass of the model, or some
//! on every device: which is fastest depends on the machine, the model and the rows. So a crew tries
//! what may be worth it on the run's own clients and stays with the fastest way. Nothing else depends
//! on it: on the processor a client computes the same bits on any number of threads, in any process and
//! in anybody's company, and outcomes are handed over in the clients' order.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Mutex, PoisonError};
use std::thread::ScopedJoinHandle;
use std::time::Instant;

use fleetune_core::client::{ClientError, RoundOutcome};
use fleetune_core::kernels::{Threads, ThreadsError};
use fleetune_core::train::StepReport;

use super::workers::WorkerError;
use crate::system::available_memory_bytes;

/// Teams in a wave for each device of several. They are trained as devices become free, and at a wave's
/// end some wait for the last; more teams would make the waits fewer and keep more updates in memory.
const TEAMS_PER_DEVICE: usize = 4;

/// What a client's training made, and the seconds it took.
pub(super) struct Trained {
    pub outcome: Result<RoundOutcome, ClientError>,
    pub seconds: f64,
}

/// Sees a step of one of a team's clients, named by its place, and says whether to go on.
pub(super) type Watch<'w> = &'w mut dyn FnMut(usize, &StepReport) -> ControlFlow<()>;

/// Who trains teams on a device that is not this process's own.
pub(super) trait TeamTrainer<J>: Sync {
    /// Trains a team, and yields what each of its clients made, in their order.
    ///
    /// # Errors
    /// When nothing more can be trained there.
    fn train(
        &self,
        team: Vec<J>,
        watch: Watch,
    ) -> Result<Vec<Result<RoundOutcome, ClientError>>, WorkerError>;
}

/// How many clients may train at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Clients that share the threads; `None` finds out. Where there are other devices, each has a team
    /// at a time.
    pub at_once: Option<NonZeroUsize>,
    /// Clients that share a pass; `None` finds out.
    pub per_pass: Option<NonZeroUsize>,
    /// Clients that are worth sharing a pass, as the memory plan sees it.
    pub worth_sharing: usize,
    /// Clients of a round.
    pub clients: usize,
    /// Memory that one client's training takes.
    pub client_bytes: u64,
}

/// Who trains the clients of a wave.
pub(super) struct Crew<'a, J> {
    /// A pool for each team that trains here at once; none where teams train one after the other.
    pools: Vec<Threads>,
    /// The other devices.
    others: Vec<&'a dyn TeamTrainer<J>>,
    trial: Trial,
}

/// Which way is fastest, as far as it is known.
#[derive(Debug)]
struct Trial {
    /// The ways to try, one a wave.
    ways: Vec<Way>,
    /// Waves trained so far, until the trial is over.
    waves: usize,
    /// The fastest so far, and its tokens a second.
    best: Option<(Way, f64)>,
}

/// How a wave trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Way {
    /// Teams, which share the threads.
    teams: usize,
    /// Clients of a team, which share passes.
    members: usize,
}

impl Trial {
    /// A trial of `ways`. The first is tried twice, since the first wave of a run also brings the
    /// model into memory.
    fn new(mut ways: Vec<Way>) -> Self {
        ways.dedup();
        if ways.len() > 1 {
            ways.push(ways[0]);
        }
        Self { ways, waves: 0, best: None }
    }

    fn way(&self) -> Way {
        let tried = self.ways.get(self.waves).filter(|_| self.ways.len() > 1);
        let best = self.best.map(|(way, _)| way).or(self.ways.first().copied());
        tried.copied().or(best).unwrap_or(Way { teams: 1, members: 1 })
    }

    fn observe(&mut self, way: Way, tokens_per_second: f64) {
        if self.waves >= self.ways.len() || self.ways.len() < 2 || way != self.way() {
            return;
        }
        tracing::debug!("{way}: {tokens_per_second:.0} tokens/s");
        if self.best.is_none_or(|(_, best)| tokens_per_second > best) {
            self.best = Some((way, tokens_per_second));
        }
        self.waves += 1;
        if let Some((way, rate)) = self.best.filter(|_| self.waves == self.ways.len()) {
            tracing::info!("clients train {way} from now on: {rate:.0} tokens/s");
        }
    }
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.teams, self.members) {
            (1, 1) => f.write_str("one after the other"),
            (1, members) => write!(f, "{members} in one pass"),
            (teams, 1) => write!(f, "{teams} at once"),
            (teams, members) => write!(f, "{teams} times {members} in one pass at once"),
        }
    }
}

impl<'a, J: Send> Crew<'a, J> {
    /// A crew whose clients share `threads` threads and the devices `others`. Where `limits` leave it
    /// open, it tries one client at a time, as many at once as there are threads if half of the memory
    /// that is free holds them, and as many in a pass as are worth it.
    ///
    /// # Errors
    /// When the system refuses to start threads.
    pub fn new(
        threads: usize,
        limits: Limits,
        others: Vec<&'a dyn TeamTrainer<J>>,
    ) -> Result<Self, ThreadsError> {
        let (ways, here) = match others.len() {
            0 => ways_of_threads(threads, limits),
            // Beside the others, this process trains one team at a time.
            others => (ways_of_devices(others + 1, limits), 1),
        };
        let sharers = here + others.len();
        let size = (threads / sharers).max(1);
        let pools = (0..here).filter(|_| sharers > 1).map(|_| Threads::new(size));
        Ok(Self { pools: pools.collect::<Result<_, _>>()?, others, trial: Trial::new(ways) })
    }

    /// How many of `left` clients to train next, in teams of how many.
    pub fn wave(&self, left: usize) -> (usize, usize) {
        let Way { teams, members } = self.trial.way();
        let depth = if self.others.is_empty() { 1 } else { TEAMS_PER_DEVICE };
        (left.min(depth * teams * members), members)
    }

    /// Trains the teams of a wave, here with `train`, and yields what each client made, in their order.
    /// `step` sees every step and whose it was, on the caller's thread; where it says to stop, all do.
    ///
    /// # Errors
    /// When another device fails.
    pub fn train(
        &mut self,
        wave: Vec<Vec<J>>,
        train: impl Fn(Vec<J>, Watch) -> Vec<Result<RoundOutcome, ClientError>> + Sync,
        mut step: impl FnMut(usize, &StepReport) -> ControlFlow<()>,
    ) -> Result<Vec<Trained>, WorkerError> {
        let (started, way) = (Instant::now(), self.trial.way());
        let size = wave.iter().map(Vec::len).sum::<usize>();
        // The last clients of a round may be too few for the way, and those of several ranks share no
        // passes: that says nothing of it.
        let whole = size.is_multiple_of(way.teams * way.members)
            && wave.iter().all(|team| team.len() == way.members);
        let trained = if self.pools.is_empty() || wave.len() == 1 {
            let mut trained = Vec::with_capacity(size);
            for team in wave {
                let first = trained.len();
                let mut step = |client: usize, report: &StepReport| step(first + client, report);
                trained.extend(timed(|| train(team, &mut step)));
            }
            trained
        } else {
            self.together(wave, &train, step)?
        };
        let outcomes = trained.iter().flat_map(|trained| &trained.outcome);
        let tokens: u64 = outcomes.map(|outcome| outcome.report.tokens).sum();
        if whole {
            self.trial.observe(way, tokens as f64 / started.elapsed().as_secs_f64());
        }
        Ok(trained)
    }

    /// Whoever is free takes the next team, until none is left.
    fn together(
        &self,
        wave: Vec<Vec<J>>,
        train: &(impl Fn(Vec<J>, Watch) -> Vec<Result<RoundOutcome, ClientError>> + Sync),
        mut step: impl FnMut(usize, &StepReport) -> ControlFlow<()>,
    ) -> Result<Vec<Trained>, WorkerError> {
        let queue = &Queue::new(wave);
        let (sender, steps) = mpsc::channel();
        std::thread::scope(|scope| {
            let mut trainings: Vec<ScopedJoinHandle<'_, Result<Vec<_>, WorkerError>>> = Vec::new();
            for pool in &self.pools {
                let sender = sender.clone();
                trainings.push(scope.spawn(move || {
                    pool.run(|| queue.work(&sender, |team, watch| Ok(train(team, watch))))
                }));
            }
            for other in &self.others {
                let sender = sender.clone();
                trainings
                    .push(scope.spawn(move || {
                        queue.work(&sender, |team, watch| other.train(team, watch))
                    }));
            }
            drop(sender);
            for (client, report) in steps {
                if step(client, &report).is_break() {
                    queue.stop.store(true, Ordering::Relaxed);
                }
            }
            let rethrown = |panic| std::panic::resume_unwind(panic);
            let mut teams = Vec::new();
            for training in trainings {
                teams.extend(training.join().unwrap_or_else(rethrown)?);
            }
            teams.sort_by_key(|(first, _)| *first);
            Ok(teams.into_iter().flat_map(|(_, trained)| trained).collect())
        })
    }
}

/// The ways worth trying where `devices` devices have a team at a time.
fn ways_of_devices(devices: usize, limits: Limits) -> Vec<Way> {
    let Limits { per_pass, worth_sharing, clients, .. } = limits;
    let most = clients.max(1);
    let way = |members: usize| Way { teams: devices.min(most.div_ceil(members)), members };
    match per_pass {
        Some(members) => vec![way(members.get().min(most))],
        // Larger teams would leave devices without one.
        None => vec![way(1), way(worth_sharing.clamp(1, most.div_ceil(devices)))],
    }
}

/// The ways worth trying where teams share `threads` threads, and the most teams at once among them.
fn ways_of_threads(threads: usize, limits: Limits) -> (Vec<Way>, usize) {
    let Limits { at_once, per_pass, worth_sharing, clients, client_bytes } = limits;
    let most = clients.max(1);
    let members = per_pass.map_or(1, NonZeroUsize::get).min(most);
    let free = available_memory_bytes().unwrap_or(u64::MAX) / 2 / client_bytes.max(1);
    let fitting = threads.min(usize::try_from(free).unwrap_or(usize::MAX)).max(1);
    let teams = at_once.map_or(fitting, NonZeroUsize::get).min(most.div_ceil(members));
    let mut ways = match (at_once, per_pass) {
        (Some(_), _) => vec![Way { teams, members }],
        (None, Some(per_pass)) if per_pass.get() > 1 => vec![Way { teams: 1, members }],
        (None, _) => vec![Way { teams: 1, members: 1 }, Way { teams, members: 1 }],
    };
    if at_once.is_none() && per_pass.is_none() && worth_sharing > 1 {
        ways.push(Way { teams: 1, members: worth_sharing.min(most) });
    }
    let most_teams = ways.iter().map(|way| way.teams).max().unwrap_or(1);
    (ways, most_teams)
}

/// The teams of a wave that nobody has taken yet.
struct Queue<J> {
    /// Each with the place of its first client.
    teams: Mutex<VecDeque<(usize, Vec<J>)>>,
    /// Whether to stop.
    stop: AtomicBool,
}

impl<J> Queue<J> {
    fn new(wave: Vec<Vec<J>>) -> Self {
        let mut first = 0;
        let placed = wave.into_iter().map(|team| {
            let place = first;
            first += team.len();
            (place, team)
        });
        Self { teams: Mutex::new(placed.collect()), stop: AtomicBool::new(false) }
    }

    fn take(&self) -> Option<(usize, Vec<J>)> {
        self.teams.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// Trains teams with `train` until none is left; of those that are left after a stop, none does.
    fn work(
        &self,
        steps: &mpsc::Sender<(usize, StepReport)>,
        train: impl Fn(Vec<J>, Watch) -> Result<Vec<Result<RoundOutcome, ClientError>>, WorkerError>,
    ) -> Result<Vec<(usize, Vec<Trained>)>, WorkerError> {
        let mut done = Vec::new();
        while let Some((place, team)) = self.take() {
            if self.stop.load(Ordering::Relaxed) {
                done.push((
                    place,
                    timed(|| team.iter().map(|_| Err(ClientError::Stopped)).collect()),
                ));
                continue;
            }
            let mut watch = |member: usize, report: &StepReport| {
                // The receiver outlives all trainings.
                let _ = steps.send((place + member, *report));
                match self.stop.load(Ordering::Relaxed) {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            };
            let started = Instant::now();
            match train(team, &mut watch) {
                Ok(outcomes) => {
                    done.push((place, shares(outcomes, started.elapsed().as_secs_f64())))
                }
                Err(error) => {
                    self.stop.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
        Ok(done)
    }
}

/// What a team's training makes, with the time it takes.
fn timed(train: impl FnOnce() -> Vec<Result<RoundOutcome, ClientError>>) -> Vec<Trained> {
    let started = Instant::now();
    let outcomes = train();
    shares(outcomes, started.elapsed().as_secs_f64())
}

/// A team's time, shared by what each of its clients computed.
fn shares(outcomes: Vec<Result<RoundOutcome, ClientError>>, seconds: f64) -> Vec<Trained> {
    let tokens = |outcome: &Result<RoundOutcome, ClientError>| {
        outcome.as_ref().map_or(0.0, |outcome| outcome.report.tokens as f64)
    };
    let all: f64 = outcomes.iter().map(tokens).sum();
    let shared = outcomes.into_iter().map(|outcome| {
        let seconds = if all > 0.0 { seconds * tokens(&outcome) / all } else { seconds };
        Trained { outcome, seconds }
    });
    shared.collect()
}

#[cfg(test)]
mod tests {
    use fleetune_core::adapter::ParameterSet;
    use fleetune_core::client::{DeviceMemory, TrainingReport, Upload};

    use super::*;

    fn crew<J: Send>(size: usize) -> Crew<'static, J> {
        Crew::new(size, limits(Some(size), Some(1), size), Vec::new()).unwrap()
    }

    fn limits(at_once: Option<usize>, per_pass: Option<usize>, clients: usize) -> Limits {
        let [at_once, per_pass] = [at_once, per_pass].map(|n| n.and_then(NonZeroUsize::new));
        Limits { at_once, per_pass, worth_sharing: 1, clients, client_bytes: 0 }
    }

    fn each<J>(
        team: Vec<J>,
        train: impl FnMut(J) -> Result<RoundOutcome, ClientError>,
    ) -> Vec<Result<RoundOutcome, ClientError>> {
        team.into_iter().map(train).collect()
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
        assert_eq!([5, 2, 1, 0].map(|left| crew.wave(left).0), [3, 2, 1, 0]);
        let (first, rest) = mpsc::channel::<()>();
        let rest = std::sync::Mutex::new(rest);
        // The first client waits until the last one is done.
        let trained = crew.train(
            vec![vec![0], vec![1], vec![2]],
            |team, _| {
                each(team, |client| {
                    match client {
                        0 => rest.lock().unwrap().recv().unwrap(),
                        2 => first.send(()).unwrap(),
                        _ => {}
                    }
                    outcome(client)
                })
            },
            |_, _| ControlFlow::Continue(()),
        );
        let tokens: Vec<u64> = trained
            .unwrap()
            .into_iter()
            .map(|trained| trained.outcome.unwrap().report.tokens)
            .collect();
        assert_eq!(tokens, [0, 1, 2]);
    }

    /// Another device: what it does with a team.
    struct Elsewhere<F>(F);

    impl<F> TeamTrainer<u64> for Elsewhere<F>
    where
        F: Fn(Vec<u64>, Watch) -> Result<Vec<Result<RoundOutcome, ClientError>>, WorkerError>
            + Sync,
    {
        fn train(
            &self,
            team: Vec<u64>,
            watch: Watch,
        ) -> Result<Vec<Result<RoundOutcome, ClientError>>, WorkerError> {
            (self.0)(team, watch)
        }
    }

    #[test]
    fn devices_take_teams_as_they_become_free_and_outcomes_keep_their_order() {
        // Here, one team is taken, and not done before the other device has done all others.
        let (begin, begun) = mpsc::channel();
        let begun = Mutex::new(Some(begun));
        let (done, elsewhere) = mpsc::channel();
        let (done, elsewhere) = (Mutex::new(done), Mutex::new(elsewhere));
        let other = Elsewhere(|team: Vec<u64>, watch: Watch| {
            if let Some(begun) = begun.lock().unwrap().take() {
                begun.recv().unwrap();
            }
            let _ = (0..team.len()).all(|i| watch(i, &StepReport::default()).is_continue());
            done.lock().unwrap().send(()).unwrap();
            Ok(each(team, outcome))
        });
        let limits = limits(None, Some(2), 20);
        let mut crew = Crew::new(4, limits, vec![&other]).unwrap();
        assert_eq!(crew.wave(20), (16, 2), "four teams of two for each of two devices");
        let train = |team: Vec<u64>, _: Watch| {
            begin.send(()).unwrap();
            let elsewhere = elsewhere.lock().unwrap();
            (0..7).for_each(|_| elsewhere.recv().unwrap());
            each(team, outcome)
        };
        let mut seen = 0;
        let wave: Vec<Vec<u64>> = (0..8).map(|team| vec![2 * team, 2 * team + 1]).collect();
        let step = |_: usize, _: &StepReport| {
            seen += 1;
            ControlFlow::Continue(())
        };
        let trained = crew.train(wave, train, step).unwrap();
        let tokens = trained.iter().map(|t| t.outcome.as_ref().unwrap().report.tokens);
        assert!(tokens.eq(0..16));
        assert_eq!(seen, 14);
    }

    #[test]
    fn a_device_that_fails_ends_the_wave() {
        let (failed, seen) = mpsc::channel();
        let (failed, seen) = (Mutex::new(failed), Mutex::new(seen));
        let other = Elsewhere(|_, _: Watch| {
            failed.lock().unwrap().send(()).unwrap();
            let device = fleetune_core::device::DeviceChoice::Cuda(1);
            Err(WorkerError::Failed { device, problem: "no memory".into() })
        });
        let mut crew = Crew::new(2, limits(None, Some(1), 8), vec![&other]).unwrap();
        let train = |team: Vec<u64>, watch: Watch| {
            seen.lock().unwrap().recv().unwrap();
            // A training without an end but this.
            while watch(0, &StepReport::default()).is_continue() {}
            each(team, |_| Err(ClientError::Stopped))
        };
        let wave = (0..8).map(|client| vec![client]).collect();
        let trained = crew.train(wave, train, |_, _| ControlFlow::Continue(()));
        assert_eq!(trained.err().unwrap().to_string(), "cuda:1: no memory");
    }

    #[test]
    fn no_device_is_left_without_a_team() {
        let other = Elsewhere(|team: Vec<u64>, _: Watch| Ok(each(team, outcome)));
        let limits = Limits { worth_sharing: 30, ..limits(Some(3), None, 10) };
        let ways = Crew::new(2, limits, vec![&other]).unwrap().trial.ways;
        let shapes: Vec<_> = ways.iter().map(|way| (way.teams, way.members)).collect();
        assert_eq!(shapes, [(2, 1), (2, 5), (2, 1)]);
    }

    #[test]
    fn who_says_stop_to_one_client_stops_all() {
        let mut crew = crew(2);
        let train = |team, watch: Watch| {
            while watch(0, &StepReport::default()).is_continue() {}
            each(team, |_: i32| Err(ClientError::Stopped))
        };
        let trained = crew.train(vec![vec![0], vec![1]], train, |client, _| match client {
            0 => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        });
        let stopped = |t: &Trained| matches!(t.outcome, Err(ClientError::Stopped));
        assert!(trained.unwrap().iter().all(stopped));
    }

    #[test]
    fn a_crew_stays_with_the_fastest_way() {
        let ways = [(1, 1), (4, 1), (1, 6)].map(|(teams, members)| Way { teams, members });
        for (rates, fastest) in
            [([20.0, 30.0, 25.0], 1), ([20.0, 10.0, 15.0], 0), ([2.0, 3.0, 9.0], 2)]
        {
            let mut trial = Trial::new(ways.to_vec());
            // The first wave is slow for reasons of its own.
            for rate in [1.0, rates[1], rates[2], rates[0]] {
                trial.observe(trial.way(), rate);
            }
            assert_eq!(trial.way(), ways[fastest]);
        }
    }

    #[test]
    fn more_teams_than_pools_all_train_and_keep_their_places() {
        for at_once in [1, 2] {
            let mut crew = Crew::new(4, limits(Some(at_once), Some(2), 9), Vec::new()).unwrap();
            let mut seen = Vec::new();
            let train = |team: Vec<u64>, watch: Watch| {
                let _ = (0..team.len()).all(|i| watch(i, &StepReport::default()).is_continue());
                each(team, outcome)
            };
            let wave = vec![vec![0, 1], vec![2], vec![3, 4], vec![5], vec![6]];
            let trained = crew.train(wave, train, |client, _| {
                seen.push(client);
                ControlFlow::Continue(())
            });
            let trained = trained.unwrap();
            let tokens = trained.iter().map(|t| t.outcome.as_ref().unwrap().report.tokens);
            assert!(tokens.eq(0..7));
            seen.sort_unstable();
            assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6]);
        }
    }

    #[test]
    fn what_is_decided_beforehand_is_not_tried() {
        let way = |at_once, per_pass| {
            let limits = Limits { worth_sharing: 5, ..limits(at_once, per_pass, 20) };
            let trial = Crew::<u64>::new(4, limits, Vec::new()).unwrap().trial;
            (trial.ways.len(), trial.way().teams, trial.way().members)
        };
        assert_eq!(way(Some(1), Some(8)), (1, 1, 8));
        assert_eq!(way(Some(3), Some(8)), (1, 3, 8));
        assert_eq!(way(Some(2), None), (1, 2, 1));
        assert_eq!(way(None, Some(100)), (1, 1, 20));
        // One after the other, at once, in one pass, and the first once more.
        assert_eq!(way(None, None).0, 4);
    }

    #[test]
    fn the_clients_of_a_team_share_its_time() {
        let trained = shares(vec![outcome(30), outcome(10), Err(ClientError::Stopped)], 8.0);
        let seconds: Vec<f64> = trained.iter().map(|trained| trained.seconds).collect();
        assert_eq!(seconds, [6.0, 2.0, 0.0]);
    }
}
