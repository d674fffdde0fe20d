//! Federations from end to end, on a tiny model: what they leave, what they learn, and that a run
//! which is stopped anywhere ends as if it had not been.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use fleetune_core::adapter::{Adapter, ParameterSet};
use fleetune_core::data::{DataSource, Dataset};
use fleetune_server::aggregate::{Algorithm, Combine, ServerState, Variant};
use fleetune_server::report::history::History;
use fleetune_server::simulate::SimulateError;
use fleetune_server::simulate::config::RunConfig;
use fleetune_server::simulate::fleet::Fleet;
use fleetune_server::simulate::journal::{Record, read};
use fleetune_server::simulate::observer::Event;
use fleetune_server::simulate::run::{RunFolder, config_of};
use fleetune_server::simulate::schedule::Sampling;
use fleetune_server::training::Task;
use fleetune_tests::federation::{StandIn, small_config, stop_at, watch};

fn all_algorithms() -> impl Iterator<Item = Algorithm> {
    Algorithm::SHARING.into_iter().chain([Algorithm::Local { client: 1 }])
}

fn history(run: &Path) -> History {
    read(&run.join("metrics.jsonl")).unwrap().into_iter().collect()
}

/// The metrics without what differs from run to run: times, and who shared a pass.
fn timeless(run: &Path) -> Vec<Record> {
    let mut records = read(&run.join("metrics.jsonl")).unwrap();
    for record in &mut records {
        match record {
            Record::Client(client) => client.seconds = 0.0,
            Record::Round(round) => {
                (round.seconds, round.elapsed_seconds) = (0.0, 0.0);
                round.clients_per_pass = 0;
            }
            Record::Evaluation(evaluation) => evaluation.seconds = 0.0,
            Record::Suite(suite) => {
                (suite.result.seconds, suite.result.rows_per_second) = (0.0, 0.0);
            }
        }
    }
    records
}

/// Every file below `folder` that computation decides, by its path: adapters, states, control
/// variates; not times, reports and configurations that name folders.
fn computed_files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(current) = folders.pop() {
        for entry in fs::read_dir(&current).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "safetensors" || e == "ftup") {
                let name = path.strip_prefix(folder).unwrap().to_owned();
                found.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    found
}

#[test]
fn every_algorithm_learns_and_leaves_a_whole_run_folder() {
    let model = StandIn::load();
    for algorithm in all_algorithms() {
        let folder = tempfile::tempdir().unwrap();
        // The server optimisers take steps of their own size, not of the clients'.
        let config = RunConfig { algorithm, server_lr: 0.02, ..small_config() };
        let finished = model.simulate(&config, folder.path(), &mut watch()).unwrap();

        let history = history(folder.path());
        assert_eq!(history.rounds.len(), 3, "{algorithm}");
        let expected = if matches!(algorithm, Algorithm::Local { .. }) { 3 } else { 6 };
        assert_eq!(history.clients.len(), expected, "{algorithm}");
        let rounds: Vec<u32> = history.evaluations.iter().map(|e| e.round).collect();
        assert_eq!(rounds, [0, 2, 3], "{algorithm}");
        let (before, after) = (history.before().unwrap(), history.after().unwrap());
        assert!(
            after.score.loss < before.score.loss,
            "{algorithm}: {} to {}",
            before.score.loss,
            after.score.loss
        );
        assert_eq!(before.groups.len(), 8, "one group per skill");
        assert_eq!(after.answers.len(), 1);

        let kept: Vec<_> = ["round-0001", "round-0002", "round-0003"]
            .map(|name| folder.path().join("checkpoints").join(name))
            .into_iter()
            .filter(|path| path.is_dir())
            .collect();
        assert_eq!(kept.len(), 2, "{algorithm}");
        assert_eq!(Adapter::load(&kept[1]).unwrap().config, config.lora().unwrap());
        assert_eq!(config_of(folder.path()).unwrap(), config);
        let page = fs::read_to_string(&finished.report).unwrap();
        assert!(page.contains(&algorithm.to_string()) && page.contains("Before and after"));
    }
}

#[test]
fn clients_that_train_at_once_end_with_the_same_bits() {
    let model = StandIn::load();
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, clients_at_once| {
        let out = folder.path().join(name);
        let algorithm = Algorithm::Scaffold;
        let shape = RunConfig { clients: 4, sample: 4, ..small_config() };
        let config = RunConfig { algorithm, clients_at_once, ..shape };
        model.simulate(&config, &out, &mut watch()).unwrap();
        (computed_files(&out), timeless(&out))
    };
    let one_by_one = run("one", 1);
    // Three at a time leave one over, which trains alone.
    assert_eq!(run("three", 3), one_by_one);
    assert_eq!(run("measured", 0), one_by_one);
}

#[test]
fn clients_that_share_passes_end_with_the_same_bits() {
    let model = StandIn::load();
    let folder = tempfile::tempdir().unwrap();
    let shape = RunConfig { clients: 7, sample: 5, rounds: 2, ..small_config() };
    let scaffold = RunConfig { algorithm: Algorithm::Scaffold, ..shape.clone() };
    let dropout = RunConfig { lora_dropout: 0.2, max_grad_norm: 0.1, ..shape.clone() };
    // Neighbours of one rank share; who has none trains alone.
    let ranks = ["2:0.6", "4:0.4"].map(|class| class.parse().unwrap()).to_vec();
    let ranks = RunConfig { combine: Combine::Product, lora_rank: 4, ranks, ..shape.clone() };
    let prox = RunConfig { algorithm: Algorithm::FedProx, ..shape };
    for (name, config) in
        [("scaffold", scaffold), ("dropout", dropout), ("ranks", ranks), ("prox", prox)]
    {
        let run = |clients_per_pass, clients_at_once| {
            let out = folder.path().join(format!("{name}-{clients_per_pass}-{clients_at_once}"));
            let config = RunConfig { clients_per_pass, clients_at_once, ..config.clone() };
            model.simulate(&config, &out, &mut watch()).unwrap();
            let history = history(&out);
            let shared = history.rounds.iter().map(|round| round.clients_per_pass).max();
            (shared.unwrap(), computed_files(&out), timeless(&out))
        };
        let (shared, files, records) = run(1, 1);
        assert_eq!(shared, 1);
        for (per_pass, at_once, expected) in [(3, 1, 2..4), (2, 2, 2..3), (0, 0, 1..6)] {
            let (shared, same_files, same_records) = run(per_pass, at_once);
            assert!(expected.contains(&shared), "{name}: {shared} shared a pass");
            assert_eq!(same_files, files, "{name}, {per_pass} a pass");
            assert_eq!(same_records, records, "{name}, {per_pass} a pass");
        }
    }
}

/// Of a large fleet, only who has trained leaves anything behind.
#[test]
fn a_large_fleet_keeps_state_of_those_alone_who_have_trained() {
    let model = StandIn::load();
    let folder = tempfile::tempdir().unwrap();
    let rows: String = (0..4000)
        .map(|i| format!("{{\"instruction\":\"Say {i}\",\"response\":\"{i}\"}}\n"))
        .collect();
    let path = folder.path().join("rows.jsonl");
    fs::write(&path, rows).unwrap();
    let source = DataSource { files: vec![path], ..DataSource::default() };
    let config = RunConfig {
        algorithm: Algorithm::Scaffold,
        codec: "top-k:0.2+int8".parse().unwrap(),
        clients: 3000,
        sample: 30,
        rounds: 2,
        steps: 1,
        batch_size: 1,
        eval_rows: 4,
        ..small_config()
    };
    let out = folder.path().join("run");
    let dataset = Dataset::open("instruction", &source, None).unwrap();
    model.simulate_on(dataset, &config, &out, &mut watch()).unwrap();
    let history = history(&out);
    let trained: BTreeSet<String> =
        history.clients.iter().map(|record| record.client.to_string()).collect();
    assert!((30..=60).contains(&trained.len()), "{}", trained.len());
    for kind in ["clients", "residuals"] {
        let kept = fs::read_dir(out.join(kind)).unwrap();
        let kept: BTreeSet<String> =
            kept.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(kept, trained, "{kind}");
    }
}

#[test]
fn what_travels_is_counted_and_at_most_half_the_size_of_the_adapter() {
    let model = StandIn::load();
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, algorithm| {
        let out = folder.path().join(name);
        let config = RunConfig { algorithm, rounds: 1, ..small_config() };
        model.simulate(&config, &out, &mut watch()).unwrap();
        let adapter = Adapter::load(&out.join("checkpoints/round-0001")).unwrap();
        (history(&out), 4 * adapter.parameters.num_values() as u64)
    };
    let (fedavg, adapter_bytes) = run("fedavg", Algorithm::FedAvg);
    let update = &fedavg.clients[0];
    // AdamW's first steps are nearly all of one size, which packs well; more than f16 it never is.
    assert!((adapter_bytes / 50..adapter_bytes * 11 / 20).contains(&update.bytes_up));
    assert!((adapter_bytes / 50..adapter_bytes * 11 / 10).contains(&update.bytes_down));
    assert_eq!(fedavg.rounds[0].bytes_up, fedavg.clients.iter().map(|c| c.bytes_up).sum::<u64>());
    let (scaffold, _) = run("scaffold", Algorithm::Scaffold);
    assert!(scaffold.bytes_up() > fedavg.bytes_up() * 3 / 2, "control variates travel too");
    let (local, _) = run("local", Algorithm::Local { client: 0 });
    assert_eq!((local.bytes_up(), local.bytes_down()), (0, 0));
}

#[test]
fn a_federation_of_one_client_is_that_client_alone_but_for_f16() {
    let model = StandIn::load();
    let folder = tempfile::tempdir().unwrap();
    let adapter = |name: &str, algorithm| {
        let out = folder.path().join(name);
        let config = RunConfig { algorithm, clients: 1, sample: 1, ..small_config() };
        model.simulate(&config, &out, &mut watch()).unwrap();
        Adapter::load(&out.join("checkpoints/round-0003")).unwrap().parameters
    };
    let alone = adapter("local", Algorithm::Local { client: 0 });
    let mut difference = adapter("fedavg", Algorithm::FedAvg);
    difference.zip_apply(&alone, |a, b| *a -= b).unwrap();
    assert!(difference.l2_norm() > 0.0, "the update was rounded on its way");
    assert!(difference.l2_norm() < 1e-2 * alone.l2_norm(), "{}", difference.l2_norm());
}

/// SCAFFOLD's server holds the mean of all clients' control variates. Clients round what they send,
/// so this holds only when they keep what they sent.
#[test]
fn scaffolds_server_variate_is_the_mean_of_the_clients() {
    let model = StandIn::load();
    let folder = tempfile::tempdir().unwrap();
    let config = RunConfig { algorithm: Algorithm::Scaffold, rounds: 4, ..small_config() };
    model.simulate(&config, folder.path(), &mut watch()).unwrap();
    let state = fs::read(folder.path().join("checkpoints/round-0004/aggregator.safetensors"));
    let server = ServerState::from_bytes(&state.unwrap()).unwrap().control().unwrap();
    let mut difference = server.clone();
    for client in 0..config.clients {
        let variates = fs::read_dir(folder.path().join(format!("clients/{client}"))).unwrap();
        let newest = variates.map(|entry| entry.unwrap().path()).max().unwrap();
        let own = ParameterSet::from_safetensors(&fs::read(newest).unwrap()).unwrap();
        let share = config.clients as f32;
        difference.zip_apply(&own, |sum, own| *sum -= own / share).unwrap();
    }
    assert!(server.l2_norm() > 0.0);
    assert!(difference.l2_norm() < 1e-6 * server.l2_norm(), "{}", difference.l2_norm());
}

#[test]
fn the_seed_decides_everything() {
    let model = StandIn::load();
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, seed| {
        let out = folder.path().join(name);
        let config = RunConfig { seed, lora_dropout: 0.1, ..small_config() };
        model.simulate(&config, &out, &mut watch()).unwrap();
        (computed_files(&out), timeless(&out))
    };
    let first = run("first", 7);
    assert!(first == run("again", 7));
    assert!(first.0 != run("other", 8).0);
}

#[test]
fn openfedllms_sampling_takes_its_clients() {
    let model = StandIn::load();
    let folder = tempfile::tempdir().unwrap();
    let config = RunConfig {
        sampling: Sampling::OpenFedLlm,
        clients: 6,
        sample: 3,
        rounds: 3,
        ..small_config()
    };
    model.simulate(&config, folder.path(), &mut watch()).unwrap();
    let clients: Vec<_> = history(folder.path()).rounds.into_iter().map(|r| r.clients).collect();
    // random.seed(round); sorted(random.sample(range(6), 3)), as in tests/fixtures/aggregators.
    assert_eq!(clients, [[0, 3, 5], [0, 1, 4], [0, 4, 5]]);
}

/// Stops a run at every `step`th of its events in turn, resumes it, and compares every computed byte.
fn check_resuming(config: &RunConfig, step: usize) {
    check_resuming_on(|| Dataset::demo().unwrap(), config, step);
}

fn check_resuming_on(data: impl Fn() -> Dataset, config: &RunConfig, step: usize) {
    let model = StandIn::load();
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    let mut events = 0;
    let mut count = |_: &Event<'_>| {
        events += 1;
        ControlFlow::Continue(())
    };
    model.simulate_on(data(), config, &whole, &mut count).unwrap();
    assert!(events > 20);
    let expected = (computed_files(&whole), timeless(&whole));
    for at in (0..events).step_by(step) {
        let out = folder.path().join(format!("stopped-{at}"));
        let stopped = model.simulate_on(data(), config, &out, &mut stop_at(at));
        assert!(matches!(stopped, Err(SimulateError::Stopped)), "event {at}");
        model.simulate_on(data(), config, &out, &mut watch()).unwrap();
        assert!(expected.0 == computed_files(&out), "other bytes after a stop at event {at}");
        assert_eq!(expected.1, timeless(&out), "other metrics after a stop at event {at}");
    }
}

#[test]
fn a_run_of_fedavg_with_dropout_resumes_bit_by_bit() {
    check_resuming(&RunConfig { lora_dropout: 0.05, ..small_config() }, 3);
}

#[test]
fn a_run_of_scaffold_resumes_bit_by_bit_from_any_event() {
    check_resuming(&RunConfig { algorithm: Algorithm::Scaffold, ..small_config() }, 1);
}

#[test]
fn a_run_of_a_server_optimiser_resumes_bit_by_bit() {
    let algorithm = Algorithm::FedAdam;
    check_resuming(&RunConfig { algorithm, variant: Variant::Paper, ..small_config() }, 4);
}

#[test]
fn a_run_with_products_ranks_and_lossy_codecs_resumes_bit_by_bit() {
    let config = RunConfig {
        combine: Combine::Product,
        ranks: vec!["2".parse().unwrap(), "8".parse().unwrap()],
        codec: "top-k:0.1+int4".parse().unwrap(),
        codec_down: "top-k:0.2+int4".parse().unwrap(),
        ..small_config()
    };
    check_resuming(&config, 2);
}

#[test]
fn a_run_that_is_stopped_again_and_again_still_ends_the_same() {
    let model = StandIn::load();
    let folder = tempfile::tempdir().unwrap();
    let config = RunConfig { algorithm: Algorithm::Scaffold, ..small_config() };
    let (whole, out) = (folder.path().join("whole"), folder.path().join("stopped"));
    model.simulate(&config, &whole, &mut watch()).unwrap();
    // One more event each time: every round is repeated several times before it is through.
    let mut stops = 0;
    while model.simulate(&config, &out, &mut stop_at(stops)).is_err() {
        stops += 1;
        assert!(stops < 100);
    }
    assert!(stops > 5);
    assert!(computed_files(&whole) == computed_files(&out));
    assert_eq!(timeless(&whole), timeless(&out));
}

#[test]
fn what_a_kill_leaves_half_written_is_cleared_away() {
    let model = StandIn::load();
    let folder = tempfile::tempdir().unwrap();
    let config = RunConfig { algorithm: Algorithm::Scaffold, ..small_config() };
    let (whole, out) = (folder.path().join("whole"), folder.path().join("killed"));
    model.simulate(&config, &whole, &mut watch()).unwrap();
    let mut seen = 0;
    let mut second_round = |event: &Event<'_>| {
        seen += usize::from(matches!(event, Event::Updated(_)));
        if seen == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    model.simulate(&config, &out, &mut second_round).unwrap_err();

    let mut metrics = fs::read(out.join("metrics.jsonl")).unwrap();
    metrics.extend_from_slice(b"{\"kind\":\"client\",\"round\":2,\"cli");
    fs::write(out.join("metrics.jsonl"), metrics).unwrap();
    let hidden = out.join("checkpoints/.round-0002");
    fs::create_dir(&hidden).unwrap();
    fs::write(hidden.join("adapter_model.safetensors"), b"half").unwrap();

    model.simulate(&config, &out, &mut watch()).unwrap();
    assert!(computed_files(&whole) == computed_files(&out));
    assert_eq!(timeless(&whole), timeless(&out));
    assert!(!hidden.exists());
}

#[test]
fn a_finished_run_resumes_to_itself() {
    let model = StandIn::load();
    let folder = tempfile::tempdir().unwrap();
    let config = small_config();
    model.simulate(&config, folder.path(), &mut watch()).unwrap();
    let before = (computed_files(folder.path()), timeless(folder.path()));
    model.simulate(&config, folder.path(), &mut watch()).unwrap();
    assert!(before == (computed_files(folder.path()), timeless(folder.path())));
}

#[test]
fn a_run_is_neither_overwritten_nor_resumed_as_another_nor_shared() {
    let folder = tempfile::tempdir().unwrap();
    let config = small_config();
    let held = RunFolder::open(folder.path(), &config, false).unwrap();
    let told = RunFolder::open(folder.path(), &config, true).unwrap_err().to_string();
    assert!(told.contains("another process"), "{told}");
    drop(held);
    let told = RunFolder::open(folder.path(), &config, false).unwrap_err().to_string();
    assert!(told.contains("--resume"), "{told}");
    let other = RunConfig { batch_size: 3, ..config.clone() };
    let told = RunFolder::open(folder.path(), &other, true).unwrap_err().to_string();
    assert!(told.contains("batch_size was 2 and is now 3"), "{told}");
    RunFolder::open(folder.path(), &config, true).unwrap();
}

#[test]
fn a_comparison_runs_each_algorithm_once_from_the_same_beginning() {
    let model = StandIn::load();
    let folder = tempfile::tempdir().unwrap();
    let compare = vec![Algorithm::Local { client: 0 }, Algorithm::FedAvg];
    let config = RunConfig { compare, ..small_config() };
    // Stopped in the second run; the first one is not run again.
    let mut started = Vec::new();
    let mut watch_starts = |event: &Event<'_>| {
        if let Event::Started { algorithm, done, .. } = event {
            started.push((algorithm.clone(), *done));
        }
        let second = started.len() == 2 && matches!(event, Event::Aggregated(_));
        if second { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    model.simulate(&config, folder.path(), &mut watch_starts).unwrap_err();
    started.clear();
    let mut watch_starts = |event: &Event<'_>| {
        if let Event::Started { algorithm, done, .. } = event {
            started.push((algorithm.clone(), *done));
        }
        ControlFlow::Continue(())
    };
    let finished = model.simulate(&config, folder.path(), &mut watch_starts).unwrap();
    assert_eq!(started, [("local:0".to_owned(), 3), ("fedavg".to_owned(), 0)]);

    let names: Vec<_> = finished.comparison.rows.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names, ["base", "local:0", "fedavg"]);
    let runs = ["local-0", "fedavg"].map(|name| history(&folder.path().join(name)));
    assert_eq!(runs[0].before(), runs[1].before(), "the base model is scored once");
    assert!(folder.path().join("comparison.json").exists());
    assert!(fs::read_to_string(&finished.report).unwrap().contains("local:0"));
}

#[test]
fn by_source_gives_each_client_one_skill_and_evaluation_tells_them_apart() {
    let config =
        RunConfig { partition: "by-source".parse().unwrap(), clients: 8, ..small_config() };
    let fleet = Fleet::new(Dataset::demo().unwrap(), &config).unwrap();
    let mut skills: Vec<&[String]> = (0..8).map(|client| fleet.groups_of(client)).collect();
    assert!(skills.iter().all(|groups| groups.len() == 1));
    skills.sort();
    skills.dedup();
    assert_eq!(skills.len(), 8);
    assert_eq!(fleet.groups().len(), 8);
}

/// Pairs of a short and a long answer, the short one preferred.
fn preferences(folder: &Path) -> Dataset {
    let file = folder.join("pairs.jsonl");
    let row = |i: usize| {
        let long = "indeed ".repeat(3 + i % 3);
        format!(r#"{{"prompt":"Is {i} a number?","chosen":"Yes.","rejected":"It is {long}"}}"#)
    };
    let rows: Vec<_> = (0..60).map(row).collect();
    fs::write(&file, rows.join("\n")).unwrap();
    let source = DataSource { files: vec![file], ..DataSource::default() };
    Dataset::open("preference", &source, None).unwrap()
}

#[test]
fn every_algorithm_learns_preferences_and_the_reference_is_computed_once() {
    let model = StandIn::load();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let config = RunConfig {
        task: Task::Dpo,
        compare: all_algorithms().collect(),
        seq_len: 128,
        ..small_config()
    };
    let finished =
        model.simulate_on(preferences(folder.path()), &config, &out, &mut watch()).unwrap();
    let rows = &finished.comparison.rows;
    assert_eq!(rows.len(), 9);
    let base = rows[0].score.preference.unwrap();
    assert_eq!((base.judged.reward_accuracy, base.judged.reward_margin), (0.5, 0.0));
    for row in &rows[1..] {
        let judged = row.score.preference.unwrap().judged;
        assert!(judged.reward_margin > 0.0, "{}: {judged:?}", row.name);
        assert!(row.score.loss < rows[0].score.loss, "{}", row.name);
    }
    assert!(fs::read_to_string(&finished.report).unwrap().contains("reward accuracy"));

    // Eight runs over the same rows: no client knows more pairs than it holds.
    let fleet = Fleet::new(preferences(folder.path()), &config).unwrap();
    for client in 0..config.clients {
        let path = out.join(format!("reference/client-{client:05}.bin"));
        let pairs = (fs::metadata(path).unwrap().len() - 8) / 48;
        assert!((1..=fleet.rows_of(client) as u64).contains(&pairs), "{pairs}");
    }
}

#[test]
fn a_run_of_preferences_resumes_bit_by_bit() {
    let data = tempfile::tempdir().unwrap();
    let config = RunConfig { task: Task::Dpo, seq_len: 128, ..small_config() };
    check_resuming_on(|| preferences(data.path()), &config, 5);
}

#[test]
fn a_task_and_a_data_set_that_do_not_fit_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let told = Fleet::new(preferences(folder.path()), &small_config()).unwrap_err().to_string();
    assert!(told.contains("preferences: use --task dpo"), "{told}");
    let config = RunConfig { task: Task::Dpo, ..small_config() };
    let told = Fleet::new(Dataset::demo().unwrap(), &config).unwrap_err().to_string();
    assert!(told.contains("no preferences: use --task sft"), "{told}");
}

/// Fifty thousand clients with two rows each: a round touches only those that are sampled.
#[test]
fn a_large_fleet_runs_like_a_small_one() {
    let folder = tempfile::tempdir().unwrap();
    let rows = folder.path().join("rows.jsonl");
    let text: String = (0..110_000)
        .map(|i| format!("{{\"instruction\":\"Say {i}.\",\"response\":\"{i}\"}}\n"))
        .collect();
    fs::write(&rows, text).unwrap();
    let source = DataSource { files: vec![rows], ..DataSource::default() };
    let dataset = Dataset::open("instruction", &source, None).unwrap();
    let config = RunConfig {
        dataset: "instruction".into(),
        clients: 50_000,
        sample: 3,
        holdout: 0.05,
        rounds: 2,
        ..small_config()
    };
    let out = folder.path().join("run");
    StandIn::load().simulate_on(dataset, &config, &out, &mut watch()).unwrap();
    assert_eq!(history(&out).clients.len(), 6);
}
