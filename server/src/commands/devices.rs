//! The devices of `--device`: one, or several of a kind for a simulation.

use std::str::FromStr;

use fleetune_core::device::{DeviceChoice, DeviceError};

/// One device or several, of which the first measures and all train.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceList {
    first: DeviceChoice,
    others: Vec<DeviceChoice>,
}

/// Devices that cannot be used together.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceListError {
    /// A name that is none.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Different devices round differently.
    #[error("{0:?} is no list of one kind of device: use cuda:0,1 or cpu,cpu")]
    Mixed(String),
    /// The command computes on one device.
    #[error("--device names several devices, which only fleetune simulate can use: name one")]
    Several,
}

impl DeviceList {
    /// The device that this process computes on.
    pub fn first(&self) -> DeviceChoice {
        self.first
    }

    /// The devices of other processes.
    pub fn others(&self) -> &[DeviceChoice] {
        &self.others
    }

    /// An error where there are several.
    ///
    /// # Errors
    /// [`DeviceListError::Several`].
    pub fn check_single(&self) -> Result<(), DeviceListError> {
        if self.others.is_empty() { Ok(()) } else { Err(DeviceListError::Several) }
    }
}

impl FromStr for DeviceList {
    type Err = DeviceListError;

    /// Names between commas; after a card of NVIDIA's, a number alone names another one.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut names = text.split(',');
        // Splitting yields one part at least.
        let first: DeviceChoice = names.next().unwrap_or_default().parse()?;
        let mut others = Vec::new();
        for name in names {
            let number = name.parse().ok().filter(|_| matches!(first, DeviceChoice::Cuda(_)));
            let device = number.map_or_else(|| name.parse(), |n| Ok(DeviceChoice::Cuda(n)))?;
            others.push(device);
        }
        let alike = |other: &DeviceChoice| {
            matches!(
                (first, other),
                (DeviceChoice::Cuda(_), DeviceChoice::Cuda(_))
                    | (DeviceChoice::Cpu, DeviceChoice::Cpu)
            )
        };
        match others.iter().all(alike) {
            true => Ok(Self { first, others }),
            false => Err(DeviceListError::Mixed(text.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_name_devices_of_one_kind() {
        let cuda = |numbers: &[usize]| {
            let mut devices = numbers.iter().map(|&n| DeviceChoice::Cuda(n));
            DeviceList { first: devices.next().unwrap(), others: devices.collect() }
        };
        for (text, expected) in [
            ("cuda", cuda(&[0])),
            ("cuda:0,1,5", cuda(&[0, 1, 5])),
            ("cuda:2,cuda:3", cuda(&[2, 3])),
            ("cpu,cpu", DeviceList { first: DeviceChoice::Cpu, others: vec![DeviceChoice::Cpu] }),
        ] {
            assert_eq!(text.parse::<DeviceList>().unwrap(), expected, "{text}");
        }
        for text in ["", "cuda:0,", "cuda:0,cpu", "cpu,1", "auto,auto", "metal,metal", "cuda:0,-1"]
        {
            assert!(text.parse::<DeviceList>().is_err(), "{text}");
        }
        assert!("cuda:1".parse::<DeviceList>().unwrap().check_single().is_ok());
        assert!("cuda:0,1".parse::<DeviceList>().unwrap().check_single().is_err());
    }
}
