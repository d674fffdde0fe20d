//! How clients' adapters become one, before a server optimiser moves the shared one.
//!
//! What a device computes with is the product B·A. The mean of several A and of several B apart,
//! [`Combine::Factors`], has another product than the mean of the products: Σ p_k B_k · Σ p_k A_k is
//! not Σ p_k B_k A_k. The other rules are the answers to that. Adapters may also differ in rank
//! (`ranks`).
//!
//! The factor `alpha / r` before B·A has to be the same for all adapters that are combined: callers
//! see to it.

mod factored;
mod product;
mod ranks;
mod stack;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use fleetune_core::adapter::TrainedFactors;
use serde::{Deserialize, Serialize};

use super::robust::Robust;
use super::{AggregateError, Algorithm, UnknownName};

pub use product::ProductReport;
pub use ranks::{at_rank, rank_of};
pub use stack::stack;

pub(super) use factored::{Factored, Module, modules};
pub(super) use product::{ProductSums, hand_out, next_product};
pub(super) use ranks::{changed, check_at};

/// What is averaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Combine {
    /// A and B apart, as OpenFedLLM does. Of adapters of lower rank the rows and columns they lack
    /// count as unchanged.
    #[default]
    Factors,
    /// A stays as it began, clients train B alone (Sun et al. 2024, FFA-LoRA): the mean is exact.
    Ffa,
    /// Clients train B and A in turn, a round each (Chen et al. 2025, RoLoRA): the mean is exact.
    Alternate,
    /// The products. Their weighted mean is kept in factors and truncated to each device's rank; what
    /// the truncation leaves out stays on the server and is part of the next round.
    Product,
    /// The products, exactly: an adapter of the sum of all ranks (Wang et al. 2024, FLoRA).
    Stack,
}

impl Combine {
    /// All rules.
    pub const ALL: [Combine; 5] =
        [Combine::Factors, Combine::Ffa, Combine::Alternate, Combine::Product, Combine::Stack];

    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Combine::Factors => "factors",
            Combine::Ffa => "ffa",
            Combine::Alternate => "alternate",
            Combine::Product => "product",
            Combine::Stack => "stack",
        }
    }

    /// What clients train in the round with number `round`, from 0. B goes first where factors take
    /// turns: it begins at zero, so that A would have no gradient.
    pub fn trained(self, round: u64) -> TrainedFactors {
        match self {
            Combine::Factors | Combine::Product | Combine::Stack => TrainedFactors::Both,
            Combine::Ffa => TrainedFactors::B,
            Combine::Alternate if round.is_multiple_of(2) => TrainedFactors::B,
            Combine::Alternate => TrainedFactors::A,
        }
    }

    /// Why the rule does not go with a server optimiser; `None` where it does.
    fn conflict(self, algorithm: Algorithm) -> Option<&'static str> {
        use Algorithm as A;
        match (self, algorithm) {
            (Combine::Factors | Combine::Ffa, _) | (_, A::FedAvg | A::FedProx) => None,
            (Combine::Alternate, A::Scaffold) => {
                Some("its control variates estimate gradients of A and B in every round")
            }
            (Combine::Alternate, _) => Some("its momentum would move the factor that stands still"),
            (Combine::Product | Combine::Stack, _) => Some(
                "it works on the values of A and B, which mean something else after every round",
            ),
        }
    }
}

impl fmt::Display for Combine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Combine {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Combine::ALL.into_iter().find(|rule| rule.name() == text).ok_or_else(|| UnknownName {
            kind: "combination",
            name: text.into(),
            expected: "factors, ffa, alternate, product or stack",
        })
    }
}

impl From<Combine> for String {
    fn from(combine: Combine) -> Self {
        combine.to_string()
    }
}

impl TryFrom<String> for Combine {
    type Error = UnknownName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// How a round's updates become one: everything before the server optimiser.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Combination {
    /// What is averaged.
    pub combine: Combine,
    /// How far-off updates are kept from mattering.
    pub robust: Robust,
    /// Longest change of a client: the Frobenius norm of the change of all products together, with
    /// [`Combine::Factors`] that of all A and B. A longer one is shortened to it.
    pub clip_norm: Option<f64>,
    /// Whether clients may have lower ranks than the shared adapter.
    pub mixed_ranks: bool,
    /// Whether rounds report how far the shared adapter is from the exact mean of the products, where
    /// it has products.
    pub measure: bool,
}

impl Combination {
    /// Checks that the parts go together and with a server optimiser.
    ///
    /// # Errors
    /// With the reason where they do not.
    pub fn check(&self, algorithm: Algorithm) -> Result<(), AggregateError> {
        if let Some(reason) = self.combine.conflict(algorithm) {
            let what = format!("combination {}", self.combine);
            return Err(AggregateError::Conflict { what, algorithm, reason, robust: false });
        }
        self.robust.check()?;
        if self.robust != Robust::None && algorithm == Algorithm::Scaffold {
            let reason =
                "control variates of clients that are left out would drift from the server's";
            let what = format!("robust aggregation {}", self.robust);
            return Err(AggregateError::Conflict { what, algorithm, reason, robust: true });
        }
        match self.clip_norm {
            Some(norm) if !(norm > 0.0 && norm.is_finite()) => Err(AggregateError::ClipNorm(norm)),
            _ => Ok(()),
        }
    }
}
