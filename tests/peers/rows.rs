//! Writes the token ids of a data set's first rows, one JSON object a line, so that another program
//! trains on the very tokens `fleetune train --no-shuffle` does.
//!
//! `peer-rows MODEL DATASET DATA_DIR TEMPLATE SEQ_LEN COUNT OUT`

use std::error::Error;
use std::io::Write;
use std::path::Path;

use fleetune_core::data::{DataSource, Dataset, Encoder, Template};
use fleetune_core::model::LoadedModel;
use serde_json::json;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, dataset, data_dir, template, seq_len, count, out] = &arguments[..] else {
        return Err("usage: peer-rows MODEL DATASET DATA_DIR TEMPLATE SEQ_LEN COUNT OUT".into());
    };
    let model = LoadedModel::open(Path::new(model))?;
    let tokenizer = model.tokenizer()?;
    let source = DataSource { data_dir: Some(data_dir.into()), ..DataSource::default() };
    let dataset = Dataset::open(dataset, &source, None)?;
    let template: Template = template.parse()?;
    let encoder = Encoder::new(template, tokenizer, seq_len.parse()?)?;
    let mut rows = Vec::new();
    for index in 0..dataset.len() as u32 {
        if rows.len() == count.parse::<usize>()? {
            break;
        }
        if dataset.is_preference() {
            rows.extend(dataset.pair(index, &encoder)?.map(|pair| {
                json!({"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected})
            }));
        } else {
            rows.extend(dataset.example(index, &encoder)?.map(|example| {
                let labels = example.ids.iter().zip(&example.supervised);
                let labels: Vec<i64> =
                    labels.map(|(&id, &is)| if is { i64::from(id) } else { -100 }).collect();
                json!({"input_ids": example.ids, "labels": labels})
            }));
        }
    }
    let mut file = std::fs::File::create(out)?;
    for row in rows {
        writeln!(file, "{row}")?;
    }
    Ok(())
}
