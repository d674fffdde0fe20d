//! What FedAdagrad, FedYogi and FedAdam share: Algorithm 2 of Reddi et al. 2021.

use super::rule::RoundMean;
use super::state::ServerState;
use super::{Hyperparameters, Variant};

/// Moves `x += η m / (√v + τ)` value by value, after `m = keep · m + take · D` and `v =
/// second_moment(v, D, m)`.
pub(super) fn apply(
    state: &mut ServerState,
    mean: &RoundMean,
    constants: &Hyperparameters,
    (keep, take): (f64, f64),
    second_moment: impl Fn(f64, f64, f64) -> f64,
) {
    let &Hyperparameters { server_lr, tau, .. } = constants;
    let global = &mut state.global;
    let first = state.momentum.iter_mut().flatten();
    let second = state.second_moment.iter_mut().flatten();
    for (i, (m, v)) in first.zip(second).enumerate() {
        let change = mean.change(global, i);
        *m = keep * *m + take * change;
        *v = second_moment(*v, change, *m);
        global[i] += server_lr * *m / (v.sqrt() + tau);
    }
}

/// Factors of m and D in the first moment: published `β₁ m + (1 - β₁) D` from zero on; OpenFedLLM
/// starts with `m = D`.
pub(super) fn first_moment(variant: Variant, round: u64, beta1: f64) -> (f64, f64) {
    match variant {
        Variant::OpenFedLlm if round == 0 => (0.0, 1.0),
        _ => (beta1, 1.0 - beta1),
    }
}

/// What the second moment is made of: the averaged change as published; its momentum in OpenFedLLM.
pub(super) fn squared(variant: Variant, change: f64, m: f64) -> f64 {
    match variant {
        Variant::OpenFedLlm => m * m,
        Variant::Paper => change * change,
    }
}
