//! The whole decoder through a card's kernels, in their emulator.

use std::path::Path;

use super::*;
use crate::adapter::{LoraConfig, Target};
use crate::data::TokenizedExample;
use crate::kernels::cuda::Emulator;
use crate::model::LoadedModel;
use crate::ops::CudaOps;

fn model(family: &str) -> LoadedModel {
    let fixtures = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures"));
    LoadedModel::open(&fixtures.join(family)).unwrap()
}

/// An adapter of every projection whose B is not zero, another for another seed.
fn adapter(model: &ModelConfig, seed: u64) -> Adapter {
    let config = LoraConfig::new(3, 6.0, &Target::ALL).unwrap();
    let mut adapter = Adapter::new(config, model, seed).unwrap();
    for (i, values) in adapter.parameters.values_mut().enumerate() {
        let random = crate::kernels::testing::random(values.len(), seed + 10 * i as u64);
        values.iter_mut().zip(random).for_each(|(value, random)| *value = 0.1 * random);
    }
    adapter
}

/// Texts of these lengths whose later half is supervised.
fn texts(lens: &[usize]) -> PackedBatch {
    let examples: Vec<TokenizedExample> = lens
        .iter()
        .map(|&len| TokenizedExample {
            ids: (0..len as u32).map(|i| (i * 7 + len as u32) % 50 + 3).collect(),
            supervised: (0..len).map(|i| i >= len / 2).collect(),
        })
        .collect();
    PackedBatch::from_examples(&examples)
}

/// Log-probabilities and gradients of two adapters that share a pass.
fn learn(decoder: &Decoder, kept_layers: usize) -> (Vec<f64>, Vec<ParameterSet>) {
    let adapters = [adapter(decoder.config(), 1), adapter(decoder.config(), 2)];
    let lora = decoder.stacked_lora_tensors(&[&adapters[0], &adapters[1]]).unwrap();
    let options = PassOptions { lora: Some(&lora), kept_layers, ..PassOptions::default() };
    let batch = PackedBatch::join(&[texts(&[9, 4]), texts(&[17])]);
    let state = decoder.forward(&batch, &options).unwrap();
    let scores = decoder.score(&state, &batch.targets, true, &options).unwrap();
    let log_probs = scores.log_probs.clone();
    let weights = vec![-0.1; log_probs.len()];
    (log_probs, decoder.backward(&batch, state, scores, &weights, &options).unwrap())
}

/// How far `found` is from `expected`, relative to the size of that.
fn distance(found: &ParameterSet, expected: &ParameterSet) -> f64 {
    found.difference(expected).unwrap().l2_norm() / expected.l2_norm()
}

#[test]
fn a_pass_through_a_cards_kernels_is_that_of_the_processor() {
    let Some(emulator) = Emulator::start() else { return };
    let ops = || -> Box<dyn Ops> { Box::new(CudaOps::new(emulator)) };
    for family in ["tiny_llama", "tiny_qwen2", "tiny_qwen3", "tiny_mistral"] {
        let LoadedModel { config, weights, .. } = model(family);
        let host = Decoder::new(config.clone(), &weights, &Device::Cpu, Precision::F32).unwrap();
        let (expected, expected_gradients) = learn(&host, 0);
        for (precision, tolerance, kept_layers) in
            [(Precision::F32, 1e-5, 0), (Precision::Bf16, 5e-2, config.num_layers)]
        {
            let place = &Device::Cpu;
            let card =
                Decoder::on_device(config.clone(), &weights, place, precision, [ops(), ops()]);
            let (log_probs, gradients) = learn(&card.unwrap(), kept_layers);
            for (a, b) in log_probs.iter().zip(&expected) {
                assert!((a - b).abs() <= tolerance * b.abs(), "{family}: {a}, expected {b}");
            }
            for (a, b) in gradients.iter().zip(&expected_gradients) {
                let off = distance(a, b);
                assert!(off <= tolerance, "{family}, {precision:?}: off by {off}");
            }
        }
    }
}
