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

/// What follows the first "the answer is", small or capital, up to the end of its line, without a colon
/// before, a full stop after and marks of bold type.
pub fn bbh_answer(text: &str) -> Option<&str> {
    const LEAD: &str = "the answer is";
    let lower = text.to_ascii_lowercase();
    let at = lower
        .match_indices(LEAD)
        .map(|(at, lead)| at + lead.len())
        .find(|&at| text[at..].starts_with([' ', ':']))?;
    let line = text[at..].lines().next().unwrap_or("").trim();
    let line = line.strip_prefix(':').unwrap_or(line).trim();
    let line = line.trim_matches('*');
    Some(line.strip_suffix('.').unwrap_or(line).trim_matches('*').trim())
}

/// The option that a free answer chooses, of those lettered `A`, `B`, …; `options` is their number.
///
/// The first letter that "answer" leads to, as in `the answer is (C)`, or that is said to be it, as in `C is
/// the answer`; if there is none, the first that stands alone (`B`, `(b)`, `B.`). A letter that is denied
/// ("not A", "A is wrong") is no choice. A capital A that begins a sentence before a word in small letters is
/// an article ("A patient…"), unless that word is a verb ("A fits"). Small letters count where "answer" leads
/// to them, in brackets, or as the whole answer.
pub fn option_letter(text: &str, options: usize) -> Option<usize> {
    let words = words(text);
    let letter = |at: usize, led_to: bool| {
        let word = words.get(at)?;
        let mut letters = word.text.chars();
        let (Some(letter), None) = (letters.next(), letters.next()) else { return None };
        let chosen = if letter.is_ascii_uppercase() {
            led_to || letter != 'A' || !is_article(word, words.get(at + 1))
        } else {
            let ends = led_to && word.after != Some(' ');
            ends || word.before == Some('(') || word.after == Some(')') || words.len() == 1
        };
        let option = (letter.to_ascii_uppercase() as u32).checked_sub('A' as u32)? as usize;
        (chosen && option < options && !is_denied(&words, at)).then_some(option)
    };
    let said = led_to(&words).find_map(|at| letter(at, true));
    let called = || (0..words.len()).filter(|&at| is_affirmed(&words, at));
    said.or_else(|| called().find_map(|at| letter(at, false)))
        .or_else(|| (0..words.len()).find_map(|at| letter(at, false)))
}

/// Which of some words an answer says: the first that "answer" leads to, else the first of all.
pub fn chosen_word(text: &str, choices: &[&str]) -> Option<usize> {
    let words = words(text);
    let choice = |at: usize| {
        let word = words.get(at)?.text;
        choices.iter().position(|choice| word.eq_ignore_ascii_case(choice))
    };
    led_to(&words).find_map(choice).or_else(|| (0..words.len()).find_map(choice))
}

/// Where the words stand that "answer" and its like lead to.
fn led_to(words: &[Word]) -> impl Iterator<Item = usize> {
    const LEADS: [&str; 5] = ["answer", "prefer", "choose", "pick", "select"];
    const BETWEEN: [&str; 17] = [
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
        "correct",
    ];
    let leads = words.iter().enumerate().filter(|(_, word)| word.is_one_of(&LEADS));
    leads.map(|(at, _)| {
        let rest = words[at + 1..].iter();
        at + 1 + rest.take_while(|word| word.is_one_of(&BETWEEN)).count()
    })
}

/// Whether what follows a letter says that it is the answer.
fn is_affirmed(words: &[Word], at: usize) -> bool {
    const RIGHT: [&str; 5] = ["answer", "right", "correct", "best", "true"];
    let is = |at: usize, list: &[&str]| words.get(at).is_some_and(|word| word.is_one_of(list));
    let article = usize::from(is(at + 2, &["the"]));
    is(at + 1, &["is", "was"]) && is(at + 2 + article, &RIGHT)
}

/// Whether a letter is mentioned only to be denied.
fn is_denied(words: &[Word], at: usize) -> bool {
    const BEFORE: [&str; 9] =
        ["not", "isn't", "isn’t", "neither", "nor", "than", "between", "both", "except"];
    const CANNOT: [&str; 8] =
        ["cannot", "can't", "can’t", "not", "wouldn't", "wouldn’t", "won't", "won’t"];
    const EXCLUDED: [&str; 4] = ["excluded", "eliminated", "ruled", "dismissed"];
    const WRONG: [&str; 6] = ["incorrect", "wrong", "not", "false", "unlikely", "out"];
    let before = |back: usize| at.checked_sub(back).map(|at| &words[at]);
    let is = |at: usize, list: &[&str]| words.get(at).is_some_and(|word| word.is_one_of(list));
    before(1).is_some_and(|word| word.is_one_of(&BEFORE))
        || (before(1).is_some_and(|word| word.is_one_of(&["be"]))
            && before(2).is_some_and(|word| word.is_one_of(&CANNOT)))
        || is(at + 1, &["isn't", "isn’t"])
        || (is(at + 1, &["is", "was"]) && is(at + 2, &WRONG))
        || (is(at + 1, &["can"]) && is(at + 2, &["be"]) && is(at + 3, &EXCLUDED))
}

/// Whether a capital A is the article that begins a sentence, rather than a choice.
fn is_article(a: &Word, next: Option<&Word>) -> bool {
    const AFTER_CHOICE: [&str; 15] = [
        "because", "since", "and", "or", "but", "not", "due", "for", "given", "will", "would",
        "can", "could", "should", "may",
    ];
    a.begins
        && a.after == Some(' ')
        && next.is_some_and(|next| {
            next.text.starts_with(|c: char| c.is_lowercase())
                && !next.text.ends_with('s')
                && !next.is_one_of(&AFTER_CHOICE)
        })
}

/// A word with the characters on both sides of it.
struct Word<'a> {
    text: &'a str,
    before: Option<char>,
    after: Option<char>,
    /// Whether it begins a sentence.
    begins: bool,
}

impl Word<'_> {
    fn is_one_of(&self, words: &[&str]) -> bool {
        words.iter().any(|word| self.text.eq_ignore_ascii_case(word))
    }
}

fn words(text: &str) -> Vec<Word<'_>> {
    let in_word = |c: char| c.is_alphanumeric() || matches!(c, '\'' | '’');
    let quote = |c: char| matches!(c, '\'' | '’');
    let mut words = Vec::new();
    let mut end = 0;
    while let Some(start) = text[end..].find(in_word).map(|at| end + at) {
        let between = &text[end..start];
        end = text[start..].find(|c| !in_word(c)).map_or(text.len(), |at| start + at);
        let word = text[start..end].trim_matches(quote);
        if word.is_empty() {
            continue;
        }
        let at = start + text[start..end].find(word).unwrap_or(0);
        words.push(Word {
            text: word,
            before: text[..at].chars().next_back(),
            after: text[at + word.len()..].chars().next(),
            begins: words.is_empty() || between.contains(['.', '!', '?', ':', '\n']),
        });
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
        assert_eq!(bbh_answer("The answer is: **(B)**."), Some("(B)"));
        assert_eq!(bbh_answer("**So the answer is (B).**"), Some("(B)"));
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
            ("The answer is A (amoxicillin).", 'A'),
            ("The answer is option A amoxicillin", 'A'),
            ("The answer is 'B'.", 'B'),
            ("the answer is c", 'C'),
            ("answer: d", 'D'),
            ("A is incorrect because of the fever. B is incorrect. C is the correct answer.", 'C'),
            ("A is wrong, B is wrong, so C.", 'C'),
            ("The answer isn't A; it's B.", 'B'),
            ("The answer cannot be A, so it must be D.", 'D'),
            ("Rather than A, pick B", 'B'),
            ("neither A nor B; C", 'C'),
            ("A gives a more honest answer.", 'A'),
            ("A will do", 'A'),
            ("Both A and B are fine, but B is better", 'B'),
            ("Between A and B, I prefer B.", 'B'),
            ("A patient would choose D", 'D'),
            ("The answer is that a patient would choose D", 'D'),
            ("A is tempting, but C is the answer.", 'C'),
            ("B is close. D was right.", 'D'),
            ("A can be excluded, B can be ruled out: C", 'C'),
            ("The answer wouldn't be A but C", 'C'),
            ("Anything except A. So B.", 'B'),
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
