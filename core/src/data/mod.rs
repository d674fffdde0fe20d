//! Training data: from files to tokenised examples, spread over clients.
//!
//! A [`Dataset`] gives rows by number; a [`Partition`] says which client holds which numbers; an
//! [`Encoder`] turns a row into tokens by a [`Template`]. Rows stay in their files until they are
//! asked for, so memory does not grow with the data or with the number of clients.

mod dataset;
mod demo;
mod encode;
mod example;
mod finance;
mod format;
mod holdout;
mod lines;
mod mapping;
mod order;
mod partition;
mod preference;
mod record;
mod sets;
mod store;
mod template;

#[cfg(test)]
mod tests;

pub use dataset::{DataSource, Dataset, DatasetError, Skipped};
pub use encode::{EncodeError, Encoder, Tokenize, TokenizerError};
pub use example::{TokenizedExample, TokenizedPair};
pub use finance::{NEWS_INSTRUCTION, Sentiment, TWEET_INSTRUCTION};
pub use format::{RowFault, SkipReason};
pub use holdout::{HoldOut, HoldOutError, Split};
pub use lines::{MAX_LINE_BYTES, ReadError, TextLines};
pub use mapping::{FieldMap, FieldMapError};
pub use order::RowOrder;
pub use partition::{Partition, PartitionError, PartitionNameError, Shard};
pub use record::{Content, Message, Record, Role};
pub use sets::{NAMED_SETS, NamedSet, named_set};
pub use template::{Template, UnknownTemplate};
