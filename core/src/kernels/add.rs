//! Sums of matrices, and of a vector with every row.

use rayon::prelude::*;

/// Values that one task handles.
const TASK: usize = 1 << 14;

/// `a += b`, where `b` is as long as `a`, or as one of its rows and added to each.
///
/// # Panics
/// When `a` does not consist of whole rows as long as `b`.
pub fn add(a: &mut [f32], b: &[f32]) {
    let width = b.len().max(1);
    assert!(a.len().is_multiple_of(width), "rows of {width} values");
    if a.len() == b.len() {
        a.par_chunks_mut(TASK).zip(b.par_chunks(TASK)).for_each(|(a, b)| add_row(a, b));
    } else {
        let rows = a.par_chunks_mut(width).with_min_len(TASK.div_ceil(width));
        rows.for_each(|a| add_row(a, b));
    }
}

fn add_row(a: &mut [f32], b: &[f32]) {
    for (a, b) in a.iter_mut().zip(b) {
        *a += b;
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::random;
    use super::*;

    #[test]
    fn a_matrix_is_added_value_by_value_and_a_vector_to_every_row() {
        let (rows, width) = (37, 1001);
        let (before, other) = (random(rows * width, 1), random(rows * width, 2));
        let mut sums = before.clone();
        add(&mut sums, &other);
        assert!(sums.iter().zip(before.iter().zip(&other)).all(|(sum, (a, b))| *sum == a + b));
        let (mut sums, bias) = (before.clone(), &other[..width]);
        add(&mut sums, bias);
        let expected = before.iter().zip(bias.iter().cycle());
        assert!(sums.iter().zip(expected).all(|(sum, (a, b))| *sum == a + b));
    }
}
