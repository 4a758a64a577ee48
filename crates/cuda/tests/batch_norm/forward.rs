//! Forward over shapes, layouts, types and alignments.

use crate::harness::*;
use crate::reference::{self, Allowed, Moments, largest, of_channel};
use syncbn_core::{BatchNormShape, DType};

/// Checks y, the statistics and, for a momentum of 1, the running statistics of `case` against the formulas, where all
/// values are in `all`, the values of each channel over all ranks.
pub fn check(
    what: &str,
    case: &Case,
    out: &Output,
    running: Option<(&[f64], &[f64])>,
    all: &dyn Fn(usize) -> Vec<f64>,
) {
    let sums = case.dtype.accumulate();
    for channel in 0..case.shape.channels {
        let what = format!("{what}, {:?} {}, channel {channel}", case.shape, case.dtype);
        let values = all(channel);
        let (exact, plain) = (Moments::of(&values), Moments::plain(&values, sums));
        assert_eq!(out.count, values.len() as u64, "{what}");
        let (w, b) = (case.weight.as_ref().map_or(1.0, |w| w[channel]), case.bias.as_ref().map_or(0.0, |b| b[channel]));
        let x = of_channel(&case.x, case.shape, channel);
        let y = reference::forward(&x, &exact, case.eps, w, b);
        let plain_y = reference::plain_forward(&x, &plain, case.eps, w, b, sums);
        let (std, invstd) = ((exact.m2 / exact.count).sqrt(), exact.invstd(case.eps));
        let scale = largest(&y) + b.abs();
        Allowed::new(case, case.dtype, scale).check(&what, &of_channel(&out.y, case.shape, channel), &y, &plain_y);
        let near = |name: &str, got: f64, exact_value: f64, plain_value: f64, scale: f64| {
            Allowed::new(case, sums, scale).check(&format!("{what}, {name}"), &[got], &[exact_value], &[plain_value]);
        };
        near("mean", out.mean[channel], exact.mean, plain.mean, std);
        near("invstd", out.invstd[channel], invstd, plain.invstd(case.eps), invstd);
        if let Some((mean, var)) = running {
            let unbiased = |moments: &Moments| moments.m2 / (moments.count - 1.0);
            // The mean that was kept, rounded once.
            assert_eq!(mean[channel], round(case.running_dtype, out.mean[channel]), "{what}, running mean");
            near("running var", var[channel], unbiased(&exact), unbiased(&plain), unbiased(&exact));
        }
    }
}

/// Odd shapes of every kind of vectors and tails, and shapes that are cut into parts, in both formats.
pub fn shapes() -> Vec<BatchNormShape> {
    let sizes = [1, 2, 5].into_iter().flat_map(|n| [1, 3, 64, 65, 257].map(|c| (n, c)));
    let small = sizes.flat_map(|(n, c)| [1, 49, 64, 784].map(|s| (n, c, s))).filter(|(n, c, s)| n * c * s <= 30_000);
    let parts = [(5, 1, 7_001), (3, 2, 20_000), (9, 3, 5_000), (2, 64, 2_500), (40_001, 3, 1), (3_000, 33, 1)];
    let tails = (2..20).map(|s| (3, 4, s));
    let all = small.chain(parts).chain(tails).filter(|(n, _, s)| n * s > 1);
    all.flat_map(|(n, c, s)| [false, true].map(|last| shape(n, c, s, last))).collect()
}

fn over_shapes(dtype: DType) {
    let gpu = Gpu::new();
    for (seed, shape) in shapes().into_iter().enumerate() {
        syncbn_fake_cuda::set_order(ORDERS[seed % ORDERS.len()]);
        let case = Case::random(seed, shape, dtype);
        let mut running = Running::new(&gpu, case.running_dtype, shape.channels, 0);
        let out = case.forward(&gpu, Some((&mut running, Some(1.0))));
        let (mean, var, tracked) = running.read(&gpu);
        check("forward", &case, &out, Some((&mean, &var)), &|channel| of_channel(&case.x, shape, channel));
        assert_eq!(tracked, 1.0, "{shape:?}");
        assert_eq!(case.elemt(&gpu, &out.slot), out.y, "{shape:?}: elemt differs");
    }
}

#[test]
fn float16() {
    over_shapes(DType::F16);
}

#[test]
fn bfloat16() {
    over_shapes(DType::BF16);
}

#[test]
fn float32() {
    over_shapes(DType::F32);
}

#[test]
fn float64() {
    over_shapes(DType::F64);
}

#[test]
fn neither_the_order_of_threads_nor_a_second_run_changes_a_bit() {
    let gpu = Gpu::new();
    for (seed, (n, c, s)) in [(5, 1, 30_001), (3, 2, 20_000), (2, 64, 2_500), (3_000, 33, 1)].into_iter().enumerate() {
        for (shape, dtype) in [(shape(n, c, s, false), DType::F32), (shape(n, c, s, true), DType::F16)] {
            let case = Case::random(seed, shape, dtype);
            let run = |order| {
                syncbn_fake_cuda::set_order(order);
                let mut running = Running::new(&gpu, DType::F32, c, 3);
                let out = case.forward(&gpu, Some((&mut running, None)));
                let gradients = case.backward(&gpu, &out.slot, true);
                (out, running.read(&gpu), gradients)
            };
            let first = run(0);
            assert_eq!(first.1.2, 4.0);
            for order in [0, 1, 5, 6] {
                assert!(run(order) == first, "{shape:?} {dtype}, order {order}");
            }
        }
    }
}
