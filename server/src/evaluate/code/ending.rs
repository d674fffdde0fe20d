//! Proof that a program came to the end of its tests.
//!
//! An exit code says little: a program that calls `exit(0)` before a test has it, too. So programs
//! are given something to say after their last test, a word that they cannot know when they are
//! written, and pass only if they say it. A program that reads its own source and repeats the word
//! is beyond this: it can as well change what its tests compare.

use std::path::Path;

use super::toolchain::Language;
use crate::evaluate::sandbox::Outcome;

/// Name of the Java class that runs `Main`.
pub const JAVA_CLASS: &str = "Ending";

/// Name of the file that JavaScript programs are run after.
pub const JAVASCRIPT_ASSERTIONS: &str = "assertions.js";

/// Node's `console.assert` only writes a line and goes on, so that the program would come to its end.
const ASSERTIONS: &str = r#"const { format } = require("util");
Object.defineProperty(console, "assert", {
  value: function assert(condition, ...words) {
    if (condition) return;
    const problem = new Error(`Assertion failed: ${format(...words)}`);
    throw problem;
  },
  writable: false,
  configurable: false,
});
"#;

/// Stands in for `main`, from which Rust's harness returns only after all tests passed.
const RUST_MAIN: &str = include_str!("rust_main.txt");

/// What a program says after its last test.
pub struct Ending {
    language: Language,
    word: String,
}

impl Ending {
    /// A new word for a program.
    pub fn new(language: Language) -> Self {
        Self { language, word: format!("tests-ended-{:032x}", rand::random::<u128>()) }
    }

    /// The program with the word after its tests, where that is a matter of its text.
    pub fn added_to(&self, source: &str) -> String {
        let word = &self.word;
        match self.language {
            // The streams that the interpreter began with: a program may have put others in place.
            Language::Python => {
                format!("{source}\n__import__(\"sys\").__stdout__.write(\"\\n{word}\\n\")\n")
            }
            Language::JavaScript => format!("{source}\n;process.stdout.write(\"\\n{word}\\n\");\n"),
            // The last brace closes `main`.
            Language::Cpp => match source.rfind('}') {
                Some(end) => format!(
                    "#include <cstdio>\n{};std::puts(\"\\n{word}\");{}",
                    &source[..end],
                    &source[end..]
                ),
                None => source.to_owned(),
            },
            Language::Rust => format!("{source}{}", RUST_MAIN.replace("WORD", word)),
            Language::Java | Language::Go => source.to_owned(),
        }
    }

    /// Writes the files that a program runs with: those that say the word, where its text is left as
    /// it is, and JavaScript's assertions.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn write_files(&self, folder: &Path) -> std::io::Result<()> {
        let word = &self.word;
        let (name, text) = match self.language {
            Language::Java => (
                format!("{JAVA_CLASS}.java"),
                format!(
                    "public class {JAVA_CLASS} {{\n    public static void main(String[] arguments) \
                     throws Throwable {{\n        java.io.PrintStream out = System.out;\n        \
                     Main.main(arguments);\n        out.println(\"\\n{word}\");\n    }}\n}}\n"
                ),
            ),
            Language::Go => (
                "ending_test.go".to_owned(),
                format!(
                    "package main\n\nimport (\n\t\"os\"\n\t\"testing\"\n)\n\n\
                     func TestMain(m *testing.M) {{\n\tcode := m.Run()\n\tif code == 0 {{\n\t\t\
                     os.Stdout.WriteString(\"\\n{word}\\n\")\n\t}}\n\tos.Exit(code)\n}}\n"
                ),
            ),
            Language::JavaScript => (JAVASCRIPT_ASSERTIONS.to_owned(), ASSERTIONS.to_owned()),
            Language::Python | Language::Cpp | Language::Rust => return Ok(()),
        };
        std::fs::write(folder.join(name), text)
    }

    /// Whether the program that ended this way came to the end of its tests.
    pub fn is_in(&self, outcome: &Outcome) -> bool {
        let Some((before, _)) = outcome.stdout_end.rsplit_once(&self.word) else { return false };
        // Rust's harness is content, too, where an answer has made away with the tests.
        self.language != Language::Rust || {
            let counted = before.rsplit_once("\ntest result: ok. ");
            counted.is_some_and(|(_, counts)| !counts.starts_with("0 passed"))
        }
    }
}
