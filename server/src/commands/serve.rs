//! `fleetune serve`: federations over QUIC.

use std::collections::{BTreeSet, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use fleetune_core::data::Template;
use fleetune_core::model::{Decoder, LoadedModel};
use fleetune_core::protocol::{Blob, BlobId, ModelOffer};
use serde_json::json;

use super::engine::{check_context, find_model};
use super::evaluator::HeldOut;
use super::questions::suite_questions;
use super::{CommandError, CommandResult, Context};
use crate::coordinator::config::{FederationConfig, PageAddress, ServeConfig};
use crate::coordinator::{BaseModel, Coordinator, FederationError, Measures, Offered, random};
use crate::identity::{Authority, kept_secret};
use crate::interrupt::Interrupt;
use crate::operator::{identity_folder, leave_addresses, leave_authority};
use crate::output;
use crate::progress::note;
use crate::simulate::config::Origin;
use crate::store::Store;
use crate::system;
use crate::transport::Server;
use crate::web::{Site, Token, metrics, page};

/// Threads that wait for the disk.
const DISK_THREADS: usize = 4;
/// Where the secret lies by which devices learn that the server forgot their connection.
const RESET_SECRET: &str = "reset-secret";

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
    listen: Option<SocketAddr>,
}

/// Runs the command.
pub fn run(args: ServeArgs, ctx: &Context) -> CommandResult {
    // A server that cannot start anew is the same server with more memory.
    if let Err(error) = system::limit_heaps() {
        tracing::debug!("glibc keeps its number of heaps: {error}");
    }
    let (mut config, origin) = ServeConfig::read(&args.config).map_err(CommandError::usage)?;
    config.state = args.state.unwrap_or(config.state);
    config.listen = args.listen.unwrap_or(config.listen);
    let interrupt = ctx.interrupt();
    let (store, authority) = open_state(&config)?;
    let _lock = store.lock().map_err(CommandError::usage)?;
    let mut coordinator = Coordinator::new(store, authority, config.limits)?;
    for federation in &config.federations {
        let (model, measures) = base_model((federation, &origin), &config.state, ctx, &interrupt)?;
        coordinator
            .serve(federation.clone(), model, measures)
            .map_err(|error| explain(&federation.name, error))?;
    }
    let coordinator = Arc::new(coordinator);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .max_blocking_threads(DISK_THREADS)
        .enable_all()
        .build()?;
    // Listeners are made within the runtime that drives them.
    let inside = runtime.enter();
    let hosts = hosts(&config.addresses);
    let secret = kept_secret(&identity_folder(&config.state), RESET_SECRET, random::<64>()?)?;
    let server = Server::bind(Arc::clone(&coordinator), config.listen, hosts, &secret)?;
    let listening = server.local_addr()?;
    let addresses = match config.addresses.is_empty() {
        true => vec![reachable(listening)],
        false => config.addresses.clone(),
    };
    leave_addresses(coordinator.store(), &addresses)?;
    if let Some(address) = config.metrics {
        let site = Site::bind(address, metrics(Arc::clone(&coordinator)))
            .map_err(|error| cannot_listen(address, &error))?;
        note(format!("metrics at http://{}/metrics", site.local_addr()?));
        runtime.spawn(site.run(interrupt.clone()));
    }
    let page = open_page(config.page, &config.state, &coordinator)?;
    let page_url = match page {
        Some((site, token)) => {
            let url = format!("http://{}/#{}", site.local_addr()?, token.as_str());
            runtime.spawn(site.run(interrupt.clone()));
            note(format!("operator's page at {url}"));
            Some(url)
        }
        None => None,
    };
    drop(inside);
    let drivers = coordinator.drive(&interrupt)?;
    let names: Vec<&str> = coordinator.federations().map(|f| f.name()).collect();
    let names = names.join(", ");
    match ctx.json {
        true => output::json(
            &json!({ "listening": listening, "addresses": addresses, "page": page_url }),
        )?,
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

/// The operator's page and its token, where there is to be one.
fn open_page(
    address: PageAddress,
    state: &Path,
    coordinator: &Arc<Coordinator>,
) -> Result<Option<(Site, Token)>, CommandError> {
    let token = Token::open(state)?;
    let bind = |address| Site::bind(address, page(Arc::clone(coordinator), token.clone()));
    let site = match address {
        PageAddress::Off => return Ok(None),
        PageAddress::At(address) => {
            if !address.ip().is_loopback() {
                note("the page is plain HTTP: keep it behind a proxy that encrypts");
            }
            bind(address).map_err(|error| cannot_listen(address, &error))?
        }
        PageAddress::Default => {
            let any_port = SocketAddr::new(PageAddress::LOOPBACK.ip(), 0);
            bind(PageAddress::LOOPBACK).or_else(|_| bind(any_port))?
        }
    };
    Ok(Some((site, token)))
}

fn cannot_listen(address: SocketAddr, error: &std::io::Error) -> CommandError {
    CommandError::Usage(format!("cannot listen on {address}: {error}"))
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
    leave_authority(&store, &authority)?;
    Ok((store, authority))
}

/// The base model of a federation, and how adapters are measured on it.
fn base_model(
    (federation, origin): (&FederationConfig, &Origin),
    state: &Path,
    ctx: &Context,
    interrupt: &Interrupt,
) -> Result<(BaseModel, Measures), CommandError> {
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
    if file.is_some() && path.is_dir() {
        tracing::warn!(
            "federation {}: devices that fetch {} get its weights alone, without config.json and \
             tokenizer.json, and cannot train: offer a GGUF file, or set offer_model = false",
            federation.name,
            training.model
        );
    }
    let blob = match &file {
        Some(offered) => offered.manifest.blob(),
        None => content_blob(&model)?,
    };
    let offer = ModelOffer { name: training.model.clone(), blob, offered: file.is_some() };
    let base = BaseModel { offer, config: model.config.clone(), file };
    if !federation.evaluate && federation.evaluation.is_empty() {
        return Ok((base, Measures::default()));
    }
    let device = ctx.open_device()?;
    let precision = training.precision.into();
    let decoder = Decoder::new(model.config.clone(), &model.weights, &device, precision)?;
    let (model, decoder) = (Arc::new(model), Arc::new(decoder));
    // What devices hold is not known here: no question is left out.
    let seen = || Ok(HashSet::new());
    let asked = (&federation.evaluation, origin);
    let suites = suite_questions(training, asked, (&model, &decoder), seen, ctx)?;
    if !federation.evaluate {
        return Ok((base, Measures { held_out: None, suites }));
    }
    let references = state.join("reference").join(&federation.name);
    let cancel = interrupt.cancel_token();
    let evaluator = HeldOut::new(training.clone(), model, decoder, references, cancel)?;
    Ok((base, Measures { held_out: Some(Box::new(evaluator)), suites }))
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
fn reachable(listening: SocketAddr) -> String {
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
