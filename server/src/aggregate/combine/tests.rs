//! Every way of combining against dense matrices in f64, on random adapters.

use fleetune_core::adapter::{Parameter, ParameterSet};
use nalgebra::DMatrix;

use super::factored::tests::random;
use super::*;
use crate::aggregate::{Aggregator, AggregatorConfig, RoundSummary, ServerState, Weighting};

/// Rows and columns of two modules; one is too narrow for all the ranks of a round.
const SHAPES: [(usize, usize); 2] = [(24, 20), (6, 31)];

fn adapter(rank: usize, seed: u64) -> ParameterSet {
    let entries = SHAPES.iter().enumerate().flat_map(|(i, &(rows, columns))| {
        let tensor = |name: &str, rows: usize, columns: usize, seed: u64| Parameter {
            name: format!("model.{i}.{name}.weight"),
            shape: vec![rows, columns],
            values: random(columns, rows, seed).iter().map(|&v| v as f32).collect(),
        };
        let seed = seed * 100 + i as u64;
        [tensor("lora_A", rank, columns, seed), tensor("lora_B", rows, rank, seed + 50)]
    });
    ParameterSet::new(entries.collect())
}

/// An adapter as it begins: B is zero.
fn fresh(rank: usize, seed: u64) -> ParameterSet {
    let mut adapter = adapter(rank, seed);
    adapter.values_mut().skip(1).step_by(2).for_each(|b| b.fill(0.0));
    adapter
}

fn matrix(entry: &Parameter) -> DMatrix<f64> {
    let values = entry.values.iter().map(|&v| f64::from(v));
    DMatrix::from_row_iterator(entry.shape[0], entry.shape[1], values)
}

/// The products of all modules.
fn products(adapter: &ParameterSet) -> Vec<DMatrix<f64>> {
    let entries: Vec<&Parameter> = adapter.iter().collect();
    entries.chunks(2).map(|pair| matrix(pair[1]) * matrix(pair[0])).collect()
}

fn mean_of(adapters: &[(ParameterSet, u64)]) -> Vec<DMatrix<f64>> {
    let total: u64 = adapters.iter().map(|(_, n)| n).sum();
    let mut sums: Vec<_> = SHAPES.iter().map(|&(r, c)| DMatrix::zeros(r, c)).collect();
    for (adapter, n) in adapters {
        for (sum, product) in sums.iter_mut().zip(products(adapter)) {
            *sum += product * (*n as f64 / total as f64);
        }
    }
    sums
}

fn distance(a: &[DMatrix<f64>], b: &[DMatrix<f64>]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).norm_squared()).sum::<f64>().sqrt()
}

fn truncated(matrices: &[DMatrix<f64>], rank: usize) -> Vec<DMatrix<f64>> {
    let best = |matrix: &DMatrix<f64>| {
        let mut svd = matrix.clone().svd(true, true);
        svd.singular_values.iter_mut().skip(rank).for_each(|s| *s = 0.0);
        svd.recompose().unwrap()
    };
    matrices.iter().map(best).collect()
}

fn aggregator(combination: Combination) -> Aggregator {
    let weighting = Some(Weighting::Samples);
    let config = AggregatorConfig::new(Algorithm::FedAvg);
    Aggregator::new(AggregatorConfig { weighting, combination, ..config }).unwrap()
}

fn combination(combine: Combine) -> Combination {
    Combination { combine, mixed_ranks: true, measure: true, ..Combination::default() }
}

fn step(
    aggregator: &Aggregator,
    state: &ServerState,
    clients: &[(ParameterSet, u64)],
) -> Result<(ServerState, RoundSummary), AggregateError> {
    let mut round = aggregator.begin(state)?;
    for (weights, samples) in clients {
        round.accumulate(weights, *samples, None)?;
    }
    aggregator.finish(state, round)
}

#[test]
fn product_is_the_dense_weighted_mean_truncated_and_keeps_the_rest() {
    let aggregator = aggregator(combination(Combine::Product));
    let start = fresh(8, 1);
    let mut state = aggregator.initial_state(&start).unwrap();
    // What the server's exact matrix should be, multiplied out.
    let mut exact = products(&start);
    for round in 0..3 {
        let clients: Vec<(ParameterSet, u64)> = [(2, 5), (4, 7), (8, 11), (4, 3)]
            .iter()
            .enumerate()
            .map(|(k, &(rank, n))| (adapter(rank, 10 * round + 20 + k as u64), n))
            .collect();
        let starts: Vec<(ParameterSet, u64)> = clients
            .iter()
            .map(|(client, n)| (state.handed_out(rank_of(client).unwrap()).unwrap(), *n))
            .collect();
        let (mean, started) = (mean_of(&clients), mean_of(&starts));
        for (exact, (mean, started)) in exact.iter_mut().zip(mean.iter().zip(&started)) {
            *exact += mean - started;
        }
        let (next, summary) = step(&aggregator, &state, &clients).unwrap();
        let size = distance(&exact, &products(&start));
        for rank in [1, 2, 4, 8] {
            let sent = products(&next.handed_out(rank).unwrap());
            let error = distance(&sent, &truncated(&exact, rank));
            assert!(error < 1e-6 * size, "round {round}, rank {rank}: {error} of {size}");
        }
        let report = summary.product.unwrap();
        let sent = products(&next.global());
        assert!((report.error - distance(&sent, &mean)).abs() < 1e-6 * size);
        assert!((report.change - distance(&mean, &started)).abs() < 1e-6 * size);
        assert!((report.remainder - distance(&sent, &exact)).abs() < 1e-6 * size);
        assert_eq!(report.dropped, 0.0);
        state = ServerState::from_bytes(&next.to_bytes().unwrap()).unwrap();
        assert_eq!(state, next);
    }
}

#[test]
fn what_truncation_left_out_comes_out_once_clients_take_nothing_in() {
    let aggregator = aggregator(combination(Combine::Product));
    let state = aggregator.initial_state(&fresh(2, 1)).unwrap();
    let clients = [(adapter(2, 5), 1), (adapter(2, 6), 1), (adapter(2, 7), 1)];
    let (state, _) = step(&aggregator, &state, &clients).unwrap();
    let exact = mean_of(&clients);
    // All clients undo what they received: what is left is what they never received.
    let undone: Vec<_> = clients.iter().map(|_| (fresh(2, 1), 1)).collect();
    let (after, _) = step(&aggregator, &state, &undone).unwrap();
    let sent = products(&state.global());
    let rest: Vec<_> = exact.iter().zip(&sent).map(|(exact, sent)| exact - sent).collect();
    let error = distance(&products(&after.global()), &truncated(&rest, 2));
    assert!(error < 1e-5, "{error}");
}

#[test]
fn with_one_client_and_with_one_a_all_rules_are_fedavg() {
    let start = fresh(4, 1);
    let one = [(adapter(4, 2), 9)];
    let mut same_a = [(adapter(4, 3), 2), (adapter(4, 4), 5), (adapter(4, 5), 1)];
    for (client, _) in &mut same_a {
        let values: Vec<_> = start.iter().map(|entry| entry.values.clone()).collect();
        for (mine, shared) in client.values_mut().zip(values).step_by(2) {
            mine.copy_from_slice(&shared);
        }
    }
    for combine in [Combine::Factors, Combine::Ffa, Combine::Alternate, Combine::Product] {
        let aggregator = aggregator(combination(combine));
        let state = aggregator.initial_state(&start).unwrap();
        let (next, summary) = step(&aggregator, &state, &same_a).unwrap();
        let error = distance(&products(&next.global()), &mean_of(&same_a));
        assert!(error < 1e-6, "{combine}, one A: {error}");
        assert!(summary.product.unwrap().error < 1e-6);
        if matches!(combine, Combine::Factors | Combine::Product) {
            let (next, _) = step(&aggregator, &state, &one).unwrap();
            let error = distance(&products(&next.global()), &mean_of(&one));
            assert!(error < 1e-5, "{combine}, one client: {error}");
        }
    }
}

#[test]
fn product_is_no_farther_from_the_exact_mean_than_factors() {
    let clients: Vec<_> = (0..5).map(|k| (adapter(3, 30 + k), 1 + k)).collect();
    let error = |combine| {
        let aggregator = aggregator(combination(combine));
        let state = aggregator.initial_state(&fresh(3, 1)).unwrap();
        step(&aggregator, &state, &clients).unwrap().1.product.unwrap().error
    };
    assert!(error(Combine::Product) < 0.8 * error(Combine::Factors));
}

#[test]
fn factors_that_stand_still_do_whatever_a_client_sends() {
    let start = adapter(3, 1);
    let clients = [(adapter(3, 2), 1), (adapter(3, 3), 1)];
    let moved = |before: &ParameterSet, after: &ParameterSet| -> Vec<bool> {
        before.iter().zip(after.iter()).map(|(a, b)| a != b).collect()
    };
    let ffa = aggregator(combination(Combine::Ffa));
    let state = ffa.initial_state(&start).unwrap();
    let (next, _) = step(&ffa, &state, &clients).unwrap();
    assert_eq!(moved(&start, &next.global()), [false, true, false, true]);
    let alternate = aggregator(combination(Combine::Alternate));
    let state = alternate.initial_state(&start).unwrap();
    let (first, _) = step(&alternate, &state, &clients).unwrap();
    assert_eq!(moved(&start, &first.global()), [false, true, false, true]);
    let (second, _) = step(&alternate, &first, &clients).unwrap();
    assert_eq!(moved(&first.global(), &second.global()), [true, false, true, false]);
}

#[test]
fn the_adapter_handed_out_keeps_the_size_of_a_and_moves_little() {
    let aggregator = aggregator(combination(Combine::Product));
    let start = fresh(4, 1);
    let state = aggregator.initial_state(&start).unwrap();
    let mut client = start.clone();
    client
        .add(&{
            let mut small = adapter(4, 9);
            small.values_mut().for_each(|values| values.iter_mut().for_each(|v| *v *= 0.01));
            small
        })
        .unwrap();
    let (once, _) = step(&aggregator, &state, &[(client, 1)]).unwrap();
    let resting = once.global();
    let (twice, _) = step(&aggregator, &once, &[(resting.clone(), 1)]).unwrap();
    // Nothing was trained, so nothing moves: the choice of factors is stable.
    assert!(twice.global().difference(&resting).unwrap().l2_norm() < 1e-5);
    for (before, after) in start.iter().zip(resting.iter()).step_by(2) {
        let ratio = matrix(after).norm() / matrix(before).norm();
        assert!((ratio - 1.0).abs() < 1e-6, "{ratio}");
    }
}

#[test]
fn robust_rules_see_products_and_not_their_bases() {
    let start = fresh(3, 1);
    let near = |seed: u64| {
        let mut client = adapter(3, 40);
        let mut noise = adapter(3, seed);
        noise.values_mut().for_each(|values| values.iter_mut().for_each(|v| *v *= 1e-3));
        client.add(&noise).unwrap();
        client
    };
    let mut hostile = near(46);
    hostile.values_mut().for_each(|values| values.iter_mut().for_each(|v| *v *= -1e3));
    let clients: Vec<(ParameterSet, u64)> =
        [near(41), near(42), near(43), near(44), hostile].map(|client| (client, 1)).to_vec();
    // The first client's update, written in the opposite basis.
    let mut turned = clients.clone();
    turned[0].0.values_mut().for_each(|values| values.iter_mut().for_each(|v| *v = -*v));
    for robust in ["median", "trimmed:0.2", "krum:1"] {
        for combine in [Combine::Factors, Combine::Product] {
            let robust = robust.parse().unwrap();
            let aggregator = aggregator(Combination { robust, ..combination(combine) });
            let state = aggregator.initial_state(&start).unwrap();
            let (next, _) = step(&aggregator, &state, &clients).unwrap();
            let error = distance(&products(&next.global()), &products(&near(41)));
            assert!(error < 0.05, "{robust}, {combine}: {error}");
            if combine == Combine::Product {
                let (other, _) = step(&aggregator, &state, &turned).unwrap();
                let error = distance(&products(&other.global()), &products(&next.global()));
                assert!(error < 1e-5, "{robust}: {error}");
            }
        }
    }
}

/// An honest client's product, written with a large B and a small A.
fn stretched(honest: &ParameterSet) -> ParameterSet {
    let entries = honest.iter().cloned().map(|mut entry| {
        let factor = if entry.name.contains("lora_B") { 1e4 } else { 1e-4 };
        entry.values.iter_mut().for_each(|v| *v *= factor);
        entry
    });
    ParameterSet::new(entries.collect())
}

#[test]
fn robust_rules_withstand_an_honest_product_in_hostile_factors() {
    let start = adapter(3, 7);
    for combine in [Combine::Factors, Combine::Ffa, Combine::Alternate, Combine::Product] {
        let near = |seed: u64| {
            let (mut client, noise) = (adapter(3, 40), adapter(3, seed));
            let still = combine.trained(0) == TrainedFactors::B;
            let mut entries: Vec<Parameter> = client.iter().cloned().collect();
            for ((entry, noise), start) in entries.iter_mut().zip(noise.iter()).zip(start.iter()) {
                if still && entry.name.contains("lora_A") {
                    entry.values.clone_from(&start.values);
                    continue;
                }
                entry.values.iter_mut().zip(&noise.values).for_each(|(v, n)| *v += 1e-3 * n);
            }
            client = ParameterSet::new(entries);
            client
        };
        let mut clients: Vec<_> = (41..46).map(|seed| (near(seed), 1)).collect();
        clients.push((stretched(&near(46)), 1));
        for robust in ["median", "trimmed:0.2", "krum:1"] {
            let robust = robust.parse().unwrap();
            let aggregator = aggregator(Combination { robust, ..combination(combine) });
            let state = aggregator.initial_state(&start).unwrap();
            let (next, _) = step(&aggregator, &state, &clients).unwrap();
            let error = distance(&products(&next.global()), &products(&near(41)));
            assert!(error < 0.05, "{robust}, {combine}: {error}");
        }
    }
}

#[test]
fn clipping_shortens_a_change_to_its_norm_whatever_its_factors() {
    let start = adapter(3, 1);
    for combine in [Combine::Factors, Combine::Ffa, Combine::Alternate, Combine::Product] {
        let clip = Combination { clip_norm: Some(0.5), ..combination(combine) };
        let aggregator = aggregator(clip);
        let state = aggregator.initial_state(&start).unwrap();
        for client in [adapter(3, 2), stretched(&adapter(3, 2))] {
            let (next, _) = step(&aggregator, &state, &[(client, 4)]).unwrap();
            let moved = match combine {
                Combine::Factors => next.global().difference(&start).unwrap().l2_norm(),
                _ => distance(&products(&next.global()), &products(&start)),
            };
            assert!(moved < 0.5 + 1e-5, "{combine}: {moved}");
            // Truncating the product to the rank takes off some more.
            assert!(moved > 0.5 - 1e-5 || combine == Combine::Product, "{combine}: {moved}");
        }
    }
}

#[test]
fn what_products_kept_back_goes_with_the_weights_that_it_was_kept_from() {
    let (by_product, by_factors) =
        (aggregator(combination(Combine::Product)), aggregator(combination(Combine::Factors)));
    let start = adapter(3, 1);
    let clients: Vec<_> = (2..6).map(|seed| (adapter(3, seed), 1)).collect();
    let state = by_product.initial_state(&start).unwrap();
    let (state, _) = step(&by_product, &state, &clients).unwrap();
    let (state, _) = step(&by_factors, &state, &clients).unwrap();
    let before = state.global();
    let (state, _) = step(&by_product, &state, &[(before.clone(), 1)]).unwrap();
    let moved = distance(&products(&state.global()), &products(&before));
    assert!(moved < 1e-5, "a client that changed nothing moved the adapter by {moved}");
}

#[test]
fn lower_ranks_move_their_part_of_the_factors() {
    let aggregator = aggregator(combination(Combine::Factors));
    let start = adapter(4, 1);
    let state = aggregator.initial_state(&start).unwrap();
    let small = adapter(2, 2);
    let (next, _) = step(&aggregator, &state, &[(small.clone(), 1)]).unwrap();
    assert_eq!(at_rank(&next.global(), 2), small);
    let (before, after) = (matrix(start.iter().next().unwrap()), next.global());
    assert_eq!(before.rows(2, 2), matrix(after.iter().next().unwrap()).rows(2, 2));
    let unmixed = Combination { mixed_ranks: false, ..combination(Combine::Factors) };
    let error = step(&super::tests::aggregator(unmixed), &state, &[(small, 1)]).unwrap_err();
    assert!(matches!(error, AggregateError::Layout { .. }), "{error}");
}

#[test]
fn a_stack_is_the_exact_mean() {
    let clients = [(adapter(2, 1), 3.0), (adapter(5, 2), 1.0), (adapter(1, 3), 4.0)];
    let stacked = stack(&clients).unwrap();
    assert_eq!(rank_of(&stacked), Some(8));
    let counted = clients.map(|(client, n)| (client, n as u64));
    assert!(distance(&products(&stacked), &mean_of(&counted)) < 1e-6);
    assert!(matches!(stack(&[]), Err(AggregateError::NoUpdates)));
}

#[test]
fn what_does_not_go_together_is_refused_with_a_reason() {
    let refusal = |algorithm, combination| {
        let config = AggregatorConfig { population: Some(3), ..AggregatorConfig::new(algorithm) };
        let config = AggregatorConfig { combination, ..config };
        Aggregator::new(config).unwrap_err().to_string()
    };
    let of = |combine| Combination { combine, ..Combination::default() };
    let cases = [
        (Algorithm::FedAdam, of(Combine::Product), "values of A and B"),
        (Algorithm::FedAvgM, of(Combine::Alternate), "momentum"),
        (Algorithm::Scaffold, of(Combine::Alternate), "control variates"),
        (Algorithm::FedAvg, of(Combine::Stack), "grows"),
    ];
    for (algorithm, combination, reason) in cases {
        let told = refusal(algorithm, combination);
        assert!(told.contains(reason), "{told}");
    }
    let robust = Combination { robust: Robust::Median, ..Combination::default() };
    assert!(refusal(Algorithm::Scaffold, robust).contains("drift"));
    let clip = Combination { clip_norm: Some(-1.0), ..Combination::default() };
    assert!(refusal(Algorithm::FedAvg, clip).contains("clip_norm"));
    // Frozen A and the server optimisers agree.
    let config = AggregatorConfig::new(Algorithm::FedAdam);
    assert!(Aggregator::new(AggregatorConfig { combination: of(Combine::Ffa), ..config }).is_ok());
}
