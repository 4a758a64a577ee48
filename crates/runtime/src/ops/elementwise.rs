//! Arithmetic on elements.

use crate::device::run;
use crate::layout::{broadcast_shape, broadcast_strides};
use crate::tensor::Tensor;
use syncbn_core::ops::{BinaryOp, Broadcast, Restride};
use syncbn_core::{Code, Error, MemoryFormat, Ops, Result};

fn name(op: BinaryOp) -> &'static str {
    match op {
        BinaryOp::Add => "add",
        BinaryOp::Sub => "sub",
        BinaryOp::Mul => "mul",
        BinaryOp::Div => "div",
    }
}

/// Dimensions from slowest to fastest in memory.
fn memory_order(format: MemoryFormat, rank: usize) -> Vec<usize> {
    if format.is_channels_last() { [0].into_iter().chain(2..rank).chain([1]).collect() } else { (0..rank).collect() }
}

/// a ∘ b with broadcasting. The result has the format of the first operand that is not contiguous and has its rank.
pub fn binary(op: BinaryOp, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    a.expect_float(name(op))?;
    b.expect_dtype(name(op), "operands", a.dtype())?;
    let shape = broadcast_shape(name(op), a.shape(), b.shape())?;
    let format = [a, b]
        .into_iter()
        .find(|operand| operand.shape().len() == shape.len() && operand.format() != MemoryFormat::Contiguous)
        .map_or(MemoryFormat::Contiguous, Tensor::format);
    let output = a.new_empty(name(op), &shape, a.dtype(), format)?;
    let order = memory_order(format, shape.len());
    let pick = |from: &[usize]| order.iter().map(|&dimension| from[dimension]).collect::<Vec<_>>();
    let strides = |operand: &Tensor| pick(&broadcast_strides(operand.shape(), &operand.strides(), &shape));
    let layout = Broadcast { shape: pick(&shape), a: strides(a), b: strides(b) };
    if output.numel() > 0 {
        run!(name(op); read(a = a, b = b); write(y = &output); device => device.binary(op, a, b, &layout, y))?;
    }
    Ok(output)
}

/// a ∘ scalar.
pub fn binary_scalar(op: BinaryOp, a: &Tensor, scalar: f64) -> Result<Tensor> {
    a.expect_float(name(op))?;
    let output = a.empty_like(name(op))?;
    run!(name(op); read(a = a); write(y = &output); device => device.binary_scalar(op, a, scalar, y))?;
    Ok(output)
}

/// Repeats `a` to `shape`, to which it broadcasts.
pub fn expand(a: &Tensor, shape: &[usize]) -> Result<Tensor> {
    if broadcast_shape("expand", a.shape(), shape)? != shape {
        let expected = format!("a shape that broadcasts to {shape:?}");
        return Err(Error::expected(Code::Shape, "expand", expected, format!("{:?}", a.shape())));
    }
    let output = a.new_empty("expand", shape, a.dtype(), MemoryFormat::Contiguous)?;
    let input = broadcast_strides(a.shape(), &a.strides(), shape);
    let layout = Restride { shape: shape.to_vec(), input, output: output.strides() };
    if output.numel() > 0 {
        run!("expand"; read(a = a); write(y = &output); device => device.restride(a, &layout, y))?;
    }
    Ok(output)
}

/// accumulator += addend, of one shape and type.
pub fn add_in_place(accumulator: &Tensor, addend: &Tensor) -> Result<()> {
    accumulator.expect_float("add_")?;
    addend.expect_dtype("add_", "an addend", accumulator.dtype())?;
    addend.expect_shape("add_", accumulator.shape())?;
    let addend = addend.to_format(accumulator.format())?;
    run!("add_"; read(addend = &addend); write(sum = accumulator); device => device.add_in_place(sum, addend))?;
    accumulator.storage().bump_version();
    Ok(())
}

/// Every element becomes `value`.
pub fn fill_in_place(target: &Tensor, value: f64) -> Result<()> {
    run!("fill_"; read(); write(target = target); device => device.fill(target, value))?;
    target.storage().bump_version();
    Ok(())
}

/// max(x, 0).
pub fn relu(x: &Tensor) -> Result<Tensor> {
    x.expect_float("relu")?;
    let output = x.empty_like("relu")?;
    run!("relu"; read(x = x); write(y = &output); device => device.relu(x, y))?;
    Ok(output)
}

/// The gradient of [`relu`] from its output.
pub fn relu_backward(grad_output: &Tensor, output: &Tensor) -> Result<Tensor> {
    output.expect_float("relu")?;
    grad_output.expect_dtype("relu", "gradOutput", output.dtype())?;
    grad_output.expect_shape("relu", output.shape())?;
    let grad_output = grad_output.to_format(output.format())?;
    let grad_input = output.empty_like("relu")?;
    run!("relu"; read(dy = &grad_output, y = output); write(dx = &grad_input); device => device.relu_backward(dy, y, dx))?;
    Ok(grad_input)
}
