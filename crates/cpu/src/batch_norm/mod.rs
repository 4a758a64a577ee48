//! Batch norm on host memory: [`syncbn_core::Kernels`] for [`Cpu`].
//!
//! Statistics are exchanged and kept in float64 for every input type; within a block of some thousand values sums are
//! made in the input's [`DType::accumulate`] type about a pivot near the mean. Results depend on the shape, the values
//! and the instruction set, not on the number of threads. Every argument is checked before anything is written.
//!
//! Code map: `plan` cuts the work, `planes` and `rows` are the loops of the two layouts, `moments` and `coefficients`
//! the float64 arithmetic between them, `forward`, `backward` and `double_backward` the drivers, this file the seam.

mod backward;
mod check;
mod coefficients;
mod double_backward;
mod forward;
mod moments;
mod plan;
mod planes;
mod rows;
mod running;

use crate::Cpu;
use crate::simd::Scalar;
use crate::slice::{HostSlice, HostSliceMut};
use check::Statistics;
use forward::Affine;
use plan::Plan;
use syncbn_core::kernels::{
    Backward, BackwardApply, BackwardReduce, DoubleBackwardApply, DoubleBackwardReduce, Elemt, Forward, Kernels,
    Normalize, RunningStats,
};
use syncbn_core::message::{merge_slots, read_row, slot_bytes, write_row, write_slot};
use syncbn_core::{BatchNormShape, Code, DType, Error, Result};

/// Calls `$function::<type of $input>(…)`.
macro_rules! by_dtype {
    ($op:literal, $input:expr, $function:ident($($argument:expr),*)) => {
        match $input.dtype() {
            DType::F32 => $function::<f32>($($argument),*),
            DType::F64 => $function::<f64>($($argument),*),
            other => Err(Error::expected(Code::DType, $op, "input of float32 or float64", other)),
        }
    };
}

impl Kernels for Cpu {
    fn statistics_dtype(&self, _input: DType) -> DType {
        DType::F64
    }

    fn dtype(&self, input: Self::In<'_>) -> DType {
        input.dtype()
    }

    fn new_buffer(&self, bytes: usize) -> Result<Self::Buffer> {
        Ok(vec![0; bytes])
    }

    fn stats(
        &self,
        input: Self::In<'_>,
        shape: BatchNormShape,
        messages: &mut Self::Buffer,
        slot: usize,
    ) -> Result<()> {
        by_dtype!("batch_norm_stats", input, stats(input, shape, messages, slot))
    }

    fn normalize(&self, call: Normalize<'_, '_, Self>) -> Result<()> {
        by_dtype!("batch_norm", call.input, normalize(call))
    }

    fn constant_statistics(
        &self,
        mean: HostSlice<'_>,
        var: HostSlice<'_>,
        eps: f64,
        statistics: &mut Vec<u8>,
    ) -> Result<()> {
        const OP: &str = "batch_norm";
        check::length(OP, "running_var", mean.len(), var.len())?;
        let mean = check::read_row(OP, "running_mean", mean)?;
        let var = check::read_row(OP, "running_var", var)?;
        let shape = BatchNormShape { batch: 0, channels: mean.len(), spatial: 0, channels_last: false };
        check::slots(OP, shape, 1, statistics.len())?;
        let invstd: Vec<f64> = var.iter().map(|var| 1.0 / (var + eps).sqrt()).collect();
        write_slot(statistics, 0, &mean, &invstd);
        Ok(())
    }

    fn elemt(&self, call: Elemt<'_, '_, Self>) -> Result<()> {
        by_dtype!("batch_norm_elemt", call.input, elemt(call))
    }

    fn backward_reduce(&self, call: BackwardReduce<'_, '_, Self>) -> Result<()> {
        by_dtype!("batch_norm_backward_reduce", call.input, backward_reduce(call))
    }

    fn backward_apply(&self, call: BackwardApply<'_, '_, Self>) -> Result<()> {
        by_dtype!("batch_norm_backward_elemt", call.input, backward_apply(call))
    }

    fn double_backward_reduce(&self, call: DoubleBackwardReduce<'_, '_, Self>) -> Result<()> {
        by_dtype!("batch_norm_double_backward", call.input, double_backward_reduce(call))
    }

    fn double_backward_apply(&self, call: DoubleBackwardApply<'_, '_, Self>) -> Result<()> {
        by_dtype!("batch_norm_double_backward", call.input, double_backward_apply(call))
    }

    fn forward(&self, call: Forward<'_, '_, Self>) -> Result<()> {
        by_dtype!("batch_norm", call.input, forward_fused(call))
    }

    fn backward(&self, call: Backward<'_, '_, Self>) -> Result<()> {
        by_dtype!("batch_norm_backward", call.input, backward_fused(call))
    }
}

fn stats<S: Scalar>(input: HostSlice<'_>, shape: BatchNormShape, messages: &mut [u8], slot: usize) -> Result<()> {
    const OP: &str = "batch_norm_stats";
    let (x, size) = (check::tensor::<S>(OP, "input", input, shape.numel())?, slot_bytes(shape.channels, DType::F64));
    let (slots, got) = (messages.len() / size, messages.len());
    if slot >= slots || got % size != 0 {
        let expected = format!("messages of whole slots of {size} bytes, {} at least", slot + 1);
        return Err(Error::expected(Code::Argument, OP, expected, format!("{got} bytes")));
    }
    let message = &mut messages[slot * size..][..size];
    if x.is_empty() {
        message.fill(0);
        return Ok(());
    }
    let found = forward::stats(&Plan::new(shape), x);
    let (mean, m2) = found.split_at(shape.channels);
    write_slot(message, shape.count() as u64, mean, m2);
    Ok(())
}

fn affine<S: Scalar>(
    op: &str,
    weight: Option<HostSlice<'_>>,
    bias: Option<HostSlice<'_>>,
    channels: usize,
) -> Result<Affine> {
    Ok(Affine {
        weight: check::row::<S>(op, "weight", weight, channels, 1.0)?,
        bias: check::row::<S>(op, "bias", bias, channels, 0.0)?,
    })
}

/// Training needs more than one value: the variance of a single one is always 0, its unbiased variance 0/0.
fn check_count(op: &str, count: u64) -> Result<()> {
    if count != 1 {
        return Ok(());
    }
    let message = format!("{op}: Expected more than 1 value per channel when training, got {count}");
    Err(Error::new(Code::TooFewValues, message))
}

fn commit(running: Option<RunningStats<'_, Cpu>>, count: u64, mean: &[f64], m2: &[f64]) {
    if let Some(running) = running {
        running::commit(running, count, mean, m2);
    }
}

fn normalize<S: Scalar>(call: Normalize<'_, '_, Cpu>) -> Result<()> {
    const OP: &str = "batch_norm";
    let (shape, channels) = (call.shape, call.shape.channels);
    let x = check::tensor::<S>(OP, "input", call.input, shape.numel())?;
    let y = check::tensor_mut::<S>(OP, "output", call.output, shape.numel())?;
    let affine = affine::<S>(OP, call.weight, call.bias, channels)?;
    running::check(OP, call.running.as_ref(), channels)?;
    check::slots(OP, shape, call.world_size, call.messages.len())?;
    check::slots(OP, shape, 1, call.statistics.len())?;
    let merged = merge_slots(call.messages, channels);
    check_count(OP, merged.count)?;
    if merged.count == 0 {
        call.statistics.fill(0);
        return Ok(());
    }
    let invstd = forward::invstd::<S>(&merged.m2, merged.count as f64, call.eps);
    if !x.is_empty() {
        forward::elemt(&Plan::new(shape), x, y, [&merged.mean, &invstd], &affine);
    }
    write_slot(call.statistics, merged.count, &merged.mean, &invstd);
    commit(call.running, merged.count, &merged.mean, &merged.m2);
    Ok(())
}

fn forward_fused<S: Scalar>(call: Forward<'_, '_, Cpu>) -> Result<()> {
    const OP: &str = "batch_norm";
    let (shape, channels) = (call.shape, call.shape.channels);
    let x = check::tensor::<S>(OP, "input", call.input, shape.numel())?;
    let y = check::tensor_mut::<S>(OP, "output", call.output, shape.numel())?;
    let affine = affine::<S>(OP, call.weight, call.bias, channels)?;
    running::check(OP, call.running.as_ref(), channels)?;
    check::slots(OP, shape, 1, call.statistics.len())?;
    let count = shape.count() as u64;
    check_count(OP, count)?;
    if count == 0 {
        call.statistics.fill(0);
        return Ok(());
    }
    let found = forward::fused(&Plan::new(shape), x, y, call.eps, &affine);
    let (mean, m2, invstd) = (&found[..channels], &found[channels..2 * channels], &found[2 * channels..]);
    write_slot(call.statistics, count, mean, invstd);
    commit(call.running, count, mean, m2);
    Ok(())
}

fn elemt<S: Scalar>(call: Elemt<'_, '_, Cpu>) -> Result<()> {
    const OP: &str = "batch_norm_elemt";
    let shape = call.shape;
    let x = check::tensor::<S>(OP, "input", call.input, shape.numel())?;
    let y = check::tensor_mut::<S>(OP, "output", call.output, shape.numel())?;
    let affine = affine::<S>(OP, call.weight, call.bias, shape.channels)?;
    let statistics = Statistics::read(OP, shape, call.statistics)?;
    if !x.is_empty() {
        forward::elemt(&Plan::new(shape), x, y, [&statistics.mean, &statistics.invstd], &affine);
    }
    Ok(())
}

/// Writes the parameter gradients from this rank's Σdy and Σdy·(x − mean).
fn write_parameter_gradients(
    sums: &[f64],
    invstd: &[f64],
    grad_weight: Option<HostSliceMut<'_>>,
    grad_bias: Option<HostSliceMut<'_>>,
) {
    let (sum_dy, sum_dy_xmu) = sums.split_at(invstd.len());
    if let Some(grad_weight) = grad_weight {
        check::write_row(grad_weight, sum_dy_xmu.iter().zip(invstd).map(|(sum, invstd)| sum * invstd));
    }
    if let Some(grad_bias) = grad_bias {
        check::write_row(grad_bias, sum_dy.iter().copied());
    }
}

/// Σdy and Σdy·(x − mean) over this rank's elements, zeros if there are none.
fn local_sums<S: Scalar>(shape: BatchNormShape, inputs: &backward::Inputs<'_, S>) -> Vec<f64> {
    if inputs.x.is_empty() { vec![0.0; 2 * shape.channels] } else { backward::reduce(&Plan::new(shape), inputs) }
}

fn backward_reduce<S: Scalar>(call: BackwardReduce<'_, '_, Cpu>) -> Result<()> {
    const OP: &str = "batch_norm_backward_reduce";
    let (shape, channels) = (call.shape, call.shape.channels);
    let x = check::tensor::<S>(OP, "input", call.input, shape.numel())?;
    let dy = check::tensor::<S>(OP, "grad_output", call.grad_output, shape.numel())?;
    let Statistics { mean, invstd, .. } = Statistics::read(OP, shape, call.statistics)?;
    check::sums(OP, shape, 2, call.sums.len())?;
    check::output_row(OP, "grad_weight", call.grad_weight.as_ref(), channels)?;
    check::output_row(OP, "grad_bias", call.grad_bias.as_ref(), channels)?;
    let sums = local_sums(shape, &backward::Inputs { x, dy, mean: &mean, invstd: &invstd, weight: &[] });
    write_row(call.sums, &sums);
    write_parameter_gradients(&sums, &invstd, call.grad_weight, call.grad_bias);
    Ok(())
}

fn backward_apply<S: Scalar>(call: BackwardApply<'_, '_, Cpu>) -> Result<()> {
    const OP: &str = "batch_norm_backward_elemt";
    let (shape, channels) = (call.shape, call.shape.channels);
    let x = check::tensor::<S>(OP, "input", call.input, shape.numel())?;
    let dy = check::tensor::<S>(OP, "grad_output", call.grad_output, shape.numel())?;
    let dx = check::tensor_mut::<S>(OP, "grad_input", call.grad_input, shape.numel())?;
    let weight = check::row::<S>(OP, "weight", call.weight, channels, 1.0)?;
    let Statistics { count, mean, invstd } = Statistics::read(OP, shape, call.statistics)?;
    if let Some(sums) = call.sums {
        check::sums(OP, shape, 2, sums.len())?;
        if count == 0 {
            dx.fill(S::from_f64(0.0));
            return Ok(());
        }
    }
    if x.is_empty() {
        return Ok(());
    }
    let inputs = backward::Inputs { x, dy, mean: &mean, invstd: &invstd, weight: &weight };
    let sums = call.sums.map_or_else(|| vec![0.0; 2 * channels], |sums| read_row(sums));
    let over_count = if call.sums.is_some() { 1.0 / count as f64 } else { 0.0 };
    backward::apply(&Plan::new(shape), &inputs, &sums, over_count, dx);
    Ok(())
}

fn backward_fused<S: Scalar>(call: Backward<'_, '_, Cpu>) -> Result<()> {
    const OP: &str = "batch_norm_backward";
    let (shape, channels) = (call.shape, call.shape.channels);
    let x = check::tensor::<S>(OP, "input", call.input, shape.numel())?;
    let dy = check::tensor::<S>(OP, "grad_output", call.grad_output, shape.numel())?;
    let dx = call.grad_input.map(|dx| check::tensor_mut::<S>(OP, "grad_input", dx, shape.numel())).transpose()?;
    let weight = check::row::<S>(OP, "weight", call.weight, channels, 1.0)?;
    let Statistics { count, mean, invstd } = Statistics::read(OP, shape, call.statistics)?;
    check::output_row(OP, "grad_weight", call.grad_weight.as_ref(), channels)?;
    check::output_row(OP, "grad_bias", call.grad_bias.as_ref(), channels)?;
    if call.batch_statistics {
        check::length(OP, "statistics over the input", shape.count(), count as usize)?;
    }
    let inputs = backward::Inputs { x, dy, mean: &mean, invstd: &invstd, weight: &weight };
    let sums = match dx {
        Some(dx) if !x.is_empty() && call.batch_statistics => backward::fused(&Plan::new(shape), &inputs, dx),
        Some(dx) if !x.is_empty() => {
            let wanted = call.grad_weight.is_some() || call.grad_bias.is_some();
            let zeros = vec![0.0; 2 * channels];
            backward::apply(&Plan::new(shape), &inputs, &zeros, 0.0, dx);
            if wanted { local_sums(shape, &inputs) } else { zeros }
        }
        _ => local_sums(shape, &inputs),
    };
    write_parameter_gradients(&sums, &invstd, call.grad_weight, call.grad_bias);
    Ok(())
}

fn double_backward_reduce<S: Scalar>(call: DoubleBackwardReduce<'_, '_, Cpu>) -> Result<()> {
    const OP: &str = "batch_norm_double_backward";
    let (shape, channels) = (call.shape, call.shape.channels);
    let statistics = Statistics::read(OP, shape, call.statistics)?;
    let inputs = double_backward::Inputs {
        x: check::tensor::<S>(OP, "input", call.input, shape.numel())?,
        dy: check::tensor::<S>(OP, "grad_output", call.grad_output, shape.numel())?,
        g: check::tensor::<S>(OP, "grad_grad_input", call.grad_grad_input, shape.numel())?,
        ggw: &check::row::<S>(OP, "grad_grad_weight", call.grad_grad_weight, channels, 0.0)?,
        ggb: &[],
        weight: &check::row::<S>(OP, "weight", call.weight, channels, 1.0)?,
        mean: &statistics.mean,
        invstd: &statistics.invstd,
    };
    check::sums(OP, shape, double_backward::GROUP_ROWS, call.sums.len())?;
    check::sums(OP, shape, double_backward::LOCAL_ROWS, call.local_sums.len())?;
    if inputs.x.is_empty() {
        call.sums.fill(0);
        call.local_sums.fill(0);
        return Ok(());
    }
    let (group, local) = double_backward::reduce(&Plan::new(shape), &inputs);
    write_row(call.sums, &group);
    write_row(call.local_sums, &local);
    Ok(())
}

fn double_backward_apply<S: Scalar>(call: DoubleBackwardApply<'_, '_, Cpu>) -> Result<()> {
    const OP: &str = "batch_norm_double_backward";
    let (shape, channels) = (call.shape, call.shape.channels);
    let statistics = Statistics::read(OP, shape, call.statistics)?;
    let inputs = double_backward::Inputs {
        x: check::tensor::<S>(OP, "input", call.input, shape.numel())?,
        dy: check::tensor::<S>(OP, "grad_output", call.grad_output, shape.numel())?,
        g: check::tensor::<S>(OP, "grad_grad_input", call.grad_grad_input, shape.numel())?,
        ggw: &check::row::<S>(OP, "grad_grad_weight", call.grad_grad_weight, channels, 0.0)?,
        ggb: &check::row::<S>(OP, "grad_grad_bias", call.grad_grad_bias, channels, 0.0)?,
        weight: &check::row::<S>(OP, "weight", call.weight, channels, 1.0)?,
        mean: &statistics.mean,
        invstd: &statistics.invstd,
    };
    let to_x = check::tensor_mut::<S>(OP, "grad_input", call.grad_input, shape.numel())?;
    let to_dy = check::tensor_mut::<S>(OP, "grad_grad_output", call.grad_grad_output, shape.numel())?;
    check::output_row(OP, "grad_weight", call.grad_weight.as_ref(), channels)?;
    check::sums(OP, shape, double_backward::LOCAL_ROWS, call.local_sums.len())?;
    call.sums.map_or(Ok(()), |sums| check::sums(OP, shape, double_backward::GROUP_ROWS, sums.len()))?;
    let grad_weight = if inputs.x.is_empty() {
        vec![0.0; channels]
    } else {
        let group = call.sums.map(|sums| read_row(sums));
        let sums = group.as_deref().map(|sums| (sums, statistics.count as f64));
        double_backward::apply(&Plan::new(shape), &inputs, sums, &read_row(call.local_sums), [to_x, to_dy])
    };
    if let Some(out) = call.grad_weight {
        check::write_row(out, grad_weight.into_iter());
    }
    Ok(())
}
