//! The exact weighted mean of products, kept in factors.
//!
//! With X the server's matrix of a module, trunc_r(X) what devices of rank r received of it and B_k
//! A_k what client k made of that, a round yields
//!
//! X ← X + Σ p_k (B_k A_k - trunc_r(X)).
//!
//! X has more columns than the adapters that are handed out: what truncation leaves out of one round
//! is still in X, and comes out once later rounds make it matter.

use fleetune_core::adapter::{Parameter, ParameterSet};
use nalgebra::{DMatrix, SVD};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::factored::{Factored, Module};
use super::ranks::rank_of;
use crate::aggregate::AggregateError;

/// Columns that X keeps, as a multiple of the shared adapter's rank. What lies beyond is the sum of
/// many rounds' smallest parts; it is dropped, and counted.
const KEPT_RANKS: usize = 8;
/// Columns of a running sum beyond which it is written anew in as many as it has rank.
const MAX_WIDTH: usize = 256;

/// How far what is handed out is from the exact mean of the products, as Frobenius norms over all
/// modules.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct ProductReport {
    /// The aggregation error: the shared adapter's products less Σ p_k B_k A_k.
    pub error: f64,
    /// The round's exact change: Σ p_k (B_k A_k - B A) with B A what client k started from.
    pub change: f64,
    /// What the server keeps back for later rounds.
    #[serde(default)]
    pub remainder: f64,
    /// What was too small to keep.
    #[serde(default)]
    pub dropped: f64,
}

/// The sums of a round over its clients' products.
#[derive(Debug, Clone)]
pub(in crate::aggregate) struct ProductSums {
    modules: Vec<Module>,
    /// Σ n_k B_k A_k of each module.
    products: Vec<Factored>,
    /// What clients started from, and Σ n_k of those that did.
    starts: Vec<(ParameterSet, f64)>,
    total: f64,
}

/// The means of a round.
struct ProductMeans {
    /// Σ p_k B_k A_k.
    products: Vec<Factored>,
    /// Σ p_k (B_k A_k - B A).
    changes: Vec<Factored>,
}

impl ProductSums {
    pub fn new(modules: Vec<Module>) -> Self {
        let products = modules.iter().map(Factored::zero).collect();
        Self { modules, products, starts: Vec::new(), total: 0.0 }
    }

    /// Takes in a client with weight `n`, of whose change the share `kept` counts.
    ///
    /// # Errors
    /// When a decomposition does not converge.
    pub fn add(
        &mut self,
        n: f64,
        kept: f64,
        start: &ParameterSet,
        weights: &ParameterSet,
    ) -> Result<(), AggregateError> {
        let rank = rank_of(weights).unwrap_or(0);
        let modules = self.modules.iter().map(|module| Module { rank, ..module.clone() });
        let pairs: Vec<_> = modules.zip(&mut self.products).collect();
        pairs.into_par_iter().try_for_each(|(module, sum)| {
            sum.add(n * kept, &Factored::of(weights, &module));
            if kept < 1.0 {
                sum.add(n * (1.0 - kept), &Factored::of(start, &module));
            }
            if sum.width() > MAX_WIDTH {
                *sum = sum.compressed()?;
            }
            Ok::<_, AggregateError>(())
        })?;
        match self.starts.iter_mut().find(|(known, _)| known == start) {
            Some((_, sum)) => *sum += n,
            None => self.starts.push((start.clone(), n)),
        }
        self.total += n;
        Ok(())
    }

    fn means(&self) -> ProductMeans {
        let share = 1.0 / self.total;
        let products: Vec<Factored> =
            self.products.iter().map(|sum| sum.clone().scaled(share)).collect();
        let mut changes = products.clone();
        for (start, n) in &self.starts {
            for (change, start) in changes.iter_mut().zip(products_of(start, &self.modules)) {
                change.add(-n * share, &start);
            }
        }
        ProductMeans { products, changes }
    }

    /// How far `shared` is from the exact mean.
    pub fn report(&self, shared: &ParameterSet) -> ProductReport {
        let ProductMeans { mut products, changes } = self.means();
        for (product, shared) in products.iter_mut().zip(products_of(shared, &self.modules)) {
            product.add(-1.0, &shared);
        }
        ProductReport { error: norm(&products), change: norm(&changes), ..Default::default() }
    }
}

/// What a round makes of X, `None` before the first, and of the shared adapter.
///
/// # Errors
/// When a decomposition does not converge.
pub(in crate::aggregate) fn next_product(
    before: Option<&[Factored]>,
    shared: &ParameterSet,
    sums: &ProductSums,
) -> Result<(Vec<Factored>, ParameterSet, ProductReport), AggregateError> {
    let modules = &sums.modules;
    let rank = modules.first().map_or(0, |module| module.rank);
    let before = before.map_or_else(|| products_of(shared, modules), <[Factored]>::to_vec);
    let ProductMeans { changes, .. } = sums.means();
    let parts: Vec<_> = before
        .into_par_iter()
        .zip(&changes)
        .map(|(mut x, change)| {
            x.add(1.0, change);
            let decomposed = x.decompose()?;
            let kept = decomposed.leading(KEPT_RANKS * rank);
            let dropped = decomposed.tail_norm(KEPT_RANKS * rank);
            Ok((kept, decomposed.tail_norm(rank), dropped))
        })
        .collect::<Result<_, AggregateError>>()?;
    let root = |of: fn(&(Factored, f64, f64)) -> f64| {
        parts.iter().map(|part| of(part).powi(2)).sum::<f64>().sqrt()
    };
    let (remainder, dropped) = (root(|part| part.1), root(|part| part.2));
    let product: Vec<Factored> = parts.into_iter().map(|(kept, ..)| kept).collect();
    let next = hand_out(&product, shared, modules)?;
    let report = ProductReport { remainder, dropped, ..sums.report(&next) };
    Ok((product, next, report))
}

/// The best adapter of the rank of `like` for the products `product`, whose columns are in order of
/// their importance.
///
/// Of the many pairs of factors with the same product it is the one whose A has orthogonal rows of
/// the size of the rows of `like`'s A and is nearest to that: so A stays what training has to do with
/// in size, and what is handed out moves little from round to round.
///
/// # Errors
/// When a decomposition does not converge.
pub(in crate::aggregate) fn hand_out(
    product: &[Factored],
    like: &ParameterSet,
    modules: &[Module],
) -> Result<ParameterSet, AggregateError> {
    let rank = rank_of(like).unwrap_or(0);
    let pairs: Vec<(DMatrix<f64>, DMatrix<f64>)> = product
        .par_iter()
        .zip(modules)
        .map(|(product, module)| {
            let module = Module { rank, ..module.clone() };
            in_gauge(product, &Factored::of(like, &module))
        })
        .collect::<Result<_, _>>()?;
    let mut next: Vec<Parameter> = like.iter().cloned().collect();
    for (module, (b, a)) in modules.iter().zip(pairs) {
        for (place, matrix) in [(module.a, a), (module.b, b)] {
            // nalgebra keeps columns together, adapters rows.
            next[place].values = matrix.transpose().iter().map(|&v| v as f32).collect();
        }
    }
    Ok(ParameterSet::new(next))
}

/// The leading part of `product` as factors (B, A), of which A is near to `like`'s.
fn in_gauge(
    product: &Factored,
    like: &Factored,
) -> Result<(DMatrix<f64>, DMatrix<f64>), AggregateError> {
    let rank = like.width();
    let used = product.width().min(rank);
    if used == 0 {
        return Ok((DMatrix::zeros(like.b.nrows(), rank), like.a.clone()));
    }
    // Orthonormal rows: the product's, and where it has too few, what they lack of `like`'s.
    let mut rows = DMatrix::zeros(rank, like.a.ncols());
    rows.rows_mut(0, used).copy_from(&product.a.rows(0, used));
    if used < rank {
        let own = product.a.rows(0, used);
        let rest = &like.a - (&like.a * own.transpose()) * own;
        let (_, s, vt) = svd(rest)?;
        for i in 0..(rank - used).min(s.len()) {
            if s[i] > 1e-9 * s[0] {
                rows.row_mut(used + i).copy_from(&vt.row(i));
            }
        }
    }
    // The nearest rotation (Schönemann 1966).
    let (u, _, vt) = svd(&like.a * rows.transpose())?;
    let rotation = u * vt;
    let size = like.a.norm() / (rank as f64).sqrt();
    let size = if size > 0.0 { size } else { 1.0 };
    let mut b = DMatrix::zeros(product.b.nrows(), rank);
    b.columns_mut(0, used).copy_from(&product.b.columns(0, used));
    Ok((b * rotation.transpose() / size, rotation * rows * size))
}

type Parts = (DMatrix<f64>, Vec<f64>, DMatrix<f64>);

/// U, the singular values in descending order, and Vᵀ of a small or narrow matrix.
fn svd(matrix: DMatrix<f64>) -> Result<Parts, AggregateError> {
    let svd = SVD::try_new(matrix, true, true, f64::EPSILON, 100_000);
    svd.and_then(|svd| Some((svd.u?, svd.singular_values.iter().copied().collect(), svd.v_t?)))
        .ok_or(AggregateError::NotConverged)
}

/// The products of an adapter of any rank.
fn products_of(set: &ParameterSet, modules: &[Module]) -> Vec<Factored> {
    let rank = rank_of(set).unwrap_or(0);
    let of = |module: &Module| Factored::of(set, &Module { rank, ..module.clone() });
    modules.iter().map(of).collect()
}

fn norm(matrices: &[Factored]) -> f64 {
    matrices.par_iter().map(|matrix| matrix.norm().powi(2)).sum::<f64>().sqrt()
}
