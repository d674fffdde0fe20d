//! The cache: one folder that holds what was pulled.
//!
//! `models/<name>/` holds a model's files: one `.gguf`, or a Hugging Face folder. Files appear under
//! their names only when whole and verified; a folder of several files is whole once it holds
//! [`MANIFEST`]. Names that begin with a dot are downloads under way.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// Written into a pulled folder last: where its files came from.
pub(super) const MANIFEST: &str = "fleetune-source.json";

/// Folders below `models/` that a name may span: `owner/repo/folder/file.gguf`.
const MAX_DEPTH: usize = 6;

/// Why the cache cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// Neither a cache folder nor a home folder is set.
    #[error("no place for the cache: set FLEETUNE_CACHE to a folder")]
    NoHome,
    /// A folder of the cache cannot be read.
    #[error("cannot read the cache folder {path}: {source}")]
    Read {
        /// The folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// The cache folder.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

/// A model in the cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CachedModel {
    /// The name it was pulled by.
    pub name: String,
    /// A GGUF file, or a Hugging Face folder.
    pub path: PathBuf,
    /// The size of its files.
    pub bytes: u64,
}

impl Cache {
    /// The cache of this user: `$FLEETUNE_CACHE`, else `fleetune` in `$XDG_CACHE_HOME` or
    /// `~/.cache`.
    ///
    /// # Errors
    /// When none of these is set.
    pub fn of_user() -> Result<Self, CacheError> {
        let folder = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let root = folder("FLEETUNE_CACHE")
            .or_else(|| folder("XDG_CACHE_HOME").map(|cache| cache.join("fleetune")))
            .or_else(|| std::env::home_dir().map(|home| home.join(".cache/fleetune")))
            .ok_or(CacheError::NoHome)?;
        Ok(Self::at(root))
    }

    /// The cache in a folder of one's own.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder of all models.
    pub fn models(&self) -> PathBuf {
        self.root.join("models")
    }

    /// The folder of pulled data sets, laid out as `--data-dir` expects.
    pub fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    /// Every whole model, by name.
    ///
    /// # Errors
    /// When a folder cannot be read; a cache that does not exist yet is empty.
    pub fn list(&self) -> Result<Vec<CachedModel>, CacheError> {
        let mut found = Vec::new();
        let root = self.models();
        if root.is_dir() {
            collect(&root, &root, MAX_DEPTH, &mut found)?;
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }
}

fn collect(
    root: &Path,
    folder: &Path,
    depth: usize,
    found: &mut Vec<CachedModel>,
) -> Result<(), CacheError> {
    let read = |source| CacheError::Read { path: folder.to_owned(), source };
    let mut files = Vec::new();
    let mut folders = Vec::new();
    for entry in fs::read_dir(folder).map_err(read)? {
        let entry = entry.map_err(read)?;
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        // Links are followed: a user may keep his models on another disk.
        let metadata = fs::metadata(entry.path()).map_err(read)?;
        match metadata.is_dir() {
            true => folders.push(entry.path()),
            false => files.push((entry.path(), metadata.len())),
        }
    }
    let name = |path: &Path| path.strip_prefix(root).unwrap_or(path).to_string_lossy().into_owned();
    if files.iter().any(|(path, _)| path.ends_with(MANIFEST)) {
        let bytes = files.iter().map(|(_, bytes)| bytes).sum();
        found.push(CachedModel { name: name(folder), path: folder.to_owned(), bytes });
    }
    let ggufs = files.into_iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "gguf"));
    for (path, bytes) in ggufs {
        // The built-in model goes by its folder's name; a repository may hold many GGUF files.
        let top = path.parent().and_then(Path::parent) == Some(root);
        let name = if top { name(folder) } else { name(&path) };
        found.push(CachedModel { name, path, bytes });
    }
    if depth > 0 {
        for folder in folders {
            collect(root, &folder, depth - 1, found)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(cache: &Cache, path: &str, bytes: usize) {
        let path = cache.models().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, vec![0; bytes]).unwrap();
    }

    #[test]
    fn whole_models_are_listed_and_unfinished_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        assert_eq!(cache.list().unwrap(), []);
        put(&cache, "tiny/model.gguf", 10);
        put(&cache, "owner/repo/config.json", 1);
        put(&cache, "owner/repo/model.safetensors", 5);
        put(&cache, "owner/repo/fleetune-source.json", 2);
        put(&cache, "owner/half/config.json", 1);
        put(&cache, "owner/half/.model.safetensors.part", 3);
        put(&cache, "owner/quants@v1/q4.gguf", 7);
        let listed: Vec<_> =
            cache.list().unwrap().into_iter().map(|model| (model.name, model.bytes)).collect();
        let expected = [("owner/quants@v1/q4.gguf", 7), ("owner/repo", 8), ("tiny", 10)];
        assert_eq!(listed, expected.map(|(name, bytes)| (name.to_owned(), bytes)));
    }
}
