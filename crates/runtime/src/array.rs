//! Batch norm on borrowed memory: what trainers with their own tensors call, and what tensors are built on.
//!
//! Also the split, for adapters that keep activations elsewhere: statistics, their merge over ranks, normalisation and
//! both halves of backward as separate calls.

use crate::check::{self, Operand, Training, expect_channels, expect_eps, expect_numel, expect_stats};
use crate::process_group::ProcessGroup;
use crate::saved::{Saved, Statistics};
use syncbn_core::kernels::{BackwardApply, BackwardReduce, Elemt, Forward, RunningStats};
use syncbn_core::message::{read_row_of, read_slot, row_of, slot_bytes, slot_of, sums_bytes, write_slot};
use syncbn_core::sync_batch_norm;
use syncbn_core::{
    BatchNormShape, ChannelStats, Code, Collective, DType, Error, Kernels, Result, message, running_stats,
};
use syncbn_cpu::{Cpu, HostSlice, HostSliceMut};

/// How a forward call normalises.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Statistics of the input instead of the running ones.
    pub training: bool,
    /// Weight of the new batch in the running statistics; absent for the cumulative average.
    pub momentum: Option<f64>,
    /// Added to the variance; positive.
    pub eps: f64,
}

/// The per-channel memory of a training call.
#[derive(Debug, Default)]
pub struct Arguments<'a> {
    /// Scale; 1 if absent.
    pub weight: Option<HostSlice<'a>>,
    /// Shift; 0 if absent.
    pub bias: Option<HostSlice<'a>>,
    /// Running mean; with it comes the variance.
    pub running_mean: Option<HostSliceMut<'a>>,
    /// Running variance.
    pub running_var: Option<HostSliceMut<'a>>,
    /// One int64.
    pub num_batches_tracked: Option<HostSliceMut<'a>>,
}

fn expect_float(op: &str, dtype: DType) -> Result<()> {
    if matches!(dtype, DType::F32 | DType::F64) {
        return Ok(());
    }
    Err(Error::expected(Code::DType, op, "float32 or float64", dtype))
}

fn describe(slice: HostSlice<'_>) -> Operand {
    (slice.len(), slice.dtype())
}

/// Forward with the statistics of the input, over `group`.
pub fn forward_training(
    input: HostSlice<'_>,
    shape: BatchNormShape,
    arguments: Arguments<'_>,
    options: Options,
    group: Option<&ProcessGroup>,
    output: HostSliceMut<'_>,
) -> Result<Saved> {
    expect_float("batchNorm", input.dtype())?;
    let written = |slice: &Option<HostSliceMut<'_>>| slice.as_ref().map(|slice| describe(slice.as_slice()));
    let operands = Training {
        input: describe(input),
        output: describe(output.as_slice()),
        weight: arguments.weight.map(describe),
        bias: arguments.bias.map(describe),
        running_mean: written(&arguments.running_mean),
        running_var: written(&arguments.running_var),
        num_batches_tracked: written(&arguments.num_batches_tracked),
    };
    check::training(shape, &operands, options, group)?;
    let dtype = input.dtype();
    let group = group.filter(|group| group.size() > 1).cloned();
    let running = arguments.running_mean.zip(arguments.running_var).map(|(mean, var)| RunningStats {
        mean,
        var,
        momentum: options.momentum,
        num_batches_tracked: arguments.num_batches_tracked,
    });
    let mut statistics = Cpu.new_buffer(slot_bytes(shape.channels, DType::F64))?;
    let call = Forward {
        input,
        shape,
        weight: arguments.weight,
        bias: arguments.bias,
        eps: options.eps,
        running,
        output,
        statistics: &mut statistics,
    };
    sync_batch_norm::forward(&Cpu, group.as_ref().map(|group| group as &dyn Collective<Vec<u8>>), call)?;
    Ok(Saved { statistics: Statistics::Host(statistics), shape, dtype, batch_statistics: true, group })
}

/// Forward with the running statistics; `affine` is (weight, bias), `running` is (mean, variance).
pub fn forward_eval(
    input: HostSlice<'_>,
    shape: BatchNormShape,
    affine: (Option<HostSlice<'_>>, Option<HostSlice<'_>>),
    running: Option<(HostSlice<'_>, HostSlice<'_>)>,
    eps: f64,
    output: HostSliceMut<'_>,
) -> Result<Saved> {
    let affine_operands = (affine.0.map(describe), affine.1.map(describe));
    let (mean, var) = check::eval(shape, describe(input), affine_operands, running, |row| describe(*row), eps)?;
    let mut statistics = Cpu.new_buffer(slot_bytes(shape.channels, DType::F64))?;
    Cpu.constant_statistics(mean, var, eps, &mut statistics)?;
    Cpu.elemt(Elemt { input, shape, weight: affine.0, bias: affine.1, statistics: &statistics, output })?;
    let statistics = Statistics::Host(statistics);
    Ok(Saved { statistics, shape, dtype: input.dtype(), batch_statistics: false, group: None })
}

/// Count, mean and M2 of this rank's input.
pub fn stats(input: HostSlice<'_>, shape: BatchNormShape) -> Result<ChannelStats> {
    expect_numel("batchNormStats", "input", describe(input), shape)?;
    let mut message = Cpu.new_buffer(slot_bytes(shape.channels, DType::F64))?;
    Cpu.stats(input, shape, &mut message, 0)?;
    let (count, mean, m2) = read_slot(&message);
    Ok(ChannelStats { count, mean, m2 })
}

/// The statistics of all ranks, merged in rank order; this rank's own without a group.
pub fn gather_stats(local: &ChannelStats, group: Option<&ProcessGroup>) -> Result<ChannelStats> {
    expect_stats("gatherStats", local, local.channels())?;
    let Some(group) = group else { return Ok(local.clone()) };
    group.expect_member("gatherStats")?;
    let slot = slot_bytes(local.channels(), DType::F64);
    let mut messages = vec![0; slot * group.size()];
    write_slot(&mut messages[group.member_rank().unwrap_or(0) * slot..][..slot], local.count, &local.mean, &local.m2);
    group.all_gather(&mut messages)?;
    Ok(message::merge_slots(&messages, local.channels()))
}

/// The slot (count, mean, 1/√(var + eps)) of known statistics.
pub(crate) fn statistics_slot(
    op: &str,
    stats: &ChannelStats,
    shape: BatchNormShape,
    eps: f64,
    rows: DType,
) -> Result<Vec<u8>> {
    expect_eps(eps)?;
    expect_stats(op, stats, shape.channels)?;
    let invstd: Vec<f64> = (0..shape.channels).map(|channel| 1.0 / (stats.var(channel) + eps).sqrt()).collect();
    Ok(slot_of(stats.count, &stats.mean, &invstd, rows))
}

/// y with known statistics.
pub fn apply(
    input: HostSlice<'_>,
    shape: BatchNormShape,
    stats: &ChannelStats,
    affine: (Option<HostSlice<'_>>, Option<HostSlice<'_>>),
    eps: f64,
    output: HostSliceMut<'_>,
) -> Result<()> {
    const OP: &str = "batchNormApply";
    expect_numel(OP, "input", describe(input), shape)?;
    let statistics = statistics_slot(OP, stats, shape, eps, DType::F64)?;
    for (what, slice) in [("weight", affine.0), ("bias", affine.1)] {
        expect_channels(OP, what, slice.map(describe), shape, input.dtype())?;
    }
    Cpu.elemt(Elemt { input, shape, weight: affine.0, bias: affine.1, statistics: &statistics, output })
}

/// Σ dy and Σ dy·(x − mean) of this rank's values.
#[derive(Clone, Debug, PartialEq)]
pub struct BackwardSums {
    /// Σ dy of each channel.
    pub sum_dy: Vec<f64>,
    /// Σ dy·(x − mean) of each channel.
    pub sum_dy_xmu: Vec<f64>,
}

impl BackwardSums {
    /// Fails unless both have a sum for each of `channels` channels.
    pub(crate) fn expect(&self, op: &str, channels: usize) -> Result<()> {
        if self.sum_dy.len() == channels && self.sum_dy_xmu.len() == channels {
            return Ok(());
        }
        let got = format!("{} and {}", self.sum_dy.len(), self.sum_dy_xmu.len());
        Err(Error::expected(Code::Shape, op, format!("sums of {channels} channels"), got))
    }

    /// The bytes of both rows.
    pub(crate) fn rows(&self, dtype: DType) -> Vec<u8> {
        [row_of(&self.sum_dy, dtype), row_of(&self.sum_dy_xmu, dtype)].concat()
    }

    /// Reads both rows.
    pub(crate) fn from_rows(bytes: &[u8], dtype: DType) -> Self {
        let mut sum_dy = read_row_of(bytes, dtype);
        let sum_dy_xmu = sum_dy.split_off(sum_dy.len() / 2);
        Self { sum_dy, sum_dy_xmu }
    }
}

/// This rank's sums for backward.
pub fn backward_reduce(
    grad_output: HostSlice<'_>,
    input: HostSlice<'_>,
    shape: BatchNormShape,
    stats: &ChannelStats,
    eps: f64,
) -> Result<BackwardSums> {
    const OP: &str = "batchNormBackwardReduce";
    expect_numel(OP, "input", describe(input), shape)?;
    expect_numel(OP, "gradOutput", describe(grad_output), shape)?;
    let statistics = &statistics_slot(OP, stats, shape, eps, DType::F64)?;
    let mut sums = Cpu.new_buffer(sums_bytes(shape.channels, 2, DType::F64))?;
    let call =
        BackwardReduce { input, grad_output, shape, statistics, sums: &mut sums, grad_weight: None, grad_bias: None };
    Cpu.backward_reduce(call)?;
    Ok(BackwardSums::from_rows(&sums, DType::F64))
}

/// The tensors of [`backward_apply`].
#[derive(Debug)]
pub struct BackwardArrays<'a> {
    /// dL/dy.
    pub grad_output: HostSlice<'a>,
    /// x.
    pub input: HostSlice<'a>,
    /// Scale; 1 if absent.
    pub weight: Option<HostSlice<'a>>,
    /// Receives dL/dx.
    pub grad_input: HostSliceMut<'a>,
}

/// dL/dx from the group's statistics and sums.
pub fn backward_apply(
    arrays: BackwardArrays<'_>,
    shape: BatchNormShape,
    stats: &ChannelStats,
    sums: &BackwardSums,
    eps: f64,
) -> Result<()> {
    const OP: &str = "batchNormBackwardApply";
    let BackwardArrays { grad_output, input, weight, grad_input } = arrays;
    expect_numel(OP, "input", describe(input), shape)?;
    expect_numel(OP, "gradOutput", describe(grad_output), shape)?;
    expect_channels(OP, "weight", weight.map(describe), shape, input.dtype())?;
    sums.expect(OP, shape.channels)?;
    let statistics = &statistics_slot(OP, stats, shape, eps, DType::F64)?;
    let rows = sums.rows(DType::F64);
    Cpu.backward_apply(BackwardApply { input, grad_output, shape, weight, statistics, sums: Some(&rows), grad_input })
}

/// Updates running statistics from known ones.
///
/// # Errors
/// [`Code::TooFewValues`] for a single value per channel; no values leave them unchanged.
pub fn update_running(
    mut mean: HostSliceMut<'_>,
    mut var: HostSliceMut<'_>,
    stats: &ChannelStats,
    momentum: f64,
) -> Result<()> {
    const OP: &str = "running statistics";
    expect_stats(OP, stats, mean.len())?;
    if mean.len() != var.len() {
        return Err(Error::expected(Code::Shape, OP, format!("runningVar of {} elements", mean.len()), var.len()));
    }
    if !momentum.is_finite() {
        return Err(Error::expected(Code::Argument, OP, "a finite momentum", momentum));
    }
    match stats.count {
        0 => return Ok(()),
        1 => return Err(Error::new(Code::TooFewValues, "Expected more than 1 value per channel when training, got 1")),
        _ => {}
    }
    let unbiased: Vec<f64> = stats.m2.iter().map(|&m2| running_stats::unbiased_var(m2, stats.count)).collect();
    update(&mut mean, &stats.mean, momentum)?;
    update(&mut var, &unbiased, momentum)
}

fn update(running: &mut HostSliceMut<'_>, new: &[f64], factor: f64) -> Result<()> {
    match running {
        HostSliceMut::F32(running) => running
            .iter_mut()
            .zip(new)
            .for_each(|(old, &new)| *old = running_stats::update(f64::from(*old), new, factor) as f32),
        HostSliceMut::F64(running) => {
            running.iter_mut().zip(new).for_each(|(old, &new)| *old = running_stats::update(*old, new, factor));
        }
        other => {
            let expected = "float32 or float64";
            return Err(Error::expected(Code::DType, "running statistics", expected, other.dtype()));
        }
    }
    Ok(())
}
