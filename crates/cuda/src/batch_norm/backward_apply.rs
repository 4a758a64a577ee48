//! Launcher of kernels/batch_norm_backward_apply.cuh.

use super::backward_reduce::ROWS;
use super::check;
use super::geometry::{Layout, Plan, entries};
use crate::device::Cuda;
use crate::kernel_table::Entry;
use crate::launch::Params;
use syncbn_core::Result;
use syncbn_core::kernels::BackwardApply;

const OP: &str = "batch_norm_backward_elemt";
const KERNEL: &str = "batch_norm_backward_apply";

/// Mirror of `BackwardApplyParams`.
#[repr(C)]
#[derive(Clone, Copy)]
struct BackwardApplyParams {
    input: u64,
    grad_output: u64,
    grad_input: u64,
    kept: u64,
    sums: u64,
    weight: u64,
    weight_dtype: u32,
    unused: u32,
    layout: Layout,
}

// SAFETY: repr(C), the fields of BackwardApplyParams in kernels/batch_norm_backward_apply.cuh in their order, for every
// element type.
unsafe impl Params for BackwardApplyParams {}

pub(super) fn table() -> impl Iterator<Item = Entry> {
    entries::<BackwardApplyParams>(KERNEL)
}

/// The gradient to x.
pub(super) fn backward_apply(cuda: &Cuda, call: &BackwardApply<'_, '_, Cuda>) -> Result<()> {
    let shape = call.shape;
    let dtype = check::input_dtype(OP, call.input)?;
    let input = check::tensor(OP, "input", call.input, dtype, shape.numel())?;
    let grad_output = check::tensor(OP, "grad_output", call.grad_output, dtype, shape.numel())?;
    let grad_input = check::tensor(OP, "grad_input", call.grad_input.as_slice(), dtype, shape.numel())?;
    let weight = check::row(OP, "weight", call.weight, dtype, shape.channels)?;
    let kept = check::slots(OP, shape.channels, 1, call.statistics)?;
    let sums = call.sums.map_or(Ok(0), |sums| check::sums(OP, shape.channels, ROWS, sums))?;
    if shape.numel() == 0 {
        return Ok(());
    }
    let plan = Plan::new(OP, shape, dtype, &[input, grad_output, grad_input])?;
    let params = BackwardApplyParams {
        input,
        grad_output,
        grad_input,
        kept,
        sums,
        weight: weight.address,
        weight_dtype: weight.dtype,
        unused: 0,
        layout: plan.layout,
    };
    plan.launch(cuda, KERNEL, &params)
}
