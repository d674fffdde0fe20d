//! Models and data sets: where they lie on this machine and how they get there.

mod cache;

pub use cache::{Cache, CacheError, CachedModel};
