//! Standard output: results for people and programs.
//!
//! Progress bars are lifted out of the way while something is written, and a reader that has gone
//! (`fleetune … | head`) ends the command quietly ([`OutputError::Closed`]).

use std::fmt;
use std::io::{self, Write};

use serde::Serialize;

use crate::progress;

/// Standard output does not take what is written to it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutputError {
    /// Nobody reads any more.
    #[error("standard output was closed")]
    Closed,
    /// The write failed, for example on a full disk.
    #[error("cannot write to standard output: {0}")]
    Write(io::Error),
    /// The value has no JSON form.
    #[error("cannot write the result as JSON: {0}")]
    Json(serde_json::Error),
}

impl From<io::Error> for OutputError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Write(error),
        }
    }
}

/// Writes one line, or several.
///
/// # Errors
/// When nobody reads, or the write fails.
pub fn line(text: impl fmt::Display) -> Result<(), OutputError> {
    progress::suspend(|| {
        let mut out = io::stdout().lock();
        writeln!(out, "{text}")?;
        Ok(out.flush()?)
    })
}

/// Writes text as it comes, without a line end: streamed words of a model.
///
/// # Errors
/// When nobody reads, or the write fails.
pub fn text(text: impl fmt::Display) -> Result<(), OutputError> {
    progress::suspend(|| {
        let mut out = io::stdout().lock();
        write!(out, "{text}")?;
        Ok(out.flush()?)
    })
}

/// Writes a value as one line of JSON.
///
/// # Errors
/// When nobody reads, the write fails, or the value has no JSON form.
pub fn json(value: &impl Serialize) -> Result<(), OutputError> {
    line(serde_json::to_string(value).map_err(OutputError::Json)?)
}
