//! Folders that programs work in, which do not stay behind.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// How the names of folders begin that nobody else may use.
const PREFIX: &str = "fleetune-programs-";

/// A folder that is removed when it is dropped, or, where `fleetune` did not live to do so, when
/// the next such folder is made.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// Held as long as the folder is used; the system lets go of it when this process ends.
    _lock: Option<File>,
}

impl Folder {
    /// A new folder among the system's temporary ones. Removes those whose users are gone.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn new() -> io::Result<Self> {
        let parent = std::env::temp_dir();
        remove_abandoned(&parent);
        loop {
            let path = tempfile::Builder::new().prefix(PREFIX).tempdir_in(&parent)?.keep();
            // Another process may take it for abandoned before it is locked.
            // Where the file system has no locks, nobody takes it.
            let lock = lock(&path).ok().flatten();
            if path.is_dir() {
                return Ok(Self { path, _lock: lock });
            }
        }
    }

    /// A folder in this one.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn inner(&self) -> io::Result<Self> {
        let path = tempfile::tempdir_in(&self.path)?.keep();
        Ok(Self { path, _lock: None })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A process that was killed may still finish what it was doing.
        for _ in 0..3 {
            if remove(&self.path).is_ok() {
                return;
            }
        }
        tracing::warn!("cannot remove {}", self.path.display());
    }
}

/// Waits until nobody else holds the folder.
#[cfg(target_os = "linux")]
fn lock(folder: &Path) -> io::Result<Option<File>> {
    let lock = File::open(folder)?;
    lock.lock()?;
    Ok(Some(lock))
}

#[cfg(not(target_os = "linux"))]
fn lock(_folder: &Path) -> io::Result<Option<File>> {
    Ok(None)
}

/// Removes our folders that nobody holds.
#[cfg(target_os = "linux")]
fn remove_abandoned(parent: &Path) {
    use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

    use nix::libc;

    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let mut opening = File::options();
        opening.read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW);
        let Ok(folder) = opening.open(entry.path()) else { continue };
        let ours = folder
            .metadata()
            .is_ok_and(|folder| folder.uid() == nix::unistd::Uid::effective().as_raw());
        if ours && folder.try_lock().is_ok() {
            // What cannot be removed now is tried again the next time.
            let _ = remove(&entry.path());
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn remove_abandoned(_parent: &Path) {}

/// Removes a folder with all in it, whatever a program made of it: folders that it closed, and
/// folders in folders, deeper than a path can name and more than can be open at a time. So what lies
/// deep is moved up first.
fn remove(folder: &Path) -> io::Result<()> {
    let mark = rand::random::<u64>();
    let mut moved = 0u64;
    loop {
        let inner = empty_of_files(folder)?;
        if inner.is_empty() {
            return fs::remove_dir(folder);
        }
        for inner in inner {
            for deep in empty_of_files(&inner)? {
                open(&deep)?;
                fs::rename(&deep, folder.join(format!("{mark:x}-{moved}")))?;
                moved += 1;
            }
            fs::remove_dir(&inner)?;
        }
    }
}

/// Removes the files of a folder, and says which folders are in it.
fn empty_of_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    open(folder)?;
    let entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    let mut folders = Vec::new();
    for entry in entries {
        if entry.file_type()?.is_dir() {
            folders.push(entry.path());
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(folders)
}

/// Lets us into a folder. No folder is closed to the superuser.
#[cfg(target_os = "linux")]
fn open(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if nix::unistd::Uid::effective().is_root() {
        return Ok(());
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
}

#[cfg(not(target_os = "linux"))]
fn open(_folder: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_goes_with_all_that_is_in_it() {
        let folder = Folder::new().unwrap();
        let inner = folder.inner().unwrap();
        fs::create_dir_all(inner.path().join("a/b/c")).unwrap();
        fs::create_dir_all(inner.path().join("a/d")).unwrap();
        for file in ["x", "a/x", "a/b/c/x"] {
            fs::write(inner.path().join(file), "x").unwrap();
        }
        let (outer, path) = (folder.path().to_owned(), inner.path().to_owned());
        drop(inner);
        assert!(!path.exists());
        assert_eq!(fs::read_dir(&outer).unwrap().count(), 0);
        drop(folder);
        assert!(!outer.exists());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_folder_in_use_is_not_taken_for_an_abandoned_one() {
        let parent = tempfile::tempdir().unwrap();
        let [held, abandoned, other] = [format!("{PREFIX}a"), format!("{PREFIX}b"), "c".to_owned()]
            .map(|name| parent.path().join(name));
        for folder in [&held, &abandoned, &other] {
            fs::create_dir_all(folder.join("inner")).unwrap();
        }
        let _lock = lock(&held).unwrap();
        remove_abandoned(parent.path());
        assert!(held.exists() && other.exists());
        assert!(!abandoned.exists());
    }
}
