//! Backward over shapes, layouts, types and instruction sets.

use crate::harness::*;
use crate::reference;
use syncbn_core::kernels::{BackwardApply, BackwardReduce, Kernels};
use syncbn_core::message::{read_row, sums_bytes};
use syncbn_core::{BatchNormShape, DType};
use syncbn_cpu::Cpu;

const EPS: f64 = 1e-5;

pub fn check<T: Num>(what: &str, call: &Call<'_, T>, dy: &[T], [dx, gw, gb]: &[Vec<T>; 3]) {
    for channel in 0..call.shape.channels {
        let what = format!("{what}, {:?}, channel {channel}", call.shape);
        let w = call.weight.map_or(1.0, |w| w[channel].into());
        let got: Vec<f64> = reference::elements(call.shape, channel).map(|at| dx[at].into()).collect();
        let exact = reference::backward(call.shape, channel, call.x, dy, w, call.eps);
        let plain = reference::plain_backward(call.shape, channel, call.x, dy, w, call.eps);
        let rounding = reference::mean_rounding(call.shape, channel, call.x, call.eps) / T::EPSILON;
        reference::assert_contract::<T>(&what, &got, &exact.dx, &plain.0, exact.dx_scale * (1.0 + rounding));
        // Sums of terms of both signs: their scale is what they could reach with one sign.
        let n = call.shape.count() as f64;
        let largest = reference::elements(call.shape, channel).fold(0.0, |a: f64, at| a.max(dy[at].into().abs()));
        let scale = n * largest * (1.0 + rounding);
        reference::assert_contract::<T>(&what, &[gw[channel].into()], &[exact.weight], &[plain.1], scale);
        reference::assert_contract::<T>(&what, &[gb[channel].into()], &[exact.bias], &[plain.2], scale);
    }
}

/// dx, grad_weight, grad_bias and the sums, from the two phases.
fn two_phase<T: Num>(call: &Call<'_, T>, dy: &[T], slot: &Vec<u8>) -> ([Vec<T>; 3], Vec<f64>) {
    let (nan, channels) = (T::of(f64::NAN), call.shape.channels);
    let (mut dx, mut gw, mut gb) = (vec![nan; call.x.len()], vec![nan; channels], vec![nan; channels]);
    let mut sums = vec![0xAA; sums_bytes(channels, 2, DType::F64)];
    Cpu.backward_reduce(BackwardReduce {
        input: T::view(call.x),
        grad_output: T::view(dy),
        shape: call.shape,
        statistics: slot,
        sums: &mut sums,
        grad_weight: Some(T::view_mut(&mut gw)),
        grad_bias: Some(T::view_mut(&mut gb)),
    })
    .unwrap();
    Cpu.backward_apply(BackwardApply {
        input: T::view(call.x),
        grad_output: T::view(dy),
        shape: call.shape,
        weight: call.weight.map(T::view),
        statistics: slot,
        sums: Some(&sums),
        grad_input: T::view_mut(&mut dx),
    })
    .unwrap();
    ([dx, gw, gb], read_row(&sums))
}

fn over_shapes<T: Num>(shapes: &[BatchNormShape]) {
    at_each_level(|level| {
        for (seed, &shape) in shapes.iter().enumerate() {
            let mut random = Random(seed as u64 + 1000);
            let (x, dy): (Vec<T>, Vec<T>) = (random.values(shape.numel()), random.values(shape.numel()));
            let weight = random.values(shape.channels);
            let call = Call {
                shape,
                x: &x,
                weight: (seed % 3 != 0).then_some(&weight[..]),
                bias: None,
                eps: EPS,
                momentum: None,
            };
            let Ok(out) = call.forward() else { continue };
            let fused = call.backward(&dy, &out.slot, true);
            check(&format!("{level:?}"), &call, &dy, &fused);
            assert!(fused == two_phase(&call, &dy, &out.slot).0, "{level:?} {shape:?}: fused and two-phase differ");
        }
    });
}

#[test]
fn float32() {
    over_shapes::<f32>(&shapes());
}

#[test]
fn float64() {
    over_shapes::<f64>(&shapes());
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let large = [(2, 3, 262_144), (8, 64, 3_136), (4, 2_048, 49), (1_024, 512, 1), (2, 200_000, 1)];
    for (seed, (n, c, s)) in large.into_iter().enumerate() {
        for shape in [shape(n, c, s, false), shape(n, c, s, true)] {
            let mut random = Random(seed as u64);
            let (x, dy): (Vec<f32>, Vec<f32>) = (random.values(shape.numel()), random.values(shape.numel()));
            let call = Call { shape, x: &x, weight: None, bias: None, eps: EPS, momentum: None };
            let slot = {
                let _guard = settings();
                call.forward().unwrap().slot
            };
            same_with_threads(&format!("{shape:?}"), || {
                let fused = call.backward(&dy, &slot, true);
                assert!(fused == two_phase(&call, &dy, &slot).0, "{shape:?}");
                fused
            });
        }
    }
}

#[test]
fn constant_statistics_give_a_scaled_gradient() {
    at_each_level(|_| {
        for shape in [shape(3, 5, 7, false), shape(3, 5, 7, true)] {
            let mut random = Random(5);
            let (x, dy): (Vec<f64>, Vec<f64>) = (random.values(105), random.values(105));
            let (w, mean): (Vec<f64>, Vec<f64>) = (random.values(5), random.values(5));
            let var: Vec<f64> = (0..5).map(|c| 0.5 + c as f64).collect();
            let mut slot = messages(shape, 1);
            Cpu.constant_statistics(f64::view(&mean), f64::view(&var), EPS, &mut slot).unwrap();
            let call = Call { shape, x: &x, weight: Some(&w), bias: None, eps: EPS, momentum: None };
            let [dx, gw, gb] = call.backward(&dy, &slot, false);
            for c in 0..5 {
                let s = 1.0 / (var[c] + EPS).sqrt();
                let all: Vec<usize> = reference::elements(shape, c).collect();
                let (sum_w, sum_b) =
                    all.iter().fold((0.0, 0.0), |a, &i| (a.0 + dy[i] * (x[i] - mean[c]) * s, a.1 + dy[i]));
                assert!((gw[c] - sum_w).abs() <= 1e-13 && (gb[c] - sum_b).abs() <= 1e-13);
                assert!(all.iter().all(|&i| (dx[i] - w[c] * s * dy[i]).abs() <= 1e-15));
            }
        }
    });
}
