//! Classes of devices by the rank that they can train.

use std::fmt;

use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use crate::seed::{Choice, generator};

/// A class of devices: a rank, and how many devices have it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(into = "RankText", try_from = "RankText")]
pub struct RankClass {
    /// The LoRA rank that devices of the class train.
    pub rank: usize,
    /// Its part of the fleet, in proportion to the other classes' parts.
    pub share: f64,
}

/// `8`, or `"8:0.25"` with the share.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum RankText {
    Rank(usize),
    WithShare(String),
}

impl fmt::Display for RankClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.share == 1.0 {
            write!(f, "{}", self.rank)
        } else {
            write!(f, "{}:{}", self.rank, self.share)
        }
    }
}

impl std::str::FromStr for RankClass {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (rank, share) = text.split_once(':').unwrap_or((text, "1"));
        let parsed = rank.parse().ok().zip(share.parse::<f64>().ok());
        match parsed {
            Some((rank, share)) if rank > 0 && share > 0.0 && share.is_finite() => {
                Ok(Self { rank, share })
            }
            _ => Err(format!(
                "{text:?} is no rank: write a rank such as 8, or 8:0.25 with its share"
            )),
        }
    }
}

impl From<RankClass> for RankText {
    fn from(class: RankClass) -> Self {
        if class.share == 1.0 { Self::Rank(class.rank) } else { Self::WithShare(class.to_string()) }
    }
}

impl TryFrom<RankText> for RankClass {
    type Error = String;

    fn try_from(text: RankText) -> Result<Self, Self::Error> {
        match text {
            RankText::Rank(rank) => rank.to_string().parse(),
            RankText::WithShare(text) => text.parse(),
        }
    }
}

/// What is wrong with the classes of a federation whose shared adapter has rank `largest`.
pub fn problem(classes: &[RankClass], largest: usize) -> Option<String> {
    let ranks = || classes.iter().map(|class| class.rank);
    let repeated = ranks().enumerate().find(|(i, rank)| ranks().take(*i).any(|r| r == *rank));
    match (repeated, ranks().max()) {
        (Some((_, rank)), _) => Some(format!("rank {rank} is named twice")),
        (None, Some(max)) if max != largest => {
            Some(format!("the largest is {max}: it must be lora_rank, which is {largest}"))
        }
        _ => None,
    }
}

/// The rank of each of `clients` clients: as many of each class as its share says, to the nearest
/// whole device, in an order drawn from `seed`.
pub fn deal(classes: &[RankClass], clients: u32, seed: u64) -> Vec<usize> {
    let total: f64 = classes.iter().map(|class| class.share).sum();
    let mut ranks = Vec::with_capacity(clients as usize);
    let mut shares = 0.0;
    for class in classes {
        shares += class.share;
        let upto = (shares / total * f64::from(clients)).round() as usize;
        ranks.resize(upto.max(ranks.len()), class.rank);
    }
    ranks.shuffle(&mut generator(seed, Choice::Ranks, &[]));
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_gets_its_share_of_the_devices() {
        let classes: Vec<RankClass> =
            ["4:0.5", "8:0.25", "32:0.25"].map(|text| text.parse().unwrap()).to_vec();
        let dealt = deal(&classes, 8, 3);
        assert_eq!(dealt, deal(&classes, 8, 3));
        for (rank, count) in [(4, 4), (8, 2), (32, 2)] {
            assert_eq!(dealt.iter().filter(|&&dealt| dealt == rank).count(), count);
        }
        for clients in 1..20 {
            assert_eq!(deal(&classes, clients, 1).len(), clients as usize);
        }
    }

    #[test]
    fn classes_that_make_no_sense_are_told() {
        let of = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect::<Vec<_>>();
        assert_eq!(problem(&of(&["4", "8"]), 8), None);
        assert!(problem(&of(&["4", "8"]), 16).unwrap().contains("lora_rank"));
        assert!(problem(&of(&["4", "4"]), 4).unwrap().contains("twice"));
        for wrong in ["", "0", "4:0", "4:-1", "4:nan", "x"] {
            assert!(wrong.parse::<RankClass>().is_err(), "{wrong}");
        }
    }
}
