//! Launchers of kernels/batch_norm_double_backward_reduce.cuh and kernels/batch_norm_double_backward_apply.cuh.

use super::check::{self, Row};
use super::geometry::{Layout, Plan, single_entries};
use crate::buffer::CudaBuffer;
use crate::device::Cuda;
use crate::kernel_table::Entry;
use crate::launch::Params;
use crate::slice::CudaSlice;
use syncbn_core::kernels::{DoubleBackwardApply, DoubleBackwardReduce};
use syncbn_core::{BatchNormShape, DType, Result};

const OP: &str = "batch_norm_double_backward";
const REDUCE: &str = "batch_norm_double_backward_reduce";
const APPLY: &str = "batch_norm_double_backward_apply";
/// Rows of sums over the group.
const GROUP_ROWS: usize = 7;
/// Rows of sums that stay local.
const LOCAL_ROWS: usize = 3;
/// Rows of what a part finds.
const PART_ROWS: usize = 5;

/// Mirror of `DoubleBackwardInputs`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Inputs {
    input: u64,
    grad_output: u64,
    grad_grad_input: u64,
    grad_grad_weight: u64,
    weight: u64,
    kept: u64,
    grad_grad_weight_dtype: u32,
    weight_dtype: u32,
    layout: Layout,
}

/// Mirror of `DoubleBackwardReduceParams`.
#[repr(C)]
#[derive(Clone, Copy)]
struct ReduceParams {
    inputs: Inputs,
    sums: u64,
    local_sums: u64,
    memory: u64,
    counters: u64,
}

// SAFETY: repr(C), the fields of DoubleBackwardReduceParams in kernels/batch_norm_double_backward_reduce.cuh in their
// order, for every element type.
unsafe impl Params for ReduceParams {}

/// Mirror of `DoubleBackwardApplyParams`.
#[repr(C)]
#[derive(Clone, Copy)]
struct ApplyParams {
    inputs: Inputs,
    grad_grad_bias: u64,
    sums: u64,
    local_sums: u64,
    grad_input: u64,
    grad_grad_output: u64,
    grad_weight: u64,
    grad_grad_bias_dtype: u32,
    grad_weight_dtype: u32,
}

// SAFETY: repr(C), the fields of DoubleBackwardApplyParams in kernels/batch_norm_double_backward_apply.cuh in their
// order, for every element type.
unsafe impl Params for ApplyParams {}

pub(super) fn table() -> impl Iterator<Item = Entry> {
    single_entries::<ReduceParams>(REDUCE).chain(single_entries::<ApplyParams>(APPLY))
}

/// What both calls read.
struct Operands<'a> {
    input: CudaSlice<'a>,
    grad_output: CudaSlice<'a>,
    grad_grad_input: CudaSlice<'a>,
    grad_grad_weight: Option<CudaSlice<'a>>,
    weight: Option<CudaSlice<'a>>,
    shape: BatchNormShape,
    statistics: &'a CudaBuffer,
}

impl Operands<'_> {
    fn check(&self) -> Result<(DType, Plan, Inputs)> {
        let (shape, dtype) = (self.shape, check::input_dtype(OP, self.input)?);
        let tensor = |name, slice| check::tensor(OP, name, slice, dtype, shape.numel());
        let row = |name, slice| check::row(OP, name, slice, dtype, shape.channels);
        let (ggw, weight): (Row, Row) = (row("grad_grad_weight", self.grad_grad_weight)?, row("weight", self.weight)?);
        let plan = Plan::single(OP, shape, dtype)?;
        let inputs = Inputs {
            input: tensor("input", self.input)?,
            grad_output: tensor("grad_output", self.grad_output)?,
            grad_grad_input: tensor("grad_grad_input", self.grad_grad_input)?,
            grad_grad_weight: ggw.address,
            weight: weight.address,
            kept: check::slots(OP, shape.channels, 1, self.statistics)?,
            grad_grad_weight_dtype: ggw.dtype,
            weight_dtype: weight.dtype,
            layout: plan.layout,
        };
        Ok((dtype, plan, inputs))
    }
}

/// This rank's sums for the gradient of the gradient.
pub(super) fn double_backward_reduce(cuda: &Cuda, call: &DoubleBackwardReduce<'_, '_, Cuda>) -> Result<()> {
    let shape = call.shape;
    let operands = Operands {
        input: call.input,
        grad_output: call.grad_output,
        grad_grad_input: call.grad_grad_input,
        grad_grad_weight: call.grad_grad_weight,
        weight: call.weight,
        shape,
        statistics: call.statistics,
    };
    let (dtype, plan, inputs) = operands.check()?;
    let sums = check::sums(OP, shape.channels, GROUP_ROWS, call.sums)?;
    let local_sums = check::sums(OP, shape.channels, LOCAL_ROWS, call.local_sums)?;
    let scratch = plan.scratch(cuda, PART_ROWS, dtype)?;
    let (memory, counters) = (scratch.memory(), scratch.counters);
    let params = ReduceParams { inputs, sums, local_sums, memory, counters };
    plan.launch(cuda, REDUCE, &params)
}

/// The gradients of the gradient.
pub(super) fn double_backward_apply(cuda: &Cuda, call: &DoubleBackwardApply<'_, '_, Cuda>) -> Result<()> {
    let shape = call.shape;
    let operands = Operands {
        input: call.input,
        grad_output: call.grad_output,
        grad_grad_input: call.grad_grad_input,
        grad_grad_weight: call.grad_grad_weight,
        weight: call.weight,
        shape,
        statistics: call.statistics,
    };
    let (dtype, plan, inputs) = operands.check()?;
    let grad_grad_bias = check::row(OP, "grad_grad_bias", call.grad_grad_bias, dtype, shape.channels)?;
    let grad_weight = check::output_row(OP, "grad_weight", call.grad_weight.as_ref(), shape.channels)?;
    let output = |name, slice| check::tensor(OP, name, slice, dtype, shape.numel());
    let params = ApplyParams {
        inputs,
        grad_grad_bias: grad_grad_bias.address,
        sums: call.sums.map_or(Ok(0), |sums| check::sums(OP, shape.channels, GROUP_ROWS, sums))?,
        local_sums: check::sums(OP, shape.channels, LOCAL_ROWS, call.local_sums)?,
        grad_input: output("grad_input", call.grad_input.as_slice())?,
        grad_grad_output: output("grad_grad_output", call.grad_grad_output.as_slice())?,
        grad_weight: grad_weight.address,
        grad_grad_bias_dtype: grad_grad_bias.dtype,
        grad_weight_dtype: grad_weight.dtype,
    };
    plan.launch(cuda, APPLY, &params)
}
