//! The data layer as its users see it, with a toy tokenizer; the real one is checked against the
//! golden token ids in `tests/`.

use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;

mod encoding;
mod opening;
mod spreading;

/// One token per character; `<e>` is the end token 1 and `<s>` the begin token 2.
struct Characters {
    bos: bool,
}

impl Tokenize for Characters {
    fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let text = text.replace("<e>", "\u{1}").replace("<s>", "\u{2}");
        Ok(text.chars().map(u32::from).collect())
    }

    fn bos(&self) -> Option<u32> {
        self.bos.then_some(2)
    }

    fn eos(&self) -> u32 {
        1
    }

    fn render_chat(&self, turns: &[Message], open_answer: bool) -> Result<String, TokenizerError> {
        if turns.windows(2).any(|pair| pair[0].role == pair[1].role) {
            return Err("roles must alternate".into());
        }
        let mut text = "<s>".to_owned();
        for turn in turns {
            text += &format!("[{}]\n{}<e>\n", turn.role.name(), turn.content.trim());
        }
        if open_answer {
            text += "[assistant]\n";
        }
        Ok(text)
    }
}

const TOY: Characters = Characters { bos: true };

fn decode(ids: &[u32]) -> String {
    let text = |id: &u32| match id {
        1 => "<e>".to_owned(),
        2 => "<s>".to_owned(),
        id => char::from_u32(*id).unwrap().to_string(),
    };
    ids.iter().map(text).collect()
}

fn learnt(example: &TokenizedExample) -> String {
    let ids = example.ids.iter().zip(&example.supervised);
    decode(&ids.filter(|(_, s)| **s).map(|(id, _)| *id).collect::<Vec<_>>())
}

fn record(content: Content) -> Record {
    Record { content, fields: Vec::new() }
}

fn instruction(instruction: &str, response: &str) -> Record {
    record(Content::Instruction {
        instruction: instruction.to_owned(),
        input: None,
        response: response.to_owned(),
    })
}

fn preference(prompt: &str, chosen: &str, rejected: &str) -> Record {
    record(Content::Preference {
        prompt: vec![Message::new(Role::User, prompt)],
        chosen: chosen.to_owned(),
        rejected: rejected.to_owned(),
    })
}

fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, text).unwrap();
    path
}

fn open_text(name: &str, text: &str) -> Result<Dataset, DatasetError> {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), "rows.jsonl", text);
    Dataset::open(name, &DataSource { files: vec![file], ..DataSource::default() }, None)
}

fn error_of(name: &str, text: &str) -> String {
    let error = open_text(name, text).unwrap_err().to_string();
    error.rsplit_once("rows.jsonl").map_or(error.clone(), |(_, rest)| rest.to_owned())
}

fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        ".{0,12}".prop_map(Into::into),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        let key = prop::sample::select(vec![
            "instruction",
            "input",
            "output",
            "response",
            "messages",
            "role",
            "content",
            "from",
            "value",
            "prompt",
            "chosen",
            "rejected",
            "sentence",
            "label",
            "text",
            "context",
            "target",
            "format",
            "sentiment_score",
            "question",
            "answer",
            "problem",
            "solution",
        ]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::vec((key, inner), 0..5).prop_map(|pairs| {
                pairs
                    .into_iter()
                    .map(|(k, v)| (k.to_owned(), v))
                    .collect::<serde_json::Map<_, _>>()
                    .into()
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn arbitrary_bytes_are_read_or_refused_but_never_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..400),
        head in prop::sample::select(vec![&b""[..], b"\x1f\x8b\x08\0", b"\x28\xb5\x2f\xfd", b"{\"a\":"]),
    ) {
        bytes.splice(0..0, head.iter().copied());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows");
        std::fs::write(&path, &bytes).unwrap();
        let source = DataSource { files: vec![path], ..DataSource::default() };
        let _ = Dataset::open("instruction", &source, None);
        let _ = Dataset::open("hh-rlhf", &source, None);
    }

    #[test]
    fn any_json_row_is_converted_or_refused_but_never_panics(row in any_json()) {
        let text = row.to_string();
        for set in NAMED_SETS.iter().filter(|set| set.name != "demo") {
            if let Ok(set) = open_text(set.name, &text) {
                let record = set.record(0);
                // The file of `open_text` is gone, but its handle is held open.
                prop_assert!(record.is_ok());
            }
        }
    }

    #[test]
    fn any_text_round_trips_through_every_template(
        question in ".{0,40}", answer in "(.|\n### Response:| ASSISTANT:){0,20}", other in ".{0,20}",
        seq_len in 4usize..400,
    ) {
        // The toy's special tokens are text of its own.
        prop_assume!(!question.contains(['\u{1}', '\u{2}']) && !answer.contains(['\u{1}', '\u{2}']));
        for template in Template::ALL {
            let whole = Encoder::new(template, &TOY, 100_000).unwrap();
            let example = whole.example(&instruction(&question, &answer)).unwrap().unwrap();
            prop_assert_eq!(example.ids.len(), example.supervised.len());
            prop_assert_eq!(example.ids.last(), Some(&1));
            prop_assert_eq!(example.supervised.last(), Some(&true));
            let said = answer.trim();
            let learnt = learnt(&example);
            prop_assert!(
                learnt.trim_end_matches("<e>").trim().len() <= said.len(),
                "{} is more than {}", learnt, said
            );
            let encoder = Encoder::new(template, &TOY, seq_len).unwrap();
            if let Some(cut) = encoder.example(&instruction(&question, &answer)).unwrap() {
                prop_assert!(cut.ids.len() <= seq_len && example.ids.starts_with(&cut.ids));
            }
            if let Some(pair) = encoder.pair(&preference(&question, &answer, &other)).unwrap() {
                prop_assert!(!pair.prompt.is_empty() && pair.chosen != pair.rejected);
                let longest = pair.chosen.len().max(pair.rejected.len());
                prop_assert!(pair.prompt.len() + longest <= seq_len);
            }
        }
    }
}
