//! Messages of several ranks, simulated on one device.

use crate::forward;
use crate::harness::*;
use crate::reference::{self, Allowed, Moments, largest, of_channel};
use syncbn_core::kernels::{BackwardApply, BackwardReduce, Kernels};
use syncbn_core::message::{read_row, row_of, sums_bytes};
use syncbn_core::{BatchNormShape, DType};

/// One case a rank, far apart in their means, with the same parameters.
fn cases(shapes: &[BatchNormShape], dtype: DType) -> Vec<Case> {
    let parameters = Case::random(4, shapes[0], dtype);
    let case = |(rank, &shape): (usize, &BatchNormShape)| {
        let mut case = Case::random(rank * 2 + rank % 2, shape, dtype);
        case.x.iter_mut().for_each(|x| *x = round(dtype, *x + 3.0 * rank as f64));
        let Case { row_dtype, weight, bias, .. } = parameters.clone();
        Case { row_dtype, weight, bias, ..case }
    };
    shapes.iter().enumerate().map(case).collect()
}

/// The values of a channel over all ranks.
fn all(cases: &[Case], channel: usize, tensor: impl Fn(&Case) -> &Vec<f64>) -> Vec<f64> {
    cases.iter().flat_map(|case| of_channel(tensor(case), case.shape, channel)).collect()
}

/// Every rank's forward, checked; the kept slot.
fn check_forward(gpu: &Gpu, what: &str, cases: &[Case]) -> Vec<u8> {
    let mut messages = gpu.buffer(cases.len() * cases[0].slot_bytes());
    cases.iter().enumerate().for_each(|(rank, case)| case.stats(gpu, &mut messages, rank));
    let mut first = None;
    for (rank, case) in cases.iter().enumerate() {
        let mut running = Running::new(gpu, case.running_dtype, case.shape.channels, 0);
        let out = case.normalize(gpu, &messages, Some((&mut running, Some(1.0))));
        let (mean, var, tracked) = running.read(gpu);
        let what = format!("{what}, rank {rank} of {}", cases.len());
        forward::check(&what, case, &out, Some((&mean, &var)), &|channel| all(cases, channel, |case| &case.x));
        let state = (out.slot, mean, var, tracked);
        assert!(*first.get_or_insert_with(|| state.clone()) == state, "{what}: other bits than rank 0");
    }
    first.unwrap().0
}

/// Every rank's backward, the sums added up in rank order, checked.
fn check_backward(gpu: &Gpu, cases: &[Case], slot: &[u8]) {
    let (channels, dtype) = (cases[0].shape.channels, cases[0].dtype);
    let slot = gpu.upload(slot);
    let mut group = vec![0.0; 2 * channels];
    for case in cases {
        let [x, dy] = [&case.x, &case.dy].map(|tensor| case.tensor(gpu, tensor));
        let mut sums = gpu.buffer(sums_bytes(channels, 2, DType::F64));
        let mut grad_bias = Tensor::unwritten(gpu, case.row_dtype, channels, 0);
        gpu.cuda
            .backward_reduce(BackwardReduce {
                input: x.view(),
                grad_output: dy.view(),
                shape: case.shape,
                statistics: &slot,
                sums: &mut sums,
                grad_weight: None,
                grad_bias: Some(grad_bias.view_mut()),
            })
            .unwrap();
        let local = read_row(&gpu.download(&sums));
        assert_eq!(
            grad_bias.read(gpu),
            local[..channels].iter().map(|&sum| round(case.row_dtype, sum)).collect::<Vec<_>>()
        );
        group.iter_mut().zip(local).for_each(|(sum, local)| *sum += local);
    }
    let sums = gpu.upload(&row_of(&group, DType::F64));
    let mut first = vec![0; channels];
    for case in cases {
        let [x, dy] = [&case.x, &case.dy].map(|tensor| case.tensor(gpu, tensor));
        let weight = case.row(gpu, case.weight.as_ref());
        let mut dx = Tensor::unwritten(gpu, dtype, case.x.len(), case.offset);
        gpu.cuda
            .backward_apply(BackwardApply {
                input: x.view(),
                grad_output: dy.view(),
                shape: case.shape,
                weight: weight.as_ref().map(Tensor::view),
                statistics: &slot,
                sums: Some(&sums),
                grad_input: dx.view_mut(),
            })
            .unwrap();
        let dx = dx.read(gpu);
        for (channel, first) in first.iter_mut().enumerate() {
            let (x, dy) = (all(cases, channel, |case| &case.x), all(cases, channel, |case| &case.dy));
            let (w, moments) = (case.weight.as_ref().map_or(1.0, |w| w[channel]), Moments::of(&x));
            let exact = reference::backward(&x, &dy, &moments, case.eps, w, DType::F64);
            let plain_type = dtype.accumulate();
            let plain = reference::backward(&x, &dy, &Moments::plain(&x, plain_type), case.eps, w, plain_type);
            let got = of_channel(&dx, case.shape, channel);
            let range = *first..*first + got.len();
            *first = range.end;
            let scale = w.abs() * moments.invstd(case.eps) * 3.0 * largest(&dy);
            Allowed::new(case, dtype, scale).check(
                &format!("dx of {:?} {dtype}, channel {channel}", case.shape),
                &got,
                &exact.dx[range.clone()],
                &plain.dx[range],
            );
        }
    }
}

#[test]
fn ranks_of_different_sizes_and_formats_are_one_batch() {
    let gpu = Gpu::new();
    let groups: [&[BatchNormShape]; 5] = [
        &[shape(3, 5, 49, false), shape(2, 5, 64, false)],
        &[shape(2, 8, 16, false), shape(0, 8, 16, false), shape(1, 8, 9, true)],
        &[shape(0, 3, 7, true), shape(5, 3, 1, true), shape(2, 3, 30_000, false)],
        &[shape(4, 65, 3, true), shape(1, 65, 1, true)],
        &[shape(1, 4, 1, false); 2],
    ];
    for (index, shapes) in groups.into_iter().enumerate() {
        for dtype in DTYPES {
            syncbn_fake_cuda::set_order(ORDERS[index % ORDERS.len()]);
            let cases = cases(shapes, dtype);
            let slot = check_forward(&gpu, &format!("group {index}"), &cases);
            check_backward(&gpu, &cases, &slot);
        }
    }
}

#[test]
fn more_ranks_than_a_warp_has_lanes() {
    let gpu = Gpu::new();
    for size in [5, 8, 31, 33, 70] {
        let shapes: Vec<BatchNormShape> =
            (0..size).map(|rank| shape(rank % 3, 6, 5 + rank % 2, rank % 4 == 1)).collect();
        for dtype in [DType::F32, DType::F64] {
            check_forward(&gpu, "many ranks", &cases(&shapes, dtype));
        }
    }
}

#[test]
fn one_rank_in_a_group_has_the_bits_of_no_group() {
    let gpu = Gpu::new();
    for dtype in DTYPES {
        let shape = shape(3, 20, 77, false);
        let case = Case::random(7, shape, dtype);
        let mut messages = gpu.buffer(3 * case.slot_bytes());
        let empty = Case::random(1, BatchNormShape { batch: 0, ..shape }, dtype);
        empty.stats(&gpu, &mut messages, 0);
        case.stats(&gpu, &mut messages, 1);
        empty.stats(&gpu, &mut messages, 2);
        assert_eq!(case.normalize(&gpu, &messages, None), case.forward(&gpu, None), "{dtype}");
    }
}
