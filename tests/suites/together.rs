//! Trainers that share passes end where each would have ended alone.

use candle_core::{DType, Device};
use fleetune_core::adapter::{Adapter, LoraConfig, Target, TrainedFactors};
use fleetune_core::data::{TokenizedExample, TokenizedPair};
use fleetune_core::kernels::Precision;
use fleetune_core::model::{CancelToken, Decoder, EngineError};
use fleetune_core::train::{
    Lesson, LocalObjective, PairLogProbs, PreferenceLoss, Step, StepReport, TrainError,
    TrainOptions, Trainer, TrainerState, step_together,
};
use fleetune_tests::random_model::{self, SmallShape, VOCABULARY, scatter};

const SHAPE: SmallShape = SmallShape {
    layers: 2,
    groups: 2,
    kv_heads: 2,
    half_head: 2,
    biases: true,
    qk_norm: true,
    tied: false,
    window: None,
};
const STEPS: usize = 3;
const CLIENTS: usize = 4;

/// A decoder on the kernels, and one of candle's own operations in f64.
fn decoders() -> [Decoder; 2] {
    let config = random_model::config(SHAPE);
    let weights = random_model::weights(&config, SHAPE, 5);
    [
        Decoder::new(config.clone(), &weights, &Device::Cpu, Precision::F32).unwrap(),
        Decoder::plain(config, &weights, &Device::Cpu, DType::F64).unwrap(),
    ]
}

fn adapter(decoder: &Decoder, dropout: f64) -> Adapter {
    let lora = LoraConfig::new(2, 3.0, &Target::ALL).unwrap();
    let mut adapter = Adapter::new(LoraConfig { dropout, ..lora }, decoder.config(), 7).unwrap();
    scatter(&mut adapter.parameters, 0.37);
    adapter
}

/// Trainers that differ in all that a client may have of its own; passes hold few sequences.
fn trainers(decoder: &Decoder, dropout: f64) -> Vec<Trainer<'_>> {
    let objectives = |client, start: &Adapter| {
        let mut other = start.parameters.clone();
        scatter(&mut other, 0.1 * client as f32);
        match client % 3 {
            0 => LocalObjective::Plain,
            1 => LocalObjective::Prox { mu: 0.1, global: other },
            _ => LocalObjective::Scaffold { correction: other },
        }
    };
    let trainer = |client| {
        let start = adapter(decoder, dropout);
        let options = TrainOptions {
            objective: objectives(client, &start),
            max_grad_norm: (client % 2 == 0).then_some(0.01),
            trained: if client == 3 { TrainedFactors::B } else { TrainedFactors::Both },
            seed: client as u64,
            max_pass_tokens: 12,
            shared_pass_tokens: 30,
            kept_layers: 1,
            score_rows: 5,
            ..TrainOptions::default()
        };
        Trainer::new(decoder, start, options).unwrap()
    };
    (0..CLIENTS).map(trainer).collect()
}

fn rate(client: usize) -> f64 {
    1e-2 / (1 + client) as f64
}

/// As many texts as differ from client to client and step to step, of different lengths.
fn texts(client: usize, step: usize) -> Vec<TokenizedExample> {
    let text = |i: usize| {
        let len = 2 + (3 * i + client + step) % 9;
        let ids = (0..len).map(|t| ((7 * t + 5 * i + client) as u32) % VOCABULARY).collect();
        TokenizedExample { ids, supervised: (0..len).map(|t| (t + i) % 3 != 1).collect() }
    };
    (1..4 + client % 2).map(text).collect()
}

fn pairs(client: usize, step: usize) -> Vec<TokenizedPair> {
    let tokens = |len, first| (0..len).map(|t| (first + 3 * t as u32) % VOCABULARY).collect();
    let pair = |i: usize| TokenizedPair {
        prompt: tokens(1 + (i + client) % 4, 2),
        chosen: tokens(2 + (i + step) % 3, 5),
        rejected: tokens(1 + i % 4, client as u32),
    };
    (0..2 + client % 2).map(pair).collect()
}

type Outcome = (Vec<StepReport>, Vec<TrainerState>);

/// All trainers' steps, taken together or each by itself.
fn train<S>(
    mut trainers: Vec<Trainer<'_>>,
    together: bool,
    samples: impl Fn(usize, usize) -> Vec<S>,
    lesson: impl for<'s> Fn(&'s [S]) -> Lesson<'s>,
) -> Outcome {
    let mut reports = Vec::new();
    for step in 0..STEPS {
        let samples: Vec<Vec<S>> = (0..CLIENTS).map(|client| samples(client, step)).collect();
        if together {
            let steps = trainers.iter_mut().zip(&samples).enumerate();
            let steps = steps.map(|(client, (trainer, samples))| Step {
                trainer,
                lesson: lesson(samples),
                learning_rate: rate(client),
            });
            let taken = step_together(steps.collect()).unwrap();
            reports.extend(taken.into_iter().map(Result::unwrap));
        } else {
            for (client, trainer) in trainers.iter_mut().enumerate() {
                reports.push(trainer.learn(lesson(&samples[client]), rate(client)).unwrap());
            }
        }
    }
    (reports, trainers.iter().map(Trainer::state).collect())
}

fn assert_same((reports, states): &Outcome, (reports_alone, states_alone): &Outcome, what: &str) {
    assert_eq!(reports, reports_alone, "{what}");
    for (client, (state, alone)) in states.iter().zip(states_alone).enumerate() {
        let difference = state.parameters.difference(&alone.parameters).unwrap().l2_norm();
        assert!(state == alone, "{what}: client {client} is off by {difference}");
    }
}

fn answers(samples: &[TokenizedExample]) -> Lesson<'_> {
    Lesson::answers(samples).unwrap()
}

fn preferences(pairs: &[TokenizedPair]) -> Lesson<'_> {
    let reference = pairs.iter().map(|pair| PairLogProbs {
        chosen: -3.0 * pair.chosen.len() as f64,
        rejected: -2.5 * pair.rejected.len() as f64,
    });
    Lesson::preferences(pairs, reference.collect(), PreferenceLoss::Sigmoid, 0.1).unwrap()
}

#[test]
fn on_the_processor_company_does_not_change_a_bit() {
    let [decoder, _] = decoders();
    for dropout in [0.0, 0.3] {
        let learn = |together| train(trainers(&decoder, dropout), together, texts, answers);
        assert_same(&learn(true), &learn(false), "answers");
        let learn = |together| train(trainers(&decoder, dropout), together, pairs, preferences);
        assert_same(&learn(true), &learn(false), "preferences");
    }
}

#[test]
fn in_plain_operations_company_changes_no_more_than_rounding() {
    let [_, decoder] = decoders();
    let learn = |together| train(trainers(&decoder, 0.0), together, texts, answers);
    let ((reports, together), (expected, alone)) = (learn(true), learn(false));
    for (report, expected) in reports.iter().zip(&expected) {
        assert!((report.loss - expected.loss).abs() <= 1e-6 * expected.loss);
    }
    for (together, alone) in together.iter().zip(&alone) {
        let difference = together.parameters.difference(&alone.parameters).unwrap().l2_norm();
        assert!(difference <= 1e-5 * alone.parameters.l2_norm(), "{difference}");
    }
}

#[test]
fn who_diverges_in_company_ends_alone() {
    let [decoder, _] = decoders();
    let mut trainers = trainers(&decoder, 0.0);
    let mut broken = trainers[1].state();
    broken.parameters.values_mut().for_each(|values| values.fill(f32::NAN));
    trainers[1].restore(broken).unwrap();
    let samples: Vec<_> = (0..CLIENTS).map(|client| texts(client, 0)).collect();
    let steps = trainers.iter_mut().zip(&samples).map(|(trainer, samples)| Step {
        trainer,
        lesson: answers(samples),
        learning_rate: 1e-3,
    });
    let taken = step_together(steps.collect()).unwrap();
    for (client, taken) in taken.into_iter().enumerate() {
        match taken {
            Err(TrainError::Diverged { step: 1, .. }) => assert_eq!(client, 1),
            taken => assert!(taken.unwrap().loss.is_finite() && client != 1),
        }
    }
    let steps: Vec<u64> = trainers.iter().map(Trainer::steps).collect();
    assert_eq!(steps, [1, 0, 1, 1]);
}

#[test]
fn a_cancelled_step_changes_nobody_and_shapes_that_differ_share_nothing() {
    let [decoder, _] = decoders();
    let cancel = CancelToken::default();
    let mut cancelled: Vec<_> = trainers(&decoder, 0.0);
    cancelled = cancelled.into_iter().map(|trainer| trainer.with_cancel(cancel.clone())).collect();
    cancel.cancel();
    let samples = texts(0, 0);
    let together = |trainers: &mut [Trainer<'_>]| {
        let lesson = || answers(&samples);
        let step = |trainer| Step { trainer, lesson: lesson(), learning_rate: 1e-3 };
        step_together(trainers.iter_mut().map(step).collect()).unwrap_err()
    };
    let error = together(&mut cancelled);
    assert!(matches!(error, TrainError::Engine(EngineError::Cancelled)), "{error}");
    assert!(cancelled.iter().all(|trainer| trainer.steps() == 0));

    let wide = LoraConfig::new(3, 3.0, &Target::ALL).unwrap();
    let wide = Adapter::new(wide, decoder.config(), 0).unwrap();
    let mut others = vec![
        Trainer::new(&decoder, adapter(&decoder, 0.0), TrainOptions::default()).unwrap(),
        Trainer::new(&decoder, wide, TrainOptions::default()).unwrap(),
    ];
    let error = together(&mut others);
    assert!(error.to_string().contains("different shapes"), "{error}");
}
