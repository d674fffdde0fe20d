//! System calls that programs are refused; all others are allowed.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BackendError, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

/// Calls, and when each is refused: by any of the rules, or always where there is none.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Filters the system calls of this thread and all that it starts. `signals_scoped`: signals are
/// confined already. A compiler is trusted with a little more than a program.
pub fn confine(signals_scoped: bool, compiles: bool) -> Result<(), String> {
    let filters = || -> Result<_, BackendError> {
        let arch = TargetArch::try_from(std::env::consts::ARCH)?;
        let filter = |rules: Rules, error: i32| -> Result<seccompiler::BpfProgram, _> {
            let refusal = SeccompAction::Errno(error.cast_unsigned());
            SeccompFilter::new(dressed(rules), SeccompAction::Allow, refusal, arch)?.try_into()
        };
        Ok([
            filter(refused(signals_scoped, compiles)?, libc::EPERM)?,
            // Its arguments are out of this filter's sight; libraries go back to `clone`.
            filter(always([libc::SYS_clone3]), libc::ENOSYS)?,
            // Takes room beyond a file's end; libraries go back to writing.
            filter(always([libc::SYS_fallocate]), libc::EOPNOTSUPP)?,
        ])
    };
    for filter in filters().map_err(|e| format!("cannot filter system calls: {e}"))? {
        apply_filter(&filter).map_err(|e| format!("cannot filter system calls (seccomp): {e}"))?;
    }
    Ok(())
}

fn always(calls: impl IntoIterator<Item = i64>) -> Rules {
    calls.into_iter().map(|call| (call, vec![])).collect()
}

fn refused(signals_scoped: bool, compiles: bool) -> Result<Rules, BackendError> {
    // Newer than the library that names the others.
    const SYS_SETXATTRAT: i64 = 463;
    const SYS_OPEN_TREE_ATTR: i64 = 467;

    let mut rules = always([
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
        libc::SYS_process_madvise,
        libc::SYS_process_mrelease,
        libc::SYS_pidfd_open,
        libc::SYS_pidfd_getfd,
        libc::SYS_pidfd_send_signal,
        libc::SYS_kcmp,
        libc::SYS_migrate_pages,
        libc::SYS_move_pages,
        libc::SYS_ioprio_set,
        libc::SYS_get_robust_list,
        // The system.
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_mount_setattr,
        libc::SYS_move_mount,
        libc::SYS_open_tree,
        SYS_OPEN_TREE_ATTR,
        libc::SYS_fsopen,
        libc::SYS_fsconfig,
        libc::SYS_fsmount,
        libc::SYS_fspick,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_open_by_handle_at,
        // Memory that belongs to no process, outlives all of them, or belongs to others.
        libc::SYS_memfd_secret,
        libc::SYS_memfd_create,
        libc::SYS_shmget,
        libc::SYS_shmat,
        libc::SYS_shmctl,
        libc::SYS_semget,
        libc::SYS_semop,
        libc::SYS_semtimedop,
        libc::SYS_semctl,
        libc::SYS_msgget,
        libc::SYS_msgsnd,
        libc::SYS_msgrcv,
        libc::SYS_msgctl,
        libc::SYS_mq_open,
        libc::SYS_mq_unlink,
        // Room that a file's length does not tell of.
        libc::SYS_setxattr,
        libc::SYS_lsetxattr,
        libc::SYS_fsetxattr,
        SYS_SETXATTRAT,
        // Opens files in ways that this filter cannot see.
        libc::SYS_openat2,
    ]);
    if !compiles {
        rules.extend(always([libc::SYS_socketpair]));
    }
    // A process may change itself, by the number 0 or its own.
    for call in [
        libc::SYS_prlimit64,
        libc::SYS_sched_setaffinity,
        libc::SYS_sched_setscheduler,
        libc::SYS_sched_setparam,
        libc::SYS_sched_setattr,
    ] {
        rules.insert(call, vec![another_process(0)?]);
    }
    let another_kind = rule(vec![differs(0, libc::PRIO_PROCESS.cast_signed())?])?;
    rules.insert(libc::SYS_setpriority, vec![another_kind, another_process(1)?]);
    let mut namespaces = Vec::new();
    for namespace in [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWCGROUP,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
    ] {
        namespaces.push(all_bits(0, namespace)?);
    }
    rules.insert(libc::SYS_clone, namespaces);
    if !signals_scoped {
        rules.extend(always([
            libc::SYS_kill,
            libc::SYS_tkill,
            libc::SYS_rt_sigqueueinfo,
            libc::SYS_rt_tgsigqueueinfo,
        ]));
        // How a program aborts.
        rules.insert(libc::SYS_tgkill, vec![another_process(0)?]);
    }
    // Signals by way of a file: who shall hear of its input.
    rules.insert(
        libc::SYS_fcntl,
        vec![rule(vec![equals(1, libc::F_SETOWN)?])?, rule(vec![equals(1, F_SETOWN_EX)?])?],
    );
    let mut room = Vec::new();
    for request in [FS_IOC_RESVSP, FS_IOC_RESVSP64, FS_IOC_ZERO_RANGE] {
        room.push(rule(vec![equals(1, request)?])?);
    }
    rules.insert(libc::SYS_ioctl, room);
    let shared = all_bits(3, libc::MAP_SHARED | libc::MAP_ANONYMOUS)?;
    rules.insert(libc::SYS_mmap, vec![shared]);
    rules.insert(libc::SYS_openat, vec![all_bits(2, libc::O_TMPFILE)?]);
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_open, vec![all_bits(1, libc::O_TMPFILE)?]);
    Ok(rules)
}

const F_SETOWN_EX: i32 = 15;
/// The older ways to do what `fallocate` does.
const FS_IOC_RESVSP: i32 = 0x4030_5828;
const FS_IOC_RESVSP64: i32 = 0x4030_582a;
const FS_IOC_ZERO_RANGE: i32 = 0x4030_5839;

/// The rules, also for the same calls in the dress of the x32 interface, where the kernel offers it.
fn dressed(mut rules: Rules) -> Rules {
    if cfg!(target_arch = "x86_64") {
        const X32: i64 = 0x4000_0000;
        let dressed: Vec<_> = rules.iter().map(|(&n, r)| (n | X32, r.clone())).collect();
        rules.extend(dressed);
        rules.extend(always((512..=547).map(|call| call | X32)));
    }
    rules
}

/// The argument names a process other than this one, which becomes the program.
fn another_process(argument: u8) -> Result<SeccompRule, BackendError> {
    rule(vec![differs(argument, 0)?, differs(argument, nix::unistd::getpid().as_raw())?])
}

/// The argument has all these bits.
fn all_bits(argument: u8, bits: i32) -> Result<SeccompRule, BackendError> {
    let mask = SeccompCmpOp::MaskedEq(u64::from(bits.cast_unsigned()));
    rule(vec![condition(argument, mask, bits)?])
}

fn equals(argument: u8, value: i32) -> Result<SeccompCondition, BackendError> {
    condition(argument, SeccompCmpOp::Eq, value)
}

fn differs(argument: u8, value: i32) -> Result<SeccompCondition, BackendError> {
    condition(argument, SeccompCmpOp::Ne, value)
}

fn condition(
    argument: u8,
    operator: SeccompCmpOp,
    value: i32,
) -> Result<SeccompCondition, BackendError> {
    let value = u64::from(value.cast_unsigned());
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
}

fn rule(all: Vec<SeccompCondition>) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(all)
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;
    use nix::sys::signal::{Signal, kill, raise};
    use nix::unistd::Pid;

    use super::*;

    #[test]
    fn where_signals_are_not_scoped_only_those_to_oneself_are_let_through() {
        let mut stranger = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_raw(stranger.id().cast_signed());
        // Filters bind the thread that asks for them.
        let tried = std::thread::spawn(move || {
            confine(false, false).unwrap();
            [kill(pid, None), raise(Signal::SIGCONT)]
        });
        let tried = tried.join().unwrap();
        stranger.kill().unwrap();
        stranger.wait().unwrap();
        assert_eq!(tried, [Err(Errno::EPERM), Ok(())]);
    }
}
