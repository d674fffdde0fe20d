//! The shared adapter's versions: what a server hands out to devices that hold an earlier one.
//!
//! Each version is the one before plus a difference as the codec writes it, so that all devices of a
//! version hold the same bits. What the codec leaves out of a version is part of the next difference:
//! the way down has its own error feedback. A download is one message, or several end to end that
//! lead from version to version; where they would take more bytes than the whole adapter, it is sent
//! in full.

use std::collections::VecDeque;

use super::{
    BaseId, Codec, Header, Rounding, UpdateError, decode, decode_for_base, encode, encode_for_base,
};
use crate::adapter::ParameterSet;

/// Messages of a download at most: a device need not follow a server without end.
const MAX_MESSAGES: usize = 64;

/// The newest version of the shared adapter, and the differences that lead to it. Versions are
/// numbered from 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Versions {
    codec: Codec,
    /// The oldest version that a difference starts from, and its number.
    oldest: ParameterSet,
    first: u64,
    /// Message `i` leads from version `first + i` to the next.
    steps: VecDeque<Vec<u8>>,
    newest: ParameterSet,
    /// The newest version in one message.
    full: Vec<u8>,
}

impl Versions {
    /// Version 0. Unless `codec` is exact, the adapter is rounded to f16, so that devices get it in
    /// half the bytes.
    ///
    /// # Errors
    /// When a value is not finite.
    pub fn begin(adapter: &ParameterSet, codec: Codec) -> Result<Self, UpdateError> {
        let full = encode(adapter, if codec.is_exact() { Codec::F32 } else { Codec::F16 })?;
        let newest = decode(&full, adapter)?;
        Ok(Self { codec, oldest: newest.clone(), first: 0, steps: VecDeque::new(), newest, full })
    }

    /// The newest version's number.
    pub fn number(&self) -> u64 {
        self.first + self.steps.len() as u64
    }

    /// The newest version, as devices hold it.
    pub fn newest(&self) -> &ParameterSet {
        &self.newest
    }

    /// A next version, as near to `target` as one message of the codec gets.
    ///
    /// # Errors
    /// When the layouts differ or a value is not finite; the versions are then as they were.
    pub fn publish(&mut self, target: &ParameterSet) -> Result<(), UpdateError> {
        if self.codec.is_exact() {
            self.newest.check_layout(target)?;
            let full = encode(target, Codec::F32)?;
            let (oldest, newest) = (target.clone(), target.clone());
            let first = self.number() + 1;
            *self = Self { codec: self.codec, oldest, first, steps: VecDeque::new(), newest, full };
            return Ok(());
        }
        let difference = target.difference(&self.newest)?;
        let base = BaseId::of(&self.newest);
        let step = encode_for_base(&difference, base, self.codec, Rounding::Nearest)?;
        let mut newest = self.newest.clone();
        newest.add(&decode(&step, &newest)?)?;
        self.full = encode(&newest, Codec::F32)?;
        self.newest = newest;
        self.steps.push_back(step);
        let mut bytes: usize = self.steps.iter().map(Vec::len).sum();
        while bytes > self.full.len() || self.steps.len() > MAX_MESSAGES {
            let Some(step) = self.steps.pop_front() else { break };
            self.oldest.add(&decode(&step, &self.oldest)?)?;
            self.first += 1;
            bytes -= step.len();
        }
        Ok(())
    }

    /// The newest version for a device that holds version `held`, or none.
    pub fn download(&self, held: Option<u64>) -> Vec<u8> {
        let steps = held.and_then(|held| held.checked_sub(self.first));
        match steps.and_then(|skipped| usize::try_from(skipped).ok()) {
            Some(skipped) if skipped < self.steps.len() => {
                self.steps.iter().skip(skipped).flatten().copied().collect()
            }
            _ => self.full.clone(),
        }
    }

    /// The messages that lead to the newest version, one after the other.
    pub fn steps(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.steps.iter().map(Vec::as_slice)
    }

    /// Version `number`, where differences lead on from it.
    ///
    /// # Errors
    /// When a difference is damaged, which only a damaged file does.
    pub fn held(&self, number: u64) -> Result<Option<ParameterSet>, UpdateError> {
        if !(self.first..=self.number()).contains(&number) {
            return Ok(None);
        }
        let mut adapter = self.oldest.clone();
        let steps = usize::try_from(number - self.first).unwrap_or(usize::MAX);
        for step in self.steps.iter().take(steps) {
            adapter.add(&decode(step, &adapter)?)?;
        }
        Ok(Some(adapter))
    }

    /// Everything as bytes: the oldest version's number (u64), that version as an f32 message, and
    /// the messages that lead on from it.
    ///
    /// # Errors
    /// When a value is not finite, which none is.
    pub fn to_bytes(&self) -> Result<Vec<u8>, UpdateError> {
        let mut bytes = self.first.to_le_bytes().to_vec();
        bytes.extend(encode(&self.oldest, Codec::F32)?);
        self.steps.iter().for_each(|step| bytes.extend(step));
        Ok(bytes)
    }

    /// What [`Versions::to_bytes`] wrote, for adapters of the layout of `layout`.
    ///
    /// # Errors
    /// When the bytes are damaged or another adapter's.
    pub fn from_bytes(
        bytes: &[u8],
        layout: &ParameterSet,
        codec: Codec,
    ) -> Result<Self, UpdateError> {
        let (number, messages) = bytes
            .split_first_chunk()
            .ok_or(UpdateError::Truncated { needed: 8, found: bytes.len() as u64 })?;
        let first = u64::from_le_bytes(*number);
        let mut messages = split_messages(messages)?.into_iter();
        let oldest = decode(messages.next().unwrap_or_default(), layout)?;
        let mut newest = oldest.clone();
        let mut steps = VecDeque::new();
        for step in messages {
            newest.add(&decode_for_base(step, &newest, BaseId::of(&newest))?)?;
            steps.push_back(step.to_vec());
        }
        // Version 0 is f16's, and travels as such.
        let begins = first == 0 && steps.is_empty() && !codec.is_exact();
        let full = encode(&newest, if begins { Codec::F16 } else { Codec::F32 })?;
        Ok(Self { codec, oldest, first, steps, newest, full })
    }
}

/// The adapter that a download leads to, for a device that holds `held`. `layout` has the layout
/// that the device expects.
///
/// # Errors
/// When a message is damaged, of another layout, or starts from a version that the device does not
/// hold.
pub fn receive(
    bytes: &[u8],
    layout: &ParameterSet,
    held: Option<&ParameterSet>,
) -> Result<ParameterSet, UpdateError> {
    let mut adapter = held.cloned();
    for message in split_messages(bytes)? {
        let base = Header::read(message)?.base;
        if base == BaseId::NONE {
            adapter = Some(decode(message, layout)?);
            continue;
        }
        let held = adapter.as_mut().ok_or(UpdateError::NotHeld)?;
        match decode_for_base(message, layout, BaseId::of(held)) {
            Err(UpdateError::OtherBase) => return Err(UpdateError::NotHeld),
            difference => held.add(&difference?)?,
        }
    }
    adapter.ok_or(UpdateError::NotHeld)
}

/// The messages that lie end to end in `bytes`; one at least, and not more than a device follows.
///
/// # Errors
/// When one is no message or cut short, or there are too many.
pub fn split_messages(mut bytes: &[u8]) -> Result<Vec<&[u8]>, UpdateError> {
    let mut messages = Vec::new();
    loop {
        let len = Header::read(bytes)?.message_len();
        let truncated = UpdateError::Truncated { needed: len, found: bytes.len() as u64 };
        let at = usize::try_from(len).ok().filter(|&len| len <= bytes.len()).ok_or(truncated)?;
        let (message, rest) = bytes.split_at(at);
        messages.push(message);
        bytes = rest;
        if bytes.is_empty() {
            return Ok(messages);
        }
        if messages.len() > MAX_MESSAGES {
            return Err(UpdateError::Payload("there are more messages than versions lead on"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::Parameter;

    fn adapter(seed: f32) -> ParameterSet {
        let values = |n: usize| (0..n).map(|i| (i as f32 * 0.731 + seed).sin() * 0.1).collect();
        ParameterSet::new(vec![
            Parameter { name: "a".into(), shape: vec![40, 25], values: values(1000) },
            Parameter { name: "b".into(), shape: vec![500], values: values(500) },
        ])
    }

    fn codec() -> Codec {
        "top-k:0.1+int4".parse().unwrap()
    }

    #[test]
    fn devices_of_any_version_end_with_the_same_bits() {
        let mut versions = Versions::begin(&adapter(0.0), codec()).unwrap();
        for round in 1..6u8 {
            versions.publish(&adapter(f32::from(round) * 0.01)).unwrap();
        }
        let layout = adapter(0.0).zeros_like();
        assert_eq!(versions.number(), 5);
        for held in 0..=5 {
            let before = versions.held(held).unwrap();
            let download = versions.download(before.is_some().then_some(held));
            let after = receive(&download, &layout, before.as_ref()).unwrap();
            assert_eq!(&after, versions.newest(), "from version {held}");
        }
        assert_eq!(&receive(&versions.download(None), &layout, None).unwrap(), versions.newest());
        assert!(versions.download(Some(4)).len() * 5 < versions.download(None).len());
    }

    #[test]
    fn what_a_version_leaves_out_comes_with_later_ones() {
        let target = adapter(0.3);
        let mut versions = Versions::begin(&adapter(0.0), codec()).unwrap();
        let distance =
            |versions: &Versions| versions.newest().difference(&target).unwrap().l2_norm();
        let before = distance(&versions);
        for _ in 0..25 {
            versions.publish(&target).unwrap();
        }
        assert!(distance(&versions) < 1e-2 * before, "{} of {before}", distance(&versions));
    }

    #[test]
    fn differences_longer_than_the_adapter_are_forgotten() {
        let int8 = "int8".parse().unwrap();
        let mut versions = Versions::begin(&adapter(0.0), int8).unwrap();
        for round in 1..9u8 {
            versions.publish(&adapter(f32::from(round))).unwrap();
        }
        assert_eq!(versions.held(0).unwrap(), None);
        assert_eq!(versions.download(Some(0)), versions.download(None));
        assert!(versions.held(7).unwrap().is_some());
    }

    #[test]
    fn versions_come_back_from_their_bytes() {
        let mut versions = Versions::begin(&adapter(0.0), codec()).unwrap();
        for round in 0..4u8 {
            let bytes = versions.to_bytes().unwrap();
            let back = Versions::from_bytes(&bytes, &adapter(0.0), codec()).unwrap();
            assert_eq!(back, versions);
            for len in 0..bytes.len().min(400) {
                assert!(Versions::from_bytes(&bytes[..len], &adapter(0.0), codec()).is_err());
            }
            versions.publish(&adapter(f32::from(round))).unwrap();
        }
    }

    #[test]
    fn a_device_without_the_base_is_told_so() {
        let mut versions = Versions::begin(&adapter(0.0), codec()).unwrap();
        versions.publish(&adapter(0.1)).unwrap();
        let (step, layout) = (versions.download(Some(0)), adapter(0.0));
        for held in [None, Some(adapter(0.5))] {
            let error = receive(&step, &layout, held.as_ref()).unwrap_err();
            assert!(matches!(error, UpdateError::NotHeld), "{error}");
        }
    }
}
