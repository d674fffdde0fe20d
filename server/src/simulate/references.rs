//! The frozen reference of preference training, and where its log-probabilities are kept: a file for
//! each client, as on a device, and one for the held-out pairs. All runs of a comparison share them.

use std::path::PathBuf;

use fleetune_core::adapter::Adapter;
use fleetune_core::kernels::Precision;
use fleetune_core::train::{Reference, ReferenceError};

/// The reference as each client, and the server, knows it.
#[derive(Debug, Clone)]
pub struct References {
    /// The folder of the files.
    pub folder: PathBuf,
    /// Hash of the base model.
    pub model_hash: String,
    /// How its products round.
    pub precision: Precision,
    /// The adapter that is the reference; the base model itself where there is none.
    pub adapter: Option<Adapter>,
}

impl References {
    /// What client `client` knows of the reference.
    ///
    /// # Errors
    /// When the client's file cannot be read or written.
    pub fn of_client(&self, client: u32) -> Result<Reference, ReferenceError> {
        self.open(&format!("client-{client:05}.bin"))
    }

    /// What the server knows of it.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn held_out(&self) -> Result<Reference, ReferenceError> {
        self.open("held-out.bin")
    }

    fn open(&self, name: &str) -> Result<Reference, ReferenceError> {
        std::fs::create_dir_all(&self.folder)?;
        let reference = Reference::new(&self.model_hash, self.precision, self.adapter.clone());
        Ok(reference.kept_in(&self.folder.join(name))?)
    }
}
