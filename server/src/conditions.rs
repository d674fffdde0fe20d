//! How this machine is at the moment: power, network, use. What a phone's operating system tells an
//! app, a Linux machine tells in files and through NetworkManager.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use fleetune_core::protocol::Conditions;

/// How this machine is now. What it does not tell is taken as of a machine that stands on a desk:
/// powered, on a network without a price.
pub fn of_this_machine() -> Conditions {
    Conditions {
        charging: has_power(Path::new("/sys/class/power_supply")),
        unmetered: !is_metered(),
        idle: is_idle(),
    }
}

/// Memory that a new program can take without pushing others out, bytes. `None` where the system
/// does not tell.
pub fn available_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// Whether power comes from outside, by Linux's list of power supplies.
fn has_power(supplies: &Path) -> bool {
    let Ok(entries) = fs::read_dir(supplies) else { return true };
    let mut on_battery = false;
    for supply in entries.flatten() {
        let read = |name: &str| fs::read_to_string(supply.path().join(name)).unwrap_or_default();
        // A mouse has a battery too, and says so.
        if read("scope").trim() == "Device" {
            continue;
        }
        match read("type").trim() {
            "Battery" => on_battery |= read("status").trim() == "Discharging",
            _ if read("online").trim() == "1" => return true,
            _ => {}
        }
    }
    !on_battery
}

/// Whether NetworkManager takes a connection in use for one that costs by the byte.
fn is_metered() -> bool {
    let output = Command::new("nmcli")
        .args(["--terse", "--get-values", "GENERAL.METERED", "device", "show"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    output.is_ok_and(|output| {
        String::from_utf8_lossy(&output.stdout).lines().any(|line| line.starts_with("yes"))
    })
}

/// Whether less than half of the processors were busy in the last minute.
fn is_idle() -> bool {
    let Ok(text) = fs::read_to_string("/proc/loadavg") else { return true };
    let load = text.split(' ').next().and_then(|load| load.parse::<f64>().ok());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    load.is_none_or(|load| load < cores as f64 / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supply(folder: &Path, name: &str, files: &[(&str, &str)]) {
        let folder = folder.join(name);
        fs::create_dir(&folder).unwrap();
        for (name, content) in files {
            fs::write(folder.join(name), format!("{content}\n")).unwrap();
        }
    }

    #[test]
    fn a_laptop_has_power_while_it_is_plugged_in() {
        let folder = tempfile::tempdir().unwrap();
        let supplies = folder.path();
        assert!(has_power(supplies), "a desktop has no list of supplies");
        supply(
            supplies,
            "mouse",
            &[("type", "Battery"), ("scope", "Device"), ("status", "Discharging")],
        );
        assert!(has_power(supplies));
        supply(supplies, "BAT0", &[("type", "Battery"), ("status", "Discharging")]);
        supply(supplies, "AC", &[("type", "Mains"), ("online", "0")]);
        assert!(!has_power(supplies));
        fs::write(supplies.join("AC/online"), "1\n").unwrap();
        assert!(has_power(supplies));
    }
}
