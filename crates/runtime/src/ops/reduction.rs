//! Sums, means and positions of maxima.

use crate::device::run;
use crate::layout::{along, broadcast_shape, dimension};
use crate::tensor::Tensor;
use syncbn_core::ops::Reduction;
use syncbn_core::{Code, DType, Error, MemoryFormat, Ops, Result};

/// Sums the dimensions where `reduced` is true and multiplies by `scale`; the result has `shape`.
fn reduce(a: &Tensor, reduced: &[bool], shape: &[usize], scale: f64) -> Result<Tensor> {
    let strides = a.strides();
    let pick = |from: &[usize], which: bool| {
        from.iter().zip(reduced).filter(|(_, reduced)| **reduced == which).map(|(&value, _)| value).collect::<Vec<_>>()
    };
    let layout = Reduction {
        kept: pick(a.shape(), false),
        kept_strides: pick(&strides, false),
        reduced: pick(a.shape(), true),
        reduced_strides: pick(&strides, true),
        scale,
    };
    let output = a.new_empty("sum", shape, a.dtype(), MemoryFormat::Contiguous)?;
    run!("sum"; read(a = a); write(y = &output); device => device.sum(a, &layout, y))?;
    Ok(output)
}

/// Sum, or mean, over `dims` (all without), which disappear from the shape.
pub fn sum_dims(a: &Tensor, dims: Option<&[i64]>, mean: bool) -> Result<Tensor> {
    let op = if mean { "mean" } else { "sum" };
    a.expect_float(op)?;
    let mut reduced = vec![dims.is_none(); a.shape().len()];
    for &dim in dims.unwrap_or_default() {
        let index = dimension(op, dim, a.shape().len())?;
        if std::mem::replace(&mut reduced[index], true) {
            return Err(Error::expected(Code::Argument, op, "each dimension once", format!("{dim} twice")));
        }
    }
    let sizes = a.shape().iter().zip(&reduced);
    let (mut shape, mut count) = (vec![], 1);
    sizes.for_each(|(&size, &reduced)| if reduced { count *= size } else { shape.push(size) });
    reduce(a, &reduced, &shape, if mean { 1.0 / count as f64 } else { 1.0 })
}

/// The gradient of a broadcast: sums so that the result has `shape`, which broadcasts to that of `a`.
pub fn sum_to(a: &Tensor, shape: &[usize]) -> Result<Tensor> {
    a.expect_float("sum")?;
    if shape == a.shape() {
        return Ok(a.clone());
    }
    if broadcast_shape("sum", shape, a.shape())? != a.shape() {
        let expected = format!("a shape that broadcasts to {:?}", a.shape());
        return Err(Error::expected(Code::Shape, "sum", expected, format!("{shape:?}")));
    }
    let missing = a.shape().len() - shape.len();
    let repeated = |i: usize| i < missing || shape[i - missing] == 1 && a.shape()[i] != 1;
    let reduced: Vec<bool> = (0..a.shape().len()).map(repeated).collect();
    reduce(a, &reduced, shape, 1.0)
}

/// Index (int64) of the first maximum along `dim`, which disappears from the shape; NaN counts as largest.
pub fn argmax(a: &Tensor, dim: i64) -> Result<Tensor> {
    a.expect_float("argmax")?;
    let dim = dimension("argmax", dim, a.shape().len())?;
    if a.shape()[dim] == 0 {
        return Err(Error::expected(
            Code::Shape,
            "argmax",
            "a dimension that is not empty",
            format!("{:?}", a.shape()),
        ));
    }
    let a = a.contiguous()?;
    let shape = [&a.shape()[..dim], &a.shape()[dim + 1..]].concat();
    let output = a.new_empty("argmax", &shape, DType::I64, MemoryFormat::Contiguous)?;
    let along = along(a.shape(), dim);
    run!("argmax"; read(a = &a); write(y = &output); device => device.argmax(a, along, y))?;
    Ok(output)
}
