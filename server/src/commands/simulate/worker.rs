//! The processes of a simulation's further devices: how the run starts them, and what they do.

use std::path::Path;

use fleetune_core::data::Encoder;
use fleetune_core::model::{Decoder, LoadedModel};

use super::{open_dataset, references};
use crate::commands::{CommandError, CommandResult, Context};
use crate::progress;
use crate::simulate::config::RunConfig;
use crate::simulate::fleet::Fleet;
use crate::simulate::workers::{Job, Orders, StartOptions, Starting, Workplace};

/// The hidden command that makes a process a worker.
const COMMAND: &str = "simulate-worker";

/// Starts a process for each device but the first.
pub fn start(
    config: &RunConfig,
    model: &Path,
    model_hash: &str,
    ctx: &Context,
) -> Result<Vec<Starting>, CommandError> {
    let devices = ctx.devices.others();
    if devices.is_empty() {
        return Ok(Vec::new());
    }
    if config.clients_at_once > 1 {
        tracing::warn!(
            "each device trains one team of clients at a time: clients_at_once = {} is passed over",
            config.clients_at_once
        );
    }
    let job = Job {
        config: config.to_toml()?,
        model: model.to_owned(),
        model_hash: model_hash.to_owned(),
    };
    let threads = (rayon::current_num_threads() / (devices.len() + 1)).max(1);
    let start = |&device| {
        let mut arguments = vec![COMMAND.to_owned()];
        arguments.extend(ctx.log_flags.iter().cloned());
        Starting::start(&StartOptions { device, threads, arguments }, &job)
    };
    Ok(devices.iter().map(start).collect::<Result<_, _>>()?)
}

/// Does what the run that started this process says.
///
/// # Errors
/// When no run started it. What else goes wrong, the run tells.
pub fn run(ctx: &Context) -> CommandResult {
    // The run has told already what there is to tell of the data.
    progress::set_quiet(true);
    let mut orders = Orders::listen().map_err(CommandError::usage)?;
    if let Err(error) = follow(&mut orders, ctx) {
        orders.fail(error.text());
    }
    Ok(())
}

/// Opens what the job names, as the run does, and trains.
fn follow(orders: &mut Orders, ctx: &Context) -> CommandResult {
    let device = ctx.open_device()?;
    let Job { config, model, model_hash } = orders.job().clone();
    let config: RunConfig = toml::from_str(&config)?;
    let out = config.out.clone().unwrap_or_default();
    let model = LoadedModel::open(&model)?;
    let encoder = Encoder::new(config.template(), model.tokenizer()?, config.seq_len)?;
    let fleet = Fleet::new(open_dataset(&config)?, &config)?;
    let references = references(&config, &out, model_hash, &model)?;
    let decoder =
        Decoder::new(model.config.clone(), &model.weights, &device, config.precision.into())?;
    let workplace =
        Workplace { decoder: &decoder, encoder: &encoder, fleet: &fleet, references: &references };
    Ok(orders.follow(workplace)?)
}
