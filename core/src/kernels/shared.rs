//! Outputs that several tasks write at once.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

/// A new vector of `len` values, which `fill` writes in parallel, `chunk` values at a time, given where
/// they begin. Clearing them first would take about as long as the cheaper operations do.
///
/// # Safety
/// `fill` must write every value that it is given.
pub(super) unsafe fn filled(
    len: usize,
    chunk: usize,
    fill: impl Fn(usize, &mut [MaybeUninit<f32>]) + Sync,
) -> Vec<f32> {
    let mut values = Vec::with_capacity(len);
    let room = &mut values.spare_capacity_mut()[..len];
    room.par_chunks_mut(chunk).enumerate().for_each(|(i, room)| fill(i * chunk, room));
    // SAFETY: there is room for `len` values, and the caller vouches that all were written.
    unsafe { values.set_len(len) };
    values
}

/// A mutable slice of which several tasks write different parts, such as the columns of one head in
/// every row, which no safe split of a slice can express.
#[derive(Clone, Copy)]
pub(super) struct Shared<'a> {
    start: *mut f32,
    len: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: a `Shared` stands for an exclusive borrow of f32 values; whoever takes parts of it from
// several threads promises, by the contract of `part`, that they do not overlap.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(super) fn new(values: &'a mut [f32]) -> Self {
        Self { start: values.as_mut_ptr(), len: values.len(), lifetime: PhantomData }
    }

    /// Room for `len` values behind those of a vector, which nobody has written yet: to be written
    /// through [`Shared::pointer`] alone, and not to be read before.
    pub(super) fn room(values: &'a mut Vec<f32>, len: usize) -> Self {
        let room = &mut values.spare_capacity_mut()[..len];
        Self { start: room.as_mut_ptr().cast(), len, lifetime: PhantomData }
    }

    /// The values in `range`.
    ///
    /// # Panics
    /// When the range does not lie inside the slice.
    ///
    /// # Safety
    /// While the result is in use, no other part that overlaps it may be, and the values must have been
    /// written before.
    pub(super) unsafe fn part(self, range: Range<usize>) -> &'a mut [f32] {
        assert!(range.start <= range.end && range.end <= self.len, "a part of {}", self.len);
        // SAFETY: the range lies inside the borrowed slice, and the caller promises that nothing
        // else refers to it.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// Room for the values in `range`, which may not have been written yet.
    ///
    /// # Panics
    /// When the range does not lie inside the slice.
    ///
    /// # Safety
    /// While the result is in use, no other part that overlaps it may be, and only whole values may be
    /// written to it.
    pub(super) unsafe fn unwritten(self, range: Range<usize>) -> &'a mut [MaybeUninit<f32>] {
        assert!(range.start <= range.end && range.end <= self.len, "a part of {}", self.len);
        // SAFETY: as in `part`; room needs no values.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start).cast(), range.len()) }
    }

    /// How many values there are.
    pub(super) fn len(self) -> usize {
        self.len
    }

    /// A pointer to the value at `at`, for functions that write rows some stride apart.
    pub(super) fn pointer(self, at: usize) -> *mut f32 {
        debug_assert!(at < self.len, "place {at} of {}", self.len);
        self.start.wrapping_add(at)
    }
}
