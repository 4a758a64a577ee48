//! Launchers of fill.cu, cast.cu, binary.cu and relu.cu.

use super::family::{
    FLOATS, FLOATS_AND_HALVES, Family, SizeFamily, expect_dtype, expect_len, suffix, walk, walk_vectors,
};
use super::space::{Dimensions, Space, WideDivider};
use crate::kernel_table::Entry;
use crate::launch::Params;
use crate::module::{Kernel, Module};
use crate::{Cuda, CudaSlice, CudaSliceMut};
use half::{bf16, f16};
use syncbn_core::ops::{Along, BinaryOp, Broadcast};
use syncbn_core::{DType, Result};

#[repr(C)]
#[derive(Clone, Copy)]
struct FillParams {
    output: u64,
    len: u64,
    bits: u64,
}
// SAFETY: repr(C), as the struct of kernels/fill.cu.
unsafe impl Params for FillParams {}

#[repr(C)]
#[derive(Clone, Copy)]
struct IncrementParams {
    counter: u64,
}
// SAFETY: repr(C), as the struct of kernels/fill.cu.
unsafe impl Params for IncrementParams {}

#[repr(C)]
#[derive(Clone, Copy)]
struct CastParams {
    input: u64,
    output: u64,
    len: u64,
}
// SAFETY: repr(C), as the struct of kernels/cast.cu.
unsafe impl Params for CastParams {}

#[repr(C)]
#[derive(Clone, Copy)]
struct BinaryParams {
    a: u64,
    b: u64,
    output: u64,
    len: u64,
    code: u32,
    unused: u32,
}
// SAFETY: repr(C), as the struct of kernels/binary.cu.
unsafe impl Params for BinaryParams {}

#[repr(C)]
#[derive(Clone, Copy)]
struct BinaryBroadcastParams {
    a: u64,
    b: u64,
    output: u64,
    len: u64,
    code: u32,
    unused: u32,
    space: Space<2>,
}
// SAFETY: repr(C), as the struct of kernels/binary.cu.
unsafe impl Params for BinaryBroadcastParams {}

#[repr(C)]
#[derive(Clone, Copy)]
struct BinaryScalarParams {
    a: u64,
    output: u64,
    len: u64,
    scalar: f64,
    code: u32,
    unused: u32,
}
// SAFETY: repr(C), as the struct of kernels/binary.cu.
unsafe impl Params for BinaryScalarParams {}

#[repr(C)]
#[derive(Clone, Copy)]
struct AddBiasParams {
    data: u64,
    bias: u64,
    len: u64,
    size: WideDivider,
    inner: WideDivider,
}
// SAFETY: repr(C), as the struct of kernels/binary.cu.
unsafe impl Params for AddBiasParams {}

#[repr(C)]
#[derive(Clone, Copy)]
struct ReluParams {
    input: u64,
    output: u64,
    len: u64,
}
// SAFETY: repr(C), as the struct of kernels/relu.cu.
unsafe impl Params for ReluParams {}

#[repr(C)]
#[derive(Clone, Copy)]
struct ReluBackwardParams {
    grad_output: u64,
    output: u64,
    grad_input: u64,
    len: u64,
}
// SAFETY: repr(C), as the struct of kernels/relu.cu.
unsafe impl Params for ReluBackwardParams {}

const FILL: SizeFamily<FillParams> = SizeFamily::new(Module::Fill, "fill");
const INCREMENT: Family<IncrementParams> = Family::new(Module::Fill, "increment", &[DType::I64]);
const BINARY: Family<BinaryParams> = Family::new(Module::Binary, "binary", FLOATS_AND_HALVES);
const BINARY_BROADCAST: Family<BinaryBroadcastParams> =
    Family::new(Module::Binary, "binary_broadcast", FLOATS_AND_HALVES);
const BINARY_SCALAR: Family<BinaryScalarParams> = Family::new(Module::Binary, "binary_scalar", FLOATS_AND_HALVES);
const ADD_BIAS: Family<AddBiasParams> = Family::new(Module::Binary, "add_bias", FLOATS);
const RELU: Family<ReluParams> = Family::new(Module::Relu, "relu", FLOATS_AND_HALVES);
const RELU_BACKWARD: Family<ReluBackwardParams> = Family::new(Module::Relu, "relu_backward", FLOATS_AND_HALVES);

fn cast_name(from: DType, to: DType) -> String {
    format!("cast_{}_{}", suffix(from), suffix(to))
}

pub(super) fn table() -> Vec<Entry> {
    let pairs = DType::ALL.into_iter().flat_map(|from| DType::ALL.map(|to| (from, to))).filter(|(from, to)| from != to);
    let casts = pairs.map(|(from, to)| Entry::of::<CastParams>(Module::Cast, cast_name(from, to)));
    [
        FILL.entries(),
        INCREMENT.entries(),
        casts.collect(),
        BINARY.entries(),
        BINARY_BROADCAST.entries(),
        BINARY_SCALAR.entries(),
        ADD_BIAS.entries(),
        RELU.entries(),
        RELU_BACKWARD.entries(),
    ]
    .concat()
}

/// `value` as an element, in the low bytes.
fn bits(value: f64, dtype: DType) -> u64 {
    match dtype {
        DType::F32 => u64::from((value as f32).to_bits()),
        DType::F64 => value.to_bits(),
        DType::F16 => u64::from(f16::from_f64(value).to_bits()),
        DType::BF16 => u64::from(bf16::from_f64(value).to_bits()),
        DType::I32 => u64::from(value as i32 as u32),
        DType::I64 => value as i64 as u64,
    }
}

pub(super) fn fill(cuda: &Cuda, output: &CudaSliceMut<'_>, value: f64) -> Result<()> {
    if output.is_empty() {
        return Ok(());
    }
    let dtype = output.dtype();
    let params = FillParams { output: output.pointer(), len: output.len() as u64, bits: bits(value, dtype) };
    FILL.launch(cuda, dtype.size(), walk_vectors(output.len(), dtype), &params)
}

pub(super) fn increment(cuda: &Cuda, counter: &CudaSliceMut<'_>) -> Result<()> {
    expect_len("increment", "the counter", 1, counter.len())?;
    let params = IncrementParams { counter: counter.pointer() };
    INCREMENT.launch(cuda, "increment", counter.dtype(), crate::launch::LaunchConfig::linear(1, 32), &params)
}

pub(super) fn copy(cuda: &Cuda, input: CudaSlice<'_>, output: CudaSliceMut<'_>) -> Result<()> {
    expect_len("copy", "the output", input.len(), output.len())?;
    expect_len("copy", "the input", output.len(), input.len())?;
    let (from, to) = (input.dtype(), output.dtype());
    if from == to {
        return cuda.copy_bytes(input, output);
    }
    if input.is_empty() {
        return Ok(());
    }
    let params = CastParams { input: input.pointer(), output: output.pointer(), len: input.len() as u64 };
    cuda.launch(Kernel { module: Module::Cast, name: &cast_name(from, to) }, walk(input.len()), &params)
}

/// The codes of kernels/binary.cu.
fn code(op: BinaryOp) -> u32 {
    match op {
        BinaryOp::Add => 0,
        BinaryOp::Sub => 1,
        BinaryOp::Mul => 2,
        BinaryOp::Div => 3,
    }
}

/// output = a ∘ b for operands that are dense in the same order; the output may be one of them.
pub(super) fn binary_dense(
    cuda: &Cuda,
    name: &str,
    op: BinaryOp,
    a: CudaSlice<'_>,
    b: CudaSlice<'_>,
    output: &CudaSliceMut<'_>,
) -> Result<()> {
    let (dtype, len) = (output.dtype(), output.len());
    for (what, operand) in [("the first operand", a), ("the second operand", b)] {
        expect_dtype(name, dtype, operand.dtype())?;
        expect_len(name, what, len, operand.len())?;
    }
    if len == 0 {
        return Ok(());
    }
    let (a, b, output) = (a.pointer(), b.pointer(), output.pointer());
    let params = BinaryParams { a, b, output, len: len as u64, code: code(op), unused: 0 };
    BINARY.launch(cuda, name, dtype, walk_vectors(len, dtype), &params)
}

pub(super) fn binary(
    cuda: &Cuda,
    op: BinaryOp,
    a: CudaSlice<'_>,
    b: CudaSlice<'_>,
    layout: &Broadcast,
    output: &CudaSliceMut<'_>,
) -> Result<()> {
    let dimensions = Dimensions::new(&layout.shape, [&layout.a, &layout.b]);
    let (dtype, len) = (output.dtype(), dimensions.len());
    expect_len("arithmetic", "the output", len, output.len())?;
    expect_len("arithmetic", "the shape", output.len(), len)?;
    if dimensions.is_dense() {
        return binary_dense(cuda, "arithmetic", op, a, b, output);
    }
    for (k, operand) in [a, b].iter().enumerate() {
        expect_dtype("arithmetic", dtype, operand.dtype())?;
        expect_len("arithmetic", "an operand", dimensions.reach(k), operand.len())?;
    }
    if len == 0 {
        return Ok(());
    }
    let space = dimensions.space("arithmetic")?;
    let (a, b, output) = (a.pointer(), b.pointer(), output.pointer());
    let params = BinaryBroadcastParams { a, b, output, len: len as u64, code: code(op), unused: 0, space };
    BINARY_BROADCAST.launch(cuda, "arithmetic", dtype, walk(len), &params)
}

/// output = a ∘ scalar; the output may be a.
pub(super) fn binary_scalar(
    cuda: &Cuda,
    name: &str,
    op: BinaryOp,
    a: CudaSlice<'_>,
    scalar: f64,
    output: &CudaSliceMut<'_>,
) -> Result<()> {
    let (dtype, len) = (output.dtype(), output.len());
    expect_dtype(name, dtype, a.dtype())?;
    expect_len(name, "the operand", len, a.len())?;
    if len == 0 {
        return Ok(());
    }
    let (a, output) = (a.pointer(), output.pointer());
    let params = BinaryScalarParams { a, output, len: len as u64, scalar, code: code(op), unused: 0 };
    BINARY_SCALAR.launch(cuda, name, dtype, walk_vectors(len, dtype), &params)
}

pub(super) fn add_bias(cuda: &Cuda, data: &CudaSliceMut<'_>, bias: CudaSlice<'_>, along: Along) -> Result<()> {
    let len = along.outer * along.size * along.inner;
    expect_dtype("bias", data.dtype(), bias.dtype())?;
    expect_len("bias", "the data", len, data.len())?;
    expect_len("bias", "the bias", along.size, bias.len())?;
    if len == 0 {
        return Ok(());
    }
    let (size, inner) = (WideDivider::new(along.size), WideDivider::new(along.inner));
    let params = AddBiasParams { data: data.pointer(), bias: bias.pointer(), len: len as u64, size, inner };
    ADD_BIAS.launch(cuda, "bias", data.dtype(), walk(len), &params)
}

pub(super) fn relu(cuda: &Cuda, input: CudaSlice<'_>, output: &CudaSliceMut<'_>) -> Result<()> {
    let (dtype, len) = (output.dtype(), output.len());
    expect_dtype("relu", dtype, input.dtype())?;
    expect_len("relu", "the input", len, input.len())?;
    if len == 0 {
        return Ok(());
    }
    let params = ReluParams { input: input.pointer(), output: output.pointer(), len: len as u64 };
    RELU.launch(cuda, "relu", dtype, walk_vectors(len, dtype), &params)
}

pub(super) fn relu_backward(
    cuda: &Cuda,
    grad_output: CudaSlice<'_>,
    output: CudaSlice<'_>,
    grad_input: &CudaSliceMut<'_>,
) -> Result<()> {
    let (dtype, len) = (grad_input.dtype(), grad_input.len());
    for (what, operand) in [("gradOutput", grad_output), ("the output", output)] {
        expect_dtype("relu", dtype, operand.dtype())?;
        expect_len("relu", what, len, operand.len())?;
    }
    if len == 0 {
        return Ok(());
    }
    let (grad_output, output, grad_input) = (grad_output.pointer(), output.pointer(), grad_input.pointer());
    let params = ReluBackwardParams { grad_output, output, grad_input, len: len as u64 };
    RELU_BACKWARD.launch(cuda, "relu", dtype, walk_vectors(len, dtype), &params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_becomes_the_bits_of_its_type() {
        assert_eq!(bits(1.0, DType::F32), 0x3f80_0000);
        assert_eq!(bits(-2.0, DType::F64), 0xc000_0000_0000_0000);
        assert_eq!(bits(1.0, DType::F16), 0x3c00);
        assert_eq!(bits(1.0, DType::BF16), 0x3f80);
        assert_eq!(bits(-1.0, DType::I32), 0xffff_ffff);
        assert_eq!(bits(-1.0, DType::I64), u64::MAX);
        assert_eq!(bits(1e300, DType::I64), i64::MAX as u64);
    }
}
