//! What travels between server and client in a round, as bytes.
//!
//! Client and server agree bit by bit on the adapter that changes are relative to: it comes down
//! exactly, or as differences to a version that the client holds ([`Versions`]). The way up carries
//! the client's change in the codec that the round asks for.

use serde::{Deserialize, Serialize};

use crate::adapter::{LayoutMismatch, ParameterSet};
use crate::update::{
    BaseId, Codec, Rounding, UpdateError, Versions, decode, decode_for_base, encode,
    encode_for_base, encode_with_feedback, receive,
};

/// Why a message cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// The bytes cannot be made or read.
    #[error(transparent)]
    Update(#[from] UpdateError),
    /// The sets to send differ in layout.
    #[error(transparent)]
    Layout(#[from] LayoutMismatch),
    /// The bytes are no update's.
    #[error("the bytes are no update: {0}")]
    Container(&'static str),
}

/// What a client of a round receives: the shared adapter, and for SCAFFOLD the server's control
/// variate. All clients that hold the same version, or none, receive the same bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Download {
    /// The adapter's parameters, encoded: one message, or several that lead on from a version that
    /// the client holds.
    pub adapter: Vec<u8>,
    /// SCAFFOLD: the server's control variate, encoded.
    pub control: Option<Vec<u8>>,
}

impl Download {
    /// Encodes the shared adapter and, for SCAFFOLD, the server's control variate.
    ///
    /// # Errors
    /// When a value is not finite.
    pub fn encode(
        adapter: &ParameterSet,
        control: Option<&ParameterSet>,
    ) -> Result<Self, MessageError> {
        let control = control.map(|control| encode(control, Codec::F32)).transpose()?;
        Ok(Self { adapter: encode(adapter, Codec::F32)?, control })
    }

    /// The newest version of the shared adapter, for a client that holds version `held` or none.
    ///
    /// # Errors
    /// When a value of the control variate is not finite.
    pub fn of_version(
        versions: &Versions,
        held: Option<u64>,
        control: Option<&ParameterSet>,
    ) -> Result<Self, MessageError> {
        let control = control.map(|control| encode(control, Codec::F32)).transpose()?;
        Ok(Self { adapter: versions.download(held), control })
    }

    /// The shared adapter and the server's control variate; `layout` has the layout that the
    /// client expects.
    ///
    /// # Errors
    /// When the bytes are damaged, of another layout, or a difference.
    pub fn decode(
        &self,
        layout: &ParameterSet,
    ) -> Result<(ParameterSet, Option<ParameterSet>), MessageError> {
        self.decode_onto(layout, None)
    }

    /// As [`Download::decode`], for a client that holds the version `held`.
    ///
    /// # Errors
    /// When the bytes are damaged, of another layout, or a difference to another version.
    pub fn decode_onto(
        &self,
        layout: &ParameterSet,
        held: Option<&ParameterSet>,
    ) -> Result<(ParameterSet, Option<ParameterSet>), MessageError> {
        let control = self.control.as_deref().map(|bytes| decode(bytes, layout)).transpose()?;
        Ok((receive(&self.adapter, layout, held)?, control))
    }

    /// Bytes that travel.
    pub fn byte_len(&self) -> usize {
        self.adapter.len() + self.control.as_ref().map_or(0, Vec::len)
    }
}

const UPLOAD_MAGIC: [u8; 4] = *b"FTUL";
const UPLOAD_VERSION: u16 = 1;
const UPLOAD_HEADER: usize = 16;

/// What a client sends back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    /// The adapter's change, encoded.
    pub adapter: Vec<u8>,
    /// SCAFFOLD: the change of the client's control variate, encoded.
    pub control: Option<Vec<u8>>,
}

impl Upload {
    /// Encodes the change from `global` to `local` and, for SCAFFOLD, that of the client's control
    /// variate, in f16.
    ///
    /// # Errors
    /// When the layouts differ or a value is not finite.
    pub fn encode(
        global: &ParameterSet,
        local: &ParameterSet,
        control_change: Option<&ParameterSet>,
    ) -> Result<Self, MessageError> {
        Self::encode_with(global, local, control_change, Codec::F16, 0, &mut None)
    }

    /// The same in `codec`, whose stochastic rounding follows `seed`. A codec that needs feedback
    /// adds `residual`, what earlier uploads left out, and replaces it by what this one leaves out;
    /// other codecs leave it alone. What is left out of a control variate's change needs no keeping:
    /// the client moves its own variate by what was sent, so the rest is part of its next change.
    ///
    /// # Errors
    /// When the layouts differ or a value is not finite.
    pub fn encode_with(
        global: &ParameterSet,
        local: &ParameterSet,
        control_change: Option<&ParameterSet>,
        codec: Codec,
        seed: u64,
        residual: &mut Option<ParameterSet>,
    ) -> Result<Self, MessageError> {
        let change = local.difference(global)?;
        let base = BaseId::of(global);
        let adapter = if codec.needs_feedback() {
            let residual = residual.get_or_insert_with(|| change.zeros_like());
            encode_with_feedback(&change, residual, base, codec)?
        } else {
            encode_for_base(&change, base, codec, Rounding::Stochastic { seed })?
        };
        let control = |change| encode_for_base(change, base, codec, Rounding::Nearest);
        let control = control_change.map(control).transpose()?;
        Ok(Self { adapter, control })
    }

    /// The client's adapter and, for SCAFFOLD, the change of its control variate; `global` is the
    /// adapter that it received.
    ///
    /// # Errors
    /// When the bytes are damaged or belong to another adapter.
    pub fn decode(
        &self,
        global: &ParameterSet,
    ) -> Result<(ParameterSet, Option<ParameterSet>), MessageError> {
        let base = BaseId::of(global);
        let mut adapter = decode_for_base(&self.adapter, global, base)?;
        adapter.zip_apply(global, |change, g| *change += g)?;
        let control = self.control.as_deref();
        let control = control.map(|bytes| decode_for_base(bytes, global, base)).transpose()?;
        Ok((adapter, control))
    }

    /// Both parts as one sequence of bytes, as it travels to a server (`docs/formats/protocol.md`).
    ///
    /// # Errors
    /// When a part is longer than 4 GiB.
    pub fn to_bytes(&self) -> Result<Vec<u8>, MessageError> {
        let control = self.control.as_deref().unwrap_or_default();
        let mut bytes = Vec::with_capacity(UPLOAD_HEADER + self.byte_len());
        bytes.extend(UPLOAD_MAGIC);
        bytes.extend(UPLOAD_VERSION.to_le_bytes());
        bytes.extend([0; 2]);
        for part in [&self.adapter, control] {
            let len = u32::try_from(part.len())
                .map_err(|_| MessageError::Container("a part is longer than 4 GiB"))?;
            bytes.extend(len.to_le_bytes());
        }
        bytes.extend_from_slice(&self.adapter);
        bytes.extend_from_slice(control);
        Ok(bytes)
    }

    /// Reads what [`Upload::to_bytes`] wrote. The parts themselves are checked by
    /// [`Upload::decode`].
    ///
    /// # Errors
    /// When the bytes are something else or not as many as they say.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, MessageError> {
        let (header, body) = bytes
            .split_first_chunk::<UPLOAD_HEADER>()
            .ok_or(MessageError::Container("they are cut short"))?;
        let [m0, m1, m2, m3, v0, v1, r0, r1, a0, a1, a2, a3, c0, c1, c2, c3] = *header;
        if [m0, m1, m2, m3] != UPLOAD_MAGIC {
            return Err(MessageError::Container("they do not start with FTUL"));
        }
        if u16::from_le_bytes([v0, v1]) != UPLOAD_VERSION || [r0, r1] != [0; 2] {
            return Err(MessageError::Container("they are of another version"));
        }
        let [adapter, control] = [[a0, a1, a2, a3], [c0, c1, c2, c3]].map(u32::from_le_bytes);
        if u64::from(adapter) + u64::from(control) != body.len() as u64 {
            return Err(MessageError::Container("they are cut short, or more follow"));
        }
        let (adapter, control) = body.split_at(adapter as usize);
        let control = (!control.is_empty()).then(|| control.to_vec());
        Ok(Self { adapter: adapter.to_vec(), control })
    }

    /// Bytes that travel.
    pub fn byte_len(&self) -> usize {
        self.adapter.len() + self.control.as_ref().map_or(0, Vec::len)
    }
}

#[cfg(test)]
mod tests {
    use crate::adapter::Parameter;

    use super::*;

    fn set(values: [f32; 3]) -> ParameterSet {
        ParameterSet::new(vec![Parameter {
            name: "w".into(),
            shape: vec![3],
            values: values.to_vec(),
        }])
    }

    #[test]
    fn a_download_arrives_bit_by_bit() {
        let (adapter, control) = (set([0.1, -1e-30, 3e20]), set([1.0 / 3.0, 0.0, -7.0]));
        let download = Download::encode(&adapter, Some(&control)).unwrap();
        assert_eq!(download.decode(&set([0.0; 3])).unwrap(), (adapter, Some(control)));
    }

    #[test]
    fn an_upload_arrives_rounded_to_the_size_of_the_change() {
        let (global, local) = (set([100.0, 0.5, -3.0]), set([100.001, 0.5002, -3.0001]));
        let change = set([0.25, -0.125, 0.0]);
        let upload = Upload::encode(&global, &local, Some(&change)).unwrap();
        let (adapter, control) = upload.decode(&global).unwrap();
        assert_eq!(control, Some(change));
        let mut error = adapter.clone();
        error.zip_apply(&local, |a, l| *a -= l).unwrap();
        // Half a unit in the last place of 100 in f32, and of 0.001 in f16.
        assert!(error.l2_norm() < 5e-6, "{}", error.l2_norm());
    }

    #[test]
    fn an_upload_to_another_adapter_is_refused() {
        let global = set([1.0, 2.0, 3.0]);
        let upload = Upload::encode(&global, &set([1.5, 2.0, 3.0]), None).unwrap();
        let refused = upload.decode(&set([1.0, 2.0, 3.5]));
        assert!(matches!(refused, Err(MessageError::Update(UpdateError::OtherBase))));
    }

    #[test]
    fn both_parts_of_an_upload_travel_as_one() {
        let (global, local) = (set([1.0, 2.0, 3.0]), set([1.5, 2.0, 3.0]));
        for control in [None, Some(set([0.25, 0.0, -1.0]))] {
            let upload = Upload::encode(&global, &local, control.as_ref()).unwrap();
            let bytes = upload.to_bytes().unwrap();
            assert_eq!(Upload::from_bytes(&bytes).unwrap(), upload);
            assert!(Upload::from_bytes(&bytes[..bytes.len() - 1]).is_err());
            assert!(Upload::from_bytes(&[&bytes[..], &[0]].concat()).is_err());
            for at in 0..UPLOAD_HEADER {
                let mut damaged = bytes.clone();
                damaged[at] ^= 0x10;
                let read = Upload::from_bytes(&damaged);
                assert!(read.is_err() || read.unwrap() != upload, "byte {at}");
            }
        }
    }
}
