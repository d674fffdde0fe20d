//! Files become rows, or an error that names the place.

use super::*;

#[test]
fn malformed_rows_are_named_with_line_and_field() {
    let good = r#"{"instruction":"a","response":"b"}"#;
    let cases = [
        (
            format!("{good}\n\n{{\"instruction\":\"a\"}}"),
            ":3: field `response` is missing; the row has `instruction`",
        ),
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
    let files = DataSource { files: vec!["x.jsonl".into()], ..DataSource::default() };
    assert!(matches!(open("demo", &files), DatasetError::FilesForDemo));
    assert!(matches!(open("alpaca,gsm8k", &files), DatasetError::FilesForMixture { count: 2 }));
    assert!(open("alpaca", &files).to_string().starts_with("cannot open x.jsonl"));
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
        error.contains("1 row skipped because chosen and rejected answer are the same"),
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
