//! Programs of an answer's own function and a question's tests.

use super::answer::redefines;
use super::toolchain::Language;

/// A program that runs `tests` on the function that `own` defines, as [`Code::Whole`](super::Code)
/// has it. `given` is what the question gives before that function: imports, and functions that it may
/// call, unless the answer has them, too.
///
/// Go's imports are left to [`go_imports`].
pub fn program(language: Language, given: &str, own: &str, tests: &str) -> String {
    let imports: String;
    let given = if redefines(own, given, language) {
        imports = only_imports(given, language);
        &imports
    } else {
        given
    };
    match language {
        Language::Python | Language::Go => format!("{given}\n{own}\n{tests}"),
        Language::JavaScript => {
            // What is exported from a module is not from a script.
            let own = by_line(own, |line| {
                let line = line.strip_prefix("export ").unwrap_or(line);
                line.strip_prefix("default ").unwrap_or(line)
            });
            format!("{given}\n{own}\n{tests}")
        }
        // Tests have the `main` that counts.
        Language::Cpp => {
            format!("{given}\n#define main main_of_answer\n{own}\n#undef main\n{tests}")
        }
        Language::Java => java(given, own, tests),
        Language::Rust => rust(given, own, tests),
    }
}

/// An answer's code without its package and imports, and the packages that it imports.
pub fn go_imports(own: &str) -> (String, Vec<String>) {
    let (mut code, mut packages, mut listed) = (String::new(), Vec::new(), false);
    for line in own.lines() {
        let words = line.trim();
        let import = words.strip_prefix("import ").map(str::trim_start);
        if listed || import.is_some() {
            packages.extend(words.split('"').nth(1).map(str::to_owned));
            listed = match import {
                Some(import) => import.starts_with('(') && !import.ends_with(')'),
                None => !words.starts_with(')'),
            };
        } else if !words.starts_with("package ") {
            code.extend([line, "\n"]);
        }
    }
    (code, packages)
}

fn only_imports(given: &str, language: Language) -> String {
    let starts: &[&str] = match language {
        Language::Python => &["import ", "from "],
        Language::JavaScript => &["import ", "const {", "const ["],
        Language::Java => &["import "],
        Language::Go => &[],
        Language::Cpp => &["#", "using "],
        Language::Rust => &["use "],
    };
    let lines = given.lines().filter(|line| starts.iter().any(|start| line.starts_with(start)));
    lines.flat_map(|line| [line, "\n"]).collect()
}

fn by_line<'a>(text: &'a str, change: impl Fn(&'a str) -> &'a str) -> String {
    text.lines().flat_map(|line| [change(line), "\n"]).collect()
}

/// The tests make a `Solution`. An answer may have the class, one of another name, or methods alone.
fn java(given: &str, own: &str, tests: &str) -> String {
    const CLASS: &str = "class Solution";
    let (imports, code): (Vec<&str>, Vec<&str>) = own
        .lines()
        .filter(|line| !line.starts_with("package "))
        .partition(|line| line.starts_with("import "));
    let (imports, code) = (imports.join("\n"), code.join("\n"));
    let first_class = code.lines().find_map(|line| {
        let (before, name) = line.split_once("class ")?;
        let only_modifiers = before.chars().all(|c| c.is_alphabetic() || c == ' ');
        only_modifiers.then(|| name.split(|c: char| !c.is_alphanumeric() && c != '_').next())?
    });
    match first_class {
        Some(name) => {
            let class = if code.contains(CLASS) { "Solution" } else { name };
            // One file has one public class, and that is the tests'.
            let code = code.replace(&format!("public class {class}"), &format!("class {class}"));
            let code = code.replace(&format!("class {class}"), CLASS);
            format!("{imports}\n{}\n{code}\n{tests}", only_imports(given, Language::Java))
        }
        None if given.contains(CLASS) => format!("{imports}\n{given}\n{code}\n}}\n{tests}"),
        None => format!("{imports}\n{given}\n{CLASS} {{\n{code}\n}}\n{tests}"),
    }
}

/// An answer may import again what the question imports, which a glob allows; it may have a `main`, and
/// tests of its own, which end it.
fn rust(given: &str, own: &str, tests: &str) -> String {
    let given: String = given
        .lines()
        .flat_map(|line| {
            let private = line.starts_with("use ") || line.starts_with("fn ");
            [if private { "pub " } else { "" }, line, "\n"]
        })
        .collect();
    let own = own.split("#[cfg(test)]").next().unwrap_or(own);
    format!("mod given {{\n{given}}}\nuse given::*;\n{own}\n{tests}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_gives_its_imports_away() {
        let own = "package main\n\nimport \"fmt\"\nimport (\n  \"sort\"\n  m \"math\"\n)\n\nfunc f() {\n}\n";
        let (code, packages) = go_imports(own);
        assert_eq!(code.trim(), "func f() {\n}");
        assert_eq!(packages, ["fmt", "sort", "math"]);
    }

    #[test]
    fn what_an_answer_defines_again_is_not_given() {
        let given = "import re\ndef g(x):\n    return 1\n";
        let program_of = |own| program(Language::Python, given, own, "check(f)");
        assert_eq!(program_of("def f(x): pass"), format!("{given}\ndef f(x): pass\ncheck(f)"));
        let both = "def g(x): pass\ndef f(x): pass";
        assert_eq!(program_of(both), format!("import re\n\n{both}\ncheck(f)"));
    }

    #[test]
    fn a_java_class_becomes_the_one_that_is_tested() {
        let given = "import java.util.*;\n\nclass Solution {\n";
        let program_of = |own| program(Language::Java, given, own, "public class Main {}");
        for own in [
            "int f() {}\nint g() {}",
            "class Solution {\nint f() {}\nint g() {}\n}",
            "public class Solution {\nint f() {}\nint g() {}\n}",
            "package p;\nimport java.util.List;\npublic class Main {\nint f() {}\nint g() {}\n}",
        ] {
            let program = program_of(own);
            let (_, classes) = program.split_once("class Solution {").unwrap();
            let classes: String = classes.split_whitespace().collect();
            assert_eq!(classes, "intf(){}intg(){}}publicclassMain{}", "{own}");
            assert!(program.contains("import java.util.*;"), "{own}");
            assert_eq!(program.contains("import java.util.List;"), own.contains("List"));
        }
    }
}
