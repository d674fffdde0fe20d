//! Micro-kernels of 64-bit ARM.

use std::arch::aarch64::*;
use std::arch::asm;

use super::encode::{Depth, Layout};
use super::micro::{Left, MicroKernel, Right, Tile, with_rows};

/// NEON: 6 × 16 sums fill 24 of 32 registers.
pub(super) static NEON_F32: MicroKernel = MicroKernel::new(6, 16, Layout::F32, 256, neon_f32);

/// NEON with products of bf16 pairs.
pub(super) static NEON_BF16: MicroKernel = MicroKernel::new(6, 16, Layout::Bf16, 512, neon_bf16);

/// Stores the sums of a tile, or adds them.
///
/// # Safety
/// The tile must have `ROWS` rows, and its values may be written.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn store<const ROWS: usize>(tile: Tile, sums: &[[float32x4_t; 4]; ROWS]) {
    for (row, sums) in sums.iter().enumerate() {
        let mut values = [0.0f32; 16];
        for (quarter, &sum) in sums.iter().enumerate() {
            // SAFETY: each quarter is four of the 16 values.
            unsafe { vst1q_f32(values.as_mut_ptr().add(quarter * 4), sum) };
        }
        // SAFETY: the tile has this row, of `cols` values.
        let out = unsafe {
            std::slice::from_raw_parts_mut(tile.values.add(row * tile.stride), tile.cols)
        };
        for (out, value) in out.iter_mut().zip(values) {
            *out = if tile.accumulate { *out + value } else { value };
        }
    }
}

/// # Safety
/// As [`Run`](super::micro::Run).
#[target_feature(enable = "neon")]
unsafe fn neon_f32(depth: Depth, left: Left, right: Right, tile: Tile) {
    // SAFETY: the caller's promises are passed on.
    unsafe { with_rows!(neon_f32_rows, tile, (depth, left, right, tile), 1 2 3 4 5 6) }
}

/// # Safety
/// As [`neon_f32`], with a tile of `ROWS` rows.
#[target_feature(enable = "neon")]
unsafe fn neon_f32_rows<const ROWS: usize>(depth: Depth, left: Left, right: Right, tile: Tile) {
    let mut sums = [[vdupq_n_f32(0.0); 4]; ROWS];
    // SAFETY: the rows and the panel hold `words` words each.
    unsafe {
        let (a, b) = (left.words.cast::<f32>(), right.words.cast::<f32>());
        for word in 0..depth.words {
            let b = vld1q_f32_x4(b.add(word * 16));
            let b = [b.0, b.1, b.2, b.3];
            for (row, sums) in sums.iter_mut().enumerate() {
                let a = *a.add(row * left.stride + word);
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = vfmaq_n_f32(*sum, b, a);
                }
            }
        }
        store(tile, &sums);
    }
}

/// # Safety
/// As [`Run`](super::micro::Run); needs FEAT_BF16.
#[target_feature(enable = "neon,bf16")]
unsafe fn neon_bf16(depth: Depth, left: Left, right: Right, tile: Tile) {
    // SAFETY: the caller's promises are passed on.
    unsafe { with_rows!(neon_bf16_rows, tile, (depth, left, right, tile), 1 2 3 4 5 6) }
}

/// # Safety
/// As [`neon_bf16`], with a tile of `ROWS` rows.
#[target_feature(enable = "neon,bf16")]
unsafe fn neon_bf16_rows<const ROWS: usize>(depth: Depth, left: Left, right: Right, tile: Tile) {
    let mut sums = [[vdupq_n_f32(0.0); 4]; ROWS];
    // SAFETY: the rows and the panel hold `words` words each. BFDOT only reads and writes the
    // registers it names; stable Rust has no function for it yet.
    unsafe {
        for word in 0..depth.words {
            let b = vld1q_u32_x4(right.words.add(word * 16));
            let b = [b.0, b.1, b.2, b.3];
            for (row, sums) in sums.iter_mut().enumerate() {
                let a = vdupq_n_u32(*left.words.add(row * left.stride + word));
                for (sum, b) in sums.iter_mut().zip(b) {
                    asm!(
                        "bfdot {sum:v}.4s, {a:v}.8h, {b:v}.8h",
                        sum = inout(vreg) *sum,
                        a = in(vreg) a,
                        b = in(vreg) b,
                        options(pure, nomem, nostack, preserves_flags),
                    );
                }
            }
        }
        store(tile, &sums);
    }
}
