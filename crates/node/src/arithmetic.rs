//! Arithmetic, reductions and matrix products.

use crate::convert::sizes;
use crate::error::{Result, to_js};
use crate::tensor::{BindingTensor, handle, optional};
use napi_derive::napi;
use syncbn_core::ops::BinaryOp;
use syncbn_core::{Code, Error};
use syncbn_runtime::ops;

fn operation(name: &str) -> Result<BinaryOp> {
    match name {
        "add" => Ok(BinaryOp::Add),
        "sub" => Ok(BinaryOp::Sub),
        "mul" => Ok(BinaryOp::Mul),
        "div" => Ok(BinaryOp::Div),
        other => Err(to_js(Error::expected(Code::Argument, "binary", "add, sub, mul or div", other))),
    }
}

#[napi(catch_unwind)]
pub fn binary(op: String, a: &BindingTensor, b: &BindingTensor) -> Result<BindingTensor> {
    handle(ops::binary(operation(&op)?, &a.get()?, &b.get()?))
}

#[napi(catch_unwind)]
pub fn binary_scalar(op: String, a: &BindingTensor, scalar: f64) -> Result<BindingTensor> {
    handle(ops::binary_scalar(operation(&op)?, &a.get()?, scalar))
}

#[napi(catch_unwind)]
pub fn sum_dims(a: &BindingTensor, dims: Option<Vec<i64>>, mean: bool) -> Result<BindingTensor> {
    handle(ops::sum_dims(&a.get()?, dims.as_deref(), mean))
}

#[napi(catch_unwind)]
pub fn sum_to(a: &BindingTensor, shape: Vec<i64>) -> Result<BindingTensor> {
    handle(ops::sum_to(&a.get()?, &sizes("sum", &shape)?))
}

#[napi(catch_unwind)]
pub fn expand(a: &BindingTensor, shape: Vec<i64>) -> Result<BindingTensor> {
    handle(ops::expand(&a.get()?, &sizes("expand", &shape)?))
}

#[napi(catch_unwind)]
pub fn argmax(a: &BindingTensor, dim: i64) -> Result<BindingTensor> {
    handle(ops::argmax(&a.get()?, dim))
}

#[napi(catch_unwind)]
pub fn matmul(a: &BindingTensor, b: &BindingTensor, transpose_a: bool, transpose_b: bool) -> Result<BindingTensor> {
    handle(ops::matmul(&a.get()?, &b.get()?, transpose_a, transpose_b))
}

#[napi(catch_unwind)]
pub fn linear(x: &BindingTensor, weight: &BindingTensor, bias: Option<&BindingTensor>) -> Result<BindingTensor> {
    handle(ops::linear(&x.get()?, &weight.get()?, optional(bias)?.as_ref()))
}

#[napi(catch_unwind)]
pub fn relu(x: &BindingTensor) -> Result<BindingTensor> {
    handle(ops::relu(&x.get()?))
}

#[napi(catch_unwind)]
pub fn relu_backward(grad_output: &BindingTensor, output: &BindingTensor) -> Result<BindingTensor> {
    handle(ops::relu_backward(&grad_output.get()?, &output.get()?))
}
