//! The data layer as its users see it, with a toy tokenizer; the real one is checked against the
//! golden token ids in `tests/`.

use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;

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

#[test]
fn alpaca_and_vicuna_supervise_the_answer_and_its_end() {
    let row = instruction("Add 1 and 1.", "2");
    let alpaca = Encoder::new(Template::Alpaca, &TOY, 500).unwrap();
    let example = alpaca.example(&row).unwrap().unwrap();
    assert_eq!(
        decode(&example.ids),
        "<s>Below is an instruction that describes a task. Write a response that appropriately \
         completes the request.\n\n### Instruction:\nAdd 1 and 1. \n\n### Response: 2<e>"
    );
    assert_eq!(learnt(&example), " 2<e>");
    let prompt = alpaca.prompt(&row).unwrap();
    assert!(example.ids.starts_with(&prompt) && decode(&prompt).ends_with("### Response:"));

    let vicuna = Encoder::new(Template::Vicuna, &TOY, 500).unwrap();
    let example = vicuna.example(&row).unwrap().unwrap();
    assert!(decode(&example.ids).ends_with("USER: Add 1 and 1. ASSISTANT: 2<e>"));
    assert_eq!(learnt(&example), " 2<e>");
}

#[test]
fn a_chat_supervises_every_assistant_turn_with_its_end_and_nothing_else() {
    let row = record(Content::Chat {
        messages: vec![
            Message::new(Role::System, "s"),
            Message::new(Role::User, "say yes"),
            Message::new(Role::Assistant, " yes "),
            Message::new(Role::User, "again: yes"),
            Message::new(Role::Assistant, "yes"),
            Message::new(Role::User, "never answered"),
        ],
    });
    let chat = Encoder::new(Template::Chat, &TOY, 500).unwrap();
    let example = chat.example(&row).unwrap().unwrap();
    assert_eq!(learnt(&example), "yes<e>yes<e>");
    assert_eq!(
        decode(&example.ids),
        "<s>[system]\ns<e>\n[user]\nsay yes<e>\n[assistant]\nyes<e>\n[user]\nagain: yes<e>\n[assistant]\nyes<e>"
    );
    let vicuna = Encoder::new(Template::Vicuna, &TOY, 500).unwrap();
    assert_eq!(learnt(&vicuna.example(&row).unwrap().unwrap()), "  yes <e> yes<e>");
    let alpaca = Encoder::new(Template::Alpaca, &TOY, 500).unwrap();
    assert!(matches!(alpaca.example(&row), Err(EncodeError::SeveralTurns)));
}

#[test]
fn an_example_cut_before_its_answer_is_dropped() {
    let row = instruction("\n### Response: not the answer", "2");
    let full = Encoder::new(Template::Alpaca, &TOY, 500).unwrap().example(&row).unwrap().unwrap();
    // A blank, the digit and the end token.
    let answer = full.ids.len() - 3;
    for (seq_len, left) in [(answer, None), (answer + 1, Some(" ")), (answer + 2, Some(" 2"))] {
        let encoder = Encoder::new(Template::Alpaca, &TOY, seq_len).unwrap();
        let example = encoder.example(&row).unwrap();
        assert_eq!(example.as_ref().map(learnt).as_deref(), left);
    }
    assert!(matches!(Encoder::new(Template::Alpaca, &TOY, 2), Err(EncodeError::SeqLen(2))));
}

#[test]
fn the_begin_token_stands_once_in_front_where_the_model_wants_it() {
    for template in Template::ALL {
        let example = Encoder::new(template, &TOY, 500).unwrap().example(&instruction("a", "b"));
        let ids = example.unwrap().unwrap().ids;
        assert_eq!(ids.iter().filter(|id| **id == 2).count(), 1, "{template}");
        assert_eq!(ids[0], 2);
    }
    let plain = Characters { bos: false };
    let example = Encoder::new(Template::Vicuna, &plain, 500).unwrap();
    let example = example.example(&instruction("a", "b")).unwrap().unwrap();
    assert_ne!(example.ids[0], 2);
    assert_eq!(example.ids.len(), example.supervised.len());
}

#[test]
fn a_pair_is_a_shared_prompt_and_two_whole_answers() {
    let row = preference("q", "yes, so", "yes, no");
    for (template, prompt, answers) in [
        (Template::Vicuna, "USER: q ASSISTANT:", [" yes, so<e>", " yes, no<e>"]),
        (Template::Alpaca, "q \n\n### Response:", [" yes, so<e>", " yes, no<e>"]),
        (Template::Chat, "[user]\nq<e>\n[assistant]\n", ["yes, so<e>", "yes, no<e>"]),
    ] {
        let encoder = Encoder::new(template, &TOY, 500).unwrap();
        let pair = encoder.pair(&row).unwrap().unwrap();
        assert!(decode(&pair.prompt).ends_with(prompt), "{template}: {}", decode(&pair.prompt));
        assert_eq!([decode(&pair.chosen), decode(&pair.rejected)], answers);
        assert_eq!(encoder.prompt(&row).unwrap(), pair.prompt);
        assert!(matches!(encoder.example(&row), Err(EncodeError::IsPreference)));
        assert!(matches!(encoder.pair(&instruction("a", "b")), Err(EncodeError::NoPreference)));
    }
}

#[test]
fn a_pair_too_long_keeps_the_prompts_end_and_the_answers_beginnings() {
    let row = preference(&"x".repeat(50), "abcdefgh", "abcdefgz");
    let pair = |seq_len| Encoder::new(Template::Vicuna, &TOY, seq_len).unwrap().pair(&row).unwrap();
    let cut = pair(40).unwrap();
    assert_eq!(cut.prompt.len() + cut.chosen.len(), 40);
    assert_eq!(decode(&cut.prompt), format!("<s>{} ASSISTANT:", "x".repeat(18)));
    assert_eq!(decode(&cut.chosen), " abcdefgh<e>");
    let cut = pair(18).unwrap();
    assert_eq!((decode(&cut.prompt).as_str(), cut.chosen.len()), ("<s>SISTANT:", 9));
    assert_eq!(pair(16), None, "without their last characters the answers are the same");
}

#[test]
fn malformed_rows_are_named_with_line_and_field() {
    let good = r#"{"instruction":"a","response":"b"}"#;
    let cases = [
        (format!("{good}\n\n{{\"instruction\":\"a\"}}"), ":3: field `response` is missing"),
        (format!("{good}\n{{\"instruction\":"), ":2: bad JSON: EOF while parsing"),
        (format!("{good}\n[1]"), ":2: the line holds an array, not a JSON object"),
        (
            "{\"instruction\":7,\"response\":\"b\"}".to_owned(),
            ":1: field `instruction` must be a string, but is a number",
        ),
        (
            "{\"instruction\":\"a\",\"input\":[],\"response\":\"b\"}".to_owned(),
            ":1: field `input` must be a string, but is an array",
        ),
        (String::new(), " holds no rows"),
    ];
    for (text, expected) in cases {
        let error = error_of("instruction", &text);
        assert!(error.starts_with(expected), "{error}");
    }
    let error = error_of("chat", r#"{"messages":[{"role":"user","content":"a"},{"role":"user"}]}"#);
    assert!(error.starts_with(":1: field `messages[1].content` is missing"), "{error}");
    let error = error_of("chat", r#"{"messages":[{"role":"user","content":"a"}]}"#);
    assert!(error.contains("nothing to learn"), "{error}");
}

#[test]
fn questions_of_where_the_rows_are_get_an_answer() {
    let open = |name, source: &DataSource| Dataset::open(name, source, None).unwrap_err();
    let none = DataSource::default();
    assert!(open("alpacca", &none).to_string().contains("known are demo, alpaca"));
    assert!(open("alpaca", &none).to_string().contains("--data-dir"));
    assert!(open("chat", &none).to_string().ends_with("Name a JSON Lines file with --data"));
    let empty = tempfile::tempdir().unwrap();
    let source = DataSource { data_dir: Some(empty.path().to_owned()), ..DataSource::default() };
    let error = open("fingpt", &source).to_string();
    for part in ["fingpt", "fpb", "fiqa_sa", "tfns", "nwgi", "fleetune data pull fingpt"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(matches!(open("alpaca,hh-rlhf", &source), DatasetError::MixedTasks { .. }));
    let map = "response=output".parse().unwrap();
    let error = Dataset::open("gsm8k", &source, Some(&map)).unwrap_err();
    assert!(matches!(error, DatasetError::MappingNotAllowed { .. }));
}

#[test]
fn a_users_own_fields_are_mapped() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), "mine.v2.jsonl", "{\"q\":\"1+1\",\"a\":\"2\",\"level\":3}\n");
    let source = DataSource { files: vec![file], ..DataSource::default() };
    let map = "instruction=q,response=a".parse().unwrap();
    let set = Dataset::open("instruction", &source, Some(&map)).unwrap();
    let row = set.record(0).unwrap();
    assert_eq!((row.question().as_str(), row.answer()), ("1+1", "2"));
    assert_eq!((row.field("level"), row.field("source")), (Some("3"), Some("mine")));
    assert_eq!(row.field("q"), None);
    assert!(matches!(set.record(1), Err(DatasetError::NoSuchRow { index: 1, rows: 1, .. })));
}

#[test]
fn a_mixture_numbers_rows_through_and_knows_where_they_are_from() {
    let folder = tempfile::tempdir().unwrap();
    let alpaca = "{\"instruction\":\"a\",\"input\":\"x\",\"output\":\"b\"}\n".repeat(3);
    write(folder.path(), "alpaca/train.jsonl", &alpaca);
    write(folder.path(), "gsm8k/train.jsonl", "{\"question\":\"q\",\"answer\":\"r\"}\n");
    let source = DataSource { data_dir: Some(folder.path().to_owned()), ..DataSource::default() };
    let set = Dataset::open("gsm8k, alpaca", &source, None).unwrap();
    assert_eq!((set.len(), set.name()), (4, "gsm8k,alpaca"));
    assert_eq!(set.record(0).unwrap().answer(), "r");
    assert_eq!(set.record(3).unwrap().question(), "a x");
    assert_eq!(set.record(3).unwrap().field("dataset"), Some("alpaca"));
    let shards = Partition::BySource.split(&set, &set.rows(), 2, 1, 0).unwrap();
    assert_eq!((&shards[0].rows, &shards[0].groups), (&vec![0], &vec!["gsm8k".to_owned()]));
    assert_eq!(shards[1].rows.len(), 3);
}

#[test]
fn fingpt_is_put_together_with_fingpts_prompts_and_labels() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    write(path, "fpb/sentences_50agree.jsonl", r#"{"sentence":"s1","label":"positive"}"#);
    let fiqa = |score: &str, format: &str| {
        format!(r#"{{"sentence":"s2","sentiment_score":"{score}","format":"{format}"}}"#)
    };
    let rows = [fiqa("0.1", "post"), fiqa("-0.1", "headline"), fiqa("-0.101", "post")].join("\n");
    write(path, "fiqa_sa/task1.jsonl", &rows);
    write(path, "tfns/train.jsonl", "{\"text\":\"s3\",\"label\":0}\n{\"text\":\"s4\",\"label\":2}");
    let seven = "What is the sentiment? {strong negative/…/strong positive}.";
    let nwgi = format!(
        r#"{{"context":"Instruction: {seven}\nInput: s5\nAnswer: ","target":"mildly positive"}}"#
    );
    write(path, "nwgi/test.jsonl", &nwgi);
    let source = DataSource { data_dir: Some(path.to_owned()), ..DataSource::default() };
    let set = Dataset::open("fingpt", &source, None).unwrap();
    let rows: Vec<_> = set.rows().iter().map(|&row| set.record(row).unwrap()).collect();
    let seen: Vec<_> = rows
        .iter()
        .map(|r| (r.question(), r.answer(), r.field("label").unwrap(), r.field("source").unwrap()))
        .collect();
    let (news, tweet) = (NEWS_INSTRUCTION, TWEET_INSTRUCTION);
    let expected = [
        (format!("{news} s1"), "positive", "positive", "fpb"),
        (format!("{tweet} s2"), "positive", "positive", "fiqa_sa"),
        (format!("{news} s2"), "neutral", "neutral", "fiqa_sa"),
        (format!("{tweet} s2"), "negative", "negative", "fiqa_sa"),
        (format!("{tweet} s3"), "negative", "negative", "tfns"),
        (format!("{tweet} s4"), "neutral", "neutral", "tfns"),
        (format!("{seven} s5"), "mildly positive", "neutral", "nwgi"),
    ];
    assert_eq!(seen, expected);
    let groups: Vec<_> = set.rows().iter().map(|&row| set.group(row).unwrap()).collect();
    assert!(groups[1] == groups[2] && groups[2] == groups[3] && groups[0] != groups[1]);

    let bad = "{\"text\":\"s\",\"label\":5}";
    write(path, "tfns/train.jsonl", bad);
    let error = Dataset::open("fingpt", &source, None).unwrap_err().to_string();
    assert!(error.contains("tfns/train.jsonl:1: field `label` is \"5\""), "{error}");
}

#[test]
fn unusable_pairs_are_counted_by_reason_and_a_set_of_nothing_else_is_refused() {
    let pair = |chosen: &str, rejected: &str| {
        format!(
            "{{\"chosen\":\"\\n\\nHuman: q{chosen}\",\"rejected\":\"\\n\\nHuman: q{rejected}\"}}"
        )
    };
    let same = pair("\\n\\nAssistant: a", "\\n\\nAssistant: a");
    let apart = pair("1\\n\\nAssistant: a", "2\\n\\nAssistant: b");
    let good = pair("\\n\\nAssistant: a", "\\n\\nAssistant: b");
    let set = open_text("hh-rlhf", &[&same, &good, &apart, &same].map(String::as_str).join("\n"));
    let set = set.unwrap();
    assert_eq!((set.len(), set.skipped().total()), (1, 3));
    let reasons: Vec<_> = set.skipped().by_reason().map(|(r, n, _)| (r, n)).collect();
    assert_eq!(reasons, [(SkipReason::SameAnswers, 2), (SkipReason::NoCommonPrompt, 1)]);
    assert!(set.location(0).ends_with("rows.jsonl:2"));
    let error = open_text("hh-rlhf", &same).unwrap_err().to_string();
    assert!(
        error.contains("1 rows skipped because chosen and rejected answer are the same"),
        "{error}"
    );
}

#[test]
fn math_instruct_leaves_out_repeated_instructions() {
    let row = |i: &str, o: &str| format!("{{\"instruction\":\"{i}\",\"output\":\"{o}\"}}\n");
    let set = open_text("math-instruct", &(row("a", "1") + &row("a", "2") + &row("b", "3")));
    let set = set.unwrap();
    assert_eq!(set.len(), 2);
    assert_eq!(
        set.skipped().by_reason().next().map(|(r, n, _)| (r, n)),
        Some((SkipReason::Duplicate, 1))
    );
}

#[test]
fn a_conversation_that_alpaca_cannot_hold_is_found_before_training() {
    let turn = |role: &str| format!("{{\"role\":\"{role}\",\"content\":\"x\"}}");
    let [u, a] = [turn("user"), turn("assistant")];
    let text = format!("{{\"messages\":[{u},{a}]}}\n{{\"messages\":[{u},{a},{u},{a}]}}\n");
    let set = open_text("chat", &text).unwrap();
    let error = set.check_template(Template::Alpaca).unwrap_err().to_string();
    assert!(error.contains("rows.jsonl:2: the alpaca template holds one question"), "{error}");
    assert!(set.check_template(Template::Vicuna).is_ok());
}

#[test]
fn the_demo_set_has_eight_skills_with_twelve_rows_held_out_of_each() {
    let demo = Dataset::demo().unwrap();
    let split = demo.split_holdout(HoldOut::Marked, 0).unwrap();
    assert!(demo.marks_holdout());
    assert_eq!((demo.len(), split.train.len(), split.held_out.len()), (480, 384, 96));
    let shards = Partition::BySource.split(&demo, &split.train, 8, 48, 0).unwrap();
    let skills: Vec<_> = shards.iter().map(|s| s.groups.join("+")).collect();
    let expected =
        ["units", "polite", "extract", "sort", "company", "dates", "triage", "checklist"];
    assert_eq!(skills, expected);
    for shard in Partition::BySource.split(&demo, &split.held_out, 8, 12, 0).unwrap() {
        assert_eq!(shard.rows.len(), 12);
    }
    let seen: std::collections::HashSet<_> =
        split.train.iter().map(|&row| demo.group(row).unwrap()).collect();
    assert!(split.held_out.iter().all(|&row| !seen.contains(&demo.group(row).unwrap())));
}

#[test]
fn a_hold_out_depends_on_seed_and_text_and_keeps_groups_together() {
    let row = |i: usize| format!("{{\"instruction\":\"q{}\",\"response\":\"{i}\"}}\n", i / 3);
    let text: String = (0..300).map(row).collect();
    let set = open_text("instruction", &text).unwrap();
    let split = set.split_holdout(HoldOut::Fraction(0.1), 7).unwrap();
    assert_eq!(split.held_out.len(), 30);
    assert_eq!(split.train.len() + split.held_out.len(), 300);
    for group in split.held_out.chunks(3) {
        assert!(group[0].is_multiple_of(3) && group[2] == group[0] + 2, "{group:?}");
    }
    assert_eq!(set.split_holdout(HoldOut::Fraction(0.1), 7).unwrap(), split);
    assert_ne!(set.split_holdout(HoldOut::Fraction(0.1), 8).unwrap(), split);
    assert_eq!(set.split_holdout(HoldOut::Rows(31), 7).unwrap().held_out.len(), 33);
    for bad in [HoldOut::Fraction(0.0), HoldOut::Fraction(f64::NAN), HoldOut::Fraction(1.0)] {
        assert!(matches!(set.split_holdout(bad, 7), Err(HoldOutError::Fraction(_))));
    }
    for bad in [HoldOut::Rows(0), HoldOut::Rows(300), HoldOut::Rows(299), HoldOut::Marked] {
        assert!(matches!(set.split_holdout(bad, 7), Err(HoldOutError::NothingLeft { .. })));
    }
}

/// 600 rows: `label` has three classes of 300, 200 and 100 rows.
fn labelled() -> Dataset {
    let class = |i: usize| ["a", "a", "a", "b", "b", "c"][i % 6];
    let row =
        |i| format!("{{\"instruction\":\"{i}\",\"response\":\"\",\"label\":\"{}\"}}\n", class(i));
    open_text("instruction", &(0..600).map(row).collect::<String>()).unwrap()
}

fn all_rows(shards: &[Shard]) -> Vec<u32> {
    let mut rows: Vec<u32> = shards.iter().flat_map(|s| s.rows.iter().copied()).collect();
    rows.sort_unstable();
    rows
}

/// Mean over clients of the share of a client's most frequent class.
fn concentration(set: &Dataset, shards: &[Shard]) -> f64 {
    let share = |shard: &Shard| {
        let mut counts = std::collections::HashMap::new();
        for &row in &shard.rows {
            let label = set.record(row).unwrap().field("label").unwrap().to_owned();
            *counts.entry(label).or_insert(0usize) += 1;
        }
        *counts.values().max().unwrap() as f64 / shard.rows.len() as f64
    };
    shards.iter().map(share).sum::<f64>() / shards.len() as f64
}

#[test]
fn every_partition_uses_each_row_once_and_follows_from_the_seed() {
    let set = labelled();
    for name in
        ["iid", "dirichlet:0.3", "dirichlet:1e-6", "dirichlet:1e6", "by-field:label", "by-source"]
    {
        let partition: Partition = name.parse().unwrap();
        assert_eq!(partition.to_string().parse::<Partition>().unwrap(), partition);
        let split = |seed| partition.split(&set, &set.rows(), 7, 1, seed).unwrap();
        assert_eq!(all_rows(&split(1)), set.rows(), "{name}");
        assert_eq!(split(1), split(1), "{name}");
        assert_ne!(split(1), split(2), "{name}");
    }
}

#[test]
fn a_small_alpha_concentrates_classes_and_a_large_one_does_not() {
    let set = labelled();
    let split = |alpha: f64| {
        let partition = Partition::Dirichlet { alpha, field: None };
        let shards = partition.split(&set, &set.rows(), 12, 50, 3).unwrap();
        assert!(shards.iter().all(|shard| shard.rows.len() == 50));
        concentration(&set, &shards)
    };
    let (small, medium, large) = (split(0.05), split(10.0), split(1e5));
    assert!(small > 0.65 && small > medium && medium > large, "{small} {medium} {large}");
    assert!((large - 0.5).abs() < 0.1, "half of all rows are of one class: {large}");
}

#[test]
fn groups_of_clients_share_a_field_value_and_few_clients_hold_several() {
    let set = labelled();
    let partition: Partition = "by-field:label".parse().unwrap();
    let shards = partition.split(&set, &set.rows(), 7, 1, 0).unwrap();
    let sizes: Vec<_> = shards.iter().map(|s| (s.groups[0].as_str(), s.rows.len())).collect();
    let expected =
        [("a", 100), ("b", 100), ("c", 50), ("a", 100), ("b", 100), ("c", 50), ("a", 100)];
    assert_eq!(sizes, expected);
    let shards = partition.split(&set, &set.rows(), 2, 1, 0).unwrap();
    assert_eq!(shards[0].groups, ["a"]);
    assert_eq!(shards[1].groups, ["b", "c"]);
}

#[test]
fn partitions_that_cannot_be_made_say_why() {
    let set = labelled();
    let split = |name: &str, clients, min| {
        let partition: Partition = name.parse().unwrap();
        partition.split(&set, &set.rows(), clients, min, 0).unwrap_err().to_string()
    };
    assert_eq!(split("iid", 0, 1), "rows cannot be spread over 0 clients");
    let error = split("by-field:label", 10, 60);
    assert!(error.contains("would hold 33 rows of c, fewer than the 60"), "{error}");
    assert!(split("iid", 601, 0).contains("would hold 0 rows"));
    let error = split("by-field:topic", 3, 1);
    assert!(error.contains("rows.jsonl:1") && error.contains("`topic`") && error.contains("label"));
    for bad in ["dirichlet:0", "dirichlet:-1", "dirichlet:nan", "dirichlet:x"] {
        assert!(matches!(bad.parse::<Partition>(), Err(PartitionNameError::Alpha(_))), "{bad}");
    }
    for bad in ["", "iid:3", "dirichlet", "dirichlet:1:", "by-field", "by-field:", "IID"] {
        assert!(matches!(bad.parse::<Partition>(), Err(PartitionNameError::Unknown(_))), "{bad}");
    }
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
