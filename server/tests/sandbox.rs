//! What a hostile program can do in the sandbox: nothing to the machine.

#![cfg(target_os = "linux")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fleetune_server::evaluate::code::ProgramRunner;
use fleetune_server::evaluate::sandbox::{End, Folder, Limits, Outcome, Sandbox, Step};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Python's own path, and its installation; `None` (and a line) where there is none.
fn python() -> Option<(PathBuf, PathBuf)> {
    let script = "import sys; print(sys.executable); print(sys.base_prefix)";
    let found = Command::new("python3").args(["-c", script]).output().ok();
    let found = found.and_then(|found| String::from_utf8(found.stdout).ok());
    let lines = found.as_deref().and_then(|text| text.trim().split_once('\n'));
    if lines.is_none() {
        println!("skipped: there is no python3");
    }
    lines.map(|(program, prefix)| (program.into(), prefix.into()))
}

/// Runs a Python program; `None` where there is no Python.
fn run(code: &str, limits: Limits) -> Option<Outcome> {
    run_in(tempfile::tempdir().unwrap().path(), code, limits)
}

fn run_in(folder: &Path, code: &str, limits: Limits) -> Option<Outcome> {
    let (program, prefix) = python()?;
    let sandbox = Sandbox::open(env!("CARGO_BIN_EXE_fleetune")).unwrap();
    std::fs::write(folder.join("main.py"), code).unwrap();
    let step = Step { readable: vec![prefix], limits, ..Step::new(program, ["-I", "main.py"]) };
    Some(sandbox.run(&step, folder).unwrap())
}

fn limits() -> Limits {
    Limits { wall: Duration::from_secs(20), ..Limits::default() }
}

#[test]
fn an_honest_program_works_in_its_folder() {
    let code =
        "open('note', 'w').write('x' * 10); print(len(open('note').read())); import math, json, re";
    if let Some(outcome) = run(code, limits()) {
        assert_eq!(outcome.end, End::Exited(0), "{}", outcome.stderr);
        assert_eq!(outcome.stdout, "10\n");
    }
}

#[test]
fn a_failing_program_is_told_from_a_crashing_one() {
    let Some(outcome) = run("assert 1 == 2", limits()) else { return };
    assert_eq!(outcome.end, End::Exited(1));
    assert!(outcome.stderr.contains("AssertionError"));
    let outcome = run("import os; os.abort()", limits()).unwrap();
    assert_eq!(outcome.end, End::Signalled(6));
}

#[test]
fn a_fork_bomb_is_stopped_by_the_number_of_processes() {
    let code = "import os
children = 0
try:
    while True:
        if os.fork() == 0:
            while True: pass
        children += 1
except OSError:
    print(children)";
    let Some(outcome) = run(code, Limits { processes: 20, ..limits() }) else { return };
    assert_eq!(outcome.end, End::Exited(0), "{}", outcome.stderr);
    let children: usize = outcome.stdout.trim().parse().unwrap();
    // For a plain user, the limit adds to what runs elsewhere at the time, other tests included.
    assert!(children < 200, "{children} children");
    // They were to run for ever, and do not; what other tests run at the time ends soon.
    assert!(comes_true(|| leftovers("main.py").is_empty()), "{:?}", leftovers("main.py"));
}

#[test]
fn a_fork_bomb_that_does_not_give_up_is_ended_by_the_clock() {
    let code = "import os
while True:
    try: os.fork()
    except OSError: pass";
    let start = Instant::now();
    let wall = Duration::from_secs(2);
    let Some(outcome) = run(code, Limits { wall, ..limits() }) else { return };
    assert!(matches!(outcome.end, End::TooLong | End::Signalled(_)), "{:?}", outcome.end);
    assert!(start.elapsed() < Duration::from_secs(15));
}

#[test]
fn an_endless_loop_is_ended_by_processor_time() {
    let Some(outcome) = run("while True: pass", Limits { cpu_seconds: 1, ..limits() }) else {
        return;
    };
    assert!(matches!(outcome.end, End::Signalled(9 | 24)), "{:?}", outcome.end);
}

#[test]
fn an_endless_sleep_is_ended_by_the_clock() {
    let wall = Duration::from_millis(500);
    let Some(outcome) = run("import time; time.sleep(1e6)", Limits { wall, ..limits() }) else {
        return;
    };
    assert_eq!(outcome.end, End::TooLong);
}

#[test]
fn an_allocation_of_ten_gigabytes_fails() {
    let Some(outcome) = run("x = bytearray(10 << 30)", limits()) else { return };
    assert_eq!(outcome.end, End::Exited(1));
    assert!(outcome.stderr.contains("MemoryError"), "{}", outcome.stderr);
}

#[test]
fn memory_of_several_processes_counts_together() {
    let code = "import os, time
for _ in range(7):
    if os.fork() == 0: break
x = bytearray(100 << 20)
for i in range(0, len(x), 4096): x[i] = 1
time.sleep(1e6)";
    let Some(outcome) = run(code, Limits { memory: 256 << 20, ..limits() }) else { return };
    assert_eq!(outcome.end, End::TooMuchMemory, "{}", outcome.stderr);
}

#[test]
fn there_is_no_memory_that_belongs_to_no_process() {
    let code = "import ctypes, mmap, os
libc = ctypes.CDLL(None, use_errno=True)
def refused(name, call):
    try:
        if call() != -1: print(name, 'works')
        elif ctypes.get_errno() != 1: print(name, ctypes.get_errno())
    except PermissionError: pass
refused('shmget', lambda: libc.shmget(0, 1 << 20, 0o1600))
refused('semget', lambda: libc.semget(0, 1, 0o1600))
refused('msgget', lambda: libc.msgget(0, 0o1600))
refused('memfd_create', lambda: os.memfd_create('x'))
refused('shared mapping', lambda: mmap.mmap(-1, 1 << 20))
refused('shm_open', lambda: os.open('/dev/shm/x', os.O_RDWR | os.O_CREAT))
refused('/dev/zero', lambda: os.open('/dev/zero', os.O_RDWR))
private = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
private[0] = 1
if os.uname().machine == 'x86_64':
    # memfd_create in the dress of the x32 interface.
    refused('x32', lambda: libc.syscall(0x40000000 | 319, b'x', 0))
print('end')";
    let Some(outcome) = run(code, limits()) else { return };
    assert_eq!(outcome.stdout, "end\n", "{}", outcome.stderr);
}

#[test]
fn files_cannot_hide_from_being_counted() {
    let code = "import os
held = []
for name in ('removed', 'renamed over'):
    held.append(open(name, 'wb'))
try: os.unlink('removed'); print('removed')
except PermissionError: pass
open('other', 'wb').close()
try: os.replace('other', 'renamed over'); print('replaced')
except PermissionError: pass
try: os.open('.', os.O_TMPFILE | os.O_RDWR); print('nameless')
except PermissionError: pass
os.mkdir('folder')
try: os.rename('folder', 'elsewhere'); print('moved away')
except PermissionError: pass
try: os.rmdir('folder'); print('folder removed')
except PermissionError: pass
os.listdir('.')
print('end')";
    let Some(outcome) = run(code, limits()) else { return };
    assert_eq!(outcome.stdout, "end\n", "{}", outcome.stderr);
}

#[test]
fn the_network_cannot_be_reached() {
    let code = "import socket
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
    try: socket.socket(family, socket.SOCK_STREAM)
    except PermissionError: print('refused')
try: socket.socketpair()
except PermissionError: print('no pair either')";
    let Some(outcome) = run(code, limits()) else { return };
    let refused = "refused\nrefused\nrefused\nno pair either\n";
    assert_eq!(outcome.stdout, refused, "{}", outcome.stderr);
    // Neither at the first try of a whole request.
    let code = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9/')";
    let outcome = run(code, limits()).unwrap();
    assert!(outcome.stderr.contains("not permitted"), "{}", outcome.stderr);
}

#[test]
fn other_files_can_be_neither_read_nor_written() {
    let secret = tempfile::tempdir().unwrap();
    let file = secret.path().join("secret");
    std::fs::write(&file, "key").unwrap();
    let code = format!(
        "import os
for path, mode in (({file:?}, 'r'), ({file:?}, 'w'), ('/etc/passwd', 'r'), ('/tmp/x', 'w'), ('/proc/1/environ', 'r'),
        ('/proc/1/cmdline', 'r'), ('/proc/%d/cmdline' % os.getppid(), 'r')):
    try: open(path, mode); print('opened', path)
    except PermissionError: pass
try: os.listdir({folder:?}); print('listed')
except PermissionError: pass
try: os.listdir('/proc'); print('processes listed')
except PermissionError: pass
try: os.unlink({file:?}); print('removed')
except PermissionError: pass",
        folder = secret.path()
    );
    let Some(outcome) = run(&code, limits()) else { return };
    assert_eq!((outcome.end, outcome.stdout.as_str()), (End::Exited(0), ""), "{}", outcome.stderr);
    assert_eq!(std::fs::read_to_string(file).unwrap(), "key");
}

#[test]
fn a_process_cannot_leave_the_group_nor_outlive_it() {
    let code = "import os, time
for leave in (os.setsid, lambda: os.setpgid(0, 0)):
    try: leave(); print('left')
    except PermissionError: pass
if os.fork() == 0:
    os.close(1); os.close(2)
    time.sleep(1e6)";
    let folder = tempfile::tempdir().unwrap();
    let Some(outcome) = run_in(folder.path(), code, limits()) else { return };
    assert_eq!((outcome.end, outcome.stdout.as_str()), (End::Exited(0), ""), "{}", outcome.stderr);
    assert!(comes_true(|| leftovers(folder.path()).is_empty()));
}

/// Runs a program that is told the number of a process that is not its own, which has to survive it.
fn run_beside_a_stranger(code: impl Fn(u32) -> String) -> Option<Outcome> {
    let mut stranger = Command::new("sleep").arg("60").spawn().unwrap();
    let outcome = run(&code(stranger.id()), limits());
    let alive = stranger.try_wait().unwrap().is_none();
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    assert!(alive);
    outcome
}

#[test]
fn strangers_cannot_be_signalled() {
    let code = |stranger| {
        format!("import os\ntry: os.kill({stranger}, 9)\nexcept PermissionError: print('refused')")
    };
    let Some(outcome) = run_beside_a_stranger(code) else { return };
    assert_eq!(outcome.stdout, "refused\n", "{}", outcome.stderr);
}

#[test]
fn processes_cannot_be_changed_but_by_themselves() {
    let code = |stranger: u32| {
        format!(
        "import ctypes, os, resource, signal
libc = ctypes.CDLL(None, use_errno=True)
def refused(name, call):
    try:
        if call() != -1: print(name, 'works')
        elif ctypes.get_errno() != 1: print(name, ctypes.get_errno())
    except PermissionError: pass
child = os.fork()
if child == 0:
    signal.pause()
nothing = (ctypes.c_char * 256)()
for pid in ({stranger}, os.getppid(), child):
    refused('prlimit', lambda: resource.prlimit(pid, resource.RLIMIT_CPU, (0, 0)))
    refused('setpriority', lambda: os.setpriority(os.PRIO_PROCESS, pid, 19))
    refused('sched_setaffinity', lambda: os.sched_setaffinity(pid, {{0}}))
    refused('sched_setscheduler', lambda: os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0)))
    refused('sched_setparam', lambda: os.sched_setparam(pid, os.sched_param(0)))
    refused('pidfd_open', lambda: os.pidfd_open(pid))
    if os.uname().machine == 'x86_64':
        for call in (251, 256, 279, 310, 311, 312, 314):
            refused(call, lambda: libc.syscall(call, pid, pid, 0, 0, 0, 0))
refused('group priority', lambda: os.setpriority(os.PRIO_PGRP, 0, 19))
refused('user priority', lambda: os.setpriority(os.PRIO_USER, 0, 19))
refused('input signal', lambda: libc.fcntl(0, 8, {stranger}))
for me in (0, os.getpid()):
    resource.prlimit(me, resource.RLIMIT_NOFILE, (64, 256))
    os.sched_setaffinity(me, os.sched_getaffinity(me))
    os.setpriority(os.PRIO_PROCESS, me, 19)
os.kill(child, 9)
print('end')"
    )
    };
    let Some(outcome) = run_beside_a_stranger(code) else { return };
    assert_eq!(outcome.stdout, "end\n", "{}", outcome.stderr);
}

#[test]
fn there_are_no_namespaces_nor_mounts() {
    let code = "import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
clone = 56 if os.uname().machine == 'x86_64' else 220
for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
    child = libc.syscall(clone, flag | 17, 0, 0, 0, 0)
    if child == 0: os._exit(0)
    if child != -1 or ctypes.get_errno() != 1: print('namespace', hex(flag), child)
# Without arguments: 22 where it is let in.
if libc.syscall(435, 0, 0) != -1 or ctypes.get_errno() != 38: print('clone3', ctypes.get_errno())
for call in (428, 429, 430, 431, 432, 433, 442, 467):
    if libc.syscall(call, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() != 1:
        print('mount', call, ctypes.get_errno())
import threading
thread = threading.Thread(target=lambda: print('thread'))
thread.start()
thread.join()
if os.fork() == 0: os._exit(0)
print(os.wait()[1])";
    let Some(outcome) = run(code, limits()) else { return };
    assert_eq!(outcome.stdout, "thread\n0\n", "{}", outcome.stderr);
}

#[test]
fn no_room_is_taken_beyond_a_files_end() {
    let code = "import ctypes, os, struct
libc = ctypes.CDLL(None, use_errno=True)
file = os.open('file', os.O_RDWR | os.O_CREAT)
room = ctypes.c_int64(3 << 30)
if libc.fallocate(file, 1, ctypes.c_int64(0), room) != -1 or ctypes.get_errno() != 95:
    print('fallocate', ctypes.get_errno())
reserve = struct.pack('hhqqiIiiii', 0, 0, 0, 32 << 20, 0, 0, 0, 0, 0, 0)
for request in (0x40305828, 0x4030582a, 0x40305839):
    if libc.ioctl(file, ctypes.c_ulong(request), reserve) != -1 or ctypes.get_errno() != 1:
        print('ioctl', hex(request), ctypes.get_errno())
try: os.setxattr('file', 'user.x', b'x'); print('attribute')
except PermissionError: pass
print(os.stat('file').st_blocks)
# What is seen may still be asked for.
os.posix_fallocate(file, 0, 1 << 20)
print(os.stat('file').st_size)";
    let Some(outcome) = run(code, limits()) else { return };
    assert_eq!(outcome.stdout, "0\n1048576\n", "{}", outcome.stderr);
}

#[test]
fn folders_too_deep_to_look_into_are_too_much_and_do_not_stay() {
    let code = "import os, time
for _ in range(2500):
    os.mkdir('d')
    os.chdir('d')
time.sleep(1e6)";
    let folder = Folder::new().unwrap();
    let Some(outcome) = run_in(folder.path(), code, limits()) else { return };
    assert_eq!(outcome.end, End::TooManyFiles, "{}", outcome.stderr);
    let path = folder.path().to_owned();
    drop(folder);
    assert!(!path.exists());
}

#[test]
fn closed_folders_do_not_stay() {
    let code = "import os
os.makedirs('a/b/c')
open('a/b/file', 'w').close()
os.chmod('a/b/c', 0); os.chmod('a/b', 0); os.chmod('a', 0); os.chmod('.', 0)";
    let folder = Folder::new().unwrap();
    let Some(outcome) = run_in(folder.path(), code, limits()) else { return };
    assert!(matches!(outcome.end, End::Exited(0) | End::TooManyFiles), "{}", outcome.stderr);
    let path = folder.path().to_owned();
    drop(folder);
    assert!(!path.exists());
}

#[test]
fn the_disk_cannot_be_filled() {
    let files = 8 << 20;
    let Some(outcome) =
        run("open('a', 'wb').write(bytes(100 << 20))", Limits { files, ..limits() })
    else {
        return;
    };
    assert_ne!(outcome.end, End::Exited(0));
    let code = "i = 0
while True:
    open(str(i), 'wb').write(bytes(1 << 20)); i += 1";
    let outcome = run(code, Limits { files, ..limits() }).unwrap();
    assert_eq!(outcome.end, End::TooManyFiles, "{}", outcome.stderr);
}

#[test]
fn endless_output_is_cut() {
    let code = "import sys
for _ in range(10000): sys.stdout.write('x' * 1000)
print('end')";
    let Some(outcome) = run(code, limits()) else { return };
    assert_eq!(outcome.end, End::Exited(0));
    assert_eq!(outcome.stdout.len(), 64 << 10);
    assert_eq!(outcome.stdout_end.len(), 4 << 10);
    assert!(outcome.stdout_end.ends_with("xend\n"));
}

#[test]
fn a_launcher_that_does_not_confine_opens_no_sandbox() {
    let error = Sandbox::open("/bin/false").unwrap_err().to_string();
    assert!(error.contains("--allow-unsandboxed"), "{error}");
}

/// What another test starts this one for, where it does.
const PART: &str = "FLEETUNE_TEST_PART";

/// Starts the test `name` of this file in a process of its own, which stands for `fleetune`.
fn fleetune(name: &str, folder: &Path) -> Child {
    let mut fleetune = Command::new(std::env::current_exe().unwrap());
    fleetune.args(["--exact", name, "--nocapture"]).env(PART, folder);
    fleetune.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

#[test]
fn part_a_program_with_a_child_runs_on_and_on() {
    let Some(folder) = std::env::var_os(PART).map(PathBuf::from) else { return };
    let code = "import os, time
if os.fork() == 0: open('ready', 'w').close()
time.sleep(1e6)";
    let wall = Duration::from_secs(3600);
    run_in(&folder, code, Limits { wall, ..limits() });
}

#[test]
fn a_killed_fleetune_takes_its_programs_and_their_children_along() {
    if python().is_none() {
        return;
    }
    let folder = Folder::new().unwrap();
    let mut fleetune = fleetune("part_a_program_with_a_child_runs_on_and_on", folder.path());
    let ready = comes_true(|| folder.path().join("ready").exists());
    let running = leftovers(folder.path());
    fleetune.kill().unwrap();
    fleetune.wait().unwrap();
    let ended = comes_true(|| leftovers(folder.path()).is_empty());
    for process in leftovers(folder.path()) {
        let _ = kill(process, Signal::SIGKILL);
    }
    assert!(ready && running.len() >= 2, "{running:?}");
    assert!(ended);
}

#[test]
fn a_killed_guard_takes_its_program_along() {
    if python().is_none() {
        return;
    }
    let folder = Folder::new().unwrap();
    let mut fleetune = fleetune("part_a_program_with_a_child_runs_on_and_on", folder.path());
    let ready = comes_true(|| folder.path().join("ready").exists());
    // The leader of the group that all of them are in.
    let running = leftovers(folder.path());
    let guard = running.iter().find_map(|&process| nix::unistd::getpgid(Some(process)).ok());
    let killed = guard.is_some_and(|guard| kill(guard, Signal::SIGKILL).is_ok());
    let ended = comes_true(|| leftovers(folder.path()).is_empty());
    let _ = fleetune.kill();
    fleetune.wait().unwrap();
    for process in leftovers(folder.path()) {
        let _ = kill(process, Signal::SIGKILL);
    }
    assert!(ready && killed, "{running:?}");
    assert!(ended);
}

#[test]
fn part_a_runner_is_held_until_its_input_ends() {
    if std::env::var_os(PART).is_none() {
        return;
    }
    let sandbox = Sandbox::open(env!("CARGO_BIN_EXE_fleetune")).unwrap();
    let _runner = ProgramRunner::new(sandbox).unwrap();
    println!("held");
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

#[test]
fn folders_of_a_killed_fleetune_go_with_the_next_run() {
    let temporary = tempfile::tempdir().unwrap();
    let folders = || std::fs::read_dir(temporary.path()).unwrap().count();
    let runner = || {
        let mut fleetune = Command::new(std::env::current_exe().unwrap());
        fleetune.args(["--exact", "part_a_runner_is_held_until_its_input_ends", "--nocapture"]);
        fleetune.env(PART, temporary.path()).env("TMPDIR", temporary.path());
        let mut fleetune = fleetune.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(fleetune.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().ends_with("held")));
        // The rest of its output has to go somewhere.
        let rest = std::thread::spawn(move || lines.count());
        (fleetune, rest)
    };
    let (mut killed, rest) = runner();
    assert_eq!(folders(), 1);
    killed.kill().unwrap();
    killed.wait().unwrap();
    rest.join().unwrap();
    let (mut next, rest) = runner();
    assert_eq!(folders(), 1, "the other's is gone");
    let (mut beside, rest_beside) = runner();
    assert_eq!(folders(), 2, "the one in use is not");
    for runner in [&mut next, &mut beside] {
        drop(runner.stdin.take());
        assert!(runner.wait().unwrap().success());
    }
    rest.join().unwrap();
    rest_beside.join().unwrap();
    assert_eq!(folders(), 0);
}

/// Waits, but not for ever, until something is so.
fn comes_true(mut so: impl FnMut() -> bool) -> bool {
    let patience = Instant::now() + Duration::from_secs(60);
    loop {
        if so() {
            return true;
        }
        if Instant::now() > patience {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sandboxed processes in the folder `mark`, or in any where it is `main.py`.
fn leftovers(mark: impl AsRef<Path>) -> Vec<Pid> {
    let mark = mark.as_ref();
    let names = |process: std::fs::DirEntry| {
        let path = process.path();
        let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
        let folder = std::fs::read_link(path.join("cwd")).unwrap_or_default();
        let is_sandboxed = String::from_utf8_lossy(&line).contains("main.py")
            && folder.starts_with(std::env::temp_dir());
        let named = mark == Path::new("main.py") || folder.starts_with(mark);
        let process = process.file_name().to_str()?.parse().ok()?;
        (is_sandboxed && named).then_some(Pid::from_raw(process))
    };
    std::fs::read_dir("/proc").unwrap().flatten().filter_map(names).collect()
}
