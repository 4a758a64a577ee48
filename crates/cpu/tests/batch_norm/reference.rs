//! The formulas, plainly: once in float64 with compensated sums, once in the tested type as anybody would write them.

use crate::harness::Num;
use syncbn_core::BatchNormShape;

/// Offsets of a channel's elements.
pub fn elements(shape: BatchNormShape, channel: usize) -> impl Iterator<Item = usize> + Clone {
    (0..shape.batch).flat_map(move |sample| {
        let (start, step) = shape.run(sample, channel);
        (0..shape.spatial).map(move |i| start + i * step)
    })
}

/// Neumaier's sum: what rounding loses is summed too.
pub fn sum(values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut lost) = (0.0f64, 0.0f64);
    for value in values {
        let next = sum + value;
        lost += if sum.abs() >= value.abs() { (sum - next) + value } else { (value - next) + sum };
        sum = next;
    }
    sum + lost
}

/// The mean of one channel, as a float64 and what that cannot hold.
fn exact_mean<T: Num>(shape: BatchNormShape, channel: usize, x: &[T]) -> (f64, f64) {
    let n = shape.count() as f64;
    let value = |at: usize| -> f64 { x[at].into() };
    let first = value(elements(shape, channel).next().unwrap());
    let rough = first + sum(elements(shape, channel).map(|at| value(at) - first)) / n;
    let rest = sum(elements(shape, channel).map(|at| value(at) - rough)) / n;
    let mean = rough + rest;
    (mean, rest - (mean - rough))
}

/// Mean and M2 of one channel.
pub fn moments<T: Num>(shape: BatchNormShape, channel: usize, x: &[T]) -> (f64, f64) {
    let (mean, rest) = exact_mean(shape, channel, x);
    let square = |at: usize| ((x[at].into() - mean) - rest).powi(2);
    (mean, sum(elements(shape, channel).map(square)))
}

/// x − mean of one channel, and its invstd.
fn centred<T: Num>(shape: BatchNormShape, channel: usize, x: &[T], eps: f64) -> (Vec<f64>, f64) {
    let (mean, rest) = exact_mean(shape, channel, x);
    let (_, m2) = moments(shape, channel, x);
    let xmu = elements(shape, channel).map(|at| (x[at].into() - mean) - rest);
    (xmu.collect(), 1.0 / (m2 / shape.count() as f64 + eps).sqrt())
}

/// What a mean kept as one float64 may cost x̂: 1 ulp of it, in standard deviations.
pub fn mean_rounding<T: Num>(shape: BatchNormShape, channel: usize, x: &[T], eps: f64) -> f64 {
    exact_mean(shape, channel, x).0.abs() * f64::EPSILON * centred(shape, channel, x, eps).1
}

/// y of one channel, in the order of [`elements`].
pub fn forward<T: Num>(shape: BatchNormShape, channel: usize, x: &[T], w: f64, b: f64, eps: f64) -> Vec<f64> {
    let (xmu, invstd) = centred(shape, channel, x, eps);
    xmu.into_iter().map(|xmu| w * (xmu * invstd) + b).collect()
}

/// The gradients of one channel.
pub struct Gradients {
    /// In the order of [`elements`].
    pub dx: Vec<f64>,
    pub weight: f64,
    pub bias: f64,
    /// The largest of the terms that add up to a dx.
    pub dx_scale: f64,
}

/// The gradients of one channel.
pub fn backward<T: Num>(shape: BatchNormShape, channel: usize, x: &[T], dy: &[T], w: f64, eps: f64) -> Gradients {
    let (n, (xmu, invstd)) = (shape.count() as f64, centred(shape, channel, x, eps));
    let xh: Vec<f64> = xmu.into_iter().map(|xmu| xmu * invstd).collect();
    let dy: Vec<f64> = elements(shape, channel).map(|at| dy[at].into()).collect();
    let (bias, weight) = (sum(dy.iter().copied()), sum(dy.iter().zip(&xh).map(|(dy, xh)| dy * xh)));
    let dx = dy.iter().zip(&xh).map(|(dy, xh)| w * invstd * (dy - bias / n - xh * weight / n)).collect();
    let largest = |values: &[f64]| values.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
    let terms = largest(&dy) + bias.abs() / n + largest(&xh) * weight.abs() / n;
    Gradients { dx, weight, bias, dx_scale: w.abs() * invstd * terms }
}

/// Rounds every step to `T`.
fn round<T: Num>(value: f64) -> f64 {
    T::of(value).into()
}

/// One rounding for each of the terms, as a loop in `T` has.
fn plain_sum<T: Num>(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |sum, value| round::<T>(sum + value))
}

/// Mean and invstd by the plain two-pass formula in `T`.
pub fn plain_statistics<T: Num>(shape: BatchNormShape, channel: usize, x: &[T], eps: f64) -> (f64, f64) {
    let n = shape.count() as f64;
    let mean = round::<T>(plain_sum::<T>(elements(shape, channel).map(|at| x[at].into())) / n);
    let squares = elements(shape, channel).map(|at| round::<T>(round::<T>(x[at].into() - mean).powi(2)));
    let var = round::<T>(plain_sum::<T>(squares) / n);
    (mean, round::<T>(1.0 / round::<T>(round::<T>(var + eps).sqrt())))
}

/// [`forward`] by the plain two-pass formula in `T`.
pub fn plain_forward<T: Num>(shape: BatchNormShape, channel: usize, x: &[T], w: f64, b: f64, eps: f64) -> Vec<f64> {
    let (mean, invstd) = plain_statistics(shape, channel, x, eps);
    let y = |at: usize| round::<T>(round::<T>(w * round::<T>(round::<T>(x[at].into() - mean) * invstd)) + b);
    elements(shape, channel).map(y).collect()
}

/// dx, grad_weight and grad_bias by the plain formula in `T`.
pub fn plain_backward<T: Num>(
    shape: BatchNormShape,
    channel: usize,
    x: &[T],
    dy: &[T],
    w: f64,
    eps: f64,
) -> (Vec<f64>, f64, f64) {
    let (n, (mean, invstd)) = (shape.count() as f64, plain_statistics(shape, channel, x, eps));
    let r = round::<T>;
    let at_each = || elements(shape, channel).map(|at| (dy[at].into(), r(x[at].into() - mean)));
    let sum_dy = plain_sum::<T>(at_each().map(|(dy, _)| dy));
    let dot = plain_sum::<T>(at_each().map(|(dy, xmu)| r(dy * xmu)));
    let slope = r(r(r(invstd * invstd) * dot) / n);
    let dx = at_each().map(|(dy, xmu)| r(r(w * invstd) * r(r(dy - r(sum_dy / n)) - r(xmu * slope))));
    (dx.collect(), r(dot * invstd), sum_dy)
}

/// Fails unless `got` is as near to `exact` as the contract asks: twice the error of `plain`, or 4 ulp of the scale.
pub fn assert_contract<T: Num>(what: &str, got: &[f64], exact: &[f64], plain: &[f64], scale: f64) {
    assert_eq!(got.len(), exact.len(), "{what}");
    let worse = |a: f64, b: f64| if b > a || b.is_nan() { b } else { a };
    let error = |of: &[f64]| of.iter().zip(exact).map(|(a, b)| (a - b).abs()).fold(0.0, worse);
    let (ours, allowed) = (error(got), (2.0 * error(plain)).max(4.0 * T::EPSILON * scale));
    assert!(ours <= allowed, "{what}: error {ours:e}, allowed {allowed:e}, scale {scale:e}");
}
