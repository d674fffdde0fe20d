//! Products of tile registers (AMX): 16 × 16 sums from 16 rows of 32 bf16 values each.
//!
//! An f32 value is the sum of three bf16 values, so f32 factors multiply as bf16 planes. Each plane is at
//! most 2⁻⁸ of the one before; of the nine products of planes the three smallest, together at most 2⁻²³
//! of the product, are left out.

use std::arch::asm;

use super::encode::{Depth, Layout};
use super::micro::{Left, MicroKernel, Right, Tile, store_row};

/// Rows of a tile register, and columns of sums.
const SIDE: usize = 16;
/// Bytes of a row of a tile register.
const ROW_BYTES: usize = 64;

/// Strips of rows of a call: giving the registers their shapes and giving them up takes as long as a
/// good part of a strip.
const STRIPS: usize = 4;

/// Panels that are encoded together, and bytes of the left factor. These products are so fast that a
/// panel's weights must be decoded once for all rows, and rows be fetched once for many columns.
const PANELS: usize = 8;
const LEFT_BYTES: usize = 2 << 20;

/// Four tiles of sums, two of the left factor and two of the right one: all eight registers.
pub(super) static AMX_BF16: MicroKernel = MicroKernel {
    strips: STRIPS,
    panels: PANELS,
    left_bytes: LEFT_BYTES,
    ..MicroKernel::new(2 * SIDE, 2 * SIDE, Layout::Tiles { planes: 1 }, 1024, amx_bf16)
};

/// The same with f32 values in three planes.
pub(super) static AMX_F32: MicroKernel = MicroKernel {
    strips: STRIPS,
    panels: PANELS,
    left_bytes: LEFT_BYTES,
    ..MicroKernel::new(2 * SIDE, 2 * SIDE, Layout::Tiles { planes: 3 }, 640, amx_f32)
};

/// # Safety
/// As [`Run`](super::micro::Run); needs AMX with bf16, and the system's leave to use it.
unsafe fn amx_bf16(depth: Depth, left: Left, right: Right, tile: Tile) {
    // SAFETY: the caller's promises are passed on.
    unsafe { strips(multiply_bf16, depth, left, right, tile) }
}

/// # Safety
/// As [`amx_bf16`].
unsafe fn amx_f32(depth: Depth, left: Left, right: Right, tile: Tile) {
    // SAFETY: the caller's promises are passed on.
    unsafe { strips(multiply_f32, depth, left, right, tile) }
}

/// Calls `multiply` strip by strip of the tile's rows. Registers are stored whole, so a tile that lacks
/// columns takes a way round.
///
/// # Safety
/// As [`amx_bf16`], of which `multiply` must need no more but the registers' shapes.
#[inline(always)]
unsafe fn strips(
    multiply: unsafe fn(Depth, Left, Right, Tile),
    depth: Depth,
    left: Left,
    right: Right,
    tile: Tile,
) {
    let mut shaped = 0;
    for first in (0..tile.rows).step_by(2 * SIDE) {
        let rows = (tile.rows - first).min(2 * SIDE);
        if rows != shaped {
            // SAFETY: the shapes are valid ones. The compiler itself uses no such register, and nothing
            // that runs between here and `tilerelease` does.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &SHAPES[rows], options(nostack, readonly)) };
            shaped = rows;
        }
        let left = Left { words: left.words.wrapping_add(first * left.stride), ..left };
        let values = tile.values.wrapping_add(first * tile.stride);
        let strip = Tile { values, rows, ..tile };
        if tile.cols == 2 * SIDE {
            // SAFETY: the caller's promises are passed on, of these rows.
            unsafe { multiply(depth, left, right, strip) };
            continue;
        }
        let mut sums = [[0.0_f32; 2 * SIDE]; 2 * SIDE];
        let values = sums.as_mut_ptr().cast();
        let whole = Tile { values, stride: 2 * SIDE, accumulate: false, ..strip };
        // SAFETY: as above; `sums` has all rows and columns.
        unsafe { multiply(depth, left, right, whole) };
        for (row, sums) in sums.iter().enumerate().take(rows) {
            // SAFETY: the strip has this row.
            unsafe { store_row(strip, row, sums) };
        }
    }
    // SAFETY: gives up the registers, after which the system has less to save.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
}

/// The shapes of the tile registers, as the instruction `ldtilecfg` reads them.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    /// Registers 0 to 3 hold the sums of the upper rows, left and right, and of the lower rows; 4 and
    /// 5 the upper and lower rows of the left factor, 6 and 7 the right one.
    const fn new(upper: usize, lower: usize) -> Self {
        let (upper, lower, side) = (upper as u8, lower as u8, SIDE as u8);
        let rows = [upper, upper, lower, lower, upper, lower, side, side, 0, 0, 0, 0, 0, 0, 0, 0];
        let mut row_bytes = [0; 16];
        let mut register = 0;
        while register < rows.len() {
            // A register without rows has no bytes, either.
            if rows[register] > 0 {
                row_bytes[register] = ROW_BYTES as u16;
            }
            register += 1;
        }
        Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
    }
}

/// The shapes for each number of rows.
static SHAPES: [Shapes; 2 * SIDE + 1] = {
    let mut shapes = [const { Shapes::new(0, 0) }; 2 * SIDE + 1];
    let mut rows = 1;
    while rows < shapes.len() {
        let upper = if rows < SIDE { rows } else { SIDE };
        shapes[rows] = Shapes::new(upper, rows - upper);
        rows += 1;
    }
    shapes
};

/// Defines the product of factors of so many planes. `both` is what is done with 32 values in depth
/// (all planes of them) where the tile has rows in both halves, `upper` where only the upper one has
/// any. Plane `p` of the left factor is 64·p bytes on, plane `p` of the right one 2048·p.
macro_rules! multiply {
    ($name:ident, $planes:literal, both: [$($both:literal),* $(,)?], upper: [$($upper:literal),* $(,)?]) => {
        /// # Safety
        /// As [`amx_bf16`], for a strip with all columns, for which the registers have their shapes.
        unsafe fn $name(depth: Depth, left: Left, right: Right, tile: Tile) {
            debug_assert!(depth.words.is_multiple_of($planes * SIDE), "whole rows of registers");
            // Pointers past the last row are computed, not read.
            let lower = left.words.wrapping_add(SIDE * left.stride);
            let out_lower = tile.values.wrapping_add(SIDE * tile.stride);
            // SAFETY: the rows and the panel hold `words` words each, whole rows of registers; the
            // shapes leave out rows that the tile lacks, and branches the registers without rows.
            unsafe {
                asm!(
                    "test {accumulate:e}, {accumulate:e}",
                    "jnz 20f",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "cmp {rows}, 16",
                    "jbe 30f",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "jmp 40f",
                    "20:",
                    "tileloadd tmm0, [{out} + {out_stride}]",
                    "tileloadd tmm1, [{out} + {out_stride} + 64]",
                    "cmp {rows}, 16",
                    "jbe 30f",
                    "tileloadd tmm2, [{out_lower} + {out_stride}]",
                    "tileloadd tmm3, [{out_lower} + {out_stride} + 64]",
                    "40:",
                    $($both,)*
                    "add {a}, {a_step}",
                    "add {lower}, {a_step}",
                    "add {b}, {b_step}",
                    "dec {steps}",
                    "jnz 40b",
                    "tilestored [{out} + {out_stride}], tmm0",
                    "tilestored [{out} + {out_stride} + 64], tmm1",
                    "tilestored [{out_lower} + {out_stride}], tmm2",
                    "tilestored [{out_lower} + {out_stride} + 64], tmm3",
                    "jmp 50f",
                    "30:",
                    $($upper,)*
                    "add {a}, {a_step}",
                    "add {b}, {b_step}",
                    "dec {steps}",
                    "jnz 30b",
                    "tilestored [{out} + {out_stride}], tmm0",
                    "tilestored [{out} + {out_stride} + 64], tmm1",
                    "50:",
                    accumulate = in(reg) u32::from(tile.accumulate),
                    rows = in(reg) tile.rows,
                    a = inout(reg) left.words => _,
                    lower = inout(reg) lower => _,
                    a_stride = in(reg) left.stride * size_of::<u32>(),
                    a_step = const $planes * ROW_BYTES,
                    b = inout(reg) right.words => _,
                    b_stride = in(reg) 2 * ROW_BYTES,
                    b_step = const $planes * 2 * SIDE * ROW_BYTES,
                    out = in(reg) tile.values,
                    out_lower = in(reg) out_lower,
                    out_stride = in(reg) tile.stride * size_of::<f32>(),
                    steps = inout(reg) depth.words / ($planes * SIDE) => _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

multiply! {
    multiply_bf16, 1,
    both: [
        "tileloadd tmm6, [{b} + {b_stride}]",
        "tileloadd tmm4, [{a} + {a_stride}]",
        "tileloadd tmm7, [{b} + {b_stride} + 64]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm5, [{lower} + {a_stride}]",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tdpbf16ps tmm2, tmm5, tmm6",
        "tdpbf16ps tmm3, tmm5, tmm7",
    ],
    upper: [
        "tileloadd tmm6, [{b} + {b_stride}]",
        "tileloadd tmm4, [{a} + {a_stride}]",
        "tileloadd tmm7, [{b} + {b_stride} + 64]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tdpbf16ps tmm1, tmm4, tmm7",
    ]
}

// Planes in an order in which each product needs one new plane, the smaller products first.
multiply! {
    multiply_f32, 3,
    both: [
        // Left 0, right 2.
        "tileloadd tmm6, [{b} + {b_stride} + 4096]",
        "tileloadd tmm4, [{a} + {a_stride}]",
        "tileloadd tmm7, [{b} + {b_stride} + 4160]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm5, [{lower} + {a_stride}]",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tdpbf16ps tmm2, tmm5, tmm6",
        "tdpbf16ps tmm3, tmm5, tmm7",
        // Left 0, right 1.
        "tileloadd tmm6, [{b} + {b_stride} + 2048]",
        "tileloadd tmm7, [{b} + {b_stride} + 2112]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tdpbf16ps tmm2, tmm5, tmm6",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tdpbf16ps tmm3, tmm5, tmm7",
        // Left 1, right 1.
        "tileloadd tmm4, [{a} + {a_stride} + 64]",
        "tileloadd tmm5, [{lower} + {a_stride} + 64]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tdpbf16ps tmm2, tmm5, tmm6",
        "tdpbf16ps tmm3, tmm5, tmm7",
        // Left 1, right 0.
        "tileloadd tmm6, [{b} + {b_stride}]",
        "tileloadd tmm7, [{b} + {b_stride} + 64]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tdpbf16ps tmm2, tmm5, tmm6",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tdpbf16ps tmm3, tmm5, tmm7",
        // Left 2, right 0.
        "tileloadd tmm4, [{a} + {a_stride} + 128]",
        "tileloadd tmm5, [{lower} + {a_stride} + 128]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tdpbf16ps tmm2, tmm5, tmm6",
        "tdpbf16ps tmm3, tmm5, tmm7",
        // Left 0, right 0.
        "tileloadd tmm4, [{a} + {a_stride}]",
        "tileloadd tmm5, [{lower} + {a_stride}]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tdpbf16ps tmm2, tmm5, tmm6",
        "tdpbf16ps tmm3, tmm5, tmm7",
    ],
    upper: [
        // The same without the lower half.
        "tileloadd tmm6, [{b} + {b_stride} + 4096]",
        "tileloadd tmm4, [{a} + {a_stride}]",
        "tileloadd tmm7, [{b} + {b_stride} + 4160]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tileloadd tmm6, [{b} + {b_stride} + 2048]",
        "tileloadd tmm7, [{b} + {b_stride} + 2112]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tileloadd tmm4, [{a} + {a_stride} + 64]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tileloadd tmm6, [{b} + {b_stride}]",
        "tileloadd tmm7, [{b} + {b_stride} + 64]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tileloadd tmm4, [{a} + {a_stride} + 128]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tileloadd tmm4, [{a} + {a_stride}]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tdpbf16ps tmm1, tmm4, tmm7",
    ]
}
