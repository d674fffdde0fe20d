//! When a device may train.
//!
//! Nothing here asks the platform: what the device is like comes as a value, so that the rule can be
//! tested without a phone.

/// How warm a device is, in the four steps that both phone platforms know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ThermalState {
    /// As cool as can be.
    Nominal,
    /// Slightly warm.
    Fair,
    /// Warm: the system slows things down.
    Serious,
    /// Hot: the system stops things.
    Critical,
}

/// How a device is at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceState {
    /// It has power from outside.
    pub charging: bool,
    /// Its network does not cost by the byte.
    pub unmetered: bool,
    /// Nobody is using it.
    pub idle: bool,
    /// How warm it is.
    pub thermal: ThermalState,
    /// Charge of the battery in percent; `None` where there is no battery.
    pub battery_percent: Option<u8>,
    /// The system has asked for memory back.
    pub low_memory: bool,
}

impl DeviceState {
    /// A machine on mains power and a free network that nobody is using.
    pub const ALWAYS_READY: Self = Self {
        charging: true,
        unmetered: true,
        idle: true,
        thermal: ThermalState::Nominal,
        battery_percent: None,
        low_memory: false,
    };
}

/// What has to be so before a device trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Requirements {
    /// Only with power from outside.
    pub charging: bool,
    /// Only on a network that does not cost by the byte.
    pub unmetered: bool,
    /// Only while nobody uses the device.
    pub idle: bool,
    /// The warmest that the device may be.
    pub max_thermal: ThermalState,
    /// The least charge of the battery, percent.
    pub min_battery_percent: u8,
}

impl Requirements {
    /// What is decent in the background: charging, on a free network, unused, not warm.
    pub const BACKGROUND: Self = Self {
        charging: true,
        unmetered: true,
        idle: true,
        max_thermal: ThermalState::Fair,
        min_battery_percent: 20,
    };

    /// Why a device in `state` must not train now; `None` where it may.
    pub fn refusal(&self, state: &DeviceState) -> Option<PauseReason> {
        let too_empty = |percent| percent < self.min_battery_percent;
        let checks = [
            (state.low_memory, PauseReason::LowMemory),
            (state.thermal > self.max_thermal, PauseReason::TooWarm),
            (self.charging && !state.charging, PauseReason::NotCharging),
            (self.idle && !state.idle, PauseReason::InUse),
            (self.unmetered && !state.unmetered, PauseReason::Metered),
            (state.battery_percent.is_some_and(too_empty), PauseReason::BatteryLow),
        ];
        checks.into_iter().find_map(|(broken, reason)| broken.then_some(reason))
    }
}

/// Why work is held up.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// What the device is like cannot be told: the platform failed, with this message.
    Unknown(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    const READY: DeviceState = DeviceState::ALWAYS_READY;

    #[test]
    fn each_condition_alone_holds_training_up() {
        let background = Requirements::BACKGROUND;
        assert_eq!(background.refusal(&READY), None);
        let cases = [
            (DeviceState { charging: false, ..READY }, PauseReason::NotCharging),
            (DeviceState { unmetered: false, ..READY }, PauseReason::Metered),
            (DeviceState { idle: false, ..READY }, PauseReason::InUse),
            (DeviceState { thermal: ThermalState::Serious, ..READY }, PauseReason::TooWarm),
            (DeviceState { battery_percent: Some(19), ..READY }, PauseReason::BatteryLow),
            (DeviceState { low_memory: true, ..READY }, PauseReason::LowMemory),
        ];
        for (state, reason) in cases {
            assert_eq!(background.refusal(&state), Some(reason), "{state:?}");
        }
    }

    #[test]
    fn what_is_not_required_does_not_matter_but_heat_and_memory_always_do() {
        let anywhere = Requirements {
            charging: false,
            unmetered: false,
            idle: false,
            max_thermal: ThermalState::Fair,
            min_battery_percent: 0,
        };
        let state = DeviceState {
            charging: false,
            unmetered: false,
            idle: false,
            battery_percent: Some(3),
            ..READY
        };
        assert_eq!(anywhere.refusal(&state), None);
        let hot = DeviceState { thermal: ThermalState::Critical, ..state };
        assert_eq!(anywhere.refusal(&hot), Some(PauseReason::TooWarm));
    }
}
