//! Which devices may take part.

use fleetune_core::protocol::{Capabilities, ModelOffer};
use fleetune_core::update::Codec;

use super::config::EligibilityConfig;

/// Numbers of a version, compared from left to right; missing ones are zero.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(Vec<u64>);

impl Version {
    /// Reads `1.4.0`, `v2`, `1.4.0-beta`: the numbers up to the first that is none.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let core = text.split(['-', '+', ' ']).next()?;
        let numbers: Option<Vec<u64>> = core.split('.').map(|part| part.parse().ok()).collect();
        let mut numbers = numbers?;
        while numbers.last() == Some(&0) {
            numbers.pop();
        }
        Some(Self(numbers))
    }
}

/// Why a device may not take part as it is; `None` where it may. The federation's adapter has a rank
/// and its updates a codec. `rounds_today` counts the rounds it
/// was given within a day.
pub fn obstacle(
    rules: &EligibilityConfig,
    model: &ModelOffer,
    (rank, codec): (usize, Codec),
    device: &Capabilities,
    rounds_today: u32,
) -> Option<String> {
    let has_model = device.models.contains(&model.blob.id.0);
    if !has_model && !model.offered {
        return Some(format!(
            "the device does not have the base model {}, and the server does not hand it out",
            model.name
        ));
    }
    if (device.max_rank as usize) < rank {
        return Some(format!("the device trains up to rank {}, {rank} is needed", device.max_rank));
    }
    if !device.codecs.contains(&codec.id()) {
        return Some(format!("the device does not write updates as {codec}: update the app"));
    }
    if let Some(oldest) = &rules.app_version {
        // The server's own configuration has been checked.
        let new_enough = Version::parse(&device.app_version) >= Version::parse(oldest);
        if !new_enough {
            return Some(format!("the app is older than {oldest}"));
        }
    }
    if device.memory_bytes >> 20 < rules.memory_mib {
        return Some(format!("training needs {} MiB of memory", rules.memory_mib));
    }
    let conditions = device.conditions;
    let wanted = [
        (rules.charging && !conditions.charging, "the device is not charging"),
        (rules.unmetered && !conditions.unmetered, "the device's network costs by the byte"),
        (rules.idle && !conditions.idle, "the device is in use"),
    ];
    if let Some((_, reason)) = wanted.into_iter().find(|(missing, _)| *missing) {
        return Some(reason.into());
    }
    let limit = rules.rounds_per_day;
    (limit > 0 && rounds_today >= limit)
        .then(|| format!("the device has taken part in {rounds_today} rounds within a day"))
}

#[cfg(test)]
mod tests {
    use fleetune_core::protocol::{Blob, Conditions};

    use super::*;

    fn device() -> Capabilities {
        Capabilities {
            app_version: "1.10.0".into(),
            models: vec![Blob::of(b"model").id.0],
            memory_bytes: 512 << 20,
            max_rank: 16,
            codecs: vec![Codec::F16.id()],
            rows_log2: 7,
            conditions: Conditions { charging: false, unmetered: true, idle: true },
        }
    }

    fn check(rules: EligibilityConfig, device: &Capabilities, offered: bool) -> Option<String> {
        let model = ModelOffer { name: "m".into(), blob: Blob::of(b"model"), offered };
        obstacle(&rules, &model, (8, Codec::F16), device, 2)
    }

    #[test]
    fn a_device_that_has_all_that_is_asked_may_take_part() {
        let rules = EligibilityConfig {
            app_version: Some("1.9".into()),
            memory_mib: 512,
            unmetered: true,
            idle: true,
            rounds_per_day: 3,
            ..Default::default()
        };
        assert_eq!(check(rules, &device(), false), None);
    }

    #[test]
    fn each_rule_keeps_out_whom_it_should() {
        let none = EligibilityConfig::default;
        for rules in [
            EligibilityConfig { app_version: Some("2".into()), ..none() },
            EligibilityConfig { memory_mib: 513, ..none() },
            EligibilityConfig { charging: true, ..none() },
            EligibilityConfig { rounds_per_day: 2, ..none() },
        ] {
            assert!(check(rules.clone(), &device(), false).is_some(), "{rules:?}");
        }
        let without_model = Capabilities { models: vec![], ..device() };
        assert!(check(none(), &without_model, false).is_some());
        assert_eq!(check(none(), &without_model, true), None);
        assert!(check(none(), &Capabilities { max_rank: 4, ..device() }, true).is_some());
        assert!(check(none(), &Capabilities { codecs: vec![254], ..device() }, true).is_some());
    }

    #[test]
    fn versions_compare_by_number() {
        let version = |text| Version::parse(text).unwrap();
        assert!(version("1.10") > version("1.9.9"));
        assert_eq!(version("v2.0"), version("2-beta"));
        assert_eq!(Version::parse("new"), None);
    }
}
