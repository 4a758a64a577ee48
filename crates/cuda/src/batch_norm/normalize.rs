//! Launcher of kernels/batch_norm_normalize.cuh, with statistics to be merged and with those that are known.

use super::check::{self, Row, Running};
use super::geometry::{Layout, Plan, entries};
use crate::device::Cuda;
use crate::kernel_table::Entry;
use crate::launch::Params;
use crate::slice::{CudaSlice, CudaSliceMut};
use syncbn_core::kernels::{Elemt, Normalize};
use syncbn_core::{BatchNormShape, Code, DType, Error, Result};

const KERNEL: &str = "batch_norm_normalize";
/// Lanes of a warp, as a power of two.
const LOG_WARP: u32 = 5;

/// Mirror of `NormalizeParams`.
#[repr(C)]
#[derive(Clone, Copy)]
struct NormalizeParams {
    input: u64,
    output: u64,
    messages: u64,
    kept: u64,
    weight: u64,
    bias: u64,
    running_mean: u64,
    running_var: u64,
    batches_tracked: u64,
    counters: u64,
    status: u64,
    eps: f64,
    momentum: f64,
    weight_dtype: u32,
    bias_dtype: u32,
    running_mean_dtype: u32,
    running_var_dtype: u32,
    cumulative: u32,
    world_size: u32,
    log_lanes: u32,
    unused: u32,
    layout: Layout,
}

// SAFETY: repr(C), the fields of NormalizeParams in kernels/batch_norm_normalize.cuh in their order, for every element
// type.
unsafe impl Params for NormalizeParams {}

pub(super) fn table() -> impl Iterator<Item = Entry> {
    entries::<NormalizeParams>(KERNEL)
}

/// Where statistics come from.
struct Source {
    /// Address of the slots.
    messages: u64,
    /// Number of slots of (count, mean, M2); 0 for one of (count, mean, invstd).
    world_size: u32,
    /// Address of the slot that is kept; 0 for none.
    kept: u64,
    eps: f64,
    running: Running,
}

/// x, y and the rows between them, checked.
struct Tensors {
    dtype: DType,
    shape: BatchNormShape,
    input: u64,
    output: u64,
    weight: Row,
    bias: Row,
}

impl Tensors {
    fn check(
        op: &str,
        shape: BatchNormShape,
        input: CudaSlice<'_>,
        output: &CudaSliceMut<'_>,
        weight: Option<CudaSlice<'_>>,
        bias: Option<CudaSlice<'_>>,
    ) -> Result<Self> {
        let dtype = check::input_dtype(op, input)?;
        Ok(Self {
            dtype,
            shape,
            input: check::tensor(op, "input", input, dtype, shape.numel())?,
            output: check::tensor(op, "output", output.as_slice(), dtype, shape.numel())?,
            weight: check::row(op, "weight", weight, dtype, shape.channels)?,
            bias: check::row(op, "bias", bias, dtype, shape.channels)?,
        })
    }
}

/// Merges the slots, normalises, keeps the statistics and updates the running ones.
pub(super) fn normalize(cuda: &Cuda, call: &Normalize<'_, '_, Cuda>) -> Result<()> {
    const OP: &str = "batch_norm";
    let shape = call.shape;
    let tensors = Tensors::check(OP, shape, call.input, &call.output, call.weight, call.bias)?;
    let running = check::running(OP, call.running.as_ref(), shape.channels)?;
    let world_size = u32::try_from(call.world_size).ok().filter(|&size| size > 0).ok_or_else(|| {
        Error::expected(Code::Argument, OP, format!("a world size of 1 to {}", u32::MAX), call.world_size)
    })?;
    let messages = check::slots(OP, shape.channels, call.world_size, call.messages)?;
    let kept = check::slots(OP, shape.channels, 1, call.statistics)?;
    launch(cuda, OP, &tensors, &Source { messages, world_size, kept, eps: call.eps, running })
}

/// Normalises with the statistics of a kept slot.
pub(super) fn elemt(cuda: &Cuda, call: &Elemt<'_, '_, Cuda>) -> Result<()> {
    const OP: &str = "batch_norm_elemt";
    let tensors = Tensors::check(OP, call.shape, call.input, &call.output, call.weight, call.bias)?;
    let messages = check::slots(OP, call.shape.channels, 1, call.statistics)?;
    if call.shape.numel() == 0 {
        return Ok(());
    }
    let source = Source { messages, world_size: 0, kept: 0, eps: 0.0, running: Running::default() };
    launch(cuda, OP, &tensors, &source)
}

fn launch(cuda: &Cuda, op: &str, tensors: &Tensors, source: &Source) -> Result<()> {
    let Tensors { dtype, shape, input, output, weight, bias } = *tensors;
    let Running { mean, var, batches_tracked, momentum } = source.running;
    let plan = Plan::new(op, shape, dtype, &[input, output])?;
    let params = NormalizeParams {
        input,
        output,
        messages: source.messages,
        kept: source.kept,
        weight: weight.address,
        bias: bias.address,
        running_mean: mean.address,
        running_var: var.address,
        batches_tracked,
        counters: if batches_tracked == 0 { 0 } else { cuda.counters(1)? },
        status: cuda.status()?,
        eps: source.eps,
        momentum: momentum.unwrap_or(0.0),
        weight_dtype: weight.dtype,
        bias_dtype: bias.dtype,
        running_mean_dtype: mean.dtype,
        running_var_dtype: var.dtype,
        cumulative: u32::from(momentum.is_none()),
        world_size: source.world_size,
        log_lanes: source.world_size.max(1).next_power_of_two().trailing_zeros().min(LOG_WARP),
        unused: 0,
        layout: plan.layout,
    };
    plan.launch(cuda, KERNEL, &params)
}
