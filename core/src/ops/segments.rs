//! Which tokens attend to which.

use std::ops::Range;

/// Tokens that attend causally to each other and, all of them, to a common prefix before them.
///
/// A plain sequence has no prefix. The two answers of a preference are two segments with their
/// prompt as prefix, computed once. In generation, the prefix is what the cache holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Rows of the query matrix.
    pub queries: Range<usize>,
    /// First row of the segment's own keys; there are as many as queries.
    pub own: usize,
    /// Rows of the keys that come before the segment's own, contiguous in position.
    pub prefix: Range<usize>,
}

impl Segment {
    /// A sequence of its own in rows `rows`, with keys in the same rows.
    pub fn sequence(rows: Range<usize>) -> Self {
        Self { own: rows.start, queries: rows, prefix: 0..0 }
    }

    /// Rows of the segment's own keys.
    pub fn own_keys(&self) -> Range<usize> {
        self.own..self.own + self.queries.len()
    }

    /// Keys that the last query may attend to.
    pub fn num_keys(&self) -> usize {
        self.prefix.len() + self.queries.len()
    }
}
