//! Arithmetic with broadcasting, casts, changes of layout, ReLU and biases.

use crate::harness::*;
use half::{bf16, f16};
use syncbn_core::ops::{Along, BinaryOp, Broadcast, Restride};
use syncbn_core::{Code, MemoryFormat, Ops};
use syncbn_cpu::{Cpu, HostSlice, HostSliceMut};

const OPS: [BinaryOp; 4] = [BinaryOp::Add, BinaryOp::Sub, BinaryOp::Mul, BinaryOp::Div];

fn apply<T: Num>(op: BinaryOp, a: T, b: T) -> f64 {
    let (a, b): (f64, f64) = (a.into(), b.into());
    // One operation on two numbers of T, done in float64 and rounded once more, is that operation in T.
    T::of(match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div => a / b,
    })
    .into()
}

/// Offsets of every position of `shape`, in row-major order.
fn offsets(shape: &[usize], strides: &[usize]) -> Vec<usize> {
    let step = |offsets: Vec<usize>, (&size, &stride): (&usize, &usize)| {
        offsets.iter().flat_map(|&offset| (0..size).map(move |i| offset + i * stride)).collect()
    };
    shape.iter().zip(strides).fold(vec![0], step)
}

fn broadcasts<T: Num>() {
    let layouts: [(&[usize], &[usize], &[usize]); 9] = [
        (&[3, 5, 7], &[35, 7, 1], &[35, 7, 1]),
        (&[3, 5, 7], &[35, 7, 1], &[0, 0, 1]),
        (&[3, 5, 7], &[35, 7, 1], &[0, 1, 0]),
        (&[3, 5, 7], &[1, 0, 0], &[0, 7, 1]),
        (&[3, 1, 7], &[7, 7, 1], &[0, 0, 0]),
        (&[2, 3, 4, 5], &[60, 1, 15, 3], &[60, 20, 5, 1]),
        (&[], &[], &[]),
        (&[1, 1], &[1, 1], &[0, 0]),
        (&[129, 2_601], &[2_601, 1], &[0, 1]),
    ];
    for (op, (shape, a, b)) in OPS.into_iter().flat_map(|op| layouts.map(|layout| (op, layout))) {
        let (from_a, from_b) = (offsets(shape, a), offsets(shape, b));
        let len = |offsets: &[usize]| offsets.iter().max().unwrap() + 1;
        let (left, right): (Vec<T>, Vec<T>) = (random(5, len(&from_a)), random(6, len(&from_b)));
        let layout = Broadcast { shape: shape.to_vec(), a: a.to_vec(), b: b.to_vec() };
        let run = || made::<T>(from_a.len(), |out| Cpu.binary(op, T::view(&left), T::view(&right), &layout, out));
        let got = same_with_threads(&format!("{op:?} {layout:?}"), run);
        let expected: Vec<f64> = from_a.iter().zip(&from_b).map(|(&i, &j)| apply(op, left[i], right[j])).collect();
        assert_eq!(wide(&got), expected, "{op:?} {layout:?}");
    }
}

#[test]
fn arithmetic_broadcasts() {
    broadcasts::<f32>();
    broadcasts::<f64>();
}

fn scalars_and_updates<T: Num>() {
    let len = 300_001;
    let (a, b): (Vec<T>, Vec<T>) = (random(7, len), random(8, len));
    for op in OPS {
        let got = same_with_threads("scalar", || made::<T>(len, |out| Cpu.binary_scalar(op, T::view(&a), 0.3, out)));
        let expected: Vec<f64> = a.iter().map(|&a| apply(op, a, T::of(0.3))).collect();
        assert_eq!(wide(&got), expected, "{op:?}");
    }
    let added = same_with_threads("add", || {
        let mut sum = a.clone();
        Cpu.add_in_place(T::view_mut(&mut sum), T::view(&b)).unwrap();
        Cpu.scale_in_place(T::view_mut(&mut sum), 0.25).unwrap();
        sum
    });
    let expected: Vec<f64> = a.iter().zip(&b).map(|(&a, &b)| apply(BinaryOp::Add, a, b) * 0.25).collect();
    assert_eq!(wide(&added), expected);
}

#[test]
fn scalars_and_in_place_updates() {
    scalars_and_updates::<f32>();
    scalars_and_updates::<f64>();
}

#[test]
fn relu_keeps_nan_and_passes_gradients_where_its_output_is_positive() {
    let x = [-1.0, -0.0, 0.0, 1e-30, 2.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN];
    let dy: Vec<f64> = (1..=8).map(f64::from).collect();
    let y = made::<f64>(8, |out| Cpu.relu(HostSlice::F64(&x), out));
    assert_eq!(bits(&y[..7]), bits(&[0.0, 0.0, 0.0, 1e-30, 2.0, f64::INFINITY, 0.0]));
    assert!(y[7].is_nan());
    let dx = made::<f64>(8, |out| Cpu.relu_backward(HostSlice::F64(&dy), HostSlice::F64(&y), out));
    assert_eq!(dx, [0.0, 0.0, 0.0, 4.0, 5.0, 6.0, 0.0, 8.0]);
}

#[test]
fn biases_are_added_along_their_dimension() {
    for (outer, size, inner) in [(3, 5, 7), (11, 13, 1), (1, 3, 4), (0, 3, 2), (2, 3, 0), (400, 33, 65)] {
        let (data, bias): (Vec<f32>, Vec<f32>) = (random(9, outer * size * inner), random(10, size));
        let got = same_with_threads("bias", || {
            let mut data = data.clone();
            Cpu.add_bias(HostSliceMut::F32(&mut data), HostSlice::F32(&bias), Along { outer, size, inner }).unwrap();
            data
        });
        let expected: Vec<f32> = data.iter().enumerate().map(|(i, x)| x + bias[i / inner.max(1) % size]).collect();
        assert_eq!(got, expected, "{outer} × {size} × {inner}");
    }
}

#[test]
fn layouts_change_by_strides_in_every_type() {
    let shape = [3, 5, 4, 7];
    let from = MemoryFormat::Contiguous.strides(&shape);
    let to = MemoryFormat::ChannelsLast.strides(&shape);
    let numel = 3 * 5 * 4 * 7;
    let input: Vec<i64> = (0..numel as i64).collect();
    for (from, to) in [(&from, &to), (&to, &from), (&from, &from)] {
        let layout = Restride { shape: shape.to_vec(), input: from.clone(), output: to.clone() };
        let mut output = vec![-1; numel];
        Cpu.restride(HostSlice::I64(&input), &layout, HostSliceMut::I64(&mut output)).unwrap();
        for (read, written) in offsets(&shape, from).into_iter().zip(offsets(&shape, to)) {
            assert_eq!(output[written], input[read]);
        }
    }
    let repeated = Restride { shape: vec![4, 3], input: vec![0, 1], output: vec![3, 1] };
    let mut output = [f16::ZERO; 12];
    let row = [1.0, 2.0, 3.0].map(f16::from_f64);
    Cpu.restride(HostSlice::F16(&row), &repeated, HostSliceMut::F16(&mut output)).unwrap();
    assert_eq!(output, [row; 4].concat()[..]);
}

#[test]
fn casts_round_to_nearest_even_and_truncate_to_integers() {
    let x = [0.1, -2.7, 1e20, f64::NAN, 65520.0, 1.0 + 2f64.powi(-9), 0.0];
    let mut single = [0f32; 7];
    Cpu.copy(HostSlice::F64(&x), HostSliceMut::F32(&mut single)).unwrap();
    assert!(single.iter().zip(x).all(|(got, x)| got.to_bits() == (x as f32).to_bits()));
    let mut brain = [bf16::ZERO; 7];
    Cpu.copy(HostSlice::F64(&x), HostSliceMut::BF16(&mut brain)).unwrap();
    assert_eq!(brain[5], bf16::ONE, "a tie goes to even");
    let mut halves = [f16::ZERO; 7];
    Cpu.copy(HostSlice::F64(&x), HostSliceMut::F16(&mut halves)).unwrap();
    assert!(halves[4].is_infinite() && halves[3].is_nan());
    let mut integers = [7i32; 7];
    Cpu.copy(HostSlice::F64(&x), HostSliceMut::I32(&mut integers)).unwrap();
    assert_eq!(integers, [0, -2, i32::MAX, 0, 65520, 1, 0]);
    let mut long = [0i64; 2];
    Cpu.copy(HostSlice::I32(&[-5, i32::MIN]), HostSliceMut::I64(&mut long)).unwrap();
    assert_eq!(long, [-5, i64::from(i32::MIN)]);
    let mut filled = [bf16::ONE; 3];
    Cpu.fill(HostSliceMut::BF16(&mut filled), 0.5).unwrap();
    assert_eq!(filled, [bf16::from_f64(0.5); 3]);
}

#[test]
fn operands_of_other_types_are_typed_errors() {
    let (mut out, a) = ([0f32; 2], [0i32; 2]);
    let error = Cpu.relu(HostSlice::I32(&a), HostSliceMut::F32(&mut out)).unwrap_err();
    assert_eq!(error.code(), Code::DType);
    let error = Cpu.relu(HostSlice::F64(&[0.0; 2]), HostSliceMut::F32(&mut out)).unwrap_err();
    assert_eq!(error.code(), Code::DType);
    assert!(error.message().contains("float64") && error.message().contains("float32"), "{error}");
}
