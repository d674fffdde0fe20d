//! The parent's side: reads a program's output, watches its group and ends it.

use std::fs::Metadata;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

#[cfg(target_os = "linux")]
use super::guard::Line;
use super::{End, Limits, Outcome};

/// Beginning of an output that is kept.
const KEPT_OUTPUT: usize = 64 << 10;
/// End of an output that is kept; what lies between is read and dropped.
const KEPT_END: usize = 4 << 10;
/// Time between looks at whether the program still runs.
const LOOK: Duration = Duration::from_millis(5);
/// Time between looks at the group's memory and files.
const MEASURE: Duration = Duration::from_millis(50);

/// Starts `command` as the leader of its own process group and waits until it has ended. The
/// command starts the program itself or, if it is `guarded`, the program's guard.
pub fn watch(
    mut command: Command,
    guarded: bool,
    limits: &Limits,
    folder: &Path,
) -> io::Result<Outcome> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    #[cfg(target_os = "linux")]
    let line = guarded.then(|| Line::to(&mut command)).transpose()?;
    #[cfg(not(target_os = "linux"))]
    let _ = guarded;
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut child = command.spawn()?;
    // With it goes the guard's end of the line, which only the guard shall hold.
    drop(command);
    let stdout = child.stdout.take().map(keep);
    let stderr = child.stderr.take().map(keep);
    let end = wait(&mut child, limits, folder);
    // Children that outlive their parent hold the pipes open: they go first.
    group::kill(child.id());
    let _ = child.kill();
    let status = child.wait()?;
    #[cfg(target_os = "linux")]
    let status = line.and_then(Line::status).unwrap_or(status);
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
/// least, so that a flood of empty files is found too. A folder that cannot be looked into, because
/// it was closed to us or lies deeper than a path can name, may hold anything: it counts as too much.
fn size_of(folder: &Path, enough: u64) -> u64 {
    let mut total = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        match size_of_entries(&folder, enough.saturating_sub(total), &mut folders) {
            Ok(size) => total += size,
            // Compilers remove what they made.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => return enough + 1,
        }
        if total > enough {
            break;
        }
    }
    total
}

/// Bytes of a folder's own entries, which its `folders` are added to.
fn size_of_entries(folder: &Path, enough: u64, folders: &mut Vec<PathBuf>) -> io::Result<u64> {
    let mut total = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if metadata.is_dir() {
            folders.push(entry.path());
        }
        total += room_of(&metadata).max(4096);
        if total > enough {
            break;
        }
    }
    Ok(total)
}

/// What a file counts for: its length, and where it takes more room than that, its room.
fn room_of(metadata: &Metadata) -> u64 {
    #[cfg(unix)]
    let room = std::os::unix::fs::MetadataExt::blocks(metadata) * 512;
    #[cfg(not(unix))]
    let room = 0;
    metadata.len().max(room)
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

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_file_counts_with_its_length_or_its_room_whichever_is_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let file = std::fs::File::create(&path).unwrap();
        assert_eq!(size_of(folder.path(), 1 << 30), 4096);
        // A hole takes no room.
        file.set_len(10 << 20).unwrap();
        assert_eq!(size_of(folder.path(), 1 << 30), 10 << 20);
        file.write_all_at(&[1; 1 << 20], 0).unwrap();
        #[cfg(target_os = "linux")]
        {
            use nix::fcntl::{FallocateFlags, fallocate};
            let beyond = FallocateFlags::FALLOC_FL_KEEP_SIZE;
            if fallocate(&file, beyond, 10 << 20, 10 << 20).is_ok() {
                assert!(size_of(folder.path(), 1 << 30) >= 11 << 20);
            }
        }
    }
}
