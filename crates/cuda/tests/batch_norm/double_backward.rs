//! The gradients of the gradients against those of the CPU, which computes them in float64.

use crate::harness::*;
use crate::reference::largest;
use syncbn_core::kernels::{DoubleBackwardApply, DoubleBackwardReduce, Kernels};
use syncbn_core::message::{read_slot, slot_of, sums_bytes};
use syncbn_core::{BatchNormShape, DType};
use syncbn_cpu::{Cpu, HostSlice, HostSliceMut};

/// All operands of one rank, values of their types.
struct Problem {
    case: Case,
    g: Vec<f64>,
    ggw: Option<Vec<f64>>,
    ggb: Option<Vec<f64>>,
    batch_statistics: bool,
}

impl Problem {
    /// Gradients to x, to dy and to w on the device.
    fn on_device(&self, gpu: &Gpu, slot: &[u8]) -> [Vec<f64>; 3] {
        let Case { shape, dtype, ref x, ref dy, ref weight, row_dtype, .. } = self.case;
        let [x, dy, g] = [x, dy, &self.g].map(|tensor| self.case.tensor(gpu, tensor));
        let [weight, ggw, ggb] = [weight, &self.ggw, &self.ggb].map(|row| self.case.row(gpu, row.as_ref()));
        let slot = gpu.upload(slot);
        let [mut sums, mut local_sums] = [7, 3].map(|rows| gpu.buffer(sums_bytes(shape.channels, rows, DType::F64)));
        gpu.cuda
            .double_backward_reduce(DoubleBackwardReduce {
                input: x.view(),
                grad_output: dy.view(),
                grad_grad_input: g.view(),
                grad_grad_weight: ggw.as_ref().map(Tensor::view),
                weight: weight.as_ref().map(Tensor::view),
                shape,
                statistics: &slot,
                sums: &mut sums,
                local_sums: &mut local_sums,
            })
            .unwrap();
        let [mut to_x, mut to_dy] = [0; 2].map(|_| Tensor::unwritten(gpu, dtype, shape.numel(), self.case.offset));
        let mut to_w = Tensor::unwritten(gpu, row_dtype, shape.channels, 0);
        gpu.cuda
            .double_backward_apply(DoubleBackwardApply {
                input: x.view(),
                grad_output: dy.view(),
                grad_grad_input: g.view(),
                grad_grad_weight: ggw.as_ref().map(Tensor::view),
                grad_grad_bias: ggb.as_ref().map(Tensor::view),
                weight: weight.as_ref().map(Tensor::view),
                shape,
                statistics: &slot,
                sums: self.batch_statistics.then_some(&sums),
                local_sums: &local_sums,
                grad_input: to_x.view_mut(),
                grad_grad_output: to_dy.view_mut(),
                grad_weight: Some(to_w.view_mut()),
            })
            .unwrap();
        [to_x.read(gpu), to_dy.read(gpu), to_w.read(gpu)]
    }

    /// The same on the CPU in float64.
    fn on_cpu(&self, slot: &Vec<u8>) -> [Vec<f64>; 3] {
        let Case { shape, ref x, ref dy, ref weight, .. } = self.case;
        let [mut sums, mut local_sums] = [7, 3].map(|rows| vec![0; sums_bytes(shape.channels, rows, DType::F64)]);
        let row = |row: &'_ Option<Vec<f64>>| row.clone().unwrap_or_default();
        let (weight_row, ggw_row, ggb_row) = (row(weight), row(&self.ggw), row(&self.ggb));
        let weight = weight.is_some().then_some(HostSlice::F64(&weight_row));
        let ggw = self.ggw.is_some().then_some(HostSlice::F64(&ggw_row));
        let ggb = self.ggb.is_some().then_some(HostSlice::F64(&ggb_row));
        Cpu.double_backward_reduce(DoubleBackwardReduce {
            input: HostSlice::F64(x),
            grad_output: HostSlice::F64(dy),
            grad_grad_input: HostSlice::F64(&self.g),
            grad_grad_weight: ggw,
            weight,
            shape,
            statistics: slot,
            sums: &mut sums,
            local_sums: &mut local_sums,
        })
        .unwrap();
        let [mut to_x, mut to_dy] = [0; 2].map(|_| vec![f64::NAN; shape.numel()]);
        let mut to_w = vec![f64::NAN; shape.channels];
        Cpu.double_backward_apply(DoubleBackwardApply {
            input: HostSlice::F64(x),
            grad_output: HostSlice::F64(dy),
            grad_grad_input: HostSlice::F64(&self.g),
            grad_grad_weight: ggw,
            grad_grad_bias: ggb,
            weight,
            shape,
            statistics: slot,
            sums: self.batch_statistics.then_some(&sums),
            local_sums: &local_sums,
            grad_input: HostSliceMut::F64(&mut to_x),
            grad_grad_output: HostSliceMut::F64(&mut to_dy),
            grad_weight: Some(HostSliceMut::F64(&mut to_w)),
        })
        .unwrap();
        [to_x, to_dy, to_w]
    }
}

fn check(gpu: &Gpu, seed: usize, shape: BatchNormShape, dtype: DType, batch_statistics: bool) {
    let case = Case::random(seed, shape, dtype);
    let mut random = Random(seed as u64 + 500);
    let mut row = || random.values(case.row_dtype, shape.channels);
    let (ggw, ggb) = (Some(row()), (seed % 2 == 1).then(&mut row));
    let g = random.values(dtype, shape.numel());
    // Both compute from the device's statistics, so that their rounding is not part of the comparison.
    let (mut count, mean, invstd) = read_slot(&case.forward(gpu, None).slot);
    if !batch_statistics {
        count = 0;
    }
    let problem = Problem { case, g, ggw, ggb, batch_statistics };
    let slot = slot_of(count, &mean, &invstd, DType::F64);
    let (got, expected) = (problem.on_device(gpu, &slot), problem.on_cpu(&slot));
    let terms = shape.count().max(16) as f64;
    for (index, (name, got, expected)) in ["x", "dy", "w"]
        .into_iter()
        .zip(&got)
        .zip(&expected)
        .map(|((name, got), expected)| (name, got, expected))
        .enumerate()
    {
        let own = if index == 2 { problem.case.row_dtype } else { dtype };
        let scale = largest(expected).max(1.0) * largest(&invstd).max(1.0);
        let allowed = rounding(dtype.accumulate()) * 8.0 * terms.sqrt() * scale;
        for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
            let error = (got - expected).abs();
            assert!(
                error <= allowed + rounding(own) * 1.01 * expected.abs() + 1e-7 * f64::from(own == DType::F16),
                "{shape:?} {dtype}, to {name} at {at}: {got:e} for {expected:e}, error {error:e}, allowed {allowed:e}"
            );
        }
    }
}

#[test]
fn batch_statistics_and_constants() {
    let gpu = Gpu::new();
    let shapes = [(3, 2, 5), (4, 3, 1), (2, 65, 49), (2, 1, 9_001), (5, 8, 1_000)];
    for (seed, (n, c, s)) in shapes.into_iter().enumerate() {
        for channels_last in [false, true] {
            for dtype in DTYPES {
                syncbn_fake_cuda::set_order(ORDERS[seed % ORDERS.len()]);
                for batch_statistics in [true, false] {
                    check(&gpu, seed, shape(n, c, s, channels_last), dtype, batch_statistics);
                }
            }
        }
    }
}

#[test]
fn an_empty_rank_has_zeros() {
    let gpu = Gpu::new();
    let case = Case::random(1, shape(0, 3, 4, false), DType::F32);
    let slot = slot_of(10, &[1.0; 3], &[2.0; 3], DType::F64);
    let problem = Problem { case, g: vec![], ggw: None, ggb: None, batch_statistics: true };
    assert_eq!(problem.on_device(&gpu, &slot), [vec![], vec![], vec![0.0; 3]]);
}
