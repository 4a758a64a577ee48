//! Sums and the position of maxima.

use super::float::{Float, exceeds};
use super::layout::{collapse, offsets};
use super::split::for_each_part;
use syncbn_core::ops::{Along, Reduction};

/// Outputs of one part: bounds the work of a unit without depending on threads.
const OUTPUTS: usize = 16;

/// Sums are made in float64, so their error does not grow with the number of terms.
pub fn sum<T: Float>(input: &[T], layout: &Reduction, output: &mut [T]) {
    let (kept, [kept_strides]) = collapse(&layout.kept, [&layout.kept_strides]);
    let (reduced, [reduced_strides]) = collapse(&layout.reduced, [&layout.reduced_strides]);
    let (row, outer) = reduced.split_last().map_or((1, &[][..]), |(&row, outer)| (row, outer));
    let step = reduced_strides.last().copied().unwrap_or(0);
    let rows: usize = outer.iter().product();
    for_each_part(output, OUTPUTS, |index, part| {
        for (i, out) in part.iter_mut().enumerate() {
            let [base] = offsets(index * OUTPUTS + i, &kept, [&kept_strides]);
            let total: f64 =
                (0..rows).map(|r| row_sum(input, base + offsets(r, outer, [&reduced_strides])[0], step, row)).sum();
            *out = T::of(total * layout.scale);
        }
    });
}

fn row_sum<T: Float>(input: &[T], start: usize, step: usize, len: usize) -> f64 {
    if step != 1 {
        return (0..len).map(|i| input[start + i * step].wide()).sum();
    }
    let mut lanes = [0.0; 8];
    let chunks = input[start..start + len].chunks_exact(8);
    let rest: f64 = chunks.remainder().iter().map(|x| x.wide()).sum();
    chunks.for_each(|chunk| lanes.iter_mut().zip(chunk).for_each(|(lane, x)| *lane += x.wide()));
    lanes.iter().sum::<f64>() + rest
}

pub fn argmax<T: Float>(input: &[T], along: Along, output: &mut [i64]) {
    for_each_part(output, OUTPUTS.max(along.inner), |index, part| {
        let first = index * OUTPUTS.max(along.inner);
        for (i, out) in part.iter_mut().enumerate() {
            let (outer, inner) = ((first + i) / along.inner, (first + i) % along.inner);
            let at = |k: usize| input[(outer * along.size + k) * along.inner + inner];
            *out = (1..along.size).fold(0, |best, k| if exceeds(at(k), at(best)) { k } else { best }) as i64;
        }
    });
}
