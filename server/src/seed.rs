//! Randomness by name: every random choice of a federation comes from the run's seed and the place
//! of the choice (which round, which client), never from the order in which choices are made. So a
//! resumed run draws what the uninterrupted one would have drawn.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use sha2::{Digest, Sha256};

/// A kind of random choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// Which clients take part in a round. Place: round.
    Clients,
    /// The order of a client's rows in one pass over them. Place: client, pass.
    RowOrder,
    /// Dropout and the like while a client trains. Place: round, client.
    Training,
    /// The initial adapter. Place: none.
    Adapter,
    /// How rows are dealt to clients. Place: none.
    Partition,
    /// Which rows are held out for evaluation. Place: none.
    HoldOut,
    /// Which devices have which rank. Place: none.
    Ranks,
}

impl Choice {
    fn name(self) -> &'static str {
        match self {
            Choice::Clients => "clients",
            Choice::RowOrder => "row-order",
            Choice::Training => "training",
            Choice::Adapter => "adapter",
            Choice::Partition => "partition",
            Choice::HoldOut => "hold-out",
            Choice::Ranks => "ranks",
        }
    }
}

fn digest(seed: u64, choice: Choice, place: &[u64]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"fleetune ");
    hash.update(choice.name());
    hash.update(seed.to_le_bytes());
    for part in place {
        hash.update(part.to_le_bytes());
    }
    hash.finalize().into()
}

/// The generator for one choice at one place.
pub fn generator(seed: u64, choice: Choice, place: &[u64]) -> ChaCha8Rng {
    ChaCha8Rng::from_seed(digest(seed, choice, place))
}

/// A seed for one choice at one place, for code that seeds its own generator. It fits the signed
/// integers of TOML and JSON.
pub fn derived(seed: u64, choice: Choice, place: &[u64]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = digest(seed, choice, place);
    u64::from_le_bytes([a, b, c, d, e, f, g, h]) >> 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_and_places_draw_differently_but_repeatably() {
        let a = derived(1, Choice::Training, &[0, 1]);
        assert_eq!(a, derived(1, Choice::Training, &[0, 1]));
        assert_ne!(a, derived(1, Choice::Training, &[1, 0]));
        assert_ne!(a, derived(1, Choice::RowOrder, &[0, 1]));
        assert_ne!(a, derived(2, Choice::Training, &[0, 1]));
    }
}
