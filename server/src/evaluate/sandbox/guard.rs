//! The guard's side: stands between `fleetune` and a program, and ends all when either is gone.
//!
//! A process that dies tells only its own children, so that a program's children would outlive a
//! `fleetune` that was killed. `fleetune` started with [`FLAG`] is the guard: the leader of the
//! program's group, but not confined with it, so that the program cannot reach it. It holds a line to
//! `fleetune`, starts the launcher (see [`super::confine`]), says over the line how the program ended
//! and kills the whole group with itself, as it does when the line is cut.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};

use nix::sys::prctl;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{self, Pid};

/// First argument that makes the binary the guard.
pub const FLAG: &str = "__guarded";

/// The end of the line that `fleetune` holds. It is cut when `fleetune` ends, however that happens.
#[derive(Debug)]
pub struct Line(UnixStream);

impl Line {
    /// A line to the guard that `command` will start.
    pub fn to(command: &mut Command) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        command.stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)));
        Ok(Self(ours))
    }

    /// How the program ended, once the guard has; `None` if the guard did not live to say so.
    pub fn status(mut self) -> Option<ExitStatus> {
        let mut status = [0; 4];
        self.0.read_exact(&mut status).ok()?;
        Some(ExitStatus::from_raw(i32::from_le_bytes(status)))
    }
}

/// Starts the launcher with `arguments` and guards it. Returns only when that fails.
pub fn guard(arguments: impl Iterator<Item = OsString>) -> io::Error {
    let guarded = || -> io::Result<std::convert::Infallible> {
        unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
        // Who kills all processes named `fleetune` shall leave the guard time to act.
        prctl::set_name(c"sandbox-guard")?;
        let mut line = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        let mut cut = line.try_clone()?;
        // This very binary, whatever lies at its path by now.
        let mut program =
            Command::new("/proc/self/exe").args(arguments).stdin(Stdio::null()).spawn()?;
        std::thread::Builder::new().spawn(move || {
            // Nothing is ever said to the guard.
            let _ = cut.read(&mut [0]);
            end_all();
        })?;
        let status = program.wait()?;
        // Where nobody listens any more, nobody asks.
        let _ = line.write_all(&status.into_raw().to_le_bytes());
        end_all()
    };
    match guarded() {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

/// Kills every process of the group, this one among them.
fn end_all() -> ! {
    let _ = killpg(unistd::getpgrp(), Signal::SIGKILL);
    std::process::abort()
}
