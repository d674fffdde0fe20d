//! Rows of the folder that `--data-dir` names.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use fleetune_core::data::{ReadError, TextLines};
use serde::de::DeserializeOwned;

/// Endings under which a data file may stand, the usual one first.
const ENDINGS: [&str; 3] = ["jsonl.zst", "jsonl", "jsonl.gz"];

/// Why rows of a data set could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// No file of the data set is there.
    #[error("{} has no {name}.jsonl.zst (nor .jsonl, .jsonl.gz)", folder.display())]
    Missing {
        /// The data folder.
        folder: PathBuf,
        /// Data set and file.
        name: String,
    },
    /// The file is there and holds nothing.
    #[error("{} has no rows: expected rows of {name}", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// Data set and file.
        name: String,
    },
    /// The file is not what its name says.
    #[error("{} is not a {compression} file, though its name says so: download or compress it again", path.display())]
    NotCompressed {
        /// The file.
        path: PathBuf,
        /// `gzip` or `zstd`.
        compression: &'static str,
    },
    /// The file cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A line is not a row of this data set.
    #[error("{}:{line}: {fault}: expected a row of {name}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// Data set and file.
        name: String,
        /// What is wrong with it.
        fault: String,
    },
}

/// A folder of data sets: `<set>/<file>.jsonl.zst`.
#[derive(Debug, Clone)]
pub struct DataFolder {
    path: PathBuf,
}

impl DataFolder {
    /// The folder at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file of `name` (`fpb/sentences_50agree`).
    ///
    /// # Errors
    /// When it is not there.
    pub fn file(&self, name: &str) -> Result<PathBuf, DataError> {
        let candidates = ENDINGS.iter().map(|ending| self.path.join(format!("{name}.{ending}")));
        candidates
            .into_iter()
            .find(|path| path.is_file())
            .ok_or_else(|| DataError::Missing { folder: self.path.clone(), name: name.to_owned() })
    }

    /// All rows of `name`.
    ///
    /// # Errors
    /// When the file is missing, cannot be read, has no rows, or a line that is no such row.
    pub fn rows<T: DeserializeOwned>(&self, name: &str) -> Result<Vec<T>, DataError> {
        self.rows_with(name, |row: T| Ok::<_, String>(row))
    }

    /// All rows of `name`, each understood by `convert`, whose complaint names the line.
    ///
    /// # Errors
    /// As [`DataFolder::rows`], and when `convert` refuses a row.
    pub fn rows_with<R: DeserializeOwned, T, E: ToString>(
        &self,
        name: &str,
        convert: impl Fn(R) -> Result<T, E>,
    ) -> Result<Vec<T>, DataError> {
        let path = self.file(name)?;
        let mut rows = Vec::new();
        for text in TextLines::open(&path)? {
            let (line, text) = text.map_err(|error| unpacked(&path, error))?;
            let row = serde_json::from_str(&text).map_err(|e| e.to_string());
            let row = row.and_then(|row| convert(row).map_err(|e| e.to_string()));
            rows.push(row.map_err(|fault| DataError::Row {
                path: path.clone(),
                line,
                name: name.to_owned(),
                fault,
            })?);
        }
        match rows.is_empty() {
            true => Err(DataError::Empty { path, name: name.to_owned() }),
            false => Ok(rows),
        }
    }
}

/// Text that is none, in a file whose name promises compressed text: the file is not compressed, or
/// it would have been unpacked. Plain text under such a name is read as it is.
fn unpacked(path: &Path, error: ReadError) -> DataError {
    let compression = match path.extension().and_then(|ending| ending.to_str()) {
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return error.into(),
    };
    let is_plain = || {
        let mut head = [0; 4];
        let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut head));
        read.is_ok() && !matches!(head, [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd])
    };
    match error {
        ReadError::NotUtf8 { .. } | ReadError::LineTooLong { .. } if is_plain() => {
            DataError::NotCompressed { path: path.to_owned(), compression }
        }
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Row {
        text: String,
    }

    fn folder(files: &[(&str, &[u8])]) -> (tempfile::TempDir, DataFolder) {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        let data = DataFolder::new(dir.path());
        (dir, data)
    }

    #[test]
    fn rows_are_read_plain_or_compressed() {
        let text = b"{\"text\": \"a\"}\n{\"text\": \"b\", \"more\": 1}\n";
        let packed = zstd::encode_all(&text[..], 3).unwrap();
        let (_dir, data) = folder(&[("a/x.jsonl", text), ("a/y.jsonl.zst", &packed)]);
        let expected = [Row { text: "a".into() }, Row { text: "b".into() }];
        assert_eq!(data.rows::<Row>("a/x").unwrap(), expected);
        assert_eq!(data.rows::<Row>("a/y").unwrap(), expected);
    }

    #[test]
    fn what_is_named_compressed_and_is_not_is_told_so() {
        let bytes = [0xc3, 0x00, 0x9f, 0xfe, 0x10, b'\n'];
        let (_dir, data) = folder(&[
            ("a/x.jsonl.zst", &bytes),
            ("a/y.jsonl.gz", &bytes),
            ("a/z.jsonl", &bytes),
            ("a/plain.jsonl.zst", b"{\"text\": \"a\"}\n"),
        ]);
        let error = |name: &str| data.rows::<Row>(name).unwrap_err().to_string();
        assert!(error("a/x").contains("x.jsonl.zst is not a zstd file"), "{}", error("a/x"));
        assert!(error("a/y").contains("y.jsonl.gz is not a gzip file"), "{}", error("a/y"));
        assert!(error("a/z").contains("not UTF-8"), "{}", error("a/z"));
        assert_eq!(data.rows::<Row>("a/plain").unwrap().len(), 1);
    }

    #[test]
    fn a_file_without_rows_is_no_data_set() {
        let (_dir, data) = folder(&[("a/x.jsonl", b"\n")]);
        let error = data.rows::<Row>("a/x").unwrap_err().to_string();
        assert!(error.contains("x.jsonl has no rows"), "{error}");
    }

    #[test]
    fn a_bad_row_is_named_by_file_and_line() {
        let (_dir, data) = folder(&[("a/x.jsonl", b"{\"text\": \"a\"}\n{\"txt\": 1}\n")]);
        let error = data.rows::<Row>("a/x").unwrap_err().to_string();
        assert!(error.contains("x.jsonl:2: missing field `text`"), "{error}");
        let error = data.rows::<Row>("a/z").unwrap_err().to_string();
        assert!(error.contains("has no a/z.jsonl.zst"), "{error}");
    }
}
