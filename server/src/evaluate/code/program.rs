//! Programs of an answer's own function and a question's tests.

use super::answer::{definition, lines_with_places, redefines};
use super::body::{body_in_braces, without_texts};
use super::toolchain::Language;

/// A program that runs `tests` on the function `name` that `own` defines, as
/// [`Code::Whole`](super::Code) has it. `given` is what the question gives before that function: imports,
/// and functions that it may call, unless the answer has them, too.
///
/// Go's imports are left to [`go_imports`].
pub fn program(language: Language, name: &str, given: &str, own: &str, tests: &str) -> String {
    let imports: String;
    // What JavaScript and Rust define again hides what is given.
    let hides = matches!(language, Language::JavaScript | Language::Rust);
    let given = if !hides && redefines(own, given, language) {
        imports = only_imports(given, language);
        &imports
    } else {
        given
    };
    match language {
        Language::Python => python(given, own, tests),
        Language::JavaScript => javascript(name, given, own, tests),
        Language::Java => java(name, given, own, tests),
        Language::Go => format!("{given}\n{}\n{tests}", without_tests(own)),
        // Tests have the `main` that counts.
        Language::Cpp => {
            format!("{given}\n#define main main_of_answer\n{own}\n#undef main\n{tests}")
        }
        Language::Rust => rust(given, own, tests),
    }
}

/// What a question gives of a function, without the white space at its end, as a prompt to go on from.
/// The line break belongs to the tokens of what follows (OctoPack, arXiv 2308.07124, and BigCode's
/// harness ask so): after a text that ends with it, models rather close a fence than go on.
pub fn open_end(given: &str) -> &str {
    given.trim_end()
}

/// The function that `completion` makes of what a question gives ([`open_end`]).
pub fn completed(given: &str, completion: &str) -> String {
    let line_break =
        if completion.trim_start_matches(' ').starts_with(['\n', '\r']) { "" } else { "\n" };
    format!("{}{line_break}{completion}", open_end(given))
}

/// Go code with the imports that it needs: those of the answer, and `packages` that it uses without saying
/// so. Go refuses imports that are not used, and wants all of them at the top. `setup` has some already.
pub fn with_go_imports(setup: &str, own: &[String], packages: &[&str], code: &str) -> String {
    let bare = without_texts(code, Language::Go);
    let used = |name: &str| {
        bare.match_indices(&format!("{name}.")).any(|(at, _)| {
            !bare[..at].ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '.'))
        })
    };
    let mut imports: Vec<String> = Vec::new();
    for spec in own.iter().cloned().chain(packages.iter().map(|package| format!("\"{package}\""))) {
        let (alias, path) = spec.split_once('"').unwrap_or(("", &spec));
        let path = path.trim_end_matches('"');
        let alias = alias.trim();
        let name = if alias.is_empty() { path.rsplit('/').next().unwrap_or(path) } else { alias };
        let there = alias.is_empty() && setup.contains(&format!("\"{path}\""));
        let import = format!("import {spec}\n");
        if !there && (matches!(alias, "." | "_") || used(name)) && !imports.contains(&import) {
            imports.push(import);
        }
    }
    format!("{setup}\n{}\n{code}", imports.concat())
}

/// An answer's code without its package and imports, and these imports: a path in quotes, perhaps with
/// a name before it.
pub fn go_imports(own: &str) -> (String, Vec<String>) {
    let (mut code, mut imports, mut listed) = (String::new(), Vec::new(), false);
    for line in own.lines() {
        let words = line.trim();
        let import = words.strip_prefix("import ").map(str::trim_start);
        if listed || import.is_some() {
            let spec = import.unwrap_or(words).trim_start_matches('(').trim_start();
            let path = spec.match_indices('"').nth(1).map(|(end, _)| spec[..=end].to_owned());
            imports.extend(path);
            listed = match import {
                Some(import) => import.starts_with('(') && !import.ends_with(')'),
                None => !words.starts_with(')'),
            };
        } else if !words.starts_with("package ") {
            code.extend([line, "\n"]);
        }
    }
    (code, imports)
}

fn only_imports(given: &str, language: Language) -> String {
    let starts: &[&str] = match language {
        Language::Python => &["import ", "from "],
        Language::Java => &["import "],
        Language::Cpp => &["#", "using "],
        Language::JavaScript | Language::Go | Language::Rust => &[],
    };
    let lines = given.lines().filter(|line| starts.iter().any(|start| line.starts_with(start)));
    lines.flat_map(|line| [line, "\n"]).collect()
}

fn by_line<'a>(text: &'a str, change: impl Fn(&'a str) -> &'a str) -> String {
    text.lines().flat_map(|line| [change(line), "\n"]).collect()
}

/// What an answer does when it is run by itself is not done, as for a module that is imported. What it
/// imports of the language's future must stand first.
fn python(given: &str, own: &str, tests: &str) -> String {
    let future = |line: &&str| line.starts_with("from __future__ import");
    let (first, own): (Vec<&str>, Vec<&str>) = own.lines().partition(future);
    let (first, own) = (first.join("\n"), own.join("\n"));
    format!("{first}\n__name__ = \"answer\"\n{given}\n{own}\n{tests}")
}

/// An answer has a scope of its own: it may repeat the tests, or what is given. It is a script, which
/// exports nothing, and a module that another one asks for (`require.main !== module`).
fn javascript(name: &str, given: &str, own: &str, tests: &str) -> String {
    let own = by_line(own, |line| {
        let line = line.strip_prefix("export ").unwrap_or(line);
        line.strip_prefix("default ").unwrap_or(line)
    });
    format!(
        "{given}\nconst {name} = ((module) => {{\n{own}\nreturn {name};\n}})({{ exports: {{}} }});\n\
         {tests}"
    )
}

/// Go code without the tests that it repeats.
fn without_tests(own: &str) -> String {
    without_items(own, Language::Go, |line| line.starts_with("func Test"))
}

/// Code without the items that begin with such a line and end with their brace.
fn without_items(code: &str, language: Language, begins: impl Fn(&str) -> bool) -> String {
    let (mut kept, mut end) = (String::new(), 0);
    for (at, line) in lines_with_places(code) {
        if at < end {
            continue;
        }
        match code[at..].find('{').filter(|_| begins(line)) {
            Some(open) => {
                let body = at + open + 1;
                end = body + body_in_braces(&code[body..], language).len();
                // What stands behind the brace goes with it: the line is a whole one.
                kept.push('\n');
            }
            None => kept.push_str(line),
        }
    }
    kept
}

/// The tests make a `Solution`. An answer may have the class, one of another name, or methods alone; and
/// beside it a `Main`, as the tests have.
fn java(name: &str, given: &str, own: &str, tests: &str) -> String {
    const CLASS: &str = "class Solution";
    let (imports, code): (Vec<&str>, Vec<&str>) = own
        .lines()
        .filter(|line| !line.starts_with("package "))
        .partition(|line| line.starts_with("import "));
    let (imports, mut code) = (imports.join("\n"), code.join("\n"));
    let classes = java_classes(&code);
    let defined = definition(&code, Language::Java, name);
    let home = classes.iter().find(|class| defined.is_some_and(|at| class.place.contains(&at)));
    let Some(home) = home.map(|class| class.name.clone()) else {
        let open = if given.contains(CLASS) { "" } else { "class Solution {" };
        return format!("{imports}\n{given}\n{open}\n{code}\n}}\n{tests}");
    };
    if home != "Main" {
        let main = |line: &str| class_name(line) == Some("Main");
        code = without_items(&code, Language::Java, main);
    }
    // One file has one public class, and that is the tests'.
    let code = by_line(&code, |line| match class_name(line) {
        Some(_) => line.strip_prefix("public ").unwrap_or(line),
        None => line,
    });
    let code = with_name(&code, &home, "Solution");
    format!("{imports}\n{}\n{code}\n{tests}", only_imports(given, Language::Java))
}

/// A class that stands in no other one.
struct JavaClass {
    name: String,
    place: std::ops::Range<usize>,
}

fn java_classes(code: &str) -> Vec<JavaClass> {
    let mut classes: Vec<JavaClass> = Vec::new();
    for (at, line) in lines_with_places(code) {
        let inside = classes.last().is_some_and(|class| class.place.contains(&at));
        let Some(name) = class_name(line).filter(|_| !inside) else { continue };
        let Some(open) = code[at..].find('{') else { continue };
        let body = at + open + 1;
        let end = body + body_in_braces(&code[body..], Language::Java).len();
        classes.push(JavaClass { name: name.to_owned(), place: at..end });
    }
    classes
}

/// The name where the line begins a class or its like.
fn class_name(line: &str) -> Option<&str> {
    let kinds = ["class ", "interface ", "enum ", "record "];
    let (before, name) = kinds.iter().find_map(|kind| line.split_once(kind))?;
    let modifiers = ["public", "final", "abstract", "static", "private", "sealed"];
    before.split_whitespace().all(|word| modifiers.contains(&word)).then_some(())?;
    name.split(|c: char| !c.is_alphanumeric() && c != '_').next()
}

/// The code with another name for what is called `old`.
fn with_name(code: &str, old: &str, new: &str) -> String {
    let in_name = |c: char| c.is_alphanumeric() || c == '_';
    let (mut renamed, mut end) = (String::new(), 0);
    for (at, _) in code.match_indices(old) {
        let after = &code[at + old.len()..];
        if !code[..at].ends_with(in_name) && !after.starts_with(in_name) {
            renamed.extend([&code[end..at], new]);
            end = at + old.len();
        }
    }
    renamed + &code[end..]
}

/// An answer may import again what the question imports, which a glob allows; it may have a `main`, and
/// tests of its own, which are left out.
fn rust(given: &str, own: &str, tests: &str) -> String {
    let given: String = given
        .lines()
        .flat_map(|line| {
            let private = line.starts_with("use ") || line.starts_with("fn ");
            [if private { "pub " } else { "" }, line, "\n"]
        })
        .collect();
    let own = without_items(own, Language::Rust, |line| line.starts_with("mod tests"));
    let own = by_line(&own, |line| {
        let of_all = line.starts_with("#![") || line.starts_with("#[cfg(test)]");
        if of_all { "" } else { line }
    });
    format!("mod given {{\n{given}}}\nuse given::*;\n{own}\n{tests}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_completion_begins_on_a_line_of_its_own() {
        for (completion, function) in [
            ("    return 1\n", "def f():\n    return 1\n"),
            ("\n    return 1", "def f():\n    return 1"),
            (" \n    return 1", "def f(): \n    return 1"),
            (" return 1", "def f():\n return 1"),
            ("", "def f():\n"),
        ] {
            assert_eq!(completed("def f():\n", completion), function);
        }
    }

    #[test]
    fn go_has_the_imports_that_it_uses() {
        let own = "package main\n\nimport \"fmt\"\nimport (\n  \"sort\"\n  m \"math\"\n)\n\nfunc f() {\n}\n";
        let (code, imports) = go_imports(own);
        assert_eq!(code.trim(), "func f() {\n}");
        assert_eq!(imports, ["\"fmt\"", "\"sort\"", "m \"math\""]);
        let code =
            "// one at a time.\nfunc f() { sort.Ints(m.x); s.strings.y(\"bytes.\"); math.Abs() }";
        let packages = ["time", "strings", "bytes", "math"];
        let whole = with_go_imports("\"testing\"", &imports, &packages, code);
        let imports: Vec<&str> = whole.lines().filter(|line| line.starts_with("import")).collect();
        assert_eq!(imports, ["import \"sort\"", "import m \"math\"", "import \"math\""]);
    }

    #[test]
    fn what_an_answer_defines_again_is_not_given() {
        let given = "import re\ndef g(x):\n    return 1\n";
        let program_of = |own| program(Language::Python, "f", given, own, "check(f)");
        let start = "__name__ = \"answer\"\nimport re\n";
        let own = "def f(x): pass";
        assert_eq!(program_of(own), format!("\n__name__ = \"answer\"\n{given}\n{own}\ncheck(f)"));
        let both = "def g(x): pass\ndef f(x): pass";
        assert_eq!(program_of(both), format!("\n{start}\n{both}\ncheck(f)"));
        let future = "from __future__ import annotations";
        let whole = program_of(&format!("{future}\n{both}"));
        assert_eq!(whole, format!("{future}\n{start}\n{both}\ncheck(f)"));
    }

    #[test]
    fn a_java_class_becomes_the_one_that_is_tested() {
        let given = "import java.util.*;\n\nclass Solution {\n";
        let program_of = |own| program(Language::Java, "f", given, own, "public class Main {}");
        for own in [
            "int f() {}\nint g() {}",
            "class Solution {\nint f() {}\nint g() {}\n}",
            "public final class Solution {\nint f() {}\nint g() {}\n}",
            "package p;\nimport java.util.List;\npublic class Main {\nint f() {}\nint g() {}\n}",
            "public class Main {\nvoid main() { }\n}\nclass Solution {\nint f() {}\nint g() {}\n}",
            "class Solution {\nint f() {}\nint g() {}\n}\npublic class Main {\nvoid main() { }\n}",
        ] {
            let program = program_of(own);
            let (_, classes) = program.split_once("class Solution {").unwrap();
            let classes: String = classes.split_whitespace().collect();
            assert_eq!(classes, "intf(){}intg(){}}publicclassMain{}", "{own}");
            assert!(program.contains("import java.util.*;"), "{own}");
            assert_eq!(program.contains("import java.util.List;"), own.contains("List"));
        }
        let own = "public class Tool {\npublic Tool() {}\nint f() {}\n}\nclass Toolbox {}";
        let renamed = "class Solution {\npublic Solution() {}\nint f() {}\n}\nclass Toolbox {}";
        assert!(program_of(own).contains(renamed), "{}", program_of(own));
        let nested = "static class Pair {\n}\nint f() {}";
        assert!(program_of(nested).contains(&format!("class Solution {{\n\n\n{nested}\n}}")));
    }

    #[test]
    fn an_answers_own_tests_are_left_out() {
        let own = "#![allow(dead_code)]\n#[cfg(test)]\nmod tests {\n  fn a() {}\n}\nfn f() {}\n";
        let whole = program(Language::Rust, "f", "use x::Y;\n", own, "T");
        assert_eq!(whole, "mod given {\npub use x::Y;\n}\nuse given::*;\n\n\n\nfn f() {}\n\nT");
        let own = "func TestF(t *testing.T) {\n  f()\n}\nfunc f() {}\n";
        assert!(!program(Language::Go, "f", "", own, "T").contains("TestF"));
    }
}
