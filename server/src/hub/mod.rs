//! Models and data sets: where they lie on this machine and how they get there.

mod cache;
mod checksum;
mod client;
mod dataset;
mod download;
mod error;
mod model;
mod package;
mod repository;
mod rows;

pub use cache::{Cache, CacheError, CachedModel};
pub use checksum::Checksum;
pub use client::{Client, Patience};
pub use dataset::{PULLABLE_SETS, PullableSet, PulledFile, pull_dataset};
pub use download::RemoteFile;
pub use error::HubError;
pub use model::{BUILT_IN, BuiltIn, pull_model, resolve_model};
pub use repository::{Kind, Repository, RepositoryFile, RepositoryName};
