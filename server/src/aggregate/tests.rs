use fleetune_core::adapter::{Parameter, ParameterSet};
use proptest::prelude::*;

use super::*;

fn set(values: &[f32]) -> ParameterSet {
    let (a, b) = values.split_at(values.len() / 2);
    let entry = |name: &str, values: &[f32]| Parameter {
        name: name.into(),
        shape: vec![values.len()],
        values: values.to_vec(),
    };
    ParameterSet::new(vec![entry("a", a), entry("b", b)])
}

fn aggregator(algorithm: Algorithm, variant: Variant) -> Aggregator {
    let population = Some(1000);
    let config = AggregatorConfig { variant, population, ..AggregatorConfig::new(algorithm) };
    Aggregator::new(config).unwrap()
}

/// One round on `state` with these clients' weights and sample counts; SCAFFOLD's deltas are the
/// weights again.
fn step(
    aggregator: &Aggregator,
    state: &ServerState,
    clients: &[(Vec<f32>, u64)],
) -> Result<(ServerState, RoundSummary), AggregateError> {
    let mut round = aggregator.begin(state)?;
    for (weights, samples) in clients {
        let weights = set(weights);
        let delta = (aggregator.config().algorithm == Algorithm::Scaffold).then_some(&weights);
        round.accumulate(&weights, *samples, delta)?;
    }
    aggregator.finish(state, round)
}

fn any_clients() -> impl Strategy<Value = Vec<(Vec<f32>, u64)>> {
    let weights = prop::collection::vec(-10.0f32..10.0, 6);
    prop::collection::vec((weights, 1u64..5000), 1..8)
}

fn any_aggregator() -> impl Strategy<Value = Aggregator> {
    let variants = prop::sample::select(vec![Variant::OpenFedLlm, Variant::Paper]);
    (prop::sample::select(Algorithm::SHARING.to_vec()), variants)
        .prop_map(|(algorithm, variant)| aggregator(algorithm, variant))
}

proptest! {
    #[test]
    fn the_order_of_the_clients_does_not_matter(
        aggregator in any_aggregator(),
        clients in any_clients(),
        start in prop::collection::vec(-10.0f32..10.0, 6),
    ) {
        let state = aggregator.initial_state(&set(&start)).unwrap();
        let mut reversed = clients.clone();
        reversed.reverse();
        let (forward, _) = step(&aggregator, &state, &clients).unwrap();
        let (backward, _) = step(&aggregator, &state, &reversed).unwrap();
        for ((_, a), (_, b)) in forward.vectors().zip(backward.vectors()) {
            for (a, b) in a.iter().zip(b) {
                prop_assert!((a - b).abs() <= 1e-12 * (1.0 + a.abs()), "{a} {b}");
            }
        }
    }

    #[test]
    fn a_mean_of_one_client_is_that_client_to_the_bit(
        weights in prop::collection::vec(prop::num::f32::NORMAL, 6),
        start in prop::collection::vec(-10.0f32..10.0, 6),
        samples in 1u64..1_000_000,
    ) {
        for algorithm in [Algorithm::FedAvg, Algorithm::FedProx, Algorithm::Scaffold] {
            let aggregator = aggregator(algorithm, Variant::Paper);
            let state = aggregator.initial_state(&set(&start)).unwrap();
            let (next, _) = step(&aggregator, &state, &[(weights.clone(), samples)]).unwrap();
            prop_assert_eq!(next.global(), set(&weights));
        }
    }

    #[test]
    fn clients_that_send_the_global_weights_back_move_nothing(
        aggregator in any_aggregator(),
        start in prop::collection::vec(-10.0f32..10.0, 6),
        samples in prop::collection::vec(1u64..5000, 1..6),
    ) {
        let state = aggregator.initial_state(&set(&start)).unwrap();
        let clients: Vec<_> = samples.iter().map(|&n| (start.clone(), n)).collect();
        let (next, summary) = step(&aggregator, &state, &clients).unwrap();
        for (&before, after) in start.iter().zip(&next.global) {
            prop_assert!((f64::from(before) - after).abs() < 1e-12);
        }
        prop_assert!(summary.mean_change_norm < 1e-12);
        prop_assert_eq!(summary.samples, samples.iter().sum::<u64>());
    }

    #[test]
    fn a_stored_state_reads_back_to_the_bit_and_continues_the_same(
        aggregator in any_aggregator(),
        first in any_clients(),
        second in any_clients(),
    ) {
        let state = aggregator.initial_state(&set(&[0.5; 6])).unwrap();
        let (state, _) = step(&aggregator, &state, &first).unwrap();
        let bytes = state.to_bytes().unwrap();
        let reread = ServerState::from_bytes(&bytes).unwrap();
        prop_assert_eq!(&reread, &state);
        prop_assert_eq!(reread.to_bytes().unwrap(), bytes);
        let (a, _) = step(&aggregator, &state, &second).unwrap();
        let (b, _) = step(&aggregator, &reread, &second).unwrap();
        prop_assert_eq!(a, b);
    }

    #[test]
    fn an_altered_state_file_is_refused_or_read_but_never_panics(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        keep in any::<prop::sample::Index>(),
    ) {
        let aggregator = aggregator(Algorithm::FedAdam, Variant::Paper);
        let mut bytes =
            aggregator.initial_state(&set(&[0.5; 6])).unwrap().to_bytes().unwrap();
        for (place, value) in changes {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        let _ = ServerState::from_bytes(&bytes);
        let _ = ServerState::from_bytes(&bytes[..keep.index(bytes.len())]);
    }
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let refused = |config| Aggregator::new(config).unwrap_err().to_string();
    assert!(refused(AggregatorConfig::new(Algorithm::Local { client: 1 })).contains("never"));
    assert!(refused(AggregatorConfig::new(Algorithm::Scaffold)).contains("number of all clients"));
    let hyperparameters = Hyperparameters { beta1: 1.5, ..Hyperparameters::default() };
    let config = AggregatorConfig { hyperparameters, ..AggregatorConfig::new(Algorithm::FedAdam) };
    assert_eq!(refused(config), "beta1 is 1.5, but must be at least 0 and less than 1");
    let aggregator = aggregator(Algorithm::FedAvg, Variant::Paper);
    assert!(aggregator.initial_state(&set(&[])).is_err());
    assert!(aggregator.initial_state(&set(&[f32::NAN, 0.0])).is_err());
}

#[test]
fn an_update_that_is_refused_leaves_the_round_as_it_was() {
    let aggregator = aggregator(Algorithm::FedAvg, Variant::OpenFedLlm);
    let state = aggregator.initial_state(&set(&[0.0; 4])).unwrap();
    let mut round = aggregator.begin(&state).unwrap();
    let good = set(&[1.0, 2.0, 3.0, 4.0]);
    round.accumulate(&good, 5, None).unwrap();
    let mut refuse = |weights: &ParameterSet, samples, delta: Option<&ParameterSet>| {
        round.accumulate(weights, samples, delta).unwrap_err()
    };
    let nan = set(&[1.0, f32::NAN, 0.0, 0.0]);
    assert!(refuse(&nan, 5, None).to_string().contains("NaN or an infinity in tensor a"));
    assert!(matches!(refuse(&good, 0, None), AggregateError::NoSamples));
    assert!(matches!(refuse(&good, u64::MAX, None), AggregateError::TooManySamples));
    assert!(matches!(refuse(&set(&[1.0; 6]), 5, None), AggregateError::Layout { .. }));
    assert!(matches!(refuse(&good, 5, Some(&good)), AggregateError::ControlUnexpected));
    let (next, summary) = aggregator.finish(&state, round).unwrap();
    assert_eq!((summary.clients, summary.samples), (1, 5));
    assert_eq!(next.global(), good);
}

#[test]
fn scaffold_wants_a_control_delta_and_counts_the_whole_population() {
    let scaffold = |population| {
        let population = Some(population);
        let config = AggregatorConfig { population, ..AggregatorConfig::new(Algorithm::Scaffold) };
        Aggregator::new(config).unwrap()
    };
    let aggregator = scaffold(4);
    let state = aggregator.initial_state(&set(&[0.0; 2])).unwrap();
    let mut round = aggregator.begin(&state).unwrap();
    let weights = set(&[1.0, 1.0]);
    let error = round.accumulate(&weights, 1, None).unwrap_err();
    assert!(matches!(error, AggregateError::ControlMissing));
    for delta in [[2.0, 4.0], [6.0, 0.0]] {
        round.accumulate(&weights, 7, Some(&set(&delta))).unwrap();
    }
    let (next, _) = aggregator.finish(&state, round.clone()).unwrap();
    assert_eq!(next.control().unwrap(), set(&[2.0, 1.0]));
    let error = scaffold(1).finish(&state, round).unwrap_err();
    assert!(matches!(error, AggregateError::PopulationExceeded { clients: 2, population: 1 }));
}

#[test]
fn a_round_must_have_updates_and_belong_to_the_state() {
    let fed_avg = aggregator(Algorithm::FedAvg, Variant::Paper);
    let state = fed_avg.initial_state(&set(&[0.0; 2])).unwrap();
    let round = fed_avg.begin(&state).unwrap();
    let error = fed_avg.finish(&state, round.clone()).unwrap_err();
    assert!(matches!(error, AggregateError::NoUpdates));
    let other = fed_avg.initial_state(&set(&[0.0; 4])).unwrap();
    let error = fed_avg.finish(&other, round).unwrap_err();
    assert!(matches!(error, AggregateError::OtherRound));
    let error = aggregator(Algorithm::FedAdam, Variant::Paper).begin(&state).unwrap_err();
    assert!(error.to_string().contains("belongs to fedavg (paper)"), "{error}");
}

#[test]
fn a_result_beyond_f32_is_refused() {
    let aggregator = aggregator(Algorithm::FedAvgM, Variant::Paper);
    let state = aggregator.initial_state(&set(&[-f32::MAX, 0.0])).unwrap();
    let largest = vec![(vec![f32::MAX, 0.0], 1)];
    let (state, _) = step(&aggregator, &state, &largest).unwrap();
    let error = step(&aggregator, &state, &largest).unwrap_err();
    assert!(matches!(error, AggregateError::Overflow));
}

#[test]
fn other_global_weights_replace_the_state_s_but_equal_ones_keep_its_precision() {
    let aggregator = aggregator(Algorithm::FedAvg, Variant::Paper);
    let state = aggregator.initial_state(&set(&[0.0; 2])).unwrap();
    let thirds = [(vec![1.0, 1.0], 1), (vec![0.0, 0.0], 2)];
    let (mut state, _) = step(&aggregator, &state, &thirds).unwrap();
    let before = state.clone();
    assert!(!state.set_global(&before.global()).unwrap());
    assert_eq!(state, before);
    assert!(state.set_global(&set(&[5.0, 6.0])).unwrap());
    assert_eq!(state.global(), set(&[5.0, 6.0]));
    assert!(state.set_global(&set(&[5.0; 4])).is_err());
}
