//! Products of small dense matrices: LoRA pairs and their gradients.

use super::{Output, Precision};

/// A matrix `[rows, cols]` in a slice: element `(i, j)` lies at `i·row_stride + j·col_stride`.
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
}

/// `c = scale · a·b`, or `c += scale · a·b`, where `c` is row-major `[a.rows, b.cols]`.
///
/// With `U = X·Aᵀ` and `Y += s·U·Bᵀ` for a LoRA pair, the gradients are `dB = s·dYᵀ·U`,
/// `dU = s·dY·B`, `dA = dUᵀ·X` and `dX += dU·A`; transposed operands are [`View::t`].
///
/// # Panics
/// When the shapes do not fit each other.
pub fn matmul(a: View, b: View, scale: f32, c: &mut [f32], output: Output, _precision: Precision) {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    assert_eq!(k, b.rows, "inner sizes of [{m}, {k}]·[{}, {n}]", b.rows);
    assert_eq!(c.len(), m * n, "the output of [{m}, {k}]·[{k}, {n}]");
    if m == 0 || n == 0 {
        return;
    }
    let parallelism = match rayon::current_num_threads() {
        1 => gemm::Parallelism::None,
        _ => gemm::Parallelism::Rayon(0),
    };
    // SAFETY: a `View` holds all its elements, as its constructors check, and `c` holds m × n
    // values that nothing else refers to.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            n as isize,
            output == Output::Accumulate,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}
