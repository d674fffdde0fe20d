//! The on-device library of fleetune: everything a phone, a laptop or a clinic's PC needs to take
//! part in the federated fine-tuning of a language model.
//!
//! Data flows one way: private text → tokenised examples ([`data`]) → gradients of a small LoRA
//! adapter ([`model`], [`ops`], [`train`]) → a compressed difference to the shared adapter
//! ([`update`]) → the server. The frozen base model ([`weight`]) is memory-mapped and stays
//! quantised; only the adapter ([`adapter`]) is ever trained or sent.
#![deny(missing_docs)]

pub mod adapter;
#[cfg(feature = "app")]
pub mod app;
pub mod client;
mod config;
pub mod data;
pub mod device;
pub mod files;
pub mod generate;
pub mod kernels;
pub mod memory;
pub mod model;
pub mod ops;
pub mod protocol;
pub mod train;
pub mod update;
pub mod weight;
