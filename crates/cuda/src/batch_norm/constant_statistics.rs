//! Launcher of kernels/batch_norm_constant_statistics.cu.

use super::check;
use crate::buffer::CudaBuffer;
use crate::device::Cuda;
use crate::kernel_table::Entry;
use crate::launch::{LaunchConfig, Params};
use crate::module::{Kernel, Module};
use crate::slice::CudaSlice;
use syncbn_core::{Code, Error, Result};

const OP: &str = "batch_norm";
const KERNEL: &str = "batch_norm_constant_statistics";
const THREADS: usize = 256;

/// Mirror of `ConstantStatisticsParams`.
#[repr(C)]
#[derive(Clone, Copy)]
struct ConstantStatisticsParams {
    mean: u64,
    var: u64,
    kept: u64,
    eps: f64,
    mean_dtype: u32,
    var_dtype: u32,
    channels: u32,
    unused: u32,
}

// SAFETY: repr(C), the fields of ConstantStatisticsParams in kernels/batch_norm_constant_statistics.cu in their order.
unsafe impl Params for ConstantStatisticsParams {}

pub(super) fn table() -> impl Iterator<Item = Entry> {
    std::iter::once(Entry::of::<ConstantStatisticsParams>(Module::BatchNormConstantStatistics, KERNEL.to_string()))
}

/// Writes the slot (0, mean, 1/√(var + eps)).
pub(super) fn constant_statistics(
    cuda: &Cuda,
    mean: CudaSlice<'_>,
    var: CudaSlice<'_>,
    eps: f64,
    statistics: &CudaBuffer,
) -> Result<()> {
    let channels = mean.len();
    check::length(OP, "running_var", channels, var.len())?;
    let mean = check::any_row(OP, "running_mean", mean, channels)?;
    let var = check::any_row(OP, "running_var", var, channels)?;
    let kept = check::slots(OP, channels, 1, statistics)?;
    let params = ConstantStatisticsParams {
        mean: mean.address,
        var: var.address,
        kept,
        eps,
        mean_dtype: mean.dtype,
        var_dtype: var.dtype,
        channels: u32::try_from(channels)
            .map_err(|_| Error::expected(Code::Shape, OP, format!("at most {} channels", u32::MAX), channels))?,
        unused: 0,
    };
    let config = LaunchConfig::linear(channels.div_ceil(THREADS).max(1) as u32, THREADS as u32);
    cuda.launch(Kernel { module: Module::BatchNormConstantStatistics, name: KERNEL }, config, &params)
}
