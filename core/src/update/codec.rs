//! Which stages an update passes through, by name: `f16`, `int8`, `top-k:0.1+int4`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How single values are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ValueFormat {
    /// f32: every bit.
    F32,
    /// f16 with a power of two for each tensor, so that the tensor's largest value lies at the top
    /// of f16's range: 11 significant bits down to 2⁻²⁸ of the largest value, and no overflow.
    /// Without the power, the small differences of a short training would fall among f16's
    /// subnormal numbers and lose their bits.
    F16,
    /// 255 levels between plus and minus the largest magnitude of each block of 64 values.
    Int8,
    /// 15 levels.
    Int4,
    /// Four levels, zero not among them.
    Int2,
}

impl ValueFormat {
    /// All formats; the place is the number in a message.
    pub const ALL: [ValueFormat; 5] = [
        ValueFormat::F32,
        ValueFormat::F16,
        ValueFormat::Int8,
        ValueFormat::Int4,
        ValueFormat::Int2,
    ];

    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            ValueFormat::F32 => "f32",
            ValueFormat::F16 => "f16",
            ValueFormat::Int8 => "int8",
            ValueFormat::Int4 => "int4",
            ValueFormat::Int2 => "int2",
        }
    }
}

/// The stages between a difference and its bytes: optionally the largest values alone (top-k), then
/// a format for each value. Index coding and zstd always follow.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Codec {
    top_k: Option<f64>,
    values: ValueFormat,
}

/// A codec that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown codec {text:?}: use f32, f16, int8, int4 or int2, or top-k:SHARE+FORMAT with a share above 0 and up to 1, such as top-k:0.1+int4"
)]
pub struct CodecError {
    text: String,
}

/// Set in the number of a codec that sends the largest values alone.
const SPARSE: u8 = 16;

impl Codec {
    /// Every bit of every value.
    pub const F32: Codec = Codec::dense(ValueFormat::F32);
    /// Every value in f16: what uploads use unless told otherwise.
    pub const F16: Codec = Codec::dense(ValueFormat::F16);

    /// Every value in this format.
    pub const fn dense(values: ValueFormat) -> Self {
        Self { top_k: None, values }
    }

    /// The given share of the values, those of largest magnitude, in this format.
    ///
    /// # Errors
    /// When the share is not above 0 and up to 1.
    pub fn top_k(share: f64, values: ValueFormat) -> Result<Self, CodecError> {
        if share > 0.0 && share <= 1.0 {
            return Ok(Self { top_k: Some(share), values });
        }
        Err(CodecError { text: format!("top-k:{share}+{}", values.name()) })
    }

    /// The format of single values.
    pub fn values(self) -> ValueFormat {
        self.values
    }

    /// The share of the values that is sent, where it is not all.
    pub fn share(self) -> Option<f64> {
        self.top_k
    }

    /// Whether what arrives is what was sent, bit by bit.
    pub fn is_exact(self) -> bool {
        self == Self::F32
    }

    /// Whether the sender has to keep what was not sent and add it to the next difference. Values
    /// that are dropped would be lost for good; rounding alone is unbiased and averages out.
    pub fn needs_feedback(self) -> bool {
        self.top_k.is_some()
    }

    /// The number that stands for the codec in a message; the share is not part of it.
    pub fn id(self) -> u8 {
        let place = ValueFormat::ALL.iter().position(|&format| format == self.values);
        let sparse = if self.top_k.is_some() { SPARSE } else { 0 };
        place.unwrap_or_default() as u8 | sparse
    }

    /// The numbers of all codecs that this build reads.
    pub fn known_ids() -> impl Iterator<Item = u8> {
        let formats = 0..ValueFormat::ALL.len() as u8;
        formats.clone().chain(formats.map(|id| id | SPARSE))
    }

    /// What a codec's number says: whether values are left out, and the format of the others.
    pub(super) fn parts_of_id(id: u8) -> Option<(bool, ValueFormat)> {
        let format = ValueFormat::ALL.get(usize::from(id & !SPARSE))?;
        Some((id & SPARSE != 0, *format))
    }
}

impl Default for Codec {
    fn default() -> Self {
        Self::F16
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.top_k {
            Some(share) => f.pad(&format!("top-k:{share}+{}", self.values.name())),
            None => f.pad(self.values.name()),
        }
    }
}

impl FromStr for Codec {
    type Err = CodecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || CodecError { text: text.into() };
        let format = |name: &str| {
            let found = ValueFormat::ALL.into_iter().find(|format| format.name() == name);
            found.ok_or_else(unknown)
        };
        let Some(stages) = text.strip_prefix("top-k:") else {
            return Ok(Self::dense(format(text)?));
        };
        let (share, values) = stages.split_once('+').ok_or_else(unknown)?;
        let share = share.parse().map_err(|_| unknown())?;
        Self::top_k(share, format(values)?).map_err(|_| unknown())
    }
}

impl From<Codec> for String {
    fn from(codec: Codec) -> Self {
        codec.to_string()
    }
}

impl TryFrom<String> for Codec {
    type Error = CodecError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codecs_read_back_as_they_are_written() {
        for text in ["f32", "f16", "int8", "int4", "int2", "top-k:0.1+int4", "top-k:1+f32"] {
            let codec: Codec = text.parse().unwrap();
            assert_eq!(codec.to_string(), text);
            let sparse = text.starts_with("top-k");
            assert_eq!(Codec::parts_of_id(codec.id()), Some((sparse, codec.values())));
            assert!(Codec::known_ids().any(|id| id == codec.id()));
        }
    }

    #[test]
    fn codecs_that_are_none_are_refused_with_what_there_is() {
        for text in
            ["", "int3", "top-k", "top-k:0.1", "top-k:0+int4", "top-k:1.5+int4", "top-k:x+f16"]
        {
            let error = text.parse::<Codec>().unwrap_err().to_string();
            assert!(error.contains(text) && error.contains("top-k:0.1+int4"), "{error}");
        }
        assert_eq!(Codec::parts_of_id(5), None);
        assert_eq!(Codec::parts_of_id(32), None);
    }
}
