//! Named f32 tensors in a fixed order.

use std::cmp::Ordering;
use std::fmt;

use serde::{Deserialize, Serialize};

/// One named tensor of a [`ParameterSet`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Parameter {
    /// Name, unique within its set; adapters use PEFT's names.
    pub name: String,
    /// Sizes of the dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Row-major values; as many as the product of `shape`.
    pub values: Vec<f32>,
}

/// Named f32 tensors, sorted by name: an adapter's parameters, their gradients, an optimiser's
/// moments, a control variate. Two sets with the same names and shapes have the same *layout* and
/// can be combined value by value.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ParameterSet {
    entries: Vec<Parameter>,
}

/// Two sets that should have had the same layout differ.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the adapters do not match at tensor {name}: {} against {}", Side(left), Side(right))]
pub struct LayoutMismatch {
    /// First tensor where they differ.
    pub name: String,
    /// Its shape in the first set, if it is there.
    pub left: Option<Vec<usize>>,
    /// Its shape in the second set, if it is there.
    pub right: Option<Vec<usize>>,
}

/// One side of a mismatch, in words.
struct Side<'a>(&'a Option<Vec<usize>>);

impl fmt::Display for Side<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(shape) => write!(f, "shape {shape:?}"),
            None => f.write_str("no such tensor"),
        }
    }
}

/// The names and shapes of a [`ParameterSet`], in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    tensors: Vec<(String, Vec<usize>)>,
}

impl Layout {
    /// Name and shape of each tensor, in order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.tensors.iter().map(|(name, shape)| (name.as_str(), shape.as_slice()))
    }

    /// Number of values in all tensors.
    pub fn num_values(&self) -> usize {
        self.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// Checks that `set` has these names and shapes.
    ///
    /// # Errors
    /// Names the first tensor that differs.
    pub fn check(&self, set: &ParameterSet) -> Result<(), LayoutMismatch> {
        first_difference(self.iter(), set.names_and_shapes()).map_or(Ok(()), Err)
    }
}

/// The first difference between two lists of tensors, each sorted by name.
fn first_difference<'a>(
    mut left: impl Iterator<Item = (&'a str, &'a [usize])>,
    mut right: impl Iterator<Item = (&'a str, &'a [usize])>,
) -> Option<LayoutMismatch> {
    loop {
        let (mut left, mut right) = (left.next(), right.next());
        if left == right {
            left?;
            continue;
        }
        // Of two names, the one that sorts first is missing on the other side.
        if let (Some((left_name, _)), Some((right_name, _))) = (left, right) {
            match left_name.cmp(right_name) {
                Ordering::Less => right = None,
                Ordering::Greater => left = None,
                Ordering::Equal => {}
            }
        }
        let name = left.or(right)?.0.to_owned();
        let shape = |side: Option<(_, &[usize])>| side.map(|(_, shape)| shape.to_vec());
        return Some(LayoutMismatch { name, left: shape(left), right: shape(right) });
    }
}

impl ParameterSet {
    /// A set of these tensors, sorted by name.
    ///
    /// # Panics
    /// When a tensor's values do not fill its shape or two tensors share a name: both are errors
    /// of the program, not of its input; readers of files and messages check before.
    pub fn new(mut entries: Vec<Parameter>) -> Self {
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        for pair in entries.windows(2) {
            assert_ne!(pair[0].name, pair[1].name, "two tensors share a name");
        }
        for entry in &entries {
            assert_eq!(entry.shape.iter().product::<usize>(), entry.values.len(), "{}", entry.name);
        }
        Self { entries }
    }

    /// The tensors in order of their names.
    pub fn iter(&self) -> std::slice::Iter<'_, Parameter> {
        self.entries.iter()
    }

    /// The value slices in order of the names, to change in place.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        self.entries.iter_mut().map(|entry| entry.values.as_mut_slice())
    }

    /// The tensor called `name`.
    pub fn get(&self, name: &str) -> Option<&Parameter> {
        self.entries
            .binary_search_by(|entry| entry.name.as_str().cmp(name))
            .ok()
            .map(|i| &self.entries[i])
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Number of values in all tensors.
    pub fn num_values(&self) -> usize {
        self.entries.iter().map(|entry| entry.values.len()).sum()
    }

    /// A set of the same layout, all zero.
    #[must_use]
    pub fn zeros_like(&self) -> Self {
        let entries = self.entries.iter().map(|entry| Parameter {
            name: entry.name.clone(),
            shape: entry.shape.clone(),
            values: vec![0.0; entry.values.len()],
        });
        Self { entries: entries.collect() }
    }

    /// Names and shapes without the values.
    pub fn layout(&self) -> Layout {
        let tensors = self.entries.iter().map(|entry| (entry.name.clone(), entry.shape.clone()));
        Layout { tensors: tensors.collect() }
    }

    /// Checks that both sets have the same names and shapes.
    ///
    /// # Errors
    /// Names the first tensor that differs.
    pub fn check_layout(&self, other: &Self) -> Result<(), LayoutMismatch> {
        first_difference(self.names_and_shapes(), other.names_and_shapes()).map_or(Ok(()), Err)
    }

    fn names_and_shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.entries.iter().map(|entry| (entry.name.as_str(), entry.shape.as_slice()))
    }

    /// Calls `f(a, b)` for each value of `self` with its counterpart in `other`.
    ///
    /// # Errors
    /// When the layouts differ.
    pub fn zip_apply(
        &mut self,
        other: &Self,
        mut f: impl FnMut(&mut f32, f32),
    ) -> Result<(), LayoutMismatch> {
        self.check_layout(other)?;
        for (mine, theirs) in self.entries.iter_mut().zip(&other.entries) {
            for (a, &b) in mine.values.iter_mut().zip(&theirs.values) {
                f(a, b);
            }
        }
        Ok(())
    }

    /// `self - base`, value by value.
    ///
    /// # Errors
    /// When the layouts differ.
    pub fn difference(&self, base: &Self) -> Result<Self, LayoutMismatch> {
        let mut difference = self.clone();
        difference.zip_apply(base, |a, b| *a -= b)?;
        Ok(difference)
    }

    /// Adds `difference`, value by value.
    ///
    /// # Errors
    /// When the layouts differ; `self` is then as it was.
    pub fn add(&mut self, difference: &Self) -> Result<(), LayoutMismatch> {
        self.zip_apply(difference, |a, b| *a += b)
    }

    /// L2 norm over all values, accumulated in f64.
    pub fn l2_norm(&self) -> f64 {
        let values = self.entries.iter().flat_map(|entry| &entry.values);
        values.map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(tensors: &[(&str, &[usize])]) -> ParameterSet {
        let entries = tensors.iter().map(|&(name, shape)| Parameter {
            name: name.into(),
            shape: shape.to_vec(),
            values: vec![1.5; shape.iter().product()],
        });
        ParameterSet::new(entries.collect())
    }

    #[test]
    fn the_first_tensor_that_differs_is_named() {
        let base = set(&[("a", &[2]), ("c", &[3])]);
        let cases = [
            (set(&[("a", &[2]), ("b", &[1]), ("c", &[3])]), "b: no such tensor against shape [1]"),
            (set(&[("a", &[2])]), "c: shape [3] against no such tensor"),
            (set(&[("a", &[2, 1]), ("c", &[3])]), "a: shape [2] against shape [2, 1]"),
            (set(&[]), "a: shape [2] against no such tensor"),
        ];
        for (other, expected) in cases {
            let message = base.check_layout(&other).unwrap_err().to_string();
            assert!(message.ends_with(expected), "{message}");
            assert_eq!(base.layout().check(&other), base.check_layout(&other));
        }
        base.check_layout(&base.zeros_like()).unwrap();
    }

    #[test]
    fn a_difference_added_to_its_base_gives_the_set_back() {
        let base = set(&[("a", &[2]), ("b", &[2, 2])]);
        let mut moved = base.clone();
        moved.values_mut().for_each(|values| values[1] = -4.0);
        let difference = moved.difference(&base).unwrap();
        let mut rebuilt = base.clone();
        rebuilt.add(&difference).unwrap();
        assert_eq!(rebuilt, moved);
        assert!(rebuilt.add(&set(&[("a", &[3])])).is_err());
        assert_eq!(rebuilt, moved);
    }
}
