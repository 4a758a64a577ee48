//! Launcher of kernels/batch_norm_stats.cuh.

use super::STATISTICS;
use super::check;
use super::geometry::{Layout, Plan, entries};
use crate::buffer::CudaBuffer;
use crate::device::Cuda;
use crate::kernel_table::Entry;
use crate::launch::Params;
use crate::slice::CudaSlice;
use syncbn_core::message::slot_bytes;
use syncbn_core::{BatchNormShape, Code, Error, Result};

const OP: &str = "batch_norm_stats";
/// Rows of what a part finds: mean, what it cannot hold, and M2.
const ROWS: usize = 3;

/// Mirror of `StatsParams`.
#[repr(C)]
#[derive(Clone, Copy)]
struct StatsParams {
    input: u64,
    slot: u64,
    memory: u64,
    counters: u64,
    count: u64,
    layout: Layout,
}

// SAFETY: repr(C), the fields of StatsParams in kernels/batch_norm_stats.cuh in their order, for every element type.
unsafe impl Params for StatsParams {}

pub(super) fn table() -> impl Iterator<Item = Entry> {
    entries::<StatsParams>(OP)
}

/// Writes (count, mean, M2) of `input` into slot `slot` of `messages`.
pub(super) fn stats(
    cuda: &Cuda,
    input: CudaSlice<'_>,
    shape: BatchNormShape,
    messages: &CudaBuffer,
    slot: usize,
) -> Result<()> {
    let dtype = check::input_dtype(OP, input)?;
    let size = slot_bytes(shape.channels, STATISTICS);
    let got = messages.bytes();
    if slot >= got / size || !got.is_multiple_of(size) {
        let expected = format!("messages of whole slots of {size} bytes, {} at least", slot + 1);
        return Err(Error::expected(Code::Argument, OP, expected, format!("{got} bytes")));
    }
    let input = check::tensor(OP, "input", input, dtype, shape.numel())?;
    let plan = Plan::new(OP, shape, dtype, &[input])?;
    let scratch = plan.scratch(cuda, ROWS, dtype)?;
    let params = StatsParams {
        input,
        slot: messages.pointer() + (slot * size) as u64,
        memory: scratch.memory(),
        counters: scratch.counters,
        count: shape.count() as u64,
        layout: plan.layout,
    };
    plan.launch(cuda, OP, &params)
}
