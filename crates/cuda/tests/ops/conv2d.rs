//! Two-dimensional convolution: every pass, layout, and way to cut the work into chunks.

use crate::harness::{Products, Side, Values, both, code, cuda, cuda_with};
use std::sync::{Mutex, PoisonError};
use syncbn_core::ops::Conv2d;
use syncbn_core::{Code, DType, Ops};
use syncbn_cuda::set_convolution_workspace;

/// The workspace is the process's: tests that need a certain one take turns.
static WORKSPACE: Mutex<()> = Mutex::new(());
const PLENTY: usize = 256 << 20;

#[derive(Clone, Copy)]
struct Case {
    batch: usize,
    channels: [usize; 2],
    input: [usize; 2],
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
    groups: usize,
}

impl Case {
    fn geometry(self, channels_last: bool) -> Conv2d {
        let Case { batch, channels, input, kernel, stride, padding, groups } = self;
        let size = |i: usize| (input[i] + 2 * padding[i] - kernel[i]) / stride[i] + 1;
        let ([in_channels, out_channels], output) = (channels, [size(0), size(1)]);
        Conv2d { batch, in_channels, out_channels, input, output, kernel, stride, padding, groups, channels_last }
    }
}

const SQUARE: Case =
    Case { batch: 3, channels: [4, 6], input: [7, 5], kernel: [3, 3], stride: [1, 1], padding: [1, 1], groups: 1 };

const CASES: [Case; 8] = [
    SQUARE,
    Case { stride: [2, 3], padding: [0, 2], kernel: [2, 4], ..SQUARE },
    Case { kernel: [1, 1], padding: [0, 0], ..SQUARE },
    Case { kernel: [1, 1], stride: [2, 2], padding: [0, 0], ..SQUARE },
    Case { kernel: [1, 1], padding: [0, 0], groups: 2, ..SQUARE },
    Case { groups: 2, ..SQUARE },
    Case { groups: 4, channels: [4, 8], batch: 2, ..SQUARE },
    Case { input: [1, 9], kernel: [1, 5], padding: [0, 4], batch: 1, ..SQUARE },
];

#[track_caller]
fn check(products: Products, dtype: DType, geometry: &Conv2d) {
    let Some(cuda) = cuda_with(products) else { return };
    let Conv2d { batch, in_channels, out_channels, input, output, kernel, groups, .. } = *geometry;
    let taps = kernel[0] * kernel[1];
    let weight_len = out_channels * (in_channels / groups) * taps;
    let (in_len, out_len) = (batch * in_channels * input[0] * input[1], batch * out_channels * output[0] * output[1]);
    let x = Values::random_on(&cuda, dtype, 1, in_len);
    let w = Values::random_on(&cuda, dtype, 2, weight_len);
    let dy = Values::random_on(&cuda, dtype, 3, out_len);
    let mut y = Values::unwritten_on(&cuda, dtype, out_len);
    both!(cuda.clone(), d => d.conv2d(d.input(&x), d.input(&w), geometry, d.output(&mut y)));
    y.assert_rounded(in_channels / groups * taps);
    let mut dx = Values::unwritten_on(&cuda, dtype, in_len);
    both!(cuda.clone(), d => d.conv2d_backward_input(d.input(&dy), d.input(&w), geometry, d.output(&mut dx)));
    dx.assert_rounded(out_channels / groups * taps);
    let mut dw = Values::unwritten_on(&cuda, dtype, weight_len);
    both!(cuda.clone(), d => d.conv2d_backward_weight(d.input(&dy), d.input(&x), geometry, d.output(&mut dw)));
    dw.assert_rounded(batch * output[0] * output[1]);
}

#[test]
fn every_geometry_is_the_cpus() {
    let _turn = WORKSPACE.lock().unwrap_or_else(PoisonError::into_inner);
    set_convolution_workspace(PLENTY);
    for (case, channels_last) in CASES.into_iter().flat_map(|case| [(case, false), (case, true)]) {
        check(Products::Own, DType::F32, &case.geometry(channels_last));
        check(Products::Own, DType::F64, &case.geometry(channels_last));
    }
}

#[test]
fn every_geometry_by_cublas() {
    let _turn = WORKSPACE.lock().unwrap_or_else(PoisonError::into_inner);
    set_convolution_workspace(PLENTY);
    for (case, channels_last) in CASES.into_iter().flat_map(|case| [(case, false), (case, true)]) {
        check(Products::Cublas, DType::F32, &case.geometry(channels_last));
    }
}

/// Bytes for several samples, for one, for some positions of one, and for less than one position.
#[test]
fn a_small_workspace_gives_the_same_results() {
    let _turn = WORKSPACE.lock().unwrap_or_else(PoisonError::into_inner);
    for workspace in [20_000, 7000, 2000, 1] {
        set_convolution_workspace(workspace);
        for (case, channels_last) in CASES.into_iter().flat_map(|case| [(case, false), (case, true)]) {
            check(Products::Own, DType::F32, &case.geometry(channels_last));
        }
    }
    set_convolution_workspace(PLENTY);
}

#[test]
fn nothing_is_convolved() {
    let empty = Case { batch: 0, ..SQUARE };
    for channels_last in [false, true] {
        check(Products::Own, DType::F32, &empty.geometry(channels_last));
    }
}

#[test]
fn wrong_types_and_sizes_are_errors() {
    let cuda = cuda();
    let geometry = SQUARE.geometry(false);
    let (x, w) = (Values::random(DType::F32, 1, 3 * 4 * 35), Values::random(DType::F32, 2, 6 * 36));
    let (half_x, short_w) = (Values::random(DType::BF16, 1, 3 * 4 * 35), Values::random(DType::F32, 2, 6 * 36 - 1));
    let mut y = Values::unwritten(DType::F32, 3 * 6 * 35);
    let mut run =
        |x: &Values, w: &Values| code(cuda.conv2d(cuda.input(x), cuda.input(w), &geometry, cuda.output(&mut y)));
    assert_eq!(run(&half_x, &w), Code::DType);
    assert_eq!(run(&x, &short_w), Code::Shape);
}
