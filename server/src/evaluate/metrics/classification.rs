//! Accuracy and the F1 averages of scikit-learn's `f1_score`.

/// Scores of a classifier over a set of rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Averages {
    /// Share of rows whose prediction is the right class.
    pub accuracy: f64,
    /// Mean of the classes' F1, each class counting the same. Classes that neither occur nor are
    /// predicted do not count.
    pub macro_f1: f64,
    /// Mean of the classes' F1, each class weighted by how often it is the right one.
    pub weighted_f1: f64,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    hits: usize,
    predicted: usize,
    actual: usize,
}

impl Counts {
    /// `2·hits / (predicted + actual)`, which is the harmonic mean of precision and recall; 0 where
    /// both are 0 or undefined.
    fn f1(self) -> f64 {
        match self.predicted + self.actual {
            0 => 0.0,
            total => 2.0 * self.hits as f64 / total as f64,
        }
    }
}

/// Scores `(right class, predicted class)` pairs.
///
/// A prediction of `None` (the model named no class) is wrong for the row's class and is no class
/// of its own. No rows score 0.
pub fn averages(rows: impl IntoIterator<Item = (usize, Option<usize>)>) -> Averages {
    let mut classes: Vec<Counts> = Vec::new();
    let mut total = 0usize;
    let at = |classes: &mut Vec<Counts>, class: usize| {
        if classes.len() <= class {
            classes.resize(class + 1, Counts::default());
        }
    };
    for (actual, predicted) in rows {
        total += 1;
        at(&mut classes, actual);
        classes[actual].actual += 1;
        if let Some(predicted) = predicted {
            at(&mut classes, predicted);
            classes[predicted].predicted += 1;
            classes[predicted].hits += usize::from(predicted == actual);
        }
    }
    let seen = classes.iter().filter(|c| c.actual + c.predicted > 0).count();
    let ratio = |sum: f64, of: usize| if of == 0 { 0.0 } else { sum / of as f64 };
    Averages {
        accuracy: ratio(classes.iter().map(|c| c.hits as f64).sum(), total),
        macro_f1: ratio(classes.iter().map(|c| c.f1()).sum(), seen),
        weighted_f1: ratio(classes.iter().map(|c| c.f1() * c.actual as f64).sum(), total),
    }
}

#[cfg(test)]
mod tests {
    use super::super::vectors;
    use super::*;

    #[derive(serde::Deserialize)]
    struct Case {
        gold: Vec<usize>,
        predicted: Vec<Option<usize>>,
        accuracy: f64,
        macro_f1: f64,
        weighted_f1: f64,
    }

    #[test]
    fn equals_scikit_learn() {
        for case in vectors::<Vec<Case>>("classification") {
            let found = averages(case.gold.into_iter().zip(case.predicted));
            assert!((found.accuracy - case.accuracy).abs() < 1e-12);
            assert!((found.macro_f1 - case.macro_f1).abs() < 1e-12);
            assert!((found.weighted_f1 - case.weighted_f1).abs() < 1e-12);
        }
    }

    #[test]
    fn no_rows_score_nothing() {
        assert_eq!(averages([]), Averages { accuracy: 0.0, macro_f1: 0.0, weighted_f1: 0.0 });
    }
}
