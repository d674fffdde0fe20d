//! `fleetune serve`: federations over QUIC.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use fleetune_core::data::Template;
use fleetune_core::model::{Decoder, LoadedModel};
use fleetune_core::protocol::{Blob, BlobId, ModelOffer};
use serde_json::json;

use super::engine::{check_context, find_model};
use super::evaluator::HeldOut;
use super::{CommandError, CommandResult, Context};
use crate::coordinator::config::{FederationConfig, ServeConfig};
use crate::coordinator::{BaseModel, Coordinator, Evaluate, FederationError, Offered, random};
use crate::identity::{Authority, reset_secret};
use crate::interrupt::Interrupt;
use crate::output;
use crate::progress::note;
use crate::store::Store;
use crate::transport::{MetricsPage, Server};

/// Where a server leaves its addresses for `fleetune admin invite`.
pub const ADDRESSES_NOTE: &str = "addresses";
/// Threads that wait for the disk.
const DISK_THREADS: usize = 16;

/// What `fleetune serve` takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  fleetune serve configs/serve.toml

Devices join with a code that `fleetune admin invite` prints. Everything the server remembers lies
in its state folder; stopped or killed at any moment, it goes on from there.")]
pub struct ServeArgs {
    /// Configuration file
    #[arg(value_name = "CONFIG.toml")]
    config: PathBuf,
    /// Folder of everything the server remembers [default: as the configuration says]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Address to listen on [default: as the configuration says]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<std::net::SocketAddr>,
}

/// Runs the command.
pub fn run(args: ServeArgs, ctx: &Context) -> CommandResult {
    let mut config = ServeConfig::read(&args.config).map_err(CommandError::usage)?;
    config.state = args.state.unwrap_or(config.state);
    config.listen = args.listen.unwrap_or(config.listen);
    let interrupt = ctx.interrupt();
    let (store, authority) = open_state(&config)?;
    let _lock = store.lock().map_err(CommandError::usage)?;
    let mut coordinator = Coordinator::new(store, authority, config.limits)?;
    for federation in &config.federations {
        let (model, evaluator) = base_model(federation, &config.state, ctx, &interrupt)?;
        coordinator
            .serve(federation.clone(), model, evaluator)
            .map_err(|error| explain(&federation.name, error))?;
    }
    let coordinator = Arc::new(coordinator);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .max_blocking_threads(DISK_THREADS)
        .enable_all()
        .build()?;
    let server = {
        let _inside = runtime.enter();
        let hosts = hosts(&config.addresses);
        let secret = reset_secret(&identity_folder(&config.state), random()?)?;
        Server::bind(Arc::clone(&coordinator), config.listen, hosts, &secret)?
    };
    let listening = server.local_addr()?;
    let addresses = match config.addresses.is_empty() {
        true => vec![reachable(listening)],
        false => config.addresses.clone(),
    };
    coordinator.store().set_note(ADDRESSES_NOTE, &addresses.join(","))?;
    if let Some(address) = config.metrics {
        let page = MetricsPage::bind(Arc::clone(&coordinator), address)
            .map_err(|error| CommandError::Usage(format!("cannot listen on {address}: {error}")))?;
        note(format!("metrics at http://{}/metrics", page.local_addr()?));
        page.run(interrupt.clone())?;
    }
    let drivers = coordinator.drive(&interrupt)?;
    let names: Vec<&str> = coordinator.federations().map(|f| f.name()).collect();
    let names = names.join(", ");
    match ctx.json {
        true => output::json(&json!({ "listening": listening, "addresses": addresses }))?,
        false => output::line(format!("serving {names} on {listening}"))?,
    }
    note("devices join with a code of: fleetune admin invite");
    runtime.block_on(server.run(interrupt));
    for driver in drivers {
        // A driver that panicked has told of it.
        let _ = driver.join();
    }
    note("stopped; the same command goes on");
    Ok(())
}

/// Opens the state folder and the authority.
fn open_state(config: &ServeConfig) -> Result<(Store, Authority), CommandError> {
    let store = Store::open(&config.state)?;
    let now = time::OffsetDateTime::now_utc();
    let authority = match (&config.ca_certificate, &config.ca_key) {
        (Some(certificate), Some(key)) => Authority::load(certificate, key),
        _ => Authority::open(&identity_folder(&config.state), now),
    };
    let authority = authority.map_err(CommandError::usage)?;
    // The operator's commands make invites for this authority.
    store.set_note(AUTHORITY_NOTE, &data_encoding::HEXLOWER.encode(&authority.fingerprint().0))?;
    Ok((store, authority))
}

/// Where a server leaves its authority's fingerprint for `fleetune admin invite`.
pub const AUTHORITY_NOTE: &str = "authority";

/// Where the authority lies in a state folder.
pub fn identity_folder(state: &Path) -> PathBuf {
    state.join("identity")
}

/// The base model of a federation, and who measures on it.
fn base_model(
    federation: &FederationConfig,
    state: &Path,
    ctx: &Context,
    interrupt: &Interrupt,
) -> Result<(BaseModel, Option<Box<dyn Evaluate>>), CommandError> {
    let training = &federation.training;
    let path = find_model(&training.model, interrupt)?;
    let model = LoadedModel::open(&path)?;
    check_context(&model, training.seq_len)?;
    if training.template() == Template::Chat && model.chat_template().is_none() {
        return Err(CommandError::Usage(format!(
            "{} has no chat template: choose template = \"alpaca\" or \"vicuna\"",
            training.model
        )));
    }
    let file = match (model.files(), federation.offer_model) {
        ([file], true) => Some(Offered::file(file)?),
        (_, true) => {
            return Err(CommandError::Usage(format!(
                "federation {}: offer_model takes a model of one file, {} has several",
                federation.name, training.model
            )));
        }
        (_, false) => None,
    };
    let blob = match &file {
        Some(offered) => offered.manifest.blob(),
        None => content_blob(&model)?,
    };
    let offer = ModelOffer { name: training.model.clone(), blob, offered: file.is_some() };
    let base = BaseModel { offer, config: model.config.clone(), file };
    if !federation.evaluate {
        return Ok((base, None));
    }
    let device = ctx.open_device()?;
    let precision = training.precision.into();
    let decoder = Decoder::new(model.config.clone(), &model.weights, &device, precision)?;
    let references = state.join("reference").join(&federation.name);
    let cancel = interrupt.cancel_token();
    let evaluator = HeldOut::new(training.clone(), model, decoder, references, cancel)?;
    Ok((base, Some(Box::new(evaluator))))
}

/// A model that is not handed out, by the hash that devices know it by.
fn content_blob(model: &LoadedModel) -> Result<Blob, CommandError> {
    let id: BlobId = model.content_hash()?.parse()?;
    let sizes = model.files().iter().map(|file| file.metadata().map_or(0, |file| file.len()));
    Ok(Blob { id, size: sizes.sum() })
}

/// The hosts of `host:port` addresses, which the server's certificate names.
fn hosts(addresses: &[String]) -> Vec<String> {
    let host = |address: &String| {
        let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
        host.trim_matches(['[', ']']).to_owned()
    };
    addresses.iter().map(host).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Where this machine reaches the server that listens on `listening`.
fn reachable(listening: std::net::SocketAddr) -> String {
    match listening.ip().is_unspecified() {
        true => format!("127.0.0.1:{}", listening.port()),
        false => listening.to_string(),
    }
}

fn explain(name: &str, error: FederationError) -> CommandError {
    match error {
        FederationError::Changed { .. }
        | FederationError::Lora(_)
        | FederationError::Began { .. } => {
            CommandError::Usage(format!("federation {name}: {error}"))
        }
        error => error.into(),
    }
}
