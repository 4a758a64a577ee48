//! Empty inputs, a single value, wrong arguments: typed errors before any side effect.

use crate::harness::*;
use syncbn_core::kernels::{Backward, BackwardApply, BackwardReduce, Forward, Kernels, RunningStats};
use syncbn_core::message::{read_row, read_slot, slot_bytes, write_slot};
use syncbn_core::{Code, DType};
use syncbn_cpu::{Cpu, HostSlice, HostSliceMut};

#[test]
fn an_empty_input_sends_zeros_and_leaves_the_buffers() {
    for shape in [shape(0, 3, 5, false), shape(2, 3, 0, false), shape(0, 3, 5, true), shape(0, 3, 1, true)] {
        let call = Call::<f32> { shape, x: &[], weight: None, bias: None, eps: 1e-5, momentum: Some(0.1) };
        let mut slots = messages(shape, 1);
        let split = call.two_phase(&mut slots, 0).unwrap();
        assert_eq!(read_slot(&slots), (0, vec![0.0; 3], vec![0.0; 3]));
        for out in [split, call.forward().unwrap()] {
            assert_eq!((out.count, out.mean, out.invstd), (0, vec![0.0; 3], vec![0.0; 3]));
            assert_eq!((out.running_mean, out.running_var, out.num_batches_tracked), (vec![0.0; 3], vec![1.0; 3], 0));
            let [dx, gw, gb] = call.backward(&[], &out.slot, true);
            assert_eq!((dx, gw, gb), (vec![], vec![0.0; 3], vec![0.0; 3]));
        }
    }
}

#[test]
fn an_empty_rank_among_others_still_updates_its_buffers() {
    let shape = shape(0, 2, 5, false);
    let mut slots = messages(shape, 2);
    let size = slots.len() / 2;
    write_slot(&mut slots[size..], 10, &[1.0, 2.0], &[90.0, 9.0]);
    let call = Call::<f64> { shape, x: &[], weight: None, bias: None, eps: 0.5, momentum: Some(1.0) };
    let out = call.two_phase(&mut slots, 0).unwrap();
    assert_eq!((out.count, out.running_mean, out.running_var), (10, vec![1.0, 2.0], vec![10.0, 1.0]));
    assert_eq!(out.num_batches_tracked, 1);
    assert_eq!(out.invstd, [9.5f64, 1.4].map(|var| 1.0 / var.sqrt()));

    let (mut sums, mut gw) = (vec![0xAA; 32], [f64::NAN; 2]);
    Cpu.backward_reduce(BackwardReduce {
        input: HostSlice::F64(&[]),
        grad_output: HostSlice::F64(&[]),
        shape,
        statistics: &out.slot,
        sums: &mut sums,
        grad_weight: Some(HostSliceMut::F64(&mut gw)),
        grad_bias: None,
    })
    .unwrap();
    assert_eq!((read_row(&sums), gw), (vec![0.0; 4], [0.0; 2]));
}

#[test]
fn a_single_value_is_an_error_without_side_effects() {
    let shape = shape(1, 2, 1, true);
    let (mut y, mut slot) = ([7.0f32; 2], vec![0xAA; slot_bytes(2, DType::F64)]);
    let (mut mean, mut var, mut tracked) = ([7.0f32; 2], [7.0f32; 2], [7i64]);
    let error = Cpu
        .forward(Forward {
            input: HostSlice::F32(&[1.0, 2.0]),
            shape,
            weight: None,
            bias: None,
            eps: 1e-5,
            running: Some(RunningStats {
                mean: HostSliceMut::F32(&mut mean),
                var: HostSliceMut::F32(&mut var),
                momentum: Some(0.1),
                num_batches_tracked: Some(HostSliceMut::I64(&mut tracked)),
            }),
            output: HostSliceMut::F32(&mut y),
            statistics: &mut slot,
        })
        .unwrap_err();
    assert_eq!(error.code(), Code::TooFewValues);
    assert!(error.message().contains("Expected more than 1 value per channel when training"), "{error}");
    assert_eq!((y, mean, var, tracked), ([7.0; 2], [7.0; 2], [7.0; 2], [7]));
    assert!(slot.iter().all(|&byte| byte == 0xAA));

    let call = Call::<f32> { shape, x: &[1.0, 2.0], weight: None, bias: None, eps: 1e-5, momentum: Some(0.1) };
    assert_eq!(call.two_phase(&mut messages(shape, 1), 0).unwrap_err().code(), Code::TooFewValues);
}

#[test]
fn no_count_gives_no_gradient() {
    let shape = shape(1, 1, 3, false);
    let mut slot = messages(shape, 1);
    slot.fill(0);
    let mut dx = [f32::NAN; 3];
    Cpu.backward_apply(BackwardApply {
        input: HostSlice::F32(&[1.0; 3]),
        grad_output: HostSlice::F32(&[1.0; 3]),
        shape,
        weight: None,
        statistics: &slot,
        sums: Some(&vec![0; 16]),
        grad_input: HostSliceMut::F32(&mut dx),
    })
    .unwrap();
    assert_eq!(dx, [0.0; 3]);
}

#[test]
fn parameters_may_be_float32_with_float64_input() {
    let shape = shape(2, 1, 2, false);
    let (x, w, mut y) = ([1.0f64, 2.0, 3.0, 4.0], [2.0f32], [0.0f64; 4]);
    let forward = |weight: HostSlice<'_>, y: &mut [f64]| {
        Cpu.forward(Forward {
            input: HostSlice::F64(&x),
            shape,
            weight: Some(weight),
            bias: None,
            eps: 0.75,
            running: None,
            output: HostSliceMut::F64(y),
            statistics: &mut messages(shape, 1),
        })
    };
    forward(HostSlice::F32(&w), &mut y).unwrap();
    let expected = [-1.5, -0.5, 0.5, 1.5].map(|d: f64| 2.0 * d / 2.0f64.sqrt());
    assert!(y.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1e-15), "{y:?}");
    assert_eq!(forward(HostSlice::I32(&[2]), &mut y).unwrap_err().code(), Code::DType);
    assert_eq!(forward(HostSlice::F32(&[2.0, 1.0]), &mut y).unwrap_err().code(), Code::Shape);
}

/// One wrong argument in an otherwise right forward call.
fn wrong_forward(change: impl FnOnce(&mut Wrong<'_>)) -> Code {
    let (x, mut y, mut slot) = ([1.0f32, 2.0, 3.0, 4.0], [7.0f32; 4], messages(shape(2, 1, 2, false), 1));
    let (mut mean, mut var, mut tracked) = ([0.0f32], [1.0f32], [0i64]);
    let mut wrong = Wrong {
        input: HostSlice::F32(&x),
        output: HostSliceMut::F32(&mut y),
        mean: HostSliceMut::F32(&mut mean),
        momentum: Some(0.1),
        tracked: Some(HostSliceMut::I64(&mut tracked)),
        slot: &mut slot,
    };
    change(&mut wrong);
    let error = Cpu
        .forward(Forward {
            input: wrong.input,
            shape: shape(2, 1, 2, false),
            weight: None,
            bias: None,
            eps: 1e-5,
            running: Some(RunningStats {
                mean: wrong.mean,
                var: HostSliceMut::F32(&mut var),
                momentum: wrong.momentum,
                num_batches_tracked: wrong.tracked,
            }),
            output: wrong.output,
            statistics: wrong.slot,
        })
        .unwrap_err();
    assert_eq!((y, mean, var, tracked), ([7.0; 4], [0.0], [1.0], [0]), "{error}");
    error.code()
}

struct Wrong<'a> {
    input: HostSlice<'a>,
    output: HostSliceMut<'a>,
    mean: HostSliceMut<'a>,
    momentum: Option<f64>,
    tracked: Option<HostSliceMut<'a>>,
    slot: &'a mut Vec<u8>,
}

#[test]
fn wrong_arguments_are_typed_errors_without_side_effects() {
    assert_eq!(wrong_forward(|call| call.input = HostSlice::F32(&[1.0; 3])), Code::Shape);
    assert_eq!(wrong_forward(|call| call.input = HostSlice::I32(&[1; 4])), Code::DType);
    assert_eq!(wrong_forward(|call| call.input = HostSlice::F64(&[1.0; 4])), Code::DType);
    assert_eq!(wrong_forward(|call| call.output = HostSliceMut::F32(vec![0.0; 2].leak())), Code::Shape);
    assert_eq!(wrong_forward(|call| call.mean = HostSliceMut::F32(vec![0.0; 2].leak())), Code::Shape);
    assert_eq!(wrong_forward(|call| call.mean = HostSliceMut::I64(vec![0].leak())), Code::DType);
    assert_eq!(wrong_forward(|call| call.tracked = Some(HostSliceMut::F32(vec![0.0].leak()))), Code::DType);
    assert_eq!(wrong_forward(|call| (call.momentum, call.tracked) = (None, None)), Code::Argument);
    assert_eq!(wrong_forward(|call| call.slot.truncate(5)), Code::Argument);
}

#[test]
fn the_gradients_alone_may_be_asked_for() {
    let shape = shape(2, 1, 2, false);
    let (x, dy) = ([1.0f64, 2.0, 3.0, 4.0], [1.0f64, -1.0, 2.0, 5.0]);
    let call = Call { shape, x: &x, weight: None, bias: None, eps: 1e-5, momentum: None };
    let slot = call.forward().unwrap().slot;
    let [_, gw, gb] = call.backward(&dy, &slot, true);
    let mut alone = [0.0f32; 1];
    Cpu.backward(Backward {
        input: HostSlice::F64(&x),
        grad_output: HostSlice::F64(&dy),
        shape,
        weight: None,
        statistics: &slot,
        batch_statistics: true,
        grad_input: None,
        grad_weight: Some(HostSliceMut::F32(&mut alone)),
        grad_bias: None,
    })
    .unwrap();
    assert_eq!((alone[0], gb[0]), (gw[0] as f32, 7.0));
}
