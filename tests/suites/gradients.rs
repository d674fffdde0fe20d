//! Properties of the hand-written backward pass on random small models: against finite differences
//! in f64, and between ways of computing the same thing.

use candle_core::{DType, Device};
use fleetune_core::adapter::{Adapter, LoraConfig, ParameterSet, Target};
use fleetune_core::data::{TokenizedExample, TokenizedPair};
use fleetune_core::kernels::Precision;
use fleetune_core::model::{Decoder, PackedBatch, PassOptions};
use fleetune_core::train::{TrainOptions, Trainer};
use fleetune_tests::random_model::{self, SmallShape, VOCABULARY, scatter};
use proptest::prelude::*;

/// A decoder in f64 of candle's own operations, one on the kernels, and an adapter with B not zero.
fn small_model(shape: SmallShape, targets: &[Target], seed: u64) -> (Decoder, Decoder, Adapter) {
    let config = random_model::config(shape);
    let weights = random_model::weights(&config, shape, seed);
    let lora = LoraConfig::new(2, 3.0, targets).unwrap();
    let mut adapter = Adapter::new(lora, &config, seed).unwrap();
    scatter(&mut adapter.parameters, 0.37);
    let exact = Decoder::plain(config.clone(), &weights, &Device::Cpu, DType::F64).unwrap();
    let fast = Decoder::new(config, &weights, &Device::Cpu, Precision::F32).unwrap();
    (exact, fast, adapter)
}

fn loss_and_gradient(
    decoder: &Decoder,
    adapter: &Adapter,
    batch: &PackedBatch,
    weights: &[f64],
) -> (f64, ParameterSet) {
    let lora = decoder.lora_tensors(adapter).unwrap();
    let options = PassOptions { lora: Some(&lora), score_rows: 3, ..PassOptions::default() };
    let state = decoder.forward(batch, &options).unwrap();
    let scores = decoder.score(&state, &batch.targets, true, &options).unwrap();
    let loss = scores.log_probs.iter().zip(weights).map(|(log_prob, w)| log_prob * w).sum();
    let mut gradients = decoder.backward(batch, state, scores, weights, &options).unwrap();
    (loss, gradients.remove(0))
}

/// Weights of a batch's targets that differ and have both signs.
fn target_weights(batch: &PackedBatch) -> Vec<f64> {
    (0..batch.targets.len()).map(|i| 0.5 - 0.3 * (i % 5) as f64).collect()
}

/// The norm of the difference.
fn distance(a: &ParameterSet, b: &ParameterSet) -> f64 {
    let mut difference = a.clone();
    difference.zip_apply(b, |a, b| *a -= b).unwrap();
    difference.l2_norm()
}

fn shapes() -> impl Strategy<Value = SmallShape> {
    let window = prop_oneof![Just(None), (1usize..5).prop_map(Some)];
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (1usize..3, 1usize..4, 1usize..3, 1usize..4, flags, window).prop_map(
        |(layers, groups, kv_heads, half_head, (biases, qk_norm, tied), window)| SmallShape {
            layers,
            groups,
            kv_heads,
            half_head,
            biases,
            qk_norm,
            tied,
            window,
        },
    )
}

/// Texts of 1 to 7 tokens, of which at least one token is supervised.
fn texts() -> impl Strategy<Value = Vec<TokenizedExample>> {
    let text = proptest::collection::vec((0..VOCABULARY, any::<bool>()), 1..8);
    proptest::collection::vec(text, 0..4).prop_map(|texts| {
        let texts = texts.into_iter().map(|text| {
            let (ids, supervised) = text.into_iter().unzip();
            TokenizedExample { ids, supervised }
        });
        let sure = TokenizedExample { ids: vec![3, 4], supervised: vec![false, true] };
        texts.chain([sure]).collect()
    })
}

fn pairs() -> impl Strategy<Value = Vec<TokenizedPair>> {
    let tokens = |max| proptest::collection::vec(0..VOCABULARY, 1..max);
    let pair = (tokens(6), tokens(5), tokens(5))
        .prop_map(|(prompt, chosen, rejected)| TokenizedPair { prompt, chosen, rejected });
    proptest::collection::vec(pair, 1..3)
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(32)
    })]

    #[test]
    fn gradients_equal_finite_differences(
        shape in shapes(),
        texts in texts(),
        pairs in pairs(),
        targets in proptest::sample::subsequence(Target::ALL.to_vec(), 1..=7),
        seed in 0u64..1000,
    ) {
        let (exact, fast, adapter) = small_model(shape, &targets, seed);
        for batch in [PackedBatch::from_examples(&texts), PackedBatch::from_pairs(&pairs)] {
            let weights = target_weights(&batch);
            let (_, gradient) = loss_and_gradient(&exact, &adapter, &batch, &weights);
            let norm = gradient.l2_norm();

            let mut direction = adapter.parameters.zeros_like();
            scatter(&mut direction, 0.61);
            let moved = |step: f32| {
                let mut moved = adapter.clone();
                moved.parameters.zip_apply(&direction, |w, d| *w += step * d).unwrap();
                moved
            };
            // Small enough for the third order, large enough for the rounding of f32 parameters.
            let (ahead, behind) = (moved(1.0 / 8192.0), moved(-1.0 / 8192.0));
            let loss = |adapter| loss_and_gradient(&exact, adapter, &batch, &weights).0;
            let numeric = loss(&ahead) - loss(&behind);
            // Along the step really taken, after that rounding.
            let mut taken = ahead.parameters.clone();
            taken.zip_apply(&behind.parameters, |a, b| *a -= b).unwrap();
            let analytic: f64 = gradient
                .iter()
                .zip(taken.iter())
                .flat_map(|(g, t)| g.values.iter().zip(&t.values))
                .map(|(&g, &t)| f64::from(g) * f64::from(t))
                .sum();
            let tolerance = 1e-3 * norm.max(1e-2) * taken.l2_norm();
            prop_assert!((numeric - analytic).abs() <= tolerance, "{numeric} against {analytic}");

            let (_, rounded) = loss_and_gradient(&fast, &adapter, &batch, &weights);
            prop_assert!(distance(&rounded, &gradient) <= 1e-4 * norm.max(1e-2));
        }
    }

    #[test]
    fn a_shared_prompt_gives_the_gradients_of_two_whole_texts(
        shape in shapes(),
        pairs in pairs(),
        seed in 0u64..1000,
    ) {
        let (exact, fast, adapter) = small_model(shape, &Target::ALL, seed);
        let shared = PackedBatch::from_pairs(&pairs);
        let texts: Vec<_> = pairs
            .iter()
            .flat_map(|pair| [(pair, &pair.chosen), (pair, &pair.rejected)])
            .map(|(pair, answer)| {
                let ids = [&pair.prompt[..], answer].concat();
                let supervised = (0..ids.len()).map(|t| t >= pair.prompt.len()).collect();
                TokenizedExample { ids, supervised }
            })
            .collect();
        let plain = PackedBatch::from_examples(&texts);
        let weights = target_weights(&plain);
        let (exact_loss, exact_gradient) = loss_and_gradient(&exact, &adapter, &plain, &weights);
        let scale = exact_gradient.l2_norm().max(1.0);
        let (loss, gradient) = loss_and_gradient(&exact, &adapter, &shared, &weights);
        prop_assert!((loss - exact_loss).abs() <= 1e-10 * exact_loss.abs().max(1.0));
        prop_assert!(distance(&gradient, &exact_gradient) <= 1e-7 * scale);

        let (plain_loss, plain) = loss_and_gradient(&fast, &adapter, &plain, &weights);
        let (loss, shared) = loss_and_gradient(&fast, &adapter, &shared, &weights);
        prop_assert!((loss - plain_loss).abs() <= 1e-5 * plain_loss.abs().max(1.0));
        // Normalising nearly nothing magnifies what f32 rounds, with a shared prompt or without.
        let rounding = distance(&plain, &exact_gradient);
        prop_assert!(distance(&shared, &plain) <= 1e-5 * scale + 2.0 * rounding);
    }

    #[test]
    fn what_is_kept_of_the_forward_pass_does_not_change_a_bit(
        shape in shapes(),
        texts in texts(),
        kept_layers in 0usize..4,
    ) {
        let (_, fast, adapter) = small_model(shape, &Target::ALL, 2);
        let run = |kept_layers| {
            let options = TrainOptions { kept_layers, ..TrainOptions::default() };
            let mut trainer = Trainer::new(&fast, adapter.clone(), options).unwrap();
            trainer.step(&texts, 1e-3).unwrap();
            trainer.state()
        };
        prop_assert_eq!(run(kept_layers), run(0));
    }

    #[test]
    fn passes_of_any_size_add_up_to_the_same_step(
        shape in shapes(),
        texts in texts(),
        max_pass_tokens in 1usize..20,
    ) {
        let (_, fast, adapter) = small_model(shape, &[Target::QProj, Target::VProj], 1);
        let run = |max_pass_tokens| {
            let options = TrainOptions { max_pass_tokens, ..TrainOptions::default() };
            let mut trainer = Trainer::new(&fast, adapter.clone(), options).unwrap();
            trainer.step(&texts, 0.0).unwrap();
            trainer.state().first_moment
        };
        let (mut distance, whole) = (run(max_pass_tokens), run(1000));
        distance.zip_apply(&whole, |a, b| *a -= b).unwrap();
        prop_assert!(distance.l2_norm() <= 1e-5 * whole.l2_norm().max(1e-3));
    }
}
