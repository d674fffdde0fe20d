//! The arithmetic of the engine on the processor, on plain row-major slices.
//!
//! Every function here computes the same numbers whatever the number of threads: work is split over
//! outputs only, and each output is summed in an order that depends on shapes alone. Parallel parts
//! run on the rayon pool the caller is in; [`Threads`] makes one of a chosen size. What a row of
//! activations becomes does not depend on the rows beside it, but for [`frozen_matmul_few`].
//!
//! Shapes are given by the caller and checked: a slice of another length than its shape asks for is
//! a bug of the caller and panics before any value is written.

mod add;
#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
mod cross_entropy;
#[cfg(any(feature = "cuda", test))]
pub(crate) mod cuda;
mod dense;
mod dequantize;
mod frozen;
mod isa;
mod lanes;
mod measure;
mod norm;
mod product;
mod rotary;
mod shared;
mod swiglu;
#[cfg(test)]
pub(crate) mod testing;
mod threads;

pub use add::add;
pub use attention::{AttentionShape, HEADS_PER_THREAD, Segment, attention, attention_backward};
pub use cross_entropy::{SoftmaxRow, linear_cross_entropy};
pub use dense::matmul;
pub use dequantize::{dequantize_row, dequantize_rows};
pub use frozen::{
    FEW, frozen_gated, frozen_matmul, frozen_matmul_all, frozen_matmul_few,
    frozen_matmul_transposed,
};
pub use isa::{InstructionSet, InstructionSetError};
pub use measure::{KernelSpeeds, ProductShape, ProductSpeed, SMOLLM2_135M, measure};
pub use norm::{rms_norm, rms_norm_backward};
pub use product::View;
pub use rotary::{Rotation, rotary};
pub use swiglu::{swiglu, swiglu_backward};
pub use threads::{Threads, ThreadsError};

/// How the inputs of a matrix product are rounded. Sums are f32 in both cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// Inputs stay f32, or become bf16 values that sum up to them where the processor multiplies
    /// those faster.
    #[default]
    F32,
    /// Inputs are rounded to bf16, or to 16-bit fixed point of at least its precision relative to
    /// the largest of 128 neighbours, where the processor multiplies those faster than f32; else
    /// they stay f32.
    Bf16,
}

/// What becomes of the values an output already holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// They are replaced; they may be anything.
    Overwrite,
    /// The result is added to them.
    Accumulate,
}
