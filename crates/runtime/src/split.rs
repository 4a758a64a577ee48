//! The split of batch norm on tensors, for adapters that keep some of the work elsewhere: per-channel numbers come to
//! the host, tensors stay where they are.

use crate::array::{self, BackwardSums, statistics_slot};
use crate::batch_norm::describe;
use crate::check::expect_channels;
use crate::device::{Backend, Device, expect_one_device, keep_waiting};
use crate::tensor::Tensor;
use syncbn_core::kernels::{BackwardApply, BackwardReduce, Elemt};
use syncbn_core::message::{read_slot_of, slot_bytes, sums_bytes};
use syncbn_core::{BatchNormShape, ChannelStats, DType, Result};
use syncbn_cpu::Cpu;
use syncbn_cuda::{Cuda, CudaBuffer};

/// A device whose small buffers are read and written by the host.
trait HostAccess: Backend {
    fn download(&self, buffer: &Self::Buffer) -> Result<Vec<u8>>;
    fn upload(&self, bytes: &[u8]) -> Result<Self::Buffer>;
}

impl HostAccess for Cpu {
    fn download(&self, buffer: &Vec<u8>) -> Result<Vec<u8>> {
        Ok(buffer.clone())
    }

    fn upload(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        Ok(bytes.to_vec())
    }
}

impl HostAccess for Cuda {
    fn download(&self, buffer: &CudaBuffer) -> Result<Vec<u8>> {
        buffer.to_host(&keep_waiting)
    }

    fn upload(&self, bytes: &[u8]) -> Result<CudaBuffer> {
        let buffer = self.buffer(bytes.len())?;
        Cuda::upload(self, bytes, buffer.slice_mut(DType::F32))?;
        Ok(buffer)
    }
}

/// Calls `$function(&device, …)` on the device of `$tensor`.
macro_rules! on {
    ($tensor:expr, $function:ident($($argument:expr),*)) => {
        match $tensor.device() {
            Device::Cpu => $function(&Cpu, $($argument),*),
            Device::Cuda(cuda) => $function(&cuda, $($argument),*),
        }
    };
}

fn shape_of(op: &str, input: &Tensor) -> Result<BatchNormShape> {
    input.expect_float(op)?;
    BatchNormShape::new(op, input.shape(), input.format())
}

/// Count, mean and M2 of this rank's input.
pub fn stats(input: &Tensor) -> Result<ChannelStats> {
    let shape = shape_of("batchNormStats", input)?;
    on!(input, stats_on(input, shape))
}

fn stats_on<K: HostAccess>(kernels: &K, input: &Tensor, shape: BatchNormShape) -> Result<ChannelStats> {
    let rows = kernels.statistics_dtype(input.dtype());
    let mut message = kernels.new_buffer(slot_bytes(shape.channels, rows))?;
    kernels.stats(K::input(&K::read(input)?), shape, &mut message, 0)?;
    let (count, mean, m2) = read_slot_of(&kernels.download(&message)?, rows);
    Ok(ChannelStats { count, mean, m2 })
}

/// y with known statistics.
pub fn apply(
    input: &Tensor,
    stats: &ChannelStats,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    const OP: &str = "batchNormApply";
    let shape = shape_of(OP, input)?;
    expect_one_device(OP, &[input].into_iter().chain(weight).chain(bias).collect::<Vec<_>>())?;
    expect_channels(OP, "weight", weight.map(describe), shape, input.dtype())?;
    expect_channels(OP, "bias", bias.map(describe), shape, input.dtype())?;
    let output = input.empty_like(OP)?;
    on!(input, apply_on((input, &output), shape, stats, (weight, bias), eps))?;
    Ok(output)
}

fn apply_on<K: HostAccess>(
    kernels: &K,
    (input, output): (&Tensor, &Tensor),
    shape: BatchNormShape,
    stats: &ChannelStats,
    (weight, bias): (Option<&Tensor>, Option<&Tensor>),
    eps: f64,
) -> Result<()> {
    let rows = kernels.statistics_dtype(input.dtype());
    let statistics = &kernels.upload(&statistics_slot("batchNormApply", stats, shape, eps, rows)?)?;
    let (weight, bias) = (weight.map(K::read).transpose()?, bias.map(K::read).transpose()?);
    let (input, mut output) = (K::read(input)?, K::write(output)?);
    kernels.elemt(Elemt {
        input: K::input(&input),
        shape,
        weight: weight.as_ref().map(K::input),
        bias: bias.as_ref().map(K::input),
        statistics,
        output: K::output(&mut output),
    })
}

/// `gradient` like the input: its shape, type and format.
fn gradient_like(op: &str, input: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    expect_one_device(op, &[input, gradient])?;
    gradient.expect_dtype(op, "gradOutput", input.dtype())?;
    gradient.expect_shape(op, input.shape())?;
    gradient.to_format(input.format())
}

/// This rank's sums for backward.
pub fn backward_reduce(grad_output: &Tensor, input: &Tensor, stats: &ChannelStats, eps: f64) -> Result<BackwardSums> {
    const OP: &str = "batchNormBackwardReduce";
    let shape = shape_of(OP, input)?;
    let grad_output = gradient_like(OP, input, grad_output)?;
    on!(input, backward_reduce_on(&grad_output, input, shape, stats, eps))
}

fn backward_reduce_on<K: HostAccess>(
    kernels: &K,
    grad_output: &Tensor,
    input: &Tensor,
    shape: BatchNormShape,
    stats: &ChannelStats,
    eps: f64,
) -> Result<BackwardSums> {
    let rows = kernels.statistics_dtype(input.dtype());
    let statistics = &kernels.upload(&statistics_slot("batchNormBackwardReduce", stats, shape, eps, rows)?)?;
    let mut sums = kernels.new_buffer(sums_bytes(shape.channels, 2, rows))?;
    let (input, grad_output) = (K::read(input)?, K::read(grad_output)?);
    kernels.backward_reduce(BackwardReduce {
        input: K::input(&input),
        grad_output: K::input(&grad_output),
        shape,
        statistics,
        sums: &mut sums,
        grad_weight: None,
        grad_bias: None,
    })?;
    Ok(BackwardSums::from_rows(&kernels.download(&sums)?, rows))
}

/// dL/dx from the group's statistics and sums.
pub fn backward_apply(
    grad_output: &Tensor,
    input: &Tensor,
    weight: Option<&Tensor>,
    stats: &ChannelStats,
    sums: &BackwardSums,
    eps: f64,
) -> Result<Tensor> {
    const OP: &str = "batchNormBackwardApply";
    let shape = shape_of(OP, input)?;
    let grad_output = gradient_like(OP, input, grad_output)?;
    expect_one_device(OP, &[input].into_iter().chain(weight).collect::<Vec<_>>())?;
    expect_channels(OP, "weight", weight.map(describe), shape, input.dtype())?;
    sums.expect(OP, shape.channels)?;
    let grad_input = input.empty_like(OP)?;
    on!(input, backward_apply_on((&grad_output, input, weight), &grad_input, shape, (stats, sums), eps))?;
    Ok(grad_input)
}

fn backward_apply_on<K: HostAccess>(
    kernels: &K,
    (grad_output, input, weight): (&Tensor, &Tensor, Option<&Tensor>),
    grad_input: &Tensor,
    shape: BatchNormShape,
    (stats, sums): (&ChannelStats, &BackwardSums),
    eps: f64,
) -> Result<()> {
    let rows = kernels.statistics_dtype(input.dtype());
    let statistics = &kernels.upload(&statistics_slot("batchNormBackwardApply", stats, shape, eps, rows)?)?;
    let sums = &kernels.upload(&sums.rows(rows))?;
    let weight = weight.map(K::read).transpose()?;
    let (input, grad_output, mut grad_input) = (K::read(input)?, K::read(grad_output)?, K::write(grad_input)?);
    kernels.backward_apply(BackwardApply {
        input: K::input(&input),
        grad_output: K::input(&grad_output),
        shape,
        weight: weight.as_ref().map(K::input),
        statistics,
        sums: Some(sums),
        grad_input: K::output(&mut grad_input),
    })
}

/// Updates running statistics from known ones; see [`array::update_running`].
pub fn update_running(mean: &Tensor, var: &Tensor, stats: &ChannelStats, momentum: f64) -> Result<()> {
    let (host_mean, host_var) = (on_host(mean)?, on_host(var)?);
    array::update_running(host_mean.write()?.slice(), host_var.write()?.slice(), stats, momentum)?;
    for (tensor, updated) in [(mean, &host_mean), (var, &host_var)] {
        match tensor.device() {
            Device::Cpu => tensor.storage().bump_version(),
            Device::Cuda(_) => tensor.copy_from(updated)?,
        }
    }
    Ok(())
}

fn on_host(tensor: &Tensor) -> Result<Tensor> {
    tensor.to_device(&Device::Cpu)
}
