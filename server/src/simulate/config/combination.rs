//! How a run combines updates, and which device has which rank.

use super::{RunConfig, ranks};
use crate::aggregate::{AggregateError, Algorithm, Combination, Combine};

impl RunConfig {
    /// How updates become one.
    pub fn combination(&self) -> Combination {
        Combination {
            combine: self.combine,
            robust: self.robust,
            clip_norm: (self.clip_norm != 0.0).then_some(self.clip_norm),
            mixed_ranks: !self.ranks.is_empty(),
            // Server optimisers with steps of their own do not aim at the mean.
            measure: matches!(
                self.algorithm,
                Algorithm::FedAvg | Algorithm::FedProx | Algorithm::Scaffold
            ),
        }
    }

    /// The ranks that devices have, each once.
    pub fn device_ranks(&self) -> Vec<usize> {
        if self.ranks.is_empty() {
            return vec![self.lora_rank];
        }
        self.ranks.iter().map(|class| class.rank).collect()
    }

    /// The rank of each client. One that trains alone has the largest, whatever its class.
    pub fn client_ranks(&self) -> Vec<usize> {
        if self.ranks.is_empty() || matches!(self.algorithm, Algorithm::Local { .. }) {
            return vec![self.lora_rank; self.clients as usize];
        }
        ranks::deal(&self.ranks, self.clients, self.seed)
    }

    /// The first key that does not go with the others, and why.
    pub(super) fn combination_problem(&self) -> Option<(&'static str, String)> {
        if self.combine == Combine::Stack {
            return Some(("combine", AggregateError::StackGrows.to_string()));
        }
        let (robust, needed) = (self.robust, self.robust.min_clients());
        let clients = self.sample.min(self.clients) as usize;
        if needed > clients {
            let more =
                if self.clients as usize >= needed { "sample" } else { "clients and sample" };
            let problem =
                format!("{robust} needs {needed} clients in a round, not {clients}: raise {more}");
            return Some(("robust", problem));
        }
        for &algorithm in self.algorithms() {
            if algorithm == Algorithm::Scaffold && !self.ranks.is_empty() {
                let problem = "scaffold's control variates have one rank: leave ranks out";
                return Some(("ranks", problem.into()));
            }
            if let Algorithm::Local { .. } = algorithm {
                continue;
            }
            match self.combination().check(algorithm) {
                Err(error @ AggregateError::ClipNorm(_)) => {
                    return Some(("clip_norm", error.to_string()));
                }
                Err(error @ AggregateError::Conflict { robust: true, .. }) => {
                    return Some(("robust", error.to_string()));
                }
                Err(error) => return Some(("combine", error.to_string())),
                Ok(()) => {}
            }
        }
        None
    }
}
