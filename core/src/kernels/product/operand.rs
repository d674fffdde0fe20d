//! The factors of a product as the driver sees them.

use std::ops::Range;

use crate::kernels::dequantize::{decode_bf16, decode_block};
use crate::kernels::isa::Isa;
use crate::weight::FrozenWeight;

/// A matrix `[rows, cols]` in a slice: element `(i, j)` lies at `i·row_stride + j·col_stride`.
///
/// One of the strides is 1, and all elements lie inside the slice.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> View<'a> {
    /// A row-major matrix without gaps.
    ///
    /// # Panics
    /// When `data` does not hold exactly `rows × cols` values.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols, "a [{rows}, {cols}] matrix");
        Self { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// A row-major matrix whose rows start `row_stride` values apart, such as one head's columns.
    ///
    /// # Panics
    /// When an element lies outside of `data` or rows overlap.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(row_stride >= cols, "rows of {cols} values every {row_stride} overlap");
        if rows > 0 {
            let needed = (rows - 1) * row_stride + cols;
            assert!(data.len() >= needed, "a [{rows}, {cols}] matrix needs {needed} values");
        }
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The transposed matrix, over the same values.
    #[must_use]
    pub fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// A part of a row, gathered into `scratch`, which has its length, where it is not contiguous.
    pub(super) fn row<'s>(
        &self,
        row: usize,
        cols: Range<usize>,
        scratch: &'s mut [f32],
    ) -> &'s [f32]
    where
        'a: 's,
    {
        let start = row * self.row_stride + cols.start * self.col_stride;
        if self.col_stride == 1 {
            return &self.data[start..start + cols.len()];
        }
        let values = self.data[start..].iter().step_by(self.col_stride);
        for (out, value) in scratch.iter_mut().zip(values) {
            *out = *value;
        }
        scratch
    }

    /// The values from the first element on, and how far apart rows are.
    ///
    /// # Panics
    /// When rows are not contiguous.
    pub(super) fn contiguous_rows(&self) -> (&'a [f32], usize) {
        assert_eq!(self.col_stride, 1, "contiguous rows");
        (self.data, self.row_stride)
    }

    /// Writes `factor` times these columns, row by row, each row padded with zeros to `width`.
    pub(super) fn copy_columns(
        &self,
        cols: Range<usize>,
        width: usize,
        factor: f32,
        out: &mut [f32],
    ) {
        let rows = out.chunks_exact_mut(width).take(self.rows);
        if self.col_stride == 1 {
            for (row, out) in rows.enumerate() {
                let start = row * self.row_stride;
                let values = &self.data[start + cols.start..start + cols.end];
                for (out, value) in out.iter_mut().zip(values) {
                    *out = factor * value;
                }
                out[cols.len()..].fill(0.0);
            }
            return;
        }
        // Rows of the transposed view are contiguous: read those.
        out.fill(0.0);
        for (lane, col) in cols.enumerate() {
            let values = &self.data[col * self.col_stride..];
            let places = out[lane..].iter_mut().step_by(width);
            for (out, value) in places.zip(values.iter().step_by(self.row_stride)).take(self.rows) {
                *out = factor * value;
            }
        }
    }
}

/// The right factor of a product: lanes, each of which makes one column of the product.
#[derive(Debug, Clone)]
pub(in crate::kernels) enum Operand<'a> {
    /// The values of a lane lie side by side.
    Along(Along<'a>),
    /// The lanes lie side by side, value by value.
    Across(Across<'a>),
}

/// Lanes whose values lie side by side.
#[derive(Debug, Clone)]
pub(in crate::kernels) enum Along<'a> {
    /// The rows of a row-major view.
    Dense(View<'a>),
    /// These rows of a weight.
    Weight(&'a FrozenWeight, Range<usize>),
}

/// Lanes that lie side by side.
#[derive(Debug, Clone)]
pub(in crate::kernels) enum Across<'a> {
    /// The columns of a row-major view.
    Dense(View<'a>),
    /// The columns of these rows of a weight.
    Weight(&'a FrozenWeight, Range<usize>),
}

impl<'a> Operand<'a> {
    /// `B = b`.
    pub(in crate::kernels) fn dense(b: View<'a>) -> Self {
        if b.row_stride == 1 {
            Self::Along(Along::Dense(b.t()))
        } else {
            Self::Across(Across::Dense(b))
        }
    }

    /// `B = Wᵀ` with these rows of the weight.
    pub(in crate::kernels) fn weight_transposed(
        weight: &'a FrozenWeight,
        rows: Range<usize>,
    ) -> Self {
        Self::Along(Along::Weight(weight, rows))
    }

    /// `B = W` with these rows of the weight.
    pub(in crate::kernels) fn weight(weight: &'a FrozenWeight, rows: Range<usize>) -> Self {
        Self::Across(Across::Weight(weight, rows))
    }

    /// Columns of the product.
    pub(super) fn lanes(&self) -> usize {
        match self {
            Self::Along(Along::Dense(view)) => view.rows,
            Self::Across(Across::Dense(view)) => view.cols,
            Self::Along(Along::Weight(_, rows)) => rows.len(),
            Self::Across(Across::Weight(weight, _)) => weight.cols(),
        }
    }

    /// Values of a lane.
    pub(super) fn depth(&self) -> usize {
        match self {
            Self::Along(Along::Dense(view)) => view.cols,
            Self::Across(Across::Dense(view)) => view.rows,
            Self::Along(Along::Weight(weight, _)) => weight.cols(),
            Self::Across(Across::Weight(_, rows)) => rows.len(),
        }
    }

    /// Blocks of the depth end at multiples of this, where values are decoded together.
    pub(super) fn depth_unit(&self) -> usize {
        match self {
            Self::Along(Along::Weight(weight, _)) => weight.format().block_size().max(32),
            _ => 32,
        }
    }

    /// Groups of lanes end at multiples of this, where values are decoded together.
    pub(super) fn lane_unit(&self) -> usize {
        match self {
            Self::Across(Across::Weight(weight, _)) => weight.format().block_size(),
            _ => 1,
        }
    }
}

impl Along<'_> {
    /// Some values of a lane; those of a weight are decoded into `scratch`, which has their number.
    pub(super) fn lane<'s>(
        &'s self,
        isa: Isa,
        lane: usize,
        depths: Range<usize>,
        scratch: &'s mut [f32],
    ) -> &'s [f32] {
        match self {
            Self::Dense(view) => view.row(lane, depths, scratch),
            Self::Weight(weight, rows) => {
                let row = rows.start + lane;
                decode_block(isa, weight, row..row + 1, depths, scratch);
                scratch
            }
        }
    }

    /// Some values of a lane as bf16, where they come so in one step; false, and nothing written, where
    /// they do not.
    pub(super) fn lane_bf16(
        &self,
        isa: Isa,
        lane: usize,
        depths: Range<usize>,
        out: &mut [u16],
    ) -> bool {
        match self {
            Self::Dense(_) => false,
            Self::Weight(weight, rows) => decode_bf16(isa, weight, rows.start + lane, depths, out),
        }
    }
}

impl Across<'_> {
    /// Some values of some lanes: value `k` of lane `l` is at `k·stride + l` of what is returned,
    /// together with the stride. Those of a weight are decoded into `scratch`.
    pub(super) fn lanes<'s>(
        &'s self,
        isa: Isa,
        lanes: Range<usize>,
        depths: Range<usize>,
        scratch: &'s mut Vec<f32>,
    ) -> (&'s [f32], usize) {
        match self {
            Self::Dense(view) => {
                let start = depths.start * view.row_stride + lanes.start * view.col_stride;
                (&view.data[start..], view.row_stride)
            }
            Self::Weight(weight, rows) => {
                let rows = rows.start + depths.start..rows.start + depths.end;
                let stride = lanes.len();
                scratch.resize(rows.len() * stride, 0.0);
                decode_block(isa, weight, rows, lanes, scratch);
                (scratch, stride)
            }
        }
    }
}
