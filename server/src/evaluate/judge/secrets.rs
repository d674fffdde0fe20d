//! What is repeated nowhere: the judge's key, and the query of its address, which may hold one.
//!
//! Endpoints quote requests in their errors, and a model may quote anything; in JSON and in addresses
//! a quotation looks different. So texts are compared letter by letter, whichever way a letter is
//! written.

/// What stands in place of a secret.
const HIDDEN: &str = "[hidden]";
/// Shorter ones are no secrets (`none`, where a local endpoint wants any key), and their letters
/// stand in many words.
const SHORTEST_KEY: usize = 5;
/// Values in a query are versions and switches more often than secrets.
const SHORTEST_VALUE: usize = 8;

/// Texts that are not to be repeated.
#[derive(Default)]
pub struct Secrets(Vec<Vec<u8>>);

impl Secrets {
    /// The key, and the query with each of its longer values.
    pub fn new(key: Option<&str>, query: Option<&str>) -> Self {
        let values = query.into_iter().flat_map(|query| query.split('&'));
        let values = values.filter_map(|pair| pair.split_once('=')).map(|(_, value)| value);
        let long = |shortest: usize| move |text: &&str| text.len() >= shortest;
        let secrets = key.into_iter().filter(long(SHORTEST_KEY));
        let secrets = secrets.chain(query.into_iter().filter(long(SHORTEST_KEY)));
        let secrets = secrets.chain(values.filter(long(SHORTEST_VALUE)));
        let letters = secrets.map(|text| letters(text.as_bytes()).map(|(letter, _)| letter));
        Self(letters.map(Iterator::collect).collect())
    }

    /// The text without them.
    pub fn hide(&self, text: &str) -> String {
        let bytes = text.as_bytes();
        let mut out = String::with_capacity(text.len());
        let (mut kept, mut at) = (0, 0);
        while at < bytes.len() {
            let ends = self.0.iter().filter_map(|secret| end_of(secret, &bytes[at..]));
            match ends.max() {
                Some(length) => {
                    out.push_str(text.get(kept..at).unwrap_or_default());
                    out.push_str(HIDDEN);
                    at += length;
                    kept = at;
                }
                None => at += 1,
            }
        }
        out.push_str(text.get(kept..).unwrap_or_default());
        out
    }
}

/// The length of the secret that `text` begins with.
fn end_of(secret: &[u8], text: &[u8]) -> Option<usize> {
    let mut end = None;
    let mut found = letters(text);
    for letter in secret {
        let (same, length) = found.next()?;
        if same != *letter {
            return None;
        }
        end = Some(length);
    }
    end
}

/// The letters of a text that may be percent-encoded or escaped as in JSON, each with the length of
/// the text up to its end. Backslashes are left out: how many there are depends on how often a text
/// was quoted.
fn letters(text: &[u8]) -> impl Iterator<Item = (u8, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let begin = at;
            while text.get(at) == Some(&b'\\') {
                at += 1;
            }
            let rest = text.get(at..)?;
            let escaped = match rest {
                [b'%', high, low, ..] => hexadecimal(&[*high, *low]).map(|code| (code, 3)),
                [b'u', code @ ..] if at > begin => escape(code).map(|(code, n)| (code, n + 1)),
                _ => None,
            };
            let (letter, length) = match escaped {
                // Secrets are sent in headers and addresses: ASCII.
                Some((code, length)) => (u8::try_from(code).unwrap_or(u8::MAX), length),
                None => (*rest.first()?, 1),
            };
            at += length;
            if letter != b'\\' {
                return Some((letter, at));
            }
        }
    })
}

/// What follows `\u`: four digits in JSON, any number in braces in a message of ours.
fn escape(text: &[u8]) -> Option<(u32, usize)> {
    if let [b'{', rest @ ..] = text {
        let length = rest.iter().take(7).position(|&byte| byte == b'}')?;
        return Some((hexadecimal(&rest[..length])?, length + 2));
    }
    Some((hexadecimal(text.get(..4)?)?, 4))
}

fn hexadecimal(digits: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(digits).ok().filter(|d| !d.starts_with('+'))?;
    u32::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_hidden_however_it_is_written() {
        let secrets = Secrets::new(Some("sk-\"a/b\\c%=d"), None);
        for text in [
            r#"sk-"a/b\c%=d"#,
            r#"sk-\"a\/b\\c%=d"#,
            r#"sk-\"a/b\\\\c%=d"#,
            "sk-%22a%2Fb%5Cc%25%3Dd",
            "sk%2d%22a%2fb%5cc%25%3dd",
            r#"sk\u002d\u0022a/b\u005Cc%=d"#,
            r#"sk\\u002d\\u0022a/b\u005cc%=d"#,
            r#"sk\u{2d}\"a/b\\c%=d"#,
        ] {
            assert_eq!(secrets.hide(&format!("wrong: {text}, é")), "wrong: [hidden], é", "{text}");
            assert_eq!(secrets.hide(&format!("{text}{text}")), "[hidden][hidden]", "{text}");
        }
    }

    #[test]
    fn other_words_stay_as_they_are() {
        let secrets = Secrets::new(Some("secret"), None);
        for text in ["", "secre", "Über \\users %2 %zz \\u00 [[9]] \\", "s-e-c-r-e-t"] {
            assert_eq!(secrets.hide(text), text);
        }
        assert_eq!(Secrets::new(Some("1"), None).hide("[[1]]"), "[[1]]");
    }

    #[test]
    fn a_query_is_hidden_whole_and_value_by_value() {
        let secrets = Secrets::new(None, Some("stream=true&key=a%2Bsecret"));
        assert_eq!(secrets.hide("no ?stream=true&key=a+secret"), "no ?[hidden]");
        assert_eq!(secrets.hide("it is true: a+secret"), "it is true: [hidden]");
    }
}
