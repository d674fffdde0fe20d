//! Every aggregation algorithm against the numbers of `fixtures/aggregators`: OpenFedLLM's own code
//! and the published rules, in float64, over four rounds (`fixtures/README.md`).

use std::path::PathBuf;

use fleetune_core::adapter::{Parameter, ParameterSet};
use fleetune_server::aggregate::{
    Aggregator, AggregatorConfig, Algorithm, ServerState, Variant, Weighting,
};
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde::Deserialize;

/// The bound; f64 all the way stays far below it.
const TOLERANCE: f64 = 1e-6;
const F64_TOLERANCE: f64 = 1e-12;

#[derive(Deserialize)]
struct Meta {
    num_clients: usize,
    sample_counts: Vec<u64>,
    clients_per_round: Vec<Vec<usize>>,
    tensors: std::collections::BTreeMap<String, Vec<usize>>,
}

struct Inputs {
    meta: Meta,
    file: Vec<u8>,
}

impl Inputs {
    fn read() -> Self {
        let meta = std::fs::read(fixture("meta.json")).unwrap();
        let file = std::fs::read(fixture("inputs.safetensors")).unwrap();
        Self { meta: serde_json::from_slice(&meta).unwrap(), file }
    }

    /// The set stored under `prefix`.
    fn set(&self, prefix: &str) -> ParameterSet {
        let file = SafeTensors::deserialize(&self.file).unwrap();
        let entries = self.meta.tensors.iter().map(|(name, shape)| {
            let view = file.tensor(&format!("{prefix}/{name}")).unwrap();
            assert_eq!((view.dtype(), view.shape()), (Dtype::F32, shape.as_slice()));
            let chunks = view.data().as_chunks::<4>().0.iter();
            let values = chunks.map(|&bytes| f32::from_le_bytes(bytes)).collect();
            Parameter { name: name.clone(), shape: shape.clone(), values }
        });
        ParameterSet::new(entries.collect())
    }
}

fn fixture(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "fixtures", "aggregators", name].iter().collect()
}

fn doubles(file: &SafeTensors<'_>, name: &str) -> Option<Vec<f64>> {
    let view = file.tensor(name).ok()?;
    assert_eq!(view.dtype(), Dtype::F64);
    Some(view.data().as_chunks::<8>().0.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect())
}

/// Relative to the largest value of the tensor, which must be worth comparing with.
fn assert_close(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(0.0f64, |scale, v| scale.max(v.abs()));
    for (found, expected) in found.iter().zip(expected) {
        let difference = (found - expected).abs();
        assert!(difference <= tolerance * scale, "{what}: {found} is not {expected}");
    }
}

/// Runs all rounds of `config` and compares each with the golden file; `through_file` stores and
/// reloads the state between rounds.
fn follow(golden: &str, config: AggregatorConfig, through_file: bool) {
    let inputs = Inputs::read();
    let golden_bytes = std::fs::read(fixture(&format!("{golden}_f64.safetensors"))).unwrap();
    let expected = SafeTensors::deserialize(&golden_bytes).unwrap();
    let scaffold = config.algorithm == Algorithm::Scaffold;
    let aggregator = Aggregator::new(config).unwrap();
    let mut state = aggregator.initial_state(&inputs.set("init")).unwrap();
    for (t, clients) in inputs.meta.clients_per_round.iter().enumerate() {
        let mut round = aggregator.begin(&state).unwrap();
        for &client in clients {
            let weights = inputs.set(&format!("round{t}/client{client}"));
            let delta = scaffold.then(|| inputs.set(&format!("round{t}/delta_c/client{client}")));
            let samples = inputs.meta.sample_counts[client];
            round.accumulate(&weights, samples, delta.as_ref()).unwrap();
        }
        state = aggregator.finish(&state, round).unwrap().0;
        assert_eq!(state.round(), t as u64 + 1);

        let bytes = state.to_bytes().unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let mut compared = 0;
        for group in ["global", "m", "v", "c"] {
            for name in inputs.meta.tensors.keys() {
                let what = format!("{golden} round {t} {group}/{name}");
                let Some(expected) = doubles(&expected, &format!("round{t}/{group}/{name}")) else {
                    continue;
                };
                let found = doubles(&file, &format!("{group}/{name}"))
                    .unwrap_or_else(|| panic!("the state lacks {what}"));
                assert_close(&found, &expected, F64_TOLERANCE, &what);
                if group == "global" {
                    let sent = state.global();
                    let sent = &sent.get(name).unwrap().values;
                    let sent: Vec<f64> = sent.iter().map(|&v| v.into()).collect();
                    assert_close(&sent, &expected, TOLERANCE, &what);
                }
                compared += 1;
            }
        }
        assert!(compared >= inputs.meta.tensors.len(), "nothing to compare in {golden}");
        if through_file {
            state = ServerState::from_bytes(&bytes).unwrap();
        }
    }
}

fn config(algorithm: Algorithm, variant: Variant) -> AggregatorConfig {
    let population = (algorithm == Algorithm::Scaffold).then(|| Inputs::read().meta.num_clients);
    AggregatorConfig { variant, population, ..AggregatorConfig::new(algorithm) }
}

#[test]
fn every_algorithm_computes_as_openfedllm_does() {
    for algorithm in Algorithm::SHARING {
        let golden = format!("openfedllm_{algorithm}");
        follow(&golden, config(algorithm, Variant::OpenFedLlm), false);
        follow(&golden, config(algorithm, Variant::OpenFedLlm), true);
    }
}

#[test]
fn the_paper_variants_compute_as_published() {
    let server_optimisers =
        [Algorithm::FedAvgM, Algorithm::FedAdagrad, Algorithm::FedYogi, Algorithm::FedAdam];
    for algorithm in server_optimisers {
        follow(&format!("reddi2021_{algorithm}"), config(algorithm, Variant::Paper), false);
        follow(&format!("reddi2021_{algorithm}"), config(algorithm, Variant::Paper), true);
        let weighting = Some(Weighting::Uniform);
        let uniform = AggregatorConfig { weighting, ..config(algorithm, Variant::Paper) };
        follow(&format!("reddi2021_uniform_{algorithm}"), uniform, false);
    }
    // The variants of the plain means agree.
    for algorithm in [Algorithm::FedAvg, Algorithm::FedProx, Algorithm::Scaffold] {
        follow(&format!("openfedllm_{algorithm}"), config(algorithm, Variant::Paper), false);
    }
}
