//! How the shared adapter of a round comes to a device: whole, or as the differences that lead on from
//! a version that the device holds.
//!
//! The version held is a file: the 32 bytes of its [`BaseId`], then the adapter as an f32 message
//! (`docs/formats/update.md`). With the differences after it, it is a download like any other, so
//! that whoever trains need not know how it came.

use super::folder::{DeviceFolder, FolderError};
use super::instructions::Instructions;
use super::messages::{Download, MessageError};
use crate::adapter::ParameterSet;
use crate::protocol::{Blob, RoundAssignment};
use crate::update::{BaseId, Codec, encode};

/// What to fetch for a round, and what it leads on from.
#[derive(Debug)]
pub struct Route {
    /// The version held, as a message; `None` where the adapter comes whole.
    held: Option<Vec<u8>>,
    adapter: Vec<Blob>,
    control: Option<Blob>,
}

impl Route {
    /// The way to the adapter of `assignment` from what the folder holds.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn of(folder: &DeviceFolder, assignment: &RoundAssignment) -> Result<Self, FolderError> {
        let RoundAssignment { adapter, control, federation, instructions, .. } = assignment;
        let whole = Self { held: None, adapter: vec![*adapter], control: *control };
        // Instructions that cannot be read are told of when they are to be followed.
        let instructions = match Instructions::from_json(instructions) {
            Ok(instructions) if instructions.differences.is_some() => instructions,
            _ => return Ok(whole),
        };
        let kept = folder.version(federation)?.unwrap_or_default();
        let Some((base, message)) = kept.split_first_chunk() else { return Ok(whole) };
        Ok(match instructions.leading_from(BaseId::from_bytes(*base)) {
            Some(adapter) => Self { held: Some(message.to_vec()), adapter, ..whole },
            None => whole,
        })
    }

    /// What has to be here before the adapter can be read.
    pub fn blobs(&self) -> impl Iterator<Item = Blob> + '_ {
        self.adapter.iter().copied().chain(self.control)
    }

    /// Whether it leads on from a version that the device holds.
    pub fn is_from_held(&self) -> bool {
        self.held.is_some()
    }

    /// What was fetched, as the trainer reads it; `None` where the disk has damaged a blob.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn read(self, folder: &DeviceFolder) -> Result<Option<Download>, FolderError> {
        let mut adapter = self.held.unwrap_or_default();
        for blob in &self.adapter {
            let Some(message) = folder.read_blob(blob)? else { return Ok(None) };
            adapter.extend(message);
        }
        let control = match &self.control {
            None => None,
            Some(blob) => match folder.read_blob(blob)? {
                None => return Ok(None),
                control => control,
            },
        };
        Ok(Some(Download { adapter, control }))
    }
}

/// A version of the shared adapter as the folder keeps it.
///
/// # Errors
/// When a value is not finite, which none that was received is.
pub fn version_to_keep(adapter: &ParameterSet) -> Result<Vec<u8>, MessageError> {
    let mut bytes = BaseId::of(adapter).as_bytes().to_vec();
    bytes.extend(encode(adapter, Codec::F32)?);
    Ok(bytes)
}
