//! Frozen weights: matrices of the base model, kept as the file stores them.
//!
//! A [`FrozenWeight`] owns or maps the bytes of one matrix in its file format (f32, f16, bf16 or a
//! GGUF quantisation) and never holds a converted full-size copy. Who multiplies by it converts a
//! few rows at a time ([`crate::kernels`]).

mod mapped;

use std::ops::Range;
use std::sync::Arc;

use candle_core::quantized::GgmlDType;

pub use mapped::MappedFile;

/// Where the rows of a matrix lie in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOrder {
    /// Row `r` of the matrix is row `r` of the file.
    Natural,
    /// GGUF files of the Llama family store the query and key projections for rotary embedding of
    /// neighbouring pairs; Hugging Face (and every adapter made for it) rotates halves. Within each
    /// head of `head_dim` rows, row `r` of the matrix is row `2·(r mod head_dim/2) + r div
    /// (head_dim/2)` of the file.
    InterleavedHeads {
        /// Rows a head has; even.
        head_dim: usize,
    },
}

impl RowOrder {
    /// The row of the file that holds row `row` of the matrix.
    pub fn file_row(self, row: usize) -> usize {
        match self {
            RowOrder::Natural => row,
            RowOrder::InterleavedHeads { head_dim } => {
                let half = head_dim / 2;
                let (head, within) = (row / head_dim, row % head_dim);
                head * head_dim + 2 * (within % half) + within / half
            }
        }
    }
}

/// The bytes behind a weight: a range of a mapped file, or memory of its own.
#[derive(Debug, Clone)]
enum Bytes {
    Mapped(Arc<MappedFile>, Range<usize>),
    Owned(Arc<[u8]>),
}

/// A frozen matrix `[rows, cols]`, or a vector with one row, in its file format.
///
/// Cloning is cheap: clones share the bytes.
#[derive(Debug, Clone)]
pub struct FrozenWeight {
    name: Arc<str>,
    rows: usize,
    cols: usize,
    format: GgmlDType,
    row_order: RowOrder,
    bytes: Bytes,
}

/// Why bytes are no matrix.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum WeightError {
    /// A row does not fill whole quantisation blocks.
    #[error(
        "tensor {name}: rows of {cols} values do not fill blocks of {block} values ({format:?})"
    )]
    PartialBlock {
        /// Tensor name.
        name: String,
        /// Values in a row.
        cols: usize,
        /// Values in a block of the format.
        block: usize,
        /// The format.
        format: GgmlDType,
    },
    /// The bytes do not have the length that shape and format ask for.
    #[error(
        "tensor {name}: [{rows}, {cols}] in {format:?} needs {needed} bytes, the file has {found}"
    )]
    WrongLength {
        /// Tensor name.
        name: String,
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
        /// The format.
        format: GgmlDType,
        /// Bytes the matrix needs.
        needed: usize,
        /// Bytes there are.
        found: usize,
    },
}

impl FrozenWeight {
    /// A weight in a range of a mapped file.
    ///
    /// # Errors
    /// When the range does not hold exactly `rows × cols` values of `format`.
    pub fn mapped(
        name: &str,
        (rows, cols): (usize, usize),
        format: GgmlDType,
        file: Arc<MappedFile>,
        range: Range<usize>,
    ) -> Result<Self, WeightError> {
        let found = file.as_bytes().get(range.clone()).map_or(0, <[u8]>::len);
        Self::checked(name, (rows, cols), format, found, Bytes::Mapped(file, range))
    }

    /// A weight in memory of its own.
    ///
    /// # Errors
    /// When `bytes` do not hold exactly `rows × cols` values of `format`.
    pub fn owned(
        name: &str,
        (rows, cols): (usize, usize),
        format: GgmlDType,
        bytes: Vec<u8>,
    ) -> Result<Self, WeightError> {
        let found = bytes.len();
        Self::checked(name, (rows, cols), format, found, Bytes::Owned(bytes.into()))
    }

    /// An f32 matrix in memory of its own, row by row.
    ///
    /// # Errors
    /// When there are not exactly `rows × cols` values.
    pub fn from_f32(
        name: &str,
        shape: (usize, usize),
        values: &[f32],
    ) -> Result<Self, WeightError> {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::owned(name, shape, GgmlDType::F32, bytes)
    }

    fn checked(
        name: &str,
        (rows, cols): (usize, usize),
        format: GgmlDType,
        found: usize,
        bytes: Bytes,
    ) -> Result<Self, WeightError> {
        let block = format.block_size();
        if !cols.is_multiple_of(block) {
            return Err(WeightError::PartialBlock { name: name.into(), cols, block, format });
        }
        let needed = (cols / block).saturating_mul(format.type_size()).saturating_mul(rows);
        if needed != found {
            return Err(WeightError::WrongLength {
                name: name.into(),
                rows,
                cols,
                format,
                needed,
                found,
            });
        }
        Ok(Self { name: name.into(), rows, cols, format, row_order: RowOrder::Natural, bytes })
    }

    /// The same bytes read in another row order.
    #[must_use]
    pub fn with_row_order(mut self, row_order: RowOrder) -> Self {
        self.row_order = row_order;
        self
    }

    /// The tensor's name in its file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Rows: output features of a projection, tokens of an embedding.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: input features of a projection, the width of an embedding.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How the bytes encode the values.
    pub fn format(&self) -> GgmlDType {
        self.format
    }

    /// Where the rows lie in the file.
    pub fn row_order(&self) -> RowOrder {
        self.row_order
    }

    /// Bytes the weight takes in its file.
    pub fn byte_len(&self) -> usize {
        self.all_bytes().len()
    }

    /// The encoded bytes of row `row` (after [`RowOrder`]).
    pub fn row_bytes(&self, row: usize) -> &[u8] {
        let len = self.cols / self.format.block_size() * self.format.type_size();
        let start = self.row_order.file_row(row) * len;
        &self.all_bytes()[start..start + len]
    }

    fn all_bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(file, range) => &file.as_bytes()[range.clone()],
            Bytes::Owned(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_heads_gather_even_rows_before_odd_ones() {
        let order = RowOrder::InterleavedHeads { head_dim: 4 };
        let rows: Vec<_> = (0..8).map(|r| order.file_row(r)).collect();
        assert_eq!(rows, [0, 2, 1, 3, 4, 6, 5, 7]);
    }

    #[test]
    fn a_weight_refuses_bytes_of_another_length() {
        let error = FrozenWeight::owned("w", (2, 32), GgmlDType::Q4_0, vec![0; 35]).unwrap_err();
        assert!(matches!(error, WeightError::WrongLength { needed: 36, found: 35, .. }));
        let error = FrozenWeight::owned("w", (2, 31), GgmlDType::Q4_0, vec![0; 36]).unwrap_err();
        assert!(matches!(error, WeightError::PartialBlock { .. }));
    }
}
