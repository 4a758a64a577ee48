//! Values that break a careless variance.

use crate::harness::*;
use crate::reference::{elements, of_channel};
use crate::{backward, forward};
use syncbn_core::{BatchNormShape, DType};

fn layouts(n: usize, c: usize, s: usize) -> [BatchNormShape; 2] {
    [false, true].map(|last| shape(n, c, s, last))
}

/// Checks forward and backward on x[i] = make(element of its channel, random).
fn hard(dtype: DType, eps: f64, make: impl Fn(usize, f64) -> f64) {
    let gpu = Gpu::new();
    let shapes =
        [(4, 3, 49), (2, 2, 4_100), (3, 20, 300), (9, 1, 3_000)].into_iter().flat_map(|(n, c, s)| layouts(n, c, s));
    for (seed, shape) in shapes.chain([shape(900, 37, 1, true)]).enumerate() {
        syncbn_fake_cuda::set_order(ORDERS[seed % ORDERS.len()]);
        let mut random = Random(seed as u64 + 77);
        let mut case = Case { eps, ..Case::random(seed, shape, dtype) };
        for channel in 0..shape.channels {
            for (i, at) in elements(shape, channel).enumerate() {
                case.x[at] = round(dtype, make(i, random.next()));
            }
        }
        let mut running = Running::new(&gpu, case.running_dtype, shape.channels, 0);
        let out = case.forward(&gpu, Some((&mut running, Some(1.0))));
        let (mean, var, _) = running.read(&gpu);
        forward::check("hard", &case, &out, Some((&mean, &var)), &|channel| of_channel(&case.x, shape, channel));
        backward::check("hard", &case, &case.backward(&gpu, &out.slot, true));
    }
}

#[test]
fn a_mean_far_above_the_deviation() {
    for offset in [1e4, -1e6] {
        hard(DType::F32, 1e-5, |_, u| offset + u);
        hard(DType::F64, 1e-5, |_, u| offset + u);
    }
    hard(DType::F16, 1e-5, |_, u| 1e3 + u);
    hard(DType::BF16, 1e-5, |_, u| -1e3 + 4.0 * u);
    hard(DType::F64, 1e-12, |_, u| 1e10 + u);
}

#[test]
fn an_outlier_anywhere() {
    for at in [0, 1, 40, 146] {
        hard(DType::F32, 1e-5, |i, u| if i == at { 1e6 } else { u });
        hard(DType::F16, 1e-5, |i, u| if i == at { 6e4 } else { u });
        hard(DType::F64, 1e-5, |i, u| if i == at { 1e12 } else { u });
    }
}

#[test]
fn an_outlier_and_a_large_mean() {
    hard(DType::F32, 1e-5, |i, u| if i == 0 { -1e6 } else { 1e4 + u });
}

#[test]
fn a_jump_after_the_start() {
    for length in [3, 16, 49, 300] {
        hard(DType::F32, 1e-5, |i, u| if i < length { u * 1e-3 } else { 100.0 + u * 1e-3 });
    }
}

#[test]
fn a_drifting_mean() {
    hard(DType::F32, 1e-5, |i, u| i as f64 * 0.1 + u);
}

#[test]
fn a_variance_far_below_eps() {
    hard(DType::F32, 1e-5, |_, u| u * 1e-6);
    hard(DType::F32, 1e-5, |_, u| u * 1e-25);
}

#[test]
fn a_constant_channel_is_its_own_mean_exactly() {
    let gpu = Gpu::new();
    for value in [0.1, -3.3e5, 1e-30] {
        for shape in layouts(3, 5, 1_111).into_iter().chain(layouts(2, 3, 7)).chain(layouts(1, 2, 40_000)) {
            let value = round(DType::F32, value);
            let case = Case {
                x: vec![value; shape.numel()],
                weight: None,
                bias: Some(vec![0.5; shape.channels]),
                eps: 1e-30,
                ..Case::random(0, shape, DType::F32)
            };
            let mut running = Running::new(&gpu, DType::F32, shape.channels, 0);
            let out = case.forward(&gpu, Some((&mut running, Some(1.0))));
            assert!(out.mean.iter().all(|&mean| mean == value), "{shape:?} {value} {:?}", out.mean);
            assert!(running.read(&gpu).1.iter().all(|&var| var == 0.0), "{shape:?} {value}");
            assert!(out.y.iter().all(|&y| y == 0.5), "{shape:?} {value}");
        }
    }
}

#[test]
fn nan_and_infinity_stay_in_their_channel() {
    let gpu = Gpu::new();
    for dtype in DTYPES {
        for shape in layouts(3, 20, 50).into_iter().chain(layouts(2, 3, 5_000)) {
            let mut case = Case { weight: None, bias: None, ..Case::random(2, shape, dtype) };
            case.x[shape.run(0, 0).0] = f64::NAN;
            let (start, step) = shape.run(1, 2);
            case.x[start + 3 * step] = f64::INFINITY;
            let mut running = Running::new(&gpu, case.running_dtype, shape.channels, 0);
            let out = case.forward(&gpu, Some((&mut running, Some(0.5))));
            let [dx, gw, gb] = case.backward(&gpu, &out.slot, true);
            let (mean, var, _) = running.read(&gpu);
            for channel in 0..shape.channels {
                let bad = channel == 0 || channel == 2;
                let finite = |tensor: &[f64]| elements(shape, channel).all(|at| tensor[at].is_finite());
                assert_eq!(finite(&out.y), !bad, "{shape:?} {dtype} {channel}");
                assert_eq!(finite(&dx), !bad, "{shape:?} {dtype} {channel}");
                assert_eq!((mean[channel].is_finite(), var[channel].is_finite()), (!bad, !bad));
                assert_eq!(gw[channel].is_finite(), !bad);
                assert!(gb[channel].is_finite());
            }
        }
    }
}
