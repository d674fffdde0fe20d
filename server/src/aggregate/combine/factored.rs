//! Matrices in factored form, B·A, and what can be known of them without multiplying out.
//!
//! With QR decompositions of B and of Aᵀ, everything that matters of the d×d product is in the small
//! matrix R_B·R_Aᵀ between two orthonormal bases. The cost is O(d·k²) for k columns of B, and no d×d
//! matrix exists at any time.

use fleetune_core::adapter::{Layout, ParameterSet};
use nalgebra::{DMatrix, DVector, SVD};

use crate::aggregate::AggregateError;

/// Singular values below this share of the largest are rounding errors.
const NOTHING: f64 = 1e-13;
/// Sweeps after which an SVD has failed; it needs a few per column.
const MAX_SWEEPS: usize = 100_000;

const A_SUFFIX: &str = ".lora_A.weight";
const B_SUFFIX: &str = ".lora_B.weight";

/// Whether the tensor of this name is an adapter's A, and the name of its module.
pub(super) fn module_of_a(name: &str) -> Option<&str> {
    name.strip_suffix(A_SUFFIX)
}

/// The same for B.
pub(super) fn module_of_b(name: &str) -> Option<&str> {
    name.strip_suffix(B_SUFFIX)
}

/// An adapted module: where its two factors stand in a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::aggregate) struct Module {
    /// The name without the factor's.
    pub name: String,
    /// Place of A, r × columns, and of B, rows × r, among the tensors.
    pub a: usize,
    pub b: usize,
    /// Size of B·A.
    pub rows: usize,
    pub columns: usize,
    pub rank: usize,
}

/// The modules of a layout, all of whose tensors have to be factors.
///
/// # Errors
/// Names a tensor that is no A or B, or lacks the other.
pub(in crate::aggregate) fn modules(layout: &Layout) -> Result<Vec<Module>, AggregateError> {
    let tensors: Vec<(&str, &[usize])> = layout.iter().collect();
    let unpaired = |name: &str| AggregateError::NotFactors { name: name.to_owned() };
    let mut found = Vec::with_capacity(tensors.len() / 2);
    for (a, &(name, shape)) in tensors.iter().enumerate() {
        let Some(module) = module_of_a(name) else { continue };
        let partner = format!("{module}{B_SUFFIX}");
        let b = tensors.binary_search_by(|(name, _)| (*name).cmp(&partner));
        let b = b.map_err(|_| unpaired(name))?;
        let (&[rank, columns], &[rows, other]) = (shape, tensors[b].1) else {
            return Err(unpaired(name));
        };
        if rank != other || rank == 0 {
            return Err(unpaired(name));
        }
        // One rank for all: what an adapter of another rank would look like is else not known.
        if found.first().is_some_and(|first: &Module| first.rank != rank) {
            return Err(unpaired(name));
        }
        found.push(Module { name: module.to_owned(), a, b, rows, columns, rank });
    }
    // As many pairs as halves: else some tensor is no factor, or a B lacks its A.
    let paired = |name: &str| found.iter().any(|module| module_of_b(name) == Some(&module.name));
    let stray = |name: &&str| module_of_a(name).is_none() && !paired(name);
    match tensors.iter().map(|(name, _)| *name).find(stray) {
        Some(name) => Err(unpaired(name)),
        None => Ok(found),
    }
}

/// The product of `b` (rows × k) and `a` (k × columns).
#[derive(Debug, Clone, PartialEq)]
pub(in crate::aggregate) struct Factored {
    pub b: DMatrix<f64>,
    pub a: DMatrix<f64>,
}

/// A singular value decomposition: `u` (rows × q) and `v` (columns × q) have orthonormal columns,
/// `s` descends and is positive.
pub(in crate::aggregate) struct Decomposed {
    pub u: DMatrix<f64>,
    pub s: DVector<f64>,
    pub v: DMatrix<f64>,
}

impl Factored {
    /// The zero matrix of a module's size.
    pub fn zero(module: &Module) -> Self {
        Self { b: DMatrix::zeros(module.rows, 0), a: DMatrix::zeros(0, module.columns) }
    }

    /// A module's product in `set`, whose layout `module` is of.
    pub fn of(set: &ParameterSet, module: &Module) -> Self {
        let values = |place: usize| set.iter().nth(place).map_or(&[][..], |entry| &entry.values);
        let wide = |place| values(place).iter().map(|&v| f64::from(v));
        Self {
            b: DMatrix::from_row_iterator(module.rows, module.rank, wide(module.b)),
            a: DMatrix::from_row_iterator(module.rank, module.columns, wide(module.a)),
        }
    }

    /// Columns of B.
    pub fn width(&self) -> usize {
        self.b.ncols()
    }

    /// Adds `weight · other`, by writing the factors beside each other.
    pub fn add(&mut self, weight: f64, other: &Factored) {
        let (old, new) = (self.width(), other.width());
        let (rows, columns) = (self.b.nrows(), self.a.ncols());
        let mut b = DMatrix::zeros(rows, old + new);
        b.columns_mut(0, old).copy_from(&self.b);
        b.columns_mut(old, new).copy_from(&(&other.b * weight));
        let mut a = DMatrix::zeros(old + new, columns);
        a.rows_mut(0, old).copy_from(&self.a);
        a.rows_mut(old, new).copy_from(&other.a);
        (self.b, self.a) = (b, a);
    }

    /// `weight · self`.
    pub fn scaled(mut self, weight: f64) -> Self {
        self.b *= weight;
        self
    }

    /// The Frobenius inner product with another matrix of the same size: the sum of the products of
    /// all elements.
    pub fn dot(&self, other: &Factored) -> f64 {
        let outputs = self.b.tr_mul(&other.b);
        let inputs = &self.a * other.a.transpose();
        outputs.dot(&inputs)
    }

    /// The Frobenius norm. Exact where a sum nearly cancels, unlike the root of [`Factored::dot`].
    pub fn norm(&self) -> f64 {
        let (_, core, _) = self.core();
        core.norm()
    }

    /// B and Aᵀ as orthonormal bases with the small matrix between them.
    fn core(&self) -> (DMatrix<f64>, DMatrix<f64>, DMatrix<f64>) {
        let outputs = self.b.clone().qr();
        let inputs = self.a.transpose().qr();
        let core = outputs.r() * inputs.r().transpose();
        (outputs.q(), core, inputs.q())
    }

    /// The singular value decomposition, without values that are nothing but rounding errors.
    ///
    /// # Errors
    /// When it does not converge.
    pub fn decompose(&self) -> Result<Decomposed, AggregateError> {
        if self.width() == 0 {
            let (rows, columns) = (self.b.nrows(), self.a.ncols());
            let (u, v) = (DMatrix::zeros(rows, 0), DMatrix::zeros(columns, 0));
            return Ok(Decomposed { u, s: DVector::zeros(0), v });
        }
        let (outputs, core, inputs) = self.core();
        let svd = SVD::try_new(core, true, true, f64::EPSILON, MAX_SWEEPS);
        let (u, s, vt) = svd
            .and_then(|svd| Some((svd.u?, svd.singular_values, svd.v_t?)))
            .ok_or(AggregateError::NotConverged)?;
        let largest = s.iter().copied().fold(0.0, f64::max);
        let kept = s.iter().take_while(|&&s| s > NOTHING * largest).count();
        Ok(Decomposed {
            u: outputs * u.columns(0, kept),
            s: s.rows(0, kept).into_owned(),
            v: inputs * vt.rows(0, kept).transpose(),
        })
    }

    /// The same matrix in as few columns as it has rank.
    ///
    /// # Errors
    /// When the decomposition does not converge.
    pub fn compressed(&self) -> Result<Self, AggregateError> {
        Ok(self.decompose()?.leading(usize::MAX))
    }
}

impl Decomposed {
    /// Singular values that are more than rounding errors.
    pub fn rank(&self) -> usize {
        self.s.len()
    }

    /// The nearest matrix of rank `rank` (Eckart & Young 1936): B = U·S, A = Vᵀ.
    pub fn leading(&self, rank: usize) -> Factored {
        let rank = rank.min(self.rank());
        let mut b = self.u.columns(0, rank).into_owned();
        for (mut column, s) in b.column_iter_mut().zip(&self.s) {
            column *= *s;
        }
        Factored { b, a: self.v.columns(0, rank).transpose() }
    }

    /// Frobenius norm of what [`Decomposed::leading`] leaves out.
    pub fn tail_norm(&self, rank: usize) -> f64 {
        self.s.iter().skip(rank).map(|s| s * s).sum::<f64>().sqrt()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A matrix of numbers in no order, the same for the same seed.
    pub fn random(rows: usize, columns: usize, seed: u64) -> DMatrix<f64> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        DMatrix::from_fn(rows, columns, |_, _| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
        })
    }

    pub fn factored(rows: usize, columns: usize, rank: usize, seed: u64) -> Factored {
        Factored { b: random(rows, rank, seed), a: random(rank, columns, seed + 1000) }
    }

    fn dense(factored: &Factored) -> DMatrix<f64> {
        &factored.b * &factored.a
    }

    #[test]
    fn what_is_known_of_factors_is_true_of_the_product() {
        for (rows, columns, ranks) in [(9, 14, [2, 3, 4]), (5, 4, [3, 6, 2]), (30, 7, [1, 8, 5])] {
            let mut sum = factored(rows, columns, ranks[0], 1);
            sum.add(-0.5, &factored(rows, columns, ranks[1], 2));
            sum.add(2.0, &factored(rows, columns, ranks[2], 3));
            let expected = dense(&sum);
            assert!((sum.norm() - expected.norm()).abs() < 1e-12 * expected.norm());
            let other = factored(rows, columns, 2, 4);
            assert!((sum.dot(&other) - expected.dot(&dense(&other))).abs() < 1e-11);
            let compressed = sum.compressed().unwrap();
            assert!(compressed.width() <= rows.min(columns));
            assert!((dense(&compressed) - &expected).norm() < 1e-12 * expected.norm());
            // The truncation is the best there is, by the dense decomposition.
            let decomposed = sum.decompose().unwrap();
            let values = expected.clone().singular_values();
            let error = (dense(&decomposed.leading(2)) - &expected).norm();
            let best = values.iter().skip(2).map(|s| s * s).sum::<f64>().sqrt();
            assert!((error - best).abs() < 1e-12 && (decomposed.tail_norm(2) - best).abs() < 1e-12);
        }
    }

    #[test]
    fn a_sum_that_cancels_has_no_norm_and_no_rank() {
        let mut sum = factored(20, 30, 4, 7);
        sum.add(-1.0, &factored(20, 30, 4, 7));
        assert!(sum.norm() < 1e-14);
        let module = Module { name: "m".into(), a: 0, b: 1, rows: 20, columns: 30, rank: 4 };
        assert_eq!(Factored::zero(&module).compressed().unwrap().width(), 0);
    }
}
