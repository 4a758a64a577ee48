//! Convolution, pooling and losses.

use crate::convert::{format, pair, sizes};
use crate::error::{Result, checked, to_js};
use crate::tensor::{BindingTensor, handle, optional};
use napi_derive::napi;
use syncbn_core::ops::LossReduction;
use syncbn_core::{Code, Error};
use syncbn_runtime::ops::{self, ConvolutionOptions, PoolOptions};

fn convolution(stride: &[i64], padding: &[i64], groups: i64) -> Result<ConvolutionOptions> {
    let groups = sizes("conv2d", &[groups])?[0];
    Ok(ConvolutionOptions { stride: pair("conv2d", stride)?, padding: pair("conv2d", padding)?, groups })
}

#[napi(catch_unwind, js_name = "conv2d")]
pub fn conv2d(
    x: &BindingTensor,
    weight: &BindingTensor,
    bias: Option<&BindingTensor>,
    stride: Vec<i64>,
    padding: Vec<i64>,
    groups: i64,
) -> Result<BindingTensor> {
    let options = convolution(&stride, &padding, groups)?;
    handle(ops::conv2d(&x.get()?, &weight.get()?, optional(bias)?.as_ref(), options))
}

#[napi(catch_unwind, js_name = "conv2dBackwardInput")]
pub fn conv2d_backward_input(
    grad_output: &BindingTensor,
    weight: &BindingTensor,
    input_shape: Vec<i64>,
    input_memory_format: String,
    stride: Vec<i64>,
    padding: Vec<i64>,
    groups: i64,
) -> Result<BindingTensor> {
    let (options, shape) = (convolution(&stride, &padding, groups)?, sizes("conv2d", &input_shape)?);
    let format = format(&input_memory_format)?;
    handle(ops::conv2d_backward_input(&grad_output.get()?, &weight.get()?, &shape, format, options))
}

#[napi(catch_unwind, js_name = "conv2dBackwardWeight")]
pub fn conv2d_backward_weight(
    grad_output: &BindingTensor,
    x: &BindingTensor,
    weight_shape: Vec<i64>,
    stride: Vec<i64>,
    padding: Vec<i64>,
    groups: i64,
) -> Result<BindingTensor> {
    let (options, shape) = (convolution(&stride, &padding, groups)?, sizes("conv2d", &weight_shape)?);
    handle(ops::conv2d_backward_weight(&grad_output.get()?, &x.get()?, &shape, options))
}

fn pooling(op: &str, kernel: &[i64], stride: &[i64], padding: &[i64]) -> Result<PoolOptions> {
    Ok(PoolOptions { kernel: pair(op, kernel)?, stride: pair(op, stride)?, padding: pair(op, padding)? })
}

/// Result of [`max_pool2d`].
#[napi(object, object_from_js = false)]
pub struct BindingMaxPool {
    pub output: BindingTensor,
    pub indices: BindingTensor,
}

#[napi(catch_unwind, js_name = "maxPool2d")]
pub fn max_pool2d(x: &BindingTensor, kernel: Vec<i64>, stride: Vec<i64>, padding: Vec<i64>) -> Result<BindingMaxPool> {
    let options = pooling("maxPool2d", &kernel, &stride, &padding)?;
    let (output, indices) = checked(ops::max_pool2d(&x.get()?, options))?;
    Ok(BindingMaxPool { output: output.into(), indices: indices.into() })
}

#[napi(catch_unwind, js_name = "maxPool2dBackward")]
pub fn max_pool2d_backward(
    grad_output: &BindingTensor,
    indices: &BindingTensor,
    input_shape: Vec<i64>,
    kernel: Vec<i64>,
    stride: Vec<i64>,
    padding: Vec<i64>,
) -> Result<BindingTensor> {
    let options = pooling("maxPool2d", &kernel, &stride, &padding)?;
    let shape = sizes("maxPool2d", &input_shape)?;
    handle(ops::max_pool2d_backward(&grad_output.get()?, &indices.get()?, &shape, options))
}

#[napi(catch_unwind, js_name = "avgPool2d")]
pub fn avg_pool2d(x: &BindingTensor, kernel: Vec<i64>, stride: Vec<i64>, padding: Vec<i64>) -> Result<BindingTensor> {
    handle(ops::avg_pool2d(&x.get()?, pooling("avgPool2d", &kernel, &stride, &padding)?))
}

#[napi(catch_unwind, js_name = "avgPool2dBackward")]
pub fn avg_pool2d_backward(
    grad_output: &BindingTensor,
    input_shape: Vec<i64>,
    kernel: Vec<i64>,
    stride: Vec<i64>,
    padding: Vec<i64>,
) -> Result<BindingTensor> {
    let options = pooling("avgPool2d", &kernel, &stride, &padding)?;
    handle(ops::avg_pool2d_backward(&grad_output.get()?, &sizes("avgPool2d", &input_shape)?, options))
}

#[napi(catch_unwind, js_name = "adaptiveAvgPool2d")]
pub fn adaptive_avg_pool2d(x: &BindingTensor, output_size: Vec<i64>) -> Result<BindingTensor> {
    handle(ops::adaptive_avg_pool2d(&x.get()?, pair("adaptiveAvgPool2d", &output_size)?))
}

#[napi(catch_unwind, js_name = "adaptiveAvgPool2dBackward")]
pub fn adaptive_avg_pool2d_backward(grad_output: &BindingTensor, input_shape: Vec<i64>) -> Result<BindingTensor> {
    handle(ops::adaptive_avg_pool2d_backward(&grad_output.get()?, &sizes("adaptiveAvgPool2d", &input_shape)?))
}

#[napi(catch_unwind)]
pub fn softmax(x: &BindingTensor, dim: i64, log: bool) -> Result<BindingTensor> {
    handle(ops::softmax(&x.get()?, dim, log))
}

#[napi(catch_unwind)]
pub fn softmax_backward(
    grad_output: &BindingTensor,
    output: &BindingTensor,
    dim: i64,
    log: bool,
) -> Result<BindingTensor> {
    handle(ops::softmax_backward(&grad_output.get()?, &output.get()?, dim, log))
}

fn reduction(name: &str) -> Result<LossReduction> {
    match name {
        "none" => Ok(LossReduction::None),
        "sum" => Ok(LossReduction::Sum),
        "mean" => Ok(LossReduction::Mean),
        other => {
            Err(to_js(Error::expected(Code::Argument, "reduction", "'none', 'sum' or 'mean'", format!("'{other}'"))))
        }
    }
}

/// Result of [`cross_entropy`].
#[napi(object, object_from_js = false)]
pub struct BindingCrossEntropy {
    pub loss: BindingTensor,
    pub log_probs: BindingTensor,
    pub counted: BindingTensor,
}

#[napi(catch_unwind)]
pub fn cross_entropy(
    logits: &BindingTensor,
    targets: &BindingTensor,
    ignore_index: i64,
    reduction_name: String,
) -> Result<BindingCrossEntropy> {
    let reduction = reduction(&reduction_name)?;
    let result = checked(ops::cross_entropy(&logits.get()?, &targets.get()?, ignore_index, reduction))?;
    Ok(BindingCrossEntropy {
        loss: result.loss.into(),
        log_probs: result.log_probs.into(),
        counted: result.counted.into(),
    })
}

#[napi(catch_unwind)]
pub fn cross_entropy_backward(
    grad_loss: &BindingTensor,
    log_probs: &BindingTensor,
    targets: &BindingTensor,
    counted: &BindingTensor,
    ignore_index: i64,
    reduction_name: String,
) -> Result<BindingTensor> {
    let (grad_loss, log_probs) = (grad_loss.get()?, log_probs.get()?);
    let (targets, counted, reduction) = (targets.get()?, counted.get()?, reduction(&reduction_name)?);
    handle(ops::cross_entropy_backward(&grad_loss, &log_probs, &targets, &counted, ignore_index, reduction))
}
