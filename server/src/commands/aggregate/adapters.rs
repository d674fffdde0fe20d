//! Adapters that clients sent, read so that they can be combined: of one meaning, and of one strength.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context as _, anyhow};
use fleetune_core::adapter::{CONFIG_FILE, ParameterSet, TrainedFactors, read_parameters};
use serde_json::{Value, json};

use crate::aggregate::Combine;

/// A client's adapter. Where products are combined, its rank may differ from the global adapter's,
/// and so may its strength: B takes in the difference.
pub fn read_update(folder: &Path, global: &[u8], combine: Combine) -> anyhow::Result<ParameterSet> {
    let mut weights = read_parameters(folder)?;
    let Some(theirs) = read_config(folder)? else { return Ok(weights) };
    if !matches!(combine, Combine::Product | Combine::Stack) {
        check_same_adapter(global, &theirs, folder, &MEANING)?;
        return Ok(weights);
    }
    let meaning: Vec<&str> = MEANING
        .into_iter()
        .filter(|field| !["r", "lora_alpha", "use_rslora"].contains(field))
        .collect();
    check_same_adapter(global, &theirs, folder, &meaning)?;
    let parse = |bytes| serde_json::from_slice::<Value>(bytes).context(CONFIG_FILE);
    let (mine, theirs) = (parse(global)?, parse(&theirs)?);
    for config in [&mine, &theirs] {
        if let Some(field) = PATTERNS.into_iter().find(|field| value(config, field) != json!({})) {
            anyhow::bail!(
                "{}: with {field} modules differ in rank or strength, which {combine} does not \
                 follow: use --combine factors",
                folder.join(CONFIG_FILE).display()
            );
        }
    }
    let factor = scale_of(&theirs)? / scale_of(&mine)?;
    let names: Vec<String> = weights.iter().map(|entry| entry.name.clone()).collect();
    for (name, values) in names.iter().zip(weights.values_mut()) {
        if factor != 1.0 && TrainedFactors::B.include(name) {
            values.iter_mut().for_each(|v| *v = (f64::from(*v) * factor) as f32);
        }
    }
    Ok(weights)
}

/// The factor before B·A.
pub fn scale_of(config: &Value) -> anyhow::Result<f64> {
    let number = |field: &str| {
        let found = config.get(field).and_then(Value::as_f64).filter(|&number| number > 0.0);
        found.ok_or_else(|| anyhow!("{CONFIG_FILE}: {field} is missing or no positive number"))
    };
    Ok(number("lora_alpha")? / divisor(config, number("r")? as usize))
}

/// What alpha is divided by at rank `rank`.
pub fn divisor(config: &Value, rank: usize) -> f64 {
    let rslora = config.get("use_rslora").and_then(Value::as_bool) == Some(true);
    if rslora { (rank as f64).sqrt() } else { rank as f64 }
}

pub fn read_config(folder: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    let path = folder.join(CONFIG_FILE);
    match fs::read(&path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(anyhow!("cannot read {}: {error}", path.display())),
    }
}

/// Fields that decide what an adapter's tensors mean. Where they differ, a mean of the tensors is
/// no mean of the adapters.
const MEANING: [&str; 7] =
    ["peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern"];

/// Fields that give some modules another rank or strength.
const PATTERNS: [&str; 2] = ["rank_pattern", "alpha_pattern"];

fn check_same_adapter(
    global: &[u8],
    update: &[u8],
    folder: &Path,
    meaning: &[&str],
) -> anyhow::Result<()> {
    let update: Value = serde_json::from_slice(update)
        .with_context(|| format!("{} is no JSON", folder.join(CONFIG_FILE).display()))?;
    let global: Value = serde_json::from_slice(global)
        .with_context(|| format!("the global adapter's {CONFIG_FILE} is no JSON"))?;
    for &field in meaning {
        let (mine, theirs) = (value(&global, field), value(&update, field));
        let known = !mine.is_null() && !theirs.is_null();
        let alike = mine == theirs || (mine.is_number() && mine.as_f64() == theirs.as_f64());
        if known && !alike {
            let path = folder.join(CONFIG_FILE);
            anyhow::bail!(
                "{}: {field} is {theirs}, but the global adapter's is {mine}",
                path.display()
            );
        }
    }
    Ok(())
}

/// A field, or what PEFT takes it for where it is missing; null where that is not known.
fn value(config: &Value, field: &str) -> Value {
    match config.get(field) {
        Some(value) if !value.is_null() => value.clone(),
        _ if PATTERNS.contains(&field) => json!({}),
        _ if field.starts_with("use_") => json!(false),
        _ => Value::Null,
    }
}
