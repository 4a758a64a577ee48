//! Two-dimensional convolution.

use crate::device::run;
use crate::tensor::Tensor;
use syncbn_core::ops::{Along, Conv2d};
use syncbn_core::{Code, Error, MemoryFormat, Ops, Result};

/// How the kernel moves over the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvolutionOptions {
    /// Steps, at least 1.
    pub stride: [usize; 2],
    /// Zeros on each side.
    pub padding: [usize; 2],
    /// Blocks of channels that do not see each other, at least 1.
    pub groups: usize,
}

/// Checks shapes (N, C, H, W) and (O, C/groups, KH, KW) and derives the output's.
fn geometry(input: &[usize], weight: &[usize], options: ConvolutionOptions, format: MemoryFormat) -> Result<Conv2d> {
    let ConvolutionOptions { stride, padding, groups } = options;
    let wrong = |expected: String, got: String| Err(Error::expected(Code::Shape, "conv2d", expected, got));
    let (&[batch, in_channels, height, width], &[out_channels, in_group, kh, kw]) = (input, weight) else {
        return wrong("4-D input and weight".into(), format!("{input:?} and {weight:?}"));
    };
    if stride.contains(&0) || groups == 0 {
        let got = format!("stride {stride:?}, groups {groups}");
        return Err(Error::expected(Code::Argument, "conv2d", "stride and groups of at least 1", got));
    }
    if in_group * groups != in_channels || out_channels % groups != 0 || out_channels == 0 || in_channels == 0 {
        let expected = format!("input channels = {groups} groups × weight's {in_group}, output channels divisible");
        return wrong(expected, format!("input {input:?}, weight {weight:?}"));
    }
    if kh == 0 || kw == 0 || height + 2 * padding[0] < kh || width + 2 * padding[1] < kw {
        return wrong(
            format!("a kernel of {kh}×{kw} that fits the padded input"),
            format!("{input:?}, padding {padding:?}"),
        );
    }
    let size = |input: usize, kernel: usize, i: usize| (input + 2 * padding[i] - kernel) / stride[i] + 1;
    let output = [size(height, kh, 0), size(width, kw, 1)];
    let channels_last = format == MemoryFormat::ChannelsLast;
    Ok(Conv2d {
        batch,
        in_channels,
        out_channels,
        input: [height, width],
        output,
        kernel: [kh, kw],
        stride,
        padding,
        groups,
        channels_last,
    })
}

fn output_shape(geometry: &Conv2d) -> [usize; 4] {
    [geometry.batch, geometry.out_channels, geometry.output[0], geometry.output[1]]
}

/// Cross-correlation plus bias: (N, C, H, W), (O, C/groups, KH, KW), (O) → (N, O, H', W'), in the input's format.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, options: ConvolutionOptions) -> Result<Tensor> {
    x.expect_float("conv2d")?;
    weight.expect_dtype("conv2d", "a weight", x.dtype())?;
    let geometry = geometry(x.shape(), weight.shape(), options, x.format())?;
    if let Some(bias) = bias {
        bias.expect_dtype("conv2d", "a bias", x.dtype())?;
        bias.expect_shape("conv2d bias", &[geometry.out_channels])?;
    }
    let output = x.new_empty("conv2d", &output_shape(&geometry), x.dtype(), x.format())?;
    let weight = weight.contiguous()?;
    run!("conv2d"; read(x = x, weight = &weight); write(y = &output); device => device.conv2d(x, weight, &geometry, y))?;
    if let Some(bias) = bias {
        let plane = geometry.output[0] * geometry.output[1];
        let (outer, inner) = if geometry.channels_last { (geometry.batch * plane, 1) } else { (geometry.batch, plane) };
        let along = Along { outer, size: geometry.out_channels, inner };
        run!("conv2d"; read(bias = bias); write(y = &output); device => device.add_bias(y, bias, along))?;
    }
    Ok(output)
}

/// dL/dx for an input of `input_shape` in `format`.
pub fn conv2d_backward_input(
    grad_output: &Tensor,
    weight: &Tensor,
    input_shape: &[usize],
    format: MemoryFormat,
    options: ConvolutionOptions,
) -> Result<Tensor> {
    weight.expect_float("conv2d")?;
    grad_output.expect_dtype("conv2d", "gradOutput", weight.dtype())?;
    let geometry = geometry(input_shape, weight.shape(), options, format)?;
    grad_output.expect_shape("conv2d gradOutput", &output_shape(&geometry))?;
    let (grad_output, weight) = (grad_output.to_format(format)?, weight.contiguous()?);
    let grad_input = weight.new_empty("conv2d", input_shape, weight.dtype(), format)?;
    run!("conv2d"; read(dy = &grad_output, weight = &weight); write(dx = &grad_input); device =>
        device.conv2d_backward_input(dy, weight, &geometry, dx))?;
    Ok(grad_input)
}

/// dL/dweight, contiguous.
pub fn conv2d_backward_weight(
    grad_output: &Tensor,
    x: &Tensor,
    weight_shape: &[usize],
    options: ConvolutionOptions,
) -> Result<Tensor> {
    x.expect_float("conv2d")?;
    grad_output.expect_dtype("conv2d", "gradOutput", x.dtype())?;
    let geometry = geometry(x.shape(), weight_shape, options, x.format())?;
    grad_output.expect_shape("conv2d gradOutput", &output_shape(&geometry))?;
    let grad_output = grad_output.to_format(x.format())?;
    let grad_weight = x.new_empty("conv2d", weight_shape, x.dtype(), MemoryFormat::Contiguous)?;
    run!("conv2d"; read(dy = &grad_output, x = x); write(dw = &grad_weight); device =>
        device.conv2d_backward_weight(dy, x, &geometry, dw))?;
    Ok(grad_weight)
}
