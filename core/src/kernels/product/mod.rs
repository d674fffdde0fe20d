//! Matrix products: one driver for dense operands and frozen weights.
//!
//! `C[m, n] (+)= A[m, k]·B[k, n]` is cut into blocks of the depth `k`. For each, rows of `A` are
//! encoded for the micro-kernel into a shared scratch area that fits a second-level cache. Then the
//! columns of `C` are worked off in groups, one task each: the task encodes its columns of `B` into
//! a first-level cache (this is where a quantised weight is decoded) and runs the micro-kernel over
//! all rows of the block. Every value of `C` is a sum of products in an order that depends on `k`
//! alone, so it is the same for any number of threads and any division of the rows.

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod encode;
mod micro;
mod operand;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::ops::Range;

use rayon::prelude::*;

#[cfg(test)]
use self::encode::Layout;
use self::encode::{LeftBlock, Panels};
use self::micro::{MicroKernel, Tile};
pub(super) use self::operand::Operand;
pub use self::operand::View;
use super::isa::Isa;
use super::shared::Shared;
use super::{Output, Precision};

/// Bytes of `A` that are encoded at a time.
const LEFT_BYTES: usize = 1 << 20;

/// Products of fewer multiplications than this are done by one task.
const SERIAL: usize = 1 << 17;

/// Where a product goes: row-major `[m, n]`, rows `stride` values apart.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) values: Shared<'a>,
    pub(super) stride: usize,
    pub(super) output: Output,
}

/// `C (+)= scale · A·B`. The lanes of `b` are the columns of `C`.
///
/// # Panics
/// When the depths differ or the target is too small.
pub(super) fn product(
    isa: Isa,
    a: View,
    b: &Operand,
    scale: f32,
    target: Target,
    precision: Precision,
) {
    let (m, n, k) = (a.rows(), b.lanes(), a.cols());
    assert_eq!(k, b.depth(), "depths of the factors");
    if m == 0 || n == 0 {
        return;
    }
    assert!(
        n <= target.stride && (m - 1) * target.stride + n <= target.values.len(),
        "a target for [{m}, {n}]"
    );
    if k == 0 {
        return clear(target, m, n);
    }
    let kernel = MicroKernel::choose(isa, precision);
    let depth = kernel.depth_block(k, b.depth_unit());
    let group = b.lane_unit().next_multiple_of(kernel.cols);
    let block = LEFT_BYTES / (4 * kernel.layout.words(depth)) / kernel.rows * kernel.rows;
    let block = block.clamp(kernel.rows, m.next_multiple_of(kernel.rows));
    let mut left = LeftBlock::default();
    let work = Work { isa, kernel, b, group, target };

    for (part, depths) in blocks(k, depth).enumerate() {
        let accumulate = part > 0 || target.output == Output::Accumulate;
        for rows in blocks(m, block) {
            left.encode(isa, kernel.layout, a, rows.clone(), depths.clone(), scale);
            work.run(&left, rows, depths.clone(), accumulate, m * n * k < SERIAL);
        }
    }
}

/// What all blocks of a product share.
struct Work<'a> {
    isa: Isa,
    kernel: &'static MicroKernel,
    b: &'a Operand<'a>,
    /// Columns that one task encodes together.
    group: usize,
    target: Target<'a>,
}

impl Work<'_> {
    /// Multiplies the encoded rows by all columns.
    fn run(
        &self,
        left: &LeftBlock,
        rows: Range<usize>,
        depths: Range<usize>,
        accumulate: bool,
        serial: bool,
    ) {
        let n = self.b.lanes();
        let groups = n.div_ceil(self.group);
        let threads = if serial { 1 } else { rayon::current_num_threads() };
        // Where there are fewer groups of columns than threads, rows are split as well; each part
        // encodes its columns anew.
        let strips = rows.len().div_ceil(self.kernel.rows);
        let splits = match threads {
            1 => 1,
            _ => (2 * threads).div_ceil(groups).min(strips.div_ceil(4)),
        };
        let height = strips.div_ceil(splits) * self.kernel.rows;
        let task = |panels: &mut Panels, task: usize| {
            let first = task / splits * self.group;
            let columns = first..(first + self.group).min(n);
            let from = (task % splits * height).min(rows.len());
            let some = from..(from + height).min(rows.len());
            panels.encode(self.isa, self.kernel, self.b, columns.clone(), depths.clone());
            for (panel, at) in columns.clone().step_by(self.kernel.cols).enumerate() {
                let width = self.kernel.cols.min(columns.end - at);
                for row in some.clone().step_by(self.kernel.rows) {
                    let height = self.kernel.rows.min(some.end - row);
                    let first = (rows.start + row) * self.target.stride + at;
                    let tile = Tile {
                        values: self.target.values.pointer(first),
                        stride: self.target.stride,
                        rows: height,
                        cols: width,
                        accumulate,
                    };
                    // SAFETY: every task has rows or columns of its own, so tiles do not overlap,
                    // and `product` checked that the target holds all of them.
                    unsafe { self.kernel.tile(left, row, (panels, panel), tile) };
                }
            }
        };
        let tasks = groups * splits;
        if threads == 1 {
            let mut panels = Panels::default();
            (0..tasks).for_each(|t| task(&mut panels, t));
        } else {
            (0..tasks).into_par_iter().with_max_len(1).for_each_init(Panels::default, task);
        }
    }
}

/// `0..end` in blocks of at most `block`.
fn blocks(end: usize, block: usize) -> impl Iterator<Item = Range<usize>> {
    (0..end).step_by(block).map(move |start| start..(start + block).min(end))
}

/// The product of matrices without depth: zero.
fn clear(target: Target, m: usize, n: usize) {
    if target.output == Output::Overwrite {
        for row in 0..m {
            let start = row * target.stride;
            // SAFETY: nothing else uses the target while its product is computed.
            unsafe { target.values.part(start..start + n) }.fill(0.0);
        }
    }
}
