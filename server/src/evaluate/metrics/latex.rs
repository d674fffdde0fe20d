//! Whether two answers of the MATH data set are the same, by the normalisation of its authors.
//!
//! The rules are those of the published `is_equiv`, with its oddities: answers on which that
//! program fails half-way are compared letter by letter, as it does.

/// The last `\boxed{…}` or `\fbox{…}` of a solution, without the box.
pub fn last_boxed(text: &str) -> Option<&str> {
    // `\boxed 5` up to the end of the formula is allowed too, and comes first.
    if let Some((_, rest)) = text.rsplit_once("\\boxed ") {
        return Some(rest.split('$').next().unwrap_or(rest));
    }
    let start = text.rfind("\\boxed").or_else(|| text.rfind("\\fbox"))?;
    let open = start + text[start..].find('{')?;
    let mut depth = 0usize;
    for (at, byte) in text[open..].bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => return Some(&text[open + 1..open + at]),
            b'}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// The answer in a model's solution: the last box, else the formula between the first and the last
/// dollar sign, else all of it.
pub fn math_answer(text: &str) -> &str {
    if let Some(boxed) = last_boxed(text) {
        return boxed;
    }
    match (text.find('$'), text.rfind('$')) {
        (Some(first), Some(last)) if first < last => &text[first + 1..last],
        _ => text.trim(),
    }
}

/// Whether both answers are the same after normalisation.
pub fn math_equivalent(left: &str, right: &str) -> bool {
    match (normalise(left), normalise(right)) {
        (Some(left), Some(right)) => left == right,
        _ => left == right,
    }
}

/// One way of writing an answer; `None` where the published program raises an exception.
fn normalise(answer: &str) -> Option<String> {
    let mut text = answer.to_owned();
    for (from, to) in [
        ("\n", ""),
        ("\\!", ""),
        ("\\\\", "\\"),
        ("tfrac", "frac"),
        ("dfrac", "frac"),
        ("\\left", ""),
        ("\\right", ""),
        ("^{\\circ}", ""),
        ("^\\circ", ""),
        ("\\$", ""),
    ] {
        text = text.replace(from, to);
    }
    text = without_units(&text)?;
    for (from, to) in [("\\%", ""), (" .", " 0."), ("{.", "{0.")] {
        text = text.replace(from, to);
    }
    if text.is_empty() {
        return Some(text);
    }
    if text.starts_with('.') {
        text.insert(0, '0');
    }
    // `k = 5` and the like: a short name before the only equals sign goes.
    if let [name, value] = text.split('=').collect::<Vec<_>>()[..]
        && name.chars().count() <= 2
    {
        text = value.to_owned();
    }
    text = braced_roots(&text)?.replace(' ', "");
    text = braced_fractions(&text)?;
    if text == "0.5" {
        text = "\\frac{1}{2}".to_owned();
    }
    Some(slashed_fraction(text))
}

/// Cuts `\text{ units}` off.
fn without_units(text: &str) -> Option<String> {
    let mut parts = text.split("\\text{ ");
    let value = parts.next()?.to_owned();
    // One unit at most, or the published program gives up.
    (parts.count() <= 1).then_some(value)
}

/// `\sqrt3` to `\sqrt{3}`.
fn braced_roots(text: &str) -> Option<String> {
    let mut parts = text.split("\\sqrt");
    let mut out = parts.next()?.to_owned();
    for part in parts {
        let argument = part.chars().next()?;
        out.push_str("\\sqrt");
        if argument == '{' {
            out.push_str(part);
        } else {
            out.extend(['{', argument, '}']);
            out.push_str(&part[argument.len_utf8()..]);
        }
    }
    Some(out)
}

/// `\frac12` and `\frac1{72}` to `\frac{1}{2}` and `\frac{1}{72}`.
fn braced_fractions(text: &str) -> Option<String> {
    let mut parts = text.split("\\frac");
    let mut out = parts.next()?.to_owned();
    for part in parts {
        out.push_str("\\frac");
        let mut letters = part.chars();
        let numerator = letters.next()?;
        if numerator == '{' {
            out.push_str(part);
            continue;
        }
        let Some(denominator) = letters.next() else {
            // A lone letter after `\frac`: the published program returns its input unchanged.
            return Some(text.to_owned());
        };
        out.extend(['{', numerator, '}']);
        if denominator == '{' {
            out.push('{');
        } else {
            out.extend(['{', denominator, '}']);
        }
        out.push_str(letters.as_str());
    }
    Some(out)
}

/// `3/4` to `\frac{3}{4}` when nothing else is there.
fn slashed_fraction(text: String) -> String {
    let whole = |part: &str| part.parse::<i128>().is_ok_and(|n| n.to_string() == part);
    match text.split_once('/') {
        Some((a, b)) if whole(a) && whole(b) => format!("\\frac{{{a}}}{{{b}}}"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::super::vectors;
    use super::*;

    #[derive(serde::Deserialize)]
    struct Pair {
        left: String,
        right: String,
        equivalent: bool,
    }

    #[derive(serde::Deserialize)]
    struct Boxed {
        text: String,
        answer: Option<String>,
    }

    #[derive(serde::Deserialize)]
    struct Cases {
        pairs: Vec<Pair>,
        boxed: Vec<Boxed>,
    }

    #[test]
    fn equals_the_published_equivalence() {
        let cases: Cases = vectors("math");
        for case in cases.pairs {
            let found = math_equivalent(&case.left, &case.right);
            assert_eq!(found, case.equivalent, "{:?} and {:?}", case.left, case.right);
        }
        for case in cases.boxed {
            assert_eq!(last_boxed(&case.text), case.answer.as_deref(), "{:?}", case.text);
        }
    }

    #[test]
    fn an_answer_without_a_box_is_the_formula_or_the_text() {
        assert_eq!(math_answer("so $x = 3$ and $y=4$"), "x = 3$ and $y=4");
        assert_eq!(math_answer(" seven "), "seven");
        assert_eq!(math_answer("$1$ but \\boxed{2}"), "2");
    }

    #[test]
    fn unbalanced_and_foreign_text_does_no_harm() {
        for text in ["\\boxed{", "\\boxed{{}", "}}}{", "\\frac", "\\sqrt", "½/é", "\\fracé"] {
            last_boxed(text);
            assert!(math_equivalent(text, text));
        }
    }
}
