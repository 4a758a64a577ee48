//! softmax, its logarithm, and cross entropy with ignored targets.

use crate::harness::*;
use syncbn_core::ops::{Along, CrossEntropy, LossReduction};
use syncbn_core::{Code, Ops};
use syncbn_cpu::{Cpu, HostSlice};

const ALONG: [Along; 5] = [
    Along { outer: 5, size: 7, inner: 1 },
    Along { outer: 3, size: 4, inner: 11 },
    Along { outer: 1, size: 1, inner: 3 },
    Along { outer: 0, size: 3, inner: 2 },
    Along { outer: 1_037, size: 129, inner: 3 },
];

/// Calls `visit` with the offsets of each line along the dimension.
fn each_line(along: Along, mut visit: impl FnMut(&[usize])) {
    for (outer, inner) in (0..along.outer).flat_map(|outer| (0..along.inner).map(move |inner| (outer, inner))) {
        let line: Vec<usize> = (0..along.size).map(|k| (outer * along.size + k) * along.inner + inner).collect();
        visit(&line);
    }
}

fn softmaxes<T: Num>(along: Along, log: bool) {
    let numel = along.outer * along.size * along.inner;
    // Far above what exp could hold.
    let x: Vec<T> = random::<T>(41, numel).into_iter().map(|x| T::of(5.0 * x.into() + 3000.0)).collect();
    let dy: Vec<T> = random(42, numel);
    let (mut y, mut dx) = (vec![0.0; numel], vec![0.0; numel]);
    each_line(along, |line| {
        let at = |&i: &usize| -> f64 { x[i].into() };
        let max = line.iter().map(at).fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = line.iter().map(|i| (at(i) - max).exp()).sum();
        let p = |i: &usize| (at(i) - max).exp() / total;
        let dot: f64 = line.iter().map(|i| Into::<f64>::into(dy[*i]) * if log { 1.0 } else { p(i) }).sum();
        for i in line {
            y[*i] = if log { at(i) - max - total.ln() } else { p(i) };
            dx[*i] =
                if log { Into::<f64>::into(dy[*i]) - p(i) * dot } else { p(i) * (Into::<f64>::into(dy[*i]) - dot) };
        }
    });
    let got = same_with_threads("softmax", || made::<T>(numel, |out| Cpu.softmax(T::view(&x), along, log, out)));
    assert_close(&format!("softmax, log {log}, {along:?}"), &got, &y, 4);
    let backward = || made::<T>(numel, |out| Cpu.softmax_backward(T::view(&dy), T::view(&got), along, log, out));
    let grads = same_with_threads("softmax backward", backward);
    assert_close(&format!("softmax backward, log {log}, {along:?}"), &grads, &dx, along.size);
}

#[test]
fn softmax_of_large_values_and_its_gradient() {
    for (along, log) in ALONG.into_iter().flat_map(|along| [(along, false), (along, true)]) {
        softmaxes::<f32>(along, log);
        softmaxes::<f64>(along, log);
    }
}

const IGNORED: i64 = -100;

fn cross_entropies<T: Num>(along: Along, reduction: LossReduction) {
    let (numel, targets_len) = (along.outer * along.size * along.inner, along.outer * along.inner);
    let options = CrossEntropy { along, ignore_index: IGNORED, reduction };
    let targets: Vec<i64> =
        (0..targets_len).map(|i| if i % 3 == 1 { IGNORED } else { (i * 5 % along.size) as i64 }).collect();
    let logits: Vec<T> = random(43, numel);
    let log_probs = made::<T>(numel, |out| Cpu.softmax(T::view(&logits), along, true, out));
    let single = reduction != LossReduction::None;
    let losses_len = if single { 1 } else { targets_len };
    let (mut losses, mut counted) = (vec![T::of(f64::NAN); losses_len], [T::of(f64::NAN)]);
    Cpu.nll_loss(
        T::view(&log_probs),
        HostSlice::I64(&targets),
        options,
        T::view_mut(&mut losses),
        T::view_mut(&mut counted),
    )
    .unwrap();
    let at = |i: usize, k: usize| (i / along.inner * along.size + k) * along.inner + i % along.inner;
    let counts = |i: &usize| targets[*i] != IGNORED;
    let loss = |i: usize| if counts(&i) { -Into::<f64>::into(log_probs[at(i, targets[i] as usize)]) } else { 0.0 };
    let count = (0..targets_len).filter(counts).count() as f64;
    let total: f64 = (0..targets_len).map(loss).sum();
    let expected = match reduction {
        LossReduction::None => (0..targets_len).map(loss).collect(),
        LossReduction::Sum => vec![total],
        LossReduction::Mean => vec![total / count],
    };
    assert_eq!(Into::<f64>::into(counted[0]), count);
    assert_close(&format!("{options:?}"), &losses, &expected, 1);

    let grads: Vec<T> = random(44, losses_len);
    let mut expected = vec![0.0; numel];
    for (i, k) in (0..targets_len).filter(counts).flat_map(|i| (0..along.size).map(move |k| (i, k))) {
        let upstream: f64 = grads[if single { 0 } else { i }].into();
        let scale = if reduction == LossReduction::Mean { upstream / count } else { upstream };
        let one_hot = if targets[i] as usize == k { 1.0 } else { 0.0 };
        expected[at(i, k)] = (Into::<f64>::into(log_probs[at(i, k)]).exp() - one_hot) * scale;
    }
    let (log_probs, targets) = (T::view(&log_probs), HostSlice::I64(&targets));
    let backward = || {
        made::<T>(numel, |out| {
            Cpu.cross_entropy_backward(T::view(&grads), log_probs, targets, options, T::view(&counted), out)
        })
    };
    let got = same_with_threads("cross entropy backward", backward);
    assert_close(&format!("gradient, {options:?}"), &got, &expected, 1);
}

#[test]
fn cross_entropy_ignores_targets_and_reduces() {
    for (along, reduction) in ALONG
        .into_iter()
        .filter(|along| along.outer > 0)
        .flat_map(|along| [LossReduction::None, LossReduction::Sum, LossReduction::Mean].map(|r| (along, r)))
    {
        cross_entropies::<f32>(along, reduction);
        cross_entropies::<f64>(along, reduction);
    }
}

#[test]
fn a_target_that_is_no_class_is_an_error_with_nothing_written() {
    let options = CrossEntropy {
        along: Along { outer: 2, size: 3, inner: 1 },
        ignore_index: IGNORED,
        reduction: LossReduction::Mean,
    };
    for wrong in [3, -1, i64::MIN, i64::MAX] {
        let (mut losses, mut counted) = ([7f32], [7f32]);
        let (losses, counted) = (f32::view_mut(&mut losses), f32::view_mut(&mut counted));
        let targets = [0, wrong];
        let error = Cpu.nll_loss(f32::view(&[0.0; 6]), HostSlice::I64(&targets), options, losses, counted).unwrap_err();
        assert_eq!(error.code(), Code::Argument);
        assert!(error.message().contains(&wrong.to_string()), "{error}");
    }
}
