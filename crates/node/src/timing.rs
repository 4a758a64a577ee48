//! What the native work costs without JavaScript: for benchmarks.

use crate::convert::{count, format, sizes};
use crate::error::{Result, checked};
use crate::process_group::BindingGroup;
use napi_derive::napi;
use syncbn_runtime::timing;

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
