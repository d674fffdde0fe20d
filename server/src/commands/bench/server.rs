//! `fleetune bench server`: a server under the load of many devices.
//!
//! The server is another process of this program. The devices live in this one: each has a key, a
//! certificate and a connection of its own, fetches the shared adapter and hands in an update of its
//! own. They do not train, and make their updates before the clock starts, as devices have
//! processors of their own.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use fleetune_core::adapter::{Adapter, ParameterSet};
use fleetune_core::client::{Instructions, Upload};
use fleetune_core::model::LoadedModel;
use fleetune_core::protocol::{Assignment, JoinCode, RoundAssignment};
use fleetune_core::update::decode;
use indicatif::HumanBytes;
use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::commands::engine::find_model;
use crate::commands::{CommandResult, Context, values};
use crate::hub::BUILT_IN;
use crate::load::{Identity, LoadDevice, LoadError, Site};
use crate::progress::{Progress, Unit};
use crate::store::Store;
use crate::system;

const NAME: &str = "bench";
/// Devices whose handshakes run at once.
const HANDSHAKES: usize = 32;
/// How long connections rest before their memory is read.
const REST: Duration = Duration::from_secs(3);
/// How often a device without work asks.
const POLL: Duration = Duration::from_millis(500);
/// Attempts of one device at a round before it counts as failed.
const ATTEMPTS: usize = 5;

#[derive(Debug, Args)]
pub struct ServerBenchArgs {
    /// Devices
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = values::at_least_one)]
    devices: usize,
    /// Devices that fetch or hand in at once; the others are connected and wait
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = values::at_least_one)]
    at_once: usize,
    /// Base model: its shape decides the size of updates
    #[arg(long, value_name = "NAME_OR_PATH", default_value = BUILT_IN.name)]
    model: String,
    /// Rank of the adapter on q_proj and v_proj
    #[arg(long, value_name = "R", default_value_t = 8)]
    lora_rank: usize,
    /// Folder for the server's state and the updates [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
}

/// What was measured.
#[derive(Debug, Serialize)]
struct ServerReport {
    cpu: Option<String>,
    devices: usize,
    update_bytes: u64,
    update_values: usize,
    enrol_seconds: f64,
    idle_rss_bytes: Option<u64>,
    connected_rss_bytes: Option<u64>,
    connect_seconds: f64,
    round_seconds: f64,
    aggregate_seconds: f64,
    updates_per_second: f64,
    retries: usize,
    peak_rss_bytes: Option<u64>,
}

/// Runs the command.
pub fn run(args: &ServerBenchArgs, ctx: &Context) -> CommandResult {
    let temporary = tempfile::tempdir()?;
    let folder = args.folder.clone().unwrap_or_else(|| temporary.path().to_owned());
    fs::create_dir_all(&folder)?;
    let model = find_model(&args.model, &ctx.interrupt())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(measure(args, &folder, &model))?;
    Ok(ctx.result(&report, || table(&report))?)
}

async fn measure(
    args: &ServerBenchArgs,
    folder: &Path,
    model: &Path,
) -> anyhow::Result<ServerReport> {
    let mut server = ServerProcess::start(args, folder, model)?;
    let idle = server.rss();
    let sites = server.sites(folder, args.devices)?;
    let code = server.invite(folder, args.devices)?;

    let started = Instant::now();
    let identities = enrol(&sites, &code, args.devices).await?;
    let enrol_seconds = started.elapsed().as_secs_f64();
    let updates = Arc::new(make_updates(args, folder, model)?);
    let started = Instant::now();
    let devices = connect(&sites, identities).await?;
    let connect_seconds = started.elapsed().as_secs_f64();
    tokio::time::sleep(REST).await;
    let connected = server.rss();

    let started = Instant::now();
    let (failed_devices, retries) = round(args, devices, &updates).await?;
    anyhow::ensure!(
        failed_devices == 0,
        "{failed_devices} devices failed {ATTEMPTS} times each, so that the round does not end: run \
         with -v to see why"
    );
    let handed_in = started.elapsed().as_secs_f64();
    let closed = server.wait_until_closed(folder, started).await?;
    let peak = server.peak();
    server.stop()?;
    let update_bytes = fs::metadata(update_path(folder, 0))?.len();
    Ok(ServerReport {
        cpu: system::cpu_name(),
        devices: args.devices,
        update_bytes,
        update_values: updates.values,
        enrol_seconds,
        idle_rss_bytes: idle,
        connected_rss_bytes: connected,
        connect_seconds,
        round_seconds: closed,
        aggregate_seconds: closed - handed_in,
        updates_per_second: args.devices as f64 / closed,
        retries,
        peak_rss_bytes: peak,
    })
}

/// The server's process.
struct ServerProcess {
    child: Child,
    address: SocketAddr,
}

impl ServerProcess {
    fn start(args: &ServerBenchArgs, folder: &Path, model: &Path) -> anyhow::Result<Self> {
        let config = format!(
            "state = {:?}\nlisten = \"127.0.0.1:0\"\n\
             [limits]\nconnections = {connections}\nconnections_per_address = {connections}\n\
             [[federation]]\nname = \"{NAME}\"\noffer_model = true\n\
             [federation.training]\nmodel = {model:?}\nsample = {devices}\nclients = {devices}\n\
             rounds = 1\nlora_rank = {rank}\n\
             [federation.rounds]\nover_selection = 1.0\ndeadline = \"1h\"\ngather = \"1h\"\n\
             check_in = \"500ms\"\n",
            folder.join("state"),
            connections = 2 * args.devices + 100,
            devices = args.devices,
            rank = args.lora_rank,
        );
        let path = folder.join("serve.toml");
        fs::write(&path, config)?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["serve", "--json", "--quiet"])
            .arg(path)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let Some(out) = child.stdout.take() else { anyhow::bail!("the server has no output") };
        BufReader::new(out).read_line(&mut line)?;
        let told: serde_json::Value =
            serde_json::from_str(&line).map_err(|_| anyhow::anyhow!("the server did not start"))?;
        let address = told["listening"].as_str().unwrap_or_default().parse()?;
        Ok(Self { child, address })
    }

    fn invite(&self, folder: &Path, uses: usize) -> anyhow::Result<JoinCode> {
        let output = Command::new(std::env::current_exe()?)
            .args(["admin", "--json", "invite", "--uses", &uses.to_string(), "--state"])
            .arg(folder.join("state"))
            .output()?;
        let told: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        Ok(told["join_code"].as_str().unwrap_or_default().parse()?)
    }

    /// Sockets for the devices: one for every few hundred.
    fn sites(&self, folder: &Path, devices: usize) -> anyhow::Result<Vec<Site>> {
        let pem = fs::read(folder.join("state/identity/ca.pem"))?;
        let authority = CertificateDer::from_pem_slice(&pem)?;
        let sockets = devices.div_ceil(250);
        let site = |_| Ok(Site::new(self.address, authority.clone())?);
        (0..sockets).map(site).collect()
    }

    fn rss(&self) -> Option<u64> {
        system::rss_bytes_of(self.child.id())
    }

    fn peak(&self) -> Option<u64> {
        system::peak_rss_bytes_of(self.child.id())
    }

    /// Seconds from `since` until the round is closed.
    async fn wait_until_closed(&mut self, folder: &Path, since: Instant) -> anyhow::Result<f64> {
        let store = Store::open(&folder.join("state"))?;
        loop {
            if store.federation(NAME)?.is_some_and(|row| row.round > 1) {
                return Ok(since.elapsed().as_secs_f64());
            }
            if let Some(status) = self.child.try_wait()? {
                anyhow::bail!("the server ended: {status}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn enrol(sites: &[Site], code: &JoinCode, devices: usize) -> anyhow::Result<Vec<Identity>> {
    let (invite, secret) = (code.invite, code.secret);
    let work = (0..devices).map(|i| {
        let site = sites[i % sites.len()].clone();
        async move { site.enrol(invite, secret).await }
    });
    in_turn("enrol", work, HANDSHAKES).await
}

/// A device that connects again when its connection is lost.
struct Device {
    site: Site,
    identity: Identity,
    link: LoadDevice,
}

async fn connect(sites: &[Site], identities: Vec<Identity>) -> anyhow::Result<Vec<Device>> {
    let work = identities.into_iter().enumerate().map(|(i, identity)| {
        let site = sites[i % sites.len()].clone();
        async move {
            let link = site.connect(&identity).await?;
            Ok(Device { site, identity, link })
        }
    });
    in_turn("connect", work, HANDSHAKES).await
}

/// Does all of it, so many at once.
async fn in_turn<T: Send + 'static, F>(
    label: &'static str,
    work: impl ExactSizeIterator<Item = F>,
    at_once: usize,
) -> anyhow::Result<Vec<T>>
where
    F: Future<Output = Result<T, LoadError>> + Send + 'static,
{
    let progress = Progress::new(label, Some(work.len() as u64), Unit::Items("devices"));
    let (mut running, mut done) = (JoinSet::new(), Vec::with_capacity(work.len()));
    for item in work {
        if running.len() >= at_once
            && let Some(finished) = running.join_next().await
        {
            done.push(finished??);
            progress.advance(1);
        }
        running.spawn(item);
    }
    while let Some(finished) = running.join_next().await {
        done.push(finished??);
        progress.advance(1);
    }
    progress.finish();
    Ok(done)
}

/// The devices' updates, on the disk.
struct Updates {
    folder: PathBuf,
    values: usize,
}

fn update_path(folder: &Path, device: usize) -> PathBuf {
    folder.join("updates").join(device.to_string())
}

/// Makes an update for each device: random changes of the size that training makes.
fn make_updates(args: &ServerBenchArgs, folder: &Path, model: &Path) -> anyhow::Result<Updates> {
    let global = initial_adapter(folder, model)?;
    fs::create_dir_all(folder.join("updates"))?;
    let progress = Progress::new("updates", Some(args.devices as u64), Unit::Items("updates"));
    for device in 0..args.devices {
        let mut random = ChaCha8Rng::seed_from_u64(device as u64);
        let mut local = global.clone();
        for value in local.values_mut().flatten() {
            *value += random.random_range(-1e-3..1e-3);
        }
        let update = Upload::encode(&global, &local, None)?.to_bytes()?;
        fs::write(update_path(folder, device), update)?;
        progress.advance(1);
    }
    progress.finish();
    Ok(Updates { folder: folder.to_owned(), values: global.num_values() })
}

fn initial_adapter(folder: &Path, model: &Path) -> anyhow::Result<ParameterSet> {
    let store = Store::open(&folder.join("state"))?;
    let beginning = store.round(NAME, 0, 0)?;
    let beginning = beginning.ok_or_else(|| anyhow::anyhow!("the federation has not begun"))?;
    let row = store.federation(NAME)?;
    let row = row.ok_or_else(|| anyhow::anyhow!("the federation has not begun"))?;
    let training: crate::simulate::config::RunConfig = toml::from_str(&row.training)?;
    let config = LoadedModel::open(model)?.config;
    let layout = Adapter::new(training.lora()?, &config, 0)?;
    Ok(decode(&store.blobs().read(beginning.adapter.id)?, &layout.parameters)?)
}

/// All devices at once in one round. How many failed, and how often one had to try again.
async fn round(
    args: &ServerBenchArgs,
    devices: Vec<Device>,
    updates: &Arc<Updates>,
) -> anyhow::Result<(usize, usize)> {
    let progress = Progress::new("round", Some(args.devices as u64), Unit::Items("updates"));
    let places = Arc::new(Semaphore::new(args.at_once));
    let mut running = JoinSet::new();
    for (i, mut device) in devices.into_iter().enumerate() {
        let (places, updates) = (Arc::clone(&places), Arc::clone(updates));
        running.spawn(async move {
            let mut retries = 0;
            loop {
                match take_part(&device.link, i, &places, &updates).await {
                    Ok(()) => return (true, retries, device),
                    Err(error) if retries + 1 >= ATTEMPTS => {
                        tracing::warn!("device {i}: {error}");
                        return (false, retries, device);
                    }
                    Err(_) => {
                        retries += 1;
                        if let Ok(link) = device.site.connect(&device.identity).await {
                            device.link = link;
                        }
                    }
                }
            }
        });
    }
    let (mut failed, mut retries) = (0, 0);
    // Connections stay until the last one is done: that is what the server's memory is about.
    let mut kept = Vec::with_capacity(args.devices);
    while let Some(finished) = running.join_next().await {
        let (done, tries, device) = finished?;
        failed += usize::from(!done);
        retries += tries;
        kept.push(device);
        progress.advance(1);
    }
    progress.finish();
    Ok((failed, retries))
}

async fn take_part(
    device: &LoadDevice,
    number: usize,
    places: &Semaphore,
    updates: &Updates,
) -> anyhow::Result<()> {
    let work: Box<RoundAssignment> = loop {
        match device.check_in(Some(NAME)).await? {
            Assignment::Round(work) => break work,
            Assignment::Wait { .. } => tokio::time::sleep(POLL).await,
            // The round was closed with this device's update.
            Assignment::Finished(_) => return Ok(()),
            Assignment::Ineligible { reason, .. } => anyhow::bail!(reason),
        }
    };
    let _place = places.acquire().await?;
    Instructions::from_json(&work.instructions)?;
    device.fetch(&work.adapter).await?;
    let update = fs::read(update_path(&updates.folder, number))?;
    let status = device.hand_in(&work, &update, 1 + number as u64 % 100).await?;
    anyhow::ensure!(status.counts(), "the update does not count: {status:?}");
    Ok(())
}

fn table(report: &ServerReport) -> String {
    let bytes = |bytes: Option<u64>| bytes.map_or("-".into(), |n| HumanBytes(n).to_string());
    let (idle, connected) = (report.idle_rss_bytes, report.connected_rss_bytes);
    let grown = idle.zip(connected).map(|(idle, connected)| connected.saturating_sub(idle));
    format!(
        "{cpu}\n\
         {devices} devices, updates of {values} values, {update} each\n\
         \x20 enrolled in       {enrol:.1} s\n\
         \x20 connected in      {connect:.1} s\n\
         \x20 server, idle      {idle}\n\
         \x20 … all connected   {grown} more\n\
         \x20 … at its peak     {peak}\n\
         \x20 round             {round:.1} s, of which aggregation {aggregate:.1} s\n\
         \x20 updates           {rate:.1} a second\n\
         \x20 tried again       {retries} times",
        cpu = report.cpu.as_deref().unwrap_or("unknown processor"),
        devices = report.devices,
        values = report.update_values,
        update = HumanBytes(report.update_bytes),
        enrol = report.enrol_seconds,
        connect = report.connect_seconds,
        idle = bytes(idle),
        grown = bytes(grown),
        peak = bytes(report.peak_rss_bytes),
        round = report.round_seconds,
        aggregate = report.aggregate_seconds,
        rate = report.updates_per_second,
        retries = report.retries,
    )
}
