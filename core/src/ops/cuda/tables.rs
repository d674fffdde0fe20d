//! What kernels are told about a batch besides its values: which rows belong together, as lists of
//! numbers on the device. They are the same for all layers, so the last ones are kept.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Device, Result, Tensor};

use super::super::Segment;

/// Rows of a tile of [`GroupTables`], as in `grouped.cuh`.
const GROUP_ROWS: usize = 64;

/// Rows whose products are summed in one go, so that long groups have several blocks for each part of
/// a gradient.
const CHUNK: usize = 1024;

/// Lists of the last batches.
#[derive(Debug)]
pub(super) struct Recent<K, V>(Mutex<Vec<(K, Arc<V>)>>);

/// How many lists are kept: a layer asks for those of all its rows and of the selected ones.
const KEPT: usize = 4;

impl<K, V> Recent<K, V> {
    pub fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// The list whose key `is`, or the one that `make` makes.
    pub fn get(
        &self,
        is: impl Fn(&K) -> bool,
        make: impl FnOnce() -> Result<(K, V)>,
    ) -> Result<Arc<V>> {
        // A panic elsewhere leaves whole entries behind.
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = match entries.iter().position(|(key, _)| is(key)) {
            Some(at) => entries.remove(at),
            None => {
                let (key, value) = make()?;
                entries.truncate(KEPT - 1);
                (key, Arc::new(value))
            }
        };
        let value = entry.1.clone();
        entries.insert(0, entry);
        Ok(value)
    }
}

/// A list of rows of numbers on a device.
#[derive(Debug)]
pub(super) struct Table {
    /// The numbers; at least one, as a device has no tensors without.
    pub numbers: Tensor,
    /// How many rows there are.
    pub rows: usize,
}

impl Table {
    fn new<const N: usize>(rows: &[[usize; N]], device: &Device) -> Result<Self> {
        let numbers = rows.iter().flatten().map(|&number| u32::try_from(number));
        let Ok(mut numbers) = numbers.collect::<std::result::Result<Vec<u32>, _>>() else {
            candle_core::bail!("a batch of so many rows is too large for a card's kernels")
        };
        if numbers.is_empty() {
            numbers.push(0);
        }
        let len = numbers.len();
        Ok(Self { numbers: Tensor::from_vec(numbers, len, device)?, rows: rows.len() })
    }
}

/// What the products of adapters are told about their groups of rows.
#[derive(Debug)]
pub(super) struct GroupTables {
    /// Group, first row, end of the group: rows that one row of blocks has.
    pub tiles: Table,
    /// First row and end of the rows whose products are summed at once; at least one for each group.
    pub chunks: Table,
    /// Where the chunks of each group end.
    pub ends: Table,
}

impl GroupTables {
    /// # Errors
    /// When groups are not in order, or reach beyond `rows`.
    pub fn new(groups: &[Range<usize>], rows: usize, device: &Device) -> Result<Self> {
        let (mut tiles, mut chunks, mut ends, mut at) = (vec![], vec![], vec![], 0);
        for (g, group) in groups.iter().enumerate() {
            if group.start != at || group.end < group.start {
                candle_core::bail!("groups of rows have gaps")
            }
            at = group.end;
            tiles.extend(group.clone().step_by(GROUP_ROWS).map(|row| [g, row, group.end]));
            let count = group.len().div_ceil(CHUNK).max(1);
            let start = |i: usize| (group.start + i * CHUNK).min(group.end);
            chunks.extend((0..count).map(|i| [start(i), start(i + 1)]));
            ends.push([chunks.len()]);
        }
        if at != rows {
            candle_core::bail!("groups of rows end at {at} of {rows}")
        }
        Ok(Self {
            tiles: Table::new(&tiles, device)?,
            chunks: Table::new(&chunks, device)?,
            ends: Table::new(&ends, device)?,
        })
    }
}

/// What attention is told about its segments. Rows are those of `attention.cuh`.
#[derive(Debug)]
pub(super) struct SegmentTables {
    /// `Queries` of a block going forward.
    pub forward: Table,
    /// `Queries` of a block going backward.
    pub back: Table,
    /// The rows of each segment's keys, by position.
    pub key_rows: Table,
    /// `Keys`: all rows of keys, in tiles whose keys are all seen by the same segments.
    pub keys: Table,
    /// `Visit`s of these tiles.
    pub visits: Table,
    /// Whether every query is in a segment.
    pub complete: bool,
}

/// Rows of a block of attention, by the direction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct BlockRows {
    pub forward: usize,
    pub back: usize,
}

impl SegmentTables {
    /// # Errors
    /// When a segment names rows beyond `queries` or `keys`, or has not as many keys as queries.
    pub fn new(
        segments: &[Segment],
        (queries, keys): (usize, usize),
        rows: BlockRows,
        device: &Device,
    ) -> Result<Self> {
        for segment in segments {
            let mut runs = segment.context.iter().chain([&segment.keys]);
            if segment.queries.len() != segment.keys.len()
                || segment.queries.end > queries
                || runs.any(|run| run.end > keys)
            {
                candle_core::bail!("a segment names rows that do not exist")
            }
        }
        let (tiles, visits) = key_tiles(segments, keys, rows.back);
        let key_rows = segments.iter().flat_map(|segment| {
            segment.context.iter().chain([&segment.keys]).flat_map(Range::clone).map(|row| [row])
        });
        let covered: usize = segments.iter().map(|segment| segment.queries.len()).sum();
        Ok(Self {
            forward: Table::new(&query_tiles(segments, rows.forward), device)?,
            back: Table::new(&query_tiles(segments, rows.back), device)?,
            key_rows: Table::new(&key_rows.collect::<Vec<_>>(), device)?,
            keys: Table::new(&tiles, device)?,
            visits: Table::new(&visits, device)?,
            complete: covered == queries,
        })
    }
}

fn first_position(segment: &Segment) -> usize {
    segment.context.iter().map(Range::len).sum()
}

/// First row, how many, position of the first, where the segment's keys start in the list of rows.
fn query_tiles(segments: &[Segment], rows: usize) -> Vec<[usize; 4]> {
    let (mut tiles, mut keys) = (Vec::new(), 0);
    for segment in segments {
        let before = first_position(segment);
        tiles.extend((0..segment.queries.len()).step_by(rows).map(|at| {
            let count = rows.min(segment.queries.len() - at);
            [segment.queries.start + at, count, before + at, keys]
        }));
        keys += before + segment.keys.len();
    }
    tiles
}

/// Tiles of at most `rows` keys, each with its first row, how many, and its visits from where to where;
/// and the visits: position of the first key, first row of the queries, how many, and the position of
/// the first.
fn key_tiles(segments: &[Segment], keys: usize, rows: usize) -> (Vec<[usize; 4]>, Vec<[usize; 4]>) {
    struct Run<'a> {
        rows: Range<usize>,
        position: usize,
        segment: &'a Segment,
    }
    let mut runs = Vec::new();
    for segment in segments {
        let mut position = 0;
        for rows in segment.context.iter().chain([&segment.keys]) {
            runs.push(Run { rows: rows.clone(), position, segment });
            position += rows.len();
        }
    }
    runs.retain(|run| !run.rows.is_empty());
    let bounds = runs.iter().flat_map(|run| [run.rows.start, run.rows.end]);
    let bounds: BTreeSet<usize> = bounds.chain([0, keys]).collect();
    // Runs begin and end at bounds, so between two of them all keys are seen by the same runs.
    runs.sort_by_key(|run| run.rows.start);
    let (mut waiting, mut open) = (runs.iter().peekable(), Vec::<&Run>::new());
    let (mut tiles, mut visits) = (Vec::new(), Vec::new());
    let bounds: Vec<usize> = bounds.into_iter().collect();
    for pair in bounds.windows(2) {
        open.retain(|run| run.rows.end > pair[0]);
        while let Some(run) = waiting.next_if(|run| run.rows.start == pair[0]) {
            open.push(run);
        }
        for start in (pair[0]..pair[1]).step_by(rows) {
            let first = visits.len();
            visits.extend(open.iter().map(|run| {
                let queries = &run.segment.queries;
                let position = run.position + start - run.rows.start;
                [position, queries.start, queries.len(), first_position(run.segment)]
            }));
            tiles.push([start, rows.min(pair[1] - start), first, visits.len()]);
        }
    }
    (tiles, visits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_several_segments_see_are_tiles_with_a_visit_of_each() {
        let prompt = 0..5;
        let segments = [
            Segment::sequence(prompt.clone()),
            Segment { queries: 5..8, context: vec![prompt.clone()], keys: 5..8 },
            Segment { queries: 8..9, context: vec![prompt], keys: 10..11 },
        ];
        let (tiles, visits) = key_tiles(&segments, 12, 4);
        let expected =
            [[0, 4, 0, 3], [4, 1, 3, 6], [5, 3, 6, 7], [8, 2, 7, 7], [10, 1, 7, 8], [11, 1, 8, 8]];
        assert_eq!(tiles, expected);
        assert_eq!(visits[..3], [[0, 0, 5, 0], [0, 5, 3, 5], [0, 8, 1, 5]]);
        assert_eq!(visits[3..6], [[4, 0, 5, 0], [4, 5, 3, 5], [4, 8, 1, 5]]);
        assert_eq!(visits[6..], [[5, 5, 3, 5], [5, 8, 1, 5]]);
        assert_eq!(query_tiles(&segments, 4)[1..], [[4, 1, 4, 0], [5, 3, 5, 5], [8, 1, 5, 13]]);
    }

    #[test]
    fn only_the_last_lists_are_kept() {
        let recent = Recent::new();
        let mut made = 0;
        let mut ask = |key: usize| {
            let make = || {
                made += 1;
                Ok((key, key))
            };
            assert_eq!(*recent.get(|&known| known == key, make).unwrap(), key);
            made
        };
        assert_eq!([0, 1, 0, 1, 2, 3, 0].map(&mut ask), [1, 2, 2, 2, 3, 4, 4]);
        assert_eq!([4, 1].map(ask), [5, 6]);
    }
}
