//! Repositories on the hub: their names and what they hold.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use super::HubError;
use super::checksum::Checksum;
use super::client::Client;
use super::download::RemoteFile;

/// What a repository holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A model.
    Model,
    /// A data set.
    Dataset,
}

/// A repository, or a file in one, as a user names it: `owner/repo`, `owner/repo@revision`,
/// `owner/repo/file.gguf`, `owner/repo@revision/file.gguf`, `owner/repo/file.gguf@revision`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryName {
    /// `owner/repo`.
    pub repository: String,
    /// A branch, a tag or a commit.
    pub revision: Option<String>,
    /// A file in the repository.
    pub file: Option<String>,
}

/// Whether `segment` may stand in a path: what the hub allows in names, and never `..`.
fn is_segment(segment: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-+".contains(&byte);
    !segment.is_empty()
        && !segment.starts_with('.')
        && segment.len() <= 128
        && segment.bytes().all(allowed)
}

impl FromStr for RepositoryName {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || {
            HubError::Name(format!(
                "{text:?} names no model: use smollm2-135m-instruct, owner/repo or owner/repo/file.gguf, with @revision if wanted"
            ))
        };
        let (path, revision) = match text.split_once('@') {
            None => (text.to_owned(), None),
            Some((before, after)) => {
                let (revision, rest) = after.split_once('/').unwrap_or((after, ""));
                let path = if rest.is_empty() { before.into() } else { format!("{before}/{rest}") };
                (path, Some(revision.to_owned()))
            }
        };
        let segments: Vec<_> = path.split('/').collect();
        let (repository, file) = match &segments[..] {
            [owner, repo, file @ ..] => (format!("{owner}/{repo}"), file.join("/")),
            _ => return Err(wrong()),
        };
        if !segments.iter().chain(&revision.as_deref()).all(|segment| is_segment(segment)) {
            return Err(wrong());
        }
        Ok(Self { repository, revision, file: Some(file).filter(|file| !file.is_empty()) })
    }
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        if let Some(file) = &self.file {
            write!(f, "/{file}")?;
        }
        Ok(())
    }
}

/// A repository at one commit.
#[derive(Debug, Clone)]
pub struct Repository {
    /// The commit.
    pub commit: String,
    /// Its files.
    pub files: Vec<RepositoryFile>,
}

/// A file of a repository.
#[derive(Debug, Clone)]
pub struct RepositoryFile {
    /// Its path in the repository; each part of it is a plain name.
    pub path: String,
    /// Where it is and what it must be.
    pub remote: RemoteFile,
}

impl Client {
    /// Asks the hub what a repository holds.
    ///
    /// # Errors
    /// When the hub cannot be reached, refuses, or answers something else.
    pub fn repository(
        &self,
        kind: Kind,
        name: &str,
        revision: Option<&str>,
    ) -> Result<Repository, HubError> {
        let (api, prefix) = match kind {
            Kind::Model => ("models", ""),
            Kind::Dataset => ("datasets", "/datasets"),
        };
        let (endpoint, revision) = (self.endpoint(), revision.unwrap_or("main"));
        let url = format!("{endpoint}/api/{api}/{name}/revision/{revision}?blobs=true");
        let answer: RepositoryAnswer = self.get_json(&url)?;
        if !is_segment(&answer.sha) {
            let reason = format!("the answer names a commit {:?}", answer.sha);
            return Err(HubError::Answer { url, reason });
        }
        let commit = answer.sha;
        let files = answer.siblings.into_iter().filter_map(|file| {
            // A path that leaves its folder, or a file without checksum, is none that we would take.
            let plain = file.rfilename.split('/').all(is_segment);
            let (size, hex) = match file.lfs {
                Some(lfs) => (lfs.size, lfs.sha256),
                None => (file.size?, file.blob_id?),
            };
            let checksum = Checksum::parse(&hex).filter(|_| plain)?;
            let url = format!("{endpoint}{prefix}/{name}/resolve/{commit}/{}", file.rfilename);
            let remote = RemoteFile { url, size, checksum };
            Some(RepositoryFile { path: file.rfilename, remote })
        });
        Ok(Repository { files: files.collect(), commit })
    }
}

#[derive(Deserialize)]
struct RepositoryAnswer {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<LargeFile>,
}

#[derive(Deserialize)]
struct LargeFile {
    size: u64,
    sha256: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> Option<(String, Option<String>, Option<String>)> {
        let name: RepositoryName = text.parse().ok()?;
        Some((name.repository, name.revision, name.file))
    }

    #[test]
    fn names_are_read_with_revision_and_file_in_either_order() {
        let some = |text: &str| Some(text.to_owned());
        let repo = "owner/repo-1.0".to_owned();
        assert_eq!(parts("owner/repo-1.0"), Some((repo.clone(), None, None)));
        assert_eq!(parts("owner/repo-1.0@v2"), Some((repo.clone(), some("v2"), None)));
        let whole = Some((repo, some("v2"), some("sub/q4.gguf")));
        assert_eq!(parts("owner/repo-1.0/sub/q4.gguf@v2"), whole);
        assert_eq!(parts("owner/repo-1.0@v2/sub/q4.gguf"), whole);
        assert_eq!("a/b/c.gguf@v".parse::<RepositoryName>().unwrap().to_string(), "a/b@v/c.gguf");
    }

    #[test]
    fn names_that_would_leave_the_cache_are_refused() {
        for text in [
            "",
            "repo",
            "/repo",
            "owner/",
            "../repo",
            "owner/..",
            "owner/repo/../../x",
            "o/r@",
            "o/r@a@b",
            "owner/repo/.hidden",
            "owner\\repo",
            "owner/re po",
            "o/r?x",
            "C:/x",
            "o/r@../x",
            "~/model.gguf",
        ] {
            assert_eq!(parts(text), None, "{text}");
        }
    }
}
