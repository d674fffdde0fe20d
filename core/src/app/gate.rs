//! What holds work up and lets it go on: the app's wish, and what the device is like.
//!
//! A step of training is paused where it is, and computes the same as if it had never been. All else
//! that a device does in a federation loses nothing by being ended and begun again, so that ends: no
//! byte goes over a network that may not be used. A device short of memory ends its training too.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::policy::{DeviceState, PauseReason, Requirements};
use crate::client::NetworkWatch;
use crate::model::CancelToken;
use crate::protocol::Conditions;

/// How often the platform is asked what the device is like, besides when it says so itself.
pub const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Asks the platform what the device is like; a message where it fails.
pub type ReadDevice = Box<dyn Fn() -> Result<DeviceState, String> + Send + Sync>;

/// Holds work up while it is not welcome.
pub struct Gate {
    requirements: Requirements,
    read: ReadDevice,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    device: Result<DeviceState, String>,
    asked: bool,
    stopped: bool,
    /// Somebody says that the device has changed.
    look: bool,
    /// What is under way, and whether it is a training that can pause.
    work: Option<CancelToken>,
    training: bool,
    network: Option<NetworkWatch>,
}

impl Gate {
    /// A gate that opens while the device meets `requirements`, as `read` tells.
    pub fn new(requirements: Requirements, read: ReadDevice) -> Self {
        let state = State {
            device: Err("nothing is known of the device yet".into()),
            asked: false,
            stopped: false,
            look: false,
            work: None,
            training: false,
            network: None,
        };
        Self { requirements, read, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Holds work up until [`Gate::resume`].
    pub fn pause(&self) {
        self.change(|state| state.asked = true);
    }

    /// Takes [`Gate::pause`] back; the device's state still counts.
    pub fn resume(&self) {
        self.change(|state| state.asked = false);
    }

    /// Ends what is under way, for good.
    pub fn stop(&self) {
        self.change(|state| state.stopped = true);
    }

    /// For whoever notices that the device has changed: it is looked at at once.
    pub fn device_changed(&self) {
        self.change(|state| state.look = true);
    }

    /// For whoever notices that the device has changed its network: an open connection moves along.
    ///
    /// # Errors
    /// When the system gives no socket.
    pub fn network_changed(&self) -> io::Result<()> {
        self.device_changed();
        let network = self.lock().network.clone();
        network.map_or(Ok(()), |network| network.changed())
    }

    /// Why work is held up, if it is.
    pub fn refusal(&self) -> Option<PauseReason> {
        self.lock().refusal(&self.requirements)
    }

    /// What the server is told of the device.
    pub(super) fn conditions(&self) -> Conditions {
        match &self.lock().device {
            Ok(DeviceState { charging, unmetered, idle, .. }) => {
                Conditions { charging: *charging, unmetered: *unmetered, idle: *idle }
            }
            Err(_) => Conditions { charging: false, unmetered: false, idle: false },
        }
    }

    /// Asks the platform, and holds up or lets go on accordingly.
    pub(super) fn look(&self) {
        // Outside of the lock: the platform may take its time, and may call back.
        let device = (self.read)();
        self.change(|state| {
            state.device = device;
            state.look = false;
        });
    }

    /// Looks again and again until [`Gate::stop`], and tells when work is held up and why, or goes
    /// on (`None`).
    pub(super) fn watch(&self, tell: impl Fn(Option<&PauseReason>)) {
        let mut told = None;
        loop {
            let state = self.lock();
            if state.stopped {
                return;
            }
            let refusal = state.refusal(&self.requirements);
            if refusal != told {
                drop(state);
                tell(refusal.as_ref());
                told = refusal;
                continue;
            }
            let waiting = |state: &mut State| {
                !state.stopped && !state.look && state.refusal(&self.requirements) == told
            };
            let waited = self.changed.wait_timeout_while(state, POLL_INTERVAL, waiting);
            let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            let again = state.refusal(&self.requirements) == told;
            drop(state);
            if again {
                self.look();
            }
        }
    }

    /// Waits until work may begin, and gives the token by which this gate holds it up or ends it;
    /// `None` once it is stopped.
    pub(super) fn begin(&self) -> Option<CancelToken> {
        let closed =
            |state: &mut State| !state.stopped && state.refusal(&self.requirements).is_some();
        let waited = self.changed.wait_while(self.lock(), closed);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        if state.stopped {
            return None;
        }
        let token = CancelToken::default();
        state.work = Some(token.clone());
        Some(token)
    }

    /// By whom an open connection moves to another network.
    pub(super) fn set_network(&self, network: NetworkWatch) {
        self.lock().network = Some(network);
    }

    /// What is under way can pause as long as the answer lives.
    pub(super) fn training(&self) -> Training<'_> {
        self.change(|state| state.training = true);
        Training(self)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        let refusal = state.refusal(&self.requirements);
        let State { stopped, training, work, .. } = &*state;
        if let Some(work) = work {
            match refusal {
                _ if *stopped => work.cancel(),
                None => work.resume(),
                Some(PauseReason::LowMemory) => work.cancel(),
                Some(_) if *training => work.pause(),
                Some(_) => work.cancel(),
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is whole at once.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn refusal(&self, requirements: &Requirements) -> Option<PauseReason> {
        if self.asked {
            return Some(PauseReason::Asked);
        }
        match &self.device {
            Ok(device) => requirements.refusal(device),
            Err(problem) => Some(PauseReason::Unknown(problem.clone())),
        }
    }
}

/// A training is under way, which can pause.
pub(super) struct Training<'a>(&'a Gate);

impl Drop for Training<'_> {
    fn drop(&mut self) {
        self.0.change(|state| state.training = false);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    /// A gate before a device that a test changes.
    fn gate() -> (Arc<Gate>, Arc<Mutex<Result<DeviceState, String>>>) {
        let device = Arc::new(Mutex::new(Ok(DeviceState::ALWAYS_READY)));
        let read = device.clone();
        let read: ReadDevice = Box::new(move || read.lock().unwrap().clone());
        let gate = Arc::new(Gate::new(Requirements::BACKGROUND, read));
        gate.look();
        (gate, device)
    }

    fn unplugged() -> DeviceState {
        DeviceState { charging: false, ..DeviceState::ALWAYS_READY }
    }

    #[test]
    fn training_pauses_where_it_is_and_everything_else_ends() {
        let (gate, device) = gate();
        let token = gate.begin().unwrap();
        let training = gate.training();
        *device.lock().unwrap() = Ok(unplugged());
        gate.look();
        assert!(token.is_paused() && !token.is_cancelled());
        assert_eq!(gate.refusal(), Some(PauseReason::NotCharging));
        *device.lock().unwrap() = Ok(DeviceState::ALWAYS_READY);
        gate.look();
        assert!(!token.is_paused());
        gate.pause();
        assert!(token.is_paused());
        drop(training);
        assert!(token.is_cancelled(), "what follows a training is no training");
    }

    #[test]
    fn a_device_short_of_memory_ends_its_training() {
        let (gate, device) = gate();
        let token = gate.begin().unwrap();
        let _training = gate.training();
        *device.lock().unwrap() = Ok(DeviceState { low_memory: true, ..DeviceState::ALWAYS_READY });
        gate.look();
        assert!(token.is_cancelled());
    }

    #[test]
    fn a_platform_that_fails_holds_work_up() {
        let (gate, device) = gate();
        *device.lock().unwrap() = Err("no battery service".into());
        gate.look();
        assert_eq!(gate.refusal(), Some(PauseReason::Unknown("no battery service".into())));
        let conditions = gate.conditions();
        assert!(!conditions.charging && !conditions.unmetered && !conditions.idle);
    }

    #[test]
    fn work_begins_when_the_gate_opens_and_never_after_it_was_stopped() {
        let (gate, _) = gate();
        gate.pause();
        let waiting = gate.clone();
        let thread = thread::spawn(move || waiting.begin().is_some());
        gate.resume();
        assert!(thread.join().unwrap());
        gate.stop();
        assert!(gate.begin().is_none());
    }

    #[test]
    fn whoever_watches_hears_each_change_once() {
        let (gate, device) = gate();
        let heard = Mutex::new(Vec::new());
        thread::scope(|scope| {
            scope.spawn(|| gate.watch(|reason| heard.lock().unwrap().push(reason.cloned())));
            let wait = |count| {
                while heard.lock().unwrap().len() < count {
                    thread::yield_now();
                }
            };
            *device.lock().unwrap() = Ok(unplugged());
            gate.device_changed();
            wait(1);
            *device.lock().unwrap() = Ok(DeviceState::ALWAYS_READY);
            gate.device_changed();
            wait(2);
            gate.stop();
        });
        assert_eq!(*heard.lock().unwrap(), [Some(PauseReason::NotCharging), None]);
    }
}
