//! Numbers of other programs to compare with, and how close is close enough.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use fleetune_core::adapter::{Parameter, ParameterSet};
use fleetune_core::data::{TokenizedExample, TokenizedPair};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// A file of the committed fixtures.
pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path)
}

/// A folder named by an environment variable; says in one line that the test is skipped without.
pub fn folder_from(variable: &str) -> Option<PathBuf> {
    let folder = std::env::var_os(variable).map(PathBuf::from);
    if folder.is_none() {
        println!("skipped: {variable} is not set");
    }
    folder
}

/// The built-in model in the cache; says in one line that the test is skipped without.
pub fn built_in_model() -> Option<PathBuf> {
    let cache = std::env::var_os("FLEETUNE_CACHE").map(PathBuf::from).or_else(|| {
        let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        base.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
            .map(|base| base.join("fleetune"))
    })?;
    let file = cache.join("models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf");
    if file.is_file() {
        return Some(file);
    }
    println!("skipped: the built-in model is not in the cache (`fleetune model pull` brings it)");
    None
}

/// Reads a JSON file.
pub fn json<T: DeserializeOwned>(path: &Path) -> T {
    let text = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// All tensors of a safetensors file.
pub fn tensors(path: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The tensors of a safetensors file whose names start with `prefix`, without it.
pub fn parameters(path: &Path, prefix: &str) -> ParameterSet {
    let entries = tensors(path).into_iter().filter_map(|(name, tensor)| {
        Some(Parameter {
            name: name.strip_prefix(prefix)?.to_owned(),
            shape: tensor.dims().to_vec(),
            values: tensor.flatten_all().unwrap().to_vec1().unwrap(),
        })
    });
    ParameterSet::new(entries.collect())
}

/// A text as the reference stores it: label −100 means not supervised.
#[derive(Debug, Deserialize)]
pub struct LabelledText {
    /// Token ids.
    pub input_ids: Vec<u32>,
    /// Token to predict at each position, or −100.
    pub labels: Vec<i64>,
}

impl From<LabelledText> for TokenizedExample {
    fn from(text: LabelledText) -> Self {
        let supervised = text.labels.iter().map(|&label| label != -100).collect();
        Self { ids: text.input_ids, supervised }
    }
}

/// A preference pair as the reference stores it.
#[derive(Debug, Deserialize)]
pub struct LabelledPair {
    prompt: Vec<u32>,
    chosen: Vec<u32>,
    rejected: Vec<u32>,
}

impl From<LabelledPair> for TokenizedPair {
    fn from(pair: LabelledPair) -> Self {
        Self { prompt: pair.prompt, chosen: pair.chosen, rejected: pair.rejected }
    }
}

/// Batches of texts or pairs.
pub fn batches<T: DeserializeOwned, U: From<T>>(path: &Path) -> Vec<Vec<U>> {
    let batches: Vec<Vec<T>> = json(path);
    batches.into_iter().map(|batch| batch.into_iter().map(U::from).collect()).collect()
}

/// Checks every tensor: `max |ours − theirs| ≤ tolerance · max |theirs|`.
pub fn assert_close(ours: &ParameterSet, theirs: &ParameterSet, tolerance: f64) {
    ours.check_layout(theirs).unwrap();
    for (ours, theirs) in ours.iter().zip(theirs.iter()) {
        let size = theirs.values.iter().fold(0f32, |max, v| max.max(v.abs()));
        let distance =
            ours.values.iter().zip(&theirs.values).fold(0f32, |max, (a, b)| max.max((a - b).abs()));
        let relative = f64::from(distance / size);
        assert!(relative <= tolerance, "{}: relative error {relative:e}", ours.name);
    }
}

/// Checks one number: `|ours − theirs| ≤ tolerance`.
pub fn assert_near(what: &str, ours: f64, theirs: f64, tolerance: f64) {
    let distance = (ours - theirs).abs();
    assert!(distance <= tolerance, "{what}: {ours} against {theirs}, {distance:e} apart");
}
