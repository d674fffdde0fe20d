//! The share of programming problems solved within `k` tries.

/// Chance that at least one of `k` of `samples` programs passes, when `passed` of them do: the
/// unbiased estimator `1 - C(samples - passed, k) / C(samples, k)` of Chen et al., 2021.
///
/// `None` when fewer than `k` programs were drawn: there is no unbiased estimate then.
pub fn pass_at_k(samples: usize, passed: usize, k: usize) -> Option<f64> {
    if k == 0 || samples < k || passed > samples {
        return None;
    }
    if samples - passed < k {
        return Some(1.0);
    }
    // The quotient of the binomial coefficients as a product, which neither overflows nor cancels.
    let none: f64 = (samples - passed + 1..=samples).map(|i| 1.0 - k as f64 / i as f64).product();
    Some(1.0 - none)
}

#[cfg(test)]
mod tests {
    use super::super::vectors;
    use super::*;

    #[derive(serde::Deserialize)]
    struct Case {
        samples: usize,
        passed: usize,
        k: usize,
        estimate: f64,
    }

    #[test]
    fn equals_the_published_estimator() {
        for case in vectors::<Vec<Case>>("pass_at_k") {
            let found = pass_at_k(case.samples, case.passed, case.k).unwrap();
            assert!((found - case.estimate).abs() < 1e-12, "{found} for {}", case.estimate);
        }
    }

    #[test]
    fn too_few_samples_give_no_estimate() {
        assert_eq!(pass_at_k(5, 5, 10), None);
        assert_eq!(pass_at_k(5, 5, 0), None);
    }
}
