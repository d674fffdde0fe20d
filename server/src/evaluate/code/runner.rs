//! Compiles and runs whole programs in the sandbox.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ending::{Ending, JAVA_CLASS, JAVASCRIPT_ASSERTIONS};
use super::toolchain::{Language, Toolchain};
use crate::evaluate::sandbox::{End, Folder, Limits, Outcome, Sandbox, SandboxError, Step};

/// Names the rules by which programs pass. What was found by other rules does not hold any more.
pub const RULES: &str =
    "exit code 0 and a word after the last test; failed assertions end a program";

/// What came of a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunResult {
    /// It came to the end of its tests, and all passed.
    Passed,
    /// It did not compile, a test failed, it ended before its tests did, or it broke a limit; in a
    /// few words.
    Failed(String),
    /// The language is not installed here.
    NotInstalled(String),
}

/// Runs programs, one after the other.
pub struct ProgramRunner {
    sandbox: Sandbox,
    toolchains: HashMap<Language, Result<Toolchain, String>>,
    /// What compilers prepare once for all programs; gone with the runner.
    cache: Folder,
}

/// Limits of compilers, which are trusted with more than what they compile.
const COMPILING: Limits = Limits {
    wall: Duration::from_secs(120),
    cpu_seconds: 120,
    memory: 3 << 30,
    processes: 256,
    files: 1 << 30,
};

/// Stand-in for `github.com/stretchr/testify/assert`: the two functions that HumanEvalPack's tests
/// use, so that nothing has to be fetched.
const GO_ASSERT: &str = r#"package assert

import (
	"bytes"
	"reflect"
	"testing"
)

type Assertions struct{ t *testing.T }

func New(t *testing.T) *Assertions { return &Assertions{t} }

func (a *Assertions) Equal(expected, actual interface{}, _ ...interface{}) bool {
	a.t.Helper()
	left, leftBytes := expected.([]byte)
	right, rightBytes := actual.([]byte)
	equal := reflect.DeepEqual(expected, actual)
	if leftBytes && rightBytes && left != nil && right != nil {
		equal = bytes.Equal(left, right)
	}
	if !equal {
		a.t.Errorf("expected %v, got %v", expected, actual)
	}
	return equal
}
"#;

const GO_MODULE: &str = "module program\n\ngo 1.18\n\n\
    require github.com/stretchr/testify v0.0.0\n\n\
    replace github.com/stretchr/testify => ./testify\n";

impl ProgramRunner {
    /// A runner of programs in `sandbox`.
    ///
    /// # Errors
    /// When there is no room for its folder.
    pub fn new(sandbox: Sandbox) -> io::Result<Self> {
        Ok(Self { sandbox, toolchains: HashMap::new(), cache: Folder::new()? })
    }

    /// Compiles and runs a program of one file that carries its own tests.
    ///
    /// # Errors
    /// When the sandbox fails; not when the program does.
    pub fn run(&mut self, language: Language, source: &str) -> Result<RunResult, SandboxError> {
        let toolchain = match self.toolchain(language) {
            Ok(toolchain) => toolchain.clone(),
            Err(problem) => return Ok(RunResult::NotInstalled(problem.clone())),
        };
        let failed = |source| SandboxError::Run { program: toolchain.program.clone(), source };
        let folder = self.cache.inner().map_err(failed)?;
        let ending = Ending::new(language);
        write_files(language, &ending.added_to(source), folder.path()).map_err(failed)?;
        ending.write_files(folder.path()).map_err(failed)?;
        let (compile, run) = self.steps(language, &toolchain, folder.path()).map_err(failed)?;
        if let Some(step) = compile {
            let outcome = self.sandbox.run(&step, folder.path())?;
            if !outcome.succeeded() {
                return Ok(RunResult::Failed(format!("does not compile: {}", summary(&outcome))));
            }
        }
        let outcome = self.sandbox.run(&run, folder.path())?;
        Ok(match outcome.succeeded() {
            true if ending.is_in(&outcome) => RunResult::Passed,
            true => RunResult::Failed("ended before its tests did".to_owned()),
            false => RunResult::Failed(summary(&outcome)),
        })
    }

    /// Whether the language is installed.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn check(&mut self, language: Language) -> Result<(), String> {
        self.toolchain(language).as_ref().map(|_| ()).map_err(Clone::clone)
    }

    fn toolchain(&mut self, language: Language) -> &Result<Toolchain, String> {
        let cache = self.cache.path();
        self.toolchains.entry(language).or_insert_with(|| language.find(cache))
    }

    /// How to compile, where that is a step of its own, and how to run.
    fn steps(
        &self,
        language: Language,
        toolchain: &Toolchain,
        folder: &Path,
    ) -> io::Result<(Option<Step>, Step)> {
        let step = |program: &Path, arguments: Vec<OsString>| Step {
            readable: toolchain.roots.clone(),
            environment: toolchain.environment.clone(),
            ..Step::new(program, arguments)
        };
        let compile = |arguments: Vec<OsString>| Step {
            limits: COMPILING,
            compiles: true,
            ..step(&toolchain.program, arguments)
        };
        let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        let program = folder.join("program");
        let compiled = step(&program, vec![]);
        Ok(match language {
            Language::Python => (None, step(&toolchain.program, words(&["-I", "-B", "main.py"]))),
            Language::JavaScript => {
                let assertions = format!("./{JAVASCRIPT_ASSERTIONS}");
                let arguments = words(&["--require", &assertions, "main.js"]);
                (None, step(&toolchain.program, arguments))
            }
            Language::Java => {
                let small = ["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"];
                let javac = small.iter().map(|flag| format!("-J{flag}").into());
                let javac = javac.chain(words(&[
                    "-encoding",
                    "UTF-8",
                    "-nowarn",
                    "Main.java",
                    &format!("{JAVA_CLASS}.java"),
                ]));
                let java = small.iter().map(OsString::from).chain(words(&["-cp", ".", JAVA_CLASS]));
                let runtime = toolchain.runtime.as_deref().unwrap_or(&toolchain.program);
                (Some(compile(javac.collect())), step(runtime, java.collect()))
            }
            Language::Go => {
                // Only the compiler sees its cache: a program could plant something in it.
                let cache = self.cache.path().join("go-build");
                std::fs::create_dir_all(&cache)?;
                let arguments = words(&["test", "-c", "-vet=off", "-o", "program", "."]);
                let mut go = compile(arguments);
                go.environment.insert("GOCACHE".to_owned(), cache.clone().into());
                go.environment.insert("GOPATH".to_owned(), folder.join("go").into());
                // Go takes no module in the folder for temporary files.
                let temporary = folder.join("tmp");
                std::fs::create_dir_all(&temporary)?;
                go.environment.insert("TMPDIR".to_owned(), temporary.into());
                go.writable.push(cache);
                (Some(go), compiled)
            }
            Language::Cpp => {
                let arguments =
                    ["-std=c++17", "-w", "main.cpp", "-o", "program", "-lm", "-lpthread"];
                (Some(compile(words(&arguments))), compiled)
            }
            Language::Rust => {
                let mut arguments =
                    words(&["--edition=2021", "--test", "-Awarnings", "main.rs", "-o", "program"]);
                arguments.extend(toolchain.libraries.iter().cloned());
                // The linker that comes with Rust is not found where the superuser's folders are
                // closed to others.
                arguments.push("-Clink-arg=-fuse-ld=bfd".into());
                // Whoever calls `main` calls what says that the tests have ended.
                arguments.push("-Clink-arg=-Wl,--wrap=main".into());
                (Some(compile(arguments)), compiled)
            }
        })
    }
}

fn write_files(language: Language, source: &str, folder: &Path) -> io::Result<()> {
    let name = match language {
        Language::Python => "main.py",
        Language::JavaScript => "main.js",
        Language::Java => "Main.java",
        Language::Go => "main_test.go",
        Language::Cpp => "main.cpp",
        Language::Rust => "main.rs",
    };
    std::fs::write(folder.join(name), source)?;
    if language == Language::Go {
        std::fs::create_dir_all(folder.join("testify/assert"))?;
        std::fs::write(folder.join("go.mod"), GO_MODULE)?;
        std::fs::write(
            folder.join("testify/go.mod"),
            "module github.com/stretchr/testify\n\ngo 1.18\n",
        )?;
        std::fs::write(folder.join("testify/assert/assert.go"), GO_ASSERT)?;
    }
    Ok(())
}

/// How a program failed, in a line.
fn summary(outcome: &Outcome) -> String {
    let lines = || outcome.stderr.lines().chain(outcome.stdout.lines());
    let telling = |line: &&str| {
        ["rror", "panicked", "FAIL", "failed", "expected"].iter().any(|w| line.contains(w))
    };
    let last =
        |text: &'_ str| text.lines().rfind(|line| !line.trim().is_empty()).map(str::to_owned);
    // An interpreter names the exception last, after lines of the source that may say anything.
    let exception = |line: &&str| {
        let name = line.split([':', ' ']).next().unwrap_or("");
        name.ends_with("Error") || name.ends_with("Exception")
    };
    let named = outcome.stderr.lines().rfind(exception);
    let words = named.or_else(|| lines().find(telling)).map(str::to_owned);
    let words = words.or_else(|| last(&outcome.stderr)).or_else(|| last(&outcome.stdout));
    let words: String = words.unwrap_or_default().trim().chars().take(200).collect();
    match outcome.end {
        End::Exited(_) => words,
        End::Signalled(signal) => format!("ended by signal {signal} {words}").trim_end().to_owned(),
        End::TooLong => "took too long".to_owned(),
        End::TooMuchMemory => "used too much memory".to_owned(),
        End::TooManyFiles => "wrote too much".to_owned(),
    }
}
