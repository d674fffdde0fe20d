//! Federations whose updates are compressed, combined as products or of several ranks.

use std::path::Path;

use fleetune_core::adapter::{Adapter, ParameterSet};
use fleetune_server::aggregate::Combine;
use fleetune_server::aggregate::combine::{at_rank, rank_of};
use fleetune_server::report::history::History;
use fleetune_server::simulate::config::RunConfig;
use fleetune_server::simulate::journal::read;
use fleetune_tests::federation::{StandIn, small_config, watch};

fn history(run: &Path) -> History {
    read(&run.join("metrics.jsonl")).unwrap().into_iter().collect()
}

fn checkpoint(run: &Path, round: u32) -> Adapter {
    Adapter::load(&run.join(format!("checkpoints/round-{round:04}"))).unwrap()
}

fn run(model: &StandIn, config: &RunConfig) -> (tempfile::TempDir, History) {
    let folder = tempfile::tempdir().unwrap();
    model.simulate(config, folder.path(), &mut watch()).unwrap();
    let history = history(folder.path());
    (folder, history)
}

fn learns(history: &History) -> bool {
    history.after().unwrap().score.loss < history.before().unwrap().score.loss
}

#[test]
fn every_way_of_combining_learns_with_lossy_codecs_both_ways() {
    let model = StandIn::load();
    for combine in [Combine::Factors, Combine::Ffa, Combine::Alternate, Combine::Product] {
        let config = RunConfig {
            combine,
            codec: "top-k:0.25+int4".parse().unwrap(),
            codec_down: "int8".parse().unwrap(),
            rounds: 4,
            ..small_config()
        };
        let (_folder, history) = run(&model, &config);
        assert!(learns(&history), "{combine}");
        for round in &history.rounds {
            let product = round.product.unwrap();
            assert!(product.error.is_finite() && product.change > 0.0, "{combine}");
        }
    }
}

#[test]
fn top_k_in_four_bits_takes_a_twentieth_of_f32_up_and_differences_a_tenth_down() {
    let model = StandIn::load();
    let config = RunConfig {
        sample: 3,
        rounds: 3,
        codec: "top-k:0.1+int4".parse().unwrap(),
        codec_down: "top-k:0.1+int4".parse().unwrap(),
        ..small_config()
    };
    let (folder, history) = run(&model, &config);
    let f32_bytes = 4 * checkpoint(folder.path(), 3).parameters.num_values() as u64;
    for update in &history.clients {
        assert!(update.bytes_up * 20 < f32_bytes, "{} of {f32_bytes}", update.bytes_up);
        // The first version comes in full, in f16; all later ones as differences.
        let bound = if update.round == 1 { f32_bytes / 2 + 200 } else { f32_bytes / 10 };
        assert!(update.bytes_down < bound, "round {}: {}", update.round, update.bytes_down);
    }
}

#[test]
fn a_frozen_a_stays_and_an_alternating_one_moves_every_second_round() {
    let model = StandIn::load();
    let moved = |before: &ParameterSet, after: &ParameterSet| {
        let pairs = || before.iter().zip(after.iter());
        let any = |end: &str| pairs().any(|(b, a)| b.name.ends_with(end) && a.values != b.values);
        (any("lora_A.weight"), any("lora_B.weight"))
    };
    for (combine, expected) in [
        (Combine::Ffa, [(false, true), (false, true)]),
        (Combine::Alternate, [(false, true), (true, false)]),
    ] {
        let config = RunConfig { combine, rounds: 2, keep_checkpoints: 0, ..small_config() };
        // Weight decay moves what has no gradient, too, unless told not to.
        let (folder, _) = run(&model, &RunConfig { weight_decay: 0.1, ..config });
        let at = |round| checkpoint(folder.path(), round).parameters;
        let found = [1, 2].map(|round| moved(&at(round - 1), &at(round)));
        assert_eq!(found, expected, "{combine}");
    }
}

#[test]
fn devices_train_and_send_the_rank_that_they_have() {
    let model = StandIn::load();
    for combine in [Combine::Factors, Combine::Product] {
        let config = RunConfig {
            combine,
            clients: 4,
            sample: 4,
            ranks: vec!["2:0.5".parse().unwrap(), "8:0.5".parse().unwrap()],
            ..small_config()
        };
        let (folder, history) = run(&model, &config);
        assert!(learns(&history), "{combine}");
        let shared = checkpoint(folder.path(), 3);
        assert_eq!(rank_of(&shared.parameters), Some(8));
        assert_eq!(shared.config, config.lora().unwrap());
        let small = 4 * at_rank(&shared.parameters, 2).num_values() as u64;
        for rank in [2, 8] {
            let updates: Vec<_> = history.clients.iter().filter(|c| c.rank == rank).collect();
            assert_eq!(updates.len(), 6, "{combine}: two of four devices in three rounds");
            let fits = |bytes: u64| (bytes < small + 200) == (rank == 2);
            assert!(updates.iter().all(|update| fits(update.bytes_down)), "{combine}, {rank}");
        }
    }
}

#[test]
fn products_are_nearer_to_their_exact_mean_than_means_of_factors() {
    let model = StandIn::load();
    let error = |combine| {
        let config = RunConfig { combine, sample: 3, steps: 6, rounds: 1, ..small_config() };
        run(&model, &config).1.rounds[0].product.unwrap()
    };
    let (factors, product) = (error(Combine::Factors), error(Combine::Product));
    assert!((factors.change - product.change).abs() < 1e-6 * product.change);
    assert!(product.error < factors.error, "{} and {}", product.error, factors.error);
}

#[test]
fn robust_rules_and_clipping_run_in_a_federation() {
    let model = StandIn::load();
    for robust in ["median", "trimmed:0.3"] {
        let config = RunConfig {
            robust: robust.parse().unwrap(),
            clip_norm: 5.0,
            sample: 3,
            rounds: 2,
            ..small_config()
        };
        assert!(learns(&run(&model, &config).1), "{robust}");
    }
}
