//! In which order training goes through the rows.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// The rows of a data set, over and over. Position `p` of the order is a function of seed and
/// number of rows alone, so that training resumes at any position.
#[derive(Debug)]
pub struct RowOrder {
    rows: u32,
    seed: Option<u64>,
    /// The permutation of one epoch, and which.
    epoch: Option<(u64, Vec<u32>)>,
}

impl RowOrder {
    /// `rows` rows, at least one: a new permutation each epoch, drawn from `seed`, or the order of
    /// the files where there is none.
    pub fn new(rows: u32, seed: Option<u64>) -> Self {
        Self { rows: rows.max(1), seed, epoch: None }
    }

    /// The row at `position`.
    pub fn row(&mut self, position: u64) -> u32 {
        let rows = u64::from(self.rows);
        // Below `rows`, which is a u32.
        let within = (position % rows) as u32;
        let Some(seed) = self.seed else { return within };
        let epoch = position / rows;
        if self.epoch.as_ref().is_none_or(|(drawn, _)| *drawn != epoch) {
            let mut order: Vec<u32> = (0..self.rows).collect();
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            random.set_stream(epoch);
            order.shuffle(&mut random);
            self.epoch = Some((epoch, order));
        }
        self.epoch.as_ref().map_or(within, |(_, order)| order[within as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(order: &mut RowOrder, positions: std::ops::Range<u64>) -> Vec<u32> {
        positions.map(|position| order.row(position)).collect()
    }

    #[test]
    fn without_a_seed_the_files_order_repeats() {
        assert_eq!(rows(&mut RowOrder::new(3, None), 0..7), [0, 1, 2, 0, 1, 2, 0]);
    }

    #[test]
    fn each_epoch_has_every_row_once_in_an_order_of_its_own() {
        let mut order = RowOrder::new(50, Some(7));
        let (first, second) = (rows(&mut order, 0..50), rows(&mut order, 50..100));
        assert_ne!(first, second);
        for mut epoch in [first, second] {
            epoch.sort_unstable();
            assert_eq!(epoch, (0..50).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_order_depends_on_the_seed_and_not_on_where_one_begins() {
        let whole = rows(&mut RowOrder::new(20, Some(1)), 0..60);
        assert_eq!(rows(&mut RowOrder::new(20, Some(1)), 33..60), whole[33..]);
        assert_ne!(rows(&mut RowOrder::new(20, Some(2)), 0..60), whole);
    }
}
