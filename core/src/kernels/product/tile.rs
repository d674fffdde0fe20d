//! Products of tiles that stay in a first-level cache, in f32, on the calling thread: the pieces of
//! attention.

use super::encode::{Depth, Layout};
use super::micro::{Left, MicroKernel, Right, Tile};
use super::operand::View;
use crate::kernels::Output;
use crate::kernels::isa::Isa;

/// The micro-kernel for f32 of one path.
#[derive(Debug, Clone, Copy)]
pub(in crate::kernels) struct Tiles {
    kernel: &'static MicroKernel,
}

impl Tiles {
    pub(in crate::kernels) fn new(isa: Isa) -> Self {
        Self { kernel: MicroKernel::of_values(isa) }
    }

    /// Columns of a panel.
    pub(in crate::kernels) fn lanes(self) -> usize {
        self.kernel.cols
    }

    /// How many values a right factor takes; its first columns take the first of them.
    pub(in crate::kernels) fn packed_len(self, rows: usize, cols: usize) -> usize {
        cols.div_ceil(self.kernel.cols) * rows * self.kernel.cols
    }

    /// Stores `factor · b` as right factor: panels of [`Tiles::lanes`] columns, each row by row and
    /// padded with zeros.
    pub(in crate::kernels) fn pack(self, b: View, factor: f32, out: &mut Vec<f32>) {
        let lanes = self.kernel.cols;
        out.resize(self.packed_len(b.rows(), b.cols()), 0.0);
        let panels = out.chunks_exact_mut((b.rows() * lanes).max(1));
        for (panel, first) in panels.zip((0..b.cols()).step_by(lanes)) {
            let width = lanes.min(b.cols() - first);
            b.copy_columns(first..first + width, lanes, factor, panel);
        }
    }

    /// `c (+)= a·b`, where `b` is packed and has `cols` columns, `c` is row-major with rows `stride`
    /// values apart, and the rows of `a` are contiguous. Of the rows of `b` the first count, as many as
    /// `a` has columns.
    ///
    /// # Panics
    /// When the shapes do not fit each other.
    pub(in crate::kernels) fn multiply(
        self,
        a: View,
        (b, cols): (&[f32], usize),
        c: &mut [f32],
        stride: usize,
        output: Output,
    ) {
        debug_assert_eq!(self.kernel.layout, Layout::F32);
        let (rows, depth, lanes) = (a.rows(), a.cols(), self.kernel.cols);
        if rows == 0 || cols == 0 || depth == 0 {
            assert!(depth > 0 || output == Output::Accumulate, "a product without depth");
            return;
        }
        let panel = b.len() / cols.div_ceil(lanes);
        assert_eq!(b.len(), self.packed_len(panel / lanes, cols), "a packed factor");
        assert!(panel >= depth * lanes, "a packed factor of {depth} rows");
        assert!(cols <= stride && c.len() >= (rows - 1) * stride + cols, "room for the product");
        let (left, left_stride) = a.contiguous_rows();
        for (panel, first) in b.chunks_exact(panel).zip((0..cols).step_by(lanes)) {
            for row in (0..rows).step_by(self.kernel.rows) {
                let tile = Tile {
                    values: c[row * stride + first..].as_mut_ptr(),
                    stride,
                    rows: self.kernel.rows.min(rows - row),
                    cols: lanes.min(cols - first),
                    accumulate: output == Output::Accumulate,
                };
                let left = Left {
                    words: left[row * left_stride..].as_ptr().cast(),
                    stride: left_stride,
                    scales: std::ptr::null(),
                };
                let right = Right { words: panel.as_ptr().cast(), scales: std::ptr::null() };
                let depth = Depth { words: depth, run: depth, runs: 1 };
                // SAFETY: a kernel is chosen by an `Isa`, which proves its instructions, and one
                // for f32 reads no scales. The words of that layout are the values themselves: a
                // `View` holds its rows of `depth` values, a panel is `depth × lanes` values or more, and
                // `c` was checked to hold the tile.
                unsafe { (self.kernel.run)(depth, left, right, tile) };
            }
        }
    }
}
