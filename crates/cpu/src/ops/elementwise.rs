//! Arithmetic on each element, with broadcasting, and ReLU.

use super::float::Float;
use super::layout::{collapse, offsets};
use super::split::{for_each_part, map, map2, update};
use syncbn_core::ops::{Along, BinaryOp, Broadcast};

fn function<T: Float>(op: BinaryOp) -> fn(T, T) -> T {
    match op {
        BinaryOp::Add => |a, b| a + b,
        BinaryOp::Sub => |a, b| a - b,
        BinaryOp::Mul => |a, b| a * b,
        BinaryOp::Div => |a, b| a / b,
    }
}

/// Calls `$body` with `$f` bound to the operation as a closure the compiler can inline.
macro_rules! with_function {
    ($op:expr, |$f:ident| $body:expr) => {
        match $op {
            BinaryOp::Add => {
                let $f = |a, b| a + b;
                $body
            }
            BinaryOp::Sub => {
                let $f = |a, b| a - b;
                $body
            }
            BinaryOp::Mul => {
                let $f = |a, b| a * b;
                $body
            }
            BinaryOp::Div => {
                let $f = |a, b| a / b;
                $body
            }
        }
    };
}

pub fn binary<T: Float>(op: BinaryOp, a: &[T], b: &[T], layout: &Broadcast, output: &mut [T]) {
    if a.len() == output.len() && b.len() == output.len() && layout.a == layout.b {
        return with_function!(op, |f| map2(a, b, output, f));
    }
    let (shape, [a_strides, b_strides]) = collapse(&layout.shape, [&layout.a, &layout.b]);
    let f = function::<T>(op);
    let Some((&row, outer)) = shape.split_last() else {
        output[0] = f(a[0], b[0]);
        return;
    };
    let (a_step, b_step) = (a_strides[outer.len()], b_strides[outer.len()]);
    for_each_part(output, row, |index, part| {
        let [mut i, mut j] = offsets(index, outer, [&a_strides, &b_strides]);
        for out in part {
            *out = f(a[i], b[j]);
            (i, j) = (i + a_step, j + b_step);
        }
    });
}

pub fn binary_scalar<T: Float>(op: BinaryOp, a: &[T], scalar: f64, output: &mut [T]) {
    let b = T::of(scalar);
    with_function!(op, |f| map(a, output, |a| f(a, b)));
}

pub fn relu<T: Float>(input: &[T], output: &mut [T]) {
    map(input, output, |x| if x <= T::default() { T::default() } else { x });
}

/// The output is positive (or NaN) exactly where the input was.
pub fn relu_backward<T: Float>(grad_output: &[T], output: &[T], grad_input: &mut [T]) {
    map2(grad_output, output, grad_input, |dy, y| if y <= T::default() { T::default() } else { dy });
}

pub fn add_in_place<T: Float>(accumulator: &mut [T], addend: &[T]) {
    update(accumulator, addend, |sum, value| *sum += value);
}

pub fn scale_in_place<T: Float>(data: &mut [T], factor: f64) {
    let factor = T::of(factor);
    data.iter_mut().for_each(|value| *value *= factor);
}

pub fn add_bias<T: Float>(data: &mut [T], bias: &[T], along: Along) {
    let block = along.size * along.inner;
    for_each_part(data, block, |_, block| {
        for (row, &bias) in block.chunks_exact_mut(along.inner.max(1)).zip(bias) {
            row.iter_mut().for_each(|value| *value += bias);
        }
    });
}
