//! Work on one output slice, cut into chunks that the pool's threads write.
//!
//! Chunks depend on the length alone, so results do not depend on the number of threads.

use crate::pool::parallel;

/// Elements of a chunk: a few pages, so that threads do not share cache lines.
const CHUNK: usize = 16 << 10;

/// A pointer that threads may use for disjoint parts.
struct Parts<T>(*mut T);

// SAFETY: `for_each_part` hands every part to exactly one unit, and units run once each.
unsafe impl<T: Send> Sync for Parts<T> {}

impl<T> Parts<T> {
    /// The elements `start..start + len`.
    ///
    /// # Safety
    /// The range lies inside the slice the pointer came from, and nobody else uses it meanwhile.
    unsafe fn part<'a>(&self, start: usize, len: usize) -> &'a mut [T] {
        // SAFETY: promised by the caller.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

/// Calls `work(part index, part)` for consecutive parts of `part_len` elements, the last perhaps shorter.
pub fn for_each_part<T: Send>(output: &mut [T], part_len: usize, work: impl Fn(usize, &mut [T]) + Sync) {
    let (len, part_len) = (output.len(), part_len.max(1));
    let parts = Parts(output.as_mut_ptr());
    parallel(size_of_val(output), len.div_ceil(part_len), &|index| {
        let start = index * part_len;
        // SAFETY: parts of different indices are disjoint and inside `output`, which is borrowed for the whole call.
        work(index, unsafe { parts.part(start, part_len.min(len - start)) });
    });
}

/// output[i] = f(a[i]).
pub fn map<A: Copy + Sync, T: Send>(a: &[A], output: &mut [T], f: impl Fn(A) -> T + Sync) {
    for_each_part(output, CHUNK, |index, part| {
        let a = &a[index * CHUNK..][..part.len()];
        part.iter_mut().zip(a).for_each(|(out, &a)| *out = f(a));
    });
}

/// output[i] = f(a[i], b[i]).
pub fn map2<A: Copy + Sync, B: Copy + Sync, T: Send>(a: &[A], b: &[B], output: &mut [T], f: impl Fn(A, B) -> T + Sync) {
    for_each_part(output, CHUNK, |index, part| {
        let (a, b) = (&a[index * CHUNK..][..part.len()], &b[index * CHUNK..][..part.len()]);
        part.iter_mut().zip(a.iter().zip(b)).for_each(|(out, (&a, &b))| *out = f(a, b));
    });
}

/// f(&mut output[i], a[i]).
pub fn update<A: Copy + Sync, T: Send>(output: &mut [T], a: &[A], f: impl Fn(&mut T, A) + Sync) {
    for_each_part(output, CHUNK, |index, part| {
        let a = &a[index * CHUNK..][..part.len()];
        part.iter_mut().zip(a).for_each(|(out, &a)| f(out, a));
    });
}
