//! One file from the hub to its place: resumable, verified, whole or not there.
//!
//! Bytes collect in a hidden `.part` file whose name carries the checksum they must have, so that
//! an attempt goes on where the last one ended, in another process too, and never mixes two
//! versions. Only a file that matches its checksum gets its name.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;
use ureq::http::{StatusCode, header};

use super::HubError;
use super::checksum::{Checksum, Hasher};
use super::client::{Attempt, Client};
use crate::progress::{Progress, Unit};

/// A file on the hub.
#[derive(Debug, Clone)]
pub struct RemoteFile {
    /// Where it is.
    pub url: String,
    /// Its length in bytes.
    pub size: u64,
    /// What its bytes hash to.
    pub checksum: Checksum,
}

impl Client {
    /// Brings `file` to `destination`, unless it is already there with the right length.
    ///
    /// # Errors
    /// When the hub does not give it, the bytes are wrong, or the disk does not take them. What
    /// arrived is kept for the next call, unless it was wrong.
    pub fn download(&self, file: &RemoteFile, destination: &Path) -> Result<(), HubError> {
        if fs::metadata(destination).is_ok_and(|there| there.len() == file.size) {
            return Ok(());
        }
        let name = destination.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let folder = destination.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(HubError::file("make the folder", folder))?;
        let hex = &file.checksum.hex()[..12];
        let mut part = Part::open(folder.join(format!(".{name}.{hex}.part")), file)?;
        check_space(folder, file.size.saturating_sub(part.length))?;
        let progress = Progress::new(&name, Some(file.size), Unit::Bytes);
        progress.resume_at(part.length);
        match self.fill(file, &mut part, &name, &progress) {
            Ok(()) => {
                progress.finish();
                part.publish(destination)
            }
            Err(error) => {
                part.drop_if_empty();
                Err(error)
            }
        }
    }

    fn fill(
        &self,
        file: &RemoteFile,
        part: &mut Part,
        name: &str,
        progress: &Progress,
    ) -> Result<(), HubError> {
        let mut retries = self.retries(&file.url);
        let mut started_over = false;
        let mut furthest = part.length;
        loop {
            if part.length == file.size {
                let got = part.hasher.clone().finish();
                if got == file.checksum.hex() {
                    return Ok(());
                }
                part.restart()?;
                progress.resume_at(0);
                if started_over {
                    let expected = file.checksum.hex().to_owned();
                    return Err(HubError::Checksum { file: name.to_owned(), expected, got });
                }
                // A fault on the way, or an old `.part` gone bad: worth one fresh start.
                tracing::warn!("{name}: wrong checksum, starting over");
                started_over = true;
                furthest = 0;
            }
            let outcome = self.receive(file, part, progress);
            let progressed = part.length > furthest;
            furthest = furthest.max(part.length);
            if let Err(attempt) = outcome {
                retries.after(attempt, progressed)?;
            }
        }
    }

    /// One request, as far as it gets.
    fn receive(
        &self,
        file: &RemoteFile,
        part: &mut Part,
        progress: &Progress,
    ) -> Result<(), Attempt> {
        self.check_interrupt().map_err(Attempt::Never)?;
        let mut response = self.get(&file.url, part.length)?;
        if part.length > 0 && !continues_at(&response, part.length) {
            part.restart().map_err(Attempt::Never)?;
            progress.resume_at(0);
            if response.status() != StatusCode::OK {
                let reason = "the server does not continue the file".to_owned();
                return Err(Attempt::Again { reason, wait: None });
            }
        }
        let mut body = response.body_mut().as_reader();
        let mut buffer = vec![0; 1 << 16];
        while part.length < file.size {
            self.check_interrupt().map_err(Attempt::Never)?;
            let room = usize::try_from(file.size - part.length).unwrap_or(usize::MAX);
            let room = room.min(buffer.len());
            let again = |reason| Attempt::Again { reason, wait: None };
            match body.read(&mut buffer[..room]).map_err(|error| again(error.to_string()))? {
                0 => return Err(again("the connection ended before the file did".to_owned())),
                n => {
                    part.append(&buffer[..n]).map_err(Attempt::Never)?;
                    progress.advance(n as u64);
                }
            }
        }
        Ok(())
    }
}

/// Whether the answer carries on at byte `start`.
fn continues_at(response: &ureq::http::Response<ureq::Body>, start: u64) -> bool {
    let range = response.headers().get(header::CONTENT_RANGE).and_then(|v| v.to_str().ok());
    let first =
        range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
    response.status() == StatusCode::PARTIAL_CONTENT && first == Some(start)
}

/// Bytes that have arrived.
struct Part {
    path: PathBuf,
    file: File,
    length: u64,
    hasher: Hasher,
    empty_hasher: Hasher,
}

impl Part {
    fn open(path: PathBuf, remote: &RemoteFile) -> Result<Self, HubError> {
        let open =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = open.map_err(HubError::file("open", &path))?;
        if let Err(fs::TryLockError::WouldBlock) = file.try_lock() {
            crate::progress::note(format!(
                "waiting for another fleetune that fills {}",
                path.display()
            ));
            file.lock().map_err(HubError::file("lock", &path))?;
        }
        let empty_hasher = remote.checksum.hasher(remote.size);
        let mut hasher = empty_hasher.clone();
        let length = hasher.read_all(&mut file).map_err(HubError::file("read", &path))?;
        let mut part = Self { path, file, length, hasher, empty_hasher };
        if part.length > remote.size {
            part.restart()?;
        }
        Ok(part)
    }

    fn restart(&mut self) -> Result<(), HubError> {
        self.file.set_len(0).map_err(HubError::file("empty", &self.path))?;
        self.file.seek(SeekFrom::Start(0)).map_err(HubError::file("empty", &self.path))?;
        self.length = 0;
        self.hasher = self.empty_hasher.clone();
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        self.file.write_all(bytes).map_err(HubError::file("write", &self.path))?;
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Removes a part that helps nobody. That it stays where this fails is only untidy.
    fn drop_if_empty(self) {
        if self.length == 0 {
            let _ = fs::remove_file(&self.path);
        }
    }

    fn publish(self, destination: &Path) -> Result<(), HubError> {
        self.file.sync_all().map_err(HubError::file("write", &self.path))?;
        fs::rename(&self.path, destination).map_err(HubError::file("move into place", destination))
    }
}

/// An error where `folder` has no room for `needed` more bytes. A file system that does not tell is
/// believed to have it.
pub(super) fn check_space(folder: &Path, needed: u64) -> Result<(), HubError> {
    match fs4::available_space(folder) {
        Ok(free) if free < needed => Err(HubError::Space { folder: folder.into(), needed, free }),
        _ => Ok(()),
    }
}

/// A temporary file in `folder` that, moved into place, everyone may read whom the user's mask lets.
pub(super) fn temporary_in(folder: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".new-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder)
}
