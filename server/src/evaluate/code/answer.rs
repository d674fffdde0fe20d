//! Finding the code in what a model wrote.

use super::toolchain::Language;

/// What an answer holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Code {
    /// What follows the function's signature.
    Body(String),
    /// The function itself, with what its author wrote beside it: imports, helpers.
    Whole(String),
}

impl Code {
    /// The code in an answer to a question about the function `name`.
    ///
    /// An answer may go on where the signature ends, or be a chat's: words, and the function in a fenced
    /// block. The last block that defines the function counts, for an answer may correct itself, unless it
    /// only repeats the signature; if none does, what goes on, up to a fence that would close it; else the
    /// first block.
    pub fn of(answer: &str, language: Language, name: &str) -> Self {
        let mut blocks = fenced(answer);
        let (before, behind) = answer.split_at(first_fence(answer).unwrap_or(answer.len()));
        // What is indented stands in the function that the question began.
        let first = before.lines().find(|line| !line.trim().is_empty()).unwrap_or("");
        let goes_on = ["  ", "\t"].iter().any(|deep| first.starts_with(deep));
        if goes_on {
            // The first fence may close what goes on, and the next one open another block.
            blocks.extend(fenced(behind.split_once('\n').map_or("", |(_, behind)| behind)));
        }
        let defining =
            || blocks.iter().rev().filter(|block| definition(block, language, name).is_some());
        let with_body = defining().find(|block| !ends_with_signature(block, language, name));
        if let Some(block) = with_body.or(defining().next()) {
            return Self::Whole(block.clone());
        }
        if goes_on {
            return Self::Body(without_words_behind(before, language).to_owned());
        }
        if let Some(block) = blocks.into_iter().next() {
            return Self::Body(indented(block, language));
        }
        match definition(answer, language, name) {
            Some(at) => {
                let (before, own) = answer.split_at(at);
                let start = code_start(before);
                Self::Whole(before[start..].to_owned() + without_words_behind(own, language))
            }
            None => Self::Body(answer.to_owned()),
        }
    }
}

/// A body as it stands in its function: Python's counts only where it is indented.
fn indented(body: String, language: Language) -> String {
    let first = body.lines().find(|line| !line.trim().is_empty()).unwrap_or("");
    match language == Language::Python && !first.starts_with([' ', '\t']) {
        true => body.lines().flat_map(|line| ["    ", line, "\n"]).collect(),
        false => body,
    }
}

/// What a question gives before the function `name`, of which it gives the signature at least.
pub fn given_before<'a>(text: &'a str, language: Language, name: &str) -> Option<&'a str> {
    let lines = lines_with_places(text).filter(|(_, line)| defines(line, language, name));
    lines.last().map(|(at, _)| &text[..at])
}

/// Whether `code` defines a function that `given` defines, too. Of `main` no one takes the other's.
pub fn redefines(code: &str, given: &str, language: Language) -> bool {
    let mut names = given.lines().filter_map(|line| {
        let before = line.split_once(['(', '=', '<']).map_or("", |(before, _)| before.trim_end());
        let start = before.rfind(|c: char| !c.is_alphanumeric() && c != '_').map_or(0, |at| at + 1);
        let name = &before[start..];
        (!matches!(name, "" | "main") && defines(line, language, name)).then_some(name)
    });
    names.any(|name| definition(code, language, name).is_some())
}

/// The mark of a line that opens or closes a fenced block. Words may stand before it, and the language
/// behind it; code in a line is no block.
fn fence(line: &str) -> Option<&'static str> {
    ["```", "~~~"].into_iter().find(|mark| line.matches(mark).count() == 1)
}

/// Where the first fence stands.
fn first_fence(answer: &str) -> Option<usize> {
    lines_with_places(answer).find_map(|(at, line)| Some(at + line.find(fence(line)?)?))
}

/// The contents of fenced blocks, less the indentation of their fences; one that is not closed goes to
/// the end.
fn fenced(answer: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = answer.lines();
    while let Some(line) = lines.next() {
        let Some(mark) = fence(line) else { continue };
        let indentation = line.len() - line.trim_start().len();
        let mut block = String::new();
        for line in lines.by_ref() {
            let spaces = line.len() - line.trim_start().len();
            let line = &line[spaces.min(indentation)..];
            let end = line.trim_end().trim_end_matches(&mark[..1]);
            let closes = line.trim_end().ends_with(mark);
            if !closes || !end.trim().is_empty() {
                block.extend([if closes { end } else { line }, "\n"]);
            }
            if closes {
                break;
            }
        }
        blocks.push(block);
    }
    blocks
}

/// Where the line begins that defines the function.
pub(super) fn definition(code: &str, language: Language, name: &str) -> Option<usize> {
    let found = lines_with_places(code).find(|(_, line)| defines(line, language, name));
    found.map(|(at, _)| at)
}

pub(super) fn lines_with_places(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut end = 0;
    text.split_inclusive('\n').map(move |line| {
        let at = end;
        end += line.len();
        (at, line)
    })
}

/// Whether the code ends before the body of the function begins.
fn ends_with_signature(code: &str, language: Language, name: &str) -> bool {
    let Some(at) = definition(code, language, name) else { return false };
    let own = code[at..].trim_end();
    match language {
        Language::Python => own.ends_with(':'),
        Language::JavaScript if own.contains("=>") => own.ends_with("=>") || own.ends_with('{'),
        _ => !own.contains('}'),
    }
}

/// Python code without the words that explain it, which no fence keeps apart. In other languages they
/// cannot be told from code by a line alone.
fn without_words_behind(code: &str, language: Language) -> &str {
    let in_text = |at: usize| {
        ["\"\"\"", "'''"].iter().any(|quotes| code[..at].matches(quotes).count() % 2 == 1)
    };
    let mut lines = lines_with_places(code).filter(|_| language == Language::Python);
    match lines.find(|&(at, line)| is_sentence(line) && !in_text(at)) {
        Some((at, _)) => &code[..at],
        None => code,
    }
}

/// Whether a line of Python begins as a sentence does ("This function", "Explanation:").
fn is_sentence(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let first = words.next().filter(|_| line.starts_with(char::is_uppercase)).unwrap_or("");
    let letters = first.trim_end_matches([':', ',', '!']);
    let word = !letters.is_empty() && letters.chars().all(char::is_alphabetic);
    word && match words.next() {
        // As a constant with its type has it.
        Some(second) => second.starts_with(char::is_alphabetic) && !line.contains('='),
        None => first.ends_with(':'),
    }
}

/// Where code begins after words without a fence, `before` the function: with the first line that no
/// sentence is.
fn code_start(before: &str) -> usize {
    const STARTS: [&str; 16] = [
        "#",
        "//",
        "/*",
        "@",
        "import ",
        "from ",
        "def ",
        "class ",
        "const ",
        "function ",
        "use ",
        "fn ",
        "func ",
        "using ",
        "package ",
        "public ",
    ];
    let lines = lines_with_places(before);
    let mut code = lines.filter(|(_, line)| STARTS.iter().any(|start| line.starts_with(start)));
    code.next().map_or(before.len(), |(at, _)| at)
}

/// Whether the line begins the definition of the function. A line that only calls it does not, nor does
/// one that only declares it.
fn defines(line: &str, language: Language, name: &str) -> bool {
    let line = line.trim();
    let mut places = line.match_indices(name);
    places.any(|(at, _)| {
        let (before, after) = (line[..at].trim_end(), line[at + name.len()..].trim());
        let apart = line[..at].ends_with(|c: char| c.is_whitespace() || matches!(c, '*' | '&'));
        let last = before.split_whitespace().next_back().unwrap_or("");
        apart
            && match language {
                Language::Python => last == "def" && after.starts_with(['(', '[']),
                Language::Go => last == "func" && after.starts_with(['(', '[']),
                Language::Rust => last == "fn" && after.starts_with(['(', '<']),
                Language::JavaScript => match last {
                    "function" | "function*" => after.starts_with('('),
                    "const" | "let" | "var" => after.starts_with('='),
                    _ => false,
                },
                Language::Java | Language::Cpp => {
                    after.starts_with('(') && !after.ends_with(';') && is_type(before)
                }
            }
    })
}

/// Whether the text before a name can be a type with its modifiers, as in `static const int &`.
fn is_type(text: &str) -> bool {
    const STATEMENTS: [&str; 5] = ["return", "else", "case", "new", "throw"];
    let of_type = |c: char| c.is_alphanumeric() || " \t_:<>,&*[]?".contains(c);
    let first = text.split_whitespace().next().unwrap_or("");
    !text.is_empty() && text.chars().all(of_type) && !STATEMENTS.contains(&first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_direct_continuation_is_taken_as_it_is() {
        for answer in ["    return 1\n", "    def f(x):\n        return 1\n    return f(2)\n"] {
            assert_eq!(Code::of(answer, Language::Python, "f"), Code::Body(answer.to_owned()));
        }
    }

    #[test]
    fn a_chat_answer_keeps_what_stands_beside_the_function() {
        for (language, code) in [
            (Language::Python, "import math\ndef f(x: int) -> int:  # doubles\n    return x"),
            (
                Language::Python,
                "def g(x):\n    return x\n\nasync def f(\n    x,\n):\n    return g(x)",
            ),
            (Language::JavaScript, "const f = (x) => {\n  return x;\n}"),
            (Language::JavaScript, "export function f(x)\n{\n  return x;\n}"),
            (Language::Java, "import java.util.*;\npublic static List<String> f(int x)\n{\n}"),
            (Language::Go, "func f(x int) int {\n  return g(x)\n}\nfunc g(x int) int { return x }"),
            (Language::Cpp, "#include <vector>\nvector<int> f(int x,\n  int y) {\n  return x;\n}"),
            (Language::Cpp, "static const string &f(int x){\n  return x;\n}"),
            (Language::Rust, "use std::fmt;\npub fn f<'a>(x: &'a str) -> &'a str {\n    x\n}"),
        ] {
            let whole = Code::Whole(format!("{code}\n"));
            for answer in [
                format!("Sure! Here:\n```\n{code}\n```\nIt works."),
                format!("~~~python\n{code}\n~~~\n"),
                format!("Use `f` like this: ```x\n{code}```\nDone."),
                format!("```bash\npip install numpy\n```\nand\n```x\n{code}\n```\n"),
                format!("```\n{code} bad\n```\nNo, this:\n```\n{code}\n```"),
                format!("1. So:\n   ```\n   {}\n   ```\n", code.replace('\n', "\n   ")),
                format!("```\n{code}"),
            ] {
                assert_eq!(Code::of(&answer, language, "f"), whole, "{answer}");
            }
            let code = format!("{code}\n");
            assert_eq!(Code::of(&code, language, "f"), whole);
            let answer = format!("Here you are:\n\n{code}");
            assert_eq!(Code::of(&answer, language, "f"), whole);
        }
        let body = Code::Body("    return x\n".to_owned());
        for answer in [
            "```python\n    return x\n```",
            "Sure:\n```python\nreturn x\n```",
            "    return x\n```",
            "    return x\n```\n\nThis works.",
            "    return x\n```\nAnd a test:\n```\nassert f(1) == 1\n```",
        ] {
            assert_eq!(Code::of(answer, Language::Python, "f"), body, "{answer}");
        }
        let glued = Code::of("\treturn x```\nDone.", Language::Go, "f");
        assert_eq!(glued, Code::Body("\treturn x".to_owned()));
        let corrected = Code::of("    bad\n```\n```\ndef f(x): pass\n```", Language::Python, "f");
        assert_eq!(corrected, Code::Whole("def f(x): pass\n".to_owned()));
    }

    #[test]
    fn a_block_that_only_repeats_the_signature_does_not_count() {
        for (language, code, signature) in [
            (Language::Python, "def f(x):\n    return x", "def f(x):"),
            (Language::Python, "def f(x): return x", "def f(\n    x,\n) -> int:"),
            (Language::JavaScript, "const f = (x) => x + 1", "const f = (x) =>"),
            (Language::JavaScript, "function f(x) {\n  return x;\n}", "function f(x) {"),
            (Language::Java, "int f(int x) {\n  return x;\n}", "public static int f(int x)"),
            (Language::Go, "func f(x int) int { return x }", "func f(x int) int"),
            (Language::Cpp, "int f(int x) {\n  return x;\n}", "int f(int x)"),
            (Language::Rust, "fn f(x: i32) -> i32 { x }", "fn f(x: i32) -> i32"),
        ] {
            let answer = format!("```\n{code}\n```\nIt has the signature\n```\n{signature}\n```");
            assert_eq!(Code::of(&answer, language, "f"), Code::Whole(format!("{code}\n")));
            let alone = format!("```\n{signature}\n```");
            assert_eq!(Code::of(&alone, language, "f"), Code::Whole(format!("{signature}\n")));
        }
    }

    #[test]
    fn words_behind_code_without_a_fence_are_left_out_of_python() {
        let codes = [
            "def f(x):\n    \"\"\"This function\"\"\"\n    return MOD\n\nMOD: int = 7\nTABLE = [\n  1]\n\n",
            "def f(x):\n    return '''\nThis is code\n'''\n",
            "class A:\n    pass\n\ndef f(x):\n    return A if x else None\n\n# This is a test\n",
        ];
        let words = ["This function works.", "Explanation:", "Note that\nit works", "Here, we go"];
        for words in words {
            for code in codes {
                let answer = format!("Sure!\n\n{code}{words}\n");
                assert_eq!(Code::of(&answer, Language::Python, "f"), Code::Whole(code.to_owned()));
            }
            let body = "    return x\n\n";
            let answer = format!("{body}{words}");
            assert_eq!(Code::of(&answer, Language::Python, "f"), Code::Body(body.to_owned()));
        }
        let java = "int f(int x) {\n  return x;\n}\nInteger other;\n";
        assert_eq!(Code::of(java, Language::Java, "f"), Code::Whole(java.to_owned()));
    }

    #[test]
    fn a_call_is_no_definition() {
        for (language, call) in [
            (Language::Python, "if f(x):\n        return 1"),
            (Language::Python, "elif f(n):\n        return 1"),
            (Language::Python, "for y in f(x):\n        pass"),
            (Language::Python, "while g.f(x):\n        return 1"),
            (Language::Python, "print(f(2))\n"),
            (Language::Python, "def other_f(x):\n        return 1"),
            (Language::JavaScript, "while (f(x)) {\n  }"),
            (Language::JavaScript, "return f(x, (y) => {\n  })"),
            (Language::Java, "if (x > f(y)) {\n    }"),
            (Language::Java, "} else if (f(y)) {\n    }"),
            (Language::Go, "for _, v := range f(x) {\n  }"),
            (Language::Cpp, "for (auto v : f(x)) {\n  }"),
            (Language::Cpp, "int f(int x);\n"),
            (Language::Rust, "match f(x) {\n    }"),
            (Language::Rust, "for v in f(x) {\n    }"),
        ] {
            assert_eq!(Code::of(call, language, "f"), Code::Body(call.to_owned()));
        }
    }

    #[test]
    fn what_a_question_gives_ends_at_the_last_definition() {
        let text = "import re\ndef f(x): pass\n\ndef f(x):\n    \"\"\"f(x)\"\"\"\n";
        let given = given_before(text, Language::Python, "f").unwrap();
        assert_eq!(given, "import re\ndef f(x): pass\n\n");
        assert_eq!(given_before(text, Language::Python, "g"), None);
        assert!(redefines("def f(x):\n", given, Language::Python));
        assert!(!redefines("def g(x):\n    f(x)", given, Language::Python));
        assert!(redefines(
            "const g = 1\nconst f = 2",
            "const f = (x) => {\n}",
            Language::JavaScript
        ));
    }
}
