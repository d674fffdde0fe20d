//! Finding the answer in what a model wrote.

/// The number after `####` in a worked GSM8K solution.
pub fn gsm8k_reference(solution: &str) -> Option<&str> {
    solution.rsplit_once("####").map(|(_, answer)| answer.trim())
}

/// The number after the first `#### `, as the reference solutions write it.
pub fn gsm8k_strict(text: &str) -> Option<&str> {
    text.match_indices("#### ").find_map(|(at, mark)| {
        let rest = &text[at + mark.len()..];
        let digits = rest.strip_prefix('-').unwrap_or(rest);
        let end = digits.find(|c: char| !is_numeric(c)).unwrap_or(digits.len());
        (end > 0).then(|| &rest[..rest.len() - digits.len() + end])
    })
}

/// The last number in the text, wherever it stands.
pub fn gsm8k_flexible(text: &str) -> Option<&str> {
    let mut found = None;
    let mut start = 0;
    while let Some(at) = text[start..].find(|c: char| is_numeric(c) || c == '$') {
        let from = start + at;
        let rest = &text[from..];
        let end = rest.find(|c: char| !is_numeric(c) && c != '$').unwrap_or(rest.len());
        if rest[..end].contains(|c: char| c.is_ascii_digit()) {
            let negative = text[..from].ends_with('-');
            found = Some(&text[from - usize::from(negative)..from + end]);
        }
        start = from + end;
    }
    found
}

fn is_numeric(c: char) -> bool {
    c.is_ascii_digit() || c == '.' || c == ','
}

/// Whether two ways of writing a number mean the same: thousands separators, dollar signs and a
/// full stop at the end do not count.
pub fn numbers_equal(left: &str, right: &str) -> bool {
    let plain = |text: &str| {
        let text: String = text.trim().chars().filter(|c| !matches!(c, ',' | '$')).collect();
        text.trim_end_matches('.').to_owned()
    };
    let (left, right) = (plain(left), plain(right));
    match (left.parse::<f64>(), right.parse::<f64>()) {
        (Ok(left), Ok(right)) => left == right,
        _ => !left.is_empty() && left == right,
    }
}

/// What follows the first `the answer is` up to the end of its line, without the full stop.
pub fn bbh_answer(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("the answer is ")?;
    let line = rest.lines().next().unwrap_or("").trim_end();
    Some(line.strip_suffix('.').unwrap_or(line).trim())
}

/// The option that a free answer chooses, of those lettered `A`, `B`, …: a letter that stands
/// alone (`B`, `(B)`, `B.`, `answer: B`), the first one. `options` is their number.
///
/// A lone capital A that begins a sentence ("A patient…") is read as a word, not as a choice.
pub fn option_letter(text: &str, options: usize) -> Option<usize> {
    let chars: Vec<char> = text.chars().collect();
    let alone = |at: usize| {
        let before = at == 0 || !chars[at - 1].is_alphanumeric();
        let after = chars.get(at + 1).is_none_or(|c| !c.is_alphanumeric() && *c != '\'');
        before && after
    };
    let is_article = |at: usize| {
        chars[at] == 'A'
            && chars.get(at + 1) == Some(&' ')
            && chars.get(at + 2).is_some_and(|c| c.is_lowercase())
    };
    (0..chars.len()).find_map(|at| {
        let option = (chars[at] as u32).checked_sub('A' as u32)? as usize;
        (option < options && alone(at) && !is_article(at)).then_some(option)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strict_rule_wants_the_mark_and_the_flexible_one_takes_the_last_number() {
        let text = "She has 3 apples.\n#### 1,234\nThat is 5.";
        assert_eq!(gsm8k_strict(text), Some("1,234"));
        assert_eq!(gsm8k_flexible(text), Some("5."));
        assert_eq!(gsm8k_flexible("it costs $18.00 and -7"), Some("-7"));
        assert_eq!(gsm8k_flexible("it costs $18.00, then. ok"), Some("$18.00,"));
        assert_eq!(gsm8k_strict("#### none, but #### -42 follows"), Some("-42"));
        assert_eq!(gsm8k_strict("3"), None);
        assert_eq!(gsm8k_flexible("no number ... here"), None);
        assert_eq!(gsm8k_reference("a\n#### 12 "), Some("12"));
    }

    #[test]
    fn numbers_are_compared_by_value() {
        assert!(numbers_equal("1,234", "1234."));
        assert!(numbers_equal("$18.00", "18"));
        assert!(!numbers_equal("18", "19"));
        assert!(!numbers_equal("", ""));
        assert!(!numbers_equal("-3", "3"));
    }

    #[test]
    fn the_answer_ends_with_its_line() {
        assert_eq!(bbh_answer("We see. So the answer is (B).\n\nQ: next"), Some("(B)"));
        assert_eq!(bbh_answer("So the answer is } ] >."), Some("} ] >"));
        assert_eq!(bbh_answer("I do not know."), None);
        assert_eq!(bbh_answer("the answer is "), Some(""));
    }

    #[test]
    fn a_choice_is_a_letter_of_its_own() {
        assert_eq!(option_letter(" B", 4), Some(1));
        assert_eq!(option_letter("The answer is (C).", 4), Some(2));
        assert_eq!(option_letter("A. Because", 4), Some(0));
        assert_eq!(option_letter("A patient would choose D", 4), Some(3));
        assert_eq!(option_letter("E", 4), None);
        assert_eq!(option_letter("DNA", 4), None);
        assert_eq!(option_letter("", 4), None);
    }
}
