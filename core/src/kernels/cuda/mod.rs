//! The arithmetic of the engine on NVIDIA cards: kernels in CUDA C++ beside this file, and what runs
//! them.
//!
//! A launch is data ([`Launch`], [`Arg`]) that a [`Runner`] executes: [`Card`] on a card, in builds with
//! the feature `cuda`; in tests, a program that the machine's C++ compiler makes of the same sources.
//! So everything but the card itself is tested without one.
//!
//! Kernels compute in f32 on f32 or bf16 and sum in an order that depends on shapes alone.

#[cfg(feature = "cuda")]
mod card;
#[cfg(test)]
mod emulator;

use std::fmt;

use candle_core::{DType, Device, Layout, Result, Shape, Tensor};

#[cfg(feature = "cuda")]
pub use card::Card;
#[cfg(test)]
pub(crate) use emulator::Emulator;

/// A kernel to run and how many threads it gets.
#[derive(Debug, Clone, Copy)]
pub struct Launch {
    /// The kernel's name up to the type of its values.
    pub kernel: &'static str,
    /// The type of its values, f32 or bf16.
    pub dtype: DType,
    /// Blocks in each dimension. Without any, nothing runs.
    pub grid: [usize; 3],
    /// Threads of a block, whole warps.
    pub threads: u32,
}

/// An argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub enum Arg<'a> {
    /// The values of a contiguous tensor, to read.
    Read(&'a Tensor),
    /// The values of a contiguous tensor, to change in place. Its memory must be no other argument's.
    Write(&'a Tensor),
    /// A number.
    U32(u32),
    /// A number.
    F32(f32),
}

/// What runs kernels.
pub trait Runner: fmt::Debug + Send + Sync {
    /// Where its tensors lie.
    fn device(&self) -> &Device;

    /// A tensor whose values are yet to be written.
    ///
    /// # Errors
    /// When the device has no room.
    fn empty(&self, shape: Shape, dtype: DType) -> Result<Tensor>;

    /// Runs a kernel after everything that was run before. The caller answers for arguments that are
    /// what the kernel declares and large enough for what it touches.
    ///
    /// # Errors
    /// When a tensor is not contiguous or elsewhere, or the device fails.
    fn launch(&self, launch: Launch, args: &[Arg]) -> Result<()>;
}

impl Launch {
    /// The kernel's full name.
    fn name(&self) -> Result<String> {
        match self.dtype {
            DType::F32 => Ok(format!("{}_f32", self.kernel)),
            DType::BF16 => Ok(format!("{}_bf16", self.kernel)),
            other => {
                candle_core::bail!("the kernels for cards compute in f32 or bf16, not {other:?}")
            }
        }
    }

    /// The grid in the numbers that a card takes; `None` where it has no blocks.
    fn grid(&self) -> Result<Option<[u32; 3]>> {
        if self.grid.contains(&0) {
            return Ok(None);
        }
        let [x, y, z] = self.grid;
        if x > i32::MAX as usize || y > 65535 || z > 65535 {
            candle_core::bail!("a grid of {:?} blocks is too large for a card", self.grid)
        }
        Ok(Some([x as u32, y as u32, z as u32]))
    }
}

/// Where a contiguous tensor's values start and end in its storage.
fn extent(layout: &Layout) -> Result<(usize, usize)> {
    match layout.contiguous_offsets() {
        Some(extent) => Ok(extent),
        None => candle_core::bail!("the kernels for cards need contiguous tensors"),
    }
}
