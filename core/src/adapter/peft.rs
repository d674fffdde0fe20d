//! Adapters as Hugging Face PEFT folders: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

use super::peft_config::{self, PeftConfig, PeftConfigError, TargetModules};
use super::tensor_file::TensorFileError;
use super::{LoraConfig, LoraConfigError, Parameter, ParameterSet, Target};
use crate::config::ModelConfig;
use crate::files::write_atomically;

/// Name of the configuration in an adapter's folder.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// Name of the tensors in an adapter's folder.
pub const TENSORS_FILE: &str = "adapter_model.safetensors";

/// A LoRA adapter: configuration and parameters under PEFT's names.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// Rank, strength and targets.
    pub config: LoraConfig,
    /// `…lora_A.weight` `[rank, in]` and `…lora_B.weight` `[out, rank]` per layer and target.
    pub parameters: ParameterSet,
}

/// Why an adapter cannot be read, made or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// A file cannot be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The folder holds PEFT's old pickle format only.
    #[error(
        "{} has adapter_model.bin but no adapter_model.safetensors: save it again with PEFT's safe_serialization=True",
        folder.display()
    )]
    Pickle {
        /// The adapter's folder.
        folder: PathBuf,
    },
    /// The configuration file is wrong or asks for what the engine does not have.
    #[error("cannot use {}: {source}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: PeftConfigError,
    },
    /// The tensor file is damaged.
    #[error("cannot use {}: {source}", path.display())]
    Tensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: TensorFileError,
    },
    /// The parameters cannot be written as a tensor file.
    #[error("cannot store the adapter: {0}")]
    Encode(TensorFileError),
    /// A value of the configuration is out of range.
    #[error(transparent)]
    Lora(#[from] LoraConfigError),
    /// A tensor that the configuration and the model call for is not there.
    #[error(
        "the adapter lacks tensor {name}: it adapts some layers only, which is not supported here, or was made for another model or saved in part"
    )]
    Missing {
        /// PEFT's name of the tensor.
        name: String,
    },
    /// A tensor that belongs to no adapted projection.
    #[error("the adapter has an unexpected tensor {name}: {reason}")]
    Unexpected {
        /// Its name.
        name: String,
        /// Why it does not belong.
        reason: &'static str,
    },
    /// A tensor has another shape than the configuration and the model call for.
    #[error("adapter tensor {name} has shape {found:?}, but {expected:?} is needed")]
    Shape {
        /// PEFT's name of the tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that fits.
        expected: Vec<usize>,
    },
}

impl Adapter {
    /// A fresh adapter on every layer of `model` that changes nothing yet, drawn as PEFT draws it:
    /// A kaiming-uniform with a = √5, which is uniform in ±1/√in, and B zero.
    ///
    /// Each tensor has a random stream of its own, made from `seed` and its name, so that its
    /// values do not depend on which other projections are adapted.
    ///
    /// # Errors
    /// When the configuration is out of range.
    pub fn new(config: LoraConfig, model: &ModelConfig, seed: u64) -> Result<Self, AdapterError> {
        config.check()?;
        let mut entries = Vec::with_capacity(2 * config.targets.len() * model.num_layers);
        for (target, layer) in placements(&config, model) {
            let (output, input) = model.projection_shape(target);
            let (a, b) = target.tensor_names(layer);
            let values = kaiming_uniform(&a, config.rank * input, input, seed);
            entries.push(Parameter { name: a, shape: vec![config.rank, input], values });
            let values = vec![0.0; output * config.rank];
            entries.push(Parameter { name: b, shape: vec![output, config.rank], values });
        }
        Ok(Self { config, parameters: ParameterSet::new(entries) })
    }

    /// Reads a PEFT folder; f16, bf16 and f32 tensors become f32.
    ///
    /// Whether the adapter fits a model is another question: [`Adapter::check_against`].
    ///
    /// # Errors
    /// When a file is missing or damaged, when the configuration uses a feature of PEFT that the
    /// engine lacks, when tensors and configuration disagree, or a value is not finite.
    pub fn load(folder: &Path) -> Result<Self, AdapterError> {
        let peft = read_config(folder)?;
        let parameters = read_parameters(folder)?;
        let found = adapted_projections(&parameters)?;
        let present: Vec<Target> = Target::ALL
            .into_iter()
            .filter(|&target| found.iter().any(|&(_, found)| found == target))
            .collect();
        let targets = match peft.targets {
            TargetModules::Listed(listed) => listed,
            TargetModules::Pattern => present,
        };
        let PeftConfig { rank, alpha, dropout, rslora, .. } = peft;
        let config = LoraConfig { rank, alpha, dropout, targets, rslora };
        config.check().map_err(|error| AdapterError::Config {
            path: folder.join(CONFIG_FILE),
            source: error.into(),
        })?;
        check_pairs(&config, &parameters, &found)?;
        Ok(Self { config, parameters })
    }

    /// Writes a PEFT folder with f32 tensors, making the folder where needed. Each file is
    /// replaced whole, the configuration last: a folder that has one is complete.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), AdapterError> {
        self.save_for_base(folder, None)
    }

    /// As [`Adapter::save`], noting in the configuration which base model the adapter belongs to:
    /// a hub name or a path, which PEFT's `AutoPeftModel` loads by itself.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn save_for_base(&self, folder: &Path, base: Option<&str>) -> Result<(), AdapterError> {
        let config = peft_config::to_json(&self.config, base);
        write_folder(folder, config.as_bytes(), &self.parameters)
    }

    /// Checks that the adapter has exactly the tensors, in the shapes, that its configuration
    /// calls for on `model`.
    ///
    /// # Errors
    /// Names the first tensor that is missing, unexpected or of another shape.
    pub fn check_against(&self, model: &ModelConfig) -> Result<(), AdapterError> {
        let mut expected = BTreeMap::new();
        for (target, layer) in placements(&self.config, model) {
            let (output, input) = model.projection_shape(target);
            let (a, b) = target.tensor_names(layer);
            expected.insert(a, [self.config.rank, input]);
            expected.insert(b, [output, self.config.rank]);
        }
        for entry in self.parameters.iter() {
            let Some(shape) = expected.get(&entry.name) else {
                let reason = "the model has no such projection, or the targets do not name it";
                return Err(AdapterError::Unexpected { name: entry.name.clone(), reason });
            };
            check_shape(entry, shape)?;
        }
        let missing = expected.into_keys().find(|name| self.parameters.get(name).is_none());
        missing.map_or(Ok(()), |name| Err(AdapterError::Missing { name }))
    }
}

/// The base model that the PEFT folder says it belongs to.
///
/// # Errors
/// As [`Adapter::load`], as far as the configuration goes.
pub fn base_model(folder: &Path) -> Result<Option<String>, AdapterError> {
    Ok(read_config(folder)?.base_model)
}

fn read_config(folder: &Path) -> Result<PeftConfig, AdapterError> {
    let path = folder.join(CONFIG_FILE);
    let read = PeftConfig::from_json(&read_file(&path)?);
    read.map_err(|source| AdapterError::Config { path, source })
}

/// Reads only the tensors of a PEFT folder, under whatever names they have.
///
/// # Errors
/// When the file is missing or damaged or a value is not finite.
pub fn read_parameters(folder: &Path) -> Result<ParameterSet, AdapterError> {
    let path = folder.join(TENSORS_FILE);
    if !path.exists() && folder.join("adapter_model.bin").exists() {
        return Err(AdapterError::Pickle { folder: folder.to_owned() });
    }
    let bytes = read_file(&path)?;
    ParameterSet::from_safetensors(&bytes).map_err(|source| AdapterError::Tensors { path, source })
}

/// Writes a PEFT folder from an `adapter_config.json` as it is and tensors of any name.
///
/// # Errors
/// When the folder cannot be written.
pub fn write_folder(
    folder: &Path,
    config_json: &[u8],
    parameters: &ParameterSet,
) -> Result<(), AdapterError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| AdapterError::File { action: "write", path, source }
    };
    fs::create_dir_all(folder).map_err(failed(folder))?;
    let tensors = parameters.to_safetensors().map_err(AdapterError::Encode)?;
    let path = folder.join(TENSORS_FILE);
    write_atomically(&path, &tensors).map_err(failed(&path))?;
    let path = folder.join(CONFIG_FILE);
    write_atomically(&path, config_json).map_err(failed(&path))
}

fn read_file(path: &Path) -> Result<Vec<u8>, AdapterError> {
    let path = path.to_owned();
    fs::read(&path).map_err(|source| AdapterError::File { action: "read", path, source })
}

/// Every projection that the configuration adapts on the model.
fn placements<'a>(
    config: &'a LoraConfig,
    model: &ModelConfig,
) -> impl Iterator<Item = (Target, usize)> + use<'a> {
    let layers = model.num_layers;
    config.targets.iter().flat_map(move |&target| (0..layers).map(move |layer| (target, layer)))
}

/// Reads layer and target out of every tensor name.
fn adapted_projections(
    parameters: &ParameterSet,
) -> Result<BTreeSet<(usize, Target)>, AdapterError> {
    let mut found = BTreeSet::new();
    for entry in parameters.iter() {
        let Some(projection) = parse_name(&entry.name) else {
            let name = entry.name.clone();
            let reason =
                "names look like base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
            return Err(AdapterError::Unexpected { name, reason });
        };
        found.insert(projection);
    }
    Ok(found)
}

/// Layer and target of one of PEFT's tensor names.
fn parse_name(name: &str) -> Option<(usize, Target)> {
    let (layer, rest) = name.strip_prefix("base_model.model.model.layers.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let target = Target::ALL.into_iter().find(|target| {
        rest.strip_prefix(target.path()).is_some_and(|rest| rest.starts_with(".lora_"))
    })?;
    // Writing the name again refuses every other spelling of it, such as layer `007`.
    let (a, b) = target.tensor_names(layer);
    (name == a || name == b).then_some((layer, target))
}

/// Checks that each projection has A and B, that both have the configured rank, and that the
/// configuration names it.
fn check_pairs(
    config: &LoraConfig,
    parameters: &ParameterSet,
    found: &BTreeSet<(usize, Target)>,
) -> Result<(), AdapterError> {
    for &target in &config.targets {
        if !found.iter().any(|&(_, found)| found == target) {
            return Err(AdapterError::Missing { name: target.tensor_names(0).0 });
        }
    }
    for &(layer, target) in found.iter() {
        let (a, b) = target.tensor_names(layer);
        if !config.targets.contains(&target) {
            let reason = "target_modules does not name its module";
            return Err(AdapterError::Unexpected { name: a, reason });
        }
        let get = |name: String| parameters.get(&name).ok_or(AdapterError::Missing { name });
        let (a, b) = (get(a)?, get(b)?);
        check_shape(a, &[config.rank, a.shape.get(1).copied().unwrap_or(1).max(1)])?;
        check_shape(b, &[b.shape.first().copied().unwrap_or(1).max(1), config.rank])?;
    }
    Ok(())
}

fn check_shape(entry: &Parameter, expected: &[usize; 2]) -> Result<(), AdapterError> {
    if entry.shape == expected {
        return Ok(());
    }
    Err(AdapterError::Shape {
        name: entry.name.clone(),
        found: entry.shape.clone(),
        expected: expected.to_vec(),
    })
}

/// `count` draws from the uniform distribution in ±1/√fan_in.
fn kaiming_uniform(name: &str, count: usize, fan_in: usize, seed: u64) -> Vec<f32> {
    let mut hasher = Sha256::new();
    hasher.update(seed.to_le_bytes());
    hasher.update(name);
    let mut random = ChaCha8Rng::from_seed(hasher.finalize().into());
    let bound = 1.0 / (fan_in as f32).sqrt();
    (0..count).map(|_| random.random_range(-bound..=bound)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Family, RopeScaling};

    fn fixture(folder: &str) -> PathBuf {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures")).join(folder)
    }

    /// The shape that all `tiny_*` fixtures share.
    fn tiny_model() -> ModelConfig {
        ModelConfig {
            family: Family::Llama,
            vocab_size: 512,
            hidden_size: 64,
            intermediate_size: 160,
            num_layers: 2,
            num_heads: 4,
            num_kv_heads: 2,
            head_dim: 16,
            rms_norm_eps: 1e-5,
            rope_theta: 10000.0,
            rope_scaling: RopeScaling::None,
            max_context: 512,
            sliding_window: None,
            sliding_window_from_layer: 0,
            tie_word_embeddings: false,
        }
    }

    fn small() -> Adapter {
        let config = LoraConfig::new(4, 8.0, &[Target::VProj, Target::DownProj]).unwrap();
        Adapter::new(config, &tiny_model(), 7).unwrap()
    }

    /// `small()` in a folder, after its parts were changed.
    fn saved(
        change_config: impl FnOnce(&mut serde_json::Value),
        change_tensors: impl FnOnce(&mut Vec<Parameter>),
    ) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let adapter = small();
        let mut config =
            serde_json::from_str(&peft_config::to_json(&adapter.config, None)).unwrap();
        change_config(&mut config);
        let mut tensors: Vec<_> = adapter.parameters.iter().cloned().collect();
        change_tensors(&mut tensors);
        let config = config.to_string();
        write_folder(folder.path(), config.as_bytes(), &ParameterSet::new(tensors)).unwrap();
        folder
    }

    #[test]
    fn adapters_that_peft_saved_load_and_fit_their_models() {
        for family in ["tiny_llama", "tiny_qwen2", "tiny_qwen3", "tiny_mistral"] {
            let adapter = Adapter::load(&fixture(family).join("adapter")).unwrap();
            let head_dim = if family == "tiny_qwen3" { 32 } else { 16 };
            adapter.check_against(&ModelConfig { head_dim, ..tiny_model() }).unwrap();
            assert_eq!(adapter.config, LoraConfig::new(8, 16.0, &Target::ALL).unwrap());
            assert_eq!(adapter.parameters.len(), 28);
        }
    }

    #[test]
    fn an_f16_adapter_that_peft_saved_loads() {
        let Some(reference) = std::env::var_os("FLEETUNE_REFERENCE") else {
            println!("skipped: FLEETUNE_REFERENCE is not set");
            return;
        };
        let adapter =
            Adapter::load(&Path::new(&reference).join("smollm2_train/adapter_init")).unwrap();
        assert_eq!(adapter.parameters.len(), 30 * 2 * 2);
        assert_eq!(adapter.config.targets, [Target::QProj, Target::VProj]);
    }

    #[test]
    fn a_saved_adapter_loads_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let mut adapter = small();
        adapter.config.dropout = 0.05;
        adapter.config.rslora = true;
        adapter.config.alpha = 12.5;
        let path = folder.path().join("deep/adapter");
        adapter.save_for_base(&path, Some("org/base")).unwrap();
        assert_eq!(Adapter::load(&path).unwrap(), adapter);
    }

    #[test]
    fn a_fresh_adapter_changes_nothing_and_is_drawn_uniformly_within_its_bound() {
        let adapter = small();
        adapter.check_against(&tiny_model()).unwrap();
        for entry in adapter.parameters.iter() {
            if entry.name.ends_with("lora_B.weight") {
                assert!(entry.values.iter().all(|&v| v == 0.0));
                continue;
            }
            let fan_in = entry.shape[1] as f64;
            let bound = 1.0 / fan_in.sqrt();
            let largest = entry.values.iter().fold(0.0f64, |m, &v| m.max(f64::from(v).abs()));
            assert!(largest <= bound * 1.0001 && largest > 0.95 * bound, "{}", entry.name);
            let square = entry.values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
            let variance = square / entry.values.len() as f64;
            assert!((variance * 3.0 * fan_in - 1.0).abs() < 0.2, "{}: {variance}", entry.name);
        }
    }

    #[test]
    fn the_draw_depends_on_the_seed_but_not_on_other_targets() {
        let model = tiny_model();
        let draw = |targets: &[Target], seed| {
            Adapter::new(LoraConfig::new(4, 8.0, targets).unwrap(), &model, seed).unwrap()
        };
        let all = draw(&Target::ALL, 7).parameters;
        for entry in small().parameters.iter() {
            assert_eq!(all.get(&entry.name), Some(entry));
        }
        assert_ne!(draw(&Target::ALL, 8).parameters, all);
        let mut firsts: Vec<u32> = all.iter().map(|entry| entry.values[0].to_bits()).collect();
        firsts.retain(|&bits| bits != 0);
        firsts.sort_unstable();
        let drawn = firsts.len();
        firsts.dedup();
        assert_eq!(firsts.len(), drawn, "two tensors share a random stream");
    }

    #[test]
    fn tensors_and_configuration_must_agree() {
        let load = |folder: tempfile::TempDir| Adapter::load(folder.path()).unwrap_err();
        let error = load(saved(|config| config["r"] = 5.into(), |_| ()));
        assert!(matches!(error, AdapterError::Shape { .. }), "{error}");
        let error = load(saved(|config| config["r"] = 0.into(), |_| ()));
        assert!(error.to_string().contains("adapter_config.json: LoRA rank 0"), "{error}");
        let error = load(saved(|config| config["target_modules"] = ["v_proj"].into(), |_| ()));
        assert!(matches!(error, AdapterError::Unexpected { .. }), "{error}");
        let all = serde_json::Value::from("all-linear");
        let error = load(saved(|config| config["target_modules"] = all, |_| ()));
        assert!(matches!(error, AdapterError::Missing { .. }), "{error}");
        let error = load(saved(|_| (), |tensors| drop(tensors.remove(0))));
        assert!(matches!(error, AdapterError::Missing { .. }), "{error}");
        let rename = |tensors: &mut Vec<Parameter>| tensors[0].name = "lm_head.weight".into();
        let error = load(saved(|_| (), rename));
        assert!(error.to_string().contains("unexpected tensor lm_head.weight"), "{error}");
        let flatten = |tensors: &mut Vec<Parameter>| {
            tensors[0].shape = vec![tensors[0].values.len()];
        };
        let error = load(saved(|_| (), flatten));
        assert!(matches!(error, AdapterError::Shape { .. }), "{error}");
    }

    #[test]
    fn a_pattern_of_targets_is_read_off_the_tensors() {
        let pattern = serde_json::Value::from(".*(v|down)_proj");
        let folder = saved(|config| config["target_modules"] = pattern, |_| ());
        assert_eq!(Adapter::load(folder.path()).unwrap(), small());
    }

    #[test]
    fn targets_of_single_layers_are_read_off_the_tensors_and_must_be_all_layers() {
        let names: Vec<String> = (0..2)
            .flat_map(|layer| ["self_attn.v_proj", "mlp.down_proj"].map(|p| (layer, p)))
            .map(|(layer, path)| format!("model.layers.{layer}.{path}"))
            .collect();
        let folder = saved(|config| config["target_modules"] = names.clone().into(), |_| ());
        assert_eq!(Adapter::load(folder.path()).unwrap(), small());

        let first_layer = |config: &mut serde_json::Value| {
            config["target_modules"] = names[..2].to_vec().into();
        };
        let folder = saved(first_layer, |tensors| tensors.retain(|t| t.name.contains("layers.0.")));
        let partial = Adapter::load(folder.path()).unwrap();
        let error = partial.check_against(&tiny_model()).unwrap_err().to_string();
        assert!(error.contains("it adapts some layers only"), "{error}");
    }

    #[test]
    fn the_base_model_is_named_as_it_was_saved() {
        let folder = tempfile::tempdir().unwrap();
        small().save_for_base(folder.path(), Some("org/base")).unwrap();
        assert_eq!(base_model(folder.path()).unwrap().as_deref(), Some("org/base"));
        small().save(folder.path()).unwrap();
        assert_eq!(base_model(folder.path()).unwrap(), None);
    }

    #[test]
    fn an_adapter_for_another_model_is_refused() {
        let adapter = small();
        let deeper = ModelConfig { num_layers: 3, ..tiny_model() };
        let error = adapter.check_against(&deeper).unwrap_err();
        assert!(error.to_string().contains("lacks tensor base_model.model.model.layers.2."));
        let shallower = ModelConfig { num_layers: 1, ..tiny_model() };
        let error = adapter.check_against(&shallower).unwrap_err();
        assert!(matches!(error, AdapterError::Unexpected { .. }));
        let wider = ModelConfig { hidden_size: 128, ..tiny_model() };
        let error = adapter.check_against(&wider).unwrap_err();
        assert!(error.to_string().contains("but [128, 4] is needed"), "{error}");
    }

    #[test]
    fn missing_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = Adapter::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("cannot read") && error.contains(CONFIG_FILE), "{error}");
        small().save(folder.path()).unwrap();
        let tensors = folder.path().join(TENSORS_FILE);
        fs::rename(&tensors, folder.path().join("adapter_model.bin")).unwrap();
        let error = Adapter::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("safe_serialization=True"), "{error}");
    }
}
