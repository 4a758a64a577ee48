//! Launcher of kernels/batch_norm_backward_reduce.cuh.

use super::check;
use super::geometry::{Layout, Plan, entries};
use crate::device::Cuda;
use crate::kernel_table::Entry;
use crate::launch::Params;
use syncbn_core::Result;
use syncbn_core::kernels::BackwardReduce;

const OP: &str = "batch_norm_backward_reduce";
/// Rows of sums: Σdy and Σdy·(x − mean).
pub(super) const ROWS: usize = 2;

/// Mirror of `BackwardReduceParams`.
#[repr(C)]
#[derive(Clone, Copy)]
struct BackwardReduceParams {
    input: u64,
    grad_output: u64,
    kept: u64,
    sums: u64,
    grad_weight: u64,
    grad_bias: u64,
    memory: u64,
    counters: u64,
    grad_weight_dtype: u32,
    grad_bias_dtype: u32,
    layout: Layout,
}

// SAFETY: repr(C), the fields of BackwardReduceParams in kernels/batch_norm_backward_reduce.cuh in their order, for
// every element type.
unsafe impl Params for BackwardReduceParams {}

pub(super) fn table() -> impl Iterator<Item = Entry> {
    entries::<BackwardReduceParams>(OP)
}

/// This rank's sums and parameter gradients.
pub(super) fn backward_reduce(cuda: &Cuda, call: &BackwardReduce<'_, '_, Cuda>) -> Result<()> {
    let shape = call.shape;
    let dtype = check::input_dtype(OP, call.input)?;
    let input = check::tensor(OP, "input", call.input, dtype, shape.numel())?;
    let grad_output = check::tensor(OP, "grad_output", call.grad_output, dtype, shape.numel())?;
    let kept = check::slots(OP, shape.channels, 1, call.statistics)?;
    let sums = check::sums(OP, shape.channels, ROWS, call.sums)?;
    let grad_weight = check::output_row(OP, "grad_weight", call.grad_weight.as_ref(), shape.channels)?;
    let grad_bias = check::output_row(OP, "grad_bias", call.grad_bias.as_ref(), shape.channels)?;
    let plan = Plan::new(OP, shape, dtype, &[input, grad_output])?;
    let scratch = plan.scratch(cuda, ROWS, dtype)?;
    let params = BackwardReduceParams {
        input,
        grad_output,
        kept,
        sums,
        grad_weight: grad_weight.address,
        grad_bias: grad_bias.address,
        memory: scratch.memory(),
        counters: scratch.counters,
        grad_weight_dtype: grad_weight.dtype,
        grad_bias_dtype: grad_bias.dtype,
        layout: plan.layout,
    };
    plan.launch(cuda, OP, &params)
}
