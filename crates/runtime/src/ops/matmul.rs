//! Matrix products.

use crate::device::run;
use crate::tensor::Tensor;
use syncbn_core::ops::{Along, Matmul};
use syncbn_core::{Code, Error, MemoryFormat, Ops, Result};

/// The last two sizes, swapped if the matrix is to be read transposed.
fn matrix(op: &str, tensor: &Tensor, transposed: bool) -> Result<(Vec<usize>, usize, usize)> {
    let [batch @ .., rows, columns] = tensor.shape() else {
        return Err(Error::expected(Code::Shape, op, "at least 2-D operands", format!("shape {:?}", tensor.shape())));
    };
    Ok(if transposed { (batch.to_vec(), *columns, *rows) } else { (batch.to_vec(), *rows, *columns) })
}

/// A·B for (…, m, k) and (k, n) or (…, k, n) with equal leading sizes; the flags read an operand transposed.
pub fn matmul(a: &Tensor, b: &Tensor, transpose_a: bool, transpose_b: bool) -> Result<Tensor> {
    a.expect_float("matmul")?;
    b.expect_dtype("matmul", "operands", a.dtype())?;
    let (batch, m, k) = matrix("matmul", a, transpose_a)?;
    let (b_batch, b_rows, n) = matrix("matmul", b, transpose_b)?;
    if b_rows != k || !(b_batch.is_empty() || b_batch == batch) {
        let expected = format!(
            "shapes (…, m, k) and (k, n) or (…, k, n){}",
            if transpose_a || transpose_b { ", transposed as asked" } else { "" }
        );
        return Err(Error::expected(Code::Shape, "matmul", expected, format!("{:?} and {:?}", a.shape(), b.shape())));
    }
    let output = a.new_empty("matmul", &[&batch[..], &[m, n]].concat(), a.dtype(), MemoryFormat::Contiguous)?;
    let b_batch_stride = if b_batch.is_empty() { 0 } else { k * n };
    let products: usize = batch.iter().product();
    // Products that share B and read A as it lies are one product with more rows.
    let joined = b_batch_stride == 0 && !transpose_a;
    let (batch, m) = if joined { (1, m * products) } else { (products, m) };
    let geometry = Matmul { batch, m, n, k, transpose_a, transpose_b, b_batch_stride, accumulate: false };
    if output.numel() > 0 {
        let (a, b) = (a.contiguous()?, b.contiguous()?);
        run!("matmul"; read(a = &a, b = &b); write(c = &output); device => device.matmul(a, b, geometry, c))?;
    }
    Ok(output)
}

/// x·weightᵀ + bias: (…, in), (out, in), (out) → (…, out).
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    x.expect_float("linear")?;
    weight.expect_dtype("linear", "a weight", x.dtype())?;
    weight.expect_rank("linear", "weight (out, in)", 2)?;
    let (out_features, in_features) = (weight.shape()[0], weight.shape()[1]);
    let Some((&last, batch)) = x.shape().split_last().filter(|(last, _)| **last == in_features) else {
        let expected = format!("input (…, {in_features}) for a weight of shape {:?}", weight.shape());
        return Err(Error::expected(Code::Shape, "linear", expected, format!("{:?}", x.shape())));
    };
    if let Some(bias) = bias {
        bias.expect_dtype("linear", "a bias", x.dtype())?;
        bias.expect_shape("linear bias", &[out_features])?;
    }
    let rows: usize = batch.iter().product();
    let output = matmul(&x.reshape(&[rows, last])?, weight, false, true)?;
    if let Some(bias) = bias {
        let along = Along { outer: rows, size: out_features, inner: 1 };
        run!("linear"; read(bias = bias); write(y = &output); device => device.add_bias(y, bias, along))?;
    }
    output.reshape(&[batch, &[out_features]].concat())
}
