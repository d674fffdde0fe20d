//! Finding a function's body in what a model wrote.

/// What follows the function's signature in an answer.
///
/// An answer may continue the signature directly, or be a chat's: words, a fenced block, and in it
/// the whole function again. Then the first fenced block counts, and in it what follows the line
/// that defines `entry_point`.
pub fn completion_of<'a>(answer: &'a str, entry_point: &str) -> &'a str {
    let text = fenced(answer).unwrap_or(answer);
    let mut end = 0;
    for line in text.split_inclusive('\n') {
        end += line.len();
        if defines(line.trim(), entry_point) {
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

/// Whether the line opens the definition of the function.
fn defines(line: &str, entry_point: &str) -> bool {
    let opens = line.ends_with(['{', ':']) || line.ends_with("=>");
    let mut places = line.match_indices(entry_point);
    opens
        && places.any(|(at, _)| {
            let before = line[..at].chars().next_back();
            let after = line[at + entry_point.len()..].trim_start();
            before.is_some_and(|c| !c.is_alphanumeric() && !matches!(c, '_' | '.' | '('))
                && after.starts_with(['(', '=', '<'])
        })
}

/// The completion up to the brace that closes the function's body, whose opening brace stands in
/// the signature. A body that is never closed is kept whole.
///
/// Braces in strings, characters and comments do not count.
pub fn body_in_braces(completion: &str) -> &str {
    let bytes = completion.as_bytes();
    let mut depth = 1usize;
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        at += match rest {
            [b'/', b'/', ..] => until(rest, b"\n"),
            [b'/', b'*', ..] => until(rest, b"*/"),
            [quote @ (b'"' | b'`'), ..] => quoted(rest, *quote),
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
            b'\n' if quote == b'"' => return at,
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
        assert_eq!(completion_of("    return 1\n", "f"), "    return 1\n");
    }

    #[test]
    fn a_chat_answer_is_cut_to_the_body() {
        let answer = "Sure! Here:\n```python\nimport math\ndef f(x: int) -> int:\n    return x\n```\nIt works.";
        assert_eq!(completion_of(answer, "f"), "    return x");
        let answer = "```js\nconst f = (x) => {\n  return x;\n}\n```";
        assert_eq!(completion_of(answer, "f"), "  return x;\n}");
        let answer = "```cpp\nint f(int x) {\n  return x;\n}";
        assert_eq!(completion_of(answer, "f"), "  return x;\n}");
    }

    #[test]
    fn a_call_is_no_definition() {
        assert_eq!(completion_of("    if f(x):\n        return 1", "f"), "        return 1");
        assert_eq!(
            completion_of("    while g.f(x):\n        return 1", "f"),
            "    while g.f(x):\n        return 1"
        );
        assert_eq!(completion_of("    print(f(2))\n", "f"), "    print(f(2))\n");
    }

    #[test]
    fn the_body_ends_at_its_own_brace() {
        assert_eq!(body_in_braces("  if (a) { b(); }\n}\nint main() {}"), "  if (a) { b(); }\n}");
        assert_eq!(
            body_in_braces("x = \"}\"; // }\n /* } */ c = '}'; d = '\\''; }\nrest"),
            "x = \"}\"; // }\n /* } */ c = '}'; d = '\\''; }"
        );
        assert_eq!(body_in_braces("fn g<'a>(x: &'a str) {} }}"), "fn g<'a>(x: &'a str) {} }");
        assert_eq!(body_in_braces("never closed {"), "never closed {");
        assert_eq!(body_in_braces("é\"ü"), "é\"ü");
    }
}
