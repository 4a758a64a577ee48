//! Everything a batch norm call can be wrong about, before anything is exchanged or written.

use crate::array::Options;
use crate::process_group::ProcessGroup;
use syncbn_core::{BatchNormShape, ChannelStats, Code, DType, Error, Result};

/// What is checked of an operand: its number of elements and their type.
pub type Operand = (usize, DType);

const OP: &str = "batchNorm";

/// The operands of a training call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Training {
    pub(crate) input: Operand,
    pub(crate) output: Operand,
    pub(crate) weight: Option<Operand>,
    pub(crate) bias: Option<Operand>,
    pub(crate) running_mean: Option<Operand>,
    pub(crate) running_var: Option<Operand>,
    pub(crate) num_batches_tracked: Option<Operand>,
}

/// Fails unless a per-channel operand, given as (elements, type), has C elements of float32 or the input's type.
pub fn expect_channels(
    op: &str,
    what: &str,
    operand: Option<Operand>,
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

/// Fails if running statistics are of a half type: an average that moves by less than its last bit stands still.
fn expect_running(what: &str, operand: Option<Operand>) -> Result<()> {
    match operand {
        Some((_, dtype)) if !matches!(dtype, DType::F32 | DType::F64) => {
            Err(Error::expected(Code::DType, OP, format!("{what} of float32"), dtype))
        }
        _ => Ok(()),
    }
}

pub(crate) fn expect_eps(eps: f64) -> Result<()> {
    if eps > 0.0 && eps.is_finite() {
        return Ok(());
    }
    Err(Error::expected(Code::Argument, OP, "a positive eps", eps))
}

/// Fails unless an operand like the input has as many elements as the shape.
pub(crate) fn expect_numel(op: &str, what: &str, operand: Operand, shape: BatchNormShape) -> Result<()> {
    if operand.0 == shape.numel() {
        return Ok(());
    }
    let expected =
        format!("{what} of {} values ({} × {} × {})", shape.numel(), shape.batch, shape.channels, shape.spatial);
    Err(Error::expected(Code::Shape, op, expected, operand.0))
}

/// Fails unless statistics have a mean and an M2 for each of `channels` channels.
pub(crate) fn expect_stats(op: &str, stats: &ChannelStats, channels: usize) -> Result<()> {
    if stats.mean.len() == channels && stats.m2.len() == channels {
        return Ok(());
    }
    let got = format!("{} and {}", stats.mean.len(), stats.m2.len());
    Err(Error::expected(Code::Shape, op, format!("mean and m2 of {channels} channels"), got))
}

/// Checks a training call.
pub(crate) fn training(
    shape: BatchNormShape,
    operands: &Training,
    options: Options,
    group: Option<&ProcessGroup>,
) -> Result<()> {
    let (_, input) = operands.input;
    expect_eps(options.eps)?;
    expect_numel(OP, "input", operands.input, shape)?;
    expect_numel(OP, "output", operands.output, shape)?;
    if operands.output.1 != input {
        return Err(Error::expected(Code::DType, OP, format!("output of {input}"), operands.output.1));
    }
    if let Some(momentum) = options.momentum.filter(|momentum| !momentum.is_finite()) {
        return Err(Error::expected(Code::Argument, OP, "a finite momentum, or null", momentum));
    }
    expect_channels(OP, "weight", operands.weight, shape, input)?;
    expect_channels(OP, "bias", operands.bias, shape, input)?;
    expect_channels(OP, "runningMean", operands.running_mean, shape, input)?;
    expect_channels(OP, "runningVar", operands.running_var, shape, input)?;
    expect_running("runningMean", operands.running_mean)?;
    expect_running("runningVar", operands.running_var)?;
    if operands.running_mean.is_some() != operands.running_var.is_some() {
        return Err(Error::expected(Code::Argument, OP, "runningMean and runningVar, or neither", "one of them"));
    }
    let tracked = operands.num_batches_tracked;
    if let Some((numel, dtype)) = tracked.filter(|&tracked| tracked != (1, DType::I64)) {
        return Err(Error::expected(Code::DType, OP, "numBatchesTracked of one int64", format!("{numel} of {dtype}")));
    }
    if options.momentum.is_none() && operands.running_mean.is_some() && tracked.is_none() {
        return Err(Error::expected(Code::Argument, OP, "numBatchesTracked with momentum null", "none"));
    }
    group.map_or(Ok(()), |group| group.expect_member("syncBatchNorm"))
}

/// Checks a call with the running statistics, and fails if there are none.
pub(crate) fn eval<T>(
    shape: BatchNormShape,
    input: Operand,
    affine: (Option<Operand>, Option<Operand>),
    running: Option<(T, T)>,
    describe: impl Fn(&T) -> Operand,
    eps: f64,
) -> Result<(T, T)> {
    expect_eps(eps)?;
    expect_numel(OP, "input", input, shape)?;
    let Some((mean, var)) = running else {
        return Err(Error::expected(Code::Argument, OP, "runningMean and runningVar in eval mode", "none"));
    };
    expect_channels(OP, "weight", affine.0, shape, input.1)?;
    expect_channels(OP, "bias", affine.1, shape, input.1)?;
    expect_channels(OP, "runningMean", Some(describe(&mean)), shape, input.1)?;
    expect_channels(OP, "runningVar", Some(describe(&var)), shape, input.1)?;
    Ok((mean, var))
}
