//! The launcher's side: gives up rights, then becomes the program.
//!
//! `fleetune` started with [`FLAG`] is the launcher. It runs before anything else of the program,
//! in a process with one thread, and never returns when it succeeds. What is given up cannot be
//! regained by the program nor by its children:
//!
//! - *network*: no socket of any kind can be made (seccomp), nor can `io_uring` make one;
//! - *files*: only the system's programs and libraries, the named folders and what `/proc` says of
//!   the process itself can be read, and only the working folder and the named ones written
//!   (Landlock). Files cannot be removed, nor made without a name, so that all that is written can be
//!   seen and counted;
//! - *memory that belongs to no process*: no shared memory of System V or POSIX, no files in memory,
//!   no mapping that is shared without a file (seccomp);
//! - *others' processes*: no signals to (Landlock, Linux 6.12; earlier: no `kill` at all) and no
//!   tracing of processes outside;
//! - *the process group*: cannot be left, so that killing the group ends all;
//! - *resources*: processor time, memory, processes, open files, file size (rlimits). The
//!   superuser, whom some limits do not bind, becomes a user without a name first.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use serde::{Deserialize, Serialize};

use super::{Limits, Step};

/// First argument that makes the binary the launcher.
const FLAG: &str = "__confined";

/// What the launcher is told.
#[derive(Debug, Serialize, Deserialize)]
struct Orders {
    folder: PathBuf,
    readable: Vec<PathBuf>,
    writable: Vec<PathBuf>,
    removes: bool,
    limits: Limits,
    /// The user to become, when the superuser starts the launcher.
    user: u32,
}

/// The command that starts `step` through the launcher, as `user` when started by the superuser.
pub fn command(launcher: &Path, user: u32, step: &Step, folder: &Path) -> io::Result<Command> {
    let orders = Orders {
        folder: folder.canonicalize()?,
        readable: step.readable.clone(),
        writable: step.writable.clone(),
        removes: step.removes,
        limits: step.limits,
        user,
    };
    #[cfg(target_os = "linux")]
    linux::hand_over(&orders)?;
    let mut command = Command::new(launcher);
    command.arg(FLAG).arg(serde_json::to_string(&orders)?).arg(&step.program);
    command.args(&step.arguments);
    Ok(command)
}

/// If this process was started as the launcher: confines it and becomes the program. Returns an
/// exit code only when that fails; `None` when this is no launcher.
pub fn confined_main() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != FLAG {
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
    use std::collections::BTreeMap;
    use std::io;
    use std::path::{Path, PathBuf};

    use caps::{CapSet, Capability, CapsHashSet};
    use landlock::{
        ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
        RulesetCreatedAttr, RulesetStatus, Scope,
    };
    use nix::libc;
    use nix::sys::prctl;
    use nix::sys::resource::{Resource, setrlimit};
    use nix::sys::signal::Signal;
    use nix::unistd::{self, Gid, Uid};
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule, TargetArch, apply_filter,
    };

    use super::Orders;

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
        // After the change of user, which resets it: the program ends with its parent.
        prctl::set_pdeathsig(Signal::SIGKILL)
            .map_err(|e| format!("cannot follow its parent: {e}"))?;
        let scoped = files(orders).map_err(|e| format!("cannot limit files (Landlock): {e}"))?;
        let filter =
            system_calls(scoped).map_err(|e| format!("cannot filter system calls: {e}"))?;
        apply_filter(&filter).map_err(|e| format!("cannot filter system calls (seccomp): {e}"))
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
        if !orders.removes {
            all.remove(AccessFs::RemoveFile);
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

    /// System calls that are refused; all others are allowed.
    fn system_calls(signals_scoped: bool) -> Result<BpfProgram, seccompiler::BackendError> {
        let mut refused = vec![
            // The network, and ways around this filter to it.
            libc::SYS_socket,
            libc::SYS_io_uring_setup,
            // Leaving the process group.
            libc::SYS_setsid,
            libc::SYS_setpgid,
            // Other processes.
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_pidfd_getfd,
            // The system.
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_open_by_handle_at,
            // Memory that belongs to no process, or outlives all of them.
            libc::SYS_memfd_secret,
            libc::SYS_memfd_create,
            libc::SYS_shmget,
            libc::SYS_shmat,
            libc::SYS_semget,
            libc::SYS_msgget,
            libc::SYS_mq_open,
            // Opens files in ways that this filter cannot see.
            libc::SYS_openat2,
        ];
        if !signals_scoped {
            refused.extend([libc::SYS_kill, libc::SYS_tkill, libc::SYS_pidfd_send_signal]);
        }
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
            refused.into_iter().map(|call| (call, vec![])).collect();
        let all_bits = |argument, bits: i32| -> Result<SeccompRule, seccompiler::BackendError> {
            let bits = u64::from(bits.cast_unsigned());
            let (width, set) = (SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(bits));
            SeccompRule::new(vec![SeccompCondition::new(argument, width, set, bits)?])
        };
        let shared = all_bits(3, libc::MAP_SHARED | libc::MAP_ANONYMOUS)?;
        rules.insert(libc::SYS_mmap, vec![shared]);
        rules.insert(libc::SYS_openat, vec![all_bits(2, libc::O_TMPFILE)?]);
        #[cfg(target_arch = "x86_64")]
        {
            rules.insert(libc::SYS_open, vec![all_bits(1, libc::O_TMPFILE)?]);
            // The same calls in the dress of the x32 interface, where the kernel offers it.
            const X32: i64 = 0x4000_0000;
            let dressed: Vec<_> = rules.iter().map(|(&n, r)| (n | X32, r.clone())).collect();
            rules.extend(dressed);
            rules.extend((512..=547).map(|call| (call | X32, vec![])));
        }
        let refusal = SeccompAction::Errno(libc::EPERM as u32);
        let arch = TargetArch::try_from(std::env::consts::ARCH)?;
        SeccompFilter::new(rules, SeccompAction::Allow, refusal, arch)?.try_into()
    }
}
