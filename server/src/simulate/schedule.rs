//! Who trains in a round, on which rows, at which learning rate.
//!
//! Everything here is a function of the round's number: nothing is carried from round to round, so
//! a resumed federation continues with the same choices.

use std::f64::consts::PI;

use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::python_random::PythonRandom;
use crate::seed::{Choice, generator};

/// How clients and rows are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sampling {
    /// From the run's seed. A client works through all its rows, in an order of its own, before it
    /// sees one twice, however its rows are spread over the rounds it takes part in.
    Seeded,
    /// As OpenFedLLM does: `random.seed(round)` and `random.sample`, for clients and for rows;
    /// independent of the run's seed, and the same row numbers for every client of equal size.
    OpenFedLlm,
}

/// How the learning rate changes from round to round. It is constant inside a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LearningRateSchedule {
    /// The same in every round.
    Constant,
    /// From the initial rate in the first round along half a cosine towards the smallest.
    Cosine,
}

impl LearningRateSchedule {
    /// The learning rate of round `round` (0, 1, …) of `rounds`:
    /// `min + ½ (initial − min) (1 + cos(π round / rounds))` for the cosine.
    pub fn rate(self, round: u32, rounds: u32, initial: f64, min: f64) -> f64 {
        match self {
            Self::Constant => initial,
            Self::Cosine => {
                let cosine = (PI * f64::from(round) / f64::from(rounds)).cos();
                min + 0.5 * (initial - min) * (1.0 + cosine)
            }
        }
    }
}

/// The clients of round `round`, ascending: `sample` of `clients`, or all where there are no more.
pub fn clients_of_round(
    sampling: Sampling,
    seed: u64,
    round: u32,
    clients: u32,
    sample: u32,
) -> Vec<u32> {
    if clients <= sample {
        return (0..clients).collect();
    }
    let mut chosen = match sampling {
        Sampling::OpenFedLlm => PythonRandom::new(u64::from(round)).sample(clients, sample),
        Sampling::Seeded => {
            let mut random = generator(seed, Choice::Clients, &[u64::from(round)]);
            let drawn = rand::seq::index::sample(&mut random, clients as usize, sample as usize);
            drawn.into_iter().map(|client| client as u32).collect()
        }
    };
    chosen.sort_unstable();
    chosen
}

/// The rows a client trains on in a round, in order.
#[derive(Debug, Clone, Copy)]
pub struct RowSchedule {
    /// How rows are drawn.
    pub sampling: Sampling,
    /// The run's seed.
    pub seed: u64,
    /// Rows wanted: batch size × gradient accumulation × steps.
    pub rows_per_round: usize,
}

impl RowSchedule {
    /// `rows_per_round` row numbers below `rows`, for client `client` in round `round`, which has
    /// taken part in `participations` rounds before. Empty when the client has no rows.
    ///
    /// OpenFedLLM draws no more rows than the client has; they are then gone through again.
    pub fn rows(&self, client: u32, round: u32, participations: u32, rows: usize) -> Vec<usize> {
        if rows == 0 {
            return Vec::new();
        }
        match self.sampling {
            Sampling::OpenFedLlm => {
                let drawn = openfedllm_rows(round, rows, self.rows_per_round);
                drawn.iter().copied().cycle().take(self.rows_per_round).collect()
            }
            Sampling::Seeded => self.next_rows(client, participations, rows),
        }
    }

    /// The rows after those of earlier participations, pass by pass.
    fn next_rows(&self, client: u32, participations: u32, rows: usize) -> Vec<usize> {
        let mut position = participations as usize * self.rows_per_round;
        let mut chosen = Vec::with_capacity(self.rows_per_round);
        while chosen.len() < self.rows_per_round {
            let (pass, offset) = (position / rows, position % rows);
            let mut order: Vec<usize> = (0..rows).collect();
            let place = [u64::from(client), pass as u64];
            order.shuffle(&mut generator(self.seed, Choice::RowOrder, &place));
            let wanted = self.rows_per_round - chosen.len();
            let before = chosen.len();
            chosen.extend(order.into_iter().skip(offset).take(wanted));
            position += chosen.len() - before;
        }
        chosen
    }
}

/// OpenFedLLM's `get_dataset_this_round`: at most `wanted` different rows of `rows`.
fn openfedllm_rows(round: u32, rows: usize, wanted: usize) -> Vec<usize> {
    let population = u32::try_from(rows).unwrap_or(u32::MAX);
    let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
    let drawn = PythonRandom::new(u64::from(round)).sample(population, wanted);
    drawn.into_iter().map(|row| row as usize).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// Outputs of OpenFedLLM's helpers; `tests/fixtures/README.md` tells how they were made.
    fn golden() -> Value {
        let path =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/aggregators/schedules.json");
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    fn number(value: &Value) -> u32 {
        value.as_u64().unwrap() as u32
    }

    #[test]
    fn clients_are_sampled_as_openfedllm_samples_them() {
        for case in golden()["clients_per_round"].as_array().unwrap() {
            let (clients, sample) = (number(&case["num_clients"]), number(&case["sample_clients"]));
            for (round, expected) in case["rounds"].as_array().unwrap().iter().enumerate() {
                let chosen =
                    clients_of_round(Sampling::OpenFedLlm, 9, round as u32, clients, sample);
                let expected: Vec<u32> = serde_json::from_value(expected.clone()).unwrap();
                assert_eq!(chosen, expected, "{sample} of {clients} in round {round}");
            }
        }
    }

    #[test]
    fn rows_are_drawn_as_openfedllm_draws_them() {
        for case in golden()["sample_indices"].as_array().unwrap() {
            let rows = number(&case["dataset_len"]) as usize;
            let wanted = number(&case["batch_size"])
                * number(&case["gradient_accumulation_steps"])
                * number(&case["max_steps"]);
            for (round, expected) in case["rounds"].as_array().unwrap().iter().enumerate() {
                let expected: Vec<usize> = serde_json::from_value(expected.clone()).unwrap();
                assert_eq!(openfedllm_rows(round as u32, rows, wanted as usize), expected);
            }
        }
    }

    #[test]
    fn the_cosine_learning_rate_is_that_of_openfedllm() {
        for case in golden()["cosine_learning_rate"].as_array().unwrap() {
            let rounds = number(&case["total_rounds"]);
            let (initial, min) =
                (case["initial_lr"].as_f64().unwrap(), case["min_lr"].as_f64().unwrap());
            for (round, expected) in case["values"].as_array().unwrap().iter().enumerate() {
                let rate = LearningRateSchedule::Cosine.rate(round as u32, rounds, initial, min);
                // serde_json's fast number parser may be off by the last bit.
                let expected = expected.as_f64().unwrap();
                assert!((rate - expected).abs() <= f64::EPSILON * expected, "round {round}");
            }
        }
    }

    #[test]
    fn seeded_clients_are_distinct_and_change_with_seed_and_round() {
        let draw = |seed, round| clients_of_round(Sampling::Seeded, seed, round, 100_000, 10);
        let chosen = draw(1, 0);
        assert!(chosen.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(chosen, draw(1, 0));
        assert_ne!(chosen, draw(1, 1));
        assert_ne!(chosen, draw(2, 0));
    }

    #[test]
    fn a_client_sees_every_row_once_before_it_sees_one_again() {
        let schedule = RowSchedule { sampling: Sampling::Seeded, seed: 4, rows_per_round: 5 };
        let rounds = (0..6).flat_map(|past| schedule.rows(3, 10 * past, past, 15));
        let mut seen: Vec<usize> = rounds.collect();
        let (first, second) = seen.split_at_mut(15);
        assert_ne!(first, second, "each pass has an order of its own");
        for pass in [first, second] {
            pass.sort_unstable();
            assert!(pass.iter().copied().eq(0..15));
        }
    }

    #[test]
    fn a_small_client_repeats_its_rows_and_an_empty_one_has_none() {
        for sampling in [Sampling::Seeded, Sampling::OpenFedLlm] {
            let schedule = RowSchedule { sampling, seed: 0, rows_per_round: 7 };
            let rows = schedule.rows(0, 0, 0, 3);
            assert_eq!(rows.len(), 7);
            assert!((0..3).all(|row| rows.iter().filter(|&&r| r == row).count() >= 2));
            assert!(schedule.rows(0, 0, 0, 0).is_empty());
        }
    }
}
