//! Two-dimensional pooling, in both layouts.
//!
//! One sample is one part of the output, so windows that overlap never meet another thread's.

use super::float::{Float, exceeds};
use super::split::for_each_part;
use std::ops::Range;
use syncbn_core::ops::Pool2d;

/// Offset of (channel, position) in one sample with `positions` positions.
fn at(geometry: &Pool2d, positions: usize, channel: usize, position: usize) -> usize {
    if geometry.channels_last { position * geometry.channels + channel } else { channel * positions + position }
}

/// The part of the window at output index `i` that lies inside the input, along one dimension.
fn window(geometry: &Pool2d, dimension: usize, i: usize) -> Range<usize> {
    let start = i * geometry.stride[dimension];
    let end = (start + geometry.kernel[dimension]).saturating_sub(geometry.padding[dimension]);
    start.saturating_sub(geometry.padding[dimension])..end.min(geometry.input[dimension])
}

/// The window of adaptive pooling at output index `i`: ⌊i·in/out⌋ .. ⌈(i+1)·in/out⌉.
fn adaptive_window(geometry: &Pool2d, dimension: usize, i: usize) -> Range<usize> {
    let (input, output) = (geometry.input[dimension], geometry.output[dimension]);
    i * input / output..((i + 1) * input).div_ceil(output)
}

/// Elements of one sample's input and output.
fn sizes(geometry: &Pool2d) -> (usize, usize) {
    let size = |[h, w]: [usize; 2]| h * w * geometry.channels;
    (size(geometry.input), size(geometry.output))
}

/// Calls `visit(channel, output offset, rows, columns)` for every window of a sample.
fn each_window(
    geometry: &Pool2d,
    window: impl Fn(&Pool2d, usize, usize) -> Range<usize>,
    mut visit: impl FnMut(usize, usize, Range<usize>, Range<usize>),
) {
    let [height, width] = geometry.output;
    for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
        let (rows, columns) = (window(geometry, 0, y), window(geometry, 1, x));
        for channel in 0..geometry.channels {
            let offset = at(geometry, height * width, channel, y * width + x);
            visit(channel, offset, rows.clone(), columns.clone());
        }
    }
}

/// The positions h·W + w of a window.
fn positions(geometry: &Pool2d, rows: Range<usize>, columns: Range<usize>) -> impl Iterator<Item = usize> + use<> {
    let width = geometry.input[1];
    rows.flat_map(move |row| columns.clone().map(move |column| row * width + column))
}

pub fn max<T: Float>(input: &[T], geometry: &Pool2d, output: &mut [T], indices: &mut [i64]) {
    let ((in_size, out_size), plane) = (sizes(geometry), geometry.input[0] * geometry.input[1]);
    for_each_part(indices, out_size, |n, indices| {
        let sample = &input[n * in_size..][..in_size];
        each_window(geometry, window, |channel, offset, rows, columns| {
            let value = |position| sample[at(geometry, plane, channel, position)];
            let mut window = positions(geometry, rows, columns);
            let first = window.next().expect("a window reaches into the input");
            let best = window.fold(first, |best, here| if exceeds(value(here), value(best)) { here } else { best });
            indices[offset] = best as i64;
        });
    });
    let indices = &*indices;
    for_each_part(output, out_size, |n, output| {
        let (sample, indices) = (&input[n * in_size..][..in_size], &indices[n * out_size..][..out_size]);
        each_window(geometry, window, |channel, offset, _, _| {
            output[offset] = sample[at(geometry, plane, channel, indices[offset] as usize)];
        });
    });
}

pub fn max_backward<T: Float>(grad_output: &[T], indices: &[i64], geometry: &Pool2d, grad_input: &mut [T]) {
    let ((in_size, out_size), plane) = (sizes(geometry), geometry.input[0] * geometry.input[1]);
    for_each_part(grad_input, in_size, |n, grad_input| {
        let (grads, indices) = (&grad_output[n * out_size..][..out_size], &indices[n * out_size..][..out_size]);
        grad_input.fill(T::default());
        each_window(geometry, window, |channel, offset, _, _| {
            grad_input[at(geometry, plane, channel, indices[offset] as usize)] += grads[offset];
        });
    });
}

type WindowOf = fn(&Pool2d, usize, usize) -> Range<usize>;

/// Elements a window's sum is divided by: the whole kernel where padding counts, else those inside.
fn divisor(geometry: &Pool2d, adaptive: bool, rows: &Range<usize>, columns: &Range<usize>) -> f64 {
    if adaptive {
        return (rows.len() * columns.len()) as f64;
    }
    (geometry.kernel[0] * geometry.kernel[1]) as f64
}

fn rule(adaptive: bool) -> WindowOf {
    if adaptive { adaptive_window } else { window }
}

pub fn average<T: Float>(input: &[T], geometry: &Pool2d, adaptive: bool, output: &mut [T]) {
    let ((in_size, out_size), plane) = (sizes(geometry), geometry.input[0] * geometry.input[1]);
    for_each_part(output, out_size, |n, output| {
        let sample = &input[n * in_size..][..in_size];
        each_window(geometry, rule(adaptive), |channel, offset, rows, columns| {
            let divisor = divisor(geometry, adaptive, &rows, &columns);
            let window = positions(geometry, rows, columns);
            let total: f64 = window.map(|position| sample[at(geometry, plane, channel, position)].wide()).sum();
            output[offset] = T::of(total / divisor);
        });
    });
}

pub fn average_backward<T: Float>(grad_output: &[T], geometry: &Pool2d, adaptive: bool, grad_input: &mut [T]) {
    let ((in_size, out_size), plane) = (sizes(geometry), geometry.input[0] * geometry.input[1]);
    for_each_part(grad_input, in_size, |n, grad_input| {
        let grads = &grad_output[n * out_size..][..out_size];
        grad_input.fill(T::default());
        each_window(geometry, rule(adaptive), |channel, offset, rows, columns| {
            let share = T::of(grads[offset].wide() / divisor(geometry, adaptive, &rows, &columns));
            positions(geometry, rows, columns)
                .for_each(|position| grad_input[at(geometry, plane, channel, position)] += share);
        });
    });
}
