//! HumanEvalPack: write, mend and explain functions in six languages.

use serde::Deserialize;

use super::humaneval::{pass_metrics, passed, temperature};
use crate::evaluate::code::{
    Code, Language, body_in_braces, completed, given_before, go_imports, open_end, program,
    with_go_imports,
};
use crate::evaluate::data::DataFolder;
use crate::evaluate::grading::{GradeError, Grader, Grading, Verdict};
use crate::evaluate::suite::{
    Asking, Card, Graded, Item, Metric, Prompt, Question, Scoring, Suite, SuiteError, SuiteOptions,
    Wrapping, Writing,
};

/// What is asked about a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HumanEvalPack {
    /// Write it from its description.
    Synthesize,
    /// Mend it.
    Fix,
    /// Describe it, then write it from that description alone.
    Explain,
}

#[derive(Clone, Deserialize)]
struct Row {
    task_id: String,
    prompt: String,
    declaration: String,
    canonical_solution: String,
    buggy_solution: String,
    test: String,
    entry_point: String,
    instruction: String,
    docstring: String,
    #[serde(default)]
    import: String,
    #[serde(default)]
    test_setup: String,
}

/// Go packages that solutions may use; only those used may be imported.
const GO_PACKAGES: [&str; 10] = [
    "bytes",
    "crypto/md5",
    "fmt",
    "math",
    "math/rand",
    "regexp",
    "sort",
    "strconv",
    "strings",
    "time",
];

/// What Python solutions may use without importing it.
const PYTHON_IMPORTS: &str = "import collections, copy, datetime, functools, hashlib, heapq, \
    itertools, math, re, string, sys\nfrom typing import *\nfrom collections import *\n";

/// Headers that C++ solutions may use without including them.
const CPP_HEADERS: &str = "#include <bits/stdc++.h>\nusing namespace std;\n";

/// A function in one language.
struct Program {
    language: Language,
    row: Row,
}

impl Program {
    /// The whole program with `completion` as the function's body.
    fn completed(&self, completion: &str) -> String {
        let Row { declaration, test, .. } = &self.row;
        let function = completed(declaration, completion);
        match self.language {
            Language::Python => format!("{PYTHON_IMPORTS}{function}\n{test}"),
            Language::JavaScript | Language::Rust => format!("{function}\n{test}"),
            Language::Java => {
                // The body may end the class too, as the reference solution does.
                let open = completion.matches('{').count() + 2 > completion.matches('}').count();
                let close = if open { "\n}" } else { "" };
                format!("{function}{close}\n{test}")
            }
            Language::Cpp => format!("{CPP_HEADERS}{function}\n{test}"),
            Language::Go => {
                let code = format!("{}\n{test}", completed(&self.go_prompt(), completion));
                with_go_imports(&self.row.test_setup, &[], &GO_PACKAGES, &code)
            }
        }
    }

    /// The whole program with the answer's own function.
    fn with_own(&self, code: &str) -> String {
        let Row { declaration, test, entry_point, .. } = &self.row;
        let go_prompt = self.go_prompt();
        let text = if self.language == Language::Go { &go_prompt } else { declaration };
        let given = given_before(text, self.language, entry_point).unwrap_or("");
        let program =
            |given: &str, code: &str| program(self.language, entry_point, given, code, test);
        match self.language {
            Language::Python => program(&format!("{PYTHON_IMPORTS}{given}"), code),
            Language::Cpp => format!("{CPP_HEADERS}{}", program(given, code)),
            Language::Go => {
                let (code, imports) = go_imports(code);
                with_go_imports(
                    &self.row.test_setup,
                    &imports,
                    &GO_PACKAGES,
                    &program(given, &code),
                )
            }
            Language::JavaScript | Language::Java | Language::Rust => program(given, code),
        }
    }

    /// The prompt without its imports. Helper functions stand here only, not in the declaration.
    fn go_prompt(&self) -> String {
        self.row.prompt.replacen(self.row.import.as_str(), "", 1)
    }

    fn of_answer(&self, answer: &str) -> String {
        match Code::of(answer, self.language, &self.row.entry_point) {
            Code::Whole(code) => self.with_own(&code),
            Code::Body(body) if self.language == Language::Python => self.completed(&body),
            Code::Body(body) => self.completed(body_in_braces(&body, self.language)),
        }
    }
}

impl Grader for Program {
    fn grade(&self, answers: &[String], grading: &mut Grading) -> Result<Verdict, GradeError> {
        let programs = answers.iter().map(|answer| self.of_answer(answer));
        let reference = self.completed(&self.row.canonical_solution);
        passed(self.language, programs, &reference, grading)
    }
}

/// Grades the last answer only: the one before is the description.
struct LastOf(Program);

impl Grader for LastOf {
    fn grade(&self, answers: &[String], grading: &mut Grading) -> Result<Verdict, GradeError> {
        self.0.grade(&answers[answers.len().saturating_sub(1)..], grading)
    }
}

/// OctoPack's question: the model continues the function's declaration.
fn ask(question: &str, declaration: &str) -> Prompt {
    Prompt {
        plain: open_end(&format!("Question: {question}\n\nAnswer:\n{declaration}")).to_owned(),
        message: format!(
            "{question}\n\nAnswer with the whole function in a code block, beginning with:\n```\n\
             {}\n```",
            open_end(declaration)
        ),
    }
}

impl HumanEvalPack {
    fn asking(self, language: Language, row: &Row) -> Asking {
        let Row { declaration, .. } = row;
        match self {
            Self::Synthesize => Asking::Once(ask(&row.instruction, declaration)),
            Self::Fix => {
                let question = format!(
                    "{declaration}{}\n{}\nFix bugs in {}.",
                    row.buggy_solution, row.test, row.entry_point
                );
                Asking::Once(ask(&question, declaration))
            }
            Self::Explain => {
                let question = format!(
                    "{declaration}{}\nProvide a concise natural language description of the function \
                     using at most {} characters.",
                    row.canonical_solution,
                    row.docstring.chars().count()
                );
                let prompt =
                    Prompt { plain: format!("Question: {question}\n\nAnswer:"), message: question };
                let declaration = declaration.clone();
                let limit = row.docstring.chars().count();
                Asking::Then(
                    prompt,
                    Box::new(move |description| {
                        let description: String = description.trim().chars().take(limit).collect();
                        let language = language.name();
                        let question = format!(
                            "{description}\nWrite functional code in {language} according to the \
                             description."
                        );
                        ask(&question, &declaration)
                    }),
                )
            }
        }
    }
}

/// Texts that begin something after the function.
fn stops(language: Language) -> Vec<String> {
    let stops: &[&str] = match language {
        Language::Python => &["\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\nassert"],
        Language::JavaScript => &["\nfunction ", "\nconsole.", "\nconst test"],
        Language::Java => &["\npublic class", "\nclass "],
        Language::Go => &["\nfunc ", "\ntype "],
        Language::Cpp => &["\nint main"],
        Language::Rust => &["\nfn ", "\n#[", "\nmod "],
    };
    let stops = stops.iter().chain(&["\nQuestion:"]);
    stops.map(|stop| (*stop).to_owned()).collect()
}

impl Suite for HumanEvalPack {
    fn card(&self) -> Card {
        let (name, about) = match self {
            Self::Synthesize => ("humanevalpack-synthesize", "write functions in six languages"),
            Self::Fix => ("humanevalpack-fix", "mend functions in six languages"),
            Self::Explain => {
                ("humanevalpack-explain", "describe functions in six languages and write them anew")
            }
        };
        Card {
            name,
            family: "code",
            about,
            // A description is drawn once, and so is the program after it.
            metrics: match self {
                Self::Explain => &["pass@1"],
                _ => &["pass@1", "pass@10", "pass@100"],
            },
            parts: &["language"],
            data: &[
                "humanevalpack/python",
                "humanevalpack/js",
                "humanevalpack/java",
                "humanevalpack/go",
                "humanevalpack/cpp",
                "humanevalpack/rust",
            ],
            scoring: Scoring::Generation,
            wrapping: Wrapping::Plain,
            shots: (0, 0),
        }
    }

    fn items(&self, data: &DataFolder, options: &SuiteOptions) -> Result<Vec<Item>, SuiteError> {
        let mut items = Vec::new();
        for language in Language::ALL {
            for row in data.rows::<Row>(&format!("humanevalpack/{}", language.file()))? {
                let asking = self.asking(language, &row);
                let explained = matches!(asking, Asking::Then(..));
                let program = Program { language, row };
                items.push(Item {
                    id: program.row.task_id.clone(),
                    groups: vec![format!("language:{}", language.name())],
                    about: None,
                    shots: 0,
                    question: Question::Writing(Writing {
                        asking,
                        max_tokens: 512,
                        stop: vec![],
                        stop_plain: stops(language),
                        temperature: temperature(options),
                        samples: if explained { 1 } else { options.samples },
                        grader: match explained {
                            true => Box::new(LastOf(program)),
                            false => Box::new(program),
                        },
                    }),
                });
            }
        }
        Ok(items)
    }

    fn metrics(&self, graded: &[Graded], _options: &SuiteOptions) -> Vec<Metric> {
        pass_metrics(graded)
    }
}
