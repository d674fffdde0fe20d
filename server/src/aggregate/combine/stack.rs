//! The exact sum of products as one adapter of the sum of their ranks (Wang et al. 2024, FLoRA).

use fleetune_core::adapter::{Parameter, ParameterSet};

use super::factored::{module_of_a, modules};
use super::ranks::rank_of;
use crate::aggregate::AggregateError;

/// An adapter whose products are Σ p_k B_k A_k: the A below each other, the p_k B_k beside each other.
/// `updates` are adapters of any rank with their weights, of which p_k are the shares.
///
/// # Errors
/// When there are none, their weights sum to nothing, or they adapt different modules.
pub fn stack(updates: &[(ParameterSet, f64)]) -> Result<ParameterSet, AggregateError> {
    let total: f64 = updates.iter().map(|(_, n)| n).sum();
    let [(first, _), ..] = updates else { return Err(AggregateError::NoUpdates) };
    if total <= 0.0 {
        return Err(AggregateError::NoSamples);
    }
    modules(&first.layout())?;
    let mut rank = 0;
    for (update, _) in updates {
        let own = rank_of(update).unwrap_or(0);
        super::ranks::check_at(&first.layout(), update, own)
            .map_err(|source| AggregateError::Layout { what: "update", source })?;
        rank += own;
    }
    let entries = first.iter().enumerate().map(|(place, entry)| {
        let parts = || updates.iter().map(|(update, n)| (update.iter().nth(place), n / total));
        let mut values = Vec::new();
        if module_of_a(&entry.name).is_some() {
            parts().for_each(|(part, _)| values.extend(part.iter().flat_map(|part| &part.values)));
            let shape = vec![rank, entry.shape[1]];
            return Parameter { name: entry.name.clone(), shape, values };
        }
        for row in 0..entry.shape[0] {
            for (part, share) in parts() {
                let part = part.map_or(&[][..], |part| &part.values);
                let width = part.len() / entry.shape[0].max(1);
                let row = &part[row * width..(row + 1) * width];
                values.extend(row.iter().map(|&v| (f64::from(v) * share) as f32));
            }
        }
        Parameter { name: entry.name.clone(), shape: vec![entry.shape[0], rank], values }
    });
    Ok(ParameterSet::new(entries.collect()))
}
