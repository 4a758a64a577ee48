//! Convolution and both of its gradients by their definition: one loop over every product.

use crate::harness::*;
use syncbn_core::Ops;
use syncbn_core::ops::Conv2d;
use syncbn_cpu::Cpu;

/// Geometries with one (in, out) channel count a group, and sizes that stride and padding do not divide.
fn geometries() -> Vec<Conv2d> {
    let options = [
        // batch, channels in and out, input, kernel, stride, padding, groups
        (2, [3, 5], [7, 9], [3, 3], [1, 1], [1, 1], 1),
        (1, [4, 6], [8, 5], [3, 2], [2, 1], [0, 1], 2),
        (3, [6, 6], [5, 7], [3, 3], [2, 3], [2, 1], 6),
        (2, [5, 7], [6, 6], [1, 1], [1, 1], [0, 0], 1),
        (2, [4, 8], [5, 5], [1, 1], [1, 1], [0, 0], 4),
        (2, [3, 2], [9, 4], [1, 1], [2, 2], [0, 0], 1),
        (1, [2, 3], [4, 11], [4, 5], [3, 2], [3, 4], 1),
        (0, [2, 3], [4, 4], [3, 3], [1, 1], [1, 1], 1),
        (2, [16, 33], [21, 19], [3, 3], [1, 1], [1, 1], 1),
    ];
    let with_layout = |channels_last: bool| {
        options.map(|(batch, [in_channels, out_channels], input, kernel, stride, padding, groups)| {
            let size = |i: usize| (input[i] + 2 * padding[i] - kernel[i]) / stride[i] + 1;
            let output: [usize; 2] = [size(0), size(1)];
            Conv2d { batch, in_channels, out_channels, input, output, kernel, stride, padding, groups, channels_last }
        })
    };
    [with_layout(false), with_layout(true)].concat()
}

fn offset(last: bool, [n, c, y, x]: [usize; 4], channels: usize, [height, width]: [usize; 2]) -> usize {
    if last { ((n * height + y) * width + x) * channels + c } else { ((n * channels + c) * height + y) * width + x }
}

/// Calls `visit(input, weight, output)` with the offsets of every product.
fn each_product(g: &Conv2d, mut visit: impl FnMut(usize, usize, usize)) {
    let (in_group, out_group) = (g.in_channels / g.groups, g.out_channels / g.groups);
    let (outputs, taps) = (g.batch * g.out_channels * g.output[0] * g.output[1], in_group * g.kernel[0] * g.kernel[1]);
    for (index, tap) in (0..outputs).flat_map(|index| (0..taps).map(move |tap| (index, tap))) {
        let (x, y) = (index % g.output[1], index / g.output[1] % g.output[0]);
        let (o, n) = (
            index / (g.output[0] * g.output[1]) % g.out_channels,
            index / (g.output[0] * g.output[1] * g.out_channels),
        );
        let (j, i, c) = (tap % g.kernel[1], tap / g.kernel[1] % g.kernel[0], tap / (g.kernel[0] * g.kernel[1]));
        let (row, column) = (y * g.stride[0] + i, x * g.stride[1] + j);
        let inside = |at: usize, d: usize| at >= g.padding[d] && at - g.padding[d] < g.input[d];
        if inside(row, 0) && inside(column, 1) {
            let channel = o / out_group * in_group + c;
            let from = [n, channel, row - g.padding[0], column - g.padding[1]];
            let input = offset(g.channels_last, from, g.in_channels, g.input);
            let output = offset(g.channels_last, [n, o, y, x], g.out_channels, g.output);
            visit(input, o * taps + tap, output);
        }
    }
}

fn check<T: Num>(geometry: &Conv2d) {
    let g = geometry;
    let weights = g.out_channels * g.in_channels / g.groups * g.kernel[0] * g.kernel[1];
    let inputs = g.batch * g.in_channels * g.input[0] * g.input[1];
    let outputs = g.batch * g.out_channels * g.output[0] * g.output[1];
    let (x, w, dy): (Vec<T>, Vec<T>, Vec<T>) = (random(1, inputs), random(2, weights), random(3, outputs));
    let (wide_x, wide_w, wide_dy) = (wide(&x), wide(&w), wide(&dy));
    let (mut y, mut dx, mut dw) = (vec![0.0; outputs], vec![0.0; inputs], vec![0.0; weights]);
    each_product(g, |i, k, o| {
        y[o] += wide_x[i] * wide_w[k];
        dx[i] += wide_dy[o] * wide_w[k];
        dw[k] += wide_dy[o] * wide_x[i];
    });
    let terms = weights / g.out_channels;
    let got = made::<T>(outputs, |out| Cpu.conv2d(T::view(&x), T::view(&w), g, out));
    assert_close(&format!("{g:?}"), &got, &y, terms);
    let got = made::<T>(inputs, |out| Cpu.conv2d_backward_input(T::view(&dy), T::view(&w), g, out));
    assert_close(&format!("gradient of the input, {g:?}"), &got, &dx, terms * g.out_channels);
    let got = made::<T>(weights, |out| Cpu.conv2d_backward_weight(T::view(&dy), T::view(&x), g, out));
    assert_close(&format!("gradient of the weight, {g:?}"), &got, &dw, outputs);
}

#[test]
fn convolution_and_its_gradients_are_their_definitions() {
    for geometry in geometries() {
        check::<f32>(&geometry);
        check::<f64>(&geometry);
    }
}
