//! Where a configuration's values come from, to name the place of a wrong one.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is no TOML, has an unknown key, or a value of the wrong kind.
    #[error("{path}, line {line} (`{text}`): {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// The line.
        text: String,
        /// What is wrong with it.
        message: String,
    },
    /// A value is out of range.
    #[error("{place}: {problem}")]
    Value {
        /// The flag, or the file, line and key.
        place: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// The configuration cannot be written.
    #[error("cannot write the configuration as TOML: {0}")]
    Write(#[from] toml::ser::Error),
}

/// Where the values of a configuration come from, to name the place of a wrong one.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// The file and its text, if one was read.
    file: Option<(PathBuf, String)>,
    /// Keys that were given as flags.
    flags: Vec<&'static str>,
}

impl Origin {
    /// Notes that `key` was given as a flag.
    pub fn add_flag(&mut self, key: &'static str) {
        self.flags.push(key);
    }

    /// Whether the user set `key`.
    pub fn gives(&self, key: &str) -> bool {
        let in_file = self.file.as_ref().is_some_and(|(_, text)| line_of(text, key).is_some());
        in_file || self.flags.contains(&key)
    }

    /// The error for a wrong value of `key`.
    pub fn wrong(&self, key: &str, problem: String) -> ConfigError {
        ConfigError::Value { place: self.place(key), problem }
    }

    /// How a user knows the value of `key`: `--lora-rank`, or `run.toml, line 3: lora_rank`.
    pub(super) fn place(&self, key: &str) -> String {
        if self.flags.contains(&key) {
            return format!("--{}", key.replace('_', "-"));
        }
        // The flag speaks for the table that the key stands in.
        let key = if key == "eval" { "suites" } else { key };
        let line = self.file.as_ref().and_then(|(path, text)| {
            Some(format!("{}, line {}: {key}", path.display(), line_of(text, key)?))
        });
        line.unwrap_or_else(|| key.to_owned())
    }
}

/// Reads a configuration file; absent keys have their defaults.
///
/// # Errors
/// When the file cannot be read, is no TOML, or has an unknown key or a value of the wrong kind.
pub fn read_toml<T: DeserializeOwned>(path: &Path) -> Result<(T, Origin), ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let config = toml::from_str(&text).map_err(|error| parse_error(path, &text, &error))?;
    Ok((config, Origin { file: Some((path.to_owned(), text)), flags: Vec::new() }))
}

/// The number, from 1, of the line that sets `key`.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let sets = |line: &str| {
        let rest = line.trim_start().strip_prefix(key);
        rest.is_some_and(|rest| rest.trim_start().starts_with('='))
    };
    text.lines().position(sets).map(|index| index + 1)
}

/// What the parser says, with the line that it is about.
fn parse_error(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let message = error.message().lines().collect::<Vec<_>>().join(" ");
    // For an unknown key the parser points at the whole table.
    let unknown = message.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next());
    let line = unknown.and_then(|key| line_of(text, key)).unwrap_or_else(|| {
        let at = error.span().map_or(0, |span| span.start.min(text.len()));
        // An error at the end of the text belongs to its last line.
        let before = text.get(..at).unwrap_or(text).trim_end_matches('\n');
        before.matches('\n').count() + 1
    });
    ConfigError::Parse {
        path: path.to_owned(),
        line,
        text: text.lines().nth(line - 1).unwrap_or_default().trim().to_owned(),
        message,
    }
}
