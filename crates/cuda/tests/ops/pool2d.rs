//! Two-dimensional pooling, in both layouts.

use crate::harness::{Side, Values, both, code, cuda};
use syncbn_core::ops::Pool2d;
use syncbn_core::{Code, DType, Ops};

const FLOATS: [DType; 2] = [DType::F32, DType::F64];

fn windows(
    batch: usize,
    channels: usize,
    input: [usize; 2],
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
) -> Pool2d {
    let size = |i: usize| (input[i] + 2 * padding[i] - kernel[i]) / stride[i] + 1;
    Pool2d { batch, channels, input, output: [size(0), size(1)], kernel, stride, padding, channels_last: false }
}

fn adaptive(batch: usize, channels: usize, input: [usize; 2], output: [usize; 2]) -> Pool2d {
    let (kernel, stride, padding) = ([1, 1], [1, 1], [0, 0]);
    Pool2d { batch, channels, input, output, kernel, stride, padding, channels_last: false }
}

fn lens(g: &Pool2d) -> (usize, usize) {
    let planes = g.batch * g.channels;
    (planes * g.input[0] * g.input[1], planes * g.output[0] * g.output[1])
}

fn fixed() -> Vec<Pool2d> {
    let cases = [
        windows(2, 3, [7, 9], [2, 2], [2, 2], [0, 0]),
        windows(2, 5, [8, 7], [3, 3], [2, 2], [1, 1]),
        windows(1, 4, [6, 5], [4, 3], [1, 1], [2, 1]),
        windows(3, 1, [9, 4], [2, 3], [3, 4], [0, 1]),
        windows(0, 3, [4, 4], [2, 2], [2, 2], [0, 0]),
    ];
    cases.into_iter().flat_map(|g| [g, Pool2d { channels_last: true, ..g }]).collect()
}

#[test]
fn maxima_and_their_gradients_are_the_cpus() {
    for (g, dtype) in fixed().into_iter().flat_map(|g| FLOATS.map(|dtype| (g, dtype))) {
        let (in_len, out_len) = lens(&g);
        let (x, dy) = (Values::random(dtype, 1, in_len), Values::random(dtype, 2, out_len));
        let (mut y, mut i) = (Values::unwritten(dtype, out_len), Values::unwritten(DType::I64, out_len));
        both!(d => d.max_pool2d(d.input(&x), &g, d.output(&mut y), d.output(&mut i)));
        y.assert_same();
        i.assert_same();
        let mut dx = Values::unwritten(dtype, in_len);
        both!(d => d.max_pool2d_backward(d.input(&dy), d.input(&i), &g, d.output(&mut dx)));
        dx.assert_same();
    }
}

#[test]
fn the_first_of_equal_maxima_counts_and_nan_is_larger() {
    for (g, dtype) in fixed().into_iter().flat_map(|g| FLOATS.map(|dtype| (g, dtype))) {
        let (in_len, out_len) = lens(&g);
        let value = |i: usize| match i * 7919 % 11 {
            0 | 5 => f64::NAN,
            1 => f64::NEG_INFINITY,
            other => (other / 4) as f64,
        };
        let x = Values::of(dtype, &(0..in_len).map(value).collect::<Vec<_>>());
        let (mut y, mut i) = (Values::unwritten(dtype, out_len), Values::unwritten(DType::I64, out_len));
        both!(d => d.max_pool2d(d.input(&x), &g, d.output(&mut y), d.output(&mut i)));
        y.assert_same();
        i.assert_same();
    }
}

#[test]
fn averages_and_their_gradients_are_the_cpus() {
    for (g, dtype) in fixed().into_iter().flat_map(|g| FLOATS.map(|dtype| (g, dtype))) {
        let (in_len, out_len) = lens(&g);
        let (x, dy) = (Values::random(dtype, 1, in_len), Values::random(dtype, 2, out_len));
        let (mut y, mut dx) = (Values::unwritten(dtype, out_len), Values::unwritten(dtype, in_len));
        both!(d => d.avg_pool2d(d.input(&x), &g, d.output(&mut y)));
        y.assert_rounded(1);
        both!(d => d.avg_pool2d_backward(d.input(&dy), &g, d.output(&mut dx)));
        dx.assert_rounded(1);
    }
}

#[test]
fn adaptive_averages_and_their_gradients_are_the_cpus() {
    let cases = [
        adaptive(2, 3, [7, 9], [1, 1]),
        adaptive(2, 3, [7, 9], [3, 4]),
        adaptive(1, 5, [4, 6], [4, 6]),
        adaptive(2, 2, [3, 2], [5, 7]),
        adaptive(1, 40, [30, 31], [1, 1]),
        adaptive(0, 3, [4, 4], [2, 2]),
    ];
    for g in cases.into_iter().flat_map(|g| [g, Pool2d { channels_last: true, ..g }]) {
        for dtype in FLOATS {
            let (in_len, out_len) = lens(&g);
            let (x, dy) = (Values::random(dtype, 1, in_len), Values::random(dtype, 2, out_len));
            let (mut y, mut dx) = (Values::unwritten(dtype, out_len), Values::unwritten(dtype, in_len));
            both!(d => d.adaptive_avg_pool2d(d.input(&x), &g, d.output(&mut y)));
            y.assert_summed(g.input[0] * g.input[1]);
            both!(d => d.adaptive_avg_pool2d_backward(d.input(&dy), &g, d.output(&mut dx)));
            dx.assert_rounded(1);
        }
    }
}

#[test]
fn wrong_types_and_empty_planes_are_errors() {
    let cuda = cuda();
    let g = windows(1, 1, [4, 4], [2, 2], [2, 2], [0, 0]);
    let x = Values::random(DType::F32, 1, 16);
    let (mut y, mut i) = (Values::unwritten(DType::F32, 4), Values::unwritten(DType::I32, 4));
    assert_eq!(code(cuda.max_pool2d(cuda.input(&x), &g, cuda.output(&mut y), cuda.output(&mut i))), Code::DType);
    let g = windows(1, 1, [0, 2], [2, 2], [2, 2], [1, 0]);
    let (nothing, mut i) = (Values::random(DType::F32, 1, 0), Values::unwritten(DType::I64, 4));
    assert_eq!(code(cuda.max_pool2d(cuda.input(&nothing), &g, cuda.output(&mut y), cuda.output(&mut i))), Code::Shape);
}
