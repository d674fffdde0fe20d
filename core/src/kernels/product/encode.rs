//! Factors in the form a micro-kernel reads: 32-bit words, one or two values each.
//!
//! - [`Layout::F32`]: a word is a value.
//! - [`Layout::Bf16`]: a word is two neighbours in depth, rounded to bf16, the first in the low half.
//! - [`Layout::Tiles`]: words as those of bf16, for tile registers: 16 words of 32 neighbours, filled up
//!   with zeros, and so for each plane. The first plane is the value rounded to bf16, the next one what
//!   is left of it, rounded again; three planes are all of an f32 value.
//! - [`Layout::Fixed16`]: a word is two neighbours in depth as 16-bit integers. Each lane is divided
//!   into runs of at most [`RUN`] values, each of which has a scale of its own: its largest
//!   magnitude becomes [`LARGEST`]. So a value is off by at most 1/8190 of the largest of its run,
//!   which for values of similar size is less than bf16's 1/512 of each value, and the sums of
//!   products over a run are exact 32-bit integers.
//!
//! Rows of the left factor stay rows; a panel of the right one is stored word by word across its
//! lanes.

use std::ops::Range;

use rayon::prelude::*;

use super::micro::MicroKernel;
use super::operand::{Operand, View};
use crate::kernels::isa::{Isa, multiversion};
use crate::kernels::lanes::{LANES, mul_add, reduce};

/// Most values of a [`Layout::Fixed16`] run.
pub(super) const RUN: usize = 128;

/// Largest integer of [`Layout::Fixed16`]: a run's products sum to at most `RUN·LARGEST²`, which is
/// below `2³¹`.
pub(super) const LARGEST: f32 = 4095.0;

/// Values in depth of a tile register, and the words they take.
const TILE_DEPTH: usize = 32;
const TILE_WORDS: usize = 16;

/// Magnitudes below this are encoded as zero, since their inverse overflows.
const SMALLEST: f32 = 1e-34;

/// How values lie in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    F32,
    Bf16,
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "no kernel of it"))]
    Tiles {
        planes: usize,
    },
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "no kernel of it"))]
    Fixed16,
}

impl Layout {
    /// Words that `depth` values take.
    pub(super) fn words(self, depth: usize) -> usize {
        match self {
            Self::F32 => depth,
            Self::Bf16 | Self::Fixed16 => depth.div_ceil(2),
            Self::Tiles { planes } => depth.div_ceil(TILE_DEPTH) * TILE_WORDS * planes,
        }
    }

    /// Whether a lane is its values rounded to bf16, side by side.
    fn is_single_bf16(self) -> bool {
        matches!(self, Self::Bf16 | Self::Tiles { planes: 1 })
    }

    /// Words of a run with a common scale, in a block of `depth` values.
    fn run_words(self, depth: usize) -> usize {
        match self {
            Self::F32 | Self::Bf16 | Self::Tiles { .. } => self.words(depth),
            Self::Fixed16 => depth.div_ceil(depth.div_ceil(RUN)).div_ceil(2),
        }
    }
}

/// How a block of the depth is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Depth {
    /// Words of a lane.
    pub(super) words: usize,
    /// Words that share a scale; the last run may be shorter.
    pub(super) run: usize,
    /// Runs: `words / run`, rounded up.
    pub(super) runs: usize,
}

impl Depth {
    fn new(layout: Layout, depth: usize) -> Self {
        let (words, run) = (layout.words(depth), layout.run_words(depth));
        Self { words, run, runs: words.div_ceil(run) }
    }
}

/// A cache line of words.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; 16]);

/// Words whose first one starts a cache line.
#[derive(Debug, Default)]
struct Words(Vec<Line>);

impl Words {
    /// Makes room for `len` words; their content is arbitrary.
    fn resize(&mut self, len: usize) {
        self.0.resize(len.div_ceil(16), Line([0; 16]));
    }

    fn as_slice(&self) -> &[u32] {
        // SAFETY: a `Line` is 16 words without padding.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * 16) }
    }

    fn as_mut_slice(&mut self) -> &mut [u32] {
        // SAFETY: as above; every bit pattern is a word.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * 16) }
    }
}

/// Encoded rows of the left factor.
#[derive(Debug, Default)]
pub(super) struct LeftBlock {
    words: Words,
    scales: Vec<f32>,
    depth: Depth,
    stride: usize,
}

impl LeftBlock {
    /// Replaces the content by `factor` times these rows and depths of `a`.
    pub(super) fn encode(
        &mut self,
        isa: Isa,
        layout: Layout,
        a: View,
        rows: Range<usize>,
        depths: Range<usize>,
        factor: f32,
    ) {
        let depth = Depth::new(layout, depths.len());
        // An odd number of cache lines, so that rows do not compete for the same cache sets.
        let stride = (depth.words.div_ceil(16) | 1) * 16;
        (self.depth, self.stride) = (depth, stride);
        self.words.resize(rows.len() * stride);
        self.scales.resize(rows.len() * depth.runs, 0.0);
        self.words.as_mut_slice()[..rows.len() * stride]
            .par_chunks_mut(stride)
            .zip(self.scales.par_chunks_mut(depth.runs))
            .zip(rows)
            .with_min_len((1 << 13) / depths.len() + 1)
            .for_each_init(Vec::new, |gathered, ((words, scales), row)| {
                gathered.resize(depths.len(), 0.0);
                let values = a.row(row, depths.clone(), gathered);
                encode_row(isa, layout, values, factor, depth, &mut words[..depth.words], scales);
            });
    }

    /// How each row is divided.
    pub(super) fn depth(&self) -> Depth {
        self.depth
    }

    /// Words from one row to the next.
    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    /// The words and the scales of these rows.
    pub(super) fn rows(&self, rows: Range<usize>) -> (&[u32], &[f32]) {
        (
            &self.words.as_slice()[rows.start * self.stride..rows.end * self.stride],
            &self.scales[rows.start * self.depth.runs..rows.end * self.depth.runs],
        )
    }
}

/// Encoded panels of the right factor, and the scratch space that encoding takes.
#[derive(Debug, Default)]
pub(super) struct Panels {
    words: Words,
    scales: Vec<f32>,
    depth: Depth,
    cols: usize,
    decoded: Vec<f32>,
    rows: Words,
    row_scales: Vec<f32>,
}

impl Panels {
    /// Replaces the content by these lanes and depths of `b`.
    pub(super) fn encode(
        &mut self,
        isa: Isa,
        kernel: &MicroKernel,
        b: &Operand,
        lanes: Range<usize>,
        depths: Range<usize>,
    ) {
        let (layout, cols) = (kernel.layout, kernel.cols);
        let depth = Depth::new(layout, depths.len());
        let count = lanes.len().div_ceil(cols);
        (self.depth, self.cols) = (depth, cols);
        self.words.resize(count * depth.words * cols);
        self.scales.resize(count * depth.runs * cols, 0.0);
        let panels = lanes
            .clone()
            .step_by(cols)
            .zip(self.words.as_mut_slice().chunks_exact_mut(depth.words * cols))
            .zip(self.scales.chunks_exact_mut(depth.runs * cols));
        match b {
            Operand::Across(b) => {
                let (values, stride) =
                    b.lanes(isa, lanes.clone(), depths.clone(), &mut self.decoded);
                for ((first, words), scales) in panels {
                    let values = &values[first - lanes.start..];
                    let width = cols.min(lanes.end - first);
                    let source = Neighbours { values, stride, width, depth: depths.len() };
                    encode_across(isa, layout, &source, depth, cols, words, scales);
                }
            }
            Operand::Along(b) => {
                self.decoded.resize(depths.len(), 0.0);
                self.rows.resize(cols * depth.words);
                self.row_scales.resize(cols * depth.runs, 0.0);
                for ((first, words), scales) in panels {
                    // Lanes are encoded as rows, then the rows are turned.
                    let rows = self.rows.as_mut_slice().chunks_exact_mut(depth.words);
                    let rows = rows.zip(self.row_scales.chunks_exact_mut(depth.runs));
                    for (lane, (words, scales)) in (first..first + cols).zip(rows) {
                        if lane < lanes.end {
                            if layout.is_single_bf16() {
                                let (halves, rest) = halves(words).split_at_mut(depths.len());
                                if b.lane_bf16(isa, lane, depths.clone(), halves) {
                                    rest.fill(0);
                                    continue;
                                }
                            }
                            let values = b.lane(isa, lane, depths.clone(), &mut self.decoded);
                            encode_row(isa, layout, values, 1.0, depth, words, scales);
                        } else {
                            words.fill(0);
                            scales.fill(0.0);
                        }
                    }
                    transpose(isa, self.rows.as_slice(), depth.words, cols, words);
                    for (run, scales) in scales.chunks_exact_mut(cols).enumerate() {
                        for (lane, scale) in scales.iter_mut().enumerate() {
                            *scale = self.row_scales[lane * depth.runs + run];
                        }
                    }
                }
            }
        }
    }

    /// The words and the scales of a panel.
    pub(super) fn panel(&self, panel: usize) -> (&[u32], &[f32]) {
        let (words, scales) = (self.depth.words * self.cols, self.depth.runs * self.cols);
        (
            &self.words.as_slice()[panel * words..(panel + 1) * words],
            &self.scales[panel * scales..(panel + 1) * scales],
        )
    }
}

/// Values whose lanes are neighbours: value `k` of lane `l` is at `k·stride + l`.
struct Neighbours<'a> {
    values: &'a [f32],
    stride: usize,
    width: usize,
    depth: usize,
}

impl Neighbours<'_> {
    /// Values `k` of all lanes; zero where there is no lane or no such depth.
    #[inline(always)]
    fn row<const COLS: usize>(&self, k: usize) -> [f32; COLS] {
        let mut row = [0.0; COLS];
        if k < self.depth {
            let values = &self.values[k * self.stride..];
            match values.first_chunk::<COLS>() {
                Some(values) if self.width == COLS => row = *values,
                _ => row[..self.width].copy_from_slice(&values[..self.width]),
            }
        }
        row
    }
}

/// The nearest bf16; ties to even.
#[inline(always)]
fn bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    // Rounding up could turn the bits of a NaN into those of a number.
    if value.is_nan() { 0x7fc0 } else { rounded as u16 }
}

/// What [`bf16`] leaves of a value.
#[inline(always)]
fn remainder(value: f32) -> f32 {
    value - f32::from_bits(u32::from(bf16(value)) << 16)
}

/// `value · inverse` as a 16-bit integer. Adding 1.5·2²³ leaves it in the lowest bits of the sum.
#[inline(always)]
fn fixed16<const FMA: bool>(value: f32, inverse: f32) -> u16 {
    mul_add::<FMA>(value, inverse, 12_582_912.0).to_bits() as u16
}

/// Two neighbours in depth as a word.
#[inline(always)]
fn pair(first: u16, second: u16) -> u32 {
    u32::from(first) | u32::from(second) << 16
}

/// Words as the 16-bit values that [`pair`] would make them of, first one first.
fn halves(words: &mut [u32]) -> &mut [u16] {
    const { assert!(cfg!(target_endian = "little"), "the first half of a word is its low half") };
    // SAFETY: the same bytes; 16-bit values need no more alignment than words, and all bits are
    // valid in both.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len() * 2) }
}

/// Scale and its inverse for values of which `largest` is the largest magnitude, as bits. What is
/// not finite makes the scale, and with it all that it scales, NaN.
#[inline(always)]
fn scale_of(largest: u32) -> (f32, f32) {
    let largest = f32::from_bits(largest);
    if largest < SMALLEST {
        (0.0, 0.0)
    } else if largest.is_finite() {
        (largest / LARGEST, LARGEST / largest)
    } else {
        (f32::NAN, 0.0)
    }
}

/// The magnitude as bits: larger bits are a larger magnitude, and NaN is above all.
#[inline(always)]
fn magnitude(value: f32) -> u32 {
    value.to_bits() & 0x7fff_ffff
}

/// Encodes `factor` times the values of one lane as one row of words, all of which are written.
fn encode_row(
    isa: Isa,
    layout: Layout,
    values: &[f32],
    factor: f32,
    depth: Depth,
    words: &mut [u32],
    scales: &mut [f32],
) {
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx512() && layout == Layout::Fixed16 {
        let runs = values.chunks(2 * depth.run).zip(words.chunks_mut(depth.run));
        for ((values, words), out) in runs.zip(scales) {
            // SAFETY: the `Isa` proves the instructions.
            let largest = unsafe { super::x86_64::largest_magnitude(values) };
            let (scale, inverse) = scale_of(largest);
            *out = scale * factor;
            // SAFETY: as above.
            unsafe { super::x86_64::encode_fixed16(values, inverse, halves(words)) };
        }
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx512_bf16() {
        let halves = halves(words);
        // SAFETY: the `Isa` proves the instructions.
        unsafe {
            if layout.is_single_bf16() {
                return super::x86_64::encode_planes::<1>(values, factor, halves);
            } else if layout == (Layout::Tiles { planes: 3 }) {
                return super::x86_64::encode_planes::<3>(values, factor, halves);
            }
        }
    }
    encode_row_generic(isa, layout, values, factor, depth, words, scales);
}

multiversion! {
    fn encode_row_generic(layout: Layout, values: &[f32], factor: f32, depth: Depth, words: &mut [u32],
        scales: &mut [f32]) = encode_row_values
}

#[inline(always)]
fn encode_row_values<const FMA: bool>(
    layout: Layout,
    values: &[f32],
    factor: f32,
    depth: Depth,
    words: &mut [u32],
    scales: &mut [f32],
) {
    match layout {
        Layout::F32 => {
            for (word, value) in words.iter_mut().zip(values) {
                *word = (value * factor).to_bits();
            }
        }
        Layout::Bf16 => {
            encode_halves(values, words, |value| bf16(value * factor));
        }
        Layout::Tiles { planes } => {
            let tiles = words.chunks_exact_mut(TILE_WORDS * planes);
            for (values, words) in values.chunks(TILE_DEPTH).zip(tiles) {
                let mut rest = [0.0; TILE_DEPTH];
                for (rest, value) in rest.iter_mut().zip(values) {
                    *rest = value * factor;
                }
                for words in words.chunks_exact_mut(TILE_WORDS) {
                    encode_halves(&rest, words, bf16);
                    rest = rest.map(remainder);
                }
            }
        }
        Layout::Fixed16 => {
            let runs = values.chunks(2 * depth.run).zip(words.chunks_mut(depth.run));
            for ((values, words), out) in runs.zip(scales) {
                let (scale, inverse) = scale_of(largest_magnitude(values));
                *out = scale * factor;
                encode_halves(values, words, |value| fixed16::<FMA>(value, inverse));
            }
        }
    }
}

/// Encodes each value in half a word; the halves after the last value become zero.
#[inline(always)]
fn encode_halves(values: &[f32], words: &mut [u32], encode: impl Fn(f32) -> u16) {
    let (encoded, rest) = halves(words).split_at_mut(values.len());
    for (half, value) in encoded.iter_mut().zip(values) {
        *half = encode(*value);
    }
    rest.fill(0);
}

#[inline(always)]
fn largest_magnitude(values: &[f32]) -> u32 {
    let mut lanes = [0; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = lanes[i].max(magnitude(chunk[i]));
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane = (*lane).max(magnitude(*value));
    }
    reduce(lanes, u32::max)
}

multiversion! {
    /// Encodes lanes that are neighbours as a panel of `cols` lanes.
    fn encode_across(layout: Layout, source: &Neighbours, depth: Depth, cols: usize,
        words: &mut [u32], scales: &mut [f32]) = encode_across_any
}

#[inline(always)]
fn encode_across_any<const FMA: bool>(
    layout: Layout,
    source: &Neighbours,
    depth: Depth,
    cols: usize,
    words: &mut [u32],
    scales: &mut [f32],
) {
    match cols {
        32 => encode_across_cols::<FMA, 32>(layout, source, depth, words, scales),
        16 => encode_across_cols::<FMA, 16>(layout, source, depth, words, scales),
        _ => encode_across_cols::<FMA, 8>(layout, source, depth, words, scales),
    }
}

#[inline(always)]
fn encode_across_cols<const FMA: bool, const COLS: usize>(
    layout: Layout,
    source: &Neighbours,
    depth: Depth,
    words: &mut [u32],
    scales: &mut [f32],
) {
    let (words, _) = words.as_chunks_mut::<COLS>();
    match layout {
        Layout::F32 => {
            for (k, words) in words.iter_mut().enumerate() {
                *words = source.row::<COLS>(k).map(f32::to_bits);
            }
        }
        Layout::Bf16 => {
            for (k, words) in words.iter_mut().enumerate() {
                let (a, b) = (source.row::<COLS>(2 * k), source.row::<COLS>(2 * k + 1));
                for i in 0..COLS {
                    words[i] = pair(bf16(a[i]), bf16(b[i]));
                }
            }
        }
        Layout::Tiles { planes } => {
            for (tile, words) in words.chunks_exact_mut(TILE_WORDS * planes).enumerate() {
                for k in 0..TILE_WORDS {
                    let first = tile * TILE_DEPTH + 2 * k;
                    let (mut a, mut b) = (source.row::<COLS>(first), source.row::<COLS>(first + 1));
                    for words in words.chunks_exact_mut(TILE_WORDS) {
                        for i in 0..COLS {
                            words[k][i] = pair(bf16(a[i]), bf16(b[i]));
                        }
                        (a, b) = (a.map(remainder), b.map(remainder));
                    }
                }
            }
        }
        Layout::Fixed16 => {
            let (scales, _) = scales.as_chunks_mut::<COLS>();
            for (run, (words, scales)) in words.chunks_mut(depth.run).zip(scales).enumerate() {
                let first = 2 * run * depth.run;
                let mut largest = [0; COLS];
                for k in first..(first + 2 * words.len()).min(source.depth) {
                    let row = source.row::<COLS>(k);
                    for i in 0..COLS {
                        largest[i] = largest[i].max(magnitude(row[i]));
                    }
                }
                let mut inverse = [0.0; COLS];
                for i in 0..COLS {
                    (scales[i], inverse[i]) = scale_of(largest[i]);
                }
                for (k, words) in words.iter_mut().enumerate() {
                    let a = source.row::<COLS>(first + 2 * k);
                    let b = source.row::<COLS>(first + 2 * k + 1);
                    for i in 0..COLS {
                        let (a, b) =
                            (fixed16::<FMA>(a[i], inverse[i]), fixed16::<FMA>(b[i], inverse[i]));
                        words[i] = pair(a, b);
                    }
                }
            }
        }
    }
}

/// Turns `cols` rows of `words` words each into `words` rows of `cols` words.
fn transpose(isa: Isa, rows: &[u32], words: usize, cols: usize, out: &mut [u32]) {
    assert!(rows.len() >= words * cols && out.len() >= words * cols, "room for the words");
    for word in transpose_blocks(isa, rows, words, cols, out)..words {
        for lane in 0..cols {
            out[word * cols + lane] = rows[lane * words + word];
        }
    }
}

/// [`transpose`] of as many words as whole blocks hold that this processor turns at once; how many.
#[cfg(target_arch = "x86_64")]
fn transpose_blocks(isa: Isa, rows: &[u32], words: usize, cols: usize, out: &mut [u32]) -> usize {
    if !isa.has_avx512() || !cols.is_multiple_of(16) {
        return 0;
    }
    assert!(rows.len() >= words * cols && out.len() >= words * cols, "room for the words");
    let done = words / 16 * 16;
    for first in (0..done).step_by(16) {
        for lane in (0..cols).step_by(16) {
            // SAFETY: both 16 × 16 blocks lie inside their slices, as asserted above, and the `Isa`
            // proves the instructions.
            unsafe {
                super::x86_64::transpose_16x16(
                    rows.as_ptr().add(lane * words + first),
                    words,
                    out.as_mut_ptr().add(first * cols + lane),
                    cols,
                );
            }
        }
    }
    done
}

#[cfg(not(target_arch = "x86_64"))]
fn transpose_blocks(_: Isa, _: &[u32], _: usize, _: usize, _: &mut [u32]) -> usize {
    0
}
