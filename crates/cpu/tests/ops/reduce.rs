//! Sums over any dimensions, and positions of maxima.

use crate::harness::*;
use syncbn_core::Ops;
use syncbn_core::ops::{Along, Reduction};
use syncbn_cpu::{Cpu, HostSliceMut};

fn positions(sizes: &[usize], strides: &[usize]) -> Vec<usize> {
    let step = |offsets: Vec<usize>, (&size, &stride): (&usize, &usize)| {
        offsets.iter().flat_map(|&offset| (0..size).map(move |i| offset + i * stride)).collect()
    };
    sizes.iter().zip(strides).fold(vec![0], step)
}

fn sums<T: Num>() {
    type Sizes = &'static [usize];
    let layouts: [(Sizes, Sizes, Sizes, Sizes); 10] = [
        // kept sizes and strides, summed sizes and strides
        (&[], &[], &[3, 5, 7], &[35, 7, 1]),
        (&[3, 5], &[35, 7], &[7], &[1]),
        (&[5], &[7], &[3, 7], &[35, 1]),
        (&[7], &[1], &[3, 5], &[35, 7]),
        (&[3, 7], &[35, 1], &[5], &[7]),
        (&[3, 5, 7], &[35, 7, 1], &[], &[]),
        (&[4], &[0], &[0], &[1]),
        (&[2, 1, 65], &[65, 7, 1], &[1], &[3]),
        (&[33], &[1_001], &[7, 143], &[143, 1]),
        (&[300_001], &[1], &[3], &[300_001]),
    ];
    for (kept, kept_strides, reduced, reduced_strides) in layouts {
        let (starts, steps) = (positions(kept, kept_strides), positions(reduced, reduced_strides));
        let len = starts.iter().max().unwrap() + steps.iter().max().map_or(0, |last| last + 1);
        let input: Vec<T> = random(11, len);
        for scale in [1.0, 1.0 / 3.0] {
            let layout = Reduction {
                kept: kept.to_vec(),
                kept_strides: kept_strides.to_vec(),
                reduced: reduced.to_vec(),
                reduced_strides: reduced_strides.to_vec(),
                scale,
            };
            let run = || made::<T>(starts.len(), |out| Cpu.sum(T::view(&input), &layout, out));
            let got = same_with_threads("sum", run);
            let value = |at: usize| -> f64 { input[at].into() };
            let expected: Vec<f64> =
                starts.iter().map(|start| steps.iter().map(|step| value(start + step)).sum::<f64>() * scale).collect();
            // Sums are made in float64 whatever the type, so only float64 results can depend on the order of terms.
            let terms = if T::EPSILON == f64::EPSILON { steps.len() } else { 1 };
            assert_close(&format!("{layout:?}"), &got, &expected, terms);
        }
    }
}

#[test]
fn sums_over_any_dimensions() {
    sums::<f32>();
    sums::<f64>();
}

#[test]
fn a_long_float32_sum_does_not_lose_small_terms() {
    let input = vec![0.1f32; 3_000_001];
    let n = input.len();
    let layout =
        Reduction { kept: vec![], kept_strides: vec![], reduced: vec![n], reduced_strides: vec![1], scale: 1.0 };
    let got = same_with_threads("long sum", || made::<f32>(1, |out| Cpu.sum(f32::view(&input), &layout, out)));
    assert_eq!(got[0], (f64::from(0.1f32) * n as f64) as f32);
}

fn maxima<T: Num>() {
    for (outer, size, inner) in [(1, 7, 1), (3, 5, 7), (2, 1, 33), (50_001, 5, 3)] {
        let mut input: Vec<T> = random(12, outer * size * inner);
        // Ties, and NaN in the last line.
        input.iter_mut().for_each(|x| *x = T::of((Into::<f64>::into(*x) * 2.0).round()));
        let last = input.len() - 1;
        input[last] = T::of(f64::NAN);
        let run = || {
            let mut output = vec![-1; outer * inner];
            Cpu.argmax(T::view(&input), Along { outer, size, inner }, HostSliceMut::I64(&mut output)).unwrap();
            output
        };
        let got = same_with_threads("argmax", run);
        for (line, &index) in got.iter().enumerate() {
            let at = |k: usize| -> f64 { input[(line / inner * size + k) * inner + line % inner].into() };
            let all: Vec<f64> = (0..size).map(at).collect();
            let largest = all.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let first = all.iter().position(|x| x.is_nan()).or_else(|| all.iter().position(|&x| x == largest));
            assert_eq!(Some(index as usize), first, "{all:?}");
        }
    }
}

#[test]
fn the_first_maximum_or_nan_is_found() {
    maxima::<f32>();
    maxima::<f64>();
}
