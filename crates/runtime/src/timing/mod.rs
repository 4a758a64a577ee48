//! What the native work costs without the language around it: for benchmarks. Here on the host; [`cuda`] on a GPU.

pub mod cuda;
mod cuda_batch_norm;

use crate::device::Device;
use crate::process_group::ProcessGroup;
use crate::random::{Distribution, random};
use crate::tensor::Tensor;
use std::time::Instant;
use syncbn_core::kernels::{BackwardApply, BackwardReduce, Normalize, RunningStats};
use syncbn_core::message::{slot_bytes, sums_bytes};
use syncbn_core::{BatchNormShape, DType, Kernels, MemoryFormat, Result};
use syncbn_cpu::Cpu;

fn milliseconds(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// Milliseconds of each of `iterations` all_gathers of `bytes` per rank, back to back.
pub fn time_all_gather(group: &ProcessGroup, bytes: usize, iterations: usize) -> Result<Vec<f64>> {
    group.expect_member("all_gather")?;
    let mut slots = vec![0; bytes * group.size()];
    group.run(|group| (0..iterations).map(|_| milliseconds(|| group.all_gather(&mut slots))).collect())
}

/// The tensors of a float32 batch norm step, made once.
struct Step {
    shape: BatchNormShape,
    input: Tensor,
    grad_output: Tensor,
    /// y, then dx.
    output: Tensor,
    /// weight, bias, running mean, running variance, grad_weight, grad_bias.
    channels: [Tensor; 6],
}

impl Step {
    fn new(shape: &[usize], format: MemoryFormat) -> Result<Self> {
        let tensor = |shape: &[usize]| random(Distribution::Normal, shape, DType::F32, format);
        let per_channel = || Tensor::full(&Device::Cpu, &shape[1..2], 1.0, DType::F32, MemoryFormat::Contiguous);
        let parsed = BatchNormShape::new("timeBatchNorm", shape, format)?;
        let (input, grad_output) = (tensor(shape)?, tensor(shape)?);
        let channels = [(); 6].map(|()| per_channel());
        let [a, b, c, d, e, f] = channels;
        Ok(Self { shape: parsed, output: input.duplicate()?, input, grad_output, channels: [a?, b?, c?, d?, e?, f?] })
    }

    fn forward(&self, statistics: &mut Vec<u8>) -> Result<()> {
        let [weight, bias, mean, var, ..] = &self.channels;
        let (weight, bias, mut mean, mut var) = (weight.read()?, bias.read()?, mean.write()?, var.write()?);
        let (input, mut output) = (self.input.read()?, self.output.write()?);
        let mut messages = Cpu.new_buffer(slot_bytes(self.shape.channels, DType::F64))?;
        Cpu.stats(input.slice(), self.shape, &mut messages, 0)?;
        let running =
            RunningStats { mean: mean.slice(), var: var.slice(), momentum: Some(0.1), num_batches_tracked: None };
        Cpu.normalize(Normalize {
            input: input.slice(),
            shape: self.shape,
            weight: Some(weight.slice()),
            bias: Some(bias.slice()),
            eps: 1e-5,
            messages: &messages,
            world_size: 1,
            running: Some(running),
            output: output.slice(),
            statistics,
        })
    }

    fn backward(&self, statistics: &Vec<u8>) -> Result<()> {
        let [weight, .., grad_weight, grad_bias] = &self.channels;
        let (input, grad_output, weight) = (self.input.read()?, self.grad_output.read()?, weight.read()?);
        let (mut grad_weight, mut grad_bias) = (grad_weight.write()?, grad_bias.write()?);
        let (mut grad_input, shape) = (self.output.write()?, self.shape);
        let mut sums = Cpu.new_buffer(sums_bytes(shape.channels, 2, DType::F64))?;
        Cpu.backward_reduce(BackwardReduce {
            input: input.slice(),
            grad_output: grad_output.slice(),
            shape,
            statistics,
            sums: &mut sums,
            grad_weight: Some(grad_weight.slice()),
            grad_bias: Some(grad_bias.slice()),
        })?;
        Cpu.backward_apply(BackwardApply {
            input: input.slice(),
            grad_output: grad_output.slice(),
            shape,
            weight: Some(weight.slice()),
            statistics,
            sums: Some(&sums),
            grad_input: grad_input.slice(),
        })
    }
}

/// Milliseconds of `iterations` float32 steps in two phases, as an exchange between ranks requires, on tensors that are
/// made once: (forward, backward). Some steps more are made first and not counted.
pub fn time_batch_norm(shape: &[usize], format: MemoryFormat, iterations: usize) -> Result<(Vec<f64>, Vec<f64>)> {
    const WARM_UP: usize = 3;
    let step = Step::new(shape, format)?;
    let mut statistics = Cpu.new_buffer(slot_bytes(step.shape.channels, DType::F64))?;
    let (mut forward, mut backward) = (vec![], vec![]);
    for _ in 0..WARM_UP + iterations {
        forward.push(milliseconds(|| step.forward(&mut statistics))?);
        backward.push(milliseconds(|| step.backward(&statistics))?);
    }
    Ok((forward.split_off(WARM_UP), backward.split_off(WARM_UP)))
}
