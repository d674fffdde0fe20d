//! The tensors that a model's files hold, by name, before they have a place in the decoder.
//!
//! Nothing is read when a file is indexed. Taking a tensor checks its shape, its format and that
//! the file really reaches so far; what nobody took is left over and can be refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::quantized::GgmlDType;
use half::{bf16, f16};

use super::error::ModelError;
use crate::weight::{FrozenWeight, MappedFile};

/// How a file says a tensor is stored.
#[derive(Debug, Clone)]
pub(super) enum StoredAs {
    /// A format this library reads.
    Known(GgmlDType),
    /// Any other, by its name; an error once the tensor is needed.
    Other(String),
}

/// One tensor of a file: where it begins and what it should be.
#[derive(Debug, Clone)]
pub(super) struct TensorEntry {
    /// The file.
    pub file: Arc<MappedFile>,
    /// First byte of the tensor, counted from the start of the file.
    pub offset: u64,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Format of the values.
    pub stored_as: StoredAs,
}

/// All tensors of a model that have not been taken yet.
#[derive(Debug)]
pub(super) struct TensorIndex {
    location: PathBuf,
    readable: &'static str,
    entries: BTreeMap<String, TensorEntry>,
}

impl TensorIndex {
    /// An empty index. `location` is what errors name when a tensor is in no file; `readable`
    /// lists the formats of this kind of file for people.
    pub fn new(location: &Path, readable: &'static str) -> Self {
        Self { location: location.to_owned(), readable, entries: BTreeMap::new() }
    }

    /// Adds a tensor; a name may appear once.
    pub fn insert(&mut self, name: String, entry: TensorEntry) -> Result<(), ModelError> {
        let path = entry.file.path().to_owned();
        match self.entries.insert(name.clone(), entry) {
            None => Ok(()),
            Some(_) => Err(ModelError::malformed(&path, format!("tensor {name} appears twice"))),
        }
    }

    /// Whether the tensor is there.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// Shape of a tensor, outermost dimension first.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    /// Drops a tensor that the model does without.
    pub fn discard(&mut self, name: &str) {
        self.entries.remove(name);
    }

    /// Names of the tensors nobody has taken.
    pub fn remaining(&self) -> impl Iterator<Item = (&str, &TensorEntry)> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// Takes whatever tensor lies there, in the shape that the file gives it.
    pub fn take_any(&mut self, name: &str) -> Result<FrozenWeight, ModelError> {
        let shape = self.shape(name).map_or_else(Vec::new, <[usize]>::to_vec);
        self.take(name, &shape)
    }

    /// Takes a matrix `[rows, cols]`.
    pub fn take_matrix(
        &mut self,
        name: &str,
        (rows, cols): (usize, usize),
    ) -> Result<FrozenWeight, ModelError> {
        self.take(name, &[rows, cols])
    }

    /// Takes a vector and converts it to f32.
    pub fn take_vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        let path = self.entries.get(name).map(|entry| entry.file.path().to_owned());
        let weight = self.take(name, &[len])?;
        decode_floats(&weight).ok_or_else(|| ModelError::UnsupportedFormat {
            path: path.unwrap_or_default(),
            tensor: name.to_owned(),
            format: format!("{:?}", weight.format()),
            readable: "F32, F16 and BF16 for vectors",
        })
    }

    fn take(&mut self, name: &str, expected: &[usize]) -> Result<FrozenWeight, ModelError> {
        let entry = self.entries.remove(name).ok_or_else(|| ModelError::MissingTensor {
            path: self.location.clone(),
            tensor: name.to_owned(),
        })?;
        let path = entry.file.path();
        if entry.shape != expected {
            return Err(ModelError::WrongShape {
                path: path.to_owned(),
                tensor: name.to_owned(),
                expected: expected.to_vec(),
                found: entry.shape,
            });
        }
        let format = match entry.stored_as {
            StoredAs::Known(format) => format,
            StoredAs::Other(format) => {
                return Err(ModelError::UnsupportedFormat {
                    path: path.to_owned(),
                    tensor: name.to_owned(),
                    format,
                    readable: self.readable,
                });
            }
        };
        let cols = expected.last().copied().unwrap_or(1);
        let rows = expected[..expected.len().saturating_sub(1)].iter().product();
        let row_bytes =
            ((cols / format.block_size()) as u64).saturating_mul(format.type_size() as u64);
        let end = row_bytes.saturating_mul(rows as u64).saturating_add(entry.offset);
        let found = entry.file.as_bytes().len() as u64;
        if end > found {
            return Err(ModelError::Truncated {
                path: path.to_owned(),
                tensor: name.to_owned(),
                needed: end,
                found,
            });
        }
        // Both fit usize: they are no larger than a slice's length.
        let range = entry.offset as usize..end as usize;
        FrozenWeight::mapped(name, (rows, cols), format, entry.file.clone(), range)
            .map_err(|source| ModelError::Weight { path: path.to_owned(), source })
    }
}

/// The values of an unquantised weight.
fn decode_floats(weight: &FrozenWeight) -> Option<Vec<f32>> {
    let bytes = weight.row_bytes(0);
    Some(match weight.format() {
        GgmlDType::F32 => values(bytes, f32::from_le_bytes),
        GgmlDType::F16 => values(bytes, |b| f16::from_le_bytes(b).to_f32()),
        GgmlDType::BF16 => values(bytes, |b| bf16::from_le_bytes(b).to_f32()),
        _ => return None,
    })
}

fn values<const N: usize>(bytes: &[u8], decode: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&chunk| decode(chunk)).collect()
}
