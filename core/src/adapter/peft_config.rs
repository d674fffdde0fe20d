//! PEFT's `adapter_config.json`: what of it the engine can honour, and what it must refuse.
//!
//! PEFT's LoRA has many extensions that change what an adapter computes. Each one known is
//! checked to be off; a file that uses one is refused rather than loaded as something else. Fields
//! unknown here are passed over, as PEFT itself does.

use serde_json::{Map, Value, json};

use super::{LoraConfig, LoraConfigError, Target};

/// Why an `adapter_config.json` cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PeftConfigError {
    /// Not a JSON object.
    #[error("it is no JSON object ({reason}); PEFT's save_pretrained writes one")]
    Json {
        /// What the JSON reader said.
        reason: String,
    },
    /// A field is missing or has a value of another kind.
    #[error("field {field} is {found}, but {expected} is needed")]
    Field {
        /// Name of the field.
        field: &'static str,
        /// Its value, shortened, or `missing`.
        found: String,
        /// What is accepted.
        expected: &'static str,
    },
    /// A feature of PEFT that the engine does not have.
    #[error(
        "field {field} is {found}, a feature that is not supported here: train the adapter with {neutral}"
    )]
    Unsupported {
        /// Name of the field.
        field: &'static str,
        /// Its value, shortened.
        found: String,
        /// The value that turns the feature off, or what to do instead.
        neutral: &'static str,
    },
    /// A value is out of range or a target unknown.
    #[error(transparent)]
    Lora(#[from] LoraConfigError),
}

/// Features that change what an adapter computes or holds, each with the value that leaves it out.
/// `null`, `false`, `[]` and `{}` are neutral everywhere.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("rank_pattern", "one rank for all modules"),
    ("alpha_pattern", "one alpha for all modules"),
    ("modules_to_save", "modules_to_save null"),
    ("layers_to_transform", "adapters on all layers"),
    ("layer_replication", "layer_replication null"),
    ("fan_in_fan_out", "fan_in_fan_out false"),
    ("use_dora", "use_dora false"),
    ("lora_bias", "lora_bias false"),
    ("trainable_token_indices", "trainable_token_indices null"),
    ("target_parameters", "target_modules instead"),
    ("use_qalora", "use_qalora false"),
    ("use_bdlora", "use_bdlora null"),
    ("alora_invocation_tokens", "alora_invocation_tokens null"),
    ("arrow_config", "arrow_config null"),
    ("kasa_config", "kasa_config null"),
    ("velora_config", "velora_config null"),
    ("monteclora_config", "monteclora_config null"),
    ("megatron_config", "megatron_config null"),
    ("ensure_weight_tying", "ensure_weight_tying false"),
];

/// Ways of drawing the first A and B that leave the base weights alone. The others (`pissa`,
/// `olora`, `corda`, `loftq`, `lora_ga`) train against a changed base, which the folder lacks.
const PLAIN_INITS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// Which modules an adapter says it adapts.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum TargetModules {
    /// These.
    Listed(Vec<Target>),
    /// Those that match a pattern, lie in certain layers or are not excluded: the tensors in the
    /// folder tell which.
    Pattern,
}

/// The parts of an `adapter_config.json` that matter here; ranges are not yet checked.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PeftConfig {
    pub rank: usize,
    pub alpha: f64,
    pub dropout: f64,
    pub rslora: bool,
    pub targets: TargetModules,
    /// The base model's name or path.
    pub base_model: Option<String>,
}

impl PeftConfig {
    pub fn from_json(bytes: &[u8]) -> Result<Self, PeftConfigError> {
        let object: Map<String, Value> = serde_json::from_slice(bytes)
            .map_err(|error| PeftConfigError::Json { reason: error.to_string() })?;
        let fields = Fields(&object);
        fields.text("peft_type", &["LORA"], false)?;
        fields.text("task_type", &["CAUSAL_LM"], true)?;
        fields.text("bias", &["none"], true)?;
        fields.check_init()?;
        for &(field, neutral) in UNSUPPORTED {
            if let Some(value) = fields.0.get(field).filter(|value| !is_neutral(value)) {
                return Err(PeftConfigError::Unsupported { field, found: shorten(value), neutral });
            }
        }
        Ok(Self {
            rank: fields.rank()?,
            alpha: fields.number("lora_alpha", None)?,
            dropout: fields.number("lora_dropout", Some(0.0))?,
            rslora: fields.flag("use_rslora")?,
            targets: fields.targets()?,
            base_model: object
                .get("base_model_name_or_path")
                .and_then(Value::as_str)
                .map(str::to_owned),
        })
    }
}

/// `adapter_config.json` as PEFT 0.14 and later write it, for an adapter of this configuration.
pub(super) fn to_json(config: &LoraConfig, base_model: Option<&str>) -> String {
    let targets: Vec<_> = config.targets.iter().map(|target| target.name()).collect();
    // PEFT takes alpha for an integer by convention; fractions are valid too.
    let alpha = if config.alpha.fract() == 0.0 && config.alpha < 1e15 {
        json!(config.alpha as u64)
    } else {
        json!(config.alpha)
    };
    let object = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "auto_mapping": null,
        "base_model_name_or_path": base_model,
        "revision": null,
        "inference_mode": true,
        "r": config.rank,
        "target_modules": targets,
        "exclude_modules": null,
        "lora_alpha": alpha,
        "lora_dropout": config.dropout,
        "fan_in_fan_out": false,
        "bias": "none",
        "use_rslora": config.rslora,
        "modules_to_save": null,
        "init_lora_weights": true,
        "layers_to_transform": null,
        "layers_pattern": null,
        "rank_pattern": {},
        "alpha_pattern": {},
        "megatron_config": null,
        "megatron_core": "megatron.core",
        "loftq_config": {},
        "use_dora": false,
        "layer_replication": null,
        "lora_bias": false,
    });
    format!("{object:#}\n")
}

struct Fields<'a>(&'a Map<String, Value>);

impl Fields<'_> {
    fn wrong(&self, field: &'static str, expected: &'static str) -> PeftConfigError {
        let found = self.0.get(field).map_or_else(|| "missing".to_owned(), shorten);
        PeftConfigError::Field { field, found, expected }
    }

    /// Checks that a field is one of `accepted`, or, where that is allowed, missing or null.
    fn text(
        &self,
        field: &'static str,
        accepted: &[&'static str],
        optional: bool,
    ) -> Result<(), PeftConfigError> {
        match self.0.get(field) {
            None | Some(Value::Null) if optional => Ok(()),
            Some(Value::String(text)) if accepted.contains(&text.as_str()) => Ok(()),
            _ => Err(self.wrong(field, accepted[0])),
        }
    }

    fn check_init(&self) -> Result<(), PeftConfigError> {
        let field = "init_lora_weights";
        match self.0.get(field) {
            None | Some(Value::Null | Value::Bool(_)) => Ok(()),
            Some(Value::String(text)) if PLAIN_INITS.contains(&text.as_str()) => Ok(()),
            Some(value) => Err(PeftConfigError::Unsupported {
                field,
                found: shorten(value),
                neutral: "init_lora_weights true, or convert it to plain LoRA with PEFT",
            }),
        }
    }

    fn rank(&self) -> Result<usize, PeftConfigError> {
        let rank = self.0.get("r").and_then(Value::as_u64);
        rank.and_then(|rank| usize::try_from(rank).ok())
            .ok_or_else(|| self.wrong("r", "the rank, a whole number,"))
    }

    fn number(&self, field: &'static str, default: Option<f64>) -> Result<f64, PeftConfigError> {
        match (self.0.get(field), default) {
            (None | Some(Value::Null), Some(default)) => Ok(default),
            (Some(value), _) => value.as_f64().ok_or_else(|| self.wrong(field, "a number")),
            (None, None) => Err(self.wrong(field, "a number")),
        }
    }

    fn flag(&self, field: &'static str) -> Result<bool, PeftConfigError> {
        match self.0.get(field) {
            None | Some(Value::Null) => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(field, "true or false")),
        }
    }

    fn targets(&self) -> Result<TargetModules, PeftConfigError> {
        const EXPECTED: &str = "a list of module names such as [\"q_proj\", \"v_proj\"]";
        let field = "target_modules";
        if self.0.get("exclude_modules").is_some_and(|excluded| !is_neutral(excluded)) {
            return Ok(TargetModules::Pattern);
        }
        match self.0.get(field) {
            Some(Value::String(text)) if text == "all-linear" => {
                Ok(TargetModules::Listed(Target::ALL.to_vec()))
            }
            Some(Value::String(_)) => Ok(TargetModules::Pattern),
            Some(Value::Array(names)) => {
                let mut targets = Vec::with_capacity(names.len());
                let mut in_all_layers = true;
                for name in names {
                    let name = name.as_str().ok_or_else(|| self.wrong(field, EXPECTED))?;
                    let target = target_named(name)?;
                    targets.push(target);
                    in_all_layers &= [target.name(), target.path()].contains(&name);
                }
                targets.sort_unstable();
                targets.dedup();
                Ok(match in_all_layers {
                    true => TargetModules::Listed(targets),
                    false => TargetModules::Pattern,
                })
            }
            _ => Err(self.wrong(field, EXPECTED)),
        }
    }
}

/// PEFT adapts every module whose name is `name` or ends in `.name`; its last part is the target.
fn target_named(name: &str) -> Result<Target, LoraConfigError> {
    let last = name.rsplit('.').next().unwrap_or(name);
    last.parse().map_err(|_| LoraConfigError::UnknownTarget { name: name.to_owned() })
}

fn is_neutral(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

fn shorten(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 {
        return text;
    }
    text.chars().take(57).chain("...".chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Map<String, Value> {
        let config = LoraConfig::new(8, 16.0, &[Target::QProj, Target::VProj]).unwrap();
        serde_json::from_str(&to_json(&config, Some("org/base"))).unwrap()
    }

    fn read(object: &Map<String, Value>) -> Result<PeftConfig, PeftConfigError> {
        PeftConfig::from_json(&serde_json::to_vec(object).unwrap())
    }

    fn with(field: &str, value: Value) -> Result<PeftConfig, PeftConfigError> {
        let mut object = plain();
        object.insert(field.into(), value);
        read(&object)
    }

    #[test]
    fn what_is_written_reads_back() {
        let config = read(&plain()).unwrap();
        let targets = TargetModules::Listed(vec![Target::QProj, Target::VProj]);
        assert_eq!(
            config,
            PeftConfig {
                rank: 8,
                alpha: 16.0,
                dropout: 0.0,
                rslora: false,
                targets,
                base_model: Some("org/base".into()),
            }
        );
        assert_eq!(plain()["lora_alpha"], json!(16));
    }

    #[test]
    fn every_feature_that_changes_the_adapter_is_refused_by_name() {
        for (field, value) in [
            ("rank_pattern", json!({"q_proj": 4})),
            ("alpha_pattern", json!({"q_proj": 4})),
            ("modules_to_save", json!(["lm_head"])),
            ("use_dora", json!(true)),
            ("fan_in_fan_out", json!(true)),
            ("layers_to_transform", json!([0])),
            ("layers_to_transform", json!(0)),
            ("lora_bias", json!(true)),
            ("target_parameters", json!(["w"])),
            ("init_lora_weights", json!("pissa_niter_4")),
            ("init_lora_weights", json!("loftq")),
            ("bias", json!("all")),
            ("task_type", json!("SEQ_CLS")),
            ("peft_type", json!("IA3")),
            ("r", json!("8")),
            ("r", json!(2.5)),
            ("lora_alpha", json!(null)),
            ("use_rslora", json!("yes")),
            ("target_modules", json!(null)),
        ] {
            let error = with(field, value).unwrap_err().to_string();
            assert!(error.starts_with(&format!("field {field} is ")), "{error}");
        }
        let error = with("target_modules", json!(["lm_head"])).unwrap_err().to_string();
        assert!(error.contains("unknown LoRA target \"lm_head\""), "{error}");
    }

    #[test]
    fn features_that_are_off_and_fields_of_later_versions_do_no_harm() {
        for (field, value) in [
            ("rank_pattern", json!(null)),
            ("modules_to_save", json!([])),
            ("init_lora_weights", json!("gaussian")),
            ("task_type", json!(null)),
            ("a_field_of_a_later_version", json!({"x": [1]})),
        ] {
            assert_eq!(with(field, value), read(&plain()), "{field}");
        }
    }

    #[test]
    fn targets_may_be_paths_patterns_or_all_linear() {
        let targets = |value| with("target_modules", value).unwrap().targets;
        assert_eq!(
            targets(json!(["mlp.up_proj", "self_attn.q_proj", "q_proj"])),
            TargetModules::Listed(vec![Target::QProj, Target::UpProj])
        );
        assert_eq!(targets(json!("all-linear")), TargetModules::Listed(Target::ALL.to_vec()));
        assert_eq!(targets(json!(".*\\.(q|v)_proj")), TargetModules::Pattern);
        assert_eq!(targets(json!(["0.self_attn.q_proj", "v_proj"])), TargetModules::Pattern);
        let mut object = plain();
        object.insert("exclude_modules".into(), json!(["lm_head"]));
        assert_eq!(read(&object).unwrap().targets, TargetModules::Pattern);
    }

    #[test]
    fn bytes_that_are_no_object_are_refused() {
        for bytes in [&b""[..], b"[1]", b"{\"peft_type\": ", b"\xff\xfe"] {
            assert!(matches!(PeftConfig::from_json(bytes), Err(PeftConfigError::Json { .. })));
        }
    }
}
