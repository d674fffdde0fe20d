//! Messages as bytes: a length, then the message.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest message, bytes, without its length.
pub const MAX_FRAME: usize = 64 << 10;
/// Bytes of the length before a message.
pub const FRAME_PREFIX: usize = 4;

/// Why bytes are no message, or a message does not become bytes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Longer than any message may be.
    #[error("a message of {0} bytes is longer than the {MAX_FRAME} allowed")]
    TooLong(u64),
    /// No message of this version.
    #[error("the bytes are no message of this version: {0}")]
    Malformed(postcard::Error),
    /// Something follows the message within its frame.
    #[error("{0} bytes follow the message in its frame")]
    Trailing(usize),
    /// The message cannot be written.
    #[error("the message cannot be written: {0}")]
    Encode(postcard::Error),
}

/// The message with its length before it.
///
/// # Errors
/// When it is longer than [`MAX_FRAME`].
pub fn encode_frame<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut bytes =
        postcard::to_extend(message, vec![0; FRAME_PREFIX]).map_err(FrameError::Encode)?;
    let len = frame_len_of(bytes.len() - FRAME_PREFIX)?;
    bytes[..FRAME_PREFIX].copy_from_slice(&len.to_le_bytes());
    Ok(bytes)
}

fn frame_len_of(len: usize) -> Result<u32, FrameError> {
    match u32::try_from(len) {
        Ok(short) if len <= MAX_FRAME => Ok(short),
        _ => Err(FrameError::TooLong(len as u64)),
    }
}

/// How many bytes follow this length: to be checked before memory is taken for them.
///
/// # Errors
/// When they are more than [`MAX_FRAME`].
pub fn frame_len(prefix: [u8; FRAME_PREFIX]) -> Result<usize, FrameError> {
    let len = u32::from_le_bytes(prefix);
    match usize::try_from(len) {
        Ok(len) if len <= MAX_FRAME => Ok(len),
        _ => Err(FrameError::TooLong(len.into())),
    }
}

/// Reads a message from the bytes after its length.
///
/// # Errors
/// When they are no message, or more than one.
pub fn decode_frame<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    if body.len() > MAX_FRAME {
        return Err(FrameError::TooLong(body.len() as u64));
    }
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(FrameError::Trailing(rest.len())),
        Err(error) => Err(FrameError::Malformed(error)),
    }
}
