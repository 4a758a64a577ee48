//! The formulas for one channel, plainly: once in float64 with compensated sums, once in the type sums are made in.

use crate::harness::{Case, round, rounding};
use syncbn_core::{BatchNormShape, DType};

/// Offsets of a channel's elements.
pub fn elements(shape: BatchNormShape, channel: usize) -> impl Iterator<Item = usize> + Clone {
    (0..shape.batch).flat_map(move |sample| {
        let (start, step) = shape.run(sample, channel);
        (0..shape.spatial).map(move |i| start + i * step)
    })
}

/// The elements of a channel in `tensor`.
pub fn of_channel(tensor: &[f64], shape: BatchNormShape, channel: usize) -> Vec<f64> {
    elements(shape, channel).map(|at| tensor[at]).collect()
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

/// One channel's statistics over all ranks.
#[derive(Clone, Debug)]
pub struct Moments {
    pub mean: f64,
    /// What a float64 mean cannot hold.
    rest: f64,
    pub m2: f64,
    pub count: f64,
}

impl Moments {
    pub fn of(values: &[f64]) -> Self {
        let count = values.len() as f64;
        let rough = values[0] + sum(values.iter().map(|x| x - values[0])) / count;
        let correction = sum(values.iter().map(|x| x - rough)) / count;
        let mean = rough + correction;
        let rest = correction - (mean - rough);
        Self { mean, rest, m2: sum(values.iter().map(|x| ((x - mean) - rest).powi(2))), count }
    }

    /// By the plain two-pass formula, every step rounded to `dtype`.
    pub fn plain(values: &[f64], dtype: DType) -> Self {
        let count = values.len() as f64;
        let r = |value| round(dtype, value);
        let total = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, |sum, value| r(sum + value));
        let mean = r(total(&mut values.iter().copied()) / count);
        Self { mean, rest: 0.0, m2: total(&mut values.iter().map(|x| r(r(x - mean).powi(2)))), count }
    }

    pub fn invstd(&self, eps: f64) -> f64 {
        1.0 / (self.m2 / self.count + eps).sqrt()
    }

    /// x − mean.
    pub fn centred(&self, values: &[f64]) -> Vec<f64> {
        values.iter().map(|x| (x - self.mean) - self.rest).collect()
    }
}

/// w·(x − mean)·invstd + b.
pub fn forward(x: &[f64], moments: &Moments, eps: f64, w: f64, b: f64) -> Vec<f64> {
    moments.centred(x).into_iter().map(|xmu| w * (xmu * moments.invstd(eps)) + b).collect()
}

/// The same, every step rounded to `dtype`.
pub fn plain_forward(x: &[f64], moments: &Moments, eps: f64, w: f64, b: f64, dtype: DType) -> Vec<f64> {
    let r = |value| round(dtype, value);
    x.iter().map(|x| r(r(w * r(r(x - moments.mean) * r(moments.invstd(eps)))) + b)).collect()
}

/// The gradients of one channel over one rank.
pub struct Gradients {
    pub dx: Vec<f64>,
    pub weight: f64,
    pub bias: f64,
}

/// Every step rounded to `dtype`, which for float64 with exact moments is the reference.
pub fn backward(x: &[f64], dy: &[f64], moments: &Moments, eps: f64, w: f64, dtype: DType) -> Gradients {
    let r = |value| round(dtype, value);
    let total = |values: &mut dyn Iterator<Item = f64>| match dtype {
        DType::F64 => sum(values),
        _ => values.fold(0.0, |sum, value| r(sum + value)),
    };
    let (n, invstd) = (moments.count, r(moments.invstd(eps)));
    let xmu: Vec<f64> = moments.centred(x).into_iter().map(r).collect();
    let bias = total(&mut dy.iter().copied());
    let dot = total(&mut dy.iter().zip(&xmu).map(|(dy, xmu)| r(dy * xmu)));
    let slope = r(r(r(invstd * invstd) * dot) / n);
    let one = |(dy, xmu): (&f64, &f64)| r(r(w * invstd) * r(r(dy - r(bias / n)) - r(xmu * slope)));
    Gradients { dx: dy.iter().zip(&xmu).map(one).collect(), weight: r(dot * invstd), bias }
}

/// How near a result must be: twice the error of the plain formula or 4 ulp of its scale, in the type sums are made in,
/// and one rounding to the result's own type where that is another.
pub struct Allowed {
    /// The type sums are made in.
    pub sums: DType,
    /// The result's type.
    pub result: DType,
    /// Size of the terms the result is made of.
    pub scale: f64,
}

impl Allowed {
    /// For results of `case`.
    pub fn new(case: &Case, result: DType, scale: f64) -> Self {
        Self { sums: case.dtype.accumulate(), result, scale }
    }

    /// Fails unless every value of `got` is near enough to its `exact`.
    pub fn check(&self, what: &str, got: &[f64], exact: &[f64], plain: &[f64]) {
        assert_eq!((got.len(), plain.len()), (exact.len(), exact.len()), "{what}");
        let plain_error = plain.iter().zip(exact).fold(0.0, |worst: f64, (a, b)| worst.max((a - b).abs()));
        let allowed = (2.0 * plain_error).max(8.0 * rounding(self.sums) * self.scale);
        let tiny = encoded_tiny(self.result);
        for (index, (got, exact)) in got.iter().zip(exact).enumerate() {
            let own = if self.result == self.sums { 0.0 } else { rounding(self.result) * exact.abs() + tiny };
            let error = (got - exact).abs();
            assert!(
                error <= allowed * 1.01 + own,
                "{what}, {index}: {got:e} for {exact:e}, error {error:e}, allowed {allowed:e} + {own:e}"
            );
        }
    }
}

/// Half the smallest positive value.
fn encoded_tiny(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 0.5f64.powi(25),
        DType::BF16 => 0.5f64.powi(134),
        _ => 0.0,
    }
}

/// The largest magnitude.
pub fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |a: f64, b| a.max(b.abs()))
}
