//! The library's door: a base model, a folder, and everything that an app does with them.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use fleetune_core::app::{ExampleLimits, ExampleStore, KeptAdapters};
use fleetune_core::client::{EngineSettings, OpenModel};
use fleetune_core::device::DeviceChoice;
use fleetune_core::kernels::Precision;
use fleetune_core::model::CancelToken;

use crate::error::{JoinError, OpenError, TrainError};
use crate::examples::Examples;
use crate::federation::Federation;
use crate::platform::Platform;
use crate::work::{Tasks, WorkFault};

/// Where the base model is.
#[derive(Debug, Clone, PartialEq, Eq, uniffi::Enum)]
pub enum ModelSource {
    /// A GGUF file or a Hugging Face folder.
    File {
        /// Its path.
        path: String,
    },
}

/// How the library is opened.
#[derive(Debug, Clone, PartialEq, uniffi::Record)]
pub struct OpenOptions {
    /// The app and its version, for the server's statistics.
    #[uniffi(default = "app")]
    pub app: String,
    /// Most bytes of examples; the oldest make room for new ones.
    #[uniffi(default = 16777216)]
    pub max_example_bytes: u64,
    /// Examples that are older, in days, are removed; never where absent.
    #[uniffi(default = None)]
    pub example_days: Option<u32>,
    /// The most memory that training takes, base model included, bytes; what is fast where absent.
    #[uniffi(default = None)]
    pub memory_budget: Option<u64>,
}

/// What is open.
pub(crate) struct Opened {
    pub(crate) model: Arc<OpenModel>,
    pub(crate) examples: Arc<ExampleStore>,
    pub(crate) adapters: KeptAdapters,
    pub(crate) settings: EngineSettings,
    pub(crate) platform: Platform,
    pub(crate) folder: PathBuf,
    /// Held as long as the folder is.
    _lock: File,
}

impl Opened {
    /// The folder of the device that takes part in a federation.
    pub(crate) fn device_folder(&self) -> PathBuf {
        self.folder.join("device")
    }
}

/// What the objects of one instance share.
#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) tasks: Arc<Tasks>,
    opened: RwLock<Option<Arc<Opened>>>,
}

impl Shared {
    pub(crate) fn opened(&self) -> Result<Arc<Opened>, WorkFault> {
        // One value is replaced by another: a panic leaves it whole.
        let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner);
        opened.clone().ok_or(WorkFault::Closed)
    }

    fn set(&self, opened: Option<Arc<Opened>>) {
        *self.opened.write().unwrap_or_else(PoisonError::into_inner) = opened;
    }

    fn close(&self) {
        self.tasks.close();
        self.set(None);
    }
}

/// A base model on this device, with the user's examples and what was learnt from them. One per app:
/// a second one on the same folder is refused. Every call may come from any thread; long work runs on
/// threads of the library, and cancelling the call ends it.
#[derive(uniffi::Object)]
pub struct Fleetune {
    pub(crate) shared: Arc<Shared>,
}

#[uniffi::export]
impl Fleetune {
    /// Opens the base model and the app's folder.
    #[uniffi::constructor]
    pub async fn open(
        model: ModelSource,
        platform: Platform,
        options: OpenOptions,
    ) -> Result<Arc<Self>, OpenError> {
        let shared = Arc::new(Shared::default());
        let control = Arc::new(CancelToken::default());
        let work = move || open(&model, platform, options);
        let opened = shared.tasks.run("open", control, work).await?;
        shared.set(Some(Arc::new(opened)));
        Ok(Arc::new(Self { shared }))
    }

    /// The private store of examples.
    pub fn example_store(&self) -> Arc<Examples> {
        Arc::new(Examples(self.shared.clone()))
    }

    /// Joins the federation of a join code: enrols this device once, and remembers. The same code
    /// again, or another one of the same server, changes nothing but the server's address.
    pub async fn join(&self, code: String) -> Result<Arc<Federation>, JoinError> {
        Federation::join(self.shared.clone(), code).await
    }

    /// The federation that this device has joined; none where it has not.
    pub fn federation(&self) -> Result<Option<Arc<Federation>>, JoinError> {
        Federation::joined(self.shared.clone())
    }

    /// Holds up all work under way, within a layer's time; what runs keeps its memory.
    pub fn pause(&self) {
        self.shared.tasks.each(|work| work.pause());
    }

    /// Lets work that was held up go on: it computes the same as if it had never paused.
    pub fn resume(&self) {
        self.shared.tasks.each(|work| work.resume());
    }

    /// Ends all work under way, within a layer's time. What a federation was sent, or is to be sent,
    /// is not lost.
    pub fn cancel(&self) {
        self.shared.tasks.each(|work| work.cancel());
    }

    /// Removes what training left on this device, for the federation and for itself. Examples have
    /// their own way out: [`Examples::erase_all`].
    pub fn erase_adapters(&self) -> Result<(), TrainError> {
        let opened = self.shared.opened()?;
        opened.adapters.erase().map_err(|error| TrainError::Storage(error.to_string()))
    }

    /// Closes everything: ends work under way, waits for it, and lets go of the folder. Later calls
    /// are refused. Dropping the last reference does the same.
    pub fn shutdown(&self) {
        self.shared.close();
    }
}

impl Drop for Fleetune {
    fn drop(&mut self) {
        self.shared.close();
    }
}

fn open(
    model: &ModelSource,
    platform: Platform,
    options: OpenOptions,
) -> Result<Opened, OpenError> {
    let folder = platform.storage.folder();
    let folder = PathBuf::from(folder.map_err(|error| OpenError::Platform(error.to_string()))?);
    let lock = lock(&folder)?;
    let max_age = options.example_days.map(|days| Duration::from_secs(u64::from(days) * 86_400));
    let limits = ExampleLimits { max_bytes: options.max_example_bytes, max_age };
    let examples = ExampleStore::open(&folder.join("examples.db"), limits, now())?;
    let settings = EngineSettings {
        device: DeviceChoice::Auto.open().map_err(|error| OpenError::Model(error.to_string()))?,
        precision: Precision::F32,
        memory_budget: options.memory_budget,
        memory_bytes: options.memory_budget.unwrap_or(u64::MAX),
        max_rank: None,
        app_version: options.app,
        cancel: CancelToken::default(),
        // An app's examples are no preferences.
        references: None,
    };
    let ModelSource::File { path } = model;
    let model = OpenModel::open(Path::new(path), &settings.device, settings.precision)
        .map_err(|error| OpenError::Model(error.to_string()))?;
    Ok(Opened {
        model: Arc::new(model),
        examples: Arc::new(examples),
        adapters: KeptAdapters::new(folder.join("adapters")),
        settings,
        platform,
        folder,
        _lock: lock,
    })
}

/// Takes the folder for this instance alone.
fn lock(folder: &Path) -> Result<File, OpenError> {
    let failed = |error: std::io::Error| {
        OpenError::Storage(format!("cannot use {}: {error}", folder.display()))
    };
    fs::create_dir_all(folder).map_err(failed)?;
    let lock = File::create(folder.join("fleetune.lock")).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(folder.display().to_string())),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
