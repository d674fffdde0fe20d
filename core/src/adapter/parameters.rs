//! Named f32 tensors in a fixed order.

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
#[error("the adapters do not match at tensor {name}: {left:?} against {right:?}")]
pub struct LayoutMismatch {
    /// First tensor where they differ.
    pub name: String,
    /// Its shape in the first set, if it is there.
    pub left: Option<Vec<usize>>,
    /// Its shape in the second set, if it is there.
    pub right: Option<Vec<usize>>,
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

    /// Checks that both sets have the same names and shapes.
    ///
    /// # Errors
    /// Names the first tensor that differs.
    pub fn check_layout(&self, other: &Self) -> Result<(), LayoutMismatch> {
        for i in 0..self.len().max(other.len()) {
            let (left, right) = (self.entries.get(i), other.entries.get(i));
            let same = matches!((left, right), (Some(l), Some(r)) if l.name == r.name && l.shape == r.shape);
            if !same {
                let name = left.or(right).map_or_else(String::new, |entry| entry.name.clone());
                return Err(LayoutMismatch {
                    left: self.get(&name).map(|entry| entry.shape.clone()),
                    right: other.get(&name).map(|entry| entry.shape.clone()),
                    name,
                });
            }
        }
        Ok(())
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

    /// L2 norm over all values, accumulated in f64.
    pub fn l2_norm(&self) -> f64 {
        let values = self.entries.iter().flat_map(|entry| &entry.values);
        values.map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt()
    }
}
