//! Where the engine computes.

use std::fmt;
use std::str::FromStr;

use candle_core::Device;

use crate::memory;

/// A device as a user names it: `auto`, `cpu`, `cuda`, `cuda:1`, `metal`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The best device this build and machine have.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// An NVIDIA card, by its number.
    Cuda(usize),
    /// Apple's GPU.
    Metal,
}

/// A device that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// Not the name of a device.
    #[error("unknown device {0:?}: use auto, cpu, cuda, cuda:N or metal")]
    Unknown(String),
    /// The build lacks the device's support.
    #[error(
        "this build has no {0} support: docs/gpu.md tells how to build one, or use --device cpu"
    )]
    NotBuilt(&'static str),
    /// The device is not there or does not answer.
    #[error("cannot use device {device}: {}", first_line(source))]
    Unavailable {
        /// The device asked for.
        device: DeviceChoice,
        /// What its driver said.
        source: candle_core::Error,
    },
}

/// What a driver said; candle's errors go on with a backtrace.
fn first_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "metal" => Ok(Self::Metal),
            other => {
                let number = other.strip_prefix("cuda:").and_then(|n| n.parse().ok());
                number.map(Self::Cuda).ok_or_else(|| DeviceError::Unknown(other.into()))
            }
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

impl DeviceChoice {
    /// Opens the device. `auto` takes a GPU where the build supports one and it answers, else the
    /// processor.
    ///
    /// # Errors
    /// When the device asked for is missing from this build or machine.
    pub fn open(self) -> Result<Device, DeviceError> {
        let unavailable = |source| DeviceError::Unavailable { device: self, source };
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(_) if !cfg!(feature = "cuda") => Err(DeviceError::NotBuilt("cuda")),
            Self::Cuda(n) => Device::new_cuda(n).map_err(unavailable),
            Self::Metal if !cfg!(feature = "metal") => Err(DeviceError::NotBuilt("metal")),
            Self::Metal => Device::new_metal(0).map_err(unavailable),
            Self::Auto => {
                let gpu = [Self::Cuda(0), Self::Metal].into_iter().find_map(|gpu| gpu.open().ok());
                Ok(gpu.unwrap_or(Device::Cpu))
            }
        }
    }
}

/// Bytes of a GPU's own memory that are free; `None` for the processor, and where the driver does not
/// tell.
pub fn free_gpu_bytes(device: &Device) -> Option<u64> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => {
            let (free, _) = candle_core::cuda::cudarc::driver::result::mem_get_info().ok()?;
            Some(free as u64)
        }
        _ => None,
    }
}

/// What a pass costs on `device` beside the products of its tokens ([`memory::Workload::pass_cost`]).
pub fn pass_cost(device: &Device) -> f64 {
    if device.is_cpu() { memory::PROCESSOR_PASS } else { memory::GPU_PASS }
}

/// The most memory that training takes on `device` where the user says nothing: nine tenths of what a
/// GPU has free; `None` for the processor, where the plan has a default of its own.
pub fn default_budget(device: &Device, model_bytes: u64) -> Option<u64> {
    // Weights lie on the card already; a plan counts them.
    free_gpu_bytes(device).map(|free| free / 10 * 9 + model_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_does_not_answer_says_so_in_a_line() {
        let source = candle_core::Error::Msg("no card".into()).bt();
        let source = candle_core::Error::Msg(format!("{source}\n   0: a frame"));
        let error = DeviceError::Unavailable { device: DeviceChoice::Cuda(1), source };
        assert_eq!(error.to_string(), "cannot use device cuda:1: no card");
    }

    #[test]
    fn names_read_back_as_written() {
        for name in ["auto", "cpu", "cuda:0", "cuda:3", "metal"] {
            assert_eq!(name.parse::<DeviceChoice>().unwrap().to_string(), name);
        }
        assert!("gpu".parse::<DeviceChoice>().is_err());
        assert!("cuda:x".parse::<DeviceChoice>().is_err());
    }
}
