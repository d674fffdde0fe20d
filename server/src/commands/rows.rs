//! Opening the rows to train on: flags that `train` and `join` share.

use std::path::PathBuf;

use clap::Args;
use fleetune_core::data::{DataSource, Dataset, FieldMap};

use super::CommandError;
use crate::hub::Cache;
use crate::progress::note;

/// Which rows.
#[derive(Debug, Args)]
#[command(next_help_heading = "Data")]
pub struct RowsArgs {
    /// Data set by name (`fleetune data list`); instruction, chat and preference read your own files
    #[arg(long, value_name = "NAME", default_value = "demo")]
    pub dataset: String,
    /// Files with the rows: JSON Lines, plain, .gz or .zst
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    pub data: Vec<PathBuf>,
    /// Folder that holds the data sets [default: the cache]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Names of the fields in your files, such as instruction=question,response=answer
    #[arg(long, value_name = "NAME=FIELD,...")]
    pub fields: Option<FieldMap>,
}

impl RowsArgs {
    /// Opens the rows, and tells of those that are passed over.
    ///
    /// # Errors
    /// When there is no such set, or a row is malformed.
    pub fn open(&self) -> Result<Dataset, CommandError> {
        let data_dir = match &self.data_dir {
            Some(folder) => folder.clone(),
            None => Cache::of_user()?.data(),
        };
        let files = self.data.clone();
        let source = DataSource { data_dir: Some(data_dir), files, temp_dir: None };
        let dataset = Dataset::open(&self.dataset, &source, self.fields.as_ref())?;
        if dataset.skipped().total() > 0 {
            note(dataset.skipped());
        }
        Ok(dataset)
    }
}
