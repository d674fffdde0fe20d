//! Data sets: rows by number, whatever files they are in.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::encode::{EncodeError, Encoder};
use super::format::{Converted, Format, RowFault, SkipReason};
use super::lines::ReadError;
use super::mapping::{FieldMap, FieldMapError};
use super::record::{Content, Record, Role};
use super::sets::{NAMED_SETS, NamedSet, named_set, stem_of};
use super::store::RowStore;
use super::template::Template;
use super::{TokenizedExample, TokenizedPair};

/// Where a data set's rows are.
#[derive(Debug, Clone, Default)]
pub struct DataSource {
    /// The folder that holds `<set>/<file>.jsonl.zst`.
    pub data_dir: Option<PathBuf>,
    /// Files that hold the rows themselves; where there are any, the folder is not looked at.
    pub files: Vec<PathBuf>,
    /// Where large compressed files are unpacked; the system's folder for temporary files if `None`.
    pub temp_dir: Option<PathBuf>,
}

/// Why a data set cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatasetError {
    /// No set has this name.
    #[error("there is no data set \"{name}\"; known are {}", known_names())]
    UnknownSet {
        /// The name.
        name: String,
    },
    /// Nothing says where the rows are.
    #[error("where are the rows of \"{name}\"? {}", if *.generic { "Name a JSON Lines file with --data" } else { "Name the folder of data sets with --data-dir or a file with --data" })]
    NoSource {
        /// The set.
        name: String,
        /// Whether it is one of the generic formats, which are in no folder.
        generic: bool,
    },
    /// The set's files are not in the folder.
    #[error("the rows of \"{name}\" are not there: no data file in {}; `fleetune data pull {name}` brings them, or name a file with --data", list(.folders))]
    NotFound {
        /// The set.
        name: String,
        /// Where they were looked for.
        folders: Vec<PathBuf>,
    },
    /// A field mapping for a set that has its own format.
    #[error(
        "\"{name}\" has its own format, so no field mapping applies; choose the data set instruction, chat or preference for files with other fields"
    )]
    MappingNotAllowed {
        /// The set.
        name: String,
    },
    /// The field mapping is wrong.
    #[error(transparent)]
    FieldMap(#[from] FieldMapError),
    /// Files for a mixture of sets.
    #[error("--data names rows of one data set, but --dataset asks for {count}; use --data-dir")]
    FilesForMixture {
        /// Number of sets.
        count: usize,
    },
    /// Files for the set that is part of the program.
    #[error(
        "the demo set is part of the program and reads no file; for rows of your own choose the data set instruction, chat or preference"
    )]
    FilesForDemo,
    /// Sets to learn answers from and sets of preferences in one.
    #[error(
        "\"{first}\" and \"{second}\" cannot be mixed: one holds preference pairs and the other does not"
    )]
    MixedTasks {
        /// One set.
        first: String,
        /// The other.
        second: String,
    },
    /// A file cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A row is malformed.
    #[error("{}:{line}: {fault}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// What is wrong with it.
        fault: RowFault,
    },
    /// A row is not what it was.
    #[error("{}:{line}: the file was changed while it was in use; start again", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: u64,
    },
    /// Every row was skipped.
    #[error("\"{name}\" has no row to train on ({})", .skipped)]
    NothingUsable {
        /// The set.
        name: String,
        /// Why.
        skipped: Skipped,
    },
    /// More rows than can be numbered.
    #[error("\"{name}\" has more than {} rows", u32::MAX)]
    TooManyRows {
        /// The set.
        name: String,
    },
    /// There is no row of this number.
    #[error("row {index} was asked for, but \"{name}\" has {rows} rows")]
    NoSuchRow {
        /// The set.
        name: String,
        /// The number.
        index: u32,
        /// How many there are.
        rows: usize,
    },
    /// A row cannot be tokenised.
    #[error("{location}: {source}")]
    Encode {
        /// File and line.
        location: String,
        /// Why.
        source: EncodeError,
    },
}

fn known_names() -> String {
    NAMED_SETS.iter().map(|set| set.name).collect::<Vec<_>>().join(", ")
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Rows that were left out, counted by reason, with the first of each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Skipped(BTreeMap<SkipReason, (usize, String)>);

impl Skipped {
    /// How many rows were left out.
    pub fn total(&self) -> usize {
        self.0.values().map(|(count, _)| count).sum()
    }

    /// Every reason with its number of rows, and file and line of the first.
    pub fn by_reason(&self) -> impl Iterator<Item = (SkipReason, usize, &str)> {
        self.0.iter().map(|(reason, (count, first))| (*reason, *count, first.as_str()))
    }

    fn add(&mut self, reason: SkipReason, location: impl FnOnce() -> String) {
        self.0.entry(reason).or_insert_with(|| (0, location())).0 += 1;
    }
}

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no row skipped");
        }
        for (i, (reason, count, first)) in self.by_reason().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            let rows = if count == 1 { "row" } else { "rows" };
            write!(f, "{separator}{count} {rows} skipped because {reason}, the first at {first}")?;
        }
        Ok(())
    }
}

/// Rows of one file.
#[derive(Debug)]
struct Part {
    store: RowStore,
    format: Format,
    /// What the fields `source` and `dataset` say of its rows.
    source: String,
    dataset: &'static str,
    /// Number of its first row in the whole set.
    first: usize,
}

/// A data set, or several in a row. Rows are numbered from 0 in the order of the files, and stay in
/// their files until they are asked for: any number of clients share one value and hold only their
/// row numbers.
#[derive(Debug)]
pub struct Dataset {
    name: String,
    parts: Vec<Part>,
    len: usize,
    skipped: Skipped,
    preference: bool,
    mixture: bool,
    /// File and line of the first row that is more than one question and one answer.
    several_turns: Option<String>,
    /// Of the rows' text, line by line.
    hasher: Sha256,
}

impl Dataset {
    /// Opens the set called `name`, or several (`alpaca,code-alpaca`) one after the other. Every
    /// row is checked.
    ///
    /// # Errors
    /// When there is no such set, its rows are not where `source` says, a row is malformed (with
    /// file, line and field), or no row is left to train on.
    pub fn open(
        name: &str,
        source: &DataSource,
        mapping: Option<&FieldMap>,
    ) -> Result<Self, DatasetError> {
        let names: Vec<&str> = name.split(',').map(str::trim).filter(|n| !n.is_empty()).collect();
        let sets = names.iter().map(|&name| {
            named_set(name).ok_or_else(|| DatasetError::UnknownSet { name: name.to_owned() })
        });
        let sets = sets.collect::<Result<Vec<_>, _>>()?;
        let Some(first) = sets.first() else {
            return Err(DatasetError::UnknownSet { name: name.to_owned() });
        };
        if let Some(other) = sets.iter().find(|set| set.preference != first.preference) {
            let (first, second) = (first.name.to_owned(), other.name.to_owned());
            return Err(DatasetError::MixedTasks { first, second });
        }
        if sets.len() > 1 && !source.files.is_empty() {
            return Err(DatasetError::FilesForMixture { count: sets.len() });
        }
        let mut dataset = Self::empty(names.join(","), first.preference, sets.len() > 1);
        for set in sets {
            dataset.add_set(set, source, mapping)?;
        }
        if dataset.len == 0 {
            let Self { name, skipped, .. } = dataset;
            return Err(DatasetError::NothingUsable { name, skipped });
        }
        Ok(dataset)
    }

    fn empty(name: String, preference: bool, mixture: bool) -> Self {
        Self {
            name,
            parts: Vec::new(),
            len: 0,
            skipped: Skipped::default(),
            preference,
            mixture,
            several_turns: None,
            hasher: Sha256::new(),
        }
    }

    fn add_set(
        &mut self,
        set: &'static NamedSet,
        source: &DataSource,
        mapping: Option<&FieldMap>,
    ) -> Result<(), DatasetError> {
        let mapping = mapping.filter(|map| !map.is_empty());
        let name = set.name.to_owned();
        let generic = mapping.cloned().unwrap_or_default().format(set.name).transpose()?;
        if generic.is_none() && mapping.is_some() {
            return Err(DatasetError::MappingNotAllowed { name });
        }
        if set.embedded {
            if !source.files.is_empty() {
                return Err(DatasetError::FilesForDemo);
            }
            return self.add_demo(set);
        }
        let files: Vec<(PathBuf, Format, String)> = if !source.files.is_empty() {
            let format = generic.or_else(|| set.own_format());
            let format = format.ok_or_else(|| DatasetError::UnknownSet { name })?;
            source.files.iter().map(|p| (p.clone(), format.clone(), stem_of(p))).collect()
        } else {
            let data_dir = source.data_dir.as_deref().filter(|_| generic.is_none());
            let Some(data_dir) = data_dir else {
                return Err(DatasetError::NoSource { name, generic: generic.is_some() });
            };
            set.find(data_dir).map_err(|folders| DatasetError::NotFound { name, folders })?
        };
        let temp_dir = source.temp_dir.clone().unwrap_or_else(std::env::temp_dir);
        // OpenFedLLM drops MathInstruct's repeated instructions.
        let mut seen = (set.name == "math-instruct").then(HashSet::new);
        for (path, format, source) in files {
            let mut check = Check { dataset: self, format: &format, path: &path, seen: &mut seen };
            let store = RowStore::open(&path, &temp_dir, |line, text| check.keep(line, text))?;
            self.add_part(store, format, source, set.name)?;
        }
        Ok(())
    }

    fn add_demo(&mut self, set: &'static NamedSet) -> Result<(), DatasetError> {
        let format = super::demo::format();
        let path = Path::new(super::demo::FILE_NAME);
        let mut check = Check { dataset: self, format: &format, path, seen: &mut None };
        let store =
            RowStore::from_bytes(path, super::demo::ROWS, |line, text| check.keep(line, text))?;
        self.add_part(store, format, set.name.to_owned(), set.name)
    }

    fn add_part(
        &mut self,
        store: RowStore,
        format: Format,
        source: String,
        dataset: &'static str,
    ) -> Result<(), DatasetError> {
        let first = self.len;
        self.len += store.len();
        if u32::try_from(self.len).is_err() {
            return Err(DatasetError::TooManyRows { name: self.name.clone() });
        }
        self.parts.push(Part { store, format, source, dataset, first });
        Ok(())
    }

    /// The demo set that is part of the program.
    ///
    /// # Errors
    /// None in practice: the embedded rows are checked by a test.
    pub fn demo() -> Result<Self, DatasetError> {
        Self::open("demo", &DataSource::default(), None)
    }

    /// Rows that are in memory and stay there, as JSON Lines of the set `instruction`: an app's own
    /// examples. Errors call them `name`.
    ///
    /// # Errors
    /// When a row is malformed or none is left to train on.
    pub fn from_rows(name: &str, rows: Vec<u8>) -> Result<Self, DatasetError> {
        let set = "instruction";
        let mut dataset = Self::empty(name.to_owned(), false, false);
        let format = super::demo::format();
        let path = Path::new(name);
        let mut check = Check { dataset: &mut dataset, format: &format, path, seen: &mut None };
        let store = RowStore::from_bytes(path, rows, |line, text| check.keep(line, text))?;
        dataset.add_part(store, format, name.to_owned(), set)?;
        Ok(dataset)
    }

    /// The set's name, or several joined by commas.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.len
    }

    /// SHA-256 of the rows' text, in hexadecimal: the same for the same rows in the same order,
    /// however their files are compressed.
    pub fn content_hash(&self) -> String {
        let digest = self.hasher.clone().finalize();
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Whether there are no rows. Never so in a set that was opened.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether rows are preference pairs, for `--task dpo`, rather than answers to learn.
    pub fn is_preference(&self) -> bool {
        self.preference
    }

    /// Whether this is several named sets in one.
    pub fn is_mixture(&self) -> bool {
        self.mixture
    }

    /// Rows of the files that are not in the set, and why.
    pub fn skipped(&self) -> &Skipped {
        &self.skipped
    }

    /// The numbers of all rows.
    pub fn rows(&self) -> Vec<u32> {
        // `add_part` keeps the number of rows below 2^32.
        (0..self.len as u32).collect()
    }

    /// Reads row `index`.
    ///
    /// # Errors
    /// When there is no such row, or the file was changed since it was opened.
    pub fn record(&self, index: u32) -> Result<Record, DatasetError> {
        let (part, row) = self.locate(index)?;
        part.record(row)
    }

    /// File and line of row `index`, as in errors.
    pub fn location(&self, index: u32) -> String {
        match self.locate(index) {
            Ok((part, row)) => format!("{}:{}", part.store.path().display(), part.store.line(row)),
            Err(_) => format!("row {index}"),
        }
    }

    /// A number that is the same for rows that must not be torn apart between training and held-out
    /// rows: those about the same sentence (`fingpt`) or with the same prompt. Depends on nothing
    /// but the text.
    ///
    /// # Errors
    /// As [`record`](Self::record).
    pub fn group(&self, index: u32) -> Result<u64, DatasetError> {
        let (part, row) = self.locate(index)?;
        Ok(stable_hash(part.format.group(&part.record(row)?).trim()))
    }

    /// Checks that `template` can hold every row, so that training does not fail on the way.
    ///
    /// # Errors
    /// When it cannot, with file and line of the first row.
    pub fn check_template(&self, template: Template) -> Result<(), DatasetError> {
        match (&self.several_turns, template) {
            (Some(location), Template::Alpaca) => Err(DatasetError::Encode {
                location: location.clone(),
                source: EncodeError::SeveralTurns,
            }),
            _ => Ok(()),
        }
    }

    /// Row `index` as tokens with a mask; `None` where nothing to learn is left within the sequence
    /// length.
    ///
    /// # Errors
    /// As [`record`](Self::record) and [`Encoder::example`].
    pub fn example(
        &self,
        index: u32,
        encoder: &Encoder<'_>,
    ) -> Result<Option<TokenizedExample>, DatasetError> {
        let encoded = encoder.example(&self.record(index)?);
        encoded.map_err(|source| DatasetError::Encode { location: self.location(index), source })
    }

    /// Row `index` as a tokenised preference; `None` where no difference is left within the
    /// sequence length.
    ///
    /// # Errors
    /// As [`record`](Self::record) and [`Encoder::pair`].
    pub fn pair(
        &self,
        index: u32,
        encoder: &Encoder<'_>,
    ) -> Result<Option<TokenizedPair>, DatasetError> {
        let encoded = encoder.pair(&self.record(index)?);
        encoded.map_err(|source| DatasetError::Encode { location: self.location(index), source })
    }

    fn locate(&self, index: u32) -> Result<(&Part, usize), DatasetError> {
        let row = index as usize;
        if row >= self.len {
            let name = self.name.clone();
            return Err(DatasetError::NoSuchRow { name, index, rows: self.len });
        }
        // The first part begins at 0, so there is one that begins at or before `row`.
        let part = self.parts.partition_point(|part| part.first <= row).saturating_sub(1);
        let part = &self.parts[part];
        Ok((part, row - part.first))
    }
}

impl Part {
    fn record(&self, row: usize) -> Result<Record, DatasetError> {
        let text = self.store.read(row)?;
        let fault = |fault| DatasetError::Row {
            path: self.store.path().to_owned(),
            line: self.store.line(row),
            fault,
        };
        match self.format.convert(&text).map_err(fault)? {
            Converted::Record(content, fields) => Ok(self.finish(content, fields)),
            // Rows to skip were skipped when the file was opened.
            Converted::Skip(_) => Err(DatasetError::Changed {
                path: self.store.path().to_owned(),
                line: self.store.line(row),
            }),
        }
    }

    fn finish(&self, content: Content, mut fields: Vec<(String, String)>) -> Record {
        fields.retain(|(name, _)| name != "dataset");
        fields.push(("dataset".to_owned(), self.dataset.to_owned()));
        if !fields.iter().any(|(name, _)| name == "source") {
            fields.push(("source".to_owned(), self.source.clone()));
        }
        Record { content, fields }
    }
}

/// Checks rows as a file is opened.
struct Check<'a> {
    dataset: &'a mut Dataset,
    format: &'a Format,
    path: &'a Path,
    /// Hashes of the instructions so far, where repeated ones are left out.
    seen: &'a mut Option<HashSet<u64>>,
}

impl Check<'_> {
    fn keep(&mut self, line: u64, text: &str) -> Result<bool, DatasetError> {
        let path = self.path;
        let location = || format!("{}:{line}", path.display());
        let converted = self.format.convert(text);
        let converted =
            converted.map_err(|fault| DatasetError::Row { path: path.to_owned(), line, fault })?;
        let content = match converted {
            Converted::Record(content, _) => content,
            Converted::Skip(reason) => {
                self.dataset.skipped.add(reason, location);
                return Ok(false);
            }
        };
        if let (Some(seen), Content::Instruction { instruction, .. }) = (&mut self.seen, &content)
            && !seen.insert(stable_hash(instruction))
        {
            self.dataset.skipped.add(SkipReason::Duplicate, location);
            return Ok(false);
        }
        if self.dataset.several_turns.is_none() && !is_single(&content) {
            self.dataset.several_turns = Some(location());
        }
        self.dataset.hasher.update(text);
        self.dataset.hasher.update("\n");
        Ok(true)
    }
}

/// Whether the row is one question and one answer.
fn is_single(content: &Content) -> bool {
    match content {
        Content::Instruction { .. } => true,
        Content::Chat { messages } => {
            matches!(messages.as_slice(), [u, a] if u.role == Role::User && a.role == Role::Assistant)
        }
        Content::Preference { prompt, .. } => {
            matches!(prompt.as_slice(), [user] if user.role == Role::User)
        }
    }
}

/// A hash that is the same in every run, on every machine and in every version.
fn stable_hash(text: &str) -> u64 {
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().take(8).fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}
