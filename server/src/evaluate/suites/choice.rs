//! What multiple-choice suites share: lettered questions, and scores of the options chosen.

use crate::evaluate::metrics::{averages, bootstrap, option_letter};
use crate::evaluate::suite::{
    Choice, Graded, Metric, Prompt, SuiteOptions, Verdict, Written, groups, mean, means, members,
};

/// Letters of the options.
const LETTERS: [&str; 10] = ["A", "B", "C", "D", "E", "F", "G", "H", "I", "J"];

/// The letter of an option; at most ten options are lettered.
pub fn letter(option: usize) -> &'static str {
    LETTERS[option.min(LETTERS.len() - 1)]
}

/// `A. first`, `B. second`, … one a line.
pub fn lettered(options: &[impl AsRef<str>]) -> String {
    let lines = options.iter().enumerate().map(|(i, o)| format!("{}. {}", letter(i), o.as_ref()));
    lines.collect::<Vec<_>>().join("\n")
}

/// A question whose options are the letters of the options that its text lists.
pub fn by_letter(prompt: Prompt, options: usize, gold: usize) -> Choice {
    let written = Written { prompt: prompt.clone(), read: option_letter };
    let options = (0..options).map(|option| letter(option).to_owned()).collect();
    Choice { prompt, options, gold, written: Some(written) }
}

/// `accuracy` (and `accuracy_norm`) of all answers and groups, with macro and weighted F1 of all.
pub fn with_f1(graded: &[Graded], options: &SuiteOptions) -> Vec<Metric> {
    let mut metrics = means(graded);
    for group in groups(graded) {
        let chosen: Vec<_> = members(graded, &group).filter_map(|v| v.choice).collect();
        let mut add = |suffix: &str, rows: Vec<(usize, Option<usize>)>| {
            let at = |order: &mut dyn Iterator<Item = usize>| {
                averages(order.map(|row| rows[row]).collect::<Vec<_>>())
            };
            let all = at(&mut (0..rows.len()));
            for (name, value, macro_average) in
                [("macro_f1", all.macro_f1, true), ("weighted_f1", all.weighted_f1, false)]
            {
                let standard_error = bootstrap(rows.len(), options.seed, |order| {
                    let drawn = at(order);
                    if macro_average { drawn.macro_f1 } else { drawn.weighted_f1 }
                });
                metrics.push(Metric {
                    name: format!("{name}{suffix}"),
                    group: group.clone(),
                    value,
                    standard_error,
                    rows: rows.len(),
                });
            }
        };
        add("", chosen.iter().map(|c| (c.gold, c.raw)).collect());
        if chosen.iter().any(|c| c.normalised.is_some()) {
            add("_norm", chosen.iter().map(|c| (c.gold, c.normalised)).collect());
        }
    }
    metrics
}

/// The mean over groups of a score's mean within each, for suites whose parts count the same.
pub fn mean_of_groups(graded: &[Graded], score: &str, prefix: &str, name: &str) -> Option<Metric> {
    let parts = groups(graded)
        .into_iter()
        .filter(|group| group.as_ref().is_some_and(|group| group.starts_with(prefix)));
    let means: Vec<f64> = parts
        .filter_map(|group| {
            let scores = members(graded, &group).filter_map(|v: &Verdict| v.scores.get(score));
            let values: Vec<f64> = scores.copied().collect();
            (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
        })
        .collect();
    (!means.is_empty()).then(|| mean(name, None, &means))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::suite::Chosen;

    #[test]
    fn options_are_lettered() {
        assert_eq!(lettered(&["one", "two"]), "A. one\nB. two");
        let choice = by_letter(Prompt::same("q"), 4, 2);
        assert_eq!(choice.options, ["A", "B", "C", "D"]);
        assert_eq!((choice.written.unwrap().read)("It is B.", 4), Some(1));
    }

    #[test]
    fn f1_is_given_for_raw_and_normalised_choices() {
        let verdict = |gold, raw, normalised| Verdict {
            choice: Some(Chosen { gold, raw: Some(raw), normalised: Some(normalised) }),
            ..Verdict::right_or_wrong("accuracy", gold == raw)
        };
        let verdicts = [verdict(0, 0, 1), verdict(1, 0, 1)];
        let graded: Vec<_> =
            verdicts.iter().map(|verdict| Graded { groups: &[], verdict }).collect();
        let options =
            SuiteOptions { limit: None, shots: 0, seed: 0, samples: 1, temperature: None };
        let value = |name: &str| {
            with_f1(&graded, &options).into_iter().find(|m| m.name == name).unwrap().value
        };
        assert!((value("macro_f1") - 1.0 / 3.0).abs() < 1e-12);
        assert!((value("weighted_f1_norm") - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(value("accuracy"), 0.5);
    }
}
