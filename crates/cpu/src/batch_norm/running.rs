//! Running statistics on host memory; the rule is in [`syncbn_core::running_stats`].

use super::check;
use crate::Cpu;
use crate::slice::HostSliceMut;
use syncbn_core::kernels::RunningStats;
use syncbn_core::running_stats::{exponential_average_factor, unbiased_var, update};
use syncbn_core::{Code, DType, Error, Result};

/// Checks types and lengths, and that a cumulative average has its counter.
pub(super) fn check(op: &str, running: Option<&RunningStats<'_, Cpu>>, channels: usize) -> Result<()> {
    let Some(running) = running else { return Ok(()) };
    for (name, row) in [("running_mean", &running.mean), ("running_var", &running.var)] {
        if !matches!(row.dtype(), DType::F32 | DType::F64) {
            return Err(Error::expected(Code::DType, op, format!("{name} of float32 or float64"), row.dtype()));
        }
        check::length(op, name, channels, row.len())?;
    }
    match &running.num_batches_tracked {
        Some(HostSliceMut::I64(counter)) => check::length(op, "num_batches_tracked", 1, counter.len()),
        Some(other) => Err(Error::expected(Code::DType, op, "num_batches_tracked of int64", other.dtype())),
        None if running.momentum.is_none() => Err(Error::expected(
            Code::Argument,
            op,
            "num_batches_tracked with a momentum of none",
            "no num_batches_tracked",
        )),
        None => Ok(()),
    }
}

/// Counts the batch and moves the averages towards its mean and unbiased variance. `count` is at least 2.
pub(super) fn commit(running: RunningStats<'_, Cpu>, count: u64, mean: &[f64], m2: &[f64]) {
    let mut tracked = 0;
    if let Some(HostSliceMut::I64(counter)) = running.num_batches_tracked {
        counter[0] += 1;
        tracked = counter[0].max(0) as u64;
    }
    let factor = exponential_average_factor(running.momentum, tracked);
    average(running.mean, factor, mean.iter().copied());
    average(running.var, factor, m2.iter().map(|&m2| unbiased_var(m2, count)));
}

fn average(running: HostSliceMut<'_>, factor: f64, new: impl Iterator<Item = f64>) {
    match running {
        HostSliceMut::F32(row) => {
            row.iter_mut().zip(new).for_each(|(old, new)| *old = update((*old).into(), new, factor) as f32);
        }
        HostSliceMut::F64(row) => row.iter_mut().zip(new).for_each(|(old, new)| *old = update(*old, new, factor)),
        _ => unreachable!("checked before"),
    }
}
