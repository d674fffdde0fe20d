//! Keys and values of tokens already seen: of one text, or of many that are written together.

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};

use super::layer::{Earlier, KeysAndValues};
use crate::ops::Segment;

/// Places have room for a multiple of so many tokens.
const ROOM: usize = 64;

/// Keys and values of tokens already seen, layer by layer, for generation and for scoring many
/// continuations of one prefix.
#[derive(Clone, Default)]
pub struct Cache {
    pub(super) layers: Vec<KeysAndValues>,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("layers", &self.layers.len()).finish_non_exhaustive()
    }
}

impl Cache {
    /// A cache that holds nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Tokens held.
    pub(crate) fn len(&self) -> Result<usize> {
        match self.layers.first() {
            Some(layer) => Ok(layer.keys.dims2()?.0),
            None => Ok(0),
        }
    }

    /// What a layer is given of the cache: new keys and values go behind it, in a copy.
    pub(super) fn earlier(&self) -> Vec<Earlier<'_>> {
        self.layers.iter().map(Earlier::Copied).collect()
    }
}

/// Texts that go on from one beginning, each its own way and all in the same passes. Keys and values
/// of each lie in a place of its own and are written there in place: a pass that fails leaves the
/// texts as they were, since their lengths did not change.
pub struct Branches {
    layers: Vec<KeysAndValues>,
    /// Tokens of the beginning, in the first rows.
    beginning: usize,
    /// Rows of each place.
    room: usize,
    /// Tokens in each place.
    lengths: Vec<usize>,
}

impl std::fmt::Debug for Branches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Branches").field("lengths", &self.lengths).finish_non_exhaustive()
    }
}

impl Branches {
    /// `places` places behind what `cache` holds, for `layers` layers whose keys are `width` wide.
    pub(super) fn new(
        cache: &Cache,
        places: usize,
        (layers, width): (usize, usize),
        (dtype, device): (DType, &Device),
    ) -> Result<Self> {
        let mut kept = cache.layers.clone();
        // The first room is made in a copy, so the cache's own tensors are never written to.
        while kept.len() < layers {
            let none = Tensor::zeros((0, width), dtype, device)?;
            kept.push(KeysAndValues { keys: none.clone(), values: none });
        }
        Ok(Self { layers: kept, beginning: cache.len()?, room: 0, lengths: vec![0; places] })
    }

    /// Makes a place free for another text.
    pub fn clear(&mut self, place: usize) {
        self.lengths[place] = 0;
    }

    /// Sees to it that each place has room for more tokens, given as places with their numbers of
    /// tokens.
    pub(super) fn reserve(&mut self, more: impl IntoIterator<Item = (usize, usize)>) -> Result<()> {
        let needed = more.into_iter().map(|(place, len)| self.lengths[place] + len).max();
        let needed = needed.unwrap_or(0);
        if needed <= self.room {
            return Ok(());
        }
        let room = needed.max(2 * self.room).next_multiple_of(ROOM);
        for layer in &mut self.layers {
            for tensor in [&mut layer.keys, &mut layer.values] {
                let width = tensor.dims2()?.1;
                let rows = self.beginning + self.lengths.len() * room;
                let wider = Tensor::zeros((rows, width), tensor.dtype(), tensor.device())?;
                let copy = |from: usize, to: usize, len: usize| match len {
                    0 => Ok(()),
                    _ => wider.slice_set(&tensor.narrow(0, from, len)?, 0, to),
                };
                copy(0, 0, self.beginning)?;
                for (place, &len) in self.lengths.iter().enumerate() {
                    let start = |room| self.beginning + place * room;
                    copy(start(self.room), start(room), len)?;
                }
                *tensor = wider;
            }
        }
        self.room = room;
        Ok(())
    }

    /// How more tokens of some places attend, given as places with their numbers of tokens, which lie
    /// end to end in the pass. There is room for them.
    pub(super) fn segments(&self, more: impl IntoIterator<Item = (usize, usize)>) -> Vec<Segment> {
        let mut query = 0;
        let segment = |(place, len): (usize, usize)| {
            let start = self.beginning + place * self.room;
            let key = start + self.lengths[place];
            let context =
                [0..self.beginning, start..key].into_iter().filter(|rows| !rows.is_empty());
            let queries = query..query + len;
            query = queries.end;
            Segment { queries, context: context.collect(), keys: key..key + len }
        };
        more.into_iter().map(segment).collect()
    }

    /// What a layer is given of the texts: new keys and values go where `segments` say.
    pub(super) fn earlier<'a>(&'a self, segments: &'a [Segment]) -> Vec<Earlier<'a>> {
        self.layers.iter().map(|layer| Earlier::InPlace(layer, segments)).collect()
    }

    /// The tokens of a pass are in their places now.
    pub(super) fn grow(&mut self, more: impl IntoIterator<Item = (usize, usize)>) {
        more.into_iter().for_each(|(place, len)| self.lengths[place] += len);
    }
}

/// A segment whose keys lie behind the `before` rows of a cache, all of which it sees first.
pub(super) fn after_cache(before: usize, segment: &Segment) -> Segment {
    let shifted = |rows: &Range<usize>| rows.start + before..rows.end + before;
    let cached = (before > 0).then_some(0..before);
    Segment {
        queries: segment.queries.clone(),
        context: cached.into_iter().chain(segment.context.iter().map(shifted)).collect(),
        keys: shifted(&segment.keys),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_keep_their_keys_when_they_get_more_room() {
        let row = |value: f32| Tensor::full(value, (1, 2), &Device::Cpu).unwrap();
        let cache = Cache { layers: vec![KeysAndValues { keys: row(1.0), values: row(1.0) }] };
        let mut branches = Branches::new(&cache, 2, (1, 2), (DType::F32, &Device::Cpu)).unwrap();
        for (value, len) in [(2f32, 1), (3.0, ROOM)] {
            branches.reserve([(1, len)]).unwrap();
            let segments = branches.segments([(1, len)]);
            let own = Tensor::full(value, (len, 2), &Device::Cpu).unwrap();
            let own = KeysAndValues { keys: own.clone(), values: own };
            branches.earlier(&segments)[0].with(own).unwrap();
            branches.grow([(1, len)]);
        }
        let segments = branches.segments([(1, 1)]);
        assert_eq!(segments[0].context[0], 0..1);
        let keys = branches.layers[0].keys.narrow(1, 0, 1).unwrap().flatten_all().unwrap();
        let keys = keys.to_vec1::<f32>().unwrap();
        assert_eq!(keys[0], 1.0);
        let text = &keys[segments[0].context[1].clone()];
        assert_eq!((text[0], text[1], text.len()), (2.0, 3.0, ROOM + 1));
        assert_eq!(cache.len().unwrap(), 1);
    }

    #[test]
    fn a_text_sees_the_beginning_and_its_own_place() {
        let branches = Branches { layers: Vec::new(), beginning: 10, room: 5, lengths: vec![0, 2] };
        let segments = branches.segments([(1, 1), (0, 3)]);
        assert_eq!(segments[0].queries, 0..1);
        assert_eq!(segments[0].context, [0..10, 15..17]);
        assert_eq!(segments[0].keys, 17..18);
        assert_eq!((&segments[1].queries, &segments[1].keys), (&(1..4), &(10..13)));
        assert_eq!(segments[1].context.len(), 1);
    }
}
