//! Data sets from the hub, into the layout that `--data-dir` expects:
//! `<folder>/<file>.jsonl.zst`.
//!
//! Sets that the hub keeps as JSON are downloaded, verified and rewritten; of sets in Parquet the
//! rows are asked for page by page, which spares us a reader of that format.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::{Deserializer as _, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::rows::RowSource;
use super::{Client, HubError, Kind};
use crate::progress::{Progress, Unit};

/// zstd's level of the files written: small, and still quick.
const COMPRESSION: i32 = 9;
/// A row in JSON is read up to this size.
const MAX_LINE_BYTES: u64 = 64 << 20;

/// A data set that can be pulled.
#[derive(Debug)]
pub struct PullableSet {
    /// The name users call it by.
    pub name: &'static str,
    /// The repository on the hub.
    pub repository: &'static str,
    /// The folder below `--data-dir`.
    pub folder: &'static str,
    files: &'static [Target],
}

/// One file of a pulled set.
#[derive(Debug)]
struct Target {
    /// Its name without extension.
    stem: &'static str,
    origin: Origin,
}

/// Where a file's rows come from.
#[derive(Debug)]
enum Origin {
    /// A file of the repository: a JSON array or JSON Lines, plain or gzip.
    File(&'static str),
    /// A split of the repository, in one configuration or several.
    Rows { configs: &'static [&'static str], split: &'static str },
}

const fn file(stem: &'static str, path: &'static str) -> Target {
    Target { stem, origin: Origin::File(path) }
}

const fn rows(stem: &'static str, configs: &'static [&'static str], split: &'static str) -> Target {
    Target { stem, origin: Origin::Rows { configs, split } }
}

const DEFAULT: &[&str] = &["default"];
const MATH_SUBJECTS: &[&str] = &[
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
];

/// Every data set that can be pulled by name: the eight of the OpenFedLLM paper, GSM8K and MATH.
pub const PULLABLE_SETS: &[PullableSet] = &[
    PullableSet {
        name: "alpaca",
        repository: "tatsu-lab/alpaca",
        folder: "alpaca",
        files: &[rows("train", DEFAULT, "train")],
    },
    PullableSet {
        name: "alpaca-gpt4",
        repository: "vicgalle/alpaca-gpt4",
        folder: "alpaca_gpt4",
        files: &[rows("train", DEFAULT, "train")],
    },
    PullableSet {
        name: "fingpt",
        repository: "FinGPT/fingpt-sentiment-train",
        folder: "fingpt",
        files: &[rows("train", DEFAULT, "train")],
    },
    PullableSet {
        name: "medalpaca",
        repository: "medalpaca/medical_meadow_medical_flashcards",
        folder: "medical_meadow",
        files: &[file("train", "medical_meadow_wikidoc_medical_flashcards.json")],
    },
    PullableSet {
        name: "code-alpaca",
        repository: "sahil2801/CodeAlpaca-20k",
        folder: "code_alpaca",
        files: &[file("train", "code_alpaca_20k.json")],
    },
    PullableSet {
        name: "math-instruct",
        repository: "TIGER-Lab/MathInstruct",
        folder: "math_instruct",
        files: &[file("train", "MathInstruct.json")],
    },
    PullableSet {
        name: "ultrafeedback",
        repository: "HuggingFaceH4/ultrafeedback_binarized",
        folder: "ultrafeedback_binarized",
        files: &[rows("train", DEFAULT, "train_prefs")],
    },
    PullableSet {
        name: "hh-rlhf",
        repository: "Anthropic/hh-rlhf",
        folder: "hh_rlhf",
        files: &[
            file("helpful_base", "helpful-base/train.jsonl.gz"),
            file("harmless_base", "harmless-base/train.jsonl.gz"),
        ],
    },
    PullableSet {
        name: "gsm8k",
        repository: "openai/gsm8k",
        folder: "gsm8k",
        files: &[rows("train", &["main"], "train"), rows("test", &["main"], "test")],
    },
    PullableSet {
        name: "math",
        repository: "EleutherAI/hendrycks_math",
        folder: "math",
        files: &[rows("train", MATH_SUBJECTS, "train"), rows("test", MATH_SUBJECTS, "test")],
    },
];

/// A file that was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PulledFile {
    /// Where.
    pub path: PathBuf,
    /// Rows in it; `None` where it was there already.
    pub rows: Option<u64>,
}

/// Brings the set called `name` below `data_dir`. Files that are there already are left alone.
///
/// # Errors
/// When there is no such set, the hub does not give it, or it holds something else than rows.
pub fn pull_dataset(
    client: &Client,
    data_dir: &Path,
    name: &str,
) -> Result<Vec<PulledFile>, HubError> {
    let set = PULLABLE_SETS.iter().find(|set| set.name == name).ok_or_else(|| {
        let known: Vec<_> = PULLABLE_SETS.iter().map(|set| set.name).collect();
        HubError::Name(format!("no data set {name:?} can be pulled: choose {}", known.join(", ")))
    })?;
    let folder = data_dir.join(set.folder);
    fs::create_dir_all(&folder).map_err(HubError::file("make the folder", &folder))?;
    let pull = |target: &Target| {
        let path = folder.join(format!("{}.jsonl.zst", target.stem));
        if path.is_file() {
            return Ok(PulledFile { path, rows: None });
        }
        let rows = match &target.origin {
            Origin::File(source) => pull_file(client, set, source, &path)?,
            Origin::Rows { configs, split } => {
                let source = RowSource { repository: set.repository, configs, split };
                source.pull(client, &path)?
            }
        };
        Ok(PulledFile { path, rows: Some(rows) })
    };
    set.files.iter().map(pull).collect()
}

fn pull_file(
    client: &Client,
    set: &PullableSet,
    source: &str,
    destination: &Path,
) -> Result<u64, HubError> {
    let repository = client.repository(Kind::Dataset, set.repository, None)?;
    let file = repository.files.iter().find(|file| file.path == source).ok_or_else(|| {
        HubError::NotFound {
            url: format!("{}/datasets/{}/{source}", client.endpoint(), set.repository),
        }
    })?;
    let name = source.rsplit('/').next().unwrap_or(source);
    let raw = destination.with_file_name(format!(".{name}"));
    client.download(&file.remote, &raw)?;
    let rows = convert(&raw, destination)?;
    fs::remove_file(&raw).map_err(HubError::file("remove", &raw))?;
    Ok(rows)
}

/// Rewrites a file of rows as `.jsonl.zst`; returns how many they are.
fn convert(source: &Path, destination: &Path) -> Result<u64, HubError> {
    let open = || -> io::Result<Box<dyn BufRead>> {
        let file = BufReader::new(File::open(source)?);
        Ok(match source.extension().is_some_and(|extension| extension == "gz") {
            true => Box::new(BufReader::new(flate2::bufread::MultiGzDecoder::new(file))),
            false => Box::new(file),
        })
    };
    let mut reader = open().map_err(HubError::file("read", source))?;
    let mut out = RowWriter::create(destination)?;
    let progress = Progress::new("convert", None, Unit::Items("rows"));
    let outcome = match first_byte(&mut reader) {
        Ok(Some(b'[')) => copy_array(reader, &mut out, &progress),
        Ok(_) => copy_lines(reader, &mut out, &progress),
        Err(error) => Err(error),
    };
    outcome.map_err(HubError::file("convert", source))?;
    progress.finish();
    out.finish()
}

/// The first byte that is no white space, which stays to be read.
fn first_byte(reader: &mut impl BufRead) -> io::Result<Option<u8>> {
    loop {
        let buffer = reader.fill_buf()?;
        let Some(&byte) = buffer.first() else { return Ok(None) };
        if !byte.is_ascii_whitespace() {
            return Ok(Some(byte));
        }
        reader.consume(1);
    }
}

fn copy_lines(
    mut reader: impl BufRead,
    out: &mut RowWriter,
    progress: &Progress,
) -> io::Result<()> {
    let mut line = String::new();
    let mut number = 0u64;
    loop {
        line.clear();
        let limited = &mut io::Read::take(&mut reader, MAX_LINE_BYTES);
        if limited.read_line(&mut line)? == 0 {
            return Ok(());
        }
        number += 1;
        if line.trim().is_empty() {
            continue;
        }
        let row: Map<String, Value> = serde_json::from_str(&line)
            .map_err(|error| invalid(format!("line {number} is no JSON object: {error}")))?;
        out.write(&row)?;
        progress.advance(1);
    }
}

/// Copies the elements of a JSON array one by one, so that memory holds only one of them.
fn copy_array(reader: impl BufRead, out: &mut RowWriter, progress: &Progress) -> io::Result<()> {
    struct Elements<'a>(&'a mut RowWriter, &'a Progress);

    impl<'de> Visitor<'de> for Elements<'_> {
        type Value = ();

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a list of rows")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
            while let Some(row) = elements.next_element::<Map<String, Value>>()? {
                self.0.write(&row).map_err(serde::de::Error::custom)?;
                self.1.advance(1);
            }
            Ok(())
        }
    }

    let mut json = serde_json::Deserializer::from_reader(reader);
    json.deserialize_seq(Elements(out, progress))?;
    json.end()?;
    Ok(())
}

fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// Writes a `.jsonl.zst` that appears under its name only when it is whole.
pub(super) struct RowWriter {
    path: PathBuf,
    file: zstd::Encoder<'static, BufWriter<tempfile::NamedTempFile>>,
    rows: u64,
}

impl RowWriter {
    pub fn create(path: &Path) -> Result<Self, HubError> {
        let folder = path.parent().unwrap_or(Path::new("."));
        let file = super::download::temporary_in(folder)
            .and_then(|file| zstd::Encoder::new(BufWriter::new(file), COMPRESSION))
            .map_err(HubError::file("write into", folder))?;
        Ok(Self { path: path.to_owned(), file, rows: 0 })
    }

    /// Appends a row.
    pub fn write(&mut self, row: &Map<String, Value>) -> io::Result<()> {
        serde_json::to_writer(&mut self.file, row)?;
        self.rows += 1;
        self.file.write_all(b"\n")
    }

    /// Moves the file into place; returns how many rows it has.
    pub fn finish(self) -> Result<u64, HubError> {
        let Self { path, file, rows } = self;
        if rows == 0 {
            return Err(HubError::file("write", &path)(invalid("there are no rows".to_owned())));
        }
        let place = || -> io::Result<()> {
            let file = file.finish()?.into_inner().map_err(|error| error.into_error())?;
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|error| error.error)?;
            Ok(())
        };
        place().map_err(HubError::file("write", &path))?;
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use fleetune_core::data::named_set;

    use super::*;

    fn converted(name: &str, bytes: &[u8]) -> Result<Vec<String>, String> {
        let folder = tempfile::tempdir().unwrap();
        let (source, out) = (folder.path().join(name), folder.path().join("out.jsonl.zst"));
        fs::write(&source, bytes).unwrap();
        convert(&source, &out).map_err(|error| {
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left behind");
            error.to_string()
        })?;
        let text = zstd::decode_all(File::open(out).unwrap()).unwrap();
        Ok(String::from_utf8(text).unwrap().lines().map(str::to_owned).collect())
    }

    #[test]
    fn arrays_lines_and_gzip_become_one_row_a_line() {
        let expected = vec!["{\"a\":\"x\\ny\"}".to_owned(), "{\"a\":2}".to_owned()];
        let array = b"\n[ {\"a\": \"x\\ny\"},\n {\"a\":\n 2} ]\n";
        let lines = b"{\"a\": \"x\\ny\"}\n\n{\"a\": 2}";
        let mut gzip = Vec::new();
        flate2::read::GzEncoder::new(&lines[..], flate2::Compression::fast())
            .read_to_end(&mut gzip)
            .unwrap();
        assert_eq!(converted("a.json", array).unwrap(), expected);
        assert_eq!(converted("a.jsonl", lines).unwrap(), expected);
        assert_eq!(converted("a.jsonl.gz", &gzip).unwrap(), expected);
    }

    #[test]
    fn files_without_rows_are_errors_that_say_where() {
        for (bytes, words) in [
            (&b"{\"a\":1}\n[1]\n"[..], "line 2 is no JSON object"),
            (b"[{\"a\":1}, 7]", "line 1 column 12"),
            (b"[{\"a\":1}", "EOF"),
            (b"[{\"a\":1}] x", "trailing"),
            (b"", "no rows"),
            (b"[]", "no rows"),
            (b"\xff\xfe", "UTF-8"),
        ] {
            let error = converted("a.json", bytes).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn pulled_sets_land_where_the_data_sets_of_that_name_are_looked_for() {
        for set in PULLABLE_SETS {
            let known = named_set(set.name).unwrap_or_else(|| panic!("{} is unknown", set.name));
            assert_eq!(known.folder, set.folder, "{}", set.name);
        }
    }
}
