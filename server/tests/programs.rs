//! Programs in every installed language: passed, failed, not compiled; and the reference solutions
//! of the data sets.

#![cfg(target_os = "linux")]

use std::path::PathBuf;

use fleetune_server::evaluate::code::{Language, ProgramRunner, RunResult};
use fleetune_server::evaluate::data::DataFolder;
use fleetune_server::evaluate::grading::{Grading, Tools};
use fleetune_server::evaluate::journal::Journal;
use fleetune_server::evaluate::model::Identity;
use fleetune_server::evaluate::sandbox::Sandbox;
use fleetune_server::evaluate::suite::{Question, SuiteOptions};
use fleetune_server::evaluate::suites;
use fleetune_server::training::ComputePrecision;

fn runner() -> ProgramRunner {
    ProgramRunner::new(Sandbox::open(env!("CARGO_BIN_EXE_fleetune")).unwrap()).unwrap()
}

/// A program that passes when `sum` is 3.
fn program(language: Language, sum: &str) -> String {
    match language {
        Language::Python => format!("assert 1 + 2 == {sum}"),
        Language::JavaScript => format!("console.assert(1 + 2 === {sum})"),
        Language::Java => format!(
            "public class Main {{ public static void main(String[] a) {{ if (1 + 2 != {sum}) throw new AssertionError(); }} }}"
        ),
        Language::Go => format!(
            "package main\nimport (\"testing\"; \"github.com/stretchr/testify/assert\")\nfunc TestSum(t *testing.T) {{ assert := assert.New(t); assert.Equal({sum}, 1 + 2) }}"
        ),
        Language::Cpp => format!("#include <cassert>\nint main() {{ assert(1 + 2 == {sum}); }}"),
        Language::Rust => {
            format!(
                "use regex::Regex; #[test] fn sum() {{ let _ = Regex::new(\"a\"); assert_eq!(1 + 2, {sum}); }}"
            )
        }
    }
}

#[test]
fn programs_pass_fail_or_do_not_compile_in_every_installed_language() {
    let mut runner = runner();
    for language in Language::ALL {
        if let Err(missing) = runner.check(language) {
            println!("skipped {}: {missing}", language.name());
            continue;
        }
        let result = runner.run(language, &program(language, "3")).unwrap();
        assert_eq!(result, RunResult::Passed, "{}", language.name());
        let result = runner.run(language, &program(language, "4")).unwrap();
        assert!(matches!(result, RunResult::Failed(_)), "{}: {result:?}", language.name());
        let result = runner.run(language, &program(language, "(")).unwrap();
        assert!(matches!(result, RunResult::Failed(_)), "{}: {result:?}", language.name());
    }
}

/// A program that ends well before a test that fails.
fn leaver(language: Language) -> String {
    match language {
        Language::Python => "import os\nos._exit(0)\nassert False".to_owned(),
        Language::JavaScript => "process.exit(0)\nconsole.assert(false)".to_owned(),
        Language::Java => "public class Main { public static void main(String[] a) { System.exit(0); throw new AssertionError(); } }".to_owned(),
        Language::Go => "package main\nimport (\"syscall\"; \"testing\"; \"github.com/stretchr/testify/assert\")\nfunc TestSum(t *testing.T) { syscall.Exit(0); assert.New(t).Equal(1, 2) }".to_owned(),
        Language::Cpp => "#include <cassert>\n#include <cstdlib>\nint main() { exit(0); assert(false); }".to_owned(),
        Language::Rust => "#[test] fn sum() { use std::io::Write; std::io::stdout().write_all(b\"\\ntest result: ok. 1 passed; 0 failed\\n\").unwrap(); std::process::exit(0); }".to_owned(),
    }
}

#[test]
fn a_program_that_ends_before_its_tests_has_not_passed() {
    let mut runner = runner();
    for language in Language::ALL {
        if let Err(missing) = runner.check(language) {
            println!("skipped {}: {missing}", language.name());
            continue;
        }
        let early = RunResult::Failed("ended before its tests did".to_owned());
        assert_eq!(runner.run(language, &leaver(language)).unwrap(), early, "{}", language.name());
    }
    let Ok(()) = runner.check(Language::Python) else { return };
    let quiet = "import sys\nsys.exit()";
    assert!(matches!(runner.run(Language::Python, quiet).unwrap(), RunResult::Failed(_)));
    let loud = "import sys\nsys.stdout = None\nsys.stderr.write('x' * (1 << 20))";
    assert_eq!(runner.run(Language::Python, loud).unwrap(), RunResult::Passed);
}

#[test]
fn a_program_without_tests_has_not_passed() {
    let mut runner = runner();
    let Ok(()) = runner.check(Language::Rust) else { return };
    let result = runner.run(Language::Rust, "fn sum() {}").unwrap();
    assert!(matches!(result, RunResult::Failed(_)), "{result:?}");
}

#[test]
fn what_javascript_says_neither_hides_a_failed_assertion_nor_makes_one() {
    let mut runner = runner();
    let Ok(()) = runner.check(Language::JavaScript) else { return };
    let mut run = |source: &str| runner.run(Language::JavaScript, source).unwrap();
    for wrong in [
        "process.stderr.write('x'.repeat(1 << 20));\nconsole.assert(false)",
        "process.on('uncaughtException', () => {});\nconsole.assert(false)",
        "console.assert = () => {};\nconsole.assert(false)",
        "setTimeout(() => console.assert(false))",
    ] {
        let result = run(wrong);
        assert!(matches!(result, RunResult::Failed(_)), "{wrong}: {result:?}");
    }
    let told = run("console.assert(1 === 2, '%s is not %d', 'one', 2)");
    let reason = "Error: Assertion failed: one is not 2";
    assert_eq!(told, RunResult::Failed(reason.to_owned()));
    for right in [
        "console.error('Assertion failed');\nconsole.assert(true)",
        "'use strict';\nconsole.assert((function () { return this })() === undefined)",
    ] {
        assert_eq!(run(right), RunResult::Passed, "{right}");
    }
}

#[test]
fn how_programs_end_is_kept_once_the_reference_passes() {
    let Ok(()) = runner().check(Language::Python) else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.jsonl");
    let identity = Identity {
        model: "m".to_owned(),
        model_sha256: "0".to_owned(),
        adapter: None,
        adapter_sha256: None,
        settings_sha256: String::new(),
        precision: ComputePrecision::F32,
    };
    let suite = suites::named(&["humaneval".to_owned()]).unwrap().remove(0);
    let options = SuiteOptions { limit: None, shots: 0, seed: 0, samples: 1, temperature: None };
    let findings = || {
        let lines = std::fs::read_to_string(&path).unwrap();
        lines.lines().filter(|line| line.starts_with("{\"finding\"")).count()
    };
    // The wrong answer's verdict, where the reference solution is this.
    let grade = |reference: &str| {
        let row = serde_json::json!({
            "task_id": "t", "prompt": "def f():\n", "entry_point": "f",
            "canonical_solution": reference, "test": "def check(f):\n    assert f() == 1\n",
        });
        std::fs::create_dir_all(folder.path().join("humaneval")).unwrap();
        std::fs::write(folder.path().join("humaneval/HumanEval.jsonl"), format!("{row}\n"))
            .unwrap();
        let items = suite.items(&DataFolder::new(folder.path()), &options).unwrap();
        let Question::Writing(writing) = &items[0].question else { panic!("no writing") };
        let mut tools = Tools { programs: Some(runner()), ..Tools::default() };
        let mut journal = Journal::open(&path, &identity).unwrap();
        let mut grading = Grading::new(&mut tools, &mut journal, "humaneval", "t");
        writing.grader.grade(&["    return 2".to_owned()], &mut grading).unwrap()
    };
    // A machine on which not even the reference passes says nothing about the answer.
    assert!(grade("    import no_such_library").not_run.is_some());
    assert_eq!(findings(), 0);
    assert_eq!(grade("    return 1").correct, Some(false));
    assert_eq!(findings(), 2);
    assert_eq!(grade("    return 1").correct, Some(false));
    assert_eq!(findings(), 2, "nothing is run again");
}

/// Grades the answers that `answer` makes of rows with their solutions. Rows come by suite and language.
fn reference_solutions(
    suite: &str,
    file: &str,
    rows: usize,
    answer: impl Fn(&serde_json::Value) -> String,
) {
    let Some(data) = std::env::var_os("FLEETUNE_DATA").map(PathBuf::from) else {
        println!("skipped: FLEETUNE_DATA is not set");
        return;
    };
    let data = DataFolder::new(data);
    let solutions: Vec<serde_json::Value> = data.rows(file).unwrap();
    let options = SuiteOptions { limit: None, shots: 0, seed: 0, samples: 1, temperature: None };
    let suite = suites::named(&[suite.to_owned()]).unwrap().remove(0);
    let items = suite.items(&data, &options).unwrap();
    let mut tools = Tools { programs: Some(runner()), ..Tools::default() };
    let mut journal = Journal::in_memory();
    let (mut passed, mut asked) = (0, 0);
    // Spread over the file.
    for row in solutions.iter().step_by(solutions.len().div_ceil(rows)) {
        let id = row["task_id"].as_str().unwrap();
        let item = items.iter().find(|item| item.id == id).unwrap();
        let Question::Writing(writing) = &item.question else { panic!("{id} is no writing") };
        let mut grading = Grading::new(&mut tools, &mut journal, file, id);
        let verdict = writing.grader.grade(&[answer(row)], &mut grading).unwrap();
        if let Some(reason) = verdict.not_run {
            println!("{id}: {reason} ({})", verdict.understood);
            continue;
        }
        asked += 1;
        if verdict.correct == Some(true) {
            passed += 1;
        } else {
            println!("{id}: {}", verdict.understood);
        }
    }
    println!("{file}: {passed} of {asked} reference solutions pass");
    assert_eq!(passed, asked, "{file}");
}

fn continued(row: &serde_json::Value) -> String {
    row["canonical_solution"].as_str().unwrap().to_owned()
}

/// A body that goes on as in a fenced block which the question began.
fn closed(row: &serde_json::Value) -> String {
    format!("{}```\n\nThis works:\n```\nmake\n```\n", continued(row))
}

/// A chat's answer that says again all that the row gives, under `key`, before the function, and runs
/// tests after it.
fn told(row: &serde_json::Value, key: &str, tests: &str) -> String {
    let code = format!("{}{}\n{tests}", row[key].as_str().unwrap(), continued(row));
    format!("First:\n```sh\nmake\n```\nThen here it is:\n```\n{code}\n```\nIt works.")
}

#[test]
fn reference_solutions_of_humaneval_pass() {
    reference_solutions("humaneval", "humaneval/HumanEval", rows(), continued);
    reference_solutions("humaneval", "humaneval/HumanEval", rows(), closed);
    reference_solutions("humaneval", "humaneval/HumanEval", rows(), |row| {
        told(
            row,
            "prompt",
            "if __name__ == \"__main__\":\n    import unittest\n    unittest.main()\n",
        )
    });
}

#[test]
fn reference_solutions_of_humanevalpack_pass() {
    for language in Language::ALL {
        let file = format!("humanevalpack/{}", language.file());
        let suite = "humanevalpack-synthesize";
        reference_solutions(suite, &file, rows(), continued);
        reference_solutions(suite, &file, rows(), closed);
        // Only Go's prompts have the helpers, and only other declarations the imports.
        let key = if language == Language::Go { "prompt" } else { "declaration" };
        reference_solutions(suite, &file, rows(), |row| {
            let tests = row["test"].as_str().unwrap();
            match language {
                // A C++ answer's helpers of tests are its own affair.
                Language::Cpp => told(row, key, ""),
                Language::JavaScript => {
                    let main = "if (require.main === module) {\n  process.exit(1);\n}";
                    told(row, key, &format!("{tests}\n{main}"))
                }
                _ => told(row, key, tests),
            }
        });
    }
}

/// Solutions to run of each file: a few, or as many as `FLEETUNE_PROGRAMS` says.
fn rows() -> usize {
    std::env::var("FLEETUNE_PROGRAMS").ok().and_then(|n| n.parse().ok()).unwrap_or(4)
}
