//! The data layer on real rows, against texts and token ids that Python libraries computed.
//!
//! Needs the folders of public data and reference values that `FLEETUNE_DATA` and
//! `FLEETUNE_REFERENCE` name; without them a test says so in one line and passes.

use std::path::{Path, PathBuf};

use fleetune_core::data::{
    Content, DataSource, Dataset, Encoder, HoldOut, Message, Partition, Role, SkipReason, Template,
    Tokenize, TokenizedExample, TokenizerError,
};
use fleetune_core::model::LoadedModel;
use serde_json::Value;

/// One token per character, to look at texts.
struct Characters;

impl Tokenize for Characters {
    fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        Ok(text.chars().map(u32::from).collect())
    }

    fn bos(&self) -> Option<u32> {
        None
    }

    fn eos(&self) -> u32 {
        0
    }

    fn render_chat(&self, _: &[Message], _: bool) -> Result<String, TokenizerError> {
        Err("not needed here".into())
    }
}

fn text(ids: &[u32]) -> String {
    ids.iter()
        .map(|id| char::from_u32(*id).unwrap())
        .collect::<String>()
        .replace('\0', "<|im_end|>")
}

fn folder(variable: &str) -> Option<PathBuf> {
    let folder = std::env::var_os(variable).map(PathBuf::from);
    if folder.is_none() {
        println!("skipped: {variable} is not set");
    }
    folder
}

fn reference(file: &str) -> Option<Value> {
    let path = folder("FLEETUNE_REFERENCE")?.join(file);
    Some(serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap())
}

/// The built-in model's tokenizer, from the cache.
fn smollm2() -> Option<LoadedModel> {
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache/fleetune"));
    let cache = std::env::var_os("FLEETUNE_CACHE").map(PathBuf::from).or_else(home)?;
    let file = cache.join("models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf");
    if !file.exists() {
        println!("skipped: {} is not there; `fleetune model pull` brings it", file.display());
        return None;
    }
    Some(LoadedModel::open(&file).unwrap())
}

fn open(name: &str, data_dir: &Path) -> Dataset {
    let source = DataSource { data_dir: Some(data_dir.to_owned()), ..DataSource::default() };
    Dataset::open(name, &source, None).unwrap()
}

/// The row on line `line` (from 0) of a file such as `alpaca/train`.
fn row_of(set: &Dataset, file: &str, line: u64) -> u32 {
    let location = format!("{file}.jsonl.zst:{}", line + 1);
    set.rows().into_iter().find(|&row| set.location(row).ends_with(&location)).unwrap()
}

fn set_of(file: &str) -> &'static str {
    match file.split('/').next().unwrap() {
        "alpaca" => "alpaca",
        "gsm8k" => "gsm8k",
        "fpb" => "fingpt",
        "code_alpaca" => "code-alpaca",
        "hh_rlhf" => "hh-rlhf",
        other => panic!("unexpected data set {other}"),
    }
}

fn labels_of(example: &TokenizedExample) -> Vec<i64> {
    let tokens = example.ids.iter().zip(&example.supervised);
    tokens.map(|(id, supervised)| if *supervised { i64::from(*id) } else { -100 }).collect()
}

#[test]
fn alpaca_texts_equal_openfedllms() {
    let (Some(data), Some(samples)) = (folder("FLEETUNE_DATA"), reference("smollm2/samples.json"))
    else {
        return;
    };
    let encoder = Encoder::new(Template::Alpaca, &Characters, 100_000).unwrap();
    for sample in samples.as_array().unwrap() {
        let file = sample["dataset"].as_str().unwrap();
        let set = open(set_of(file), &data);
        let row = row_of(&set, file, sample["row"].as_u64().unwrap());
        let example = set.example(row, &encoder).unwrap().unwrap();
        assert_eq!(text(&example.ids), sample["text"].as_str().unwrap());
    }
}

#[test]
fn alpaca_ids_and_masks_equal_the_reference() {
    let (Some(data), Some(samples)) = (folder("FLEETUNE_DATA"), reference("smollm2/samples.json"))
    else {
        return;
    };
    let Some(model) = smollm2() else { return };
    let encoder = Encoder::new(Template::Alpaca, model.tokenizer().unwrap(), 512).unwrap();
    for sample in samples.as_array().unwrap() {
        let file = sample["dataset"].as_str().unwrap();
        let set = open(set_of(file), &data);
        let row = row_of(&set, file, sample["row"].as_u64().unwrap());
        let example = set.example(row, &encoder).unwrap().unwrap();
        assert_eq!(serde_json::json!(example.ids), sample["input_ids"], "{file} {row}");
        assert_eq!(serde_json::json!(labels_of(&example)), sample["labels"], "{file} {row}");
        assert_eq!(serde_json::json!(example.supervised_tokens()), sample["supervised_tokens"]);
    }
}

#[test]
fn training_batches_equal_the_reference() {
    let (Some(data), Some(batches)) =
        (folder("FLEETUNE_DATA"), reference("smollm2_train/batches.json"))
    else {
        return;
    };
    let Some(model) = smollm2() else { return };
    let encoder = Encoder::new(Template::Alpaca, model.tokenizer().unwrap(), 256).unwrap();
    let set = open("alpaca", &data);
    for sample in batches.as_array().unwrap().iter().flat_map(|batch| batch.as_array().unwrap()) {
        let row =
            row_of(&set, sample["dataset"].as_str().unwrap(), sample["row"].as_u64().unwrap());
        let example = set.example(row, &encoder).unwrap().unwrap();
        assert_eq!(serde_json::json!(example.ids), sample["input_ids"], "row {row}");
        assert_eq!(serde_json::json!(labels_of(&example)), sample["labels"], "row {row}");
    }
}

#[test]
fn a_chat_learns_its_answers_and_equals_the_models_own_rendering() {
    let Some(conversations) = reference("smollm2/chat.json") else { return };
    let Some(model) = smollm2() else { return };
    let tokenizer = model.tokenizer().unwrap();
    let encoder = Encoder::new(Template::Chat, tokenizer, 512).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.jsonl");
    let (mut checked, end) = (0, tokenizer.eos());
    for conversation in conversations.as_array().unwrap() {
        let messages = conversation["messages"].as_array().unwrap();
        let answers: Vec<&str> = messages
            .iter()
            .filter(|m| m["role"] == "assistant")
            .map(|m| m["content"].as_str().unwrap())
            .collect();
        if answers.is_empty() {
            continue;
        }
        std::fs::write(&path, serde_json::json!({ "messages": messages }).to_string()).unwrap();
        let source = DataSource { files: vec![path.clone()], ..DataSource::default() };
        let set = Dataset::open("chat", &source, None).unwrap();
        let example = set.example(0, &encoder).unwrap().unwrap();
        let ids: Vec<u32> = serde_json::from_value(conversation["ids"].clone()).unwrap();
        assert!(ids.starts_with(&example.ids));
        assert_eq!(example.ids.last(), Some(&end));
        let learnt = example.ids.iter().zip(&example.supervised).filter(|(_, s)| **s);
        let learnt: Vec<u32> = learnt.map(|(id, _)| *id).collect();
        let said = answers.iter().flat_map(|text| {
            let mut ids = tokenizer.encode(text).unwrap();
            ids.push(end);
            ids
        });
        assert_eq!(learnt, said.collect::<Vec<_>>());
        checked += 1;
    }
    assert!(checked >= 2);
}

#[test]
fn hh_pairs_equal_openfedllms_where_replies_share_no_beginning_and_stay_whole_elsewhere() {
    let (Some(data), Some(pairs)) = (folder("FLEETUNE_DATA"), reference("smollm2/hh_vicuna.json"))
    else {
        return;
    };
    let set = open("hh-rlhf", &data);
    let encoder = Encoder::new(Template::Vicuna, &Characters, 100_000).unwrap();
    let mut shared = 0;
    for expected in pairs.as_array().unwrap() {
        let field = |name: &str| expected[name].as_str().unwrap().to_owned();
        let row = row_of(&set, &field("dataset"), expected["row"].as_u64().unwrap());
        let pair = set.pair(row, &encoder).unwrap().unwrap();
        assert_eq!(text(&pair.prompt), field("prompt"));
        let [chosen, rejected] = [&pair.chosen, &pair.rejected].map(|ids| text(ids));
        let [theirs, others] = ["chosen", "rejected"].map(|side| field(side) + "<|im_end|>");
        if expected["shared_reply_characters"] == 0 {
            assert_eq!([chosen, rejected], [theirs, others]);
            continue;
        }
        shared += 1;
        for (ours, theirs, side) in [(chosen, theirs, "chosen"), (rejected, others, "rejected")] {
            let source = expected["source"][side].as_str().unwrap();
            let whole = source.rsplit_once("\n\nAssistant:").unwrap().1;
            assert_eq!(ours, format!("{whole}<|im_end|>"));
            assert!(ours.len() > theirs.len() && ours.ends_with(&theirs));
        }
    }
    assert!(shared > 0 && shared < pairs.as_array().unwrap().len());
}

#[test]
fn every_named_set_opens_and_its_rows_can_be_read() {
    let Some(data) = folder("FLEETUNE_DATA") else { return };
    for (name, rows, sources) in [
        ("alpaca", 6000, 1),
        ("alpaca-gpt4", 799, 1),
        ("fingpt", 2423 + 586 + 8500 + 2023, 4),
        ("medalpaca", 5142, 1),
        ("code-alpaca", 1617 + 4000, 2),
        ("math-instruct", 6973 + 6500, 2),
        ("ultrafeedback", 900 - 3, 1),
        ("hh-rlhf", 1812 + 1854 - 2, 2),
        ("gsm8k", 6973, 1),
        ("math", 6500, 1),
    ] {
        let set = open(name, &data);
        assert_eq!(set.len(), rows, "{name}: {}", set.skipped());
        let mut found = std::collections::HashSet::new();
        for row in set.rows() {
            found.insert(set.record(row).unwrap().field("source").unwrap().to_owned());
        }
        assert_eq!(found.len(), sources, "{name}: {found:?}");
        let equal = set.skipped().by_reason().find(|(r, ..)| *r == SkipReason::SameAnswers);
        let expected = match name {
            "ultrafeedback" => 3,
            "hh-rlhf" => 2,
            _ => 0,
        };
        assert_eq!(equal.map_or(0, |(_, count, _)| count), expected, "{name}");
    }
}

#[test]
fn no_pair_of_hh_loses_the_beginning_of_a_reply() {
    let Some(data) = folder("FLEETUNE_DATA") else { return };
    let set = open("hh-rlhf", &data);
    for row in set.rows() {
        let Content::Preference { prompt, chosen, rejected } = set.record(row).unwrap().content
        else {
            panic!("row {row} is no preference");
        };
        assert_eq!(prompt.last().map(|m| m.role), Some(Role::User));
        assert_ne!(chosen, rejected);
        assert!(prompt.windows(2).all(|turns| turns[0].role != turns[1].role));
    }
}

#[test]
fn fingpt_holds_out_whole_sentences_and_spreads_by_label_and_source() {
    let Some(data) = folder("FLEETUNE_DATA") else { return };
    let set = open("fingpt", &data);
    let split = set.split_holdout(HoldOut::Fraction(0.05), 42).unwrap();
    let share = split.held_out.len() as f64 / set.len() as f64;
    assert!((share - 0.05).abs() < 1e-3, "{share}");
    let sentence = |row: u32| match set.record(row).unwrap().content {
        Content::Instruction { input, .. } => input.unwrap().trim().to_owned(),
        other => panic!("{other:?}"),
    };
    let trained: std::collections::HashSet<_> = split.train.iter().map(|r| sentence(*r)).collect();
    assert!(split.held_out.iter().all(|row| !trained.contains(&sentence(*row))));
    let label = |row: &u32| set.record(*row).unwrap().field("label").unwrap().to_owned();
    let partition: Partition = "dirichlet:0.1".parse().unwrap();
    let shards = partition.split(&set, &split.train, 8, 1000, 0).unwrap();
    for shard in &shards {
        let first = label(&shard.rows[0]);
        assert!(["negative", "neutral", "positive"].contains(&first.as_str()));
    }
    let shards = Partition::BySource.split(&set, &split.train, 8, 100, 0).unwrap();
    let groups: Vec<_> = shards.iter().map(|shard| shard.groups.join("+")).collect();
    assert_eq!(groups[..4], ["fpb", "fiqa_sa", "tfns", "nwgi"]);
    assert_eq!(groups[..4], groups[4..]);
}
