//! Running statistics, and what must not change them.

use crate::harness::*;
use crate::reference::{Moments, of_channel};
use syncbn_core::message::{row_of, slot_of};
use syncbn_core::{Code, DType};

/// Batches of (2, 3, 7) in float64, whose running statistics are exact to a few ulp.
fn batches() -> Vec<Case> {
    (0..3).map(|seed| Case::random(seed, shape(2, 3, 7, false), DType::F64)).collect()
}

fn near(got: &[f64], expected: &[f64]) {
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(expected) {
        assert!((got - expected).abs() <= 1e-14 * (1.0 + expected.abs()), "{got} {expected}");
    }
}

#[test]
fn momentum_and_the_cumulative_average() {
    let gpu = Gpu::new();
    for momentum in [Some(0.25), None] {
        let mut running = Running::new(&gpu, DType::F64, 3, 0);
        let (mut mean, mut var) = (vec![0.0; 3], vec![1.0; 3]);
        for (index, case) in batches().into_iter().enumerate() {
            case.forward(&gpu, Some((&mut running, momentum)));
            let factor = momentum.unwrap_or(1.0 / (index as f64 + 1.0));
            for channel in 0..3 {
                let moments = Moments::of(&of_channel(&case.x, case.shape, channel));
                mean[channel] += factor * (moments.mean - mean[channel]);
                var[channel] += factor * (moments.m2 / 13.0 - var[channel]);
            }
            let got = running.read(&gpu);
            near(&got.0, &mean);
            near(&got.1, &var);
            assert_eq!(got.2, index as f64 + 1.0);
        }
    }
}

#[test]
fn every_block_reads_the_number_of_batches_before_it_changes() {
    let gpu = Gpu::new();
    for order in ORDERS {
        for channels_last in [false, true] {
            syncbn_fake_cuda::set_order(order);
            let case = Case::random(0, shape(4, 257, 5, channels_last), DType::F32);
            let mut running = Running::new(&gpu, DType::F64, 257, 0);
            for batch in 1..4 {
                case.forward(&gpu, Some((&mut running, None)));
                let (mean, _, tracked) = running.read(&gpu);
                assert_eq!(tracked, f64::from(batch));
                for (channel, got) in mean.into_iter().enumerate() {
                    let expected = Moments::of(&of_channel(&case.x, case.shape, channel)).mean;
                    assert!((got - expected).abs() <= 1e-6, "batch {batch}, channel {channel}: {got} {expected}");
                }
            }
        }
    }
}

#[test]
fn running_statistics_of_float32_and_float64_with_every_input() {
    let gpu = Gpu::new();
    for dtype in DTYPES {
        for running_dtype in [DType::F32, DType::F64] {
            let case = Case::random(1, shape(3, 4, 16, false), dtype);
            let mut running = Running::new(&gpu, running_dtype, 4, 41);
            running.tracked = None;
            let out = case.forward(&gpu, Some((&mut running, Some(1.0))));
            let expected: Vec<f64> = out.mean.iter().map(|&mean| round(running_dtype, mean)).collect();
            assert_eq!(running.read(&gpu).0, expected, "{dtype}");
        }
    }
}

#[test]
fn an_empty_input_sends_zeros_and_leaves_the_buffers() {
    let gpu = Gpu::new();
    for dtype in DTYPES {
        for shape in [
            shape(0, 3, 5, false),
            shape(2, 3, 0, false),
            shape(0, 3, 5, true),
            shape(0, 65, 1, true),
            shape(0, 1, 9, false),
        ] {
            let (case, c) = (Case::random(1, shape, dtype), shape.channels);
            let zeros = slot_of(0, &vec![0.0; c], &vec![0.0; c], DType::F64);
            let mut messages = gpu.buffer(case.slot_bytes());
            case.stats(&gpu, &mut messages, 0);
            assert_eq!(gpu.download(&messages), zeros, "{shape:?} {dtype}");
            let mut running = Running::new(&gpu, DType::F32, c, 7);
            let out = case.forward(&gpu, Some((&mut running, None)));
            assert_eq!((out.y, out.slot), (vec![], zeros.clone()), "{shape:?} {dtype}");
            assert_eq!(running.read(&gpu), (vec![0.0; c], vec![1.0; c], 7.0));
            assert_eq!(case.backward(&gpu, &zeros, true), [vec![], vec![0.0; c], vec![0.0; c]]);
        }
    }
}

#[test]
fn an_empty_rank_among_others_still_updates_its_buffers() {
    let gpu = Gpu::new();
    let case = Case { eps: 0.5, ..Case::random(1, shape(0, 2, 5, false), DType::F64) };
    let mut slots = vec![0xAA; case.slot_bytes()];
    slots.extend(slot_of(10, &[1.0, 2.0], &[90.0, 9.0], DType::F64));
    let mut messages = gpu.upload(&slots);
    case.stats(&gpu, &mut messages, 0);
    let mut running = Running::new(&gpu, DType::F64, 2, 0);
    let out = case.normalize(&gpu, &messages, Some((&mut running, Some(1.0))));
    assert_eq!((out.count, &out.mean[..]), (10, &[1.0, 2.0][..]));
    near(&out.invstd, &[9.5f64, 1.4].map(|var| 1.0 / var.sqrt()));
    assert_eq!(running.read(&gpu), (vec![1.0, 2.0], vec![10.0, 1.0], 1.0));
}

#[test]
fn a_single_value_is_an_error_at_the_next_wait_and_changes_no_buffer() {
    let gpu = Gpu::new();
    for (shape, slots) in [(shape(1, 70, 1, true), 1), (shape(1, 2, 1, false), 3)] {
        let (c, case) = (shape.channels, Case::random(1, shape, DType::F32));
        let empty = slot_of(0, &vec![0.0; c], &vec![0.0; c], DType::F64);
        let mut messages = gpu.upload(&empty.repeat(slots));
        let x = case.tensor(&gpu, &case.x);
        let mut running = Running::new(&gpu, DType::F32, c, 7);
        gpu.synchronize().unwrap();
        syncbn_core::Kernels::stats(&gpu.cuda, x.view(), shape, &mut messages, slots - 1).unwrap();
        let mut y = Tensor::unwritten(&gpu, DType::F32, c, 0);
        let mut kept = gpu.buffer(case.slot_bytes());
        let mut normalize = || {
            syncbn_core::Kernels::normalize(
                &gpu.cuda,
                syncbn_core::kernels::Normalize {
                    input: x.view(),
                    shape,
                    weight: None,
                    bias: None,
                    eps: 1e-5,
                    messages: &messages,
                    world_size: slots,
                    running: Some(running.views(None)),
                    output: y.view_mut(),
                    statistics: &mut kept,
                },
            )
        };
        normalize().unwrap();
        let error = gpu.synchronize().unwrap_err();
        assert_eq!(error.code(), Code::TooFewValues);
        assert!(error.message().contains("Expected more than 1 value per channel when training"), "{error}");
        gpu.synchronize().unwrap();
        assert_eq!(running.read(&gpu), (vec![0.0; c], vec![1.0; c], 7.0));
    }
}

#[test]
fn nothing_is_committed_after_an_error_nobody_has_seen_yet() {
    let gpu = Gpu::new();
    let single = Case::random(2, shape(1, 2, 1, false), DType::F32);
    let good = Case::random(2, shape(2, 2, 5, false), DType::F32);
    let slots = slot_of(1, &[0.0; 2], &[0.0; 2], DType::F64);
    let messages = gpu.upload(&slots);
    let (x, good_x) = (single.tensor(&gpu, &single.x), good.tensor(&gpu, &good.x));
    let mut y = Tensor::unwritten(&gpu, DType::F32, 20, 0);
    let mut short_y = Tensor::unwritten(&gpu, DType::F32, 2, 0);
    let mut running = Running::new(&gpu, DType::F32, 2, 7);
    let mut kept = gpu.upload(&row_of(&[0.0; 5], DType::F64));
    gpu.synchronize().unwrap();
    let mut call = |case: &Case, x: &Tensor, y: &mut Tensor, messages: &syncbn_cuda::CudaBuffer| {
        syncbn_core::Kernels::normalize(
            &gpu.cuda,
            syncbn_core::kernels::Normalize {
                input: x.view(),
                shape: case.shape,
                weight: None,
                bias: None,
                eps: 1e-5,
                messages,
                world_size: 1,
                running: Some(running.views(Some(0.5))),
                output: y.view_mut(),
                statistics: &mut kept,
            },
        )
        .unwrap();
    };
    call(&single, &x, &mut short_y, &messages);
    let mut good_messages = gpu.cuda.buffer(good.slot_bytes()).unwrap();
    syncbn_core::Kernels::stats(&gpu.cuda, good_x.view(), good.shape, &mut good_messages, 0).unwrap();
    call(&good, &good_x, &mut y, &good_messages);
    assert_eq!(gpu.synchronize().unwrap_err().code(), Code::TooFewValues);
    assert_eq!(running.read(&gpu), (vec![0.0; 2], vec![1.0; 2], 7.0));
}

#[test]
fn batches_that_are_not_committed_leave_the_counters_at_zero() {
    let gpu = Gpu::new();
    let single = Case::random(2, shape(1, 70, 1, true), DType::F32);
    // Many blocks keep something, and a reduction of many parts shares their counter.
    let good = Case { offset: 0, ..Case::random(2, shape(20_000, 70, 1, true), DType::F32) };
    let expected = good.forward(&gpu, None);
    for order in ORDERS {
        syncbn_fake_cuda::set_order(order);
        let slots = slot_of(1, &[0.0; 70], &[0.0; 70], DType::F64);
        let mut running = Running::new(&gpu, DType::F32, 70, 7);
        let messages = gpu.upload(&slots);
        let (x, mut y) = (single.tensor(&gpu, &single.x), Tensor::unwritten(&gpu, DType::F32, 70, 0));
        let mut kept = gpu.buffer(single.slot_bytes());
        syncbn_core::Kernels::normalize(
            &gpu.cuda,
            syncbn_core::kernels::Normalize {
                input: x.view(),
                shape: single.shape,
                weight: None,
                bias: None,
                eps: 1e-5,
                messages: &messages,
                world_size: 1,
                running: Some(running.views(Some(0.5))),
                output: y.view_mut(),
                statistics: &mut kept,
            },
        )
        .unwrap();
        assert_eq!(gpu.synchronize().unwrap_err().code(), Code::TooFewValues);
        assert_eq!(running.read(&gpu).2, 7.0);
        assert!(good.forward(&gpu, Some((&mut running, Some(0.5)))) == expected, "order {order}");
        assert_eq!(running.read(&gpu).2, 8.0);
    }
}
