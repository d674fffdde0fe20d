//! Files that are either wholly there or not at all.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Writes `bytes` to `path`: into a neighbouring temporary file first, which is flushed to the
/// disk and moved into place. Who reads `path` finds the old content or the new, never a part, also
/// after a kill at any moment.
///
/// # Errors
/// When the folder does not exist or cannot be written; `path` is then as it was.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    stream_atomically(path, |file| file.write_all(bytes))
}

/// As [`write_atomically`], for content that is made as it is written.
///
/// # Errors
/// Those of `write`, or when the file cannot be written; `path` is then as it was.
pub fn stream_atomically<E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> Result<(), E>,
) -> Result<(), E> {
    Ok(StagedFile::stream(path, write)?.publish()?)
}

/// A file on the disk beside its place, to be moved there when everything else is ready. Dropped
/// before, it is gone.
#[derive(Debug)]
pub struct StagedFile {
    temporary: PathBuf,
    path: PathBuf,
}

impl StagedFile {
    /// Writes `bytes` beside `path`.
    ///
    /// # Errors
    /// When the folder does not exist or cannot be written, or `path` is a folder.
    pub fn write(path: &Path, bytes: &[u8]) -> io::Result<Self> {
        Self::stream(path, |file| file.write_all(bytes))
    }

    fn stream<E: From<io::Error>>(
        path: &Path,
        write: impl FnOnce(&mut BufWriter<File>) -> Result<(), E>,
    ) -> Result<Self, E> {
        if path.is_dir() {
            return Err(io::Error::from(io::ErrorKind::IsADirectory).into());
        }
        let name =
            path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidFilename))?;
        let mut temporary = OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".{}.tmp", std::process::id()));
        let staged = Self { temporary: path.with_file_name(temporary), path: path.to_owned() };
        write_and_flush(&staged.temporary, write)?;
        Ok(staged)
    }

    /// Moves the file into its place.
    ///
    /// # Errors
    /// When the system refuses; what was in the place stays there.
    pub fn publish(self) -> io::Result<()> {
        fs::rename(&self.temporary, &self.path)
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        // Moved away, it is not there any more; otherwise a leftover is only untidy.
        let _ = fs::remove_file(&self.temporary);
    }
}

fn write_and_flush<E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> Result<(), E>,
) -> Result<(), E> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    write(&mut file)?;
    let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok(file.sync_all()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        write_atomically(&path, b"first").unwrap();
        write_atomically(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_staged_file_is_seen_once_it_is_published_and_gone_if_it_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        drop(StagedFile::write(&path, b"first").unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let staged = StagedFile::write(&path, b"second").unwrap();
        assert!(!path.exists());
        staged.publish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_write_that_fails_leaves_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("taken");
        fs::create_dir(&path).unwrap();
        assert!(write_atomically(&path, b"x").is_err());
        assert!(write_atomically(&folder.path().join("no/such/folder"), b"x").is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
