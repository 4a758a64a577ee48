//! Sums and positions of maxima.

use crate::harness::{Side, Values, both, code, cuda};
use syncbn_core::ops::{Along, Reduction};
use syncbn_core::{Code, DType, Ops};

const FLOATS: [DType; 2] = [DType::F32, DType::F64];

/// Sums the dimensions where `reduced` is true, of a dense tensor.
fn over(shape: &[usize], reduced: &[bool], scale: f64) -> Reduction {
    let strides: Vec<usize> = (0..shape.len()).map(|d| shape[d + 1..].iter().product()).collect();
    let pick = |from: &[usize], which: bool| {
        from.iter().zip(reduced).filter(|(_, reduced)| **reduced == which).map(|(&value, _)| value).collect::<Vec<_>>()
    };
    Reduction {
        kept: pick(shape, false),
        kept_strides: pick(&strides, false),
        reduced: pick(shape, true),
        reduced_strides: pick(&strides, true),
        scale,
    }
}

#[track_caller]
fn check(layout: &Reduction, len: usize) {
    for dtype in FLOATS {
        let x = Values::random(dtype, 1, len);
        let mut y = Values::unwritten(dtype, layout.kept.iter().product());
        both!(d => d.sum(d.input(&x), layout, d.output(&mut y)));
        y.assert_summed(layout.reduced.iter().product());
    }
}

#[test]
fn sums_over_every_choice_of_dimensions() {
    for shape in [[3, 5, 7, 4], [2, 40, 3, 9], [1, 6, 1, 300]] {
        for chosen in 0..16 {
            let reduced: Vec<bool> = (0..4).map(|d| chosen >> d & 1 == 1).collect();
            check(&over(&shape, &reduced, 1.0), shape.iter().product());
        }
    }
}

#[test]
fn many_terms_are_shared_among_blocks() {
    check(&over(&[70_001], &[true], 1.0), 70_001);
    check(&over(&[9001, 3], &[true, false], 0.5), 27_003);
    check(&over(&[3, 9001], &[false, true], 1.0 / 9001.0), 27_003);
    check(&over(&[40, 5, 211], &[true, false, true], 1.0), 42_200);
}

#[test]
fn means_are_scaled_and_sums_of_nothing_are_zero() {
    check(&over(&[4, 0], &[false, true], 1.0), 0);
    check(&over(&[4, 0], &[false, true], f64::INFINITY), 0);
    check(&over(&[0, 4], &[false, true], 1.0), 0);
    check(&over(&[], &[], 1.0), 1);
}

#[test]
fn permuted_tensors_are_summed_in_place() {
    // Channels last: the sum over channels and over everything else.
    let (kept, rest) = (vec![2, 5, 4], vec![60, 12, 3]);
    check(&Reduction { kept, kept_strides: rest, reduced: vec![3], reduced_strides: vec![1], scale: 1.0 }, 120);
    let (reduced, strides) = (vec![2, 5, 4], vec![60, 12, 3]);
    check(&Reduction { kept: vec![3], kept_strides: vec![1], reduced, reduced_strides: strides, scale: 2.0 }, 120);
}

#[test]
fn a_sum_keeps_what_float32_would_lose() {
    let mut values = vec![1.0; 20_001];
    values[0] = 1e8;
    let x = Values::of(DType::F32, &values);
    let mut y = Values::unwritten(DType::F32, 1);
    both!(d => d.sum(d.input(&x), &over(&[20_001], &[true], 1.0), d.output(&mut y)));
    assert_eq!(y.results(), [f64::from(100_020_000.0f32)]);
}

#[test]
fn argmax_is_the_first_largest_and_nan_is_larger() {
    for dtype in FLOATS {
        for (outer, size, inner) in [(3, 5, 7), (4, 1, 2), (1, 1000, 1), (5, 37, 1), (1, 300, 33), (0, 3, 2)] {
            // Few values, so that many are equal.
            let values: Vec<f64> = (0..outer * size * inner).map(|i| (i * 7919 % 13) as f64).collect();
            let x = Values::of(dtype, &values);
            let mut y = Values::unwritten(DType::I64, outer * inner);
            both!(d => d.argmax(d.input(&x), Along { outer, size, inner }, d.output(&mut y)));
            y.assert_same();
        }
        for nan in [0, 1, 250, 299] {
            let mut values: Vec<f64> = (0..300).map(|i| f64::from(i) * 0.5).collect();
            values[nan] = f64::NAN;
            values[200.max(nan)] = f64::NAN;
            values[10] = f64::INFINITY;
            let x = Values::of(dtype, &values);
            let mut y = Values::unwritten(DType::I64, 1);
            both!(d => d.argmax(d.input(&x), Along { outer: 1, size: 300, inner: 1 }, d.output(&mut y)));
            y.assert_same();
        }
        let x = Values::of(dtype, &[f64::NEG_INFINITY; 40]);
        let mut y = Values::unwritten(DType::I64, 1);
        both!(d => d.argmax(d.input(&x), Along { outer: 1, size: 40, inner: 1 }, d.output(&mut y)));
        assert_eq!(y.results(), [0.0]);
    }
}

#[test]
fn wrong_types_and_sizes_are_errors() {
    let cuda = cuda();
    let (whole, x) = (Values::random(DType::I64, 1, 6), Values::random(DType::F32, 1, 6));
    let (mut y, mut i) = (Values::unwritten(DType::F32, 2), Values::unwritten(DType::I64, 2));
    let layout = over(&[2, 3], &[false, true], 1.0);
    assert_eq!(code(cuda.sum(cuda.input(&whole), &layout, cuda.output(&mut i))), Code::DType);
    assert_eq!(code(cuda.sum(cuda.input(&x), &over(&[2, 4], &[false, true], 1.0), cuda.output(&mut y))), Code::Shape);
    let along = Along { outer: 2, size: 3, inner: 1 };
    assert_eq!(code(cuda.argmax(cuda.input(&x), along, cuda.output(&mut y))), Code::DType);
    let empty = Along { outer: 2, size: 0, inner: 1 };
    assert_eq!(code(cuda.argmax(cuda.input(&x), empty, cuda.output(&mut i))), Code::Shape);
}
