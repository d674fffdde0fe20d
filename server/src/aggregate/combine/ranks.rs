//! Adapters of several ranks: one is part of another where its A has the first rows and its B the
//! first columns of the other's.

use fleetune_core::adapter::{Layout, LayoutMismatch, Parameter, ParameterSet, TrainedFactors};

use super::factored::{module_of_a, module_of_b};

/// The rank of an adapter: rows of its first A. `None` where it has none.
pub fn rank_of(adapter: &ParameterSet) -> Option<usize> {
    let first = adapter.iter().find(|entry| module_of_a(&entry.name).is_some())?;
    first.shape.first().copied()
}

/// The shape that the tensor `name` of shape `shape` has at another rank.
fn shape_at(name: &str, shape: &[usize], rank: usize) -> Vec<usize> {
    match *shape {
        [_, columns] if module_of_a(name).is_some() => vec![rank, columns],
        [rows, _] if module_of_b(name).is_some() => vec![rows, rank],
        _ => shape.to_vec(),
    }
}

/// The adapter at another rank: the first rows of every A and columns of every B, or zeros after
/// them.
pub fn at_rank(adapter: &ParameterSet, rank: usize) -> ParameterSet {
    let entries = adapter.iter().map(|entry| {
        let shape = shape_at(&entry.name, &entry.shape, rank);
        let mut values = vec![0.0; shape.iter().product()];
        for (from, to) in row_starts(&entry.shape).zip(row_starts(&shape)) {
            let len = width(&entry.shape).min(width(&shape));
            values[to..to + len].copy_from_slice(&entry.values[from..from + len]);
        }
        Parameter { name: entry.name.clone(), shape, values }
    });
    ParameterSet::new(entries.collect())
}

/// Checks that `set` is an adapter of `layout` at rank `rank`.
pub(in crate::aggregate) fn check_at(
    layout: &Layout,
    set: &ParameterSet,
    rank: usize,
) -> Result<(), LayoutMismatch> {
    let entries = layout.iter().map(|(name, shape)| {
        let shape = shape_at(name, shape, rank);
        Parameter { name: name.into(), values: vec![0.0; shape.iter().product()], shape }
    });
    ParameterSet::new(entries.collect()).layout().check(set)
}

/// The values, end to end, of `global` after the change from `start` to `weights`, adapters of its
/// rank or a lower one, of which the share `kept` counts. Rows and columns that they lack stay, and so
/// do factors that are not trained.
pub(in crate::aggregate) fn changed(
    global: &ParameterSet,
    trained: TrainedFactors,
    kept: f64,
    start: &ParameterSet,
    weights: &ParameterSet,
) -> Vec<f64> {
    let mut values: Vec<f64> = Vec::with_capacity(global.num_values());
    for (global, (start, weights)) in global.iter().zip(start.iter().zip(weights.iter())) {
        let offset = values.len();
        values.extend(global.values.iter().map(|&x| f64::from(x)));
        if trained != TrainedFactors::Both && !trained.include(&global.name) {
            continue;
        }
        let len = width(&global.shape).min(width(&weights.shape));
        for (to, from) in row_starts(&global.shape).zip(row_starts(&weights.shape)) {
            let ours = values[offset + to..].iter_mut().zip(&global.values[to..]);
            let theirs = start.values[from..from + len].iter().zip(&weights.values[from..]);
            for ((value, &x), (&s, &w)) in ours.zip(theirs) {
                // A change from just here to w leads to w, without the rounding of a difference.
                let direct = x == s && kept == 1.0;
                *value = if direct {
                    f64::from(w)
                } else {
                    *value + kept * (f64::from(w) - f64::from(s))
                };
            }
        }
    }
    values
}

/// Where the rows of a tensor start; one that is no matrix is a single row.
fn row_starts(shape: &[usize]) -> impl Iterator<Item = usize> {
    let (rows, width) = (if let [rows, _] = *shape { rows } else { 1 }, width(shape));
    (0..rows).map(move |row| row * width)
}

fn width(shape: &[usize]) -> usize {
    if let [_, columns] = *shape { columns } else { shape.iter().product() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(rank: usize) -> ParameterSet {
        let entry = |name: &str, shape: [usize; 2], step: f32| Parameter {
            name: name.into(),
            shape: shape.to_vec(),
            values: (0..shape[0] * shape[1])
                .map(|i| ((i / shape[1]) * 10 + i % shape[1]) as f32 * step)
                .collect(),
        };
        ParameterSet::new(vec![
            entry("m.lora_A.weight", [rank, 3], 1.0),
            entry("m.lora_B.weight", [2, rank], -1.0),
        ])
    }

    #[test]
    fn a_lower_rank_is_the_first_rows_of_a_and_columns_of_b() {
        assert_eq!(rank_of(&adapter(4)), Some(4));
        assert_eq!(at_rank(&adapter(4), 2), adapter(2));
        check_at(&adapter(4).layout(), &adapter(2), 2).unwrap();
        assert!(check_at(&adapter(4).layout(), &adapter(2), 3).is_err());
        let grown = at_rank(&adapter(2), 4);
        assert_eq!(at_rank(&grown, 2), adapter(2));
        assert_eq!(grown.get("m.lora_A.weight").unwrap().values[6..], [0.0; 6]);
    }

    #[test]
    fn a_change_of_lower_rank_leaves_the_rest_as_it_was() {
        let (global, start) = (adapter(3), adapter(2));
        let mut weights = start.clone();
        weights.values_mut().for_each(|values| values.iter_mut().for_each(|v| *v += 2.0));
        let moved = |trained, kept| -> Vec<f64> {
            let values = changed(&global, trained, kept, &start, &weights);
            let before = global.iter().flat_map(|entry| &entry.values);
            values.iter().zip(before).map(|(after, &before)| after - f64::from(before)).collect()
        };
        let both = moved(TrainedFactors::Both, 1.0);
        assert_eq!(both[..9], [2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 0.0, 0.0, 0.0]);
        assert_eq!(both[9..], [2.0, 2.0, 0.0, 2.0, 2.0, 0.0]);
        let half = moved(TrainedFactors::B, 0.5);
        assert_eq!(half[..9], [0.0; 9]);
        assert_eq!(half[9..], [1.0, 1.0, 0.0, 1.0, 1.0, 0.0]);
    }
}
