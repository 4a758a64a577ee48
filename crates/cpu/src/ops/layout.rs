//! Walking dense memory by strides: changes of memory format, broadcasts, and casts.

use super::split::{for_each_part, map};
use crate::slice::{Element, HostSlice, HostSliceMut};
use half::{bf16, f16};
use syncbn_core::ops::Restride;

/// Joins neighbouring dimensions that all stride lists walk as one, and drops those of size 1.
pub fn collapse<const K: usize>(shape: &[usize], strides: [&[usize]; K]) -> (Vec<usize>, [Vec<usize>; K]) {
    let mut sizes: Vec<usize> = Vec::with_capacity(shape.len());
    let mut kept: [Vec<usize>; K] = std::array::from_fn(|_| Vec::with_capacity(shape.len()));
    for (dimension, &size) in shape.iter().enumerate() {
        if size == 1 {
            continue;
        }
        let joins = !sizes.is_empty()
            && (0..K).all(|k| kept[k].last().is_some_and(|&before| before == strides[k][dimension] * size));
        if joins {
            *sizes.last_mut().expect("not empty") *= size;
            (0..K).for_each(|k| *kept[k].last_mut().expect("not empty") = strides[k][dimension]);
        } else {
            sizes.push(size);
            (0..K).for_each(|k| kept[k].push(strides[k][dimension]));
        }
    }
    (sizes, kept)
}

/// The offsets of the `index`-th position, in row-major order of `shape`, under each stride list.
pub fn offsets<const K: usize>(mut index: usize, shape: &[usize], strides: [&[usize]; K]) -> [usize; K] {
    let mut at = [0; K];
    for (dimension, &size) in shape.iter().enumerate().rev() {
        let position = index % size;
        index /= size;
        (0..K).for_each(|k| at[k] += position * strides[k][dimension]);
    }
    at
}

/// The dimensions of `layout` sorted so that the output is written front to back.
fn in_output_order(layout: &Restride) -> (Vec<usize>, Vec<usize>, Vec<usize>) {
    let mut order: Vec<usize> = (0..layout.shape.len()).collect();
    order.sort_by_key(|&dimension| std::cmp::Reverse(layout.output[dimension]));
    let pick = |from: &[usize]| order.iter().map(|&dimension| from[dimension]).collect();
    (pick(&layout.shape), pick(&layout.input), pick(&layout.output))
}

pub fn restride<T: Element>(input: &[T], layout: &Restride, output: &mut [T]) {
    let (shape, from, to) = in_output_order(layout);
    let (shape, [from, _]) = collapse(&shape, [&from, &to]);
    let Some((&row, outer)) = shape.split_last() else {
        output[0] = input[0];
        return;
    };
    let step = from[outer.len()];
    for_each_part(output, row, |index, part| {
        let [start] = offsets(index, outer, [&from]);
        if step == 1 {
            part.copy_from_slice(&input[start..start + part.len()]);
        } else {
            part.iter_mut().enumerate().for_each(|(i, out)| *out = input[start + i * step]);
        }
    });
}

/// Calls `$body` with `$input` and `$from`, a conversion of its elements to float64 or, for integers, int64.
macro_rules! cast_from {
    ($slice:expr, $output:ident, $to_float:expr, $to_int:expr) => {
        match $slice {
            HostSlice::F32(input) => map(input, $output, |x| $to_float(f64::from(x))),
            HostSlice::F64(input) => map(input, $output, |x| $to_float(x)),
            HostSlice::F16(input) => map(input, $output, |x: f16| $to_float(x.to_f64())),
            HostSlice::BF16(input) => map(input, $output, |x: bf16| $to_float(x.to_f64())),
            HostSlice::I32(input) => map(input, $output, |x| $to_int(i64::from(x))),
            HostSlice::I64(input) => map(input, $output, |x| $to_int(x)),
        }
    };
}

/// Rounds to nearest even; floats become integers by truncation, saturating.
pub fn cast(input: HostSlice<'_>, output: HostSliceMut<'_>) {
    match (input, output) {
        (HostSlice::F32(input), HostSliceMut::F32(output)) => output.copy_from_slice(input),
        (HostSlice::F64(input), HostSliceMut::F64(output)) => output.copy_from_slice(input),
        (HostSlice::F16(input), HostSliceMut::F16(output)) => output.copy_from_slice(input),
        (HostSlice::BF16(input), HostSliceMut::BF16(output)) => output.copy_from_slice(input),
        (input, HostSliceMut::F32(output)) => cast_from!(input, output, |x: f64| x as f32, |x: i64| x as f32),
        (input, HostSliceMut::F64(output)) => cast_from!(input, output, |x: f64| x, |x: i64| x as f64),
        (input, HostSliceMut::F16(output)) => {
            cast_from!(input, output, f16::from_f64, |x: i64| f16::from_f64(x as f64))
        }
        (input, HostSliceMut::BF16(output)) => {
            cast_from!(input, output, bf16::from_f64, |x: i64| bf16::from_f64(x as f64))
        }
        (input, HostSliceMut::I32(output)) => cast_from!(input, output, |x: f64| x as i32, |x: i64| x as i32),
        (input, HostSliceMut::I64(output)) => cast_from!(input, output, |x: f64| x as i64, |x: i64| x),
    }
}
