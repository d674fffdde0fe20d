//! Micro-kernels of x86-64.

use std::arch::x86_64::*;

use super::encode::{Depth, Layout};
use super::micro::{Left, MicroKernel, Right, Tile, with_rows};

/// AVX2 with FMA: 6 × 16 sums fill 12 of 16 registers.
pub(super) static AVX2_F32: MicroKernel = MicroKernel::new(6, 16, Layout::F32, 384, avx2_f32);

/// AVX-512: 12 × 32 sums fill 24 of 32 registers.
pub(super) static AVX512_F32: MicroKernel = MicroKernel::new(12, 32, Layout::F32, 256, avx512_f32);

/// AVX-512 with products of bf16 pairs.
pub(super) static AVX512_BF16: MicroKernel =
    MicroKernel::new(12, 32, Layout::Bf16, 512, avx512_bf16);

/// AVX-512 with sums of products of 16-bit pairs (VNNI).
pub(super) static AVX512_FIXED16: MicroKernel =
    MicroKernel::new(12, 32, Layout::Fixed16, 512, avx512_fixed16);

/// # Safety
/// As [`Run`](super::micro::Run); needs AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2_f32(depth: Depth, left: Left, right: Right, tile: Tile) {
    // SAFETY: the caller's promises are passed on.
    unsafe { with_rows!(avx2_f32_rows, tile, (depth, left, right, tile), 1 2 3 4 5 6) }
}

/// # Safety
/// As [`avx2_f32`], with a tile of `ROWS` rows.
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2_f32_rows<const ROWS: usize>(depth: Depth, left: Left, right: Right, tile: Tile) {
    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
    // SAFETY: the rows and the panel hold `words` words each.
    unsafe {
        let (a, b) = (left.words.cast::<f32>(), right.words.cast::<f32>());
        for word in 0..depth.words {
            let b0 = _mm256_loadu_ps(b.add(word * 16));
            let b1 = _mm256_loadu_ps(b.add(word * 16 + 8));
            for (row, sums) in sums.iter_mut().enumerate() {
                let a = _mm256_set1_ps(*a.add(row * left.stride + word));
                sums[0] = _mm256_fmadd_ps(a, b0, sums[0]);
                sums[1] = _mm256_fmadd_ps(a, b1, sums[1]);
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        for (half, &sum) in sums.iter().enumerate() {
            let lanes = tile.cols.saturating_sub(half * 8).min(8);
            let number = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes as i32), number);
            let out = tile.values.wrapping_add(row * tile.stride + half * 8);
            // SAFETY: the mask leaves out the lanes beyond the tile's columns.
            unsafe {
                let sum = if tile.accumulate {
                    _mm256_add_ps(_mm256_maskload_ps(out, mask), sum)
                } else {
                    sum
                };
                _mm256_maskstore_ps(out, mask, sum);
            }
        }
    }
}

/// The lanes of the left and the right 16 columns that a tile has.
#[target_feature(enable = "avx512f")]
fn masks(cols: usize) -> [__mmask16; 2] {
    let all = ((1u64 << cols) - 1) as u32;
    [all as u16, (all >> 16) as u16]
}

/// Fetches the cache lines of a tile, so that they are there when its sums are.
#[inline]
#[target_feature(enable = "avx512f")]
fn prefetch(tile: Tile) {
    for row in 0..tile.rows {
        let start = tile.values.wrapping_add(row * tile.stride);
        for at in [0, 16, tile.cols - 1] {
            _mm_prefetch::<_MM_HINT_ET0>(start.wrapping_add(at).cast());
        }
    }
}

/// Stores the sums of a tile, or adds them.
///
/// # Safety
/// The tile must have `ROWS` rows, and its values may be written.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store<const ROWS: usize>(tile: Tile, sums: &[[__m512; 2]; ROWS]) {
    let masks = masks(tile.cols);
    for (row, sums) in sums.iter().enumerate() {
        for half in 0..2 {
            let out = tile.values.wrapping_add(row * tile.stride + half * 16);
            // SAFETY: the mask leaves out the lanes beyond the tile's columns.
            unsafe {
                let sum = if tile.accumulate {
                    _mm512_add_ps(_mm512_maskz_loadu_ps(masks[half], out), sums[half])
                } else {
                    sums[half]
                };
                _mm512_mask_storeu_ps(out, masks[half], sum);
            }
        }
    }
}

/// # Safety
/// As [`Run`](super::micro::Run); needs AVX-512 F.
#[target_feature(enable = "avx512f")]
unsafe fn avx512_f32(depth: Depth, left: Left, right: Right, tile: Tile) {
    // SAFETY: the caller's promises are passed on.
    unsafe {
        with_rows!(avx512_f32_rows, tile, (depth, left, right, tile), 1 2 3 4 5 6 7 8 9 10 11 12)
    }
}

/// # Safety
/// As [`avx512_f32`], with a tile of `ROWS` rows.
#[target_feature(enable = "avx512f")]
unsafe fn avx512_f32_rows<const ROWS: usize>(depth: Depth, left: Left, right: Right, tile: Tile) {
    prefetch(tile);
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    // SAFETY: the rows and the panel hold `words` words each.
    unsafe {
        let (a, b) = (left.words.cast::<f32>(), right.words.cast::<f32>());
        for word in 0..depth.words {
            let b0 = _mm512_loadu_ps(b.add(word * 32));
            let b1 = _mm512_loadu_ps(b.add(word * 32 + 16));
            for (row, sums) in sums.iter_mut().enumerate() {
                let a = _mm512_set1_ps(*a.add(row * left.stride + word));
                sums[0] = _mm512_fmadd_ps(a, b0, sums[0]);
                sums[1] = _mm512_fmadd_ps(a, b1, sums[1]);
            }
        }
        store(tile, &sums);
    }
}

/// # Safety
/// As [`Run`](super::micro::Run); needs AVX-512 F and BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn avx512_bf16(depth: Depth, left: Left, right: Right, tile: Tile) {
    // SAFETY: the caller's promises are passed on.
    unsafe {
        with_rows!(avx512_bf16_rows, tile, (depth, left, right, tile), 1 2 3 4 5 6 7 8 9 10 11 12)
    }
}

/// # Safety
/// As [`avx512_bf16`], with a tile of `ROWS` rows.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn avx512_bf16_rows<const ROWS: usize>(depth: Depth, left: Left, right: Right, tile: Tile) {
    prefetch(tile);
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    // SAFETY: the rows and the panel hold `words` words each; vectors of 16 words and of 32 bf16
    // values have the same size and no invalid bits.
    unsafe {
        let pairs = |words: __m512i| std::mem::transmute::<__m512i, __m512bh>(words);
        for word in 0..depth.words {
            let b0 = pairs(_mm512_loadu_si512(right.words.add(word * 32).cast()));
            let b1 = pairs(_mm512_loadu_si512(right.words.add(word * 32 + 16).cast()));
            for (row, sums) in sums.iter_mut().enumerate() {
                let a = *left.words.add(row * left.stride + word);
                let a = pairs(_mm512_set1_epi32(a.cast_signed()));
                sums[0] = _mm512_dpbf16_ps(sums[0], a, b0);
                sums[1] = _mm512_dpbf16_ps(sums[1], a, b1);
            }
        }
        store(tile, &sums);
    }
}

/// # Safety
/// As [`Run`](super::micro::Run); needs AVX-512 F and VNNI.
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn avx512_fixed16(depth: Depth, left: Left, right: Right, tile: Tile) {
    // SAFETY: the caller's promises are passed on.
    unsafe {
        with_rows!(
            avx512_fixed16_rows, tile, (depth, left, right, tile), 1 2 3 4 5 6 7 8 9 10 11 12
        )
    }
}

/// # Safety
/// As [`avx512_fixed16`], with a tile of `ROWS` rows.
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn avx512_fixed16_rows<const ROWS: usize>(
    depth: Depth,
    left: Left,
    right: Right,
    tile: Tile,
) {
    prefetch(tile);
    let masks = masks(tile.cols);
    for run in 0..depth.runs {
        let mut sums = [[_mm512_setzero_si512(); 2]; ROWS];
        let words = run * depth.run..((run + 1) * depth.run).min(depth.words);
        // SAFETY: the rows and the panel hold `words` words and `runs` scales each; the masks leave
        // out the lanes beyond the tile's columns.
        unsafe {
            for word in words {
                let b0 = _mm512_loadu_si512(right.words.add(word * 32).cast());
                let b1 = _mm512_loadu_si512(right.words.add(word * 32 + 16).cast());
                for (row, sums) in sums.iter_mut().enumerate() {
                    let a = *left.words.add(row * left.stride + word);
                    let a = _mm512_set1_epi32(a.cast_signed());
                    sums[0] = _mm512_dpwssd_epi32(sums[0], a, b0);
                    sums[1] = _mm512_dpwssd_epi32(sums[1], a, b1);
                }
            }
            let scales = [
                _mm512_loadu_ps(right.scales.add(run * 32)),
                _mm512_loadu_ps(right.scales.add(run * 32 + 16)),
            ];
            for (row, sums) in sums.iter().enumerate() {
                let scale = _mm512_set1_ps(*left.scales.add(row * depth.runs + run));
                for half in 0..2 {
                    let out = tile.values.wrapping_add(row * tile.stride + half * 16);
                    let scale = _mm512_mul_ps(scale, scales[half]);
                    let sum = _mm512_cvtepi32_ps(sums[half]);
                    let sum = if tile.accumulate || run > 0 {
                        _mm512_fmadd_ps(sum, scale, _mm512_maskz_loadu_ps(masks[half], out))
                    } else {
                        _mm512_mul_ps(sum, scale)
                    };
                    _mm512_mask_storeu_ps(out, masks[half], sum);
                }
            }
        }
    }
}

/// Turns a 16 × 16 block of words: word `(i, j)`, at `i·stride + j`, goes to `j·out_stride + i`.
///
/// # Safety
/// Both blocks must be inside their allocations, apart; needs AVX-512 F.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn transpose_16x16(
    words: *const u32,
    stride: usize,
    out: *mut u32,
    out_stride: usize,
) {
    let mut a = [_mm512_setzero_si512(); 16];
    for (i, a) in a.iter_mut().enumerate() {
        // SAFETY: the block has 16 rows of 16 words.
        *a = unsafe { _mm512_loadu_si512(words.add(i * stride).cast()) };
    }
    // Interleave single words, then pairs, then quarters of a vector twice.
    let mut b = a;
    for i in 0..8 {
        b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
    }
    for i in 0..4 {
        let four = [b[4 * i], b[4 * i + 1], b[4 * i + 2], b[4 * i + 3]];
        a[4 * i] = _mm512_unpacklo_epi64(four[0], four[2]);
        a[4 * i + 1] = _mm512_unpackhi_epi64(four[0], four[2]);
        a[4 * i + 2] = _mm512_unpacklo_epi64(four[1], four[3]);
        a[4 * i + 3] = _mm512_unpackhi_epi64(four[1], four[3]);
    }
    // Now quarter q of a[4g + c] holds column 4q + c of rows 4g..4g + 4.
    for c in 0..4 {
        let low = _mm512_shuffle_i32x4::<0b10_00_10_00>(a[c], a[4 + c]);
        let high = _mm512_shuffle_i32x4::<0b11_01_11_01>(a[c], a[4 + c]);
        let low_2 = _mm512_shuffle_i32x4::<0b10_00_10_00>(a[8 + c], a[12 + c]);
        let high_2 = _mm512_shuffle_i32x4::<0b11_01_11_01>(a[8 + c], a[12 + c]);
        b[c] = _mm512_shuffle_i32x4::<0b10_00_10_00>(low, low_2);
        b[4 + c] = _mm512_shuffle_i32x4::<0b10_00_10_00>(high, high_2);
        b[8 + c] = _mm512_shuffle_i32x4::<0b11_01_11_01>(low, low_2);
        b[12 + c] = _mm512_shuffle_i32x4::<0b11_01_11_01>(high, high_2);
    }
    for (j, b) in b.iter().enumerate() {
        // SAFETY: the block has 16 rows of 16 words.
        unsafe { _mm512_storeu_si512(out.add(j * out_stride).cast(), *b) };
    }
}

/// The largest magnitude, as bits.
#[target_feature(enable = "avx512f")]
pub(super) fn largest_magnitude(values: &[f32]) -> u32 {
    let mut largest = [_mm512_setzero_si512(); 2];
    let magnitudes = _mm512_set1_epi32(0x7fff_ffff);
    for (i, values) in values.chunks(16).enumerate() {
        // SAFETY: the mask leaves out what is beyond the values.
        let bits = unsafe { _mm512_maskz_loadu_epi32(first(values.len()), values.as_ptr().cast()) };
        // Two chains, so that one need not wait for the other.
        largest[i % 2] = _mm512_max_epu32(largest[i % 2], _mm512_and_si512(bits, magnitudes));
    }
    _mm512_reduce_max_epu32(_mm512_max_epu32(largest[0], largest[1]))
}

/// `value · inverse` as a 16-bit integer for each value, as `fixed16` does, and 0 for an odd last half.
///
/// # Panics
/// When there are fewer halves than values.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn encode_fixed16(values: &[f32], inverse: f32, halves: &mut [u16]) {
    assert!(values.len() <= halves.len(), "room for {} values", values.len());
    let inverse = _mm512_set1_ps(inverse);
    let round = _mm512_set1_ps(12_582_912.0);
    for (values, halves) in values.chunks(16).zip(halves.chunks_mut(16)) {
        // SAFETY: the mask leaves out what is beyond the values.
        let value = unsafe { _mm512_maskz_loadu_ps(first(values.len()), values.as_ptr()) };
        let rounded = _mm512_castps_si512(_mm512_fmadd_ps(value, inverse, round));
        let encoded = _mm512_cvtepi32_epi16(rounded);
        let even = first(values.len().next_multiple_of(2).min(halves.len()));
        // SAFETY: the mask leaves out what is beyond the halves.
        unsafe { _mm256_mask_storeu_epi16(halves.as_mut_ptr().cast(), even, encoded) };
    }
}

/// `value · factor` as `PLANES` bf16 values that sum up to it, 32 neighbours of each plane after the
/// other (a single plane therefore side by side), and 0 in the halves after the last value.
///
/// # Panics
/// When there are fewer halves than whole runs of 32 neighbours take, or than values of a single plane.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) fn encode_planes<const PLANES: usize>(values: &[f32], factor: f32, halves: &mut [u16]) {
    assert!(values.len() <= halves.len() / PLANES, "room for {} values", values.len());
    let tiles = halves.chunks_mut(PLANES * 32);
    let factor = _mm512_set1_ps(factor);
    for (values, halves) in values.chunks(32).zip(tiles) {
        for side in [0, 16] {
            let values = &values[side.min(values.len())..];
            // SAFETY: the mask leaves out what is beyond the values.
            let value = unsafe { _mm512_maskz_loadu_ps(first(values.len()), values.as_ptr()) };
            let mut rest = _mm512_mul_ps(value, factor);
            for plane in 0..PLANES {
                // SAFETY: vectors of 16 bf16 values and of 16 halves have the same size and no
                // invalid bits.
                let rounded =
                    unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(rest)) };
                let at = (plane * 32 + side).min(halves.len());
                let out = &mut halves[at..];
                // SAFETY: the mask leaves out what is beyond the halves.
                unsafe {
                    let mask = first(out.len());
                    _mm256_mask_storeu_epi16(out.as_mut_ptr().cast(), mask, rounded);
                }
                let widened = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(rounded));
                rest = _mm512_sub_ps(rest, _mm512_castsi512_ps(widened));
            }
        }
    }
}

/// A mask of the first `count` of 16 lanes.
fn first(count: usize) -> u16 {
    ((1_u32 << count.min(16)) - 1) as u16
}
