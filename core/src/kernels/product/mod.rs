//! Matrix products: one driver for dense operands and frozen weights.
//!
//! `C[m, n] (+)= A[m, k]·B[k, n]` is cut into blocks of the depth `k`. For each, rows of `A` are
//! encoded for the micro-kernel into a shared scratch area that fits a cache. Then the
//! columns of `C` are worked off in groups, one task each: the task encodes its columns of `B` into
//! a nearer cache (this is where a quantised weight is decoded) and runs the micro-kernel over
//! all rows of the block. Every value of `C` is a sum of products in an order that depends on `k`
//! alone, so it is the same for any number of threads and any division of the rows.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod amx;
mod encode;
mod gated;
mod micro;
mod operand;
#[cfg(test)]
mod tests;
mod tile;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::cell::Cell;
use std::ops::Range;

use rayon::prelude::*;

#[cfg(test)]
use self::encode::Layout;
use self::encode::{LeftBlock, Panels};
pub(super) use self::gated::gated_product;
use self::micro::{MicroKernel, Tile};
pub(super) use self::operand::Operand;
pub use self::operand::View;
pub(super) use self::tile::Tiles;
use super::isa::Isa;
use super::shared::Shared;
use super::{Output, Precision};

/// Products of fewer multiplications than this are done by one task.
const SERIAL: usize = 1 << 17;

/// With so many rows for each thread it pays that a thread has rows of its own: other operations divide
/// rows the same way, so it mostly reads what it has written itself, and encoding the right factor once
/// for each thread costs less than fetching the left one from another processor's cache.
const OWN_ROWS: usize = 384;

thread_local! {
    /// Encoded factors of the last product on this thread. Thousands of products a step would leave
    /// holes between the buffers of a model if each took its own memory.
    static LEFT: Cell<LeftBlock> = Cell::default();
    static PANELS: Cell<Panels> = Cell::default();
}

/// One right factor and where its product goes.
pub(super) struct Part<'a> {
    /// Its lanes are the columns of the product.
    pub(super) b: Operand<'a>,
    /// Row-major `[m, n]`, rows `stride` values apart.
    pub(super) target: Shared<'a>,
    pub(super) stride: usize,
    pub(super) output: Output,
}

/// `C (+)= scale · A·B` for each part, with one encoding of `A` for all. What is to be overwritten is
/// not read; all of it is written.
///
/// # Panics
/// When the depths differ or a target is too small.
pub(super) fn product(isa: Isa, a: View, parts: &[Part], scale: f32, precision: Precision) {
    let (m, k) = (a.rows(), a.cols());
    for part in parts {
        let n = part.b.lanes();
        assert_eq!(k, part.b.depth(), "depths of the factors");
        let last = if m == 0 || n == 0 { 0 } else { (m - 1) * part.stride + n };
        assert!(n <= part.stride && last <= part.target.len(), "a target for [{m}, {n}]");
        if k == 0 {
            clear(part, m, n);
        }
    }
    if m == 0 || k == 0 {
        return;
    }
    let n = parts.iter().map(|part| part.b.lanes()).max().unwrap_or(0);
    let kernel = MicroKernel::choose(isa, precision, n, k);
    let size = m * k * parts.iter().map(|part| part.b.lanes()).sum::<usize>();
    let factors = parts.iter().map(|part| (part, &part.b));
    let division = Division::new(kernel, factors, size);
    let unit = parts.iter().map(|part| part.b.depth_unit()).max().unwrap_or(1);
    let depth = kernel.depth_block(k, unit);
    let block = kernel.left_rows(kernel.layout.words(depth), m);
    let mut left = LEFT.take();
    for depths in blocks(k, depth) {
        for rows in blocks(m, block) {
            left.encode(isa, kernel.layout, a, rows.clone(), depths.clone(), scale);
            division.run(rows.len(), |part, columns, some| {
                let accumulate = depths.start > 0 || part.output == Output::Accumulate;
                let mut panels = PANELS.take();
                panels.encode(isa, kernel, &part.b, columns.clone(), depths.clone());
                for row in some.clone().step_by(kernel.most_rows()) {
                    let target = |at| part.target.pointer((rows.start + row) * part.stride + at);
                    let height = kernel.most_rows().min(some.end - row);
                    for (panel, at) in columns.clone().step_by(kernel.cols).enumerate() {
                        let tile = Tile {
                            values: target(at),
                            stride: part.stride,
                            rows: height,
                            cols: kernel.cols.min(columns.end - at),
                            accumulate,
                        };
                        // SAFETY: every task has rows or columns of its own, so tiles do not
                        // overlap, and the targets were checked to hold all of them.
                        unsafe { kernel.tile(&left, row, (&panels, panel), tile) };
                    }
                }
                PANELS.set(panels);
            });
        }
    }
    LEFT.set(left);
}

/// How a product is divided among threads: by columns, and by rows where there are many of these or few of
/// those.
struct Division<T> {
    kernel: &'static MicroKernel,
    /// Columns that one task encodes together, of which factor.
    groups: Vec<(T, Range<usize>)>,
    serial: bool,
}

impl<T: Copy + Sync> Division<T> {
    /// Of products of `size` multiplications in all with these right factors.
    fn new<'a>(
        kernel: &'static MicroKernel,
        factors: impl Iterator<Item = (T, &'a Operand<'a>)> + Clone,
        size: usize,
    ) -> Self {
        let columns: usize = factors.clone().map(|(_, b)| b.lanes()).sum();
        // Several groups for each thread, so that none waits long for another.
        let fair = columns / (4 * rayon::current_num_threads() * kernel.cols);
        let panels = fair.clamp(1, kernel.panels);
        let groups = factors.flat_map(|(factor, b)| {
            // A lane unit above 1 is a multiple of every kernel's columns.
            let group = (panels * kernel.cols).next_multiple_of(b.lane_unit());
            blocks(b.lanes(), group).map(move |columns| (factor, columns))
        });
        Self { kernel, groups: groups.collect(), serial: size < SERIAL }
    }

    /// Calls `task` with all groups of columns and all of so many rows, some at a time.
    fn run(&self, rows: usize, task: impl Fn(T, Range<usize>, Range<usize>) + Sync) {
        let threads = if self.serial { 1 } else { rayon::current_num_threads() };
        // Rows are split where each thread gets many, or where there are fewer groups of columns than
        // threads; each part encodes its columns anew.
        let strips = rows.div_ceil(self.kernel.rows);
        let splits = match threads {
            1 => 1,
            _ if rows >= threads * OWN_ROWS => threads,
            _ => (2 * threads).div_ceil(self.groups.len().max(1)).min(strips.div_ceil(4)),
        };
        let height = strips.div_ceil(splits) * self.kernel.rows;
        let numbered = |number: usize| {
            let (factor, columns) = &self.groups[number % self.groups.len()];
            let from = (number / self.groups.len() * height).min(rows);
            task(*factor, columns.clone(), from..(from + height).min(rows));
        };
        let tasks = self.groups.len() * splits;
        if threads == 1 {
            (0..tasks).for_each(numbered);
        } else {
            (0..tasks).into_par_iter().with_max_len(1).for_each(numbered);
        }
    }
}

/// `0..end` in blocks of at most `block`.
fn blocks(end: usize, block: usize) -> impl Iterator<Item = Range<usize>> {
    (0..end).step_by(block).map(move |start| start..(start + block).min(end))
}

/// The product of matrices without depth: zero.
fn clear(part: &Part, m: usize, n: usize) {
    if part.output == Output::Overwrite && n > 0 {
        for row in 0..m {
            // SAFETY: `product` checked that the target holds the row, and nothing else uses it
            // meanwhile. Zeros are written, whatever was there.
            unsafe { part.target.pointer(row * part.stride).write_bytes(0, n) };
        }
    }
}
