//! `serve.toml`: what a server serves, and within which limits.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use fleetune_core::protocol::MAX_NAME;
use serde::{Deserialize, Serialize};

use crate::aggregate::{Algorithm, Combine};
use crate::duration::Span;
use crate::round::{Mode, Rules};
use crate::simulate::config::{ConfigError, EvaluationConfig, Origin, RunConfig, read_toml};

/// A server's configuration.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServeConfig {
    /// Folder of everything the server remembers.
    #[serde(default = "default_state")]
    pub state: PathBuf,
    /// Address to listen on (UDP).
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// Where devices reach the server, `host:port`; they stand in join codes.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// An authority of the operator's own: certificate, PEM.
    pub ca_certificate: Option<PathBuf>,
    /// An authority of the operator's own: private key, PEM.
    pub ca_key: Option<PathBuf>,
    /// Address of the metrics for Prometheus (TCP); absent, there are none.
    pub metrics: Option<SocketAddr>,
    /// The operator's page.
    #[serde(default)]
    pub page: PageAddress,
    /// What devices may take up.
    #[serde(default)]
    pub limits: Limits,
    /// The federations.
    #[serde(rename = "federation")]
    pub federations: Vec<FederationConfig>,
}

/// Where the operator's page is (TCP).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum PageAddress {
    /// Port 4434 of this machine alone, or any free port where another program has that one.
    #[default]
    Default,
    /// There is none: `off`.
    Off,
    /// As the operator says.
    At(SocketAddr),
}

impl PageAddress {
    /// The default's address.
    pub const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 4434);
}

impl TryFrom<String> for PageAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "off" => Ok(Self::Off),
            address => address.parse().map(Self::At).map_err(|_| {
                format!("{address:?} is neither \"off\" nor an address such as \"127.0.0.1:4434\"")
            }),
        }
    }
}

/// What devices may take up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Connections.
    pub connections: usize,
    /// Connections from one address. Many devices may share one behind a router.
    pub connections_per_address: usize,
    /// Largest update, MiB.
    pub upload_mib: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 10_000, connections_per_address: 256, upload_mib: 256 }
    }
}

/// One federation: a model and a task.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FederationConfig {
    /// Its name.
    pub name: String,
    /// Whether devices may fetch the base model from this server.
    #[serde(default)]
    pub offer_model: bool,
    /// Whether the server measures the shared adapter on held-out rows of its own: those that
    /// `training` names, as often as `training.eval_every` says.
    #[serde(default)]
    pub evaluate: bool,
    /// Suites of questions for the shared adapter, as often as `training.eval_every` says.
    #[serde(default)]
    pub evaluation: EvaluationConfig,
    /// What devices train, in the words of `fleetune simulate`.
    #[serde(default)]
    pub training: RunConfig,
    /// How rounds go.
    #[serde(default)]
    pub rounds: RoundsConfig,
    /// Which devices may take part.
    #[serde(default)]
    pub eligibility: EligibilityConfig,
}

/// How rounds go. How many updates a round wants is `training.sample`, how many rounds there are
/// `training.rounds`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RoundsConfig {
    /// Updates without which a round does not close; `training.sample` where absent.
    pub minimum: Option<usize>,
    /// Devices that train, as a multiple of the updates wanted.
    pub over_selection: f64,
    /// Time for a round.
    pub deadline: Span,
    /// How long a round waits for all its devices before fewer will do.
    pub gather: Span,
    /// How often devices without work ask for some.
    pub check_in: Span,
    /// What happens to late updates: `synchronous` or `buffered`.
    pub mode: Mode,
    /// Buffered: rounds by which an update may be late.
    pub max_staleness: u32,
    /// Longest change of an adapter (L2 norm) that is believed.
    pub max_update_norm: f64,
    /// Most rows that a device is believed to have.
    pub max_rows: u64,
    /// Evaluations without improvement after which the federation stops; 0 never stops early.
    pub patience: u32,
    /// Rounds whose adapters are kept for a rollback; 0 keeps all.
    pub keep: u32,
}

impl Default for RoundsConfig {
    fn default() -> Self {
        Self {
            minimum: None,
            over_selection: 1.3,
            deadline: Span::from_millis(30 * 60_000),
            gather: Span::from_millis(60_000),
            check_in: Span::from_millis(10_000),
            mode: Mode::Synchronous,
            max_staleness: 4,
            max_update_norm: 1000.0,
            max_rows: 1_000_000,
            patience: 0,
            keep: 20,
        }
    }
}

/// Which devices may take part.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EligibilityConfig {
    /// Oldest version of the app, such as `1.4.0`.
    pub app_version: Option<String>,
    /// Least memory that training may take, MiB.
    pub memory_mib: u64,
    /// Only while charging.
    pub charging: bool,
    /// Only on a network that does not cost by the byte.
    pub unmetered: bool,
    /// Only while nobody uses the device.
    pub idle: bool,
    /// Rounds a day for one device; 0 sets no limit.
    pub rounds_per_day: u32,
}

fn default_state() -> PathBuf {
    "fleetune-server".into()
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 4433))
}

impl ServeConfig {
    /// Reads a configuration file and checks every value; also where values stand.
    ///
    /// # Errors
    /// When the file cannot be read, has an unknown key, or a value is out of range.
    pub fn read(path: &Path) -> Result<(Self, Origin), ConfigError> {
        let (config, origin): (Self, Origin) = read_toml(path)?;
        config.check(&origin)?;
        Ok((config, origin))
    }

    /// Checks every value; `origin` names the places of wrong ones.
    ///
    /// # Errors
    /// Names the first value that is out of range.
    pub fn check(&self, origin: &Origin) -> Result<(), ConfigError> {
        let wrong = |key: &str, problem: String| Err(origin.wrong(key, problem));
        if self.federations.is_empty() {
            return wrong("federation", "there is none: begin one with [[federation]]".into());
        }
        if self.ca_certificate.is_some() != self.ca_key.is_some() {
            let problem = "an authority needs both ca_certificate and ca_key".into();
            return wrong("ca_certificate", problem);
        }
        for (i, federation) in self.federations.iter().enumerate() {
            let name = &federation.name;
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(plain) {
                let problem = format!("{name:?} is no name: use letters, digits, - and _");
                return wrong("name", problem);
            }
            if name.starts_with('.') {
                return wrong("name", format!("{name:?} begins with a dot"));
            }
            if self.federations[..i].iter().any(|other| other.name == *name) {
                return wrong("name", format!("there are two federations named {name}"));
            }
            federation.training.check(origin)?;
            federation.check(origin)?;
        }
        Ok(())
    }
}

impl FederationConfig {
    fn check(&self, origin: &Origin) -> Result<(), ConfigError> {
        let wrong = |key: &str, problem: String| Err(origin.wrong(key, problem));
        if !self.training.compare.is_empty() {
            return wrong("compare", "a server runs one algorithm: set `algorithm`".into());
        }
        if !self.training.evaluation.is_empty() {
            let problem = "a server's suites stand in [federation.evaluation], beside training";
            return wrong("suites", problem.into());
        }
        if let Some((key, problem)) = self.evaluation.problem() {
            return wrong(key, problem);
        }
        match (self.training.algorithm, self.rounds.mode) {
            (Algorithm::Local { .. }, _) => {
                return wrong(
                    "algorithm",
                    "local shares nothing: there is no round to serve".into(),
                );
            }
            (Algorithm::Scaffold, Mode::Buffered) => {
                let problem = "scaffold needs synchronous rounds: a late change of a control \
                               variate belongs to another round's";
                return wrong("mode", problem.into());
            }
            _ => {}
        }
        if self.training.combine == Combine::Alternate && self.rounds.mode == Mode::Buffered {
            let problem = "alternate needs synchronous rounds: a late update changes the factor \
                           whose turn is over";
            return wrong("mode", problem.into());
        }
        let RoundsConfig { keep, max_staleness, .. } = self.rounds;
        if self.rounds.mode == Mode::Buffered && keep > 0 && keep <= max_staleness {
            return wrong("keep", format!("use more than max_staleness, which is {max_staleness}"));
        }
        if self.rounds.patience > 0 && !self.evaluate {
            return wrong("patience", "needs evaluations: set evaluate = true".into());
        }
        let RoundsConfig { over_selection, max_update_norm, check_in, .. } = self.rounds;
        if !(1.0..=100.0).contains(&over_selection) {
            return wrong("over_selection", format!("{over_selection} is not between 1 and 100"));
        }
        if max_update_norm.is_nan() || max_update_norm <= 0.0 {
            return wrong("max_update_norm", "use a positive number".into());
        }
        if check_in.as_millis() == 0 || check_in.as_millis() > u64::from(u32::MAX) {
            return wrong("check_in", "use between 1ms and 49d".into());
        }
        let rules = self.rules();
        if let Err(error) = rules.check() {
            return wrong(error.key, error.problem);
        }
        let (robust, needed) = (self.training.robust, self.training.robust.min_clients());
        if rules.minimum < needed {
            return wrong("minimum", format!("{robust} needs {needed} updates in every round"));
        }
        if let Some(version) = &self.eligibility.app_version
            && super::eligibility::Version::parse(version).is_none()
        {
            return wrong("app_version", format!("{version:?} is no version, such as 1.4.0"));
        }
        Ok(())
    }

    /// The rules of the federation's rounds.
    pub fn rules(&self) -> Rules {
        let RoundsConfig { minimum, over_selection, deadline, gather, check_in, .. } = self.rounds;
        let target = self.training.sample as usize;
        Rules {
            target,
            minimum: minimum.unwrap_or(target),
            selected: (target as f64 * over_selection).ceil() as usize,
            deadline: deadline.as_millis(),
            gather: gather.as_millis(),
            // A device that missed two of its times to ask, and then some, has gone.
            presence: 3 * check_in.as_millis() + 5000,
            mode: self.rounds.mode,
            max_staleness: self.rounds.max_staleness,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ServeConfig, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("serve.toml");
        std::fs::write(&path, text).unwrap();
        ServeConfig::read(&path).map(|(config, _)| config).map_err(|error| error.to_string())
    }

    #[test]
    fn a_configuration_of_one_line_has_defaults_for_everything_else() {
        let config = read("[[federation]]\nname = \"notes\"\n").unwrap();
        let rules = config.federations[0].rules();
        assert_eq!((rules.target, rules.minimum, rules.selected), (4, 4, 6));
        assert_eq!(config.limits, Limits::default());
    }

    #[test]
    fn wrong_values_are_named_with_their_line() {
        for (text, expected) in [
            ("state = \"x\"", "missing field `federation`"),
            ("page = \"here\"\n[[federation]]\nname = \"a\"", "\"here\" is neither \"off\" nor"),
            ("[[federation]]\nname = \"a b\"", "line 2: name: \"a b\" is no name"),
            ("[[federation]]\nname = \"a\"\n[[federation]]\nname = \"a\"", "two federations"),
            ("[[federation]]\nname = \"a\"\ncolour = 1", "unknown field `colour`"),
            (
                "[[federation]]\nname = \"a\"\n[federation.rounds]\ndeadline = \"soon\"",
                "is no length of time",
            ),
            (
                "[[federation]]\nname = \"a\"\n[federation.evaluation]\nsuites = [\"glue\"]",
                "line 4: suites: there is no suite \"glue\"",
            ),
            (
                "[[federation]]\nname = \"a\"\n[federation.evaluation]\nsuites = [\"fpb\"]\n\
                 judge_url = \"http://localhost\"",
                "line 5: judge_url: the endpoint needs a judge_model",
            ),
            (
                "[[federation]]\nname = \"a\"\n[federation.training.evaluation]\nsuites = [\"fpb\"]",
                "line 4: suites: a server's suites stand in [federation.evaluation]",
            ),
            (
                "[[federation]]\nname = \"a\"\n[federation.rounds]\nminimum = 9",
                "line 4: minimum: is more than the target",
            ),
            (
                "[[federation]]\nname = \"a\"\n[federation.rounds]\nminimum = 2\n\
                 [federation.training]\ncombine = \"product\"\nrobust = \"trimmed:0.2\"",
                "line 4: minimum: trimmed:0.2 needs 3 updates in every round",
            ),
            (
                "[[federation]]\nname = \"a\"\n[federation.training]\nsteps = 0",
                "line 4: steps: 0 is too few",
            ),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
