//! What can be wrong with a model on disk.

use std::path::{Path, PathBuf};

use crate::weight::WeightError;

/// Why a model cannot be opened. Every variant names the file, and the tensor or field in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The path leads to no model.
    #[error("{}: {problem}", path.display())]
    NotAModel {
        /// The file or folder.
        path: PathBuf,
        /// What is there instead and what was expected.
        problem: String,
    },
    /// A header, index or JSON file breaks its format.
    #[error("{}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and how.
        problem: String,
    },
    /// The model is of a family this library does not know.
    #[error("{}: unknown architecture \"{found}\"; known are {known}", path.display())]
    UnknownArchitecture {
        /// The file.
        path: PathBuf,
        /// What it says it is.
        found: String,
        /// The architectures that can be loaded.
        known: String,
    },
    /// A hyperparameter is missing or makes no sense.
    #[error("{}: {field} {problem}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// Field of `config.json` or GGUF metadata key.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The model asks for something that this library does not compute.
    #[error("{}: {feature} is not supported", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What the model asks for.
        feature: String,
    },
    /// A tensor of the architecture is not in the file.
    #[error("{}: tensor {tensor} is missing", path.display())]
    MissingTensor {
        /// The file, or the folder where several files share the tensors.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// The file holds a tensor that the architecture has no place for.
    #[error(
        "{}: tensor {tensor} has no place in a {family} model; ignoring it would change the \
         model's output",
        path.display()
    )]
    UnexpectedTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The family the file claims.
        family: &'static str,
    },
    /// A tensor has not the shape that the hyperparameters ask for.
    #[error(
        "{}: tensor {tensor} has shape {found:?}, the configuration asks for {expected:?}",
        path.display()
    )]
    WrongShape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Shape by the hyperparameters.
        expected: Vec<usize>,
        /// Shape in the file.
        found: Vec<usize>,
    },
    /// A tensor is stored in a format that cannot be read.
    #[error("{}: tensor {tensor} is stored as {format}, readable are {readable}", path.display())]
    UnsupportedFormat {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its format.
        format: String,
        /// The formats that can be read there.
        readable: &'static str,
    },
    /// The file ends before a tensor does.
    #[error(
        "{}: the file is cut off: tensor {tensor} ends at byte {needed}, the file has {found}; \
         fetch it again",
        path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Where the tensor ends, in bytes from the start of the file.
        needed: u64,
        /// Bytes in the file.
        found: u64,
    },
    /// A tensor's bytes and its shape disagree.
    #[error("{}: {source}", path.display())]
    Weight {
        /// The file.
        path: PathBuf,
        /// How they disagree.
        source: WeightError,
    },
}

impl ModelError {
    pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    pub(super) fn malformed(path: &Path, problem: impl Into<String>) -> Self {
        Self::Malformed { path: path.to_owned(), problem: problem.into() }
    }

    pub(super) fn field(path: &Path, field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Field { path: path.to_owned(), field: field.into(), problem: problem.into() }
    }

    pub(super) fn unsupported(path: &Path, feature: impl Into<String>) -> Self {
        Self::Unsupported { path: path.to_owned(), feature: feature.into() }
    }
}
