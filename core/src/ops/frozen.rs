//! A frozen weight where its device can multiply by it.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
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
    /// On a device in its GGUF quantisation, for [`super::TensorOps`]: decoded for each product, so
    /// that one decoded matrix exists at a time.
    Packed {
        /// The matrix, its rows in their natural order.
        matrix: Arc<QTensor>,
        /// What it is decoded to.
        dtype: DType,
    },
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

    /// Brings a weight to a device: quantised as it is, or else as [`Frozen::on_device`] does.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn packed(weight: &FrozenWeight, device: &Device, dtype: DType) -> Result<Self> {
        let format = weight.format();
        if matches!(format, GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16) {
            return Self::on_device(weight, device, dtype);
        }
        let rows = (0..weight.rows()).map(|row| weight.row_bytes(row));
        let bytes = rows.collect::<Vec<_>>().concat();
        let storage = QStorage::from_data(Cow::Owned(bytes), device, format)?;
        let matrix = QTensor::new(storage, (weight.rows(), weight.cols()))?;
        Ok(Self::Packed { matrix: Arc::new(matrix), dtype })
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        match self {
            Self::Host(weight) => weight.rows(),
            Self::Device(tensor) => tensor.dims()[0],
            Self::Packed { matrix, .. } => matrix.shape().dims()[0],
        }
    }

    pub(super) fn host(&self) -> Result<&FrozenWeight> {
        match self {
            Self::Host(weight) => Ok(weight),
            Self::Device(_) | Self::Packed { .. } => {
                candle_core::bail!("a weight on a device met host operations")
            }
        }
    }

    /// The decoded matrix, on its device.
    pub(super) fn device(&self) -> Result<Tensor> {
        match self {
            Self::Device(tensor) => Ok(tensor.clone()),
            Self::Packed { matrix, dtype } => matrix.dequantize(&matrix.device())?.to_dtype(*dtype),
            Self::Host(_) => candle_core::bail!("a weight in host memory met device operations"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weight::RowOrder;

    #[test]
    fn a_packed_weight_is_the_decoded_one_in_every_quantisation_and_row_order() {
        use GgmlDType::{Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
        let values: Vec<f32> = (0..8 * 256).map(|i| (i as f32 * 0.37).sin()).collect();
        let values = Tensor::from_vec(values, (8, 256), &Device::Cpu).unwrap();
        for format in [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K] {
            let bytes = QTensor::quantize(&values, format).unwrap();
            let bytes = bytes.data().unwrap().into_owned();
            for order in [RowOrder::Natural, RowOrder::InterleavedHeads { head_dim: 4 }] {
                let weight = FrozenWeight::owned("w", (8, 256), format, bytes.clone()).unwrap();
                let weight = weight.with_row_order(order);
                let place = (&Device::Cpu, DType::F32);
                let packed = Frozen::packed(&weight, place.0, place.1).unwrap();
                assert!(matches!(packed, Frozen::Packed { .. }));
                assert_eq!(packed.rows(), 8);
                let decoded = Frozen::on_device(&weight, place.0, place.1).unwrap();
                let [a, b] = [packed, decoded]
                    .map(|w| w.device().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap());
                let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * b.abs().max(1.0);
                assert!(a.iter().zip(&b).all(close), "{format:?}, {order:?}");
            }
        }
    }
}
