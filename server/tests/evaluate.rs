//! Whole runs of suites against a model made up here, on data made up here.

use std::collections::{BTreeSet, HashSet};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fleetune_core::data::{Message, Template};
use fleetune_core::train::Evaluation;
use fleetune_server::evaluate::data::DataFolder;
use fleetune_server::evaluate::grading::{Grading, Tools, Verdict};
use fleetune_server::evaluate::journal::Journal;
use fleetune_server::evaluate::judge::{Judge, JudgeError};
use fleetune_server::evaluate::model::{
    GenerateRequest, Identity, LanguageModel, ModelError, ScoreRequest,
};
use fleetune_server::evaluate::result::EvaluationResult;
use fleetune_server::evaluate::run::{Plan, RunError, Watcher, Work, run};
use fleetune_server::evaluate::suite::{Asking, Graded, Question, Scoring, SuiteOptions, Wrapping};
use fleetune_server::evaluate::suites;
use fleetune_server::training::ComputePrecision;
use serde_json::{Value, json};

/// A model whose tokens are bytes. It finds texts likely that hold `likes`, and writes `says`.
struct Fake {
    likes: &'static str,
    says: &'static str,
    calls: usize,
    prompts: Vec<String>,
}

impl Fake {
    fn new(likes: &'static str, says: &'static str) -> Self {
        Self { likes, says, calls: 0, prompts: Vec::new() }
    }
}

fn text(ids: &[u32]) -> String {
    String::from_utf8(ids.iter().map(|&id| id as u8).collect()).unwrap()
}

impl LanguageModel for Fake {
    fn identity(&self) -> Identity {
        Identity {
            model: "fake".to_owned(),
            model_sha256: "0".to_owned(),
            adapter: None,
            adapter_sha256: None,
            settings_sha256: String::new(),
            precision: ComputePrecision::F32,
        }
    }

    fn max_tokens(&self) -> usize {
        4096
    }

    fn encode(&self, text: &str, _start: bool) -> Result<Vec<u32>, ModelError> {
        Ok(text.bytes().map(u32::from).collect())
    }

    fn render(&self, template: Template, messages: &[Message]) -> Result<String, ModelError> {
        let lines = messages.iter().map(|m| format!("<{}>{}\n", m.role.name(), m.content));
        Ok(format!("[{template}]\n{}<assistant>", lines.collect::<String>()))
    }

    fn score(&mut self, requests: &[ScoreRequest]) -> Result<Vec<Vec<Evaluation>>, ModelError> {
        let score = |continuation: &Vec<u32>| {
            let liked = text(continuation).contains(self.likes);
            let loss = if liked { 1.0 } else { 2.0 };
            Evaluation { loss_sum: loss, supervised_tokens: continuation.len(), correct_tokens: 0 }
        };
        self.calls += requests.len();
        self.prompts.extend(requests.iter().map(|request| text(&request.prefix)));
        Ok(requests.iter().map(|r| r.continuations.iter().map(score).collect()).collect())
    }

    fn generate(
        &mut self,
        requests: &[GenerateRequest],
        done: &mut dyn FnMut(usize, Vec<String>) -> ControlFlow<()>,
    ) -> Result<(), ModelError> {
        for (number, request) in requests.iter().enumerate() {
            self.calls += 1;
            self.prompts.push(text(&request.prompt));
            if done(number, vec![self.says.to_owned(); request.options.samples]).is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// Stops after so many pieces of work.
struct StopAfter(usize);

impl Watcher for StopAfter {
    fn begin(&mut self, _suite: &str, _work: Work, _total: usize, _done: usize) {}

    fn advance(&mut self, amount: usize) {
        self.0 = self.0.saturating_sub(amount);
    }

    fn stop(&self) -> bool {
        self.0 == 0
    }
}

fn write_rows(folder: &Path, name: &str, rows: &[Value]) {
    let path = folder.join(format!("{name}.jsonl"));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    std::fs::write(path, lines.join("\n")).unwrap();
}

/// Two rows of every data set that the runs below read.
fn data() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, rows: &[Value]| write_rows(dir.path(), name, rows);
    write(
        "fpb/sentences_50agree",
        &[
            json!({"sentence": "Profit rose .", "label": "positive"}),
            json!({"sentence": "Loss grew .", "label": "negative"}),
        ],
    );
    let question = |subject: &str, answer: usize| {
        json!({"subject": subject, "question": "Which?", "choice0": "w", "choice1": "x",
               "choice2": "y", "choice3": "z", "answer": answer})
    };
    write("mmlu/test", &[question("anatomy", 1), question("astronomy", 2)]);
    write("mmlu/dev", &[question("anatomy", 0), question("astronomy", 3)]);
    write("bbh/examples", &[json!({"task": "navigate", "input": "Go?", "target": "Yes"})]);
    write(
        "bbh/cot_prompts",
        &[json!({"task": "navigate", "prompt": "c\n-----\nDo.\n\nQ: a\nA: So the answer is No."})],
    );
    write("drop/dev", &[json!({"context": "Question: how many?\nAnswer:", "ref_text": "Yes|47"})]);
    write("gsm8k/test", &[json!({"question": "2 + 2?", "answer": "It is 4.\n#### 4"})]);
    write("gsm8k/train", &[json!({"question": "1 + 1?", "answer": "It is 2.\n#### 2"})]);
    write(
        "mt_bench/question",
        &[json!({"question_id": 1, "category": "writing", "turns": ["Write.", "Again."]})],
    );
    write("mt_bench/reference_answer_gpt4", &[json!({"question_id": 101, "choices": []})]);
    let prompt = |name: &str, text: &str| json!({"name": name, "system_prompt": "s", "prompt_template": text});
    write(
        "mt_bench/judge_prompts",
        &[
            prompt("single-v1", "{question}/{answer}"),
            prompt("single-v1-multi-turn", "{question_2}/{answer_2}"),
        ],
    );
    write("advbench/harmful_behaviors", &[json!({"goal": "Do harm", "target": "Sure"})]);
    dir
}

fn plan(data: &Path, names: &[&str]) -> Plan {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    Plan::new(suites::named(&names).unwrap(), DataFolder::new(data))
}

fn run_all(plan: &Plan, model: &mut Fake) -> EvaluationResult {
    run(plan, model, &mut Tools::default(), &mut Journal::in_memory(), &mut StopAfter(usize::MAX))
        .unwrap()
}

fn value(result: &EvaluationResult, suite: &str, name: &str, group: Option<&str>) -> f64 {
    let suite = result.suites.iter().find(|s| s.suite == suite).unwrap();
    let metric = suite.metrics.iter().find(|m| m.name == name && m.group.as_deref() == group);
    metric.unwrap_or_else(|| panic!("no {name} in {:?}", suite.metrics)).value
}

#[test]
fn multiple_choice_is_scored_by_log_likelihood() {
    let data = data();
    let mut model = Fake::new(" positive", "");
    let result = run_all(&plan(data.path(), &["fpb"]), &mut model);
    assert_eq!(value(&result, "fpb", "accuracy", None), 0.5);
    assert!((value(&result, "fpb", "macro_f1", None) - 1.0 / 3.0).abs() < 1e-12);
    let suite = &result.suites[0];
    assert_eq!((suite.rows, suite.scoring, suite.wrong.len()), (2, Scoring::LogLikelihood, 1));
    assert_eq!(suite.wrong[0].expected, "negative");
    assert!(suite.prompt.starts_with("[alpaca]\n<user>What is the sentiment"));
}

#[test]
fn texts_that_were_trained_on_are_not_asked_about() {
    let data = data();
    let seen = HashSet::from(["Loss grew .".to_owned()]);
    let asked = Plan { seen, ..plan(data.path(), &["fpb"]) };
    let suite = run_all(&asked, &mut Fake::new(" positive", "")).suites.remove(0);
    assert_eq!((suite.rows, suite.rows_seen, suite.rows_in_suite), (1, 1, 2));
    assert_eq!(suite.metrics[0].value, 1.0);
}

#[test]
fn multiple_choice_can_be_answered_in_writing() {
    let data = data();
    let asked = Plan {
        scoring: Some(Scoring::Generation),
        wrapping: Some(Wrapping::In(Template::Chat)),
        ..plan(data.path(), &["fpb", "mmlu"])
    };
    let result = run_all(&asked, &mut Fake::new("", "I say (C), negative."));
    assert_eq!(value(&result, "fpb", "accuracy", None), 0.5);
    assert_eq!(value(&result, "mmlu", "accuracy", None), 0.5);
    assert_eq!(value(&result, "mmlu", "accuracy", Some("subject:astronomy")), 1.0);
    assert_eq!(result.suites[0].scoring, Scoring::Generation);
}

#[test]
fn mmlu_is_asked_with_examples_of_the_subject() {
    let data = data();
    let mut model = Fake::new(" B", "");
    let asked = Plan { shots: Some(5), ..plan(data.path(), &["mmlu", "mmlu-medical"]) };
    let result = run_all(&asked, &mut model);
    assert_eq!(value(&result, "mmlu", "accuracy", Some("group:STEM")), 0.0);
    assert_eq!(value(&result, "mmlu", "accuracy", Some("group:other")), 1.0);
    assert_eq!(value(&result, "mmlu-medical", "accuracy", None), 1.0);
    let first = "The following are multiple choice questions (with answers) about anatomy.\n\n\
                 Which?\nA. w\nB. x\nC. y\nD. z\nAnswer: A\n\nWhich?\nA. w\nB. x\nC. y\nD. z\nAnswer:";
    assert_eq!(model.prompts[0], first);
}

#[test]
fn examples_that_the_data_lack_are_not_claimed() {
    let data = data();
    let shots = |shots: Option<usize>, names: &[&str]| -> Vec<usize> {
        let asked = Plan { shots, ..plan(data.path(), names) };
        run_all(&asked, &mut Fake::new("", "")).suites.iter().map(|suite| suite.shots).collect()
    };
    assert_eq!(shots(None, &["gsm8k", "bbh", "mmlu", "fpb"]), [1, 1, 0, 0]);
    assert_eq!(shots(Some(99), &["gsm8k", "bbh", "mmlu", "fpb"]), [1, 1, 1, 0]);
    assert_eq!(shots(Some(0), &["gsm8k"]), [0]);
}

#[test]
fn answers_and_gradings_are_counted_apart() {
    #[derive(Default)]
    struct Counts(Vec<(Work, usize, usize)>);

    impl Watcher for Counts {
        fn begin(&mut self, _suite: &str, work: Work, total: usize, done: usize) {
            self.0.push((work, total, done));
        }

        fn advance(&mut self, amount: usize) {
            self.0.last_mut().unwrap().2 += amount;
        }

        fn stop(&self) -> bool {
            false
        }
    }

    let data = data();
    let counted = |judge: Option<Box<dyn Judge>>, names: &[&str]| {
        let (mut tools, mut counts) = (Tools { judge, ..Tools::default() }, Counts::default());
        let asked = plan(data.path(), names);
        let mut model = Fake::new("", "yo");
        run(&asked, &mut model, &mut tools, &mut Journal::in_memory(), &mut counts).unwrap();
        counts.0
    };
    let judge = Flaky { fails_at: usize::MAX, asked: Arc::default() };
    let expected = [(Work::Answers, 1, 1), (Work::Gradings, 1, 1)];
    assert_eq!(counted(Some(Box::new(judge)), &["mt-bench"]), expected);
    assert_eq!(counted(None, &["mt-bench", "fpb"]), [(Work::Answers, 1, 1), (Work::Answers, 2, 2)]);
}

#[test]
fn written_answers_are_graded_by_each_suites_own_rule() {
    let data = data();
    let names = ["bbh", "drop", "gsm8k", "advbench"];
    let result = run_all(&plan(data.path(), &names), &mut Fake::new("", "Yes"));
    assert_eq!(value(&result, "bbh", "exact_match", None), 0.0);
    assert_eq!(value(&result, "drop", "f1", None), 1.0);
    assert_eq!(value(&result, "gsm8k", "exact_match", None), 0.0);
    assert_eq!(value(&result, "advbench", "refusal_rate", None), 0.0);
    let says = "I cannot. So the answer is Yes.";
    let result = run_all(&plan(data.path(), &names), &mut Fake::new("", says));
    assert_eq!(value(&result, "bbh", "exact_match", Some("task:navigate")), 1.0);
    assert_eq!(value(&result, "advbench", "refusal_rate", None), 1.0);
}

#[test]
fn a_stopped_run_goes_on_without_asking_anything_twice() {
    let data = data();
    let path = data.path().join("run.journal.jsonl");
    let asked = plan(data.path(), &["bbh", "drop", "gsm8k"]);
    let mut calls = 0;
    let mut stops = 0;
    let resumed = loop {
        let mut model = Fake::new("", "#### 4");
        let mut journal = Journal::open(&path, &model.identity()).unwrap();
        let tools = &mut Tools::default();
        let outcome = run(&asked, &mut model, tools, &mut journal, &mut StopAfter(1));
        calls += model.calls;
        match outcome {
            Ok(result) => break result,
            Err(RunError::Stopped) => stops += 1,
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(calls, 3);
    assert!(stops >= 3, "{stops}");
    let fresh = run_all(&asked, &mut Fake::new("", "#### 4"));
    let metrics = |result: &EvaluationResult| -> Vec<_> {
        result.suites.iter().flat_map(|suite| suite.metrics.clone()).collect()
    };
    assert_eq!(metrics(&resumed), metrics(&fresh));
}

#[test]
fn another_question_is_asked_anew() {
    let data = data();
    let mut journal = Journal::in_memory();
    let mut calls = |plan: &Plan| {
        let mut model = Fake::new("", "4");
        run(plan, &mut model, &mut Tools::default(), &mut journal, &mut StopAfter(usize::MAX))
            .unwrap();
        model.calls
    };
    assert_eq!(calls(&plan(data.path(), &["gsm8k"])), 1);
    assert_eq!(calls(&plan(data.path(), &["gsm8k"])), 0);
    assert_eq!(calls(&Plan { shots: Some(0), ..plan(data.path(), &["gsm8k"]) }), 1);
    // Another seed is another question only where chance is in the answer.
    assert_eq!(calls(&Plan { seed: 1, ..plan(data.path(), &["gsm8k"]) }), 0);
    assert_eq!(calls(&plan(data.path(), &["advbench"])), 1);
    assert_eq!(calls(&Plan { seed: 1, ..plan(data.path(), &["advbench"]) }), 1);
}

#[test]
fn another_number_of_questions_asks_only_the_new_ones() {
    let data = data();
    let goals: Vec<Value> = (0..20).map(|i| json!({"goal": format!("Do {i}")})).collect();
    write_rows(data.path(), "advbench/harmful_behaviors", &goals);
    let mut journal = Journal::in_memory();
    let mut calls = |limit| {
        let mut model = Fake::new("", "no");
        let asked = Plan { limit, ..plan(data.path(), &["advbench"]) };
        run(&asked, &mut model, &mut Tools::default(), &mut journal, &mut StopAfter(usize::MAX))
            .unwrap();
        model.calls
    };
    assert_eq!(calls(Some(5)), 5);
    assert_eq!(calls(Some(12)), 7);
    assert_eq!(calls(None), 8);
}

#[test]
fn another_reference_changes_the_verdict_and_asks_nothing() {
    let data = data();
    let mut journal = Journal::in_memory();
    let mut run_again = || {
        let mut model = Fake::new("", "4");
        let asked = plan(data.path(), &["gsm8k"]);
        let result =
            run(&asked, &mut model, &mut Tools::default(), &mut journal, &mut StopAfter(9))
                .unwrap();
        (value(&result, "gsm8k", "exact_match", None), model.calls)
    };
    assert_eq!(run_again(), (1.0, 1));
    write_rows(data.path(), "gsm8k/test", &[json!({"question": "2 + 2?", "answer": "#### 5"})]);
    assert_eq!(run_again(), (0.0, 0));
}

#[test]
fn a_conversation_goes_on_where_it_was_stopped() {
    let data = data();
    let path = data.path().join("run.journal.jsonl");
    let asked = plan(data.path(), &["mt-bench"]);
    let mut model = Fake::new("", "yo");
    let mut journal = Journal::open(&path, &model.identity()).unwrap();
    run(&asked, &mut model, &mut Tools::default(), &mut journal, &mut StopAfter(9)).unwrap();
    drop(journal);
    // As a kill after the first turn leaves it.
    let lines = std::fs::read_to_string(&path).unwrap();
    let first: Vec<&str> = lines.split_inclusive('\n').take(2).collect();
    assert!(lines.lines().count() > 2);
    std::fs::write(&path, first.concat()).unwrap();
    let mut journal = Journal::open(&path, &model.identity()).unwrap();
    let mut model = Fake::new("", "well");
    let result =
        run(&asked, &mut model, &mut Tools::default(), &mut journal, &mut StopAfter(9)).unwrap();
    assert_eq!(model.calls, 1);
    assert!(model.prompts[0].contains("<user>Write.\n<assistant>yo\n<user>Again.\n"));
    assert_eq!(result.suites[0].rows, 1);
}

#[test]
fn a_changed_second_turn_is_asked_anew() {
    let data = data();
    let asked = plan(data.path(), &["mt-bench"]);
    let mut journal = Journal::in_memory();
    let mut prompts = || {
        let mut model = Fake::new("", "yo");
        run(&asked, &mut model, &mut Tools::default(), &mut journal, &mut StopAfter(9)).unwrap();
        model.prompts
    };
    assert_eq!((prompts().len(), prompts().len()), (2, 0));
    let question = |second: &str| json!({"question_id": 1, "category": "writing", "turns": ["Write.", second]});
    write_rows(data.path(), "mt_bench/question", &[question("Shorter.")]);
    let asked_anew = prompts();
    assert!(asked_anew.last().unwrap().contains("<user>Shorter.\n"), "{asked_anew:?}");
}

#[test]
fn answers_of_the_wrong_shape_in_a_journal_are_not_believed() {
    let data = data();
    let path = data.path().join("run.journal.jsonl");
    let asked = plan(data.path(), &["fpb", "drop"]);
    let calls = |model: &mut Fake| {
        let mut journal = Journal::open(&path, &model.identity()).unwrap();
        run(&asked, model, &mut Tools::default(), &mut journal, &mut StopAfter(99)).unwrap();
        model.calls
    };
    assert_eq!(calls(&mut Fake::new("", "47")), 3);
    assert_eq!(calls(&mut Fake::new("", "47")), 0);
    let lines = std::fs::read_to_string(&path).unwrap();
    let damaged = lines.replacen("{\"scores\":[", "{\"scores\":[-1.0,", 1);
    let damaged = damaged.replacen("{\"texts\":[\"47\"]}", "{\"scores\":[0.0]}", 1);
    assert_ne!(damaged, lines);
    std::fs::write(&path, damaged).unwrap();
    assert_eq!(calls(&mut Fake::new("", "47")), 2);
}

/// Rates; but fails once, when it is asked for the time numbered `fails_at` from 0.
struct Flaky {
    fails_at: usize,
    asked: Arc<AtomicUsize>,
}

impl Judge for Flaky {
    fn name(&self) -> String {
        "flaky".to_owned()
    }

    fn ask(&mut self, _system: &str, message: &str) -> Result<String, JudgeError> {
        if self.asked.fetch_add(1, Ordering::Relaxed) == self.fails_at {
            let (url, problem) = ("u".to_owned(), "busy".to_owned());
            return Err(JudgeError::Unreachable { url, attempts: 1, problem });
        }
        Ok(format!("[[{}]]", message.len()))
    }
}

#[test]
fn a_judge_that_fails_loses_no_answer() {
    let data = data();
    let asked = plan(data.path(), &["mt-bench"]);
    let mut journal = Journal::in_memory();
    let mut tools = Tools::default();
    let mut model = Fake::new("", "yo");
    let mut watcher = StopAfter(usize::MAX);
    // No judge: answers only.
    let result = run(&asked, &mut model, &mut tools, &mut journal, &mut watcher).unwrap();
    assert_eq!(result.suites[0].not_run.values().sum::<usize>(), 1);
    assert_eq!(model.calls, 2);
    assert!(model.prompts[1].contains("<user>Write.\n<assistant>yo\n<user>Again.\n"));
    assert_eq!(result.suites[0].scoring, Scoring::Generation, "nobody judged");
    // A judge that breaks down at the second turn, and comes back.
    let asked_for = Arc::new(AtomicUsize::new(0));
    let flaky = Flaky { fails_at: 1, asked: Arc::clone(&asked_for) };
    tools.judge = Some(Box::new(flaky));
    let result = run(&asked, &mut model, &mut tools, &mut journal, &mut watcher).unwrap();
    assert!(result.suites.is_empty());
    let [unfinished] = result.unfinished.as_slice() else { panic!("{:?}", result.unfinished) };
    assert!(unfinished.suite == "mt-bench" && unfinished.problem.contains("busy"));
    let result = run(&asked, &mut model, &mut tools, &mut journal, &mut watcher).unwrap();
    assert_eq!(asked_for.load(Ordering::Relaxed), 3, "the first opinion was kept");
    assert_eq!(result.suites[0].overall().next().unwrap().name, "rating");
    assert_eq!(model.calls, 2);
    // "Write./yo" has 9 letters, "Again./yo" too.
    assert_eq!(value(&result, "mt-bench", "rating", None), 9.0);
    assert_eq!(value(&result, "mt-bench", "rating_2", Some("category:writing")), 9.0);
    assert_eq!(result.suites[0].judge.as_deref(), Some("flaky"));
}

/// Two rows of the data sets that [`data`] leaves out, code apart.
fn further_data(folder: &Path) {
    let write = |name: &str, rows: &[Value]| write_rows(folder, name, rows);
    let fiqa =
        |format: &str| json!({"sentence": "Up .", "sentiment_score": "0.9", "format": format});
    write("fiqa_sa/task1", &[fiqa("post"), fiqa("headline")]);
    write("tfns/validation", &[json!({"text": "Up .", "label": 1})]);
    let context = "Instruction: x\nInput: Up .\nAnswer: ";
    write("nwgi/test", &[json!({"context": context, "target": "positive"})]);
    write(
        "medqa/us_4_options_test",
        &[
            json!({"question": "q", "options": {"A": "a", "B": "b"}, "answer_idx": "B", "meta_info": "step1"}),
        ],
    );
    write(
        "medmcqa/dev",
        &[
            json!({"question": "q", "cop": 1, "opa": "a", "opb": "b", "opc": "c", "opd": "d", "subject_name": "s"}),
        ],
    );
    let paper = json!({"QUESTION": "q", "CONTEXTS": ["c"], "final_decision": "yes"});
    write("pubmedqa/pqal_test", std::slice::from_ref(&paper));
    let scores = json!({"no": 0.0, "yes": 1.0});
    write("crass/bigbench_crass_ai", &[json!({"input": "q", "target_scores": scores})]);
    write(
        "hhh_alignment/examples",
        &[json!({"category": "honest", "input": "q", "target_scores": scores})],
    );
    let problem =
        json!({"problem": "p", "level": "Level 5", "type": "Algebra", "solution": "\\boxed{1}"});
    write("math/test", std::slice::from_ref(&problem));
    write("math/train", &[problem]);
    let question = json!({"question_id": 1, "category": "fermi", "turns": ["How many?"]});
    write("vicuna_bench/question", &[question]);
    write("vicuna_bench/reference_answer_gpt4", &[json!({"question_id": 9, "choices": []})]);
    write("fedllm_bench/chatbot_testset", &[json!({"instruction": "i"})]);
    write("fedllm_bench/wildchat_testset", &[json!({"instruction": "i", "language": "French"})]);
}

/// Says everything that a grader understands.
struct SaysAll;

impl Judge for SaysAll {
    fn name(&self) -> String {
        "all".to_owned()
    }

    fn ask(&mut self, _system: &str, _message: &str) -> Result<String, JudgeError> {
        Ok("[[1]]".to_owned())
    }
}

#[test]
fn every_number_in_a_result_stands_on_its_suites_card() {
    let data = data();
    further_data(data.path());
    for suite in suites::all() {
        let card = suite.card();
        let metrics = if card.family == "code" {
            // As if programs had been drawn and run.
            let samples = if card.metrics.len() > 1 { 200.0 } else { 1.0 };
            let scores = [("samples", samples), ("passed", 1.0)];
            let scores = scores.map(|(name, value)| (name.to_owned(), value));
            let verdict = Verdict { scores: scores.into(), ..Verdict::default() };
            let groups = card.parts.iter().map(|part| format!("{part}:a")).collect::<Vec<_>>();
            let graded = [Graded { groups: &groups, verdict: &verdict }];
            let options =
                SuiteOptions { limit: None, shots: 0, seed: 0, samples: 1, temperature: None };
            suite.metrics(&graded, &options)
        } else {
            let mut tools = Tools { judge: Some(Box::new(SaysAll)), ..Tools::default() };
            let mut model = Fake::new("", "yes");
            let asked = plan(data.path(), &[card.name]);
            let mut watcher = StopAfter(usize::MAX);
            let result =
                run(&asked, &mut model, &mut tools, &mut Journal::in_memory(), &mut watcher);
            result.unwrap().suites.remove(0).metrics
        };
        let names: BTreeSet<&str> = metrics.iter().map(|metric| metric.name.as_str()).collect();
        assert_eq!(names, card.metrics.iter().copied().collect(), "{}", card.name);
        assert_eq!(metrics[0].name, card.metrics[0], "{}", card.name);
        let kind = |group: &String| group.split(':').next().unwrap().to_owned();
        let parts: BTreeSet<String> =
            metrics.iter().filter_map(|metric| metric.group.as_ref().map(kind)).collect();
        assert_eq!(parts, card.parts.iter().map(|&p| p.to_owned()).collect(), "{}", card.name);
    }
}

/// Rows of each suite in the shared data sets.
const ROWS: [(&str, usize); 23] = [
    ("fpb", 2423),
    ("fiqa", 586),
    ("tfns", 1194),
    ("nwgi", 2023),
    ("medqa", 1273),
    ("medmcqa", 4183),
    ("pubmedqa", 250),
    ("mmlu-medical", 546),
    ("mmlu", 7033),
    ("bbh", 6511),
    ("drop", 9536),
    ("crass", 44),
    ("hhh", 221),
    ("gsm8k", 659),
    ("math", 5000),
    ("humaneval", 164),
    ("humanevalpack-synthesize", 984),
    ("humanevalpack-fix", 984),
    ("humanevalpack-explain", 984),
    ("mt-bench", 80),
    ("vicuna-bench", 80),
    ("advbench", 520),
    ("fedllm-bench", 100),
];

fn shared_data() -> Option<DataFolder> {
    let folder = std::env::var_os("FLEETUNE_DATA");
    if folder.is_none() {
        println!("skipped: FLEETUNE_DATA is not set");
    }
    folder.map(DataFolder::new)
}

#[test]
fn every_suite_reads_its_real_data() {
    let Some(data) = shared_data() else { return };
    assert_eq!(suites::all().len(), ROWS.len());
    for (suite, (name, rows)) in suites::all().iter().zip(ROWS) {
        let card = suite.card();
        assert_eq!(card.name, name);
        let options = SuiteOptions {
            limit: None,
            shots: card.shots.0,
            seed: 0,
            samples: 1,
            temperature: None,
        };
        let items = suite.items(&data, &options).unwrap();
        assert_eq!(items.len(), rows, "{name}");
        let ids: BTreeSet<_> = items.iter().map(|item| &item.id).collect();
        assert_eq!(ids.len(), rows, "ids of {name} are not distinct");
        for item in &items {
            if let Question::Choice(choice) = &item.question {
                assert!(choice.gold < choice.options.len(), "{name} {}", item.id);
            }
            if card.wrapping != Wrapping::Plain {
                continue;
            }
            // White space at the end would belong to the tokens of the answer.
            for prompt in plain_prompts(&item.question) {
                assert!(!prompt.ends_with(char::is_whitespace), "{name} {}: {prompt}", item.id);
            }
        }
    }
}

/// What is asked without a template, in every turn.
fn plain_prompts(question: &Question) -> Vec<String> {
    match question {
        Question::Choice(choice) => vec![choice.prompt.plain.clone()],
        Question::Writing(writing) => match &writing.asking {
            Asking::Once(prompt) => vec![prompt.plain.clone()],
            Asking::Then(prompt, then) => vec![prompt.plain.clone(), then("words").plain],
            Asking::Turns(turns) => turns.clone(),
        },
    }
}

/// Grades, in order, the answer that `answer` makes of each row of `file`.
fn share_right(suite: &str, file: &str, answer: impl Fn(&Value) -> String) -> Option<f64> {
    let data = shared_data()?;
    let suite = suites::named(&[suite.to_owned()]).unwrap().remove(0);
    let shots = suite.card().shots.0;
    let options = SuiteOptions { limit: None, shots, seed: 0, samples: 1, temperature: None };
    let items = suite.items(&data, &options).unwrap();
    let rows: Vec<Value> = data.rows(file).unwrap();
    let right = items.iter().zip(&rows).filter(|(item, row)| {
        let Question::Writing(writing) = &item.question else { return false };
        let (mut tools, mut journal) = (Tools::default(), Journal::in_memory());
        let mut grading = Grading::new(&mut tools, &mut journal, "suite", &item.id);
        let verdict = writing.grader.grade(&[answer(row)], &mut grading).unwrap();
        verdict.correct == Some(true)
    });
    Some(right.count() as f64 / rows.len() as f64)
}

#[test]
fn reference_answers_of_the_real_data_are_right() {
    let field = |name: &'static str| move |row: &Value| row[name].as_str().unwrap().to_owned();
    let Some(gsm8k) = share_right("gsm8k", "gsm8k/test", field("answer")) else { return };
    assert_eq!(gsm8k, 1.0);
    assert_eq!(share_right("math", "math/test", field("solution")), Some(1.0));
    let bbh = |row: &Value| format!("Well. So the answer is {}.", row["target"].as_str().unwrap());
    assert_eq!(share_right("bbh", "bbh/examples", bbh), Some(1.0));
    assert_eq!(share_right("drop", "drop/dev", field("completion")), Some(1.0));
    // Wrong answers are wrong.
    assert!(share_right("math", "math/test", |_| "\\boxed{0}".to_owned()).unwrap() < 0.05);
}
