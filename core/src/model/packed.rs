//! Batches without padding: the tokens of all sequences end to end.

use std::ops::Range;

use crate::data::{TokenizedExample, TokenizedPair};
use crate::ops::Segment;

/// A token that the model is asked to predict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetToken {
    /// Row of the batch whose hidden state predicts it: that of the token before.
    pub row: u32,
    /// The token.
    pub token: u32,
    /// Which sequence, or which answer of a preference pair, it belongs to.
    pub group: u32,
}

/// Sequences laid end to end, and what is to be predicted in them.
#[derive(Debug, Clone, Default)]
pub struct PackedBatch {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Position of each token in its sequence; a shared prefix counts.
    pub positions: Vec<u32>,
    /// Which tokens attend to which; their queries follow each other without gaps.
    pub segments: Vec<Segment>,
    /// The tokens to predict, by group.
    pub targets: Vec<TargetToken>,
    /// Number of groups.
    pub groups: usize,
    /// Rows of each adapter, one after another, where several share the pass; where there are none,
    /// all rows meet one adapter.
    pub adapters: Vec<Range<usize>>,
}

impl PackedBatch {
    /// Batches laid end to end, each of which meets an adapter of its own. Targets and groups keep
    /// their order.
    pub fn join<'a>(batches: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut joined = Self::default();
        for batch in batches {
            let (rows, groups) = (joined.len(), joined.groups);
            let moved = |part: &Range<usize>| part.start + rows..part.end + rows;
            joined.segments.extend(batch.segments.iter().map(|segment| Segment {
                queries: moved(&segment.queries),
                context: segment.context.iter().map(moved).collect(),
                keys: moved(&segment.keys),
            }));
            joined.targets.extend(batch.targets.iter().map(|target| TargetToken {
                row: target.row + rows as u32,
                group: target.group + groups as u32,
                ..*target
            }));
            joined.ids.extend_from_slice(&batch.ids);
            joined.positions.extend_from_slice(&batch.positions);
            joined.groups += batch.groups;
            joined.adapters.push(rows..joined.len());
        }
        joined
    }

    /// Rows of each adapter, of which there is at least one.
    pub(super) fn rows_of_adapters(&self) -> Vec<Range<usize>> {
        let all = 0..self.len();
        if self.adapters.is_empty() { Vec::from_iter([all]) } else { self.adapters.clone() }
    }

    /// Texts, one group each. What follows the last token before a supervised one influences no
    /// prediction and takes no rows; a text without supervised tokens takes none at all.
    pub fn from_examples<'a>(examples: impl IntoIterator<Item = &'a TokenizedExample>) -> Self {
        let mut batch = Self::default();
        for example in examples {
            let TokenizedExample { ids, supervised } = example;
            let rows = example.pass_rows();
            let first = batch.push_segment(&ids[..rows], 0, 0..0);
            for t in (1..=rows).filter(|&t| supervised[t]) {
                batch.push_target(first + t - 1, ids[t]);
            }
            batch.groups += 1;
        }
        batch
    }

    /// Token sequences whose every row is wanted, with nothing to predict.
    pub fn from_sequences<'a>(sequences: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let mut batch = Self::default();
        for ids in sequences {
            batch.push_segment(ids, 0, 0..0);
        }
        batch
    }

    /// Preference pairs, two groups each (`2i` the chosen answer of pair `i`, `2i + 1` the rejected
    /// one): the prompt stands once and both answers attend to it.
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = &'a TokenizedPair>) -> Self {
        let mut batch = Self::default();
        for pair in pairs {
            let prompt = batch.push_segment(&pair.prompt, 0, 0..0);
            let prefix = prompt..prompt + pair.prompt.len();
            for answer in [&pair.chosen, &pair.rejected] {
                batch.push_continuation(prefix.clone(), answer);
            }
        }
        batch
    }

    /// Prefixes with their continuations, one group a continuation, in order: a prefix stands once
    /// and all of its continuations attend to it, but not to each other. A prefix holds at least one
    /// token.
    pub fn from_continuations<'a>(
        prefixes: impl IntoIterator<Item = (&'a [u32], &'a [Vec<u32>])>,
    ) -> Self {
        let mut batch = Self::default();
        for (prefix, continuations) in prefixes {
            let first = batch.push_segment(prefix, 0, 0..0);
            for continuation in continuations {
                batch.push_continuation(first..first + prefix.len(), continuation);
            }
        }
        batch
    }

    /// Rows of the batch: tokens that are computed.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Appends tokens that attend to each other and to the rows `prefix`; returns their first row.
    fn push_segment(&mut self, ids: &[u32], first_position: usize, prefix: Range<usize>) -> usize {
        let first = self.ids.len();
        if !ids.is_empty() {
            self.ids.extend_from_slice(ids);
            let positions = first_position..first_position + ids.len();
            self.positions.extend(positions.map(|position| position as u32));
            let queries = first..first + ids.len();
            let context = if prefix.is_empty() { Vec::new() } else { vec![prefix] };
            self.segments.push(Segment { keys: queries.clone(), queries, context });
        }
        first
    }

    /// Adds a text that follows the rows `prefix`, as a group of its own.
    fn push_continuation(&mut self, prefix: Range<usize>, text: &[u32]) {
        // The last token predicts nothing, so it need not be computed.
        let inputs = &text[..text.len().saturating_sub(1)];
        let first = self.push_segment(inputs, prefix.len(), prefix.clone());
        for (t, &token) in text.iter().enumerate() {
            let row = if t == 0 { prefix.end - 1 } else { first + t - 1 };
            self.push_target(row, token);
        }
        self.groups += 1;
    }

    fn push_target(&mut self, row: usize, token: u32) {
        self.targets.push(TargetToken { row: row as u32, token, group: self.groups as u32 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_answers_of_a_pair_share_one_prompt() {
        let pair = TokenizedPair { prompt: vec![1, 2, 3], chosen: vec![4, 5], rejected: vec![6] };
        let batch = PackedBatch::from_pairs([&pair]);
        assert_eq!(batch.ids, [1, 2, 3, 4]);
        assert_eq!(batch.positions, [0, 1, 2, 3]);
        assert_eq!(batch.segments.len(), 2);
        assert_eq!(batch.segments[1].context.first(), Some(&(0..3)));
        let targets: Vec<_> = batch.targets.iter().map(|t| (t.row, t.token, t.group)).collect();
        assert_eq!(targets, [(2, 4, 0), (3, 5, 0), (2, 6, 1)]);
    }

    #[test]
    fn joined_batches_attend_and_predict_as_they_did_alone() {
        let pair = TokenizedPair { prompt: vec![1, 2], chosen: vec![4, 5], rejected: vec![6, 7] };
        let example = TokenizedExample { ids: vec![8, 9], supervised: vec![false, true] };
        let parts = [PackedBatch::from_examples([&example]), PackedBatch::from_pairs([&pair])];
        let joined = PackedBatch::join(&parts);
        assert_eq!(joined.ids, [8, 1, 2, 4, 6]);
        assert_eq!(joined.positions, [0, 0, 1, 2, 2]);
        assert_eq!(joined.adapters, [0..1, 1..5]);
        let last = joined.segments.last().unwrap();
        assert_eq!(
            (&last.queries, last.context.first(), &last.keys),
            (&(4..5), Some(&(1..3)), &(4..5))
        );
        let targets: Vec<_> = joined.targets.iter().map(|t| (t.row, t.token, t.group)).collect();
        assert_eq!(targets, [(0, 9, 0), (2, 4, 1), (3, 5, 1), (2, 6, 2), (4, 7, 2)]);
    }

    #[test]
    fn the_first_token_of_a_text_is_never_predicted() {
        let example = TokenizedExample { ids: vec![7, 8, 9], supervised: vec![true, false, true] };
        let batch = PackedBatch::from_examples([&example, &example]);
        let targets: Vec<_> = batch.targets.iter().map(|t| (t.row, t.token, t.group)).collect();
        assert_eq!(targets, [(1, 9, 0), (3, 9, 1)]);
        assert_eq!(batch.positions, [0, 1, 0, 1]);
    }
}
