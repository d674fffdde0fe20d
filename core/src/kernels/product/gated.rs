//! `silu(A·G) ∘ (A·U)`, the hidden values of a gated MLP, without either product in memory: they are the
//! widest matrices of a layer, and writing and reading them takes about as long as computing them.

use std::cell::Cell;

use super::encode::{LeftBlock, Panels};
use super::micro::{MicroKernel, Tile};
use super::operand::{Operand, View};
use super::{Division, blocks};
use crate::kernels::Precision;
use crate::kernels::isa::Isa;
use crate::kernels::shared::Shared;
use crate::kernels::swiglu;

/// Values between the rows of two tiles, so that rows do not compete for the same cache sets.
const GAP: usize = 16;

thread_local! {
    /// The left factor's blocks, and what a task needs, kept as those of other products are.
    static LEFTS: Cell<Vec<LeftBlock>> = Cell::default();
    static DESK: Cell<Desk> = Cell::default();
}

/// What a task needs.
#[derive(Default)]
struct Desk {
    /// Panels of both right factors, depth by depth.
    panels: Vec<[Panels; 2]>,
    /// Some rows of both products.
    products: [Vec<f32>; 2],
}

/// Writes `silu(A·G) ∘ (A·U)`, `[m, n]` row-major, for the right factors `[G, U]`. The values are those
/// of both products and [`swiglu`](crate::kernels::swiglu) one after the other, bit by bit.
///
/// # Panics
/// When the shapes do not fit each other or there is no depth.
pub(in crate::kernels) fn gated_product(
    isa: Isa,
    a: View,
    factors: &[Operand; 2],
    hidden: Shared,
    precision: Precision,
) {
    let (m, k, n) = (a.rows(), a.cols(), factors[0].lanes());
    for factor in factors {
        assert_eq!((k, n), (factor.depth(), factor.lanes()), "shapes of the factors");
    }
    assert!(k > 0, "a product without depth");
    assert_eq!(hidden.len(), m * n, "a target for [{m}, {n}]");
    let kernel = MicroKernel::choose(isa, precision, n, k);
    let division = Division::new(kernel, [((), &factors[0])].into_iter(), 2 * m * n * k);
    let unit = factors.iter().map(Operand::depth_unit).max().unwrap_or(1);
    let depths: Vec<_> = blocks(k, kernel.depth_block(k, unit)).collect();
    let words = depths.iter().map(|depths| kernel.layout.words(depths.len())).sum();
    let mut lefts = LEFTS.take();
    lefts.resize_with(depths.len(), LeftBlock::default);
    for rows in blocks(m, kernel.left_rows(words, m)) {
        for (left, depths) in lefts.iter_mut().zip(&depths) {
            left.encode(isa, kernel.layout, a, rows.clone(), depths.clone(), 1.0);
        }
        division.run(rows.len(), |(), columns, some| {
            let mut desk = DESK.take();
            desk.panels.resize_with(depths.len(), Default::default);
            for (panels, depths) in desk.panels.iter_mut().zip(&depths) {
                for (panels, factor) in panels.iter_mut().zip(factors) {
                    panels.encode(isa, kernel, factor, columns.clone(), depths.clone());
                }
            }
            let (width, stride) = (columns.len(), columns.len() + GAP);
            for row in some.clone().step_by(kernel.most_rows()) {
                let height = kernel.most_rows().min(some.end - row);
                let Desk { panels, products } = &mut desk;
                for (which, values) in products.iter_mut().enumerate() {
                    values.resize(kernel.most_rows() * stride, 0.0);
                    let values = Shared::new(values);
                    for (panel, at) in (0..width).step_by(kernel.cols).enumerate() {
                        for (depth, (left, panels)) in lefts.iter().zip(&*panels).enumerate() {
                            let tile = Tile {
                                values: values.pointer(at),
                                stride,
                                rows: height,
                                cols: kernel.cols.min(width - at),
                                accumulate: depth > 0,
                            };
                            // SAFETY: the values are this task's alone and hold the tile.
                            unsafe { kernel.tile(left, row, (&panels[which], panel), tile) };
                        }
                    }
                }
                let [gate, up] = &desk.products;
                let pairs = gate.chunks_exact(stride).zip(up.chunks_exact(stride)).take(height);
                for (i, (gate, up)) in pairs.enumerate() {
                    let start = (rows.start + row + i) * n + columns.start;
                    // SAFETY: no other task has this part of this row, and it is only written to.
                    let out = unsafe { hidden.unwritten(start..start + width) };
                    swiglu::forward(isa, &gate[..width], &up[..width], out);
                }
            }
            DESK.set(desk);
        });
    }
    LEFTS.set(lefts);
}
