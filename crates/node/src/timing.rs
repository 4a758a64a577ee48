//! What the native work costs without JavaScript: for benchmarks.

use crate::convert::{count, dtype, format, sizes};
use crate::cuda::cuda_of;
use crate::error::{Result, checked};
use crate::process_group::BindingGroup;
use napi_derive::napi;
use syncbn_runtime::timing::{self, cuda};

/// Milliseconds of each of `iterations` exchanges of `bytes` per rank, back to back.
#[napi(catch_unwind)]
pub fn time_all_gather(group: &BindingGroup, bytes: f64, iterations: f64) -> Result<Vec<f64>> {
    const OP: &str = "timeAllGather";
    let (bytes, iterations) = (count(OP, "bytes", bytes)?, count(OP, "iterations", iterations)?);
    checked(timing::time_all_gather(group.get(), bytes, iterations))
}

/// Milliseconds of each iteration.
#[napi(object)]
pub struct BindingBatchNormTimes {
    pub forward: Vec<f64>,
    pub backward: Vec<f64>,
}

/// Milliseconds of `iterations` float32 batch norm steps in two phases, on tensors that are made once.
#[napi(catch_unwind)]
pub fn time_batch_norm(shape: Vec<i64>, memory_format: String, iterations: f64) -> Result<BindingBatchNormTimes> {
    const OP: &str = "timeBatchNorm";
    let (shape, format) = (sizes(OP, &shape)?, format(&memory_format)?);
    let (forward, backward) = checked(timing::time_batch_norm(&shape, format, count(OP, "iterations", iterations)?))?;
    Ok(BindingBatchNormTimes { forward, backward })
}

/// Milliseconds of each replay of a part on a GPU.
#[napi(object)]
pub struct BindingCudaBatchNormTimes {
    pub stats: Vec<f64>,
    pub normalize: Vec<f64>,
    pub backward_reduce: Vec<f64>,
    pub backward_apply: Vec<f64>,
    /// With copies on the device in place of the all_gather.
    pub sync_forward: Vec<f64>,
    /// With a multiplication in place of the all_reduce.
    pub sync_backward: Vec<f64>,
    pub forward: Vec<f64>,
    pub backward: Vec<f64>,
}

/// Milliseconds of the parts of a batch norm step of one of `ranks` ranks, by the GPU's clock.
#[napi(catch_unwind)]
pub fn time_cuda_batch_norm(
    device: String,
    shape: Vec<i64>,
    memory_format: String,
    dtype_name: String,
    ranks: f64,
    iterations: f64,
) -> Result<BindingCudaBatchNormTimes> {
    const OP: &str = "timeCudaBatchNorm";
    let shape = sizes(OP, &shape)?;
    let (format, dtype, ranks) = (format(&memory_format)?, dtype(&dtype_name)?, count(OP, "ranks", ranks)?);
    let problem = cuda::Problem { shape: &shape, format, dtype, ranks };
    let iterations = count(OP, "iterations", iterations)?;
    let times = checked(cuda::time_batch_norm(&cuda_of(OP, &device)?, problem, iterations))?;
    Ok(BindingCudaBatchNormTimes {
        stats: times.stats,
        normalize: times.normalize,
        backward_reduce: times.backward_reduce,
        backward_apply: times.backward_apply,
        sync_forward: times.sync_forward,
        sync_backward: times.sync_backward,
        forward: times.forward,
        backward: times.backward,
    })
}

/// Milliseconds of each copy on a GPU.
#[napi(object)]
pub struct BindingCudaCopyTimes {
    pub driver: Vec<f64>,
    pub kernel: Vec<f64>,
}

/// Milliseconds of copies of `bytes` on a GPU, by the driver and by a kernel, by the GPU's clock.
#[napi(catch_unwind)]
pub fn time_cuda_copy(device: String, bytes: f64, iterations: f64) -> Result<BindingCudaCopyTimes> {
    const OP: &str = "timeCudaCopy";
    let (bytes, iterations) = (count(OP, "bytes", bytes)?, count(OP, "iterations", iterations)?);
    let times = checked(cuda::time_copy(&cuda_of(OP, &device)?, bytes, iterations))?;
    Ok(BindingCudaCopyTimes { driver: times.driver, kernel: times.kernel })
}
