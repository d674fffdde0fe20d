//! Where a function's body ends.

use super::toolchain::Language;

/// The completion up to the brace that closes the function's body, whose opening brace stands in
/// the signature. A body that is never closed is kept whole.
///
/// Braces in strings, characters and comments do not count.
pub fn body_in_braces(completion: &str, language: Language) -> &str {
    let bytes = completion.as_bytes();
    let mut depth = 1usize;
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'{' => depth += 1,
            b'}' => {
                depth -= 1;
                if depth == 0 {
                    return &completion[..=at];
                }
            }
            _ => {}
        }
        at += text_length(&bytes[at..], language).max(1);
    }
    completion
}

/// The code without its comments and what it has in quotes.
pub fn without_texts(code: &str, language: Language) -> String {
    let mut bare = String::new();
    let mut rest = code;
    while let Some(first) = rest.chars().next() {
        let length = text_length(rest.as_bytes(), language);
        if length == 0 {
            bare.push(first);
        }
        // A text ends at an ASCII character, which begins none of several bytes.
        rest = rest.get(length.max(first.len_utf8())..).unwrap_or("");
    }
    bare
}

/// Bytes of the comment or the quoted text that begins here; 0 where none does.
fn text_length(rest: &[u8], language: Language) -> usize {
    match rest {
        [b'/', b'/', ..] => until(rest, b"\n"),
        [b'/', b'*', ..] => until(rest, b"*/"),
        [quote @ (b'"' | b'`'), ..] => quoted(rest, *quote),
        [quote @ b'\'', ..] if language == Language::JavaScript => quoted(rest, *quote),
        // A lifetime or a contraction is no character literal.
        [b'\'', b'\\', _, b'\'', ..] => 4,
        [b'\'', _, b'\'', ..] => 3,
        _ => 0,
    }
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
    fn comments_and_quotes_are_left_out() {
        let code = "a := \"time.\" // at a time. é\nb /* x. */ := 'c' + `d.`\né";
        assert_eq!(without_texts(code, Language::Go), "a :=  b  :=  + \né");
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
