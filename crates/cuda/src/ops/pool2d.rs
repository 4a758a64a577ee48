//! Launchers of pool2d.cu.

use super::family::{FLOATS, Family, expect_dtype, expect_len, walk};
use super::reduce;
use super::space::WideDivider;
use crate::kernel_table::Entry;
use crate::launch::Params;
use crate::module::Module;
use crate::{Cuda, CudaSlice, CudaSliceMut};
use syncbn_core::ops::{self, Reduction};
use syncbn_core::{Code, DType, Error, Result};

/// Mirror of `Window` in kernels/pool2d.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
struct Window {
    input: u64,
    output: u64,
    kernel: u64,
    stride: u64,
    padding: u64,
}

/// Mirror of `Pool2d` in kernels/pool2d.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
struct Pool2d {
    batch: u64,
    channels_last: u64,
    adaptive: u64,
    height: Window,
    width: Window,
    channels: WideDivider,
    input_height: WideDivider,
    input_width: WideDivider,
    output_height: WideDivider,
    output_width: WideDivider,
}

impl Pool2d {
    fn new(geometry: &ops::Pool2d, adaptive: bool) -> Self {
        let ops::Pool2d { input, output, kernel, stride, padding, .. } = *geometry;
        let window = |d: usize| Window {
            input: input[d] as u64,
            output: output[d] as u64,
            kernel: kernel[d] as u64,
            stride: stride[d] as u64,
            padding: padding[d] as u64,
        };
        Self {
            batch: geometry.batch as u64,
            channels_last: u64::from(geometry.channels_last),
            adaptive: u64::from(adaptive),
            height: window(0),
            width: window(1),
            channels: WideDivider::new(geometry.channels),
            input_height: WideDivider::new(input[0]),
            input_width: WideDivider::new(input[1]),
            output_height: WideDivider::new(output[0]),
            output_width: WideDivider::new(output[1]),
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct MaxPool2dParams {
    input: u64,
    output: u64,
    indices: u64,
    geometry: Pool2d,
}
// SAFETY: repr(C), as the struct of kernels/pool2d.cu.
unsafe impl Params for MaxPool2dParams {}

#[repr(C)]
#[derive(Clone, Copy)]
struct MaxPool2dBackwardParams {
    grad_output: u64,
    indices: u64,
    grad_input: u64,
    geometry: Pool2d,
}
// SAFETY: repr(C), as the struct of kernels/pool2d.cu.
unsafe impl Params for MaxPool2dBackwardParams {}

#[repr(C)]
#[derive(Clone, Copy)]
struct AvgPool2dParams {
    input: u64,
    output: u64,
    geometry: Pool2d,
}
// SAFETY: repr(C), as the struct of kernels/pool2d.cu.
unsafe impl Params for AvgPool2dParams {}

const MAX: Family<MaxPool2dParams> = Family::new(Module::Pool2d, "max_pool2d", FLOATS);
const MAX_BACKWARD: Family<MaxPool2dBackwardParams> = Family::new(Module::Pool2d, "max_pool2d_backward", FLOATS);
const AVG: Family<AvgPool2dParams> = Family::new(Module::Pool2d, "avg_pool2d", FLOATS);
const AVG_BACKWARD: Family<AvgPool2dParams> = Family::new(Module::Pool2d, "avg_pool2d_backward", FLOATS);

pub(super) fn table() -> Vec<Entry> {
    [MAX.entries(), MAX_BACKWARD.entries(), AVG.entries(), AVG_BACKWARD.entries()].concat()
}

/// Elements of input and output.
fn sizes(geometry: &ops::Pool2d) -> (usize, usize) {
    let planes = geometry.batch * geometry.channels;
    (planes * geometry.input[0] * geometry.input[1], planes * geometry.output[0] * geometry.output[1])
}

/// An error where there are windows and nothing under them.
fn expect_input(op: &str, geometry: &ops::Pool2d) -> Result<()> {
    let (input, output) = sizes(geometry);
    if input > 0 || output == 0 {
        return Ok(());
    }
    Err(Error::expected(Code::Shape, op, "windows that reach into the input", format!("{:?}", geometry.input)))
}

pub(super) fn max_pool2d(
    cuda: &Cuda,
    input: CudaSlice<'_>,
    geometry: &ops::Pool2d,
    output: &CudaSliceMut<'_>,
    indices: &CudaSliceMut<'_>,
) -> Result<()> {
    let ((in_len, out_len), dtype) = (sizes(geometry), input.dtype());
    expect_input("maxPool2d", geometry)?;
    expect_dtype("maxPool2d", dtype, output.dtype())?;
    expect_dtype("maxPool2d", DType::I64, indices.dtype())?;
    expect_len("maxPool2d", "the input", in_len, input.len())?;
    expect_len("maxPool2d", "the output", out_len, output.len())?;
    expect_len("maxPool2d", "the indices", out_len, indices.len())?;
    if out_len == 0 {
        return Ok(());
    }
    let (input, output, indices) = (input.pointer(), output.pointer(), indices.pointer());
    let params = MaxPool2dParams { input, output, indices, geometry: Pool2d::new(geometry, false) };
    MAX.launch(cuda, "maxPool2d", dtype, walk(out_len), &params)
}

pub(super) fn max_pool2d_backward(
    cuda: &Cuda,
    grad_output: CudaSlice<'_>,
    indices: CudaSlice<'_>,
    geometry: &ops::Pool2d,
    grad_input: &CudaSliceMut<'_>,
) -> Result<()> {
    let ((in_len, out_len), dtype) = (sizes(geometry), grad_output.dtype());
    expect_dtype("maxPool2d", dtype, grad_input.dtype())?;
    expect_dtype("maxPool2d", DType::I64, indices.dtype())?;
    expect_len("maxPool2d", "gradOutput", out_len, grad_output.len())?;
    expect_len("maxPool2d", "the indices", out_len, indices.len())?;
    expect_len("maxPool2d", "gradInput", in_len, grad_input.len())?;
    if in_len == 0 {
        return Ok(());
    }
    let (grad_output, indices, grad_input) = (grad_output.pointer(), indices.pointer(), grad_input.pointer());
    let params = MaxPool2dBackwardParams { grad_output, indices, grad_input, geometry: Pool2d::new(geometry, false) };
    MAX_BACKWARD.launch(cuda, "maxPool2d", dtype, walk(in_len), &params)
}

pub(super) fn average(
    cuda: &Cuda,
    input: CudaSlice<'_>,
    geometry: &ops::Pool2d,
    adaptive: bool,
    output: &CudaSliceMut<'_>,
) -> Result<()> {
    let ((in_len, out_len), dtype) = (sizes(geometry), input.dtype());
    expect_dtype("avgPool2d", dtype, output.dtype())?;
    expect_len("avgPool2d", "the input", in_len, input.len())?;
    expect_len("avgPool2d", "the output", out_len, output.len())?;
    if out_len == 0 {
        return Ok(());
    }
    if adaptive && geometry.output == [1, 1] {
        return reduce::sum(cuda, input, &mean_of_planes(geometry), output);
    }
    let params =
        AvgPool2dParams { input: input.pointer(), output: output.pointer(), geometry: Pool2d::new(geometry, adaptive) };
    AVG.launch(cuda, "avgPool2d", dtype, walk(out_len), &params)
}

/// Global average pooling: long sums, which many threads share.
fn mean_of_planes(geometry: &ops::Pool2d) -> Reduction {
    let (channels, positions) = (geometry.channels, geometry.input[0] * geometry.input[1]);
    let (plane, step) = if geometry.channels_last { (1, channels) } else { (positions, 1) };
    Reduction {
        kept: vec![geometry.batch, channels],
        kept_strides: vec![channels * positions, plane],
        reduced: vec![positions],
        reduced_strides: vec![step],
        scale: 1.0 / positions as f64,
    }
}

pub(super) fn average_backward(
    cuda: &Cuda,
    grad_output: CudaSlice<'_>,
    geometry: &ops::Pool2d,
    adaptive: bool,
    grad_input: &CudaSliceMut<'_>,
) -> Result<()> {
    let ((in_len, out_len), dtype) = (sizes(geometry), grad_output.dtype());
    expect_dtype("avgPool2d", dtype, grad_input.dtype())?;
    expect_len("avgPool2d", "gradOutput", out_len, grad_output.len())?;
    expect_len("avgPool2d", "gradInput", in_len, grad_input.len())?;
    if in_len == 0 {
        return Ok(());
    }
    let (input, output) = (grad_output.pointer(), grad_input.pointer());
    let params = AvgPool2dParams { input, output, geometry: Pool2d::new(geometry, adaptive) };
    AVG_BACKWARD.launch(cuda, "avgPool2d", dtype, walk(in_len), &params)
}
