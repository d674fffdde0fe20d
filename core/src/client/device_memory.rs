//! What a client keeps between the rounds that it takes part in.

use serde::{Deserialize, Serialize};

use super::messages::MessageError;
use crate::adapter::ParameterSet;
use crate::update::{Codec, decode, encode, split_messages};

const MAGIC: [u8; 4] = *b"FTDM";
const VERSION: u16 = 1;
const CONTROL: u8 = 1;
const RESIDUAL: u8 = 2;
const HEADER_LEN: usize = 8;

/// What a client keeps between the rounds that it takes part in. All of it may be missing: a fresh
/// device has none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DeviceMemory {
    /// SCAFFOLD: the client's control variate; none stands for zero.
    pub control: Option<ParameterSet>,
    /// Error feedback: what uploads have left out so far.
    pub residual: Option<ParameterSet>,
    /// The version of the shared adapter that the client received last, where downloads may be
    /// differences to it.
    pub held: Option<ParameterSet>,
}

impl DeviceMemory {
    /// Control variate and residual as bytes, `None` where there is neither: magic `FTDM`, version
    /// (u16), which of them are there (u8: 1 control variate, 2 residual), a zero, then each as an
    /// f32 message (`docs/formats/update.md`). The version held is not among them: its bytes are
    /// those of the download.
    ///
    /// # Errors
    /// When a value is not finite.
    pub fn to_bytes(&self) -> Result<Option<Vec<u8>>, MessageError> {
        let parts = [(CONTROL, &self.control), (RESIDUAL, &self.residual)];
        let (mut flags, mut messages) = (0, Vec::new());
        for (flag, set) in parts {
            if let Some(set) = set {
                flags |= flag;
                messages.extend(encode(set, Codec::F32)?);
            }
        }
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend([flags, 0]);
        bytes.extend(messages);
        Ok((flags != 0).then_some(bytes))
    }

    /// What [`DeviceMemory::to_bytes`] wrote, for adapters of the layout of `layout`.
    ///
    /// # Errors
    /// When the bytes are damaged, of another version or another adapter's.
    pub fn from_bytes(bytes: &[u8], layout: &ParameterSet) -> Result<Self, MessageError> {
        let damaged = MessageError::Container("they are no device's memory");
        let Some((&[m0, m1, m2, m3, v0, v1, flags, 0], messages)) =
            bytes.split_first_chunk::<HEADER_LEN>()
        else {
            return Err(damaged);
        };
        let known = [m0, m1, m2, m3] == MAGIC && u16::from_le_bytes([v0, v1]) == VERSION;
        if !known || flags == 0 || flags & !(CONTROL | RESIDUAL) != 0 {
            return Err(damaged);
        }
        let messages = split_messages(messages)?;
        if messages.len() != flags.count_ones() as usize {
            return Err(damaged);
        }
        let mut messages = messages.into_iter();
        let mut next = |flag| {
            let message = if flags & flag != 0 { messages.next() } else { None };
            message.map(|message| decode(message, layout)).transpose()
        };
        Ok(Self { control: next(CONTROL)?, residual: next(RESIDUAL)?, held: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::Parameter;

    fn set(value: f32) -> ParameterSet {
        let values = vec![value, -0.5, 1e-9];
        ParameterSet::new(vec![Parameter { name: "w".into(), shape: vec![3], values }])
    }

    #[test]
    fn memory_reads_back_and_damage_is_told() {
        let (one, two) = (Some(set(1.0)), Some(set(2.0)));
        for (control, residual) in [(one.clone(), None), (None, two.clone()), (one, two)] {
            let memory = DeviceMemory { control, residual, held: None };
            let bytes = memory.to_bytes().unwrap().unwrap();
            assert_eq!(DeviceMemory::from_bytes(&bytes, &set(0.0)).unwrap(), memory);
            for len in 0..bytes.len() {
                assert!(DeviceMemory::from_bytes(&bytes[..len], &set(0.0)).is_err());
            }
            for at in 0..bytes.len() {
                let mut damaged = bytes.clone();
                damaged[at] ^= 0x24;
                let read = DeviceMemory::from_bytes(&damaged, &set(0.0));
                assert!(read.is_err(), "byte {at}");
            }
        }
        assert_eq!(DeviceMemory::default().to_bytes().unwrap(), None);
    }
}
