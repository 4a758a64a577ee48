//! Batch norm on borrowed memory: what trainers with their own tensors call, and what tensors are built on.
//!
//! Also the split, for adapters that keep activations elsewhere: statistics, their merge over ranks, normalisation and
//! both halves of backward as separate calls.

use crate::process_group::ProcessGroup;
use syncbn_core::kernels::{BackwardApply, BackwardReduce, Elemt, Forward, RunningStats};
use syncbn_core::message::{read_row, read_slot, slot_bytes, sums_bytes, write_row, write_slot};
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

/// What a forward call leaves for backward: the statistics and the group they were merged over.
#[derive(Clone, Debug)]
pub struct Saved {
    statistics: Vec<u8>,
    shape: BatchNormShape,
    dtype: DType,
    batch_statistics: bool,
    group: Option<ProcessGroup>,
}

impl Saved {
    /// The slot (count, mean, invstd).
    pub fn statistics(&self) -> &Vec<u8> {
        &self.statistics
    }

    /// Whether the statistics are those of the input.
    pub fn batch_statistics(&self) -> bool {
        self.batch_statistics
    }

    /// Element type of the forward call's input.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The group backward exchanges with.
    pub fn group(&self) -> sync_batch_norm::Group<'_, Cpu> {
        self.group.as_ref().map(|group| group as &dyn Collective<Vec<u8>>)
    }

    /// (values per channel over all ranks, mean, 1/√(var + eps)).
    pub fn values(&self) -> (u64, Vec<f64>, Vec<f64>) {
        read_slot(&self.statistics)
    }

    /// Fails unless backward's input is that of the forward call.
    pub fn expect(&self, op: &str, shape: BatchNormShape, dtype: DType) -> Result<()> {
        if dtype != self.dtype {
            return Err(Error::expected(Code::DType, op, format!("the forward call's {}", self.dtype), dtype));
        }
        if shape != self.shape {
            let describe = |s: &BatchNormShape| {
                let layout = if s.channels_last { "channels last" } else { "contiguous" };
                format!("N {} × C {} × {} values, {layout}", s.batch, s.channels, s.spatial)
            };
            return Err(Error::expected(
                Code::Shape,
                op,
                format!("the forward call's {}", describe(&self.shape)),
                describe(&shape),
            ));
        }
        Ok(())
    }
}

/// Fails unless a per-channel operand, given as (elements, type), has C elements of float32 or the input's type.
pub fn expect_channels(
    op: &str,
    what: &str,
    operand: Option<(usize, DType)>,
    shape: BatchNormShape,
    input: DType,
) -> Result<()> {
    let Some((numel, dtype)) = operand else { return Ok(()) };
    if numel != shape.channels {
        return Err(Error::expected(Code::Shape, op, format!("{what} of {} elements", shape.channels), numel));
    }
    if dtype != input && dtype != DType::F32 {
        let allowed = if input == DType::F32 { "float32".into() } else { format!("float32 or {input}") };
        return Err(Error::expected(Code::DType, op, format!("{what} of {allowed}"), dtype));
    }
    Ok(())
}

fn expect_eps(eps: f64) -> Result<()> {
    if eps > 0.0 && eps.is_finite() {
        return Ok(());
    }
    Err(Error::expected(Code::Argument, "batchNorm", "a positive eps", eps))
}

fn expect_float(op: &str, dtype: DType) -> Result<()> {
    if matches!(dtype, DType::F32 | DType::F64) {
        return Ok(());
    }
    Err(Error::expected(Code::DType, op, "float32 or float64", dtype))
}

fn expect_numel(op: &str, what: &str, slice: HostSlice<'_>, shape: BatchNormShape) -> Result<()> {
    if slice.len() == shape.numel() {
        return Ok(());
    }
    let expected =
        format!("{what} of {} values ({} × {} × {})", shape.numel(), shape.batch, shape.channels, shape.spatial);
    Err(Error::expected(Code::Shape, op, expected, slice.len()))
}

fn describe(slice: HostSlice<'_>) -> (usize, DType) {
    (slice.len(), slice.dtype())
}

/// Everything a training call can be wrong about, before anything is exchanged or written.
fn check_training(
    input: HostSlice<'_>,
    shape: BatchNormShape,
    arguments: &Arguments<'_>,
    options: Options,
    group: Option<&ProcessGroup>,
    output: HostSlice<'_>,
) -> Result<()> {
    const OP: &str = "batchNorm";
    expect_eps(options.eps)?;
    expect_float(OP, input.dtype())?;
    expect_numel(OP, "input", input, shape)?;
    expect_numel(OP, "output", output, shape)?;
    if output.dtype() != input.dtype() {
        return Err(Error::expected(Code::DType, OP, format!("output of {}", input.dtype()), output.dtype()));
    }
    if options.momentum.is_some_and(|momentum| !momentum.is_finite()) {
        return Err(Error::expected(
            Code::Argument,
            OP,
            "a finite momentum, or null",
            options.momentum.unwrap_or(f64::NAN),
        ));
    }
    let running = |slice: &Option<HostSliceMut<'_>>| slice.as_ref().map(|slice| describe(slice.as_slice()));
    expect_channels(OP, "weight", arguments.weight.map(describe), shape, input.dtype())?;
    expect_channels(OP, "bias", arguments.bias.map(describe), shape, input.dtype())?;
    expect_channels(OP, "runningMean", running(&arguments.running_mean), shape, input.dtype())?;
    expect_channels(OP, "runningVar", running(&arguments.running_var), shape, input.dtype())?;
    if arguments.running_mean.is_some() != arguments.running_var.is_some() {
        return Err(Error::expected(Code::Argument, OP, "runningMean and runningVar, or neither", "one of them"));
    }
    let tracked = running(&arguments.num_batches_tracked);
    if let Some((numel, dtype)) = tracked.filter(|&tracked| tracked != (1, DType::I64)) {
        return Err(Error::expected(Code::DType, OP, "numBatchesTracked of one int64", format!("{numel} of {dtype}")));
    }
    if options.momentum.is_none() && arguments.running_mean.is_some() && tracked.is_none() {
        return Err(Error::expected(Code::Argument, OP, "numBatchesTracked with momentum null", "none"));
    }
    group.map_or(Ok(()), |group| group.expect_member("syncBatchNorm"))
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
    check_training(input, shape, &arguments, options, group, output.as_slice())?;
    let group = group.filter(|group| group.size() > 1).cloned();
    let mut saved = Saved {
        statistics: Cpu.new_buffer(slot_bytes(shape.channels, DType::F64))?,
        shape,
        dtype: input.dtype(),
        batch_statistics: true,
        group,
    };
    let running = arguments.running_mean.zip(arguments.running_var).map(|(mean, var)| RunningStats {
        mean,
        var,
        momentum: options.momentum,
        num_batches_tracked: arguments.num_batches_tracked,
    });
    let mut statistics = std::mem::take(&mut saved.statistics);
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
    sync_batch_norm::forward(&Cpu, saved.group(), call)?;
    Ok(Saved { statistics, ..saved })
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
    const OP: &str = "batchNorm";
    expect_eps(eps)?;
    expect_numel(OP, "input", input, shape)?;
    let Some((mean, var)) = running else {
        return Err(Error::expected(Code::Argument, OP, "runningMean and runningVar in eval mode", "none"));
    };
    for (what, slice) in
        [("weight", affine.0), ("bias", affine.1), ("runningMean", Some(mean)), ("runningVar", Some(var))]
    {
        expect_channels(OP, what, slice.map(describe), shape, input.dtype())?;
    }
    let mut statistics = Cpu.new_buffer(slot_bytes(shape.channels, DType::F64))?;
    Cpu.constant_statistics(mean, var, eps, &mut statistics)?;
    Cpu.elemt(Elemt { input, shape, weight: affine.0, bias: affine.1, statistics: &statistics, output })?;
    Ok(Saved { statistics, shape, dtype: input.dtype(), batch_statistics: false, group: None })
}

/// Count, mean and M2 of this rank's input.
pub fn stats(input: HostSlice<'_>, shape: BatchNormShape) -> Result<ChannelStats> {
    expect_numel("batchNormStats", "input", input, shape)?;
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
    write_slot(&mut messages[group.rank() * slot..][..slot], local.count, &local.mean, &local.m2);
    group.all_gather(&mut messages)?;
    Ok(message::merge_slots(&messages, local.channels()))
}

fn expect_stats(op: &str, stats: &ChannelStats, channels: usize) -> Result<()> {
    if stats.mean.len() == channels && stats.m2.len() == channels {
        return Ok(());
    }
    let got = format!("{} and {}", stats.mean.len(), stats.m2.len());
    Err(Error::expected(Code::Shape, op, format!("mean and m2 of {channels} channels"), got))
}

/// The slot (count, mean, 1/√(var + eps)) of known statistics.
fn statistics_slot(op: &str, stats: &ChannelStats, shape: BatchNormShape, eps: f64) -> Result<Vec<u8>> {
    expect_eps(eps)?;
    expect_stats(op, stats, shape.channels)?;
    let invstd: Vec<f64> = (0..shape.channels).map(|channel| 1.0 / (stats.var(channel) + eps).sqrt()).collect();
    let mut slot = vec![0; slot_bytes(shape.channels, DType::F64)];
    write_slot(&mut slot, stats.count, &stats.mean, &invstd);
    Ok(slot)
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
    expect_numel(OP, "input", input, shape)?;
    let statistics = statistics_slot(OP, stats, shape, eps)?;
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

/// This rank's sums for backward.
pub fn backward_reduce(
    grad_output: HostSlice<'_>,
    input: HostSlice<'_>,
    shape: BatchNormShape,
    stats: &ChannelStats,
    eps: f64,
) -> Result<BackwardSums> {
    const OP: &str = "batchNormBackwardReduce";
    expect_numel(OP, "input", input, shape)?;
    expect_numel(OP, "gradOutput", grad_output, shape)?;
    let statistics = &statistics_slot(OP, stats, shape, eps)?;
    let mut sums = Cpu.new_buffer(sums_bytes(shape.channels, 2, DType::F64))?;
    let call =
        BackwardReduce { input, grad_output, shape, statistics, sums: &mut sums, grad_weight: None, grad_bias: None };
    Cpu.backward_reduce(call)?;
    let mut sum_dy = read_row(&sums);
    let sum_dy_xmu = sum_dy.split_off(shape.channels);
    Ok(BackwardSums { sum_dy, sum_dy_xmu })
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
    expect_numel(OP, "input", input, shape)?;
    expect_numel(OP, "gradOutput", grad_output, shape)?;
    expect_channels(OP, "weight", weight.map(describe), shape, input.dtype())?;
    if sums.sum_dy.len() != shape.channels || sums.sum_dy_xmu.len() != shape.channels {
        let got = format!("{} and {}", sums.sum_dy.len(), sums.sum_dy_xmu.len());
        return Err(Error::expected(Code::Shape, OP, format!("sums of {} channels", shape.channels), got));
    }
    let statistics = &statistics_slot(OP, stats, shape, eps)?;
    let mut rows = vec![0; sums_bytes(shape.channels, 2, DType::F64)];
    let (first, second) = rows.split_at_mut(shape.channels * 8);
    write_row(first, &sums.sum_dy);
    write_row(second, &sums.sum_dy_xmu);
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
