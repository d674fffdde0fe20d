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

/// The option that a free answer chooses, of those lettered `A`, `B`, …; `options` is their number.
///
/// The first letter that "answer" leads to, as in `the answer is (C)`; if there is none, the first that
/// stands alone (`B`, `(b)`, `B.`). A capital A before a word in small letters is an article ("A
/// patient…"), unless that word shows it to be a choice ("A is right"). Small letters count in brackets,
/// or as the whole answer. A letter after "not" is no choice.
pub fn option_letter(text: &str, options: usize) -> Option<usize> {
    let words = words(text);
    let letter = |at: usize| {
        let Word { text: word, before, after } = words.get(at)?;
        let mut letters = word.chars();
        let (Some(letter), None) = (letters.next(), letters.next()) else { return None };
        let capital = letter.is_ascii_uppercase();
        let chosen = if capital {
            !(letter == 'A' && *after == Some(' ') && is_article(words.get(at + 1)))
        } else {
            *before == Some('(') || *after == Some(')') || words.len() == 1
        };
        let denied = at > 0 && words[at - 1].text.eq_ignore_ascii_case("not");
        let option = (letter.to_ascii_uppercase() as u32).checked_sub('A' as u32)? as usize;
        (chosen && !denied && option < options).then_some(option)
    };
    let led_to = |at: usize| {
        let leads = words[at].text.eq_ignore_ascii_case("answer");
        let between =
            |word: &&Word| BETWEEN.iter().any(|between| word.text.eq_ignore_ascii_case(between));
        letter(at + 1 + words[at + 1..].iter().take_while(between).count()).filter(|_| leads)
    };
    (0..words.len()).find_map(led_to).or_else(|| (0..words.len()).find_map(letter))
}

/// Words between "answer" and its letter.
const BETWEEN: [&str; 16] = [
    "is",
    "was",
    "be",
    "would",
    "should",
    "must",
    "to",
    "this",
    "question",
    "the",
    "option",
    "choice",
    "letter",
    "most",
    "likely",
    "therefore",
];

/// Words that follow a choice rather than an article.
const AFTER_CHOICE: [&str; 14] = [
    "is", "was", "as", "because", "since", "and", "or", "but", "not", "would", "seems", "due",
    "for", "given",
];

fn is_article(next: Option<&Word>) -> bool {
    next.is_some_and(|next| {
        next.text.starts_with(|c: char| c.is_lowercase()) && !AFTER_CHOICE.contains(&next.text)
    })
}

/// A word with the characters on both sides of it.
struct Word<'a> {
    text: &'a str,
    before: Option<char>,
    after: Option<char>,
}

fn words(text: &str) -> Vec<Word<'_>> {
    let in_word = |c: char| c.is_alphanumeric() || matches!(c, '\'' | '’');
    let mut words = Vec::new();
    let mut end = 0;
    while let Some(start) = text[end..].find(in_word).map(|at| end + at) {
        end = text[start..].find(|c| !in_word(c)).map_or(text.len(), |at| start + at);
        let (before, after) = (text[..start].chars().next_back(), text[end..].chars().next());
        words.push(Word { text: &text[start..end], before, after });
    }
    words
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
        for (answer, letter) in [
            (" B", 'B'),
            ("b", 'B'),
            ("The answer is (C).", 'C'),
            ("The answer is **C**", 'C'),
            ("answer is (b)", 'B'),
            ("Answer: D", 'D'),
            ("I would take option b)", 'B'),
            ("A. Because", 'A'),
            ("A is the correct answer.", 'A'),
            ("The answer is A because of the fever", 'A'),
            ("The correct answer is A and not B", 'A'),
            ("The answer is A since vitamin B is low", 'A'),
            ("It could be B, but the answer is C.", 'C'),
            ("Group B streptococcus: the answer is C", 'C'),
            ("The answer to this question would be option D", 'D'),
            ("It is not B but C", 'C'),
            ("A patient would choose D", 'D'),
            ("The answer is that a patient would choose D", 'D'),
        ] {
            let option = letter as usize - 'A' as usize;
            assert_eq!(option_letter(answer, 4), Some(option), "{answer}");
        }
        for answer in ["E", "DNA", "", "A patient", "a", "I'd say so", "don't", "answer"] {
            let expected = (answer == "a").then_some(0);
            assert_eq!(option_letter(answer, 4), expected, "{answer}");
        }
    }
}
