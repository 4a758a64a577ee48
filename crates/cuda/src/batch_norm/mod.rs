//! Batch norm on the GPU: [`syncbn_core::Kernels`] for [`Cuda`].
//!
//! Forward is two kernels and backward is two, whatever is exchanged between them; nothing waits. Elements are summed
//! and normalised in the input's [`DType::accumulate`] type; statistics and sums are merged, exchanged and kept in
//! float64 for every input, since float32 cannot hold a mean that is far above the deviation. The order
//! of every sum depends on the shape, not on the GPU. Every argument is checked before anything is enqueued.
//!
//! Code map: `geometry` shares a tensor out to blocks and threads, `check` checks arguments, every other file launches
//! the kernel it is named after.

mod backward_apply;
mod backward_reduce;
mod check;
mod constant_statistics;
mod double_backward;
mod geometry;
mod normalize;
mod stats;

use crate::buffer::CudaBuffer;
use crate::device::Cuda;
use crate::kernel_table::Entry;
use crate::slice::CudaSlice;
use syncbn_core::kernels::{
    Backward, BackwardApply, BackwardReduce, DoubleBackwardApply, DoubleBackwardReduce, Elemt, Kernels, Normalize,
};
use syncbn_core::message::sums_bytes;
use syncbn_core::{BatchNormShape, DType, Result};

/// The type of the numbers in slots and sums.
const STATISTICS: DType = DType::F64;

/// Every entry point of batch norm.
pub(crate) fn table() -> Vec<Entry> {
    stats::table()
        .chain(normalize::table())
        .chain(backward_reduce::table())
        .chain(backward_apply::table())
        .chain(double_backward::table())
        .chain(constant_statistics::table())
        .collect()
}

impl Kernels for Cuda {
    fn statistics_dtype(&self, _input: DType) -> DType {
        STATISTICS
    }

    fn dtype(&self, input: Self::In<'_>) -> DType {
        input.dtype()
    }

    fn new_buffer(&self, bytes: usize) -> Result<CudaBuffer> {
        self.buffer(bytes)
    }

    fn stats(&self, input: CudaSlice<'_>, shape: BatchNormShape, messages: &mut CudaBuffer, slot: usize) -> Result<()> {
        stats::stats(self, input, shape, messages, slot)
    }

    fn normalize(&self, call: Normalize<'_, '_, Self>) -> Result<()> {
        normalize::normalize(self, &call)
    }

    fn constant_statistics(
        &self,
        mean: CudaSlice<'_>,
        var: CudaSlice<'_>,
        eps: f64,
        statistics: &mut CudaBuffer,
    ) -> Result<()> {
        constant_statistics::constant_statistics(self, mean, var, eps, statistics)
    }

    fn elemt(&self, call: Elemt<'_, '_, Self>) -> Result<()> {
        normalize::elemt(self, &call)
    }

    /// Without the reduction where nothing comes of it: where the statistics were constants and no parameter has a
    /// gradient.
    fn backward(&self, call: Backward<'_, '_, Self>) -> Result<()> {
        let Backward { input, grad_output, shape, weight, statistics, batch_statistics, .. } = call;
        let (grad_weight, grad_bias) = (call.grad_weight, call.grad_bias);
        let mut reduced = None;
        if batch_statistics || grad_weight.is_some() || grad_bias.is_some() {
            let sums = reduced.insert(self.buffer(sums_bytes(shape.channels, backward_reduce::ROWS, STATISTICS))?);
            self.backward_reduce(BackwardReduce {
                input,
                grad_output,
                shape,
                statistics,
                sums,
                grad_weight,
                grad_bias,
            })?;
        }
        let Some(grad_input) = call.grad_input else { return Ok(()) };
        let sums = reduced.as_ref().filter(|_| batch_statistics);
        self.backward_apply(BackwardApply { input, grad_output, shape, weight, statistics, sums, grad_input })
    }

    fn backward_reduce(&self, call: BackwardReduce<'_, '_, Self>) -> Result<()> {
        backward_reduce::backward_reduce(self, &call)
    }

    fn backward_apply(&self, call: BackwardApply<'_, '_, Self>) -> Result<()> {
        backward_apply::backward_apply(self, &call)
    }

    fn double_backward_reduce(&self, call: DoubleBackwardReduce<'_, '_, Self>) -> Result<()> {
        double_backward::double_backward_reduce(self, &call)
    }

    fn double_backward_apply(&self, call: DoubleBackwardApply<'_, '_, Self>) -> Result<()> {
        double_backward::double_backward_apply(self, &call)
    }
}
