//! Pooling and its gradients, in both layouts, with ties, NaN and padding.

use crate::harness::*;
use syncbn_core::Ops;
use syncbn_core::ops::Pool2d;
use syncbn_cpu::{Cpu, HostSlice, HostSliceMut};

fn geometries() -> Vec<Pool2d> {
    let options = [
        // batch, channels, input, kernel, stride, padding
        (2, 3, [7, 9], [3, 3], [2, 2], [1, 1]),
        (1, 5, [8, 5], [2, 3], [1, 2], [1, 0]),
        (3, 2, [6, 6], [2, 2], [2, 2], [0, 0]),
        (1, 1, [5, 7], [5, 7], [1, 1], [0, 0]),
        (0, 4, [4, 4], [2, 2], [1, 1], [0, 0]),
        (9, 65, [41, 43], [3, 2], [1, 3], [1, 1]),
    ];
    let with_layout = |channels_last: bool| {
        options.map(|(batch, channels, input, kernel, stride, padding)| {
            let size = |i: usize| (input[i] + 2 * padding[i] - kernel[i]) / stride[i] + 1;
            let output: [usize; 2] = [size(0), size(1)];
            Pool2d { batch, channels, input, output, kernel, stride, padding, channels_last }
        })
    };
    [with_layout(false), with_layout(true)].concat()
}

fn sizes(g: &Pool2d) -> (usize, usize) {
    (g.batch * g.channels * g.input[0] * g.input[1], g.batch * g.channels * g.output[0] * g.output[1])
}

fn offset(g: &Pool2d, n: usize, c: usize, position: usize, plane: usize) -> usize {
    if g.channels_last { (n * plane + position) * g.channels + c } else { (n * g.channels + c) * plane + position }
}

/// One window: where its result goes, and its elements as (offset, position h·W + w).
type Window = (usize, Vec<(usize, usize)>);

/// Every window; `range(dimension, index)` gives the rows and columns it covers inside the input.
fn windows(g: &Pool2d, range: impl Fn(usize, usize) -> std::ops::Range<usize>) -> Vec<Window> {
    let planes = (g.input[0] * g.input[1], g.output[0] * g.output[1]);
    let window = |index: usize| {
        let (n, c, at) = (index / (g.channels * planes.1), index / planes.1 % g.channels, index % planes.1);
        let (rows, columns) = (range(0, at / g.output[1]), range(1, at % g.output[1]));
        let positions = rows.flat_map(|y| columns.clone().map(move |x| y * g.input[1] + x));
        let elements = positions.map(|position| (offset(g, n, c, position, planes.0), position)).collect();
        (offset(g, n, c, at, planes.1), elements)
    };
    (0..sizes(g).1).map(window).collect()
}

/// The part of the kernel's window that lies inside the input.
fn inside(g: &Pool2d) -> impl Fn(usize, usize) -> std::ops::Range<usize> {
    move |d, i| {
        let covered = (i * g.stride[d]..i * g.stride[d] + g.kernel[d]).filter_map(|at| at.checked_sub(g.padding[d]));
        let inside: Vec<usize> = covered.filter(|&at| at < g.input[d]).collect();
        inside[0]..inside[inside.len() - 1] + 1
    }
}

fn max<T: Num>(g: &Pool2d) {
    let (inputs, outputs) = sizes(g);
    // Rounded so that there are ties, and with NaN now and then.
    let hard = |(i, x): (usize, T)| if i % 41 == 40 { f64::NAN } else { (2.0 * x.into()).round() };
    let x: Vec<T> = random::<T>(31, inputs).into_iter().enumerate().map(hard).map(T::of).collect();
    let dy: Vec<T> = random(32, outputs);
    let (y, indices) = same_with_threads("max_pool2d", || {
        let mut indices = vec![-1; outputs];
        let y = made::<T>(outputs, |out| Cpu.max_pool2d(T::view(&x), g, out, HostSliceMut::I64(&mut indices)));
        (bits(&y), indices)
    });
    let mut dx = vec![0.0; inputs];
    for (out, elements) in windows(g, inside(g)) {
        let value = |&(at, _): &(usize, usize)| -> f64 { x[at].into() };
        let largest = elements.iter().map(value).fold(f64::NEG_INFINITY, f64::max);
        let nan = elements.iter().find(|element| value(element).is_nan());
        let &(at, position) = nan.or_else(|| elements.iter().find(|element| value(element) == largest)).unwrap();
        assert_eq!((y[out], indices[out]), (bits(&[x[at]])[0], position as i64), "{g:?}, window {out}");
        dx[at] += dy[out].into();
    }
    let backward = || made::<T>(inputs, |out| Cpu.max_pool2d_backward(T::view(&dy), HostSlice::I64(&indices), g, out));
    assert_close(&format!("gradient, {g:?}"), &same_with_threads("max backward", backward), &dx, 4);
}

#[test]
fn max_pooling_takes_the_first_of_equals_and_nan() {
    for geometry in geometries() {
        max::<f32>(&geometry);
        max::<f64>(&geometry);
    }
}

/// Checks an average over `windows`, divided by `divisor(elements)`.
fn average<T: Num>(
    g: &Pool2d,
    windows: &[Window],
    divisor: impl Fn(usize) -> usize,
    forward: impl Fn(HostSlice<'_>, HostSliceMut<'_>) -> syncbn_core::Result<()>,
    backward: impl Fn(HostSlice<'_>, HostSliceMut<'_>) -> syncbn_core::Result<()>,
) {
    let (inputs, outputs) = sizes(g);
    let (x, dy): (Vec<T>, Vec<T>) = (random(33, inputs), random(34, outputs));
    let (mut y, mut dx) = (vec![0.0; outputs], vec![0.0; inputs]);
    for (out, elements) in windows {
        let divisor = divisor(elements.len()) as f64;
        for &(at, _) in elements {
            y[*out] += Into::<f64>::into(x[at]) / divisor;
            dx[at] += Into::<f64>::into(dy[*out]) / divisor;
        }
    }
    let got = same_with_threads("average", || made::<T>(outputs, |out| forward(T::view(&x), out)));
    assert_close(&format!("{g:?}"), &got, &y, 1);
    let got = same_with_threads("average backward", || made::<T>(inputs, |out| backward(T::view(&dy), out)));
    assert_close(&format!("gradient, {g:?}"), &got, &dx, 4);
}

fn averages<T: Num>(g: &Pool2d) {
    let divisor = |_| g.kernel[0] * g.kernel[1];
    let forward = |x: HostSlice<'_>, out: HostSliceMut<'_>| Cpu.avg_pool2d(x, g, out);
    average::<T>(g, &windows(g, inside(g)), divisor, forward, |dy, out| Cpu.avg_pool2d_backward(dy, g, out));
}

#[test]
fn average_pooling_counts_padding_as_zeros() {
    for geometry in geometries() {
        averages::<f32>(&geometry);
        averages::<f64>(&geometry);
    }
}

fn adaptive<T: Num>(g: &Pool2d) {
    let range = |d: usize, i: usize| {
        let (input, output) = (g.input[d] as f64, g.output[d] as f64);
        (i as f64 * input / output).floor() as usize..((i + 1) as f64 * input / output).ceil() as usize
    };
    let forward = |x: HostSlice<'_>, out: HostSliceMut<'_>| Cpu.adaptive_avg_pool2d(x, g, out);
    let backward = |dy: HostSlice<'_>, out: HostSliceMut<'_>| Cpu.adaptive_avg_pool2d_backward(dy, g, out);
    average::<T>(g, &windows(g, range), |len| len, forward, backward);
}

#[test]
fn adaptive_pooling_tiles_the_input() {
    for (input, output) in [([7, 9], [1, 1]), ([7, 9], [3, 4]), ([5, 4], [5, 4]), ([3, 2], [7, 5])] {
        for channels_last in [false, true] {
            let g = Pool2d {
                batch: 2,
                channels: 5,
                input,
                output,
                kernel: [1, 1],
                stride: [1, 1],
                padding: [0, 0],
                channels_last,
            };
            adaptive::<f32>(&g);
            adaptive::<f64>(&g);
        }
    }
}
