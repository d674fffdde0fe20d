//! Small federations on the stand-in model and the demo set.

use std::ops::ControlFlow;
use std::path::Path;

use candle_core::Device;
use fleetune_core::client::TrainingDevice;
use fleetune_core::data::{Dataset, Encoder};
use fleetune_core::kernels::Precision;
use fleetune_core::memory::{MemoryPlan, PROCESSOR_PASS, Workload, plan};
use fleetune_core::model::{CancelToken, Decoder, LoadedModel};
use fleetune_server::simulate::SimulateError;
use fleetune_server::simulate::config::RunConfig;
use fleetune_server::simulate::environment::Environment;
use fleetune_server::simulate::fleet::Fleet;
use fleetune_server::simulate::observer::{Event, Observer};
use fleetune_server::simulate::references::References;
use fleetune_server::simulate::run::{Finished, RunFolder, run};
use fleetune_server::simulate::stand_in::write_model;

/// The stand-in model, loaded.
pub struct StandIn {
    model: LoadedModel,
    decoder: Decoder,
    _folder: tempfile::TempDir,
}

impl StandIn {
    /// Writes the model to a temporary folder and loads it as any other.
    pub fn load() -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_model(folder.path()).unwrap();
        let model = LoadedModel::open(folder.path()).unwrap();
        let decoder =
            Decoder::new(model.config.clone(), &model.weights, &Device::Cpu, Precision::F32)
                .unwrap();
        Self { model, decoder, _folder: folder }
    }

    fn plan(&self, config: &RunConfig) -> MemoryPlan {
        let workload = Workload {
            model: &self.model.config,
            model_bytes: 1 << 20,
            lora: &config.lora().unwrap(),
            extra_adapters: 2,
            shortest: 1,
            longest: 2 * config.seq_len,
            batch: 2 * config.seq_len * config.batch_size,
            target_share: 1.0,
            clients: 1,
            pass_cost: PROCESSOR_PASS,
            threads: 1,
        };
        // Runs that decide by themselves try clients in one pass, too.
        MemoryPlan { clients: 2, ..plan(&workload, None).unwrap() }
    }

    /// Runs `config` on the demo set in `out`, or continues a run there.
    pub fn simulate(
        &self,
        config: &RunConfig,
        out: &Path,
        observer: &mut dyn Observer,
    ) -> Result<Finished, SimulateError> {
        self.simulate_on(Dataset::demo().unwrap(), config, out, observer)
    }

    /// The same on other data.
    pub fn simulate_on(
        &self,
        dataset: Dataset,
        config: &RunConfig,
        out: &Path,
        observer: &mut dyn Observer,
    ) -> Result<Finished, SimulateError> {
        let tokenizer = self.model.tokenizer().unwrap();
        let encoder = Encoder::new(config.template(), tokenizer, config.seq_len).unwrap();
        let fleet = Fleet::new(dataset, config)?;
        let references = References {
            folder: out.join("reference"),
            model_hash: self.model.content_hash().unwrap().to_owned(),
            precision: Precision::F32,
            adapter: None,
        };
        let environment = Environment {
            device: TrainingDevice {
                decoder: &self.decoder,
                memory: self.plan(config),
                cancel: CancelToken::default(),
            },
            workers: &[],
            tokenizer,
            answer_tokens: config.answer_tokens,
            encoder: &encoder,
            task: config.client_task(),
            fleet: &fleet,
            initial_adapter: None,
            references: &references,
            suites: None,
            base_name: "stand-in",
            notice: None,
        };
        let folder = RunFolder::open(out, config, true)?;
        run(&environment, config, &folder, observer)
    }
}

/// A federation that a test can afford: three clients, three rounds of two.
pub fn small_config() -> RunConfig {
    RunConfig {
        clients: 3,
        sample: 2,
        rounds: 3,
        steps: 2,
        batch_size: 2,
        seq_len: 320,
        lr: 5e-3,
        eval_every: 2,
        eval_rows: 8,
        answers: 1,
        answer_tokens: 2,
        keep_checkpoints: 2,
        seed: 7,
        ..RunConfig::default()
    }
}

/// Watches without a word.
pub fn watch() -> impl FnMut(&Event<'_>) -> ControlFlow<()> {
    |_: &Event<'_>| ControlFlow::Continue(())
}

/// Stops at the event with number `at`, counted from 0.
pub fn stop_at(at: usize) -> impl FnMut(&Event<'_>) -> ControlFlow<()> {
    let mut seen = 0;
    move |_: &Event<'_>| {
        seen += 1;
        if seen > at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}
