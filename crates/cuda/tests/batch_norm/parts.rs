//! Reductions whose parts meet in one step, in two, and at the edges between them.

use crate::harness::*;
use crate::reference::{elements, of_channel};
use crate::{backward, forward};
use syncbn_core::{BatchNormShape, DType};

/// (values of a part, parts that meet in one step) of 32 channels in channels last, as geometry.rs makes them.
const fn of_rows(dtype: DType) -> (usize, usize) {
    match dtype {
        DType::F64 => (256, 64),
        DType::F32 => (256, 32),
        _ => (512, 32),
    }
}

fn check(gpu: &Gpu, seed: usize, shape: BatchNormShape, dtype: DType) {
    syncbn_fake_cuda::set_order(ORDERS[seed % ORDERS.len()]);
    let mut case = Case { offset: 0, ..Case::random(seed, shape, dtype) };
    for channel in 0..shape.channels {
        // A drift: parts have means of their own, so that one that is left out or taken twice is seen.
        for (i, at) in elements(shape, channel).enumerate() {
            case.x[at] = round(dtype, case.x[at] + i as f64 * 4.0 / (shape.batch * shape.spatial) as f64);
        }
    }
    let out = case.forward(gpu, None);
    forward::check("parts", &case, &out, None, &|channel| of_channel(&case.x, shape, channel));
    backward::check("parts", &case, &case.backward(gpu, &out.slot, true));
}

#[test]
fn one_step_two_steps_and_the_first_of_a_group() {
    let gpu = Gpu::new();
    for dtype in [DType::F32, DType::F16, DType::F64] {
        let (chunk, one_step) = of_rows(dtype);
        let last_group = |parts: usize| parts % ((parts - 1).isqrt() + 1);
        let first = |of_last: usize| (one_step + 2..).find(|&parts| last_group(parts) == of_last).unwrap();
        // Groups that are all full, and a last one of a single part.
        for (seed, parts) in [one_step, one_step + 1, first(0), first(1)].into_iter().enumerate() {
            let rows = (parts - 1) * chunk + [1, chunk, chunk - 1][seed % 3];
            check(&gpu, seed, shape(rows, 32, 1, true), dtype);
        }
    }
}

#[test]
fn tails_of_every_length() {
    let gpu = Gpu::new();
    // Around one and two iterations of a block of 32 lanes with 8 vectors each, and of 256 lanes.
    for rows in [31, 32, 33, 63, 65, 127, 129, 224, 225, 255, 256, 257, 480, 511, 512, 513] {
        for (seed, dtype) in DTYPES.into_iter().enumerate() {
            check(&gpu, seed + rows, shape(rows, 32, 1, true), dtype);
            check(&gpu, seed + rows, shape(rows, 4, 1, true), dtype);
        }
    }
}

#[test]
fn tiles_that_are_not_full() {
    let gpu = Gpu::new();
    for channels in [2, 5, 6, 12, 20, 36, 44, 68, 100, 132, 513] {
        for (seed, dtype) in DTYPES.into_iter().enumerate() {
            check(&gpu, seed, shape(700, channels, 1, true), dtype);
        }
    }
}
