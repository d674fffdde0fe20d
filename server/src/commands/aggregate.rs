//! `fleetune aggregate`: one aggregation step on adapters from anywhere.
//!
//! The folders may hold any PEFT adapter: tensors are matched by name and shape, no model is
//! needed, and the global adapter's `adapter_config.json` is carried over as it is.

mod adapters;

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

use self::adapters::{divisor, read_config, read_update, scale_of};
use super::{CommandError, CommandResult, Context};
use crate::aggregate::combine::{rank_of, stack};
use crate::aggregate::{
    AggregateError, Aggregator, AggregatorConfig, Algorithm, Combination, Combine, Hyperparameters,
    ProductReport, Robust, Round, RoundSummary, ServerState, Variant, Weighting,
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
      --state server.safetensors --out next

  # The exact mean of the products, also of adapters of different rank; what does not fit stays in
  # the state and is part of the next round
  fleetune aggregate --algorithm fedavg --combine product --global global \\
      --update small:120 --update large:75 --state server.safetensors --out next";

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
    /// What is averaged: factors (A and B apart), ffa (B alone), alternate (B and A in turn), product
    /// (exact, at the global adapter's rank) or stack (exact, at the sum of all ranks)
    #[arg(long, value_name = "HOW", default_value_t)]
    combine: Combine,
    /// How far-off updates are kept from mattering: none, median, trimmed:SHARE or krum:HOSTILE
    #[arg(long, value_name = "RULE", default_value_t)]
    robust: Robust,
    /// Longest change of a client's products (Frobenius norm); a longer one is shortened
    #[arg(long, value_name = "NORM")]
    clip_norm: Option<f64>,
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
    combine: Combine,
    /// Rank of the result, where it has one.
    rank: Option<usize>,
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
    /// L2 norm of the client's difference to the global adapter, where they have the same rank.
    #[serde(skip_serializing_if = "Option::is_none")]
    change_norm: Option<f64>,
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
    if args.combine == Combine::Stack {
        return stack_updates(args, &global, &config, ctx);
    }
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
    let rank = rank_of(&next.global());
    let AggregateArgs { out, state, combine, .. } = args;
    let report =
        Report { algorithm, variant, weighting, combine, rank, summary, updates, out, state };
    ctx.result(&report, || describe(&report))?;
    Ok(())
}

/// Writes the exact sum of the updates as one adapter of the sum of their ranks. The global adapter
/// gives the configuration alone: its weights have no part in the result.
fn stack_updates(
    args: AggregateArgs,
    global: &ParameterSet,
    config: &[u8],
    ctx: &Context,
) -> CommandResult {
    let mut stacked = Vec::with_capacity(args.updates.len());
    let mut updates = Vec::with_capacity(args.updates.len());
    for UpdateArg { folder, samples } in &args.updates {
        let weights = read_update(folder, config, args.combine)?;
        let n = match args.weighting {
            Some(Weighting::Uniform) => 1.0,
            _ => *samples as f64,
        };
        updates.push(UpdateReport { update: folder.clone(), samples: *samples, change_norm: None });
        stacked.push((weights, n));
    }
    let sum = stack(&stacked)?;
    let rank = rank_of(&sum).unwrap_or_default();
    let mut config: Value = serde_json::from_slice(config)
        .with_context(|| format!("the global adapter's {CONFIG_FILE} is no JSON"))?;
    let scale = scale_of(&config)?;
    config["r"] = rank.into();
    config["lora_alpha"] = (scale * divisor(&config, rank)).into();
    let config = serde_json::to_vec_pretty(&config).context("cannot write the configuration")?;
    write_folder(&args.out, &config, &sum)?;
    let norm = |set: &ParameterSet| set.l2_norm();
    let summary = RoundSummary {
        round: 0,
        clients: updates.len(),
        samples: updates.iter().map(|update| update.samples).sum(),
        mean_change_norm: norm(&sum),
        step_norm: norm(&sum),
        global_norm: norm(global),
        product: None,
    };
    let report = Report {
        algorithm: args.algorithm,
        variant: args.variant,
        weighting: args.weighting.unwrap_or(Weighting::Samples),
        combine: args.combine,
        rank: Some(rank),
        summary,
        updates,
        out: args.out,
        state: None,
    };
    ctx.result(&report, || {
        let (clients, out) = (report.summary.clients, report.out.display());
        format!("stacked {clients} adapters into one of rank {rank}\nwrote {out}")
    })?;
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
        combination: Combination {
            // The sum of all ranks is not the aggregator's work: it needs nothing but the updates.
            combine: if args.combine == Combine::Stack { Combine::Factors } else { args.combine },
            robust: args.robust,
            clip_norm: args.clip_norm,
            mixed_ranks: args.combine == Combine::Product,
            measure: matches!(
                args.algorithm,
                Algorithm::FedAvg | Algorithm::FedProx | Algorithm::Scaffold
            ),
        },
    };
    if args.combine == Combine::Stack {
        let unused =
            args.state.is_some() || args.robust != Robust::None || args.clip_norm.is_some();
        if unused || args.algorithm != Algorithm::FedAvg {
            return Err(CommandError::usage(
                "--combine stack goes with --algorithm fedavg alone, without --state, --robust and --clip-norm",
            ));
        }
    }
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
        let lost = match args.combine {
            Combine::Product => Some("what product keeps back for later rounds".to_owned()),
            Combine::Alternate => Some("whose turn it is, A's or B's,".to_owned()),
            _ => initial.remembers().then(|| format!("what {} remembers", args.algorithm)),
        };
        if let Some(lost) = lost {
            tracing::warn!("without --state FILE this counts as round 0: {lost} is lost");
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
            "{} is not the adapter that {shown} ended with: moments stay, weights start from it, and \
             what product kept back is dropped",
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
        let weights = read_update(folder, config, args.combine)?;
        let delta = args.control_deltas.get(i).map(|folder| read_parameters(folder)).transpose()?;
        round
            .accumulate(&weights, *samples, delta.as_ref())
            .with_context(|| format!("cannot use {}", folder.display()))?;
        let change_norm = weights.difference(global).ok().map(|change| change.l2_norm());
        reports.push(UpdateReport { update: folder.clone(), samples: *samples, change_norm });
        progress.advance(1);
    }
    progress.finish();
    Ok(reports)
}

fn describe(report: &Report) -> String {
    let Report { algorithm, variant, weighting, summary, .. } = report;
    let RoundSummary { round, clients, samples, mean_change_norm, step_norm, .. } = summary;
    let mut text = format!(
        "{algorithm} ({variant}, by {weighting}), round {round}: {clients} clients, {samples} samples\n\
         averaged change {mean_change_norm:.6}, step of the global adapter {step_norm:.6} (L2 norms)",
    );
    if let Some(ProductReport { error, change, remainder, .. }) = &summary.product {
        text.push_str(&format!(
            "\nproducts: {error:.6} from their exact mean, which changed by {change:.6}; {remainder:.6} kept back"
        ));
    }
    text.push_str(&format!("\nwrote {}", report.out.display()));
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
