//! A client's round from download to upload, against PyTorch and OpenFedLLM: `fixtures/README.md`
//! says how the numbers of `sft/` were made.

use std::convert::Infallible;
use std::ops::ControlFlow;

use candle_core::Device;
use fleetune_core::adapter::{Adapter, ParameterSet, TrainedFactors};
use fleetune_core::client::{
    ClientError, DeviceMemory, Download, RoundOutcome, RoundPlan, Task, TrainingDevice, train_round,
};
use fleetune_core::data::{TokenizedExample, TokenizedPair};
use fleetune_core::kernels::Precision;
use fleetune_core::memory::{PROCESSOR_PASS, Workload, plan as plan_memory};
use fleetune_core::model::{CancelToken, Decoder, LoadedModel};
use fleetune_core::train::{AnswerLearner, PreferenceLearner, PreferenceLoss, Reference};
use fleetune_core::update::Codec;
use fleetune_tests::golden::{
    LabelledPair, LabelledText, assert_close, assert_near, batches, fixture, json, parameters,
};
use serde_json::Value;

struct Client {
    decoder: Decoder,
    adapter: Adapter,
}

impl Client {
    fn new() -> Self {
        let model = LoadedModel::open(&fixture("tiny_llama")).unwrap();
        let decoder =
            Decoder::new(model.config, &model.weights, &Device::Cpu, Precision::F32).unwrap();
        let adapter = Adapter::load(&fixture("tiny_llama/adapter")).unwrap();
        Self { decoder, adapter }
    }

    fn device(&self) -> TrainingDevice<'_> {
        let workload = Workload {
            model: self.decoder.config(),
            model_bytes: 1 << 20,
            lora: &self.adapter.config,
            extra_adapters: 2,
            shortest: 1,
            longest: 64,
            batch: 256,
            target_share: 1.0,
            clients: 1,
            pass_cost: PROCESSOR_PASS,
            threads: 1,
        };
        let memory = plan_memory(&workload, None).unwrap();
        TrainingDevice { decoder: &self.decoder, memory, cancel: CancelToken::default() }
    }

    /// The plan of the reference runs: five steps of three rows.
    fn plan(&self, prox_mu: Option<f64>) -> RoundPlan {
        RoundPlan {
            round: 1,
            task: Task::Sft,
            lora: self.adapter.config.clone(),
            steps: 5,
            batch_size: 3,
            learning_rate: 1e-3,
            weight_decay: 0.0,
            max_grad_norm: None,
            prox_mu,
            trained: TrainedFactors::Both,
            codec: Codec::F16,
            seed: 0,
        }
    }

    fn download(&self, control: Option<&ParameterSet>) -> Download {
        Download::encode(&self.adapter.parameters, control).unwrap()
    }

    fn train(
        &self,
        plan: &RoundPlan,
        download: &Download,
        memory: DeviceMemory,
        rows: Vec<TokenizedExample>,
        watch: impl FnMut(&fleetune_core::train::StepReport) -> ControlFlow<()>,
    ) -> Result<RoundOutcome, ClientError> {
        let rows = rows.into_iter().map(Ok::<_, Infallible>);
        train_round(&self.device(), plan, download, memory, &mut AnswerLearner, rows, watch)
    }
}

fn rows() -> Vec<TokenizedExample> {
    batches::<LabelledText, _>(&fixture("sft/batches.json")).into_iter().flatten().collect()
}

/// Checks the round of the reference run `name`: its adapter here, what the server reads from the
/// upload, and the reported losses.
fn check_round(name: &str, client: &Client, outcome: &RoundOutcome, prefix: &str) {
    let expected = parameters(&fixture(&format!("sft/{name}_final.safetensors")), prefix);
    assert_close(&outcome.adapter, &expected, 1e-3);
    // What f16 rounds is the change alone.
    let global = &client.adapter.parameters;
    let (received, _) = outcome.upload.decode(global).unwrap();
    let mut rounding = received.clone();
    rounding.zip_apply(&outcome.adapter, |a, b| *a -= b).unwrap();
    assert!(rounding.l2_norm() < 1e-3 * outcome.report.update_norm);

    let runs: Value = json(&fixture("sft/runs.json"));
    let steps = runs[name]["steps"].as_array().unwrap();
    let loss = |step: &Value| step.get("cross_entropy").unwrap_or(&step["loss"]).as_f64().unwrap();
    assert_eq!(outcome.report.steps, steps.len());
    assert_near("first loss", outcome.report.first_loss, loss(&steps[0]), 1e-4);
    assert_near("last loss", outcome.report.last_loss, loss(&steps[4]), 1e-4);
}

#[test]
fn plain_and_fedprox_rounds_lead_to_the_reference_adapters() {
    let client = Client::new();
    for (name, prox_mu) in [("adamw_wd0", None), ("fedprox_mu1", Some(1.0))] {
        let download = client.download(None);
        let plan = client.plan(prox_mu);
        let outcome = client
            .train(&plan, &download, DeviceMemory::default(), rows(), |_| ControlFlow::Continue(()))
            .unwrap();
        check_round(name, &client, &outcome, "");
        assert!(outcome.memory.control.is_none() && outcome.upload.control.is_none());
    }
}

#[test]
fn a_scaffold_round_leads_to_openfedllms_adapter_and_keeps_what_it_sends() {
    let client = Client::new();
    let inputs = fixture("sft/scaffold_inputs.safetensors");
    let (server, own) = (parameters(&inputs, "c/"), parameters(&inputs, "c_i/"));
    let download = client.download(Some(&server));
    let memory = DeviceMemory { control: Some(own.clone()), ..DeviceMemory::default() };
    let outcome = client
        .train(&client.plan(None), &download, memory, rows(), |_| ControlFlow::Continue(()))
        .unwrap();
    check_round("scaffold", &client, &outcome, "adapter/");

    let golden = fixture("sft/scaffold_final.safetensors");
    let (_, sent) = outcome.upload.decode(&client.adapter.parameters).unwrap();
    let sent = sent.unwrap();
    assert_close(&sent, &parameters(&golden, "delta_c_i/"), 2e-3);
    let mut kept = own;
    kept.zip_apply(&sent, |own, change| *own += change).unwrap();
    assert_eq!(outcome.memory.control.unwrap(), kept);
}

#[test]
fn a_round_of_preferences_leads_to_trls_adapter_and_computes_the_reference_once() {
    let client = Client::new();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("reference");
    let (loss, beta) = (PreferenceLoss::Sigmoid, 0.1);
    let pairs: Vec<TokenizedPair> =
        batches::<LabelledPair, _>(&fixture("dpo/batches.json")).into_iter().flatten().collect();
    let plan = RoundPlan { task: Task::Dpo { loss, beta }, ..client.plan(None) };
    let mut sizes = Vec::new();
    for _ in 0..2 {
        let reference = Reference::new("tiny_llama", Precision::F32, None).kept_in(&file).unwrap();
        let mut learner = PreferenceLearner { loss, beta, reference };
        let rows = pairs.iter().cloned().map(Ok::<_, Infallible>);
        let (device, download) = (client.device(), client.download(None));
        let outcome = train_round(
            &device,
            &plan,
            &download,
            DeviceMemory::default(),
            &mut learner,
            rows,
            |_| ControlFlow::Continue(()),
        )
        .unwrap();
        let expected = parameters(&fixture("dpo/adamw_wd0_final.safetensors"), "");
        assert_close(&outcome.adapter, &expected, 1e-3);

        let runs: Value = json(&fixture("dpo/runs.json"));
        let steps = runs["adamw_wd0"]["steps"].as_array().unwrap();
        let mean = |key: &str| {
            steps.iter().map(|step| step[key].as_f64().unwrap()).sum::<f64>() / steps.len() as f64
        };
        let report = outcome.report;
        assert_eq!((report.steps, report.rows), (steps.len(), pairs.len() as u64));
        assert_near("mean loss", report.loss, mean("loss"), 1e-4);
        let judged = report.preference.unwrap();
        assert_near("mean accuracy", judged.reward_accuracy, mean("accuracy"), 1e-9);
        sizes.push(std::fs::metadata(&file).unwrap().len());
    }
    let mut distinct: Vec<_> = pairs.iter().map(|pair| format!("{pair:?}")).collect();
    distinct.sort();
    distinct.dedup();
    // The second round finds every pair: a header, then 56 bytes each.
    assert_eq!(sizes, [8 + 56 * distinct.len() as u64; 2]);
}

#[test]
fn rows_that_run_out_end_the_round_early() {
    let client = Client::new();
    let download = client.download(None);
    let few = rows().into_iter().take(4).collect();
    let outcome = client
        .train(&client.plan(None), &download, DeviceMemory::default(), few, |_| {
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(outcome.report.steps, 2);
    let none =
        client.train(&client.plan(None), &download, DeviceMemory::default(), Vec::new(), |_| {
            ControlFlow::Continue(())
        });
    assert!(matches!(none, Err(ClientError::NothingToLearn)));
}

#[test]
fn a_round_stops_where_its_watcher_or_its_device_says() {
    let client = Client::new();
    let download = client.download(None);
    let mut steps = 0;
    let stopped =
        client.train(&client.plan(None), &download, DeviceMemory::default(), rows(), |_| {
            steps += 1;
            if steps == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
    assert!(matches!(stopped, Err(ClientError::Stopped)));
    assert_eq!(steps, 2);

    let device = client.device();
    device.cancel.cancel();
    let rows = rows().into_iter().map(Ok::<_, Infallible>);
    let (plan, learner) = (client.plan(None), &mut AnswerLearner);
    let stopped =
        train_round(&device, &plan, &download, DeviceMemory::default(), learner, rows, |_| {
            ControlFlow::Continue(())
        });
    assert!(matches!(stopped, Err(ClientError::Stopped)));
}

#[test]
fn a_download_of_another_shape_is_refused() {
    let client = Client::new();
    let mut plan = client.plan(None);
    plan.lora.rank *= 2;
    let refused =
        client.train(&plan, &client.download(None), DeviceMemory::default(), rows(), |_| {
            ControlFlow::Continue(())
        });
    assert!(matches!(refused, Err(ClientError::Message(_))));
}
