//! Evaluation between rounds: the shared adapter on rows that the server holds.

use fleetune_core::adapter::Adapter;

use crate::simulate::journal::EvaluationRecord;

/// Measures adapters.
pub trait Evaluate: Send {
    /// What the adapter after `round` rounds is worth. `None` where there is nothing to measure on.
    ///
    /// # Errors
    /// When rows cannot be read or the engine fails.
    fn evaluate(
        &mut self,
        adapter: &Adapter,
        round: u32,
    ) -> anyhow::Result<Option<EvaluationRecord>>;
}

/// Whether round `round` of `rounds` is to be evaluated, `every` so many rounds; the beginning and
/// the end always are.
pub fn is_due(round: u32, rounds: u32, every: u32) -> bool {
    round == 0 || round >= rounds || (every > 0 && round.is_multiple_of(every))
}

/// Whether the last `patience` of these losses, oldest first, brought no improvement.
pub fn has_stalled(losses: &[f64], patience: u32) -> bool {
    let patience = patience as usize;
    if patience == 0 || losses.len() <= patience {
        return false;
    }
    let (before, last) = losses.split_at(losses.len() - patience);
    let best = |losses: &[f64]| losses.iter().copied().fold(f64::INFINITY, f64::min);
    best(last) >= best(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_and_the_end_are_evaluated_and_every_so_many_rounds() {
        let due: Vec<u32> = (0..=7).filter(|&round| is_due(round, 7, 3)).collect();
        assert_eq!(due, [0, 3, 6, 7]);
        assert!(!is_due(3, 7, 0));
    }

    #[test]
    fn patience_ends_when_nothing_got_better() {
        assert!(!has_stalled(&[3.0, 2.0, 2.5], 2));
        assert!(has_stalled(&[3.0, 2.0, 2.5, 2.0], 2));
        assert!(!has_stalled(&[3.0, 2.0, 2.5, 1.9], 2));
        assert!(!has_stalled(&[3.0, 3.0, 3.0], 0), "0 never stops");
    }
}
