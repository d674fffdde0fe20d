//! The engine against PyTorch, transformers, PEFT and TRL: `fixtures/README.md` says how the numbers
//! were made.

use candle_core::{Device, Tensor};
use fleetune_core::adapter::{Adapter, ParameterSet};
use fleetune_core::data::{TokenizedExample, TokenizedPair};
use fleetune_core::generate::{Continuation, GenerateOptions, Reader, generate, generate_together};
use fleetune_core::kernels::Precision;
use fleetune_core::model::{Cache, CancelToken, Decoder, LoadedModel, PackedBatch, PassOptions};
use fleetune_core::train::{
    AdamWOptions, Lesson, LocalObjective, PairLogProbs, PassLimits, PreferenceLoss, TrainOptions,
    Trainer, evaluate, evaluate_pairs, update_control_variate,
};
use fleetune_tests::golden::{
    LabelledPair, LabelledText, assert_close, assert_near, batches, fixture, json, parameters,
    tensors,
};
use serde_json::Value;

const FAMILIES: [&str; 4] = ["tiny_llama", "tiny_qwen2", "tiny_qwen3", "tiny_mistral"];
const LEARNING_RATE: f64 = 1e-3;

fn decoder(family: &str) -> Decoder {
    let model = LoadedModel::open(&fixture(family)).unwrap();
    Decoder::new(model.config, &model.weights, &Device::Cpu, Precision::F32).unwrap()
}

fn adapter(family: &str) -> Adapter {
    Adapter::load(&fixture(family).join("adapter")).unwrap()
}

fn max_distance(ours: &Tensor, theirs: &Tensor) -> f32 {
    let distance = (ours - theirs).unwrap().abs().unwrap();
    distance.flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

#[test]
fn logits_equal_those_of_transformers_with_and_without_adapter() {
    for family in FAMILIES {
        let decoder = decoder(family);
        let lora = decoder.lora_tensors(&adapter(family)).unwrap();
        let inputs: Value = json(&fixture(family).join("inputs.json"));
        let sequences: Vec<Vec<u32>> = serde_json::from_value(inputs["input_ids"].clone()).unwrap();
        let expected = tensors(&fixture(family).join("logits.safetensors"));
        // All sequences in one packed batch: none may see another.
        let batch = PackedBatch::from_sequences(sequences.iter().map(Vec::as_slice));
        for (kind, lora) in [("base", None), ("adapter", Some(&lora)), ("merged", Some(&lora))] {
            let options = PassOptions { lora, ..PassOptions::default() };
            let logits = decoder.logits(&batch, &options).unwrap();
            let mut first = 0;
            for (i, ids) in sequences.iter().enumerate() {
                let ours = logits.narrow(0, first, ids.len()).unwrap();
                let distance = max_distance(&ours, &expected[&format!("{kind}/seq{i}")]);
                assert!(distance <= 1e-4, "{family} {kind} seq{i}: {distance:e}");
                first += ids.len();
            }
        }
    }
}

#[test]
fn a_cache_gives_the_logits_of_the_whole_sequence() {
    for family in FAMILIES {
        let decoder = decoder(family);
        let lora = decoder.lora_tensors(&adapter(family)).unwrap();
        let options = PassOptions { lora: Some(&lora), ..PassOptions::default() };
        let ids = [5u32, 77, 300, 12, 9, 411, 5];
        let whole = decoder.logits(&PackedBatch::from_sequences([&ids[..]]), &options).unwrap();
        let mut cache = Cache::new();
        decoder.extend(&mut cache, &ids[..3], &options).unwrap();
        for t in 3..ids.len() {
            let logits = decoder.extend(&mut cache, &ids[t..=t], &options).unwrap();
            let distance = max_distance(&logits, &whole.get(t).unwrap());
            assert!(distance <= 1e-4, "{family} token {t}: {distance:e}");
        }
    }
}

#[test]
fn continuations_of_a_cached_prefix_score_as_whole_texts_do() {
    let decoder = decoder("tiny_mistral");
    let prefix = [5u32, 77, 300, 12];
    let continuations = [vec![9u32, 411, 5], vec![8, 8], vec![1, 2, 3, 4, 5]];
    let options = PassOptions::default();
    let mut cache = Cache::new();
    decoder.extend(&mut cache, &prefix, &options).unwrap();
    let texts: Vec<_> = continuations
        .iter()
        .map(|ids| TokenizedExample { ids: ids.clone(), supervised: vec![true; ids.len()] })
        .collect();
    let scores =
        decoder.score_after(&cache, &PackedBatch::from_examples(&texts), &options).unwrap();
    let mut log_probs = scores.log_probs.iter();
    for text in &texts {
        let ids = [&prefix[..], &text.ids].concat();
        // The first token of a continuation is predicted by the prefix alone, outside the batch.
        let supervised = (0..ids.len()).map(|t| t > prefix.len()).collect();
        let whole = [TokenizedExample { ids, supervised }];
        let expected =
            evaluate(&decoder, None, &whole, PassLimits::default(), &CancelToken::default())
                .unwrap()[0]
                .loss_sum;
        let sum: f64 = log_probs.by_ref().take(text.ids.len() - 1).sum();
        assert_near("log-probability", sum, -expected, 1e-4);
    }
}

/// Texts as they are written, and which have ended, in order.
#[derive(Default)]
struct Readers {
    written: Vec<Vec<u32>>,
    ended: Vec<usize>,
    stop_after: Option<usize>,
}

impl Reader for Readers {
    fn token(&mut self, text: usize, token: u32) -> bool {
        assert!(!self.ended.contains(&text), "text {text} goes on after its end");
        self.written[text].push(token);
        true
    }

    fn end(&mut self, text: usize) -> bool {
        self.ended.push(text);
        self.stop_after != Some(self.ended.len())
    }
}

#[test]
fn texts_that_are_written_together_are_those_written_alone() {
    for family in FAMILIES {
        let decoder = decoder(family);
        let lora = decoder.lora_tensors(&adapter(family)).unwrap();
        let pass = PassOptions { lora: Some(&lora), ..PassOptions::default() };
        let beginning = [5u32, 77, 300, 12];
        let mut cache = Cache::new();
        decoder.extend(&mut cache, &beginning, &pass).unwrap();
        let prompts = [vec![9u32, 411, 5], vec![8], vec![], vec![1, 2, 3, 4, 5, 6, 7], vec![40, 2]];
        let limits = [7, 70, 9, 0, 12];
        let alone = |i: usize, stop_ids: &[u32]| {
            let options = GenerateOptions {
                max_tokens: limits[i],
                stop_ids: stop_ids.to_vec(),
                temperature: if i == 4 { 1.0 } else { 0.0 },
                ..GenerateOptions::default()
            };
            let whole = [&beginning[..], &prompts[i]].concat();
            let written = generate(&decoder, &whole, &options, &pass, |_| true).unwrap();
            (Continuation { prompt: &prompts[i], options }, written)
        };
        // One of the texts ends at a token that it would write anyway.
        let stop = alone(0, &[]).1[4];
        let texts = [alone(0, &[stop]), alone(1, &[]), alone(2, &[]), alone(3, &[]), alone(4, &[])];
        let expected = texts.iter().map(|(text, written)| match text.prompt {
            [] => vec![],
            _ => written.clone(),
        });
        let expected: Vec<_> = expected.collect();
        let texts: Vec<_> = texts.into_iter().map(|(text, _)| text).collect();
        assert!(expected[0].len() < 5 && expected[4].len() == 12, "{expected:?}");
        for together in [1, 2, 5] {
            let mut readers = Readers { written: vec![vec![]; 5], ..Readers::default() };
            generate_together(&decoder, &cache, &texts, together, &pass, &mut readers).unwrap();
            assert_eq!(readers.written, expected, "{family}, {together} together");
            readers.ended.sort_unstable();
            assert_eq!(readers.ended, [0, 1, 2, 3, 4]);
        }
        let mut readers =
            Readers { written: vec![vec![]; 5], stop_after: Some(1), ..Readers::default() };
        generate_together(&decoder, &cache, &texts, 2, &pass, &mut readers).unwrap();
        assert_eq!(readers.ended.len(), 1);
    }
}

fn options(objective: LocalObjective) -> TrainOptions {
    TrainOptions { objective, ..TrainOptions::default() }
}

fn sft_batches() -> Vec<Vec<TokenizedExample>> {
    batches::<LabelledText, _>(&fixture("sft/batches.json"))
}

/// The gradient of a trainer's first step: Adam's first moment is a tenth of it.
fn first_gradient(trainer: &Trainer) -> ParameterSet {
    assert_eq!(trainer.steps(), 1);
    let mut gradient = trainer.state().first_moment;
    gradient.values_mut().for_each(|values| values.iter_mut().for_each(|v| *v *= 10.0));
    gradient
}

#[test]
fn gradients_of_supervised_tuning_equal_those_of_pytorch() {
    let decoder = decoder("tiny_llama");
    let mut trainer =
        Trainer::new(&decoder, adapter("tiny_llama"), options(LocalObjective::Plain)).unwrap();
    let report = trainer.step(&sft_batches()[0], LEARNING_RATE).unwrap();
    let expected = parameters(&fixture("sft/grads.safetensors"), "");
    assert_close(&first_gradient(&trainer), &expected, 1e-4);
    let runs: Value = json(&fixture("sft/runs.json"));
    assert_near("loss", report.loss, runs["grads"]["loss"].as_f64().unwrap(), 1e-4);
}

/// Runs five steps and compares losses and gradient norms; yields the start and the end.
fn check_sft_run(name: &str, options: TrainOptions) -> (ParameterSet, ParameterSet) {
    let runs: Value = json(&fixture("sft/runs.json"));
    let decoder = decoder("tiny_llama");
    let start = adapter("tiny_llama");
    let mut trainer = Trainer::new(&decoder, start.clone(), options).unwrap();
    for (batch, expected) in sft_batches().iter().zip(runs[name]["steps"].as_array().unwrap()) {
        let report = trainer.step(batch, LEARNING_RATE).unwrap();
        assert_near(name, report.loss, expected["loss"].as_f64().unwrap(), 1e-4);
        let norm = expected["grad_norm"].as_f64().unwrap();
        assert_near(name, report.grad_norm, norm, 1e-3 * norm);
        if let Some(proximal) = expected.get("prox").and_then(Value::as_f64) {
            assert_near(name, report.proximal, proximal, 1e-4 * proximal.max(1e-3));
        }
    }
    (start.parameters, trainer.into_adapter().parameters)
}

#[test]
fn five_steps_of_adamw_lead_to_pytorchs_adapter() {
    let decay = |weight_decay| TrainOptions {
        optimizer: AdamWOptions { weight_decay, ..AdamWOptions::default() },
        ..TrainOptions::default()
    };
    let clip = TrainOptions { max_grad_norm: Some(1.0), ..TrainOptions::default() };
    for (name, options) in
        [("adamw_wd0", decay(0.0)), ("adamw_wd0.01", decay(0.01)), ("adamw_clip", clip)]
    {
        let (_, ours) = check_sft_run(name, options);
        let path = fixture(&format!("sft/{name}_final.safetensors"));
        assert_close(&ours, &parameters(&path, ""), 1e-3);
    }
}

#[test]
fn fedprox_steps_lead_to_openfedllms_adapter() {
    for (name, mu) in [("fedprox_mu0.01", 0.01), ("fedprox_mu1", 1.0)] {
        let global = adapter("tiny_llama").parameters;
        let (_, ours) = check_sft_run(name, options(LocalObjective::Prox { mu, global }));
        let path = fixture(&format!("sft/{name}_final.safetensors"));
        assert_close(&ours, &parameters(&path, ""), 1e-3);
    }
}

#[test]
fn scaffold_steps_lead_to_openfedllms_adapter_and_control_variates() {
    let inputs = fixture("sft/scaffold_inputs.safetensors");
    let (server, client) = (parameters(&inputs, "c/"), parameters(&inputs, "c_i/"));
    let mut correction = server.clone();
    correction.zip_apply(&client, |c, ci| *c -= ci).unwrap();
    let (start, ours) = check_sft_run("scaffold", options(LocalObjective::Scaffold { correction }));
    let path = fixture("sft/scaffold_final.safetensors");
    assert_close(&ours, &parameters(&path, "adapter/"), 1e-3);
    let (updated, change) =
        update_control_variate(&start, &ours, &server, &client, 5, LEARNING_RATE).unwrap();
    assert_close(&updated, &parameters(&path, "c_i_new/"), 1e-3);
    assert_close(&change, &parameters(&path, "delta_c_i/"), 1e-3);
}

#[test]
fn preference_training_equals_that_of_trl() {
    let runs: Value = json(&fixture("dpo/runs.json"));
    let decoder = decoder("tiny_llama");
    let cancel = CancelToken::default();
    let limits = PassLimits { max_pass_tokens: 64, ..PassLimits::default() };
    let mut trainer =
        Trainer::new(&decoder, adapter("tiny_llama"), options(LocalObjective::Plain)).unwrap();
    let batches: Vec<Vec<TokenizedPair>> = batches::<LabelledPair, _>(&fixture("dpo/batches.json"));
    for (step, pairs) in batches.iter().enumerate() {
        let expected = &runs["adamw_wd0"]["steps"][step];
        let numbers =
            |key: &str| -> Vec<f64> { serde_json::from_value(expected[key].clone()).unwrap() };
        let log_probs = |adapter| -> Vec<PairLogProbs> {
            let scores = evaluate_pairs(&decoder, adapter, pairs, limits, &cancel).unwrap();
            scores.into_iter().map(|scores| scores.log_probs).collect()
        };
        let (reference, policy) = (log_probs(None), log_probs(Some(trainer.adapter())));
        for i in 0..pairs.len() {
            for (name, ours) in [
                ("reference_chosen_logps", reference[i].chosen),
                ("reference_rejected_logps", reference[i].rejected),
                ("policy_chosen_logps", policy[i].chosen),
                ("policy_rejected_logps", policy[i].rejected),
            ] {
                // After the first step the adapters differ by rounding, which AdamW amplifies.
                let exact = step == 0 || name.starts_with("reference");
                assert_near(name, ours, numbers(name)[i], if exact { 1e-4 } else { 1e-3 });
            }
        }
        let sigmoid = PreferenceLoss::Sigmoid;
        let lesson = Lesson::preferences(pairs, reference.clone(), sigmoid, 0.1).unwrap();
        let report = trainer.learn(lesson, LEARNING_RATE).unwrap();
        let tolerance = if step == 0 { 1e-5 } else { 1e-4 };
        assert_near("loss", report.loss, expected["loss"].as_f64().unwrap(), tolerance);
        let accuracy = report.preference.unwrap().reward_accuracy;
        assert_near("accuracy", accuracy, expected["accuracy"].as_f64().unwrap(), 1e-9);
        if step == 0 {
            let expected = parameters(&fixture("dpo/grads.safetensors"), "");
            assert_close(&first_gradient(&trainer), &expected, 1e-4);
        }
    }
    let expected = parameters(&fixture("dpo/adamw_wd0_final.safetensors"), "");
    assert_close(&trainer.into_adapter().parameters, &expected, 1e-3);
}

#[test]
fn a_cancelled_step_changes_nothing() {
    let decoder = decoder("tiny_llama");
    let cancel = CancelToken::default();
    let mut trainer = Trainer::new(&decoder, adapter("tiny_llama"), options(LocalObjective::Plain))
        .unwrap()
        .with_cancel(cancel.clone());
    let before = trainer.state();
    cancel.cancel();
    assert!(trainer.step(&sft_batches()[0], 1e-3).is_err());
    assert_eq!(trainer.state(), before);
}

#[test]
fn a_paused_step_goes_on_and_computes_the_same() {
    let decoder = decoder("tiny_llama");
    let new = |cancel| {
        Trainer::new(&decoder, adapter("tiny_llama"), options(LocalObjective::Plain))
            .unwrap()
            .with_cancel(cancel)
    };
    let batch = &sft_batches()[0];
    let mut undisturbed = new(CancelToken::default());
    undisturbed.step(batch, 1e-3).unwrap();

    let cancel = CancelToken::default();
    cancel.pause();
    let mut paused = new(cancel.clone());
    let state = std::thread::scope(|scope| {
        let step = scope.spawn(|| {
            paused.step(batch, 1e-3).unwrap();
            paused.state()
        });
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!step.is_finished());
        cancel.resume();
        step.join().unwrap()
    });
    assert_eq!(state, undisturbed.state());
}

#[test]
fn a_restored_trainer_continues_bit_by_bit() {
    let decoder = decoder("tiny_qwen3");
    let new = || {
        let mut adapter = adapter("tiny_qwen3");
        adapter.config.dropout = 0.2;
        Trainer::new(&decoder, adapter, TrainOptions { seed: 5, ..TrainOptions::default() })
            .unwrap()
    };
    let batches = sft_batches();
    let mut whole = new();
    let mut first = new();
    for batch in &batches[..2] {
        whole.step(batch, 1e-3).unwrap();
        first.step(batch, 1e-3).unwrap();
    }
    let mut second = new();
    second.restore(first.state()).unwrap();
    for batch in &batches[2..] {
        assert_eq!(whole.step(batch, 1e-3).unwrap(), second.step(batch, 1e-3).unwrap());
    }
    assert_eq!(whole.state(), second.state());
}
