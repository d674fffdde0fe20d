//! The GGUF container: metadata and tensor table of a mapped file.
//!
//! Everything is read in place. Counts and lengths in the file are never trusted: a string or an
//! array is a checked range of the file, and nothing is allocated for more entries than have
//! really been read. Arrays stay undecoded until someone asks for their items.
//!
//! Layout (little endian, versions 2 and 3): `"GGUF"`, version u32, tensors u64, metadata entries
//! u64, then the entries (key, type u32, value), then the tensor table (name, dimensions u32, sizes
//! u64 innermost first, format u32, offset u64), then, at the next multiple of `general.alignment`,
//! the tensors' bytes.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use candle_core::quantized::GgmlDType;

use super::super::error::ModelError;
use super::super::tensors::{StoredAs, TensorEntry, TensorIndex};
use crate::weight::MappedFile;

pub(in super::super) const MAGIC: &[u8] = b"GGUF";
pub(in super::super) const DEFAULT_ALIGNMENT: u64 = 32;
/// ggml's own limit.
const MAX_DIMENSIONS: u32 = 4;
/// Arrays of arrays: no writer nests deeper than once.
const MAX_NESTING: usize = 4;
/// The formats a GGUF tensor may have, for people.
const READABLE: &str =
    "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K and Q8_K";

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    String(Range<usize>),
    Array(Array),
}

/// An array whose items have been checked to lie inside the file, but not decoded.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Array {
    item_type: u32,
    len: u64,
    /// First byte of the first item.
    start: usize,
}

/// The header of a GGUF file.
#[derive(Debug)]
pub(in super::super) struct GgufFile {
    file: Arc<MappedFile>,
    metadata: HashMap<String, Value>,
    /// Where the entries of the metadata lie in the file.
    metadata_bytes: Range<usize>,
    alignment: u64,
}

impl GgufFile {
    /// Reads metadata and tensor table.
    pub fn open(path: &Path) -> Result<(Self, TensorIndex), ModelError> {
        let file = Arc::new(MappedFile::open(path).map_err(ModelError::io(path))?);
        let mut cursor = Cursor { path, bytes: file.as_bytes(), at: 0 };
        if cursor.take(MAGIC.len(), "the magic number")? != MAGIC {
            return Err(ModelError::malformed(path, "this is no GGUF file (wrong magic number)"));
        }
        let version = cursor.u32("the version")?;
        if version != 2 && version != 3 {
            let problem =
                format!("GGUF version {version:#x}; versions 2 and 3, little endian, can be read");
            return Err(ModelError::malformed(path, problem));
        }
        let tensor_count = cursor.u64("the number of tensors")?;
        let metadata_count = cursor.u64("the number of metadata entries")?;
        let metadata_start = cursor.at;
        let mut metadata = HashMap::new();
        for _ in 0..metadata_count {
            let key = cursor.string("a metadata key")?;
            let value_type = cursor.u32(&key)?;
            let value = cursor.value(value_type, &key, 0)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(ModelError::malformed(path, format!("metadata key {key} twice")));
            }
        }
        let metadata_bytes = metadata_start..cursor.at;
        let mut table = Vec::new();
        for _ in 0..tensor_count {
            table.push(cursor.tensor()?);
        }
        let header_end = cursor.at as u64;
        let alignment = match metadata.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(&Value::Unsigned(alignment)) if alignment.is_power_of_two() => alignment,
            Some(_) => {
                let problem = "is not a power of two";
                return Err(ModelError::field(path, "general.alignment", problem));
            }
        };
        // Saturates far behind any file's end, where every tensor is reported as cut off.
        let data_start = header_end.checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
        let mut tensors = TensorIndex::new(path, READABLE);
        for TableRow { name, shape, stored_as, offset } in table {
            let offset = data_start.saturating_add(offset);
            tensors.insert(name, TensorEntry { file: file.clone(), offset, shape, stored_as })?;
        }
        Ok((Self { file, metadata, metadata_bytes, alignment }, tensors))
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The metadata as they lie in the file: the number of entries, and their bytes.
    pub fn raw_metadata(&self) -> (u64, &[u8]) {
        // No key appears twice, so none was lost on the way into the map.
        (self.metadata.len() as u64, &self.file.as_bytes()[self.metadata_bytes.clone()])
    }

    /// What the tensors' offsets are multiples of.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// Whether the metadata have the key.
    pub fn contains(&self, key: &str) -> bool {
        self.metadata.contains_key(key)
    }

    /// A whole number that fits `usize`.
    pub fn size(&self, key: &str) -> Result<Option<usize>, ModelError> {
        let number = match self.metadata.get(key) {
            None => return Ok(None),
            Some(&Value::Unsigned(number)) => usize::try_from(number).ok(),
            Some(&Value::Signed(number)) => usize::try_from(number).ok(),
            Some(_) => None,
        };
        number.map(Some).ok_or_else(|| self.wrong_type(key, "a whole number, not negative"))
    }

    /// A number.
    pub fn float(&self, key: &str) -> Result<Option<f64>, ModelError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(&Value::Float(number)) => Ok(Some(number)),
            Some(&Value::Unsigned(number)) => Ok(Some(number as f64)),
            Some(&Value::Signed(number)) => Ok(Some(number as f64)),
            Some(_) => Err(self.wrong_type(key, "a number")),
        }
    }

    /// True or false.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, ModelError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(&Value::Bool(value)) => Ok(Some(value)),
            Some(_) => Err(self.wrong_type(key, "true or false")),
        }
    }

    /// A text.
    pub fn string(&self, key: &str) -> Result<Option<String>, ModelError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::String(range)) => Ok(Some(text(&self.file.as_bytes()[range.clone()]))),
            Some(_) => Err(self.wrong_type(key, "a string")),
        }
    }

    /// A list of texts.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<String>>, ModelError> {
        self.items(key, "a list of strings", |file, value| match value {
            Value::String(range) => Some(text(&file[range])),
            _ => None,
        })
    }

    /// A list of numbers, as f64 (exact for 32-bit integers and floats, the ones in use).
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>, ModelError> {
        self.items(key, "a list of numbers", |_, value| match value {
            Value::Float(number) => Some(number),
            Value::Unsigned(number) => Some(number as f64),
            Value::Signed(number) => Some(number as f64),
            _ => None,
        })
    }

    fn items<T>(
        &self,
        key: &str,
        expected: &str,
        decode: impl Fn(&[u8], Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>, ModelError> {
        let array = match self.metadata.get(key) {
            None => return Ok(None),
            Some(Value::Array(array)) => array,
            Some(_) => return Err(self.wrong_type(key, expected)),
        };
        let bytes = self.file.as_bytes();
        let mut cursor = Cursor { path: self.path(), bytes, at: array.start };
        let mut items = Vec::new();
        for _ in 0..array.len {
            let value = cursor.value(array.item_type, key, 1)?;
            items.push(decode(bytes, value).ok_or_else(|| self.wrong_type(key, expected))?);
        }
        Ok(Some(items))
    }

    fn wrong_type(&self, key: &str, expected: &str) -> ModelError {
        ModelError::field(self.path(), key, format!("is not {expected}"))
    }
}

/// A row of the tensor table.
struct TableRow {
    name: String,
    shape: Vec<usize>,
    stored_as: StoredAs,
    /// Counted from the start of the tensors' bytes.
    offset: u64,
}

/// A position in the header.
struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize, what: &str) -> Result<&'a [u8], ModelError> {
        let range = self.range(len as u64, what)?;
        Ok(&self.bytes[range])
    }

    /// The next `len` bytes, which are checked to be there.
    fn range(&mut self, len: u64, what: &str) -> Result<Range<usize>, ModelError> {
        let end = usize::try_from(len).ok().and_then(|len| self.at.checked_add(len));
        let Some(end) = end.filter(|&end| end <= self.bytes.len()) else {
            return Err(ModelError::malformed(
                self.path,
                format!(
                    "the file is cut off in its header: {what} needs {len} bytes at byte {}, the \
                     file has {}; fetch it again",
                    self.at,
                    self.bytes.len()
                ),
            ));
        };
        let range = self.at..end;
        self.at = end;
        Ok(range)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], ModelError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    fn u32(&mut self, what: &str) -> Result<u32, ModelError> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, ModelError> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn string_range(&mut self, what: &str) -> Result<Range<usize>, ModelError> {
        let len = self.u64(what)?;
        self.range(len, what)
    }

    fn string(&mut self, what: &str) -> Result<String, ModelError> {
        let range = self.string_range(what)?;
        Ok(text(&self.bytes[range]))
    }

    fn value(&mut self, value_type: u32, key: &str, nesting: usize) -> Result<Value, ModelError> {
        Ok(match value_type {
            0 => Value::Unsigned(self.array::<1>(key)?[0].into()),
            1 => Value::Signed(i8::from_le_bytes(self.array(key)?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array(key)?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array(key)?).into()),
            4 => Value::Unsigned(self.u32(key)?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array(key)?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array(key)?).into()),
            7 => Value::Bool(self.array::<1>(key)?[0] != 0),
            8 => Value::String(self.string_range(key)?),
            9 => {
                if nesting == MAX_NESTING {
                    return Err(ModelError::malformed(
                        self.path,
                        format!("metadata key {key}: arrays nested too deeply"),
                    ));
                }
                let item_type = self.u32(key)?;
                let len = self.u64(key)?;
                let start = self.at;
                if let Some(width) = fixed_width(item_type) {
                    self.range(len.saturating_mul(width), key)?;
                } else {
                    for _ in 0..len {
                        self.value(item_type, key, nesting + 1)?;
                    }
                }
                Value::Array(Array { item_type, len, start })
            }
            10 => Value::Unsigned(self.u64(key)?),
            11 => Value::Signed(i64::from_le_bytes(self.array(key)?)),
            12 => Value::Float(f64::from_le_bytes(self.array(key)?)),
            other => {
                return Err(ModelError::malformed(
                    self.path,
                    format!("metadata key {key} has the unknown type {other}"),
                ));
            }
        })
    }

    fn tensor(&mut self) -> Result<TableRow, ModelError> {
        let name = self.string("the name of a tensor")?;
        let dimensions = self.u32(&name)?;
        if dimensions > MAX_DIMENSIONS {
            return Err(ModelError::malformed(
                self.path,
                format!("tensor {name} claims {dimensions} dimensions; there are at most 4"),
            ));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            // A size beyond usize fits no file; it is reported as a wrong shape.
            shape.push(usize::try_from(self.u64(&name)?).unwrap_or(usize::MAX));
        }
        shape.reverse();
        let format = self.u32(&name)?;
        let offset = self.u64(&name)?;
        let stored_as = format_by_number(format);
        Ok(TableRow { name, shape, stored_as, offset })
    }
}

/// Bytes of a metadata item that does not tell its own length.
fn fixed_width(item_type: u32) -> Option<u64> {
    match item_type {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// The number of a format in ggml's `ggml_type`.
pub(in super::super) fn number_of_format(format: GgmlDType) -> u32 {
    use GgmlDType as G;
    match format {
        G::F32 => 0,
        G::F16 => 1,
        G::Q4_0 => 2,
        G::Q4_1 => 3,
        G::Q5_0 => 6,
        G::Q5_1 => 7,
        G::Q8_0 => 8,
        G::Q8_1 => 9,
        G::Q2K => 10,
        G::Q3K => 11,
        G::Q4K => 12,
        G::Q5K => 13,
        G::Q6K => 14,
        G::Q8K => 15,
        G::BF16 => 30,
    }
}

/// The format that ggml's `ggml_type` numbers `format`. Q8_1 (number 9) holds activations during a
/// product and no weights; the others that cannot be read are named for the error's sake.
fn format_by_number(format: u32) -> StoredAs {
    use GgmlDType as G;
    let name = match format {
        0 => return StoredAs::Known(G::F32),
        1 => return StoredAs::Known(G::F16),
        2 => return StoredAs::Known(G::Q4_0),
        3 => return StoredAs::Known(G::Q4_1),
        6 => return StoredAs::Known(G::Q5_0),
        7 => return StoredAs::Known(G::Q5_1),
        8 => return StoredAs::Known(G::Q8_0),
        10 => return StoredAs::Known(G::Q2K),
        11 => return StoredAs::Known(G::Q3K),
        12 => return StoredAs::Known(G::Q4K),
        13 => return StoredAs::Known(G::Q5K),
        14 => return StoredAs::Known(G::Q6K),
        15 => return StoredAs::Known(G::Q8K),
        30 => return StoredAs::Known(G::BF16),
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        other => return StoredAs::Other(format!("ggml format {other}")),
    };
    StoredAs::Other(name.to_owned())
}

/// Some writers end strings with a null byte, and some strings are not quite UTF-8.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
}
