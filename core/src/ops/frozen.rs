//! A frozen weight where its device can multiply by it.

use candle_core::{DType, Device, Result, Tensor};

use crate::kernels;
use crate::weight::FrozenWeight;

/// A frozen matrix `[out, in]`.
#[derive(Debug, Clone)]
pub enum Frozen {
    /// In its file format in host memory, for [`super::HostOps`].
    Host(FrozenWeight),
    /// Decoded on a device, for [`super::TensorOps`].
    Device(Tensor),
}

impl Frozen {
    /// Decodes a weight onto a device.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn on_device(weight: &FrozenWeight, device: &Device, dtype: DType) -> Result<Self> {
        let mut values = vec![0.0; weight.rows() * weight.cols()];
        kernels::dequantize_rows(weight, 0..weight.rows(), &mut values);
        let tensor = Tensor::from_vec(values, (weight.rows(), weight.cols()), device)?;
        Ok(Self::Device(tensor.to_dtype(dtype)?))
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        match self {
            Self::Host(weight) => weight.rows(),
            Self::Device(tensor) => tensor.dims()[0],
        }
    }

    pub(super) fn host(&self) -> Result<&FrozenWeight> {
        match self {
            Self::Host(weight) => Ok(weight),
            Self::Device(_) => candle_core::bail!("a weight on a device met host operations"),
        }
    }

    pub(super) fn device(&self) -> Result<&Tensor> {
        match self {
            Self::Device(tensor) => Ok(tensor),
            Self::Host(_) => candle_core::bail!("a weight in host memory met device operations"),
        }
    }
}
