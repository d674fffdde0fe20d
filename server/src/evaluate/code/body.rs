//! Finding a function's body in what a model wrote.

use super::toolchain::Language;

/// What follows the function's signature in an answer.
///
/// An answer may continue the signature directly, or be a chat's: words, a fenced block, and in it
/// the whole function again. Then the first fenced block counts, and in it what follows the line
/// that defines `entry_point`.
pub fn completion_of<'a>(answer: &'a str, language: Language, entry_point: &str) -> &'a str {
    let text = fenced(answer).unwrap_or(answer);
    let mut end = 0;
    for line in text.split_inclusive('\n') {
        end += line.len();
        if defines(line.trim(), language, entry_point) {
            return &text[end..];
        }
    }
    text
}

/// The content of the first fenced block; one that is not closed goes to the end.
fn fenced(answer: &str) -> Option<&str> {
    let (_, rest) = answer.split_once("```")?;
    let (_, code) = rest.split_once('\n')?;
    Some(code.split_once("\n```").map_or(code, |(code, _)| code))
}

/// Whether the line opens the definition of the function. A line that only calls it does not.
fn defines(line: &str, language: Language, entry_point: &str) -> bool {
    let opens = match language {
        Language::Python => line.ends_with(':'),
        Language::JavaScript => line.ends_with('{') || line.ends_with("=>"),
        Language::Java | Language::Go | Language::Cpp | Language::Rust => line.ends_with('{'),
    };
    let mut places = line.match_indices(entry_point);
    opens
        && places.any(|(at, _)| {
            let (before, after) = (line[..at].trim_end(), line[at + entry_point.len()..].trim());
            let apart = line[..at].ends_with(|c: char| c.is_whitespace() || matches!(c, '*' | '&'));
            let last = before.split_whitespace().next_back().unwrap_or("");
            apart
                && match language {
                    Language::Python => last == "def" && after.starts_with('('),
                    Language::Go => last == "func" && after.starts_with(['(', '[']),
                    Language::Rust => last == "fn" && after.starts_with(['(', '<']),
                    Language::JavaScript => match last {
                        "function" | "function*" => after.starts_with('('),
                        "const" | "let" | "var" => after.starts_with('='),
                        _ => false,
                    },
                    Language::Java | Language::Cpp => after.starts_with('(') && is_type(before),
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

/// The completion up to the brace that closes the function's body, whose opening brace stands in
/// the signature. A body that is never closed is kept whole.
///
/// Braces in strings, characters and comments do not count.
pub fn body_in_braces(completion: &str, language: Language) -> &str {
    let javascript = language == Language::JavaScript;
    let bytes = completion.as_bytes();
    let mut depth = 1usize;
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        at += match rest {
            [b'/', b'/', ..] => until(rest, b"\n"),
            [b'/', b'*', ..] => until(rest, b"*/"),
            [quote @ (b'"' | b'`'), ..] => quoted(rest, *quote),
            [quote @ b'\'', ..] if javascript => quoted(rest, *quote),
            // A lifetime or a contraction is no character literal.
            [b'\'', b'\\', _, b'\'', ..] => 4,
            [b'\'', _, b'\'', ..] => 3,
            [b'{', ..] => {
                depth += 1;
                1
            }
            [b'}', ..] => {
                depth -= 1;
                if depth == 0 {
                    return &completion[..=at];
                }
                1
            }
            _ => 1,
        };
    }
    completion
}

/// Bytes up to and including the mark.
fn until(bytes: &[u8], mark: &[u8]) -> usize {
    let found = bytes.windows(mark.len()).skip(1).position(|window| window == mark);
    found.map_or(bytes.len(), |at| at + 1 + mark.len())
}

/// Bytes of a literal that `quote` begins and ends.
fn quoted(bytes: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'\\' => at += 2,
            // A plain string ends with its line at the latest.
            b'\n' if quote != b'`' => return at,
            _ if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_direct_continuation_is_taken_as_it_is() {
        assert_eq!(completion_of("    return 1\n", Language::Python, "f"), "    return 1\n");
    }

    #[test]
    fn a_chat_answer_is_cut_to_the_body() {
        for (language, definition, rest) in [
            (Language::Python, "import math\ndef f(x: int) -> int:\n", "    return x"),
            (Language::Python, "async def f(x):\n", "    return x"),
            (Language::JavaScript, "const f = (x) => {\n", "  return x;\n}"),
            (Language::JavaScript, "export function f(x) {\n", "  return x;\n}"),
            (Language::Java, "  public static List<String> f(int x) {\n", "    return x;\n  }"),
            (Language::Go, "func f(x int) int {\n", "  return x\n}"),
            (Language::Cpp, "#include <vector>\nvector<int> f(int x) {\n", "  return x;\n}"),
            (Language::Cpp, "static const string &f(int x){\n", "  return x;\n}"),
            (Language::Rust, "pub fn f(x: i32) -> i32 {\n", "    x\n}"),
        ] {
            let answer = format!("Sure! Here:\n```\n{definition}{rest}\n```\nIt works.");
            assert_eq!(completion_of(&answer, language, "f"), rest, "{definition}");
        }
        let answer = "```cpp\nint f(int x) {\n  return x;\n}";
        assert_eq!(completion_of(answer, Language::Cpp, "f"), "  return x;\n}");
    }

    #[test]
    fn a_call_is_no_definition() {
        for (language, call) in [
            (Language::Python, "    if f(x):\n        return 1"),
            (Language::Python, "    elif f(n):\n        return 1"),
            (Language::Python, "    for y in f(x):\n        pass"),
            (Language::Python, "    while g.f(x):\n        return 1"),
            (Language::Python, "    print(f(2))\n"),
            (Language::Python, "    def other_f(x):\n        return 1"),
            (Language::JavaScript, "  while (f(x)) {\n  }"),
            (Language::JavaScript, "  return f(x, (y) => {\n  })"),
            (Language::Java, "    if (x > f(y)) {\n    }"),
            (Language::Java, "    } else if (f(y)) {\n    }"),
            (Language::Go, "  for _, v := range f(x) {\n  }"),
            (Language::Cpp, "  for (auto v : f(x)) {\n  }"),
            (Language::Rust, "    match f(x) {\n    }"),
            (Language::Rust, "    for v in f(x) {\n    }"),
        ] {
            assert_eq!(completion_of(call, language, "f"), call);
        }
    }

    #[test]
    fn the_body_ends_at_its_own_brace() {
        let body_of = |completion| body_in_braces(completion, Language::Cpp);
        assert_eq!(body_of("  if (a) { b(); }\n}\nint main() {}"), "  if (a) { b(); }\n}");
        assert_eq!(
            body_of("x = \"}\"; // }\n /* } */ c = '}'; d = '\\''; }\nrest"),
            "x = \"}\"; // }\n /* } */ c = '}'; d = '\\''; }"
        );
        assert_eq!(body_of("fn g<'a>(x: &'a str) {} }}"), "fn g<'a>(x: &'a str) {} }");
        assert_eq!(body_of("never closed {"), "never closed {");
        assert_eq!(body_of("é\"ü"), "é\"ü");
        let strings = "if (a == '//' || b == '}}') { c() }\n}";
        assert_eq!(body_in_braces(&format!("{strings}\nf()"), Language::JavaScript), strings);
    }
}
