//! The part of Python's `random` that OpenFedLLM's sampling uses.
//!
//! `random.seed(n)` with a non-negative integer and `random.sample(range(n), k)` draw here the
//! numbers that CPython 3.11 and later draw, so that a federation can be repeated client by client.

use std::collections::HashSet;

use rand_mt::Mt;

/// CPython's `random.Random`, seeded with an integer.
pub struct PythonRandom {
    generator: Mt,
}

impl PythonRandom {
    /// As after `random.seed(seed)`: the generator's key is the integer in 32-bit digits, least
    /// significant first, without leading zeros.
    pub fn new(seed: u64) -> Self {
        let (low, high) = (seed as u32, (seed >> 32) as u32);
        let key = [low, high];
        let digits = if high == 0 { 1 } else { 2 };
        Self { generator: Mt::new_with_key(key.into_iter().take(digits)) }
    }

    /// `_randbelow(n)`: draws of the fewest bits that hold `n`, until one is below it.
    fn below(&mut self, n: u32) -> u32 {
        debug_assert!(n > 0);
        let bits = u32::BITS - n.leading_zeros();
        loop {
            let drawn = self.generator.next_u32() >> (u32::BITS - bits);
            if drawn < n {
                return drawn;
            }
        }
    }

    /// `random.sample(range(population), k)`; `k` is cut to the population.
    pub fn sample(&mut self, population: u32, k: u32) -> Vec<u32> {
        let k = k.min(population);
        if u64::from(population) <= pool_limit(k) {
            let mut pool: Vec<u32> = (0..population).collect();
            (0..k)
                .map(|taken| {
                    let last = population - taken - 1;
                    let drawn = self.below(last + 1) as usize;
                    let value = pool[drawn];
                    pool[drawn] = pool[last as usize];
                    value
                })
                .collect()
        } else {
            let mut seen = HashSet::with_capacity(k as usize);
            (0..k)
                .map(|_| {
                    loop {
                        let drawn = self.below(population);
                        if seen.insert(drawn) {
                            return drawn;
                        }
                    }
                })
                .collect()
        }
    }
}

/// Populations up to this size are sampled from a pool, larger ones by rejection: CPython's
/// `21 + 4 ** ceil(log(3 k, 4))` for `k > 5`.
fn pool_limit(k: u32) -> u64 {
    if k <= 5 {
        return 21;
    }
    // No power of four is a multiple of three, so the logarithm's rounding never decides.
    let mut power = 1_u64;
    while power < 3 * u64::from(k) {
        power *= 4;
    }
    21 + power
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `random.seed(seed); random.sample(range(population), k)` in CPython 3.11.
    #[test]
    fn samples_are_those_of_cpython() {
        let sample = |seed, population, k| PythonRandom::new(seed).sample(population, k);
        assert_eq!(sample(0, 20, 2), [12, 13]);
        assert_eq!(sample(7, 1 << 20, 3), [679_126, 316_353, 828_004]);
        assert_eq!(sample(5_000_000_000, 1000, 8), [88, 977, 621, 885, 15, 491, 777, 318]);
        assert_eq!(sample(1, 100_000, 5), [17_611, 74_606, 8_271, 33_432, 15_455]);
    }

    #[test]
    fn a_sample_is_never_larger_than_its_population() {
        let mut all = PythonRandom::new(3).sample(4, 9);
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3]);
        assert!(PythonRandom::new(3).sample(0, 2).is_empty());
    }
}
