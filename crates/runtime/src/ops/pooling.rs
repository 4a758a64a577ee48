//! Two-dimensional pooling. Results have the format of the input; gradients that of the output's gradient.

use crate::device::run;
use crate::tensor::Tensor;
use syncbn_core::ops::Pool2d;
use syncbn_core::{Code, DType, Error, MemoryFormat, Ops, Result};

/// How the window moves over the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolOptions {
    /// Size of the window, at least 1.
    pub kernel: [usize; 2],
    /// Steps, at least 1.
    pub stride: [usize; 2],
    /// Padding on each side, at most half of the window.
    pub padding: [usize; 2],
}

fn sizes(op: &str, shape: &[usize]) -> Result<[usize; 4]> {
    shape.try_into().map_err(|_| Error::expected(Code::Shape, op, "4-D input (N, C, H, W)", format!("shape {shape:?}")))
}

fn geometry(op: &str, shape: &[usize], options: PoolOptions, format: MemoryFormat) -> Result<Pool2d> {
    let PoolOptions { kernel, stride, padding } = options;
    let [batch, channels, height, width] = sizes(op, shape)?;
    let sound = |i: usize| kernel[i] > 0 && stride[i] > 0 && 2 * padding[i] <= kernel[i];
    if !(sound(0) && sound(1)) {
        let expected = "kernel and stride of at least 1, padding of at most half the kernel";
        let got = format!("kernel {kernel:?}, stride {stride:?}, padding {padding:?}");
        return Err(Error::expected(Code::Argument, op, expected, got));
    }
    if height + 2 * padding[0] < kernel[0] || width + 2 * padding[1] < kernel[1] {
        let expected = format!("a window of {kernel:?} that fits the padded input");
        return Err(Error::expected(Code::Shape, op, expected, format!("{shape:?}, padding {padding:?}")));
    }
    let size = |input: usize, i: usize| (input + 2 * padding[i] - kernel[i]) / stride[i] + 1;
    let channels_last = format == MemoryFormat::ChannelsLast;
    let output = [size(height, 0), size(width, 1)];
    Ok(Pool2d { batch, channels, input: [height, width], output, kernel, stride, padding, channels_last })
}

fn adaptive_geometry(shape: &[usize], output: [usize; 2], format: MemoryFormat) -> Result<Pool2d> {
    let [batch, channels, height, width] = sizes("adaptiveAvgPool2d", shape)?;
    if output.contains(&0) || height == 0 || width == 0 {
        let got = format!("output {output:?} of input {shape:?}");
        return Err(Error::expected(Code::Shape, "adaptiveAvgPool2d", "sizes of at least 1", got));
    }
    let channels_last = format == MemoryFormat::ChannelsLast;
    let (kernel, stride, padding) = ([1, 1], [1, 1], [0, 0]);
    Ok(Pool2d { batch, channels, input: [height, width], output, kernel, stride, padding, channels_last })
}

fn output_shape(geometry: &Pool2d) -> [usize; 4] {
    [geometry.batch, geometry.channels, geometry.output[0], geometry.output[1]]
}

/// Largest value of each window, and its position h·W + w (int64).
pub fn max_pool2d(x: &Tensor, options: PoolOptions) -> Result<(Tensor, Tensor)> {
    x.expect_float("maxPool2d")?;
    let geometry = geometry("maxPool2d", x.shape(), options, x.format())?;
    let output = x.new_empty("maxPool2d", &output_shape(&geometry), x.dtype(), x.format())?;
    let indices = x.new_empty("maxPool2d", &output_shape(&geometry), DType::I64, x.format())?;
    run!("maxPool2d"; read(x = x); write(y = &output, indices = &indices); device =>
        device.max_pool2d(x, &geometry, y, indices))?;
    Ok((output, indices))
}

/// dL/dx of [`max_pool2d`], in the format of `indices`.
pub fn max_pool2d_backward(
    grad_output: &Tensor,
    indices: &Tensor,
    input_shape: &[usize],
    options: PoolOptions,
) -> Result<Tensor> {
    grad_output.expect_float("maxPool2d")?;
    indices.expect_dtype("maxPool2d", "indices", DType::I64)?;
    let geometry = geometry("maxPool2d", input_shape, options, indices.format())?;
    indices.expect_shape("maxPool2d indices", &output_shape(&geometry))?;
    grad_output.expect_shape("maxPool2d gradOutput", &output_shape(&geometry))?;
    let grad_output = grad_output.to_format(indices.format())?;
    let grad_input = indices.new_empty("maxPool2d", input_shape, grad_output.dtype(), indices.format())?;
    run!("maxPool2d"; read(dy = &grad_output, indices = indices); write(dx = &grad_input); device =>
        device.max_pool2d_backward(dy, indices, &geometry, dx))?;
    Ok(grad_input)
}

/// Mean of each window, padding counted as zeros.
pub fn avg_pool2d(x: &Tensor, options: PoolOptions) -> Result<Tensor> {
    x.expect_float("avgPool2d")?;
    let geometry = geometry("avgPool2d", x.shape(), options, x.format())?;
    let output = x.new_empty("avgPool2d", &output_shape(&geometry), x.dtype(), x.format())?;
    run!("avgPool2d"; read(x = x); write(y = &output); device => device.avg_pool2d(x, &geometry, y))?;
    Ok(output)
}

/// dL/dx of [`avg_pool2d`].
pub fn avg_pool2d_backward(grad_output: &Tensor, input_shape: &[usize], options: PoolOptions) -> Result<Tensor> {
    grad_output.expect_float("avgPool2d")?;
    let geometry = geometry("avgPool2d", input_shape, options, grad_output.format())?;
    grad_output.expect_shape("avgPool2d gradOutput", &output_shape(&geometry))?;
    let grad_input = grad_output.new_empty("avgPool2d", input_shape, grad_output.dtype(), grad_output.format())?;
    run!("avgPool2d"; read(dy = grad_output); write(dx = &grad_input); device =>
        device.avg_pool2d_backward(dy, &geometry, dx))?;
    Ok(grad_input)
}

/// Mean of windows that tile the input into `output` positions.
pub fn adaptive_avg_pool2d(x: &Tensor, output: [usize; 2]) -> Result<Tensor> {
    x.expect_float("adaptiveAvgPool2d")?;
    let geometry = adaptive_geometry(x.shape(), output, x.format())?;
    let output = x.new_empty("adaptiveAvgPool2d", &output_shape(&geometry), x.dtype(), x.format())?;
    run!("adaptiveAvgPool2d"; read(x = x); write(y = &output); device => device.adaptive_avg_pool2d(x, &geometry, y))?;
    Ok(output)
}

/// dL/dx of [`adaptive_avg_pool2d`].
pub fn adaptive_avg_pool2d_backward(grad_output: &Tensor, input_shape: &[usize]) -> Result<Tensor> {
    grad_output.expect_float("adaptiveAvgPool2d")?;
    let [_, _, height, width] = sizes("adaptiveAvgPool2d", grad_output.shape())?;
    let geometry = adaptive_geometry(input_shape, [height, width], grad_output.format())?;
    grad_output.expect_shape("adaptiveAvgPool2d gradOutput", &output_shape(&geometry))?;
    let grad_input =
        grad_output.new_empty("adaptiveAvgPool2d", input_shape, grad_output.dtype(), grad_output.format())?;
    run!("adaptiveAvgPool2d"; read(dy = grad_output); write(dx = &grad_input); device =>
        device.adaptive_avg_pool2d_backward(dy, &geometry, dx))?;
    Ok(grad_input)
}
