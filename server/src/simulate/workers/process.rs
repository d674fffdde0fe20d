//! A worker as the run sees it: a process that trains teams.

use std::io::BufReader;
use std::ops::ControlFlow;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use fleetune_core::client::{ClientError, RoundOutcome};
use fleetune_core::device::DeviceChoice;
use fleetune_core::memory::MemoryPlan;

use super::WorkerError;
use super::message::{Job, LinkError, Order, PartOutcome, Report, receive, send};
use super::orders::PATIENCE;
use crate::simulate::assignment::Assignment;
use crate::simulate::crew::{TeamTrainer, Watch};

/// How to start a worker.
#[derive(Debug, Clone)]
pub struct StartOptions {
    /// Its device.
    pub device: DeviceChoice,
    /// Threads that it computes with.
    pub threads: usize,
    /// The command that makes a process a worker, and flags of every command to pass on.
    pub arguments: Vec<String>,
}

/// A worker that opens model and data, while the run does so too.
#[derive(Debug)]
pub struct Starting(Process);

/// A worker process that is ready to train.
#[derive(Debug)]
pub struct Worker {
    device: DeviceChoice,
    memory: MemoryPlan,
    process: Mutex<Process>,
}

/// The process and what connects it. Dropped, it comes to its end.
#[derive(Debug)]
struct Process {
    device: DeviceChoice,
    child: Child,
    /// Closed, it tells the process to end.
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Starting {
    /// Starts this program once more, as a worker for `job`.
    ///
    /// # Errors
    /// When the system starts no process, or the process takes no order.
    pub fn start(options: &StartOptions, job: &Job) -> Result<Self, WorkerError> {
        let StartOptions { device, threads, arguments } = options;
        let failed = |source| WorkerError::Start { device: *device, source };
        let program = std::env::current_exe().map_err(failed)?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .args(["--device", &device.to_string(), "--threads", &threads.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        // A terminal's Ctrl-C goes to the run alone, which stops its workers.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().map_err(failed)?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            // Both were asked for above.
            return Err(failed(std::io::Error::other("the process has no pipes")));
        };
        let (input, output) = (Some(input), BufReader::new(output));
        let mut process = Process { device: *device, child, input, output };
        process.send(&Order::Open(job.clone()))?;
        Ok(Self(process))
    }

    /// Waits until the worker can train, laid out as `memory` says.
    ///
    /// # Errors
    /// When it cannot open model, data or device.
    pub fn ready(mut self, memory: MemoryPlan) -> Result<Worker, WorkerError> {
        match self.0.receive()? {
            Report::Ready => {}
            Report::Failed(problem) => {
                return Err(WorkerError::Failed { device: self.0.device, problem });
            }
            _ => return Err(self.0.link_error(LinkError::OutOfTurn)),
        }
        Ok(Worker { device: self.0.device, memory, process: Mutex::new(self.0) })
    }
}

impl Process {
    fn send(&mut self, order: &Order) -> Result<(), WorkerError> {
        let Some(input) = &mut self.input else { return Err(self.died()) };
        match send(input, order) {
            Ok(()) => Ok(()),
            // Its last words say more than that it is gone.
            Err(_) => Err(match receive(&mut self.output) {
                Ok(Report::Failed(problem)) => WorkerError::Failed { device: self.device, problem },
                _ => self.died(),
            }),
        }
    }

    fn receive(&mut self) -> Result<Report, WorkerError> {
        match receive(&mut self.output) {
            Ok(report) => Ok(report),
            Err(LinkError::Closed) => Err(self.died()),
            Err(source) => Err(self.link_error(source)),
        }
    }

    fn link_error(&self, source: LinkError) -> WorkerError {
        WorkerError::Link { device: self.device, source }
    }

    fn died(&mut self) -> WorkerError {
        self.end();
        let how = match self.child.wait() {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        WorkerError::Died { device: self.device, how }
    }

    /// Waits for the process to end, and ends it where it does not by itself.
    fn end(&mut self) {
        self.input = None;
        let begun = Instant::now();
        while begun.elapsed() < 2 * PATIENCE {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(5)),
                Ok(Some(_)) | Err(_) => return,
            }
        }
        // Fails where the process has ended after all.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

impl TeamTrainer<Assignment> for Worker {
    fn train(
        &self,
        team: Vec<Assignment>,
        watch: Watch,
    ) -> Result<Vec<Result<RoundOutcome, ClientError>>, WorkerError> {
        let clients: Vec<u32> = team.iter().map(|assignment| assignment.client).collect();
        let stopped = || clients.iter().map(|_| Err(ClientError::Stopped)).collect();
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        if process.input.is_none() {
            return Ok(stopped());
        }
        let team = team.into_iter().map(Into::into).collect();
        process.send(&Order::Train { memory: self.memory, team })?;
        loop {
            match process.receive()? {
                Report::Stepped { place, step } if place < clients.len() => {
                    if watch(place, &step) == ControlFlow::Break(()) {
                        // The end of its orders ends the step at hand, and the process.
                        process.input = None;
                        return Ok(stopped());
                    }
                }
                Report::Trained(outcomes) if outcomes.len() == clients.len() => {
                    let outcomes = outcomes.into_iter().zip(&clients);
                    return outcomes.map(|(outcome, &client)| self.read(outcome, client)).collect();
                }
                Report::Failed(problem) => {
                    return Err(WorkerError::Failed { device: self.device, problem });
                }
                _ => return Err(process.link_error(LinkError::OutOfTurn)),
            }
        }
    }
}

impl Worker {
    fn read(
        &self,
        outcome: PartOutcome,
        client: u32,
    ) -> Result<Result<RoundOutcome, ClientError>, WorkerError> {
        match outcome {
            PartOutcome::Done(outcome) => Ok(Ok(*outcome)),
            PartOutcome::NothingToLearn => Ok(Err(ClientError::NothingToLearn)),
            PartOutcome::Stopped => Ok(Err(ClientError::Stopped)),
            PartOutcome::Failed(problem) => {
                Err(WorkerError::Client { client, device: self.device, problem })
            }
        }
    }
}
