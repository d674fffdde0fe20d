//! How long the samples of a data set are, for the memory plan.

use super::Learner;
use crate::data::{Dataset, DatasetError, Encoder};

/// Rows looked at. A larger data set is judged by rows spread evenly over it.
const PROBED_ROWS: usize = 512;

/// Lengths of a data set's samples, in rows of a pass ([`Learner::pass_rows`]).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleLengths {
    /// Of the shortest sample looked at.
    pub shortest: usize,
    /// Their mean.
    pub mean: usize,
    /// Of the longest sample. Where not all rows were looked at, what the sequence length allows.
    pub longest: usize,
    /// The largest share of a sample's rows that predict a target. Where not all rows were looked
    /// at, 1.
    pub target_share: f64,
}

impl SampleLengths {
    /// Looks at the samples of a data set. The result depends on nothing but the arguments, so that a
    /// run that is taken up again plans as before.
    ///
    /// # Errors
    /// When a row cannot be read or tokenised.
    pub fn probe<L: Learner>(
        dataset: &Dataset,
        encoder: &Encoder<'_>,
    ) -> Result<Self, DatasetError> {
        let rows = dataset.len();
        let probed = rows.min(PROBED_ROWS);
        let (mut lengths, mut share) = (Vec::with_capacity(probed), 0.0_f64);
        for i in 0..probed {
            let row = u32::try_from(i * rows / probed).unwrap_or(u32::MAX);
            let Some(sample) = L::sample(dataset, row, encoder)? else { continue };
            let rows = L::pass_rows(&sample).max(1);
            share = share.max(L::targets(&sample) as f64 / rows as f64);
            lengths.push(rows);
        }
        let whole = rows == probed && !lengths.is_empty();
        Ok(Self {
            shortest: lengths.iter().min().copied().unwrap_or(1),
            mean: (lengths.iter().sum::<usize>() / lengths.len().max(1)).max(1),
            longest: match lengths.iter().max() {
                Some(&longest) if whole => longest,
                _ => L::longest(encoder.seq_len()),
            },
            target_share: if whole { share } else { 1.0 },
        })
    }
}
