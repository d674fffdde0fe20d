//! The commonest formats with vectors of 8 (AVX2) or 16 (AVX-512) values, to the same bits as the
//! portable decoders. The compiler unrolls those into single values where a block is small.

use std::arch::x86_64::*;

use candle_core::quantized::GgmlDType;

use super::{K, each_block, field, scale_and_min};
use crate::kernels::isa::{InstructionSet, Isa};

/// Decodes whole blocks; false where this format or these instructions have no decoder here.
pub(super) fn decode(isa: Isa, format: GgmlDType, bytes: &[u8], out: &mut [f32]) -> bool {
    match isa.set() {
        // SAFETY: an `Isa` exists only where its instructions do.
        InstructionSet::Avx2 => unsafe { avx2::decode(format, bytes, out) },
        // SAFETY: as above.
        _ if isa.has_avx512() => unsafe { avx512::decode(format, bytes, out) },
        _ => false,
    }
}

/// Decodes whole blocks to bf16, rounded to the nearest, ties to even; false where this format or these
/// instructions have no decoder here.
pub(super) fn decode_bf16(isa: Isa, format: GgmlDType, bytes: &[u8], out: &mut [u16]) -> bool {
    fetch_ahead(bytes);
    // SAFETY: an `Isa` exists only where its instructions do.
    isa.has_avx512_bf16() && unsafe { avx512_bf16::decode(format, bytes, out) }
}

/// Asks for the bytes that lie some rows on, which are likely to be wanted next: decoding is faster than
/// memory answers, and the processor by itself looks no further than the next page.
fn fetch_ahead(bytes: &[u8]) {
    const AHEAD: usize = 4096;
    for line in (0..bytes.len()).step_by(64) {
        let address = bytes.as_ptr().wrapping_add(AHEAD + line);
        // SAFETY: a hint, which reads nothing: any address will do.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }
}

/// 16 values: `scale · byte`.
#[target_feature(enable = "avx2")]
fn scaled_256(bytes: __m128i, scale: f32) -> [__m256; 2] {
    let scale = _mm256_set1_ps(scale);
    [bytes, _mm_srli_si128::<8>(bytes)]
        .map(|bytes| _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)), scale))
}

/// Writes `scale · byte + offset` for 16 signed bytes, rounded twice.
#[target_feature(enable = "avx2")]
fn affine_256(bytes: __m128i, scale: f32, offset: f32, out: &mut [f32; 16]) {
    let offset = _mm256_set1_ps(offset);
    for (values, out) in scaled_256(bytes, scale).into_iter().zip(out.as_chunks_mut::<8>().0) {
        // SAFETY: `out` is 8 values.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), _mm256_add_ps(values, offset)) };
    }
}

/// As [`affine_256`].
#[target_feature(enable = "avx512f")]
fn affine_512(bytes: __m128i, scale: f32, offset: f32, out: &mut [f32; 16]) {
    let values = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
    let scaled = _mm512_mul_ps(values, _mm512_set1_ps(scale));
    // SAFETY: `out` is 16 values.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), _mm512_add_ps(scaled, _mm512_set1_ps(offset))) };
}

/// As [`affine_256`], then rounded to bf16.
#[target_feature(enable = "avx512f,avx512bf16")]
fn affine_bf16(bytes: __m128i, scale: f32, offset: f32, out: &mut [u16; 16]) {
    let values = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
    let scaled = _mm512_mul_ps(values, _mm512_set1_ps(scale));
    let rounded = _mm512_cvtneps_pbh(_mm512_add_ps(scaled, _mm512_set1_ps(offset)));
    // SAFETY: a vector of 16 bf16 values has the size of `out` and no invalid bits.
    unsafe { out.as_mut_ptr().cast::<__m256bh>().write_unaligned(rounded) };
}

/// Two numbers in half precision.
#[target_feature(enable = "f16c,sse3")]
fn halves(bytes: &[u8; 4]) -> (f32, f32) {
    let values = _mm_cvtph_ps(_mm_cvtsi32_si128(i32::from_le_bytes(*bytes)));
    (_mm_cvtss_f32(values), _mm_cvtss_f32(_mm_movehdup_ps(values)))
}

/// A number in half precision.
#[target_feature(enable = "f16c,sse3")]
fn half(&[low, high]: &[u8; 2]) -> f32 {
    halves(&[low, high, 0, 0]).0
}

/// 16 bytes.
#[target_feature(enable = "sse2")]
fn load(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: any 16 bytes may be loaded.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// Bits of each byte from `shift` on, as far as `mask` reaches. Bits of a neighbour that the shift
/// brings along are above the mask where `mask` has at most `8 − shift` bits.
#[target_feature(enable = "sse2")]
fn bits(bytes: __m128i, shift: usize, mask: i8) -> __m128i {
    let shifted = _mm_srl_epi16(bytes, _mm_cvtsi32_si128(shift as i32));
    _mm_and_si128(shifted, _mm_set1_epi8(mask))
}

/// Defines the decoders of one family of instructions to one type of values.
macro_rules! decoders {
    ($family:ident, $features:literal, $affine:ident, $value:ty) => {
        mod $family {
            use super::*;

            #[target_feature(enable = $features)]
            pub(super) fn decode(format: GgmlDType, bytes: &[u8], out: &mut [$value]) -> bool {
                match format {
                    GgmlDType::Q4_0 => each_block!(q4_0, bytes, out),
                    GgmlDType::Q4_1 => each_block!(q4_1, bytes, out),
                    GgmlDType::Q8_0 => each_block!(q8_0, bytes, out),
                    GgmlDType::Q4K => each_block!(q4_k, bytes, out),
                    GgmlDType::Q6K => each_block!(q6_k, bytes, out),
                    _ => return false,
                }
                true
            }

            /// See [`super::super::q4_0`].
            #[target_feature(enable = $features)]
            fn q4_0(block: &[u8; 18], out: &mut [$value; 32]) {
                let (scale, packed) = (half(field(block, 0)), load(field(block, 2)));
                for (half, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
                    let values = _mm_sub_epi8(bits(packed, 4 * half, 15), _mm_set1_epi8(8));
                    $affine(values, scale, -0.0, out);
                }
            }

            /// See [`super::super::q4_1`].
            #[target_feature(enable = $features)]
            fn q4_1(block: &[u8; 20], out: &mut [$value; 32]) {
                let (scale, min) = halves(field(block, 0));
                let packed = load(field(block, 4));
                for (half, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
                    $affine(bits(packed, 4 * half, 15), scale, min, out);
                }
            }

            /// See [`super::super::q8_0`].
            #[target_feature(enable = $features)]
            fn q8_0(block: &[u8; 34], out: &mut [$value; 32]) {
                let scale = half(field(block, 0));
                for (half, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
                    $affine(load(field(block, 2 + 16 * half)), scale, -0.0, out);
                }
            }

            /// See [`super::super::q4_k`].
            #[target_feature(enable = $features)]
            fn q4_k(block: &[u8; 144], out: &mut [$value; K]) {
                let (scale, min) = halves(field(block, 0));
                for (part, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
                    // Each group of 32 is two parts; two groups share 32 bytes.
                    let group = part / 2;
                    let (s, m) = scale_and_min(field(block, 4), group);
                    let packed = load(field(block, 16 + group / 2 * 32 + part % 2 * 16));
                    $affine(bits(packed, group % 2 * 4, 15), scale * s, -(min * m), out);
                }
            }

            /// See [`super::super::q6_k`].
            #[target_feature(enable = $features)]
            fn q6_k(block: &[u8; 210], out: &mut [$value; K]) {
                let scales: &[u8; 16] = field(block, 192);
                let scale = half(field(block, 208));
                for (group, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
                    let (half, run, side) = (group / 8, group % 8 / 2, group % 2);
                    let low = load(field(block, half * 64 + run % 2 * 32 + side * 16));
                    let high = load(field(block, 128 + half * 32 + side * 16));
                    let high = _mm_slli_epi16::<4>(bits(high, run * 2, 3));
                    let values = _mm_or_si128(bits(low, run / 2 * 4, 15), high);
                    let values = _mm_sub_epi8(values, _mm_set1_epi8(32));
                    $affine(values, scale * f32::from(scales[group] as i8), -0.0, out);
                }
            }
        }
    };
}

decoders!(avx2, "avx2,fma,f16c", affine_256, f32);
decoders!(avx512, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c", affine_512, f32);
decoders!(
    avx512_bf16,
    "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c",
    affine_bf16,
    u16
);
