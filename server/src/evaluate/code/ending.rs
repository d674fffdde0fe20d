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
            Language::Java | Language::Go | Language::Rust => source.to_owned(),
        }
    }

    /// Writes the files that say the word, where a program's text is left as it is.
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
            Language::Python | Language::JavaScript | Language::Cpp | Language::Rust => {
                return Ok(());
            }
        };
        std::fs::write(folder.join(name), text)
    }

    /// Whether the program that ended this way came to the end of its tests.
    pub fn is_in(&self, outcome: &Outcome) -> bool {
        match self.language {
            // Rust's own harness counts the tests after the last one; what tests print it keeps.
            Language::Rust => {
                let counted = outcome.stdout_end.rsplit_once("\ntest result: ok. ");
                counted.is_some_and(|(_, counts)| !counts.starts_with("0 passed"))
            }
            _ => outcome.stdout_end.contains(&self.word),
        }
    }
}
