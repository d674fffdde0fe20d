//! The rows of a batch whose final state something reads.
//!
//! Every row passes through all layers but the last, since later rows attend to it there. In the last
//! layer it only lends its key and value: queries, attention's output and the whole MLP are computed
//! for the selected rows alone.

use std::ops::Range;

use candle_core::{Device, Result, Tensor};

use crate::ops::{Rotation, Segment};

/// Some rows of a batch, in order and each once, and how they attend.
#[derive(Debug)]
pub(super) struct Selection {
    rows: Vec<u32>,
    /// `rows` where the engine computes.
    index: Tensor,
    /// Rotary angles of the rows.
    pub rotation: Rotation,
    /// The batch's segments, their queries counted in selected rows.
    pub segments: Vec<Segment>,
    /// The batch's rows of each adapter, counted in selected rows.
    pub adapters: Vec<Range<usize>>,
}

impl Selection {
    /// The given rows of a batch, in any order and with repetitions, that attends by `segments`, is
    /// rotated by `rotation`, and whose rows `adapters` divides among adapters.
    pub fn new(
        rows: impl IntoIterator<Item = u32>,
        segments: &[Segment],
        adapters: &[Range<usize>],
        rotation: &Rotation,
        device: &Device,
    ) -> Result<Self> {
        let mut rows: Vec<u32> = rows.into_iter().collect();
        rows.sort_unstable();
        rows.dedup();
        let index = Tensor::from_slice(&rows, rows.len(), device)?;
        let rotation = Rotation {
            cos: rotation.cos.index_select(&index, 0)?,
            sin: rotation.sin.index_select(&index, 0)?,
        };
        let segments = select(segments, &rows);
        let before = |end: usize| rows.partition_point(|&row| (row as usize) < end);
        let adapters = adapters.iter().map(|part| before(part.start)..before(part.end)).collect();
        Ok(Self { rows, index, rotation, segments, adapters })
    }

    /// The selected rows of `x`.
    pub fn of(&self, x: &Tensor) -> Result<Tensor> {
        x.index_select(&self.index, 0)
    }

    /// A tensor of `rows` rows that holds the selected rows `x` in their places and zero elsewhere.
    pub fn spread(&self, x: &Tensor, rows: usize) -> Result<Tensor> {
        let zeros = Tensor::zeros((rows, x.dims2()?.1), x.dtype(), x.device())?;
        zeros.index_add(&self.index, x, 0)
    }

    /// Where a row of the batch stands among the selected ones.
    pub fn place(&self, row: u32) -> Option<u32> {
        self.rows.binary_search(&row).ok().map(|place| place as u32)
    }
}

/// The segments of the queries in `rows`, which are in order: for each run of neighbouring rows one,
/// whose context is all that comes before it. Their queries count the rows of `rows`.
fn select(segments: &[Segment], rows: &[u32]) -> Vec<Segment> {
    let mut selected = Vec::new();
    for segment in segments {
        let first = rows.partition_point(|&row| (row as usize) < segment.queries.start);
        let end = rows.partition_point(|&row| (row as usize) < segment.queries.end);
        let mut start = first;
        for run in rows[first..end].chunk_by(|a, b| a + 1 == *b) {
            let queries = start..start + run.len();
            start = queries.end;
            let before = run[0] as usize - segment.queries.start;
            let key = segment.keys.start + before;
            let own = (before > 0).then_some(segment.keys.start..key);
            let context: Vec<Range<usize>> = segment.context.iter().cloned().chain(own).collect();
            selected.push(Segment { queries, context, keys: key..key + run.len() });
        }
    }
    selected
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(queries: Range<usize>, context: &[(usize, usize)], keys: Range<usize>) -> Segment {
        Segment { queries, context: context.iter().map(|&(start, end)| start..end).collect(), keys }
    }

    #[test]
    fn runs_of_selected_rows_see_all_that_comes_before_them() {
        let segments = [Segment::sequence(0..4), segment(4..9, &[(0, 4)], 4..9)];
        let expected = [
            segment(0..1, &[(0, 3)], 3..4),
            segment(1..3, &[(0, 4), (4, 5)], 5..7),
            segment(3..4, &[(0, 4), (4, 8)], 8..9),
        ];
        assert_eq!(select(&segments, &[3, 5, 6, 8]), expected);
    }

    #[test]
    fn all_rows_are_the_segments_themselves() {
        let segments = [Segment::sequence(0..3), segment(3..5, &[(0, 2)], 7..9)];
        assert_eq!(select(&segments, &[0, 1, 2, 3, 4]), segments);
    }
}
