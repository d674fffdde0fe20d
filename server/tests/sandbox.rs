//! What a hostile program can do in the sandbox: nothing to the machine.

#![cfg(target_os = "linux")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use fleetune_server::evaluate::sandbox::{End, Limits, Outcome, Sandbox, Step};

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
    let patience = Instant::now() + Duration::from_secs(60);
    while leftovers("main.py") > 0 {
        assert!(Instant::now() < patience, "{} processes", leftovers("main.py"));
        std::thread::sleep(Duration::from_millis(50));
    }
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
os.mkdir('closed')
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
    except PermissionError: print('refused')";
    let Some(outcome) = run(code, limits()) else { return };
    assert_eq!(outcome.stdout, "refused\nrefused\nrefused\n", "{}", outcome.stderr);
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
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(leftovers(folder.path().to_str().unwrap()), 0);
}

#[test]
fn strangers_cannot_be_signalled() {
    let mut stranger = Command::new("sleep").arg("60").spawn().unwrap();
    let code = format!(
        "import os\ntry: os.kill({}, 9)\nexcept PermissionError: print('refused')",
        stranger.id()
    );
    let outcome = run(&code, limits());
    let alive = stranger.try_wait().unwrap().is_none();
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    let Some(outcome) = outcome else { return };
    assert_eq!(outcome.stdout, "refused\n", "{}", outcome.stderr);
    assert!(alive);
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

/// Processes whose command line or working folder names `mark`.
fn leftovers(mark: &str) -> usize {
    let names = |process: std::fs::DirEntry| {
        let path = process.path();
        let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
        let folder = std::fs::read_link(path.join("cwd")).unwrap_or_default();
        let is_sandboxed = String::from_utf8_lossy(&line).contains("main.py")
            && folder.starts_with(std::env::temp_dir());
        (is_sandboxed && (mark == "main.py" || folder.starts_with(mark))).then_some(())
    };
    std::fs::read_dir("/proc").unwrap().flatten().filter_map(names).count()
}
