//! Runs programs that nobody has read: those a language model wrote.
//!
//! A program runs in a process of its own in an empty folder, started through the `fleetune` binary
//! itself, which first gives up what the program shall not have (see [`confine`]): the network,
//! every file outside the folder, the system's libraries and programs and the language's own
//! installation, and more than its share of processor, memory, processes and file size. The parent
//! watches the whole process group's memory, files and time, and kills the group as one. The program
//! cannot leave the group, and a guard (see [`guard`]) kills it when the parent is gone.
//!
//! A sandbox runs one program at a time: programs of one sandbox count together in its limit of
//! processes.
//!
//! Where the machine cannot give these protections the sandbox does not open; the user may then
//! choose to run programs with limits only.

#[cfg(target_os = "linux")]
mod calls;
mod confine;
mod folder;
#[cfg(target_os = "linux")]
mod guard;
mod watch;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use confine::confined_main;
pub use folder::Folder;

/// What a program may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Time on the clock.
    pub wall: Duration,
    /// Processor time of each process, in seconds.
    pub cpu_seconds: u64,
    /// Bytes of memory: of each process's own data, and of the whole group's resident memory.
    pub memory: u64,
    /// Processes and threads.
    pub processes: u64,
    /// Bytes of any one file, and of all files in the folder.
    pub files: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            wall: Duration::from_secs(10),
            cpu_seconds: 10,
            memory: 1 << 30,
            processes: 64,
            files: 64 << 20,
        }
    }
}

/// A program to run.
#[derive(Debug, Clone)]
pub struct Step {
    /// The program's file, by its whole path.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Variables of its environment, besides a few harmless ones.
    pub environment: BTreeMap<String, OsString>,
    /// Folders it may read and run files from, besides the system's libraries and programs.
    pub readable: Vec<PathBuf>,
    /// Folders it may write to, besides its own. Only for compilers, never for generated programs.
    pub writable: Vec<PathBuf>,
    /// Whether it is a compiler. Only compilers may remove files, which, while open, take room where
    /// nobody sees it, and make pairs of sockets, which hold memory that nobody counts.
    pub compiles: bool,
    /// What it may use.
    pub limits: Limits,
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Why.
    pub end: End,
    /// The beginning of what it wrote to standard output.
    pub stdout: String,
    /// The end of what it wrote to standard output.
    pub stdout_end: String,
    /// The beginning of what it wrote to standard error.
    pub stderr: String,
}

/// Why a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself, with this exit code.
    Exited(i32),
    /// By a signal: a crash, or the kernel's limit on processor time or file size.
    Signalled(i32),
    /// Killed: it took too long.
    TooLong,
    /// Killed: the group used too much memory.
    TooMuchMemory,
    /// Killed: its folder grew too large.
    TooManyFiles,
}

impl Outcome {
    /// Whether the program ended well.
    pub fn succeeded(&self) -> bool {
        self.end == End::Exited(0)
    }
}

/// Programs cannot be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// The machine does not protect itself from programs.
    #[error(
        "programs written by the model cannot be confined here: {0}. Use Linux 5.13 or newer with Landlock and seccomp, or, on a machine with nothing to lose, --allow-unsandboxed"
    )]
    Unavailable(String),
    /// The system refused what every program needs.
    #[error("cannot run {}: {source}", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// How much protection there is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Protection {
    /// All of it, through the launcher, the `fleetune` binary.
    Confined {
        launcher: PathBuf,
        /// The user that programs run as when the superuser runs them.
        user: u32,
    },
    /// Time and memory are watched, and no more.
    LimitsOnly,
}

/// A place to run programs.
#[derive(Debug, Clone)]
pub struct Sandbox {
    protection: Protection,
}

impl Sandbox {
    /// Opens the sandbox and tries it: `launcher` is the `fleetune` binary.
    ///
    /// # Errors
    /// When the machine lacks a protection; the error says which.
    pub fn open(launcher: impl Into<PathBuf>) -> Result<Self, SandboxError> {
        // A number that no system hands out. Each sandbox has its own, so that the processes of one
        // do not count in another's limit.
        static OPENED: AtomicU32 = AtomicU32::new(0);
        let number = std::process::id() << 6 | OPENED.fetch_add(1, Ordering::Relaxed) & 0x3f;
        let user = 0x7000_0000 | number & 0x0fff_ffff;
        let sandbox = Self { protection: Protection::Confined { launcher: launcher.into(), user } };
        if !cfg!(target_os = "linux") {
            let system = std::env::consts::OS;
            return Err(SandboxError::Unavailable(format!("{system} has no sandbox here")));
        }
        let folder = Folder::new().map_err(|source| SandboxError::Run {
            program: "the sandbox's folder".into(),
            source,
        })?;
        let trial = Step::new("/bin/sh", ["-c", "exit 42"]);
        let outcome = sandbox.run(&trial, folder.path())?;
        match outcome.end {
            End::Exited(42) => Ok(sandbox),
            _ => Err(SandboxError::Unavailable(outcome.stderr.trim().to_owned())),
        }
    }

    /// Runs programs with limits on time and memory only: they can reach the network and every
    /// file of the user.
    pub fn unprotected() -> Self {
        Self { protection: Protection::LimitsOnly }
    }

    /// Runs a program in `folder` and waits for it, its children and its output.
    ///
    /// # Errors
    /// When it cannot be started. How it ends is no error.
    pub fn run(&self, step: &Step, folder: &Path) -> Result<Outcome, SandboxError> {
        let failed = |source| SandboxError::Run { program: step.program.clone(), source };
        let mut command = match &self.protection {
            Protection::Confined { launcher, user } => {
                confine::command(launcher, *user, step, folder).map_err(failed)?
            }
            Protection::LimitsOnly => {
                let mut command = std::process::Command::new(&step.program);
                command.args(&step.arguments);
                command
            }
        };
        command.current_dir(folder).env_clear().envs(step.environment(folder));
        let guarded = matches!(self.protection, Protection::Confined { .. });
        watch::watch(command, guarded, &step.limits, folder).map_err(failed)
    }
}

impl Step {
    /// A program with its arguments and default limits.
    pub fn new<A: Into<OsString>>(
        program: impl Into<PathBuf>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        Self {
            program: program.into(),
            arguments: arguments.into_iter().map(Into::into).collect(),
            environment: BTreeMap::new(),
            readable: Vec::new(),
            writable: Vec::new(),
            compiles: false,
            limits: Limits::default(),
        }
    }

    fn environment(&self, folder: &Path) -> BTreeMap<String, OsString> {
        let mut all = BTreeMap::from([
            ("PATH".to_owned(), OsString::from("/usr/local/bin:/usr/bin:/bin")),
            ("LANG".to_owned(), OsString::from("C.UTF-8")),
            ("HOME".to_owned(), folder.into()),
            ("TMPDIR".to_owned(), folder.into()),
        ]);
        all.extend(self.environment.clone());
        all
    }
}
