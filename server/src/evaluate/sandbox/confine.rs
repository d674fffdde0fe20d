//! The launcher's side: gives up rights, then becomes the program.
//!
//! `fleetune` started with [`FLAG`] is the launcher. The guard starts it (see [`super::guard`]). It
//! runs before anything else of the program, in a process with one thread, and never returns when it
//! succeeds. What is given up cannot be regained by the program nor by its children:
//!
//! - *network*: no socket of any kind can be made (seccomp), nor can `io_uring` make one;
//! - *files*: only the system's programs and libraries, the named folders and what `/proc` says of
//!   the process itself can be read, and only the working folder and the named ones written
//!   (Landlock). Nothing can be removed or moved away, no file made without a name, and no room taken
//!   beyond a file's end, so that all that is written can be seen and counted;
//! - *memory that belongs to no process*: no shared memory of System V or POSIX, no files in memory,
//!   no mapping that is shared without a file (seccomp);
//! - *others' processes*: no signals to (Landlock, Linux 6.12; earlier: none but a program's to
//!   itself), no tracing and no changing of processes outside: their limits, priority, processors or
//!   memory (seccomp);
//! - *namespaces and mounts*: none can be made (seccomp);
//! - *the process group*: cannot be left, so that killing the group ends all;
//! - *resources*: processor time, memory, processes, open files, file size (rlimits). The
//!   superuser, whom some limits do not bind, becomes a user without a name first.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use serde::{Deserialize, Serialize};

#[cfg(target_os = "linux")]
use super::guard;
use super::{Limits, Step};

/// First argument that makes the binary the launcher.
const FLAG: &str = "__confined";

/// What the launcher is told.
#[derive(Debug, Serialize, Deserialize)]
struct Orders {
    folder: PathBuf,
    readable: Vec<PathBuf>,
    writable: Vec<PathBuf>,
    compiles: bool,
    limits: Limits,
    /// The user to become, when the superuser starts the launcher.
    user: u32,
}

/// The command that starts `step` through guard and launcher, as `user` when started by the
/// superuser.
pub fn command(launcher: &Path, user: u32, step: &Step, folder: &Path) -> io::Result<Command> {
    let orders = Orders {
        folder: folder.canonicalize()?,
        readable: step.readable.clone(),
        writable: step.writable.clone(),
        compiles: step.compiles,
        limits: step.limits,
        user,
    };
    #[cfg(target_os = "linux")]
    linux::hand_over(&orders)?;
    let mut command = Command::new(launcher);
    #[cfg(target_os = "linux")]
    command.arg(guard::FLAG);
    command.arg(FLAG).arg(serde_json::to_string(&orders)?).arg(&step.program);
    command.args(&step.arguments);
    Ok(command)
}

/// If this process was started as the guard: guards a launcher. If as the launcher: confines it and
/// becomes the program. Returns an exit code only when that fails; `None` when this is neither.
pub fn confined_main() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let role = arguments.next()?;
    #[cfg(target_os = "linux")]
    if role == guard::FLAG {
        eprintln!("cannot guard the program: {}", guard::guard(arguments));
        return Some(ExitCode::from(125));
    }
    if role != FLAG {
        return None;
    }
    let launch = || -> Result<std::convert::Infallible, String> {
        let orders = arguments.next().and_then(|orders| orders.into_string().ok());
        let orders = orders.ok_or("orders are missing")?;
        let orders: Orders = serde_json::from_str(&orders).map_err(|e| e.to_string())?;
        let program = arguments.next().ok_or("the program is missing")?;
        #[cfg(target_os = "linux")]
        {
            linux::confine(&orders)?;
            let error =
                std::os::unix::process::CommandExt::exec(Command::new(&program).args(arguments));
            Err(format!("cannot run {}: {error}", program.display()))
        }
        #[cfg(not(target_os = "linux"))]
        {
            let _ = (orders, program);
            Err("there is no confinement on this system".to_owned())
        }
    };
    match launch() {
        Ok(never) => match never {},
        Err(problem) => {
            eprintln!("{problem}");
            Some(ExitCode::from(125))
        }
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::path::{Path, PathBuf};

    use caps::{CapSet, Capability, CapsHashSet};
    use landlock::{
        ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
        RulesetCreatedAttr, RulesetStatus, Scope,
    };
    use nix::sys::prctl;
    use nix::sys::resource::{Resource, setrlimit};
    use nix::sys::signal::Signal;
    use nix::unistd::{self, Gid, Uid};

    use super::Orders;
    use crate::evaluate::sandbox::calls;

    /// Where systems keep programs, libraries and what these need to start.
    const SYSTEM: [&str; 18] = [
        "/usr",
        "/bin",
        "/sbin",
        "/lib",
        "/lib32",
        "/lib64",
        "/nix/store",
        "/proc/self",
        "/proc/cpuinfo",
        "/proc/meminfo",
        "/proc/stat",
        "/proc/sys/vm",
        "/sys/devices/system/cpu",
        "/etc/alternatives",
        "/etc/ld.so.cache",
        "/etc/localtime",
        "/etc/java-17-openjdk",
        "/etc/java-21-openjdk",
    ];

    /// Devices a program may use. Mapped, `/dev/zero` would be memory that nobody counts.
    const DEVICES: [&str; 3] = ["/dev/null", "/dev/urandom", "/dev/random"];

    /// Makes the folders that the program may write to the new user's.
    pub fn hand_over(orders: &Orders) -> io::Result<()> {
        if !Uid::effective().is_root() {
            return Ok(());
        }
        let mut paths = vec![orders.folder.clone()];
        paths.extend(orders.writable.iter().cloned());
        while let Some(path) = paths.pop() {
            std::os::unix::fs::lchown(&path, Some(orders.user), Some(orders.user))?;
            if path.symlink_metadata()?.is_dir() {
                for entry in std::fs::read_dir(&path)? {
                    paths.push(entry?.path());
                }
            }
        }
        Ok(())
    }

    /// Gives up everything, in an order in which each step is still allowed.
    pub fn confine(orders: &Orders) -> Result<(), String> {
        let processes = if Uid::effective().is_root() {
            become_nobody(orders.user)?;
            orders.limits.processes
        } else {
            // The limit counts all processes of the user.
            orders.limits.processes + processes_of(Uid::current())
        };
        resources(orders, processes).map_err(|e| format!("cannot limit resources: {e}"))?;
        // After the change of user, which resets it: the program ends with its guard.
        prctl::set_pdeathsig(Signal::SIGKILL)
            .map_err(|e| format!("cannot follow its guard: {e}"))?;
        if unistd::getppid() != unistd::getpgrp() {
            return Err("its guard is gone".to_owned());
        }
        let scoped = files(orders).map_err(|e| format!("cannot limit files (Landlock): {e}"))?;
        calls::confine(scoped, orders.compiles)
    }

    /// Leaves the superuser for a user without name, rights or processes.
    ///
    /// It keeps the right to pass through folders, or it could not read a language installed in the
    /// superuser's home; Landlock decides what it may read there.
    fn become_nobody(user: u32) -> Result<(), String> {
        let failed = |e: &dyn std::fmt::Display| format!("cannot leave the superuser: {e}");
        let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
        prctl::set_keepcaps(true).map_err(|e| failed(&e))?;
        unistd::setgroups(&[]).map_err(|e| failed(&e))?;
        unistd::setresgid(gid, gid, gid).map_err(|e| failed(&e))?;
        unistd::setresuid(uid, uid, uid).map_err(|e| failed(&e))?;
        let kept = CapsHashSet::from([Capability::CAP_DAC_READ_SEARCH]);
        for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable, CapSet::Ambient] {
            caps::set(None, set, &kept).map_err(|e| failed(&e))?;
        }
        Ok(())
    }

    /// Threads that the user runs now.
    fn processes_of(user: Uid) -> u64 {
        use std::os::unix::fs::MetadataExt;
        let Ok(processes) = std::fs::read_dir("/proc") else { return 0 };
        let threads = processes.flatten().filter_map(|process| {
            process.file_name().to_str()?.parse::<u32>().ok()?;
            (process.metadata().ok()?.uid() == user.as_raw()).then_some(())?;
            Some(std::fs::read_dir(process.path().join("task")).ok()?.count() as u64)
        });
        threads.sum()
    }

    fn resources(orders: &Orders, processes: u64) -> nix::Result<()> {
        let limits = &orders.limits;
        for (resource, limit) in [
            (Resource::RLIMIT_CORE, 0),
            (Resource::RLIMIT_CPU, limits.cpu_seconds),
            // Address space that is only reserved does not count: Java, Go and JavaScript reserve
            // far more than they use.
            (Resource::RLIMIT_DATA, limits.memory),
            (Resource::RLIMIT_FSIZE, limits.files),
            (Resource::RLIMIT_NOFILE, 256),
            (Resource::RLIMIT_MEMLOCK, 0),
            (Resource::RLIMIT_NPROC, processes),
        ] {
            setrlimit(resource, limit, limit)?;
        }
        Ok(())
    }

    /// Confines reading and writing. Returns whether signals are confined too.
    fn files(orders: &Orders) -> Result<bool, landlock::RulesetError> {
        let abi = ABI::V6;
        let created = Ruleset::default()
            // Reading, writing and running files is what must be confined; what newer systems can
            // confine besides is taken where it is there.
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(ABI::V1))?
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(abi))?
            .scope(Scope::from_all(abi))?
            .create()?;
        let read = AccessFs::from_read(abi);
        let mut all = AccessFs::from_all(abi);
        if !orders.compiles {
            all.remove(AccessFs::RemoveFile | AccessFs::RemoveDir);
        }
        let device = AccessFs::ReadFile | AccessFs::WriteFile;
        let existing =
            |paths: &[&str]| -> Vec<PathBuf> { paths.iter().map(PathBuf::from).collect() };
        let mut ruleset = created;
        for (paths, access) in [
            (existing(&SYSTEM), read),
            (orders.readable.clone(), read),
            (existing(&DEVICES), device),
            (orders.writable.clone(), all),
            (vec![orders.folder.clone()], all),
        ] {
            for path in paths {
                // What is not there needs no rule.
                let Ok(opened) = PathFd::new(&path) else { continue };
                let access =
                    if is_file(&path) { access & AccessFs::from_file(abi) } else { access };
                ruleset = ruleset.add_rule(PathBeneath::new(opened, access))?;
            }
        }
        let status = ruleset.restrict_self()?;
        Ok(status.ruleset == RulesetStatus::FullyEnforced)
    }

    fn is_file(path: &Path) -> bool {
        !path.is_dir()
    }
}
