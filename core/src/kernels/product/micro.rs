//! Micro-kernels: the innermost loops, one tile of the product at a time.

use super::encode::{Depth, Layout, LeftBlock, Panels};
use crate::kernels::Precision;
use crate::kernels::isa::{InstructionSet, Isa};

/// Encoded rows of the left factor.
#[derive(Clone, Copy)]
pub(super) struct Left {
    /// Word `w` of row `i` is at `i·stride + w`.
    pub(super) words: *const u32,
    pub(super) stride: usize,
    /// The scale of run `r` of row `i` is at `i·runs + r`; unused but for [`Layout::Fixed16`].
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "no kernel of it"))]
    pub(super) scales: *const f32,
}

/// An encoded panel of the right factor.
#[derive(Clone, Copy)]
pub(super) struct Right {
    /// Word `w` of lane `j` is at `w·cols + j`.
    pub(super) words: *const u32,
    /// The scale of run `r` of lane `j` is at `r·cols + j`; unused but for [`Layout::Fixed16`].
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "no kernel of it"))]
    pub(super) scales: *const f32,
}

/// A tile of the product.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// Value `(i, j)` is at `i·stride + j`.
    pub(super) values: *mut f32,
    pub(super) stride: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Whether the product is added to what the tile holds, which is not read otherwise.
    pub(super) accumulate: bool,
}

/// Computes a tile from `rows` rows and a full panel, whose lanes beyond `cols` are ignored.
///
/// # Safety
/// The processor must have the kernel's instructions; the tile must have at least one row and
/// column, and at most as many as the kernel; the pointers must reach all that the sizes span,
/// and nothing else may use the tile's values meanwhile.
pub(super) type Run = unsafe fn(depth: Depth, left: Left, right: Right, tile: Tile);

/// A micro-kernel and the sizes it works on.
#[derive(Debug)]
pub(super) struct MicroKernel {
    /// Rows of a strip, which are computed together.
    pub(super) rows: usize,
    /// Most strips of a tile.
    pub(super) strips: usize,
    /// Most panels that a task encodes together.
    pub(super) panels: usize,
    /// Bytes of the left factor that are encoded at a time: they stay in a cache.
    pub(super) left_bytes: usize,
    /// Lanes of a panel.
    pub(super) cols: usize,
    pub(super) layout: Layout,
    /// Most values in depth: a panel of this depth fits a first-level cache.
    pub(super) depth: usize,
    pub(super) run: Run,
}

impl MicroKernel {
    /// A kernel that is called strip by strip, with a panel at a time.
    pub(super) const fn new(
        rows: usize,
        cols: usize,
        layout: Layout,
        depth: usize,
        run: Run,
    ) -> Self {
        Self { rows, strips: 1, panels: 1, left_bytes: 1 << 20, cols, layout, depth, run }
    }

    /// The fastest one for products of `n` columns and depth `k`. The number of rows has no say: a
    /// row's result must not depend on its company.
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables, reason = "no kernel asks"))]
    pub(super) fn choose(isa: Isa, precision: Precision, n: usize, k: usize) -> &'static Self {
        match (isa.set(), precision) {
            #[cfg(target_arch = "x86_64")]
            (InstructionSet::AmxBf16, Precision::Bf16) => &super::amx::AMX_BF16,
            // Of narrow and of shallow products, a good part of each register would be zeros.
            #[cfg(target_arch = "x86_64")]
            (InstructionSet::AmxBf16, Precision::F32) if n >= 64 && k >= 64 => &super::amx::AMX_F32,
            #[cfg(target_arch = "x86_64")]
            (InstructionSet::Avx512Vnni, Precision::Bf16) => &super::x86_64::AVX512_FIXED16,
            #[cfg(target_arch = "x86_64")]
            (InstructionSet::Avx512Bf16, Precision::Bf16) => &super::x86_64::AVX512_BF16,
            #[cfg(target_arch = "aarch64")]
            (InstructionSet::NeonBf16, Precision::Bf16) => &super::aarch64::NEON_BF16,
            _ => Self::of_values(isa),
        }
    }

    /// The fastest one whose words are the f32 values themselves.
    pub(super) fn of_values(isa: Isa) -> &'static Self {
        match isa.set() {
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512
            | InstructionSet::Avx512Bf16
            | InstructionSet::Avx512Vnni
            | InstructionSet::AmxBf16 => &super::x86_64::AVX512_F32,
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => &super::x86_64::AVX2_F32,
            #[cfg(target_arch = "aarch64")]
            InstructionSet::Neon | InstructionSet::NeonBf16 => &super::aarch64::NEON_F32,
            _ => &PORTABLE,
        }
    }

    /// Into how deep blocks a depth of `k` is divided; a multiple of `unit` if not all of `k`.
    pub(super) fn depth_block(&self, k: usize, unit: usize) -> usize {
        let blocks = k.div_ceil(self.depth.max(unit));
        k.div_ceil(blocks).next_multiple_of(unit).min(k)
    }

    /// Rows of the left factor that are encoded at a time, of `m` rows of so many words.
    pub(super) fn left_rows(&self, words: usize, m: usize) -> usize {
        let rows = self.left_bytes / (size_of::<u32>() * words) / self.rows * self.rows;
        rows.clamp(self.rows, m.next_multiple_of(self.rows))
    }

    /// Most rows of a tile.
    pub(super) fn most_rows(&self) -> usize {
        self.rows * self.strips
    }

    /// Computes a tile from the rows of `left` from `row` on and a panel.
    ///
    /// # Panics
    /// When the factors were not encoded for this kernel and one depth, or do not hold the rows.
    ///
    /// # Safety
    /// The tile's values must be there, and nothing else may use them meanwhile.
    pub(super) unsafe fn tile(
        &self,
        left: &LeftBlock,
        row: usize,
        (panels, panel): (&Panels, usize),
        tile: Tile,
    ) {
        let depth = left.depth();
        assert!((1..=self.most_rows()).contains(&tile.rows));
        assert!((1..=self.cols).contains(&tile.cols));
        let (left_words, left_scales) = left.rows(row..row + tile.rows);
        let (right_words, right_scales) = panels.panel(panel);
        assert!(
            right_words.len() == depth.words * self.cols
                && right_scales.len() == depth.runs * self.cols
                && left.stride() >= depth.words
        );
        let left = Left {
            words: left_words.as_ptr(),
            stride: left.stride(),
            scales: left_scales.as_ptr(),
        };
        let right = Right { words: right_words.as_ptr(), scales: right_scales.as_ptr() };
        // SAFETY: a kernel is chosen by an `Isa`, which proves its instructions. The slices just
        // taken hold the rows and the panel, whose sizes the assertions compare with the depth;
        // the caller vouches for the tile.
        unsafe { (self.run)(depth, left, right, tile) }
    }
}

/// Calls a const-generic kernel with the tile's rows.
macro_rules! with_rows {
    ($run:ident, $tile:ident, $arguments:tt, $($rows:literal)*) => {
        match $tile.rows {
            $($rows => $run::<$rows> $arguments,)*
            _ => unreachable!("a tile of more rows than the kernel has"),
        }
    };
}
pub(super) use with_rows;

/// Plain Rust; the compiler uses what every processor of the target has.
static PORTABLE: MicroKernel = MicroKernel::new(4, 8, Layout::F32, 256, portable);

/// # Safety
/// As [`Run`].
unsafe fn portable(depth: Depth, left: Left, right: Right, tile: Tile) {
    const COLS: usize = 8;
    let mut sums = [[0.0f32; COLS]; 4];
    for word in 0..depth.words {
        // SAFETY: the panel holds `words` times `COLS` words.
        let b: [f32; COLS] = unsafe { right.words.add(word * COLS).cast::<[f32; COLS]>().read() };
        for (row, sums) in sums.iter_mut().enumerate().take(tile.rows) {
            // SAFETY: the rows hold `words` words each.
            let a = f32::from_bits(unsafe { *left.words.add(row * left.stride + word) });
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum += a * b;
            }
        }
    }
    for (row, sums) in sums.iter().enumerate().take(tile.rows) {
        // SAFETY: the tile has this row.
        unsafe { store_row(tile, row, sums) };
    }
}

/// Stores the sums of one row of a tile, or adds them, value by value.
///
/// # Safety
/// The tile's values may be written, and it must have this row.
pub(super) unsafe fn store_row(tile: Tile, row: usize, sums: &[f32]) {
    for (column, sum) in sums.iter().enumerate().take(tile.cols) {
        // SAFETY: the tile has this row and this column. A value that is not added to is not read:
        // it may be memory that nobody has written yet.
        unsafe {
            let out = tile.values.add(row * tile.stride + column);
            out.write(if tile.accumulate { out.read() + sum } else { *sum });
        }
    }
}
