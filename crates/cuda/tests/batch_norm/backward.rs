//! Backward over shapes, layouts, types and alignments.

use crate::forward::shapes;
use crate::harness::*;
use crate::reference::{self, Allowed, Moments, largest, of_channel};
use syncbn_core::DType;
use syncbn_core::kernels::{Backward, Kernels};
use syncbn_core::message::slot_of;

/// Checks dx, grad_weight and grad_bias against the formulas.
pub fn check(what: &str, case: &Case, [dx, grad_weight, grad_bias]: &[Vec<f64>; 3]) {
    let sums = case.dtype.accumulate();
    for channel in 0..case.shape.channels {
        let what = format!("{what}, {:?} {}, channel {channel}", case.shape, case.dtype);
        let w = case.weight.as_ref().map_or(1.0, |w| w[channel]);
        let [x, dy] = [&case.x, &case.dy].map(|tensor| of_channel(tensor, case.shape, channel));
        let moments = Moments::of(&x);
        let exact = reference::backward(&x, &dy, &moments, case.eps, w, DType::F64);
        let plain = reference::backward(&x, &dy, &Moments::plain(&x, sums), case.eps, w, sums);
        let (invstd, n) = (moments.invstd(case.eps), moments.count);
        let xh = largest(&moments.centred(&x)) * invstd;
        let scale = w.abs() * invstd * (largest(&dy) + exact.bias.abs() / n + xh * exact.weight.abs() / n);
        Allowed::new(case, case.dtype, scale).check(
            &format!("{what}, dx"),
            &of_channel(dx, case.shape, channel),
            &exact.dx,
            &plain.dx,
        );
        // Sums of terms of both signs: their scale is what they could reach with one sign.
        let scale = dy.iter().map(|dy| dy.abs()).sum::<f64>();
        Allowed::new(case, case.row_dtype, scale * xh).check(
            &format!("{what}, weight"),
            &[grad_weight[channel]],
            &[exact.weight],
            &[plain.weight],
        );
        Allowed::new(case, case.row_dtype, scale).check(
            &format!("{what}, bias"),
            &[grad_bias[channel]],
            &[exact.bias],
            &[plain.bias],
        );
    }
}

fn over_shapes(dtype: DType) {
    let gpu = Gpu::new();
    for (seed, shape) in shapes().into_iter().enumerate() {
        syncbn_fake_cuda::set_order(ORDERS[seed % ORDERS.len()]);
        let case = Case::random(seed, shape, dtype);
        let out = case.forward(&gpu, None);
        check("backward", &case, &case.backward(&gpu, &out.slot, true));
    }
}

#[test]
fn float16() {
    over_shapes(DType::F16);
}

#[test]
fn bfloat16() {
    over_shapes(DType::BF16);
}

#[test]
fn float32() {
    over_shapes(DType::F32);
}

#[test]
fn float64() {
    over_shapes(DType::F64);
}

#[test]
fn constant_statistics_give_a_scaled_gradient() {
    let gpu = Gpu::new();
    for (seed, dtype) in DTYPES.into_iter().enumerate() {
        for shape in [shape(3, 5, 49, false), shape(3, 8, 48, false), shape(3, 8, 49, true)] {
            let case = Case { bias: None, ..Case::random(seed + 1, shape, dtype) };
            let mut random = Random(5);
            let mean = random.values(DType::F32, shape.channels);
            let var: Vec<f64> = random.values(DType::F32, shape.channels).iter().map(|v| v.abs()).collect();
            let [mean_row, var_row] = [&mean, &var].map(|row| Tensor::new(&gpu, DType::F32, row, 0));
            let mut slot = gpu.buffer(case.slot_bytes());
            gpu.cuda.constant_statistics(mean_row.view(), var_row.view(), case.eps, &mut slot).unwrap();
            let slot = gpu.download(&slot);
            let y = case.elemt(&gpu, &slot);
            let [dx, grad_weight, grad_bias] = case.backward(&gpu, &slot, false);
            for channel in 0..shape.channels {
                let w = case.weight.as_ref().map_or(1.0, |w| w[channel]);
                let invstd = 1.0 / (var[channel] + case.eps).sqrt();
                let what = format!("{shape:?} {dtype}, channel {channel}");
                let near = |name: &str, result, scale, got: &[f64], exact: &[f64]| {
                    Allowed::new(&case, result, scale).check(&format!("{what}, {name}"), got, exact, exact);
                };
                let [x, dy] = [&case.x, &case.dy].map(|tensor| of_channel(tensor, shape, channel));
                let xh: Vec<f64> = x.iter().map(|x| (x - mean[channel]) * invstd).collect();
                let expected: Vec<f64> = xh.iter().map(|xh| w * xh).collect();
                near("y", dtype, largest(&expected), &of_channel(&y, shape, channel), &expected);
                let expected: Vec<f64> = dy.iter().map(|dy| w * invstd * dy).collect();
                near("dx", dtype, largest(&expected), &of_channel(&dx, shape, channel), &expected);
                let dot = |xh: &[f64]| reference::sum(dy.iter().zip(xh).map(|(dy, xh)| dy * xh));
                let scale = dy.iter().map(|dy| dy.abs()).sum::<f64>() * largest(&xh).max(1.0);
                near("weight", case.row_dtype, scale, &[grad_weight[channel]], &[dot(&xh)]);
                near("bias", case.row_dtype, scale, &[grad_bias[channel]], &[dot(&vec![1.0; dy.len()])]);
            }
            assert_eq!(slot.len(), 8 + 16 * shape.channels);
        }
    }
}

#[test]
fn constant_statistics_without_parameter_gradients_need_one_kernel() {
    let gpu = Gpu::new();
    let case = Case::random(1, shape(3, 5, 49, false), DType::F32);
    let slot = slot_of(0, &[0.5; 5], &[2.0; 5], DType::F64);
    let expected = case.backward(&gpu, &slot, false);
    let [x, dy] = [&case.x, &case.dy].map(|tensor| case.tensor(&gpu, tensor));
    let (weight, statistics) = (case.row(&gpu, case.weight.as_ref()), gpu.upload(&slot));
    let mut dx = Tensor::unwritten(&gpu, case.dtype, case.x.len(), case.offset);
    let mut grad_bias = Tensor::unwritten(&gpu, case.row_dtype, 5, 0);
    for (kernels, wants_input, wants_bias) in [(1, true, false), (1, false, true), (0, false, false)] {
        gpu.launches(kernels, || {
            gpu.cuda.backward(Backward {
                input: x.view(),
                grad_output: dy.view(),
                shape: case.shape,
                weight: weight.as_ref().map(Tensor::view),
                statistics: &statistics,
                batch_statistics: false,
                grad_input: wants_input.then(|| dx.view_mut()),
                grad_weight: None,
                grad_bias: wants_bias.then(|| grad_bias.view_mut()),
            })
        });
    }
    assert_eq!([dx.read(&gpu), grad_bias.read(&gpu)], [expected[0].clone(), expected[2].clone()]);
}
