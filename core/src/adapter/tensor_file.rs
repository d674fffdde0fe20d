//! Parameter sets as safetensors files.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorInfo, TensorView, View};
use safetensors::{SafeTensorError, SafeTensors};
use serde::Deserialize;
use serde_json::Value;

use super::{Parameter, ParameterSet};

/// Why bytes are no parameter set.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TensorFileError {
    /// The file is cut short, altered or no safetensors file.
    #[error("this is no complete safetensors file ({0}): copy or save it again")]
    Format(SafeTensorError),
    /// A tensor's bytes are not as many as its shape and type ask for.
    #[error("tensor {name}'s place in the file contradicts its shape and type: save it again")]
    Place {
        /// The tensor.
        name: String,
    },
    /// A tensor holds something else than floating-point numbers.
    #[error("tensor {name} holds {dtype:?} values: save it as f32, f16 or bf16")]
    Dtype {
        /// The tensor.
        name: String,
        /// Its type.
        dtype: Dtype,
    },
    /// A tensor holds NaN, an infinity or, in f64, a value beyond f32.
    #[error(
        "tensor {name} holds {value} at position {position}: training diverged or the file is damaged"
    )]
    NotFinite {
        /// The tensor.
        name: String,
        /// Index of the first such value, row by row.
        position: usize,
        /// The value.
        value: f64,
    },
}

impl ParameterSet {
    /// Reads a safetensors file of f32, f16, bf16 or f64 tensors; f64 is rounded to f32. Memory
    /// is taken for what `bytes` hold, not for what they claim to hold.
    ///
    /// # Errors
    /// When the file is damaged, a tensor is not of a floating-point type or a value is not
    /// finite.
    pub fn from_safetensors(bytes: &[u8]) -> Result<Self, TensorFileError> {
        // `deserialize` checks that the shapes times the sizes of their types tile the file.
        let file = SafeTensors::deserialize(bytes).map_err(|error| match misplaced(bytes) {
            Some(name) => TensorFileError::Place { name },
            None => TensorFileError::Format(error),
        })?;
        let mut entries = Vec::with_capacity(file.len());
        for (name, view) in file.tensors() {
            let values = read_values(&name, &view)?;
            if let Some(position) = values.iter().position(|v| !v.is_finite()) {
                let value = values[position].into();
                return Err(TensorFileError::NotFinite { name, position, value });
            }
            entries.push(Parameter { name, shape: view.shape().to_vec(), values });
        }
        Ok(Self::new(entries))
    }

    /// The set as a safetensors file of f32 tensors, marked `format: pt` as PEFT marks its own.
    ///
    /// # Errors
    /// When the names and shapes take more than the 100 MB that the format allows them.
    pub fn to_safetensors(&self) -> Result<Vec<u8>, TensorFileError> {
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let tensors = self.iter().map(|entry| (entry.name.as_str(), F32Tensor(entry)));
        safetensors::serialize(tensors, Some(metadata)).map_err(TensorFileError::Format)
    }
}

/// The first tensor, by name, that has not as many bytes in a safetensors file as its shape and type
/// ask for, where the file's header can be read.
pub(crate) fn misplaced(file: &[u8]) -> Option<String> {
    let (length, rest) = file.split_first_chunk()?;
    let header = rest.get(..usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    let tensors: BTreeMap<String, Value> = serde_json::from_slice(header).ok()?;
    let fits = |tensor: &TensorInfo| {
        let bits = tensor.shape.iter().try_fold(tensor.dtype.bitsize(), |n, &d| n.checked_mul(d));
        let (start, end) = tensor.data_offsets;
        end.checked_sub(start).and_then(|bytes| bytes.checked_mul(8)) == bits && bits.is_some()
    };
    let misfit = |(name, tensor)| {
        let tensor = TensorInfo::deserialize(&tensor).ok()?;
        (!fits(&tensor)).then_some(name)
    };
    tensors.into_iter().find_map(misfit)
}

fn read_values(name: &str, view: &TensorView<'_>) -> Result<Vec<f32>, TensorFileError> {
    let data = view.data();
    Ok(match view.dtype() {
        Dtype::F32 => read_each(data, f32::from_le_bytes),
        Dtype::F16 => read_each(data, |b| f16::from_le_bytes(b).to_f32()),
        Dtype::BF16 => read_each(data, |b| bf16::from_le_bytes(b).to_f32()),
        Dtype::F64 => read_each(data, |b| f64::from_le_bytes(b) as f32),
        dtype => return Err(TensorFileError::Dtype { name: name.into(), dtype }),
    })
}

fn read_each<const N: usize>(data: &[u8], read: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    data.as_chunks::<N>().0.iter().map(|&bytes| read(bytes)).collect()
}

struct F32Tensor<'a>(&'a Parameter);

impl View for F32Tensor<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.0.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.0.values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    fn data_len(&self) -> usize {
        self.0.values.len() * size_of::<f32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> ParameterSet {
        ParameterSet::new(vec![
            Parameter { name: "b".into(), shape: vec![2, 2], values: vec![1.0, -2.5, 0.0, 1e-30] },
            Parameter { name: "a".into(), shape: vec![3], values: vec![f32::MAX, 0.1, -0.0] },
        ])
    }

    fn file_of(dtype: Dtype, data: &[u8]) -> Vec<u8> {
        let len = data.len() / dtype.bitsize().div_ceil(8);
        let view = TensorView::new(dtype, vec![len], data).unwrap();
        safetensors::serialize([("t", view)], None).unwrap()
    }

    #[test]
    fn what_was_written_reads_back_bit_for_bit() {
        let set = sample();
        assert_eq!(ParameterSet::from_safetensors(&set.to_safetensors().unwrap()).unwrap(), set);
    }

    #[test]
    fn half_precision_and_double_precision_are_read_as_f32() {
        let half: Vec<u8> =
            [0.5f32, -3.0].iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
        let brain: Vec<u8> =
            [0.5f32, -3.0].iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect();
        let double: Vec<u8> = [0.5f64, -3.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        for (dtype, data) in [(Dtype::F16, half), (Dtype::BF16, brain), (Dtype::F64, double)] {
            let set = ParameterSet::from_safetensors(&file_of(dtype, &data)).unwrap();
            assert_eq!(set.get("t").unwrap().values, [0.5, -3.0]);
        }
    }

    #[test]
    fn integers_and_values_that_are_not_finite_are_refused_by_name() {
        let error = ParameterSet::from_safetensors(&file_of(Dtype::I32, &[0; 8])).unwrap_err();
        assert!(error.to_string().contains("tensor t holds I32"), "{error}");
        let data: Vec<u8> = [1.0f32, f32::NAN].iter().flat_map(|v| v.to_le_bytes()).collect();
        let error = ParameterSet::from_safetensors(&file_of(Dtype::F32, &data)).unwrap_err();
        assert!(error.to_string().contains("tensor t holds NaN at position 1"), "{error}");
        let error = ParameterSet::from_safetensors(&file_of(Dtype::F64, &1e300f64.to_le_bytes()));
        assert!(matches!(error, Err(TensorFileError::NotFinite { position: 0, .. })));
    }

    #[test]
    fn a_header_that_claims_more_than_the_file_holds_is_refused() {
        let header = br#"{"t":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,8]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header);
        bytes.extend([0; 8]);
        let error = ParameterSet::from_safetensors(&bytes).unwrap_err();
        assert!(matches!(&error, TensorFileError::Place { name } if name == "t"), "{error}");
        bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(matches!(ParameterSet::from_safetensors(&bytes), Err(TensorFileError::Format(_))));
    }

    proptest! {
        #[test]
        fn altered_and_shortened_files_are_refused_or_read_but_never_panic(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            keep in any::<prop::sample::Index>(),
        ) {
            let mut bytes = sample().to_safetensors().unwrap();
            for (place, value) in changes {
                let place = place.index(bytes.len());
                bytes[place] = value;
            }
            let _ = ParameterSet::from_safetensors(&bytes);
            let _ = ParameterSet::from_safetensors(&bytes[..keep.index(bytes.len())]);
        }
    }
}
