//! Models and adapters in the formats that other programs read.
//!
//! - [`hugging_face`]: the base model with the adapter folded in, as a folder for transformers.
//! - [`gguf_adapter`]: the adapter alone, for llama.cpp's `--lora`.
//! - [`merged_gguf`]: a GGUF model with the adapter folded in; what it does not adapt stays
//!   quantised as it is.
//!
//! Folding computes `W + scale · B A` in f32. Tensors are made and written one after the other, a
//! few rows at a time: exporting takes little memory, however large the model.

mod content;
mod gguf;
mod hugging_face;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::error::ModelError;
use crate::adapter::AdapterError;
use content::Planned;

pub use gguf::{gguf_adapter, merged_gguf};
pub use hugging_face::hugging_face;

/// How the values of exported tensors are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FloatFormat {
    /// 32 bits: nothing is lost.
    #[default]
    F32,
    /// 16 bits, 11 of them significant.
    F16,
    /// 16 bits, 8 of them significant, with the range of f32.
    Bf16,
}

impl FloatFormat {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            FloatFormat::F32 => "f32",
            FloatFormat::F16 => "f16",
            FloatFormat::Bf16 => "bf16",
        }
    }

    /// Bytes of a value.
    fn size(self) -> usize {
        match self {
            FloatFormat::F32 => 4,
            FloatFormat::F16 | FloatFormat::Bf16 => 2,
        }
    }
}

impl fmt::Display for FloatFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for FloatFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let all = [FloatFormat::F32, FloatFormat::F16, FloatFormat::Bf16];
        let found = all.into_iter().find(|format| format.name() == text);
        found.ok_or_else(|| format!("unknown float format {text:?}: use f32, f16 or bf16"))
    }
}

/// Why something cannot be exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The adapter does not fit the model.
    #[error("the adapter does not fit the model: {0}")]
    Adapter(#[from] AdapterError),
    /// The base model's file cannot be read again.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A file cannot be written or copied.
    #[error("cannot write {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A value does not fit the float format.
    #[error("tensor {name} has values beyond the range of {format}: export as bf16 or f32")]
    Range {
        /// The tensor.
        name: String,
        /// The format.
        format: FloatFormat,
    },
    /// Only a GGUF model can become a merged GGUF model.
    #[error(
        "a merged GGUF model needs a GGUF base model, but {} is none: export to Hugging Face and convert that with llama.cpp",
        path.display()
    )]
    NotGguf {
        /// Where the base model lies.
        path: PathBuf,
    },
    /// The base model has a property that the target format cannot express.
    #[error("{format} cannot express the base model's {what}")]
    Inexpressible {
        /// The target format.
        format: &'static str,
        /// The property.
        what: &'static str,
    },
    /// The tokenizer cannot be written.
    #[error("cannot write the tokenizer: {0}")]
    Tokenizer(String),
}

impl ExportError {
    fn file(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::File { path, source }
    }
}

/// Is told the number of tensors written and of all tensors, after each one. Returning `false`
/// ends the export with [`io::ErrorKind::Interrupted`]; no unfinished file stays.
pub type OnTensor<'a> = &'a dyn Fn(usize, usize) -> bool;

/// An error on the way into a file.
#[derive(Debug)]
enum WriteError {
    Io(io::Error),
    Export(ExportError),
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl WriteError {
    fn at(self, path: &Path) -> ExportError {
        match self {
            Self::Io(source) => ExportError::File { path: path.to_owned(), source },
            Self::Export(error) => error,
        }
    }
}

/// Writes tensors one after the other, each followed by zeros up to the next multiple of
/// `alignment`.
fn write_tensors(
    out: &mut impl io::Write,
    tensors: &[Planned<'_>],
    alignment: usize,
    on_tensor: OnTensor<'_>,
) -> Result<(), WriteError> {
    for (i, tensor) in tensors.iter().enumerate() {
        tensor.write(out)?;
        let len = tensor.byte_len();
        out.write_all(&vec![0; len.next_multiple_of(alignment) - len])?;
        if !on_tensor(i + 1, tensors.len()) {
            return Err(io::Error::from(io::ErrorKind::Interrupted).into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
