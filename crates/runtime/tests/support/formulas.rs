//! The formulas of batch norm over all ranks: exactly, and plainly in the tested type, and how far apart they may be.

use crate::problem::{Problem, Step, round};
use syncbn_core::DType;

/// What the formulas give; tensors by rank.
#[derive(Clone, Debug)]
pub struct Expected {
    pub mean: Vec<f64>,
    /// Biased.
    pub var: Vec<f64>,
    pub y: Vec<Vec<f64>>,
    pub dx: Vec<Vec<f64>>,
    pub grad_weight: Vec<Vec<f64>>,
    pub grad_bias: Vec<Vec<f64>>,
}

/// Neumaier's sum: what rounding loses is summed too.
fn exact_sum(values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut lost) = (0.0f64, 0.0f64);
    for value in values {
        let next = sum + value;
        lost += if sum.abs() >= value.abs() { (sum - next) + value } else { (value - next) + sum };
        sum = next;
    }
    sum + lost
}

/// How a formula is evaluated: in float64 with exact sums, or with every step rounded to the problem's type.
#[derive(Clone, Copy)]
enum Arithmetic {
    Exact,
    Plain(DType),
}

impl Arithmetic {
    fn step(self, value: f64) -> f64 {
        match self {
            Arithmetic::Exact => value,
            Arithmetic::Plain(dtype) => round(dtype, value),
        }
    }

    fn sum(self, values: impl Iterator<Item = f64>) -> f64 {
        match self {
            Arithmetic::Exact => exact_sum(values),
            Arithmetic::Plain(dtype) => values.fold(0.0, |sum, value| round(dtype, sum + value)),
        }
    }
}

/// Float64 with compensated sums.
pub fn exact(problem: &Problem) -> Expected {
    evaluate(problem, Arithmetic::Exact)
}

/// The two-pass formula as anybody would write it in the problem's type.
pub fn plain(problem: &Problem) -> Expected {
    evaluate(problem, Arithmetic::Plain(problem.dtype))
}

fn evaluate(problem: &Problem, arithmetic: Arithmetic) -> Expected {
    let (channels, ranks) = (problem.channels(), problem.ranks());
    let like = |from: &[Vec<f64>]| from.iter().map(|values| vec![0.0; values.len()]).collect::<Vec<_>>();
    let mut all = Expected {
        mean: vec![0.0; channels],
        var: vec![0.0; channels],
        y: like(&problem.x),
        dx: like(&problem.x),
        grad_weight: vec![vec![0.0; channels]; ranks],
        grad_bias: vec![vec![0.0; channels]; ranks],
    };
    (0..channels).for_each(|channel| evaluate_channel(problem, arithmetic, channel, &mut all));
    all
}

fn evaluate_channel(problem: &Problem, arithmetic: Arithmetic, channel: usize, all: &mut Expected) {
    let elements = problem.elements(channel);
    let (n, r) = (elements.len() as f64, |value| arithmetic.step(value));
    if elements.is_empty() {
        return;
    }
    // A pivot among the data makes the differences exact where the mean is large; the plain formula has none.
    let pivot = match arithmetic {
        Arithmetic::Exact => problem.x[elements[elements.len() - 1].0][elements[elements.len() - 1].1],
        Arithmetic::Plain(_) => 0.0,
    };
    let x = |&(rank, i): &(usize, usize)| problem.x[rank][i] - pivot;
    let dy = |&(rank, i): &(usize, usize)| problem.dy[rank][i];
    let mean = r(arithmetic.sum(elements.iter().map(x)) / n);
    let xmu: Vec<f64> = elements.iter().map(|at| r(x(at) - mean)).collect();
    let var = r(arithmetic.sum(xmu.iter().map(|xmu| r(xmu * xmu))) / n);
    let invstd = r(1.0 / r(r(var + problem.eps).sqrt()));
    let weight = problem.weight.as_ref().map_or(1.0, |weight| weight[channel]);
    let bias = problem.bias.as_ref().map_or(0.0, |bias| bias[channel]);
    let sum_dy = arithmetic.sum(elements.iter().map(dy));
    let sum_dy_xmu = arithmetic.sum(elements.iter().zip(&xmu).map(|(at, xmu)| r(dy(at) * xmu)));
    let slope = r(r(r(invstd * invstd) * sum_dy_xmu) / n);
    for (at, &xmu) in elements.iter().zip(&xmu) {
        let &(rank, i) = at;
        all.y[rank][i] = r(r(weight * r(xmu * invstd)) + bias);
        let centred = r(r(dy(at) - r(sum_dy / n)) - r(xmu * slope));
        all.dx[rank][i] = r(r(weight * invstd) * centred);
    }
    for rank in 0..problem.ranks() {
        let mine = || elements.iter().zip(&xmu).filter(move |(at, _)| at.0 == rank);
        all.grad_bias[rank][channel] = arithmetic.sum(mine().map(|(at, _)| dy(at)));
        all.grad_weight[rank][channel] = r(arithmetic.sum(mine().map(|(at, xmu)| r(dy(at) * xmu))) * invstd);
    }
    (all.mean[channel], all.var[channel]) = (mean + pivot, var);
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()))
}

/// The largest distance; NaN if any is.
fn error(got: &[f64], exact: &[f64]) -> f64 {
    let worse = |a: f64, b: f64| if b > a || b.is_nan() { b } else { a };
    got.iter().zip(exact).map(|(a, b)| (a - b).abs()).fold(0.0, worse)
}

/// Row 11: at most twice the plain formula's error, or 4 ulp of the result's scale.
pub fn assert_close(what: &str, dtype: DType, got: &[f64], exact: &[f64], plain: &[f64]) {
    assert_close_at(what, dtype, got, exact, plain, largest(exact));
}

/// [`assert_close`] for results that are sums of terms up to `scale`, and may be smaller than those.
pub fn assert_close_at(what: &str, dtype: DType, got: &[f64], exact: &[f64], plain: &[f64], scale: f64) {
    assert_eq!(got.len(), exact.len(), "{what}: number of values");
    let ulp = if dtype == DType::F32 { f64::from(f32::EPSILON) } else { f64::EPSILON };
    let scale = scale.max(largest(exact));
    let (ours, allowed) = (error(got, exact), (2.0 * error(plain, exact)).max(4.0 * ulp * scale));
    let close = ours <= allowed;
    assert!(close, "{what}: error {ours:e}, allowed {allowed:e} (plain formula {:e})", error(plain, exact));
}

/// Checks one step of every rank against the formulas.
pub fn assert_steps(what: &str, problem: &Problem, steps: &[Step]) {
    let (exact, plain, dtype) = (exact(problem), plain(problem), problem.dtype);
    for (rank, step) in steps.iter().enumerate() {
        let what = |part: &str| format!("{what}, {part} of rank {rank}");
        assert_close(&what("y"), dtype, &step.y, &exact.y[rank], &plain.y[rank]);
        assert_close_at(&what("dx"), dtype, &step.dx, &exact.dx[rank], &plain.dx[rank], dx_scale(problem, &exact));
        let scale = sum_scale(problem, &exact, rank);
        let (got, exact_w, plain_w) = (&step.grad_weight, &exact.grad_weight[rank], &plain.grad_weight[rank]);
        assert_close_at(&what("grad weight"), dtype, got, exact_w, plain_w, scale);
        let (got, exact_b, plain_b) = (&step.grad_bias, &exact.grad_bias[rank], &plain.grad_bias[rank]);
        assert_close_at(&what("grad bias"), dtype, got, exact_b, plain_b, largest(&problem.dy[rank]));
    }
}

/// The size of the terms a dx is the sum of: w·invstd·dy.
fn dx_scale(problem: &Problem, exact: &Expected) -> f64 {
    let invstd = exact.var.iter().map(|var| 1.0 / (var + problem.eps).sqrt());
    let weight = |channel: usize| problem.weight.as_ref().map_or(1.0, |weight| weight[channel].abs());
    let factor = invstd.enumerate().map(|(channel, invstd)| weight(channel) * invstd).fold(0.0, f64::max);
    factor * problem.dy.iter().map(|dy| largest(dy)).fold(0.0, f64::max)
}

/// The size of the terms a weight's gradient is the sum of: dy·x̂.
fn sum_scale(problem: &Problem, exact: &Expected, rank: usize) -> f64 {
    let term = |(i, dy): (usize, &f64)| {
        let channel = problem.channel(rank, i);
        let xmu = problem.x[rank][i] - exact.mean[channel];
        (dy * xmu).abs() / (exact.var[channel] + problem.eps).sqrt()
    };
    problem.dy[rank].iter().enumerate().map(term).fold(0.0, f64::max)
}
