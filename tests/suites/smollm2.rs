//! The engine on the real SmolLM2-135M-Instruct (Q4_1), against a float64 run of the same
//! dequantised weights. Needs `FLEETUNE_REFERENCE` and the built-in model in the cache.

use std::path::PathBuf;

use candle_core::Device;
use fleetune_core::adapter::Adapter;
use fleetune_core::data::TokenizedExample;
use fleetune_core::generate::{GenerateOptions, generate};
use fleetune_core::kernels::Precision;
use fleetune_core::model::{CancelToken, Decoder, LoadedModel, PackedBatch, PassOptions};
use fleetune_core::train::{PassLimits, TrainOptions, Trainer, evaluate};
use fleetune_tests::golden::{
    LabelledText, assert_near, batches, built_in_model, folder_from, json, tensors,
};
use serde::Deserialize;
use serde_json::Value;

/// The decoder and the folder of reference numbers, where both are there.
fn set_up() -> Option<(Decoder, PathBuf)> {
    let reference = folder_from("FLEETUNE_REFERENCE")?;
    let model = LoadedModel::open(&built_in_model()?).unwrap();
    let decoder = Decoder::new(model.config, &model.weights, &Device::Cpu, Precision::F32).unwrap();
    Some((decoder, reference))
}

#[derive(Deserialize)]
struct Generation {
    ids: Vec<u32>,
    top20_ids: Vec<u32>,
    top20_logits_f64: Vec<f64>,
    greedy_ids: Vec<u32>,
}

#[test]
fn next_token_logits_and_greedy_continuations_are_those_of_float64() {
    let Some((decoder, reference)) = set_up() else { return };
    let prompts: Vec<Generation> = json(&reference.join("smollm2/generation.json"));
    let expected = tensors(&reference.join("smollm2/next_token_logits.safetensors"));
    for (i, prompt) in prompts.iter().enumerate() {
        let batch = PackedBatch::from_sequences([&prompt.ids[..]]);
        let logits = decoder.logits(&batch, &PassOptions::default()).unwrap();
        let last: Vec<f32> = logits.get(prompt.ids.len() - 1).unwrap().to_vec1().unwrap();
        for (&id, &logit) in prompt.top20_ids.iter().zip(&prompt.top20_logits_f64) {
            assert_near("top-20 logit", f64::from(last[id as usize]), logit, 2e-2);
        }
        let all: Vec<f32> = expected[&format!("prompt{i}/next_token_logits")].to_vec1().unwrap();
        for (&ours, &theirs) in last.iter().zip(&all) {
            assert_near("logit", f64::from(ours), f64::from(theirs), 2e-2);
        }
        let options =
            GenerateOptions { max_tokens: prompt.greedy_ids.len(), ..GenerateOptions::default() };
        let pass = PassOptions::default();
        let written = generate(&decoder, &prompt.ids, &options, &pass, |_| true).unwrap();
        assert_eq!(written, prompt.greedy_ids, "prompt {i}");
    }
}

#[test]
fn losses_of_templated_rows_are_those_of_float64() {
    let Some((decoder, reference)) = set_up() else { return };
    let rows: Vec<Value> = json(&reference.join("smollm2/samples.json"));
    for row in &rows {
        let text: LabelledText = serde_json::from_value(row.clone()).unwrap();
        let example = [TokenizedExample::from(text)];
        let (limits, cancel) = (PassLimits::default(), CancelToken::default());
        let result = evaluate(&decoder, None, &example, limits, &cancel).unwrap()[0];
        assert_near("loss", result.loss(), row["mean_loss"].as_f64().unwrap(), 1e-3);
        assert_eq!(Some(result.supervised_tokens as u64), row["supervised_tokens"].as_u64());
    }
}

#[test]
fn six_training_steps_have_the_losses_of_pytorch() {
    let Some((decoder, reference)) = set_up() else { return };
    let reference = reference.join("smollm2_train");
    let run: Value = json(&reference.join("run.json"));
    let adapter = Adapter::load(&reference.join("adapter_init")).unwrap();
    let start = adapter.parameters.clone();
    let mut trainer = Trainer::new(&decoder, adapter, TrainOptions::default()).unwrap();
    let batches: Vec<Vec<TokenizedExample>> =
        batches::<LabelledText, _>(&reference.join("batches.json"));
    for (batch, expected) in batches.iter().zip(run["steps"].as_array().unwrap()) {
        let report = trainer.step(batch, run["lr"].as_f64().unwrap()).unwrap();
        assert_near("loss", report.loss, expected["loss_f64"].as_f64().unwrap(), 1e-3);
        let norm = expected["grad_norm_f64"].as_f64().unwrap();
        assert_near("gradient norm", report.grad_norm, norm, 1e-3 * norm);
    }
    let end = Adapter::load(&reference.join("adapter_final")).unwrap().parameters;
    let mut change = trainer.adapter().parameters.clone();
    let mut distance = change.clone();
    change.zip_apply(&start, |a, b| *a -= b).unwrap();
    distance.zip_apply(&end, |a, b| *a -= b).unwrap();
    assert!(distance.l2_norm() <= 2e-2 * change.l2_norm(), "the adapters end far apart");
}
