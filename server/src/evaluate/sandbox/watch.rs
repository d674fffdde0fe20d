//! The parent's side: reads a program's output, watches its group and ends it.

use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{End, Limits, Outcome};

/// Beginning of an output that is kept.
const KEPT_OUTPUT: usize = 64 << 10;
/// End of an output that is kept; what lies between is read and dropped.
const KEPT_END: usize = 4 << 10;
/// Time between looks at whether the program still runs.
const LOOK: Duration = Duration::from_millis(5);
/// Time between looks at the group's memory and files.
const MEASURE: Duration = Duration::from_millis(50);

/// Starts `command` as the leader of its own process group and waits until it has ended.
pub fn watch(mut command: Command, limits: &Limits, folder: &Path) -> io::Result<Outcome> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut child = command.spawn()?;
    let stdout = child.stdout.take().map(keep);
    let stderr = child.stderr.take().map(keep);
    let end = wait(&mut child, limits, folder);
    // Children that outlive their parent hold the pipes open: they go first.
    group::kill(child.id());
    let _ = child.kill();
    let status = child.wait()?;
    let (stdout, stderr) = (Output::of(stdout), Output::of(stderr));
    Ok(Outcome {
        end: end?.unwrap_or_else(|| ended(status)),
        stdout: text(&stdout.beginning),
        stdout_end: text(&stdout.end),
        stderr: text(&stderr.beginning),
    })
}

/// Waits for the program's end; says so when it has to be killed.
fn wait(child: &mut Child, limits: &Limits, folder: &Path) -> io::Result<Option<End>> {
    let start = Instant::now();
    let mut measured = start;
    loop {
        if child.try_wait()?.is_some() {
            return Ok(None);
        }
        if start.elapsed() > limits.wall {
            return Ok(Some(End::TooLong));
        }
        if measured.elapsed() > MEASURE {
            if group::resident_memory(child.id()) > limits.memory {
                return Ok(Some(End::TooMuchMemory));
            }
            if size_of(folder, limits.files) > limits.files {
                return Ok(Some(End::TooManyFiles));
            }
            measured = Instant::now();
        }
        thread::sleep(LOOK);
    }
}

fn ended(status: ExitStatus) -> End {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return End::Signalled(signal);
    }
    End::Exited(status.code().unwrap_or(-1))
}

/// What is kept of an output.
#[derive(Default)]
struct Output {
    beginning: Vec<u8>,
    end: Vec<u8>,
}

impl Output {
    fn of(reader: Option<JoinHandle<Self>>) -> Self {
        reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
    }

    fn add(&mut self, bytes: &[u8]) {
        let room = KEPT_OUTPUT - self.beginning.len();
        self.beginning.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.end.extend_from_slice(bytes);
        self.end.drain(..self.end.len().saturating_sub(KEPT_END));
    }
}

/// Reads all of a pipe.
fn keep(mut pipe: impl Read + Send + 'static) -> JoinHandle<Output> {
    thread::spawn(move || {
        let mut output = Output::default();
        let mut buffer = [0; 8192];
        while let Ok(n @ 1..) = pipe.read(&mut buffer) {
            output.add(&buffer[..n]);
        }
        output
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Bytes in the folder, counted up to a little over `enough`. Every file counts for a block at
/// least, so that a flood of empty files is found too. A folder that was closed to us may hold
/// anything: it counts as too much.
fn size_of(folder: &Path, enough: u64) -> u64 {
    let mut total = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(entries) = folders.pop().map(std::fs::read_dir) {
        if entries.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::PermissionDenied) {
            return enough + 1;
        }
        for entry in entries.into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                folders.push(entry.path());
            }
            total += metadata.len().max(4096);
            if total > enough {
                return total;
            }
        }
    }
    total
}

/// The process group that the program leads.
#[cfg(target_os = "linux")]
mod group {
    use nix::sys::signal::{Signal, killpg};
    use nix::unistd::Pid;

    /// Kills every process of the group.
    pub fn kill(leader: u32) {
        if let Ok(leader) = i32::try_from(leader) {
            // A group that has ended needs no killing.
            let _ = killpg(Pid::from_raw(leader), Signal::SIGKILL);
        }
    }

    /// Resident memory of the group in bytes.
    pub fn resident_memory(leader: u32) -> u64 {
        let Ok(processes) = std::fs::read_dir("/proc") else { return 0 };
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
        let page = page.and_then(|page| u64::try_from(page).ok()).unwrap_or(4096);
        let pages = processes.flatten().filter_map(|process| {
            let name = process.file_name();
            name.to_str()?.parse::<u32>().ok()?;
            let stat = std::fs::read_to_string(process.path().join("stat")).ok()?;
            // The name of the program, in parentheses, may hold anything; what follows is numbers:
            // state, parent, group, …, and resident pages as the 22nd.
            let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
            (fields.nth(2)?.parse::<u32>().ok()? == leader).then_some(())?;
            fields.nth(18)?.parse::<u64>().ok()
        });
        pages.sum::<u64>() * page
    }
}

/// Elsewhere only the program itself is killed.
#[cfg(not(target_os = "linux"))]
mod group {
    pub fn kill(_leader: u32) {}

    pub fn resident_memory(_leader: u32) -> u64 {
        0
    }
}
