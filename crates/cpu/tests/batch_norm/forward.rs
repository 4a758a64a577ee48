//! Forward over shapes, layouts, types and instruction sets.

use crate::harness::*;
use crate::reference;
use syncbn_core::message::write_slot;
use syncbn_core::{BatchNormShape, Kernels};
use syncbn_cpu::{Cpu, HostSlice};

const EPS: f64 = 1e-5;

/// Checks y, the statistics and the running statistics of `out` against the formulas.
pub fn check<T: Num>(what: &str, call: &Call<'_, T>, out: &Output<T>) {
    let n = call.shape.count() as f64;
    assert_eq!(out.count, call.shape.count() as u64, "{what}");
    for channel in 0..call.shape.channels {
        let what = format!("{what}, {:?}, channel {channel}", call.shape);
        let (w, b) = (call.weight.map_or(1.0, |w| w[channel].into()), call.bias.map_or(0.0, |b| b[channel].into()));
        let got: Vec<f64> = reference::elements(call.shape, channel).map(|at| out.y[at].into()).collect();
        let exact = reference::forward(call.shape, channel, call.x, w, b, call.eps);
        let plain = reference::plain_forward(call.shape, channel, call.x, w, b, call.eps);
        let largest = exact.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
        let rounding = reference::mean_rounding(call.shape, channel, call.x, call.eps) / T::EPSILON;
        reference::assert_contract::<T>(&what, &got, &exact, &plain, largest + w.abs() * rounding);

        let (mean, m2) = reference::moments(call.shape, channel, call.x);
        let (plain_mean, plain_invstd) = reference::plain_statistics(call.shape, channel, call.x, call.eps);
        let (invstd, std) = (1.0 / (m2 / n + call.eps).sqrt(), (m2 / n).sqrt());
        // Kept means are float64, so a large one in a float32 tensor is as exact as its deviation asks.
        let mean_scale = std.max(f64::EPSILON / T::EPSILON * mean.abs());
        reference::assert_contract::<T>(&what, &[out.mean[channel]], &[mean], &[plain_mean], mean_scale);
        reference::assert_contract::<T>(
            &what,
            &[out.invstd[channel]],
            &[invstd],
            &[plain_invstd],
            invstd * (1.0 + rounding),
        );
        if call.momentum == Some(1.0) && n > 1.0 {
            let got: [f64; 2] = [out.running_mean[channel].into(), out.running_var[channel].into()];
            let var = m2 / (n - 1.0);
            let plain_var = n / (n - 1.0) * (plain_invstd.powi(-2) - call.eps);
            reference::assert_contract::<T>(&what, &[got[0]], &[mean], &[plain_mean], mean.abs().max(mean_scale));
            reference::assert_contract::<T>(&what, &[got[1]], &[var], &[plain_var], var * (1.0 + rounding));
        }
    }
}

fn over_shapes<T: Num>(shapes: &[BatchNormShape]) {
    at_each_level(|level| {
        for (seed, &shape) in shapes.iter().enumerate() {
            let mut random = Random(seed as u64);
            let (x, w, b) =
                (random.values(shape.numel()), random.values(shape.channels), random.values(shape.channels));
            let affine = seed % 3 != 0;
            let call = Call {
                shape,
                x: &x,
                weight: affine.then_some(&w[..] as &[T]),
                bias: affine.then_some(&b[..]),
                eps: EPS,
                momentum: Some(1.0),
            };
            let fused = call.forward().unwrap();
            check(&format!("{level:?}"), &call, &fused);
            assert_eq!(fused.num_batches_tracked, 1);
            let split = call.two_phase(&mut messages(shape, 1), 0).unwrap();
            assert!(fused == split, "{level:?} {shape:?}: fused and two-phase differ");
            assert!(call.elemt(&fused.slot) == fused.y, "{level:?} {shape:?}: elemt differs");
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
    let large = [(2, 3, 262_144), (8, 64, 3_136), (4, 2_048, 49), (1_024, 512, 1), (2, 200_000, 1), (64, 7, 5_000)];
    for (seed, (n, c, s)) in large.into_iter().enumerate() {
        for shape in [shape(n, c, s, false), shape(n, c, s, true)] {
            let x: Vec<f32> = Random(seed as u64).values(shape.numel());
            let call = Call { shape, x: &x, weight: None, bias: None, eps: EPS, momentum: None };
            same_with_threads(&format!("{shape:?}"), || {
                let fused = call.forward().unwrap();
                let split = call.two_phase(&mut messages(shape, 1), 0).unwrap();
                assert!(fused == split, "{shape:?}");
                fused
            });
        }
    }
}

#[test]
fn ranks_of_different_sizes_make_one_batch() {
    let whole = shape(9, 5, 21, false);
    let x: Vec<f64> = Random(3).values(whole.numel());
    let call = Call { shape: whole, x: &x, weight: None, bias: None, eps: EPS, momentum: Some(1.0) };
    let expected = call.forward().unwrap();

    let (parts, mut slots) = ([0..2, 2..2, 2..9], messages(whole, 3));
    let ranks =
        parts.clone().map(|samples| (shape(samples.len(), 5, 21, false), &x[samples.start * 105..samples.end * 105]));
    for (slot, (shape, x)) in ranks.into_iter().enumerate() {
        Cpu.stats(HostSlice::F64(x), shape, &mut slots, slot).unwrap();
    }
    for (shape, x) in ranks {
        let got = Call { shape, x, ..call }.normalize(&slots).unwrap();
        assert_eq!(got.count, 189);
        assert_eq!(got.num_batches_tracked, 1);
        let start =
            ranks.iter().position(|rank| rank.1.as_ptr() == x.as_ptr()).map(|rank| parts[rank].start * 105).unwrap();
        for (a, b) in got.y.iter().zip(&expected.y[start..]).chain(got.running_var.iter().zip(&expected.running_var)) {
            assert!((a - b).abs() <= 1e-14 * (1.0 + b.abs()), "{a} {b}");
        }
    }
}

#[test]
fn the_cumulative_average_counts_batches() {
    let shape = shape(2, 1, 2, false);
    let call = Call::<f32> { shape, x: &[1.0, 3.0, 5.0, 7.0], weight: None, bias: None, eps: EPS, momentum: None };
    let out = call.forward().unwrap();
    assert_eq!((out.running_mean[0], out.num_batches_tracked), (4.0, 1));
    let mut slot = messages(shape, 1);
    write_slot(&mut slot, 4, &[4.0], &[20.0]);
    assert_eq!(call.normalize(&slot).unwrap().running_var[0], 20.0 / 3.0);
}
