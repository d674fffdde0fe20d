//! The adapters that training left on the device, for writing text.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::adapter::{Adapter, AdapterError};
use crate::data::Template;
use crate::files::write_atomically;

/// Written last: without it there is no adapter.
const ABOUT_FILE: &str = "fleetune.json";

/// Whose adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdapterKind {
    /// What this device trained for itself.
    Local,
    /// What a federation shares.
    Shared,
}

impl AdapterKind {
    const ALL: [Self; 2] = [Self::Local, Self::Shared];

    fn folder(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Shared => "shared",
        }
    }
}

/// An adapter, and how the text around it was written.
#[derive(Debug, Clone, PartialEq)]
pub struct KeptAdapter {
    /// The adapter.
    pub adapter: Adapter,
    /// The template that it was trained with.
    pub template: Template,
    /// The round that it is the beginning of, where a federation shares it.
    pub round: Option<u32>,
}

#[derive(Serialize, Deserialize)]
struct About {
    template: String,
    round: Option<u32>,
}

/// A folder of adapters, one of each kind, as PEFT writes them.
#[derive(Debug, Clone)]
pub struct KeptAdapters {
    folder: PathBuf,
}

impl KeptAdapters {
    /// The adapters in `folder`, which need not exist yet.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Where the adapter of a kind lies, or will.
    pub fn path(&self, kind: AdapterKind) -> PathBuf {
        self.folder.join(kind.folder())
    }

    /// Keeps an adapter in place of the one before.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn keep(&self, kind: AdapterKind, kept: &KeptAdapter) -> Result<(), AdapterError> {
        let folder = self.path(kind);
        let about = About { template: kept.template.name().to_owned(), round: kept.round };
        let written = |source| file_error("write", &folder, source);
        let about = serde_json::to_vec(&about).map_err(|error| written(error.into()))?;
        kept.adapter.save(&folder)?;
        write_atomically(&folder.join(ABOUT_FILE), &about).map_err(written)
    }

    /// The adapter of a kind; `None` where none was kept.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn load(&self, kind: AdapterKind) -> Result<Option<KeptAdapter>, AdapterError> {
        let folder = self.path(kind);
        let path = folder.join(ABOUT_FILE);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(|source| file_error("read", &path, source))?,
        };
        let damaged = |error: String| file_error("read", &path, io::Error::other(error));
        let About { template, round } =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        let template = template
            .parse()
            .map_err(|error: crate::data::UnknownTemplate| damaged(error.to_string()))?;
        Ok(Some(KeptAdapter { adapter: Adapter::load(&folder)?, template, round }))
    }

    /// The kind of the adapter that was kept last.
    pub fn newest(&self) -> Option<AdapterKind> {
        let kept = AdapterKind::ALL.into_iter().filter_map(|kind| {
            let about = fs::metadata(self.path(kind).join(ABOUT_FILE)).ok()?;
            Some((about.modified().unwrap_or(SystemTime::UNIX_EPOCH), kind))
        });
        kept.max_by_key(|(kept, _)| *kept).map(|(_, kind)| kind)
    }

    /// Removes all of them.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn erase(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn file_error(action: &'static str, path: &Path, source: io::Error) -> AdapterError {
    AdapterError::File { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::{LoraConfig, Target};

    fn kept(template: Template, round: Option<u32>) -> KeptAdapter {
        use crate::adapter::{Parameter, ParameterSet};
        let config = LoraConfig::new(2, 4.0, &[Target::QProj]).unwrap();
        let (a, b) = Target::QProj.tensor_names(0);
        let parameters = ParameterSet::new(vec![
            Parameter { name: a, shape: vec![2, 3], values: vec![0.5; 6] },
            Parameter { name: b, shape: vec![3, 2], values: vec![0.25; 6] },
        ]);
        KeptAdapter { adapter: Adapter { config, parameters }, template, round }
    }

    #[test]
    fn adapters_read_back_and_can_be_erased() {
        let folder = tempfile::tempdir().unwrap();
        let adapters = KeptAdapters::new(folder.path().join("adapters"));
        assert_eq!(adapters.load(AdapterKind::Shared).unwrap(), None);
        assert_eq!(adapters.newest(), None);
        let shared = kept(Template::Alpaca, Some(3));
        adapters.keep(AdapterKind::Shared, &shared).unwrap();
        assert_eq!(adapters.load(AdapterKind::Shared).unwrap(), Some(shared));
        assert_eq!(adapters.load(AdapterKind::Local).unwrap(), None);
        assert_eq!(adapters.newest(), Some(AdapterKind::Shared));
        adapters.erase().unwrap();
        adapters.erase().unwrap();
        assert_eq!(adapters.newest(), None);
    }

    #[test]
    fn an_adapter_that_was_not_written_to_its_end_is_none_and_damage_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let adapters = KeptAdapters::new(folder.path());
        kept(Template::Chat, None).adapter.save(&adapters.path(AdapterKind::Local)).unwrap();
        assert_eq!(adapters.load(AdapterKind::Local).unwrap(), None);
        fs::write(adapters.path(AdapterKind::Local).join(ABOUT_FILE), "{}").unwrap();
        assert!(adapters.load(AdapterKind::Local).is_err());
    }
}
