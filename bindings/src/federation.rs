//! A federation that this device has joined.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fleetune_core::app::{self, ExampleTrainer, Gate, ParticipationEvent, Place, take_part};
use fleetune_core::client::{
    DeviceFolder, FileKeyStore, Identity, KeyStore, LinkError, Participant, ParticipantError,
    Progress,
};
use fleetune_core::model::CancelToken;
use fleetune_core::protocol::JoinCode;

use crate::error::{FederationError, JoinError};
use crate::fleetune::{Opened, Shared, now};
use crate::platform::{ForeignKeys, PlatformError, ThermalState};
use crate::work::Control;

/// What has to be so before this device trains.
#[derive(Debug, Clone, PartialEq, Eq, uniffi::Record)]
pub struct Requirements {
    /// Only with power from outside.
    #[uniffi(default = true)]
    pub charging: bool,
    /// Only on a network that does not cost by the byte.
    #[uniffi(default = true)]
    pub unmetered: bool,
    /// Only while nobody uses the device.
    #[uniffi(default = true)]
    pub idle: bool,
    /// The warmest that the device may be; slightly warm where absent.
    #[uniffi(default = None)]
    pub max_thermal: Option<ThermalState>,
    /// The least charge of the battery, percent.
    #[uniffi(default = 20)]
    pub min_battery_percent: u8,
}

impl From<Requirements> for app::Requirements {
    fn from(requirements: Requirements) -> Self {
        let Requirements { charging, unmetered, idle, max_thermal, min_battery_percent } =
            requirements;
        let max_thermal = max_thermal.map_or(Self::BACKGROUND.max_thermal, Into::into);
        Self { charging, unmetered, idle, max_thermal, min_battery_percent }
    }
}

/// How this device takes part.
#[derive(Debug, Clone, PartialEq, Eq, uniffi::Record)]
pub struct TakePartOptions {
    /// What has to be so before it trains.
    pub requirements: Requirements,
    /// Ends after so many rounds; goes on until the federation is done where absent.
    #[uniffi(default = None)]
    pub rounds: Option<u32>,
}

/// What is decent in the background: charging, on a free network, unused, not warm, not empty.
#[uniffi::export]
pub fn background_requirements() -> Requirements {
    let app::Requirements { charging, unmetered, idle, min_battery_percent, .. } =
        app::Requirements::BACKGROUND;
    Requirements { charging, unmetered, idle, max_thermal: None, min_battery_percent }
}

/// Why work is held up.
#[derive(Debug, Clone, PartialEq, Eq, uniffi::Enum)]
pub enum PauseReason {
    /// The app asked for it.
    Asked,
    /// No power from outside.
    NotCharging,
    /// The network costs by the byte.
    Metered,
    /// Somebody is using the device.
    InUse,
    /// The device is too warm.
    TooWarm,
    /// The battery is too empty.
    BatteryLow,
    /// The system has asked for memory back.
    LowMemory,
    /// What the device is like cannot be told: the platform's own code failed.
    Unknown {
        /// What it said.
        problem: String,
    },
}

impl From<app::PauseReason> for PauseReason {
    fn from(reason: app::PauseReason) -> Self {
        match reason {
            app::PauseReason::Asked => Self::Asked,
            app::PauseReason::NotCharging => Self::NotCharging,
            app::PauseReason::Metered => Self::Metered,
            app::PauseReason::InUse => Self::InUse,
            app::PauseReason::TooWarm => Self::TooWarm,
            app::PauseReason::BatteryLow => Self::BatteryLow,
            app::PauseReason::LowMemory => Self::LowMemory,
            app::PauseReason::Unknown(problem) => Self::Unknown { problem },
        }
    }
}

/// What became of a round's update.
#[derive(Debug, Clone, PartialEq, Eq, uniffi::Enum)]
pub enum UpdateFate {
    /// It counts.
    Accepted,
    /// It came too late for its round.
    Late {
        /// Whether it counts in a later one.
        counts: bool,
    },
    /// It does not count.
    Refused {
        /// Why.
        reason: String,
    },
}

/// What happens while this device takes part.
#[derive(Debug, Clone, PartialEq, uniffi::Enum)]
pub enum FederationEvent {
    /// There is no work now.
    Waiting {
        /// Why, where there is a reason.
        reason: Option<String>,
    },
    /// A download comes in.
    Fetching {
        /// Bytes here.
        done: u64,
        /// All bytes.
        size: u64,
    },
    /// The shared adapter that a round begins with is here; it can write text.
    NewAdapter {
        /// The round.
        round: u32,
    },
    /// A step of training was taken.
    Training {
        /// The round.
        round: u32,
        /// The step, from 1.
        step: u32,
        /// Steps of the round.
        of: u32,
        /// The loss before the step, nats per token.
        loss: f64,
    },
    /// Work is held up.
    Paused {
        /// Why.
        reason: PauseReason,
    },
    /// Work goes on.
    Resumed,
    /// The update goes to the server.
    Uploading {
        /// Chunks that are on the server's disk.
        sent: u32,
        /// All chunks.
        of: u32,
    },
    /// The server has answered what became of a round's update.
    RoundDone {
        /// The round.
        round: u32,
        /// What became of it.
        fate: UpdateFate,
    },
    /// Something failed and will be tried again.
    Trouble {
        /// What.
        problem: String,
    },
    /// The federation is done, or as many rounds as were asked for.
    Finished,
}

impl From<ParticipationEvent> for FederationEvent {
    fn from(event: ParticipationEvent) -> Self {
        match event {
            ParticipationEvent::Waiting(reason) => Self::Waiting { reason },
            ParticipationEvent::Fetching { done, size } => Self::Fetching { done, size },
            ParticipationEvent::NewAdapter { round } => Self::NewAdapter { round },
            ParticipationEvent::Training { round, step, of, loss } => {
                Self::Training { round, step, of, loss }
            }
            ParticipationEvent::Paused(reason) => Self::Paused { reason: reason.into() },
            ParticipationEvent::Resumed => Self::Resumed,
            ParticipationEvent::Uploading { sent, of } => Self::Uploading { sent, of },
            ParticipationEvent::RoundDone { round, fate } => {
                let fate = match fate {
                    app::Fate::Accepted => UpdateFate::Accepted,
                    app::Fate::Late { counts } => UpdateFate::Late { counts },
                    app::Fate::Refused(reason) => UpdateFate::Refused { reason },
                };
                Self::RoundDone { round, fate }
            }
            ParticipationEvent::Trouble(problem) => Self::Trouble { problem },
        }
    }
}

/// Hears what happens, on threads of the library. A listener that throws is not told any more; the
/// work goes on.
#[uniffi::export(with_foreign)]
pub trait FederationListener: Send + Sync {
    /// Something happened.
    fn on_event(&self, event: FederationEvent) -> Result<(), PlatformError>;
}

type Listeners = Mutex<Vec<(u64, Arc<dyn FederationListener>)>>;

/// A listener's place; when it is cancelled or dropped, the listener hears no more.
#[derive(uniffi::Object)]
pub struct Subscription {
    listeners: Arc<Listeners>,
    number: u64,
}

#[uniffi::export]
impl Subscription {
    /// Ends the subscription.
    pub fn cancel(&self) {
        lock(&self.listeners).retain(|(number, _)| *number != self.number);
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// A federation that this device has joined. It takes part only while [`Federation::take_part`]
/// runs; everything that must outlive the app is on the disk before the next step is taken.
#[derive(uniffi::Object)]
pub struct Federation {
    shared: Arc<Shared>,
    identity: Identity,
    listeners: Arc<Listeners>,
    next: AtomicU64,
    gate: Mutex<Option<Arc<Gate>>>,
}

impl Federation {
    /// Enrols this device, or finds that it is enrolled.
    pub(crate) async fn join(shared: Arc<Shared>, code: String) -> Result<Arc<Self>, JoinError> {
        let code: JoinCode = code.parse()?;
        let opened = shared.opened()?;
        let stop = CancelToken::default();
        let control = Arc::new(stop.clone());
        let work = move || enrol(&opened, &code, stop);
        let identity = shared.tasks.run("join", control, work).await?;
        Ok(Self::new(shared, identity))
    }

    /// The federation that this device has joined.
    pub(crate) fn joined(shared: Arc<Shared>) -> Result<Option<Arc<Self>>, JoinError> {
        let path = shared.opened()?.device_folder().join("identity.json");
        let identity = Identity::load(&path).map_err(ParticipantError::from)?;
        Ok(identity.map(|identity| Self::new(shared, identity)))
    }

    fn new(shared: Arc<Shared>, identity: Identity) -> Arc<Self> {
        let (listeners, next, gate) = Default::default();
        Arc::new(Self { shared, identity, listeners, next, gate })
    }

    fn gate(&self) -> Option<Arc<Gate>> {
        lock(&self.gate).clone()
    }
}

#[uniffi::export]
impl Federation {
    /// This device's name, as the server's operator sees it.
    pub fn device(&self) -> String {
        self.identity.device().to_string()
    }

    /// The federation's name; none where the server chooses.
    pub fn name(&self) -> Option<String> {
        self.identity.federation.clone()
    }

    /// Tells `listener` what happens, as long as the answer is kept.
    pub fn subscribe(&self, listener: Arc<dyn FederationListener>) -> Arc<Subscription> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.listeners).push((number, listener));
        Arc::new(Subscription { listeners: self.listeners.clone(), number })
    }

    /// Takes part while the device meets the requirements, until the federation is done, the rounds
    /// are over, or [`Federation::stop`]. An update that an earlier process left is sent first.
    pub async fn take_part(&self, options: TakePartOptions) -> Result<(), FederationError> {
        let opened = self.shared.opened()?;
        let read = opened.platform.read_device();
        let gate = Arc::new(Gate::new(options.requirements.into(), read));
        {
            let mut current = lock(&self.gate);
            if current.is_some() {
                return Err(FederationError::AlreadyRunning);
            }
            *current = Some(gate.clone());
        }
        let listeners = self.listeners.clone();
        let control: Arc<dyn Control> = gate.clone();
        let work = move || serve(&opened, gate, options.rounds, &listeners);
        let _running = NoLonger(&self.gate);
        self.shared.tasks.run("federation", control, work).await
    }

    /// Holds the work up until [`Federation::resume`]: a step of training pauses where it is.
    pub fn pause(&self) {
        if let Some(gate) = self.gate() {
            gate.pause();
        }
    }

    /// Lets the work go on, as far as the device allows.
    pub fn resume(&self) {
        if let Some(gate) = self.gate() {
            gate.resume();
        }
    }

    /// Ends [`Federation::take_part`] within a layer's time. What was begun goes on the next time.
    pub fn stop(&self) {
        if let Some(gate) = self.gate() {
            gate.stop();
        }
    }

    /// For the platform's own notices: the device is looked at at once instead of within a second.
    pub fn device_changed(&self) {
        if let Some(gate) = self.gate() {
            gate.device_changed();
        }
    }

    /// For the platform's own notices: an open connection moves to the new network.
    pub fn network_changed(&self) -> Result<(), FederationError> {
        match self.gate() {
            None => Ok(()),
            Some(gate) => {
                gate.network_changed().map_err(|error| FederationError::Failed(error.to_string()))
            }
        }
    }

    /// Leaves for good: the server revokes this device's certificate, and everything that belongs to
    /// the federation is removed from this device, the shared adapter aside.
    pub async fn leave(&self) -> Result<(), FederationError> {
        let opened = self.shared.opened()?;
        let stop = CancelToken::default();
        let control = Arc::new(stop.clone());
        self.shared.tasks.run("leave", control, move || leave(&opened, stop)).await
    }
}

/// Lets the next one take part.
struct NoLonger<'a>(&'a Mutex<Option<Arc<Gate>>>);

impl Drop for NoLonger<'_> {
    fn drop(&mut self) {
        *lock(self.0) = None;
    }
}

fn keys_of(opened: &Opened, folder: &Path) -> Box<dyn KeyStore> {
    match &opened.platform.keys {
        Some(keys) => Box::new(ForeignKeys(keys.clone())),
        None => Box::new(FileKeyStore::new(folder.join("device.key"))),
    }
}

fn enrol(opened: &Opened, code: &JoinCode, stop: CancelToken) -> Result<Identity, JoinError> {
    let path = opened.device_folder();
    let keys = keys_of(opened, &path);
    let folder = DeviceFolder::open(&path).map_err(ParticipantError::from)?;
    let mut trouble = None;
    // Somebody waits for the answer: the first failure is one.
    let mut observe = |progress: Progress<'_>| match progress {
        Progress::Trouble(problem) => {
            trouble = Some(problem.to_owned());
            ControlFlow::Break(())
        }
        _ => ControlFlow::Continue(()),
    };
    let app = &opened.settings.app_version;
    let opened = Participant::open(folder, &*keys, Some(code), app, stop, &mut observe);
    match (opened, trouble) {
        (Ok(participant), _) => Ok(participant.identity().clone()),
        (Err(ParticipantError::Stopped), Some(problem)) => Err(JoinError::Unreachable(problem)),
        (Err(error), _) => Err(error.into()),
    }
}

fn serve(
    opened: &Opened,
    gate: Arc<Gate>,
    rounds: Option<u32>,
    listeners: &Listeners,
) -> Result<(), FederationError> {
    opened.examples.expire(now()).map_err(app::ParticipationError::from)?;
    let path = opened.device_folder();
    let keys = keys_of(opened, &path);
    let place = Place { folder: &path, keys: &*keys, app: &opened.settings.app_version };
    let (settings, model) = (opened.settings.clone(), opened.model.clone());
    let (examples, adapters) = (opened.examples.clone(), opened.adapters.clone());
    let trainer = ExampleTrainer::new(settings, model, examples, adapters, gate);
    let mut trainer = trainer.map_err(|error| FederationError::Failed(error.to_string()))?;
    take_part(&place, &mut trainer, rounds, &|event| tell(listeners, &event.into()))?;
    tell(listeners, &FederationEvent::Finished);
    Ok(())
}

fn tell(listeners: &Listeners, event: &FederationEvent) {
    // Outside of the lock: a listener may subscribe or cancel.
    let hearing = lock(listeners).clone();
    for (number, listener) in hearing {
        if listener.on_event(event.clone()).is_err() {
            lock(listeners).retain(|(other, _)| *other != number);
        }
    }
}

fn leave(opened: &Opened, stop: CancelToken) -> Result<(), FederationError> {
    let path = opened.device_folder();
    let keys = keys_of(opened, &path);
    let folder = DeviceFolder::open(&path).map_err(ParticipantError::from)?;
    let app = &opened.settings.app_version;
    let mut observe = |_: Progress<'_>| ControlFlow::Continue(());
    let mut participant = Participant::open(folder, &*keys, None, app, stop, &mut observe)?;
    participant.leave().map_err(|error| match error {
        LinkError::Refused(refusal) => FederationError::Refused(refusal.message),
        other => FederationError::Unreachable(other.to_string()),
    })?;
    drop(participant);
    fs::remove_dir_all(&path)
        .map_err(|error| FederationError::Storage(format!("{}: {error}", path.display())))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is whole at once.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
