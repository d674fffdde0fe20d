//! `fleetune aggregate`: one aggregation step on adapters from anywhere.
//!
//! The folders may hold any PEFT adapter: tensors are matched by name and shape, no model is
//! needed, and the global adapter's `adapter_config.json` is carried over as it is.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, anyhow};
use clap::Args;
use fleetune_core::adapter::{CONFIG_FILE, ParameterSet, read_parameters, write_folder};
use fleetune_core::files::StagedFile;
use serde::Serialize;
use serde_json::Value;

use super::{CommandError, CommandResult, Context};
use crate::aggregate::{
    AggregateError, Aggregator, AggregatorConfig, Algorithm, Hyperparameters, Round, RoundSummary,
    ServerState, Variant, Weighting,
};
use crate::progress::{Progress, Unit};

const EXAMPLE: &str = "\
Examples:
  fleetune aggregate --algorithm fedavg --global global --update a:120 --update b:75 --out next

  # The adaptive optimisers and scaffold remember: keep their state from round to round
  fleetune aggregate --algorithm fedadam --variant paper --global global \\
      --update a:120 --update b:75 --state server.safetensors --out next
  fleetune aggregate --algorithm scaffold --clients 20 --global global \\
      --update a:120 --control-delta a-delta --update b:75 --control-delta b-delta \\
      --state server.safetensors --out next";

/// Arguments of `fleetune aggregate`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
pub struct AggregateArgs {
    /// fedavg, fedprox, scaffold, fedavgm, fedadagrad, fedyogi or fedadam
    #[arg(long, value_name = "NAME", value_parser = sharing)]
    algorithm: Algorithm,
    /// Whose reading of the algorithm: openfedllm (as that code computes) or paper (as published)
    #[arg(long, value_name = "VARIANT", default_value_t)]
    variant: Variant,
    /// How much a client counts: samples or uniform [default: samples; uniform for the adaptive
    /// optimisers of openfedllm]
    #[arg(long, value_name = "HOW")]
    weighting: Option<Weighting>,
    /// The adapter that the clients started from
    #[arg(long, value_name = "DIR")]
    global: PathBuf,
    /// A client's adapter after training, and the number of samples it trained on; once per client
    #[arg(long = "update", value_name = "DIR:NUM_SAMPLES", required = true, num_args = 1..)]
    updates: Vec<UpdateArg>,
    /// Scaffold: the change of the client's control variate; once per update, in the same order
    #[arg(long = "control-delta", value_name = "DIR", num_args = 1..)]
    control_deltas: Vec<PathBuf>,
    /// Scaffold: number of all clients, also of those that did not take part
    #[arg(long, value_name = "N")]
    clients: Option<usize>,
    /// What the server remembers between rounds; read when it exists, and rewritten
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Where to write the new global adapter
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    hyperparameters: HyperparameterArgs,
}

/// The constants of the algorithms as flags.
#[derive(Debug, Clone, Args)]
pub struct HyperparameterArgs {
    /// FedProx: weight of the pull towards the global adapter (on the client) [default: 0.01]
    #[arg(long, value_name = "MU")]
    prox_mu: Option<f64>,
    /// Learning rate of fedadagrad, fedyogi and fedadam [default: 0.001]
    #[arg(long, value_name = "ETA")]
    server_lr: Option<f64>,
    /// Decay of the server's momentum [default: 0.9]
    #[arg(long, value_name = "BETA1")]
    beta1: Option<f64>,
    /// Decay of the second moment [default: 0.99]
    #[arg(long, value_name = "BETA2")]
    beta2: Option<f64>,
    /// Adaptivity: added to the root of the second moment [default: 0.001]
    #[arg(long, value_name = "TAU")]
    tau: Option<f64>,
}

impl HyperparameterArgs {
    /// `base` with the values given as flags.
    pub fn over(&self, base: Hyperparameters) -> Hyperparameters {
        Hyperparameters {
            prox_mu: self.prox_mu.unwrap_or(base.prox_mu),
            server_lr: self.server_lr.unwrap_or(base.server_lr),
            beta1: self.beta1.unwrap_or(base.beta1),
            beta2: self.beta2.unwrap_or(base.beta2),
            tau: self.tau.unwrap_or(base.tau),
        }
    }
}

/// `DIR:NUM_SAMPLES`; the folder's own name may hold colons.
#[derive(Debug, Clone, PartialEq)]
struct UpdateArg {
    folder: PathBuf,
    samples: u64,
}

impl FromStr for UpdateArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wanted = "write DIR:NUM_SAMPLES, for example clients/7:120";
        let (folder, samples) = text.rsplit_once(':').ok_or(wanted)?;
        if folder.is_empty() {
            return Err(format!("the folder is missing: {wanted}"));
        }
        let samples = samples
            .parse()
            .map_err(|_| format!("{samples:?} is no whole number of samples: {wanted}"))?;
        if samples == 0 {
            return Err("a client that trained on 0 samples has no part in the round".into());
        }
        Ok(Self { folder: folder.into(), samples })
    }
}

/// What the command reports.
#[derive(Debug, Serialize)]
struct Report {
    algorithm: Algorithm,
    variant: Variant,
    weighting: Weighting,
    #[serde(flatten)]
    summary: RoundSummary,
    updates: Vec<UpdateReport>,
    out: PathBuf,
    state: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct UpdateReport {
    update: PathBuf,
    samples: u64,
    /// L2 norm of the client's difference to the global adapter.
    change_norm: f64,
}

/// Runs `fleetune aggregate`.
///
/// # Errors
/// When the flags make no sense, a folder cannot be read or does not fit, or the result cannot be
/// written. Nothing is written then.
pub fn run(args: AggregateArgs, ctx: &Context) -> CommandResult {
    let aggregator = configure(&args)?;
    let config = read_config(&args.global)?.ok_or_else(|| {
        let path = args.global.join(CONFIG_FILE);
        anyhow!("{} does not exist: --global takes a PEFT adapter folder", path.display())
    })?;
    let global = read_parameters(&args.global)?;
    let state = open_state(&args, &aggregator, &global)?;
    let mut round = aggregator.begin(&state).map_err(CommandError::usage)?;
    let updates = accumulate(&args, &mut round, &global, &config)?;
    let (next, summary) = aggregator.finish(&state, round)?;

    // The state is ready before the adapter is published: both are new, or none.
    let state = args.state.as_deref().map(|path| stage(path, &next)).transpose()?;
    write_folder(&args.out, &config, &next.global())?;
    if let Some(state) = state {
        state.publish().context("cannot write the state")?;
    }
    let AggregatorConfig { algorithm, variant, .. } = *aggregator.config();
    let weighting = aggregator.weighting();
    let AggregateArgs { out, state, .. } = args;
    let report = Report { algorithm, variant, weighting, summary, updates, out, state };
    ctx.result(&report, || describe(&report))?;
    Ok(())
}

/// The state as a file beside its place.
fn stage(path: &Path, state: &ServerState) -> anyhow::Result<StagedFile> {
    StagedFile::write(path, &state.to_bytes()?)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// An algorithm that aggregates.
fn sharing(name: &str) -> Result<Algorithm, String> {
    match name.parse() {
        Ok(Algorithm::Local { .. }) => Err(AggregateError::NeverAggregates.to_string()),
        Ok(algorithm) => Ok(algorithm),
        Err(_) => {
            let known = Algorithm::SHARING.map(Algorithm::name).join(", ");
            Err(format!("unknown algorithm: use one of {known}"))
        }
    }
}

/// Checks the flags as a whole.
fn configure(args: &AggregateArgs) -> Result<Aggregator, CommandError> {
    let scaffold = args.algorithm == Algorithm::Scaffold;
    if scaffold && args.clients.is_none() {
        return Err(CommandError::usage(
            "scaffold needs --clients N, the number of all clients, also of those that sat the round out",
        ));
    }
    let (updates, deltas) = (args.updates.len(), args.control_deltas.len());
    if scaffold && updates != deltas {
        return Err(CommandError::Usage(format!(
            "scaffold needs one --control-delta per --update, in the same order: there are {deltas} for {updates} updates"
        )));
    }
    if !scaffold && deltas > 0 {
        let text = format!("--control-delta belongs to scaffold, not to {}", args.algorithm);
        return Err(CommandError::Usage(text));
    }
    if let Some(population) = args.clients.filter(|&all| all < updates) {
        let clients = updates;
        return Err(CommandError::usage(AggregateError::PopulationExceeded {
            clients,
            population,
        }));
    }
    let clients = args.updates.iter().map(|update| &update.folder).chain(&args.control_deltas);
    if let Some(folder) = clients.into_iter().find(|folder| is_same(folder, &args.out)) {
        return Err(CommandError::Usage(format!(
            "--out would replace {}, which a client sent: choose another folder",
            folder.display()
        )));
    }
    let config = AggregatorConfig {
        algorithm: args.algorithm,
        variant: args.variant,
        weighting: args.weighting,
        hyperparameters: args.hyperparameters.over(Hyperparameters::default()),
        population: args.clients,
    };
    Aggregator::new(config).map_err(|error| match error {
        AggregateError::Hyperparameter(wrong) => {
            let flag = format!("--{}", wrong.name.replace('_', "-"));
            CommandError::Usage(wrong.to_string().replacen(wrong.name, &flag, 1))
        }
        other => CommandError::usage(other),
    })
}

/// Whether both are there and are one folder.
fn is_same(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// The state to continue from, or the first one.
fn open_state(
    args: &AggregateArgs,
    aggregator: &Aggregator,
    global: &ParameterSet,
) -> Result<ServerState, CommandError> {
    let initial = aggregator.initial_state(global).context(args.global.display().to_string())?;
    let Some(path) = &args.state else {
        if initial.remembers() {
            tracing::warn!(
                "without --state FILE this counts as round 0: what {} remembers is lost",
                args.algorithm
            );
        }
        return Ok(initial);
    };
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(initial),
        Err(error) => {
            return Err(anyhow!("cannot read {}: {error}", path.display()).into());
        }
    };
    let shown = path.display();
    let mut state =
        ServerState::from_bytes(&bytes).with_context(|| format!("cannot use {shown}"))?;
    let replaced = state.set_global(global).with_context(|| format!("cannot use {shown}"))?;
    if replaced {
        tracing::warn!(
            "{} is not the adapter that {shown} ended with: moments stay, weights start from it",
            args.global.display()
        );
    }
    Ok(state)
}

/// Reads the clients' adapters one after the other into the round.
fn accumulate(
    args: &AggregateArgs,
    round: &mut Round,
    global: &ParameterSet,
    config: &[u8],
) -> Result<Vec<UpdateReport>, CommandError> {
    let progress =
        Progress::new("aggregating", Some(args.updates.len() as u64), Unit::Items("clients"));
    let mut reports = Vec::with_capacity(args.updates.len());
    for (i, UpdateArg { folder, samples }) in args.updates.iter().enumerate() {
        if let Some(theirs) = read_config(folder)? {
            check_same_adapter(config, &theirs, folder)?;
        }
        let weights = read_parameters(folder)?;
        let delta = args.control_deltas.get(i).map(|folder| read_parameters(folder)).transpose()?;
        round
            .accumulate(&weights, *samples, delta.as_ref())
            .with_context(|| format!("cannot use {}", folder.display()))?;
        let change_norm = weights.difference(global)?.l2_norm();
        reports.push(UpdateReport { update: folder.clone(), samples: *samples, change_norm });
        progress.advance(1);
    }
    progress.finish();
    Ok(reports)
}

fn read_config(folder: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    let path = folder.join(CONFIG_FILE);
    match fs::read(&path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(anyhow!("cannot read {}: {error}", path.display())),
    }
}

/// Fields that decide what an adapter's tensors mean. Where they differ, a mean of the tensors is
/// no mean of the adapters.
const MEANING: [&str; 7] =
    ["peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern"];

fn check_same_adapter(global: &[u8], update: &[u8], folder: &Path) -> anyhow::Result<()> {
    let update: Value = serde_json::from_slice(update)
        .with_context(|| format!("{} is no JSON", folder.join(CONFIG_FILE).display()))?;
    let global: Value = serde_json::from_slice(global)
        .with_context(|| format!("the global adapter's {CONFIG_FILE} is no JSON"))?;
    for field in MEANING {
        if let (Some(mine), Some(theirs)) = (global.get(field), update.get(field))
            && mine != theirs
            && mine.as_f64().is_none_or(|mine| Some(mine) != theirs.as_f64())
        {
            let path = folder.join(CONFIG_FILE);
            anyhow::bail!(
                "{}: {field} is {theirs}, but the global adapter's is {mine}",
                path.display()
            );
        }
    }
    Ok(())
}

fn describe(report: &Report) -> String {
    let Report { algorithm, variant, weighting, summary, .. } = report;
    let RoundSummary { round, clients, samples, mean_change_norm, step_norm, .. } = summary;
    let mut text = format!(
        "{algorithm} ({variant}, by {weighting}), round {round}: {clients} clients, {samples} samples\n\
         averaged change {mean_change_norm:.6}, step of the global adapter {step_norm:.6} (L2 norms)\n\
         wrote {}",
        report.out.display()
    );
    if let Some(state) = &report.state {
        text.push_str(&format!(" and {}", state.display()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_may_hold_colons() {
        let parse = |text: &str| text.parse::<UpdateArg>();
        let update = |folder: &str, samples| Ok(UpdateArg { folder: folder.into(), samples });
        assert_eq!(parse("clients/7:120"), update("clients/7", 120));
        assert_eq!(parse(r"C:\clients\7:1"), update(r"C:\clients\7", 1));
        assert_eq!(parse("a:b:3"), update("a:b", 3));
        for wrong in ["clients/7", "a:", "a:-1", "a:1.5", ":3", "a:0", "a:b"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
