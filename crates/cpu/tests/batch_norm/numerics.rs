//! Values that break a careless variance.

use crate::harness::*;
use crate::{backward, forward};
use syncbn_core::BatchNormShape;

fn layouts(n: usize, c: usize, s: usize) -> [BatchNormShape; 2] {
    [false, true].map(|last| shape(n, c, s, last))
}

/// Checks forward and backward on x[i] = make(element of its channel, random).
fn hard<T: Num>(name: &str, eps: f64, make: impl Fn(usize, f64) -> f64) {
    let shapes =
        [(4, 3, 49), (2, 2, 4_099), (3, 20, 700), (9, 1, 7_000)].into_iter().flat_map(|(n, c, s)| layouts(n, c, s));
    for (seed, shape) in shapes.chain([shape(2_000, 37, 1, true)]).enumerate() {
        let mut random = Random(seed as u64 + 77);
        let mut x = vec![T::of(0.0); shape.numel()];
        for channel in 0..shape.channels {
            for (i, at) in crate::reference::elements(shape, channel).enumerate() {
                x[at] = T::of(make(i, random.next()));
            }
        }
        let dy: Vec<T> = random.values(shape.numel());
        at_each_level(|level| {
            let call = Call { shape, x: &x, weight: None, bias: None, eps, momentum: Some(0.1) };
            let out = call.forward().unwrap();
            let what = format!("{name}, {level:?}");
            forward::check(&what, &call, &out);
            backward::check(&what, &call, &dy, &call.backward(&dy, &out.slot, true));
        });
    }
}

#[test]
fn a_mean_far_above_the_deviation() {
    for offset in [1e4, -1e6] {
        hard::<f32>("float32", 1e-5, |_, u| offset + u);
        hard::<f64>("float64", 1e-5, |_, u| offset + u);
    }
    hard::<f64>("float64", 1e-12, |_, u| 1e10 + u);
}

#[test]
fn an_outlier_anywhere() {
    for at in [0, 1, 40, 150] {
        hard::<f32>("float32", 1e-5, |i, u| if i == at { 1e6 } else { u });
        hard::<f64>("float64", 1e-5, |i, u| if i == at { 1e12 } else { u });
    }
}

#[test]
fn an_outlier_and_a_large_mean() {
    hard::<f32>("float32", 1e-5, |i, u| if i == 0 { -1e6 } else { 1e4 + u });
}

#[test]
fn a_jump_after_the_start() {
    for length in [3, 16, 49, 300] {
        hard::<f32>("float32", 1e-5, |i, u| if i < length { u * 1e-3 } else { 100.0 + u * 1e-3 });
    }
}

#[test]
fn a_drifting_mean() {
    hard::<f32>("float32", 1e-5, |i, u| i as f64 * 0.1 + u);
}

#[test]
fn a_variance_far_below_eps() {
    hard::<f32>("float32", 1e-5, |_, u| u * 1e-6);
    hard::<f32>("float32", 1e-5, |_, u| u * 1e-25);
}

#[test]
fn a_constant_channel_is_its_own_mean_exactly() {
    at_each_level(|level| {
        for value in [0.1f32, -3.3e5, 1e-30] {
            for shape in layouts(3, 5, 1_111).into_iter().chain(layouts(2, 3, 7)) {
                let x = vec![value; shape.numel()];
                let bias = [0.5; 5];
                let call = Call {
                    shape,
                    x: &x,
                    weight: None,
                    bias: Some(&bias[..shape.channels]),
                    eps: 1e-30,
                    momentum: Some(1.0),
                };
                let out = call.forward().unwrap();
                assert!(out.mean.iter().all(|&mean| mean == f64::from(value)), "{level:?} {shape:?} {:?}", out.mean);
                assert!(out.running_var.iter().all(|&var| var == 0.0), "{level:?} {shape:?} {:?}", out.running_var);
                assert!(out.y.iter().all(|&y| y == 0.5), "{level:?} {shape:?}");
            }
        }
    });
}

#[test]
fn nan_and_infinity_stay_in_their_channel() {
    at_each_level(|level| {
        for shape in layouts(3, 20, 50).into_iter().chain(layouts(2, 3, 5_000)) {
            let mut random = Random(9);
            let (mut x, dy): (Vec<f32>, Vec<f32>) = (random.values(shape.numel()), random.values(shape.numel()));
            x[shape.run(0, 0).0] = f32::NAN;
            let (start, step) = shape.run(1, 2);
            x[start + 3 * step] = f32::INFINITY;
            let call = Call { shape, x: &x, weight: None, bias: None, eps: 1e-5, momentum: Some(0.5) };
            let out = call.forward().unwrap();
            let [dx, gw, gb] = call.backward(&dy, &out.slot, true);
            for channel in 0..shape.channels {
                let bad = channel == 0 || channel == 2;
                let finite =
                    |values: &[f32]| crate::reference::elements(shape, channel).all(|at| values[at].is_finite());
                assert_eq!(finite(&out.y), !bad, "{level:?} {shape:?} {channel}");
                assert_eq!(finite(&dx), !bad, "{level:?} {shape:?} {channel}");
                assert_eq!(out.running_var[channel].is_finite(), !bad);
                assert_eq!(out.running_mean[channel].is_finite(), !bad);
                assert_eq!(gw[channel].is_finite(), !bad);
                assert!(gb[channel].is_finite());
            }
        }
    });
}
