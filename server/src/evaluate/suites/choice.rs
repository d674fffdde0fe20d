//! What multiple-choice suites share: lettered questions, and scores of the options chosen.

use crate::evaluate::grading::Verdict;
use crate::evaluate::metrics::{averages, bootstrap, of_mean, of_mean_of_means, option_letter};
use crate::evaluate::suite::{
    Choice, Graded, Metric, Prompt, SuiteOptions, Written, groups, means, members,
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

/// Names of what [`with_f1`] yields.
pub const ACCURACY_AND_F1: &[&str] =
    &["accuracy", "accuracy_norm", "macro_f1", "weighted_f1", "macro_f1_norm", "weighted_f1_norm"];

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
    let (means, errors): (Vec<f64>, Vec<_>) = parts
        .filter_map(|group| {
            let scores = members(graded, &group).filter_map(|v: &Verdict| v.scores.get(score));
            let values: Vec<f64> = scores.copied().collect();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            // Of the sample, not binomial: a group of one row says nothing about its own error.
            (!values.is_empty()).then(|| (mean, of_mean(&values)))
        })
        .unzip();
    let errors: Option<Vec<_>> = errors.into_iter().collect();
    (!means.is_empty()).then(|| Metric {
        name: name.to_owned(),
        group: None,
        value: means.iter().sum::<f64>() / means.len() as f64,
        standard_error: errors.and_then(|errors| of_mean_of_means(&errors)),
        rows: means.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::grading::Chosen;

    #[test]
    fn options_are_lettered() {
        assert_eq!(lettered(&["one", "two"]), "A. one\nB. two");
        let choice = by_letter(Prompt::same("q"), 4, 2);
        assert_eq!(choice.options, ["A", "B", "C", "D"]);
        assert_eq!((choice.written.unwrap().read)("It is B.", 4), Some(1));
    }

    #[test]
    fn groups_count_the_same_whatever_their_size() {
        let verdict = |right| Verdict::right_or_wrong("accuracy", right);
        let (right, wrong) = (verdict(true), verdict(false));
        let (a, b) = (["task:a".to_owned()], ["task:b".to_owned()]);
        let mut graded = vec![Graded { groups: &a, verdict: &right }];
        graded.push(Graded { groups: &a, verdict: &wrong });
        graded.extend((0..8).map(|_| Graded { groups: &b, verdict: &right }));
        let metric = mean_of_groups(&graded, "accuracy", "task:", "task_mean").unwrap();
        assert_eq!((metric.value, metric.rows), (0.75, 2));
        // The groups' own errors, 1/2 and 0, over two groups.
        assert!((metric.standard_error.unwrap().value() - 0.25).abs() < 1e-12);
        graded.truncate(3);
        let metric = mean_of_groups(&graded, "accuracy", "task:", "task_mean").unwrap();
        assert!(metric.standard_error.is_none(), "a group of one row has no error");
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
