//! A server of the real program, and devices that train nothing.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fleetune_core::adapter::{Adapter, ParameterSet};
use fleetune_core::client::{Instructions, Upload};
use fleetune_core::model::{LoadedModel, ModelConfig};
use fleetune_core::protocol::{Assignment, CommitStatus, JoinCode, RoundAssignment};
use fleetune_core::update::decode;
use fleetune_server::load::{Identity, LoadDevice, LoadError, Site};
use fleetune_server::simulate::stand_in::write_model;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::{Ended, fleetune};

/// The federation of every test.
pub const NAME: &str = "notes";

/// A folder with a model, a configuration and a server's state.
pub struct Place {
    pub folder: PathBuf,
    pub model: ModelConfig,
}

/// The program, serving.
pub struct Running {
    pub child: Child,
    pub address: SocketAddr,
    /// The operator's page, token included.
    pub page: String,
}

impl Place {
    /// A place for a federation of three updates a round and two rounds on the stand-in model;
    /// `rounds` is the TOML of that table.
    pub fn new(folder: &Path, training: &str, rounds: &str) -> Self {
        let training = match training.contains("rounds") {
            true => training.to_owned(),
            false => format!("rounds = 2\n{training}"),
        };
        let model_folder = folder.join("model");
        write_model(&model_folder).unwrap();
        let over_selection = match rounds.contains("over_selection") {
            true => "",
            false => "over_selection = 1.0\n",
        };
        let config = format!(
            "state = {:?}\nlisten = \"127.0.0.1:0\"\npage = \"127.0.0.1:0\"\n[limits]\nconnections_per_address = 5000\n\
             [[federation]]\nname = \"{NAME}\"\noffer_model = true\n\
             [federation.training]\nmodel = {:?}\nsample = 3\nseq_len = 64\n\
             lora_rank = 4\n{training}\n\
             [federation.rounds]\n{over_selection}check_in = \"50ms\"\ngather = \"10s\"\n\
             {rounds}\n",
            folder.join("state"),
            model_folder,
        );
        std::fs::write(folder.join("serve.toml"), config).unwrap();
        let model = LoadedModel::open(&model_folder).unwrap().config;
        Self { folder: folder.to_owned(), model }
    }

    /// The same with another number of updates a round.
    pub fn with_sample(self, sample: usize) -> Self {
        let path = self.folder.join("serve.toml");
        let config = std::fs::read_to_string(&path).unwrap();
        std::fs::write(path, config.replace("sample = 3", &format!("sample = {sample}"))).unwrap();
        self
    }

    /// Starts the server; `crash_at` names a point at which it ends.
    pub fn serve(&self, address: Option<SocketAddr>, crash_at: Option<&str>) -> Running {
        let mut command = fleetune(&self.folder.join("cache"));
        if let Some(point) = crash_at {
            command.env("FLEETUNE_CRASH_AT", point);
        }
        self.start(command, address)
    }

    /// Starts the server on a disk that takes no file of more than `kib` KiB.
    pub fn serve_on_a_full_disk(&self, address: SocketAddr, kib: usize) -> Running {
        let program = fleetune(&self.folder.join("cache"));
        // A signal that is ignored stays so over `exec`: writing fails instead of ending the process.
        let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", 2 * kib);
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).arg(program.get_program());
        command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
        self.start(command, Some(address))
    }

    fn start(&self, mut command: Command, address: Option<SocketAddr>) -> Running {
        command.arg("serve").arg(self.folder.join("serve.toml")).arg("--json");
        if let Some(address) = address {
            command.args(["--listen", &address.to_string()]);
        }
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.join("serve.log"))
            .unwrap();
        command.env("FLEETUNE_LOG", "info").stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let told: serde_json::Value = serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("{error}: {line:?}\n{}", self.log()));
        let text = |key: &str| told[key].as_str().unwrap().to_owned();
        Running { child, address: text("listening").parse().unwrap(), page: text("page") }
    }

    /// What the server said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("serve.log")).unwrap_or_default()
    }

    /// One of the operator's commands.
    pub fn admin(&self, args: &[&str]) -> Ended {
        let mut command = fleetune(&self.folder.join("cache"));
        command.args(["admin", "--json", "--state"]).arg(self.folder.join("state")).args(args);
        Ended::of(command.output().unwrap())
    }

    /// A fresh join code.
    pub fn invite(&self, uses: usize) -> JoinCode {
        let told = self.admin(&["invite", "--uses", &uses.to_string()]).json();
        told["join_code"].as_str().unwrap().parse().unwrap()
    }

    /// The way to the server.
    pub fn site(&self, server: SocketAddr) -> Site {
        let pem = std::fs::read(self.folder.join("state/identity/ca.pem")).unwrap();
        Site::new(server, CertificateDer::from_pem_slice(&pem).unwrap()).unwrap()
    }

    /// Enrols devices on a server that is started for it and stopped again.
    pub async fn enrol(&self, devices: usize) -> Vec<Identity> {
        let running = self.serve(None, None);
        let (code, site) = (self.invite(devices), self.site(running.address));
        let mut identities = Vec::new();
        for _ in 0..devices {
            identities.push(site.enrol(code.invite, code.secret).await.unwrap());
        }
        running.stop();
        identities
    }

    /// The newest shared adapter, as a file.
    pub fn adapter(&self) -> Vec<u8> {
        let file = format!("state/adapters/{NAME}/adapter_model.safetensors");
        std::fs::read(self.folder.join(file)).unwrap()
    }

    /// The shared adapter of an assignment.
    pub async fn global(&self, device: &LoadDevice, work: &RoundAssignment) -> ParameterSet {
        self.try_global(device, work).await.unwrap()
    }

    async fn try_global(
        &self,
        device: &LoadDevice,
        work: &RoundAssignment,
    ) -> Result<ParameterSet, LoadError> {
        let instructions = Instructions::from_json(&work.instructions).unwrap();
        let layout = Adapter::new(instructions.plan.lora, &self.model, 0).unwrap();
        Ok(decode(&device.fetch(&work.adapter).await?, &layout.parameters).unwrap())
    }

    /// What a device makes of an adapter: a change that depends on the device and the round alone.
    pub fn update(&self, device: &LoadDevice, round: u32, global: &ParameterSet) -> Vec<u8> {
        let number = u32::from_be_bytes(*device.id.0.first_chunk().unwrap());
        let local = nudged(global, number, round);
        Upload::encode(global, &local, None).unwrap().to_bytes().unwrap()
    }

    /// Asks for work until there is some; `None` when the federation is done.
    pub async fn work(&self, device: &LoadDevice) -> Result<Option<RoundAssignment>, LoadError> {
        loop {
            match device.check_in(None).await? {
                Assignment::Round(work) => return Ok(Some(*work)),
                Assignment::Finished(_) => return Ok(None),
                Assignment::Wait { .. } => tokio::time::sleep(Duration::from_millis(20)).await,
                Assignment::Ineligible { reason, .. } => panic!("{reason}"),
            }
        }
    }

    /// A device's whole life: one round after the other until all are done. Rounds it took part in.
    pub async fn take_part(&self, device: &LoadDevice) -> Result<Vec<u32>, LoadError> {
        self.take_rounds(device, usize::MAX).await
    }

    /// The same for `count` rounds at most.
    pub async fn take_rounds(
        &self,
        device: &LoadDevice,
        count: usize,
    ) -> Result<Vec<u32>, LoadError> {
        let mut rounds = Vec::new();
        while rounds.len() < count
            && let Some(work) = self.work(device).await?
        {
            let global = self.try_global(device, &work).await?;
            let update = self.update(device, work.round, &global);
            let status = device.hand_in(&work, &update, u64::from(device.id.0[1]) + 1).await?;
            assert_eq!(status, CommitStatus::Accepted);
            rounds.push(work.round);
        }
        Ok(rounds)
    }
}

impl Running {
    /// Ends the server as Ctrl-C does.
    pub fn stop(mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A test that fails leaves no server behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An adapter after a change that hardly compresses and that two numbers decide.
pub fn nudged(adapter: &ParameterSet, number: u32, round: u32) -> ParameterSet {
    let mut nudged = adapter.clone();
    let mut state = u64::from(number) << 32 | u64::from(round);
    for value in nudged.values_mut().flatten() {
        // Knuth's MMIX generator.
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        *value += ((state >> 40) as f32 / (1 << 24) as f32 - 0.5) * 1e-3;
    }
    nudged
}

/// The same server, and whoever keeps a folder beside it, in another folder.
pub fn twin(place: &Place, folder: &Path) -> Place {
    copy(&place.folder, folder);
    let config = std::fs::read_to_string(folder.join("serve.toml")).unwrap();
    let state = |folder: &Path| format!("state = {:?}", folder.join("state"));
    let config = config.replace(&state(&place.folder), &state(folder));
    std::fs::write(folder.join("serve.toml"), config).unwrap();
    Place { folder: folder.to_owned(), model: place.model.clone() }
}

/// Copies a folder.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
