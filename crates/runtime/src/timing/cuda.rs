//! The same on a GPU, by its own clock.
//!
//! What is timed is recorded into a graph, several times over, and replayed: so the device is never idle for want of a
//! launch, and a number is the time of the kernels with the gaps a recorded step has, whatever the host's speed. The
//! operands stay the same, so those that fit into the GPU's cache are read from there.

use crate::device::keep_waiting;
use crate::random::{Distribution, random};
use std::sync::Arc;
use syncbn_core::{DType, MemoryFormat, Ops, Result};
use syncbn_cuda::{Cuda, CudaBuffer, CudaSlice, Event, Graph};

pub use super::cuda_batch_norm::{BatchNormTimes, Problem, time_batch_norm};

/// Times the work is recorded in one graph, whose launch is then a small part of what it takes.
const REPEATS: usize = 10;
/// Replays that are not counted.
const WARM_UP: usize = 3;
/// Random numbers that are drawn; longer tensors repeat them.
const DRAWN: usize = 1 << 16;

/// Milliseconds of `work`, which enqueues on the device's compute stream: one number for each of `iterations` replays.
pub(super) fn time(cuda: &Cuda, iterations: usize, mut work: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    // Modules are loaded and memory is made by the first call, which cannot be recorded.
    work()?;
    let graph = record(cuda, &mut work)?;
    (0..WARM_UP).try_for_each(|_| graph.replay())?;
    let marks = (0..=iterations).map(|_| cuda.new_event(true)).collect::<Result<Vec<Event>>>()?;
    for (index, mark) in marks.iter().enumerate() {
        if index > 0 {
            graph.replay()?;
        }
        mark.record(cuda.stream())?;
    }
    cuda.synchronize(&keep_waiting)?;
    let between = |pair: &[Event]| Ok(pair[0].milliseconds_to(&pair[1])? / REPEATS as f64);
    marks.windows(2).map(between).collect()
}

fn record(cuda: &Cuda, work: &mut impl FnMut() -> Result<()>) -> Result<Arc<Graph>> {
    cuda.start_capture()?;
    let recorded = (0..REPEATS).try_for_each(|_| work());
    if recorded.is_err() {
        cuda.abandon_capture();
    }
    recorded.and_then(|()| cuda.finish_capture())
}

/// Memory of `numel` normally distributed numbers.
pub(super) fn random_buffer(cuda: &Cuda, numel: usize, dtype: DType) -> Result<CudaBuffer> {
    let buffer = cuda.tensor_buffer(dtype, &[numel])?;
    let drawn = numel.min(DRAWN);
    let host = random(Distribution::Normal, &[drawn], dtype, MemoryFormat::Contiguous)?;
    let first = host.to_device(&crate::Device::Cuda(cuda.clone()))?;
    let part = |from: usize, to: usize| buffer.slice_mut(dtype).part(from..to);
    cuda.copy_bytes(first.storage().cuda()?.read()?.slice(), part(0, drawn))?;
    let mut done = drawn;
    while done < numel {
        let next = numel.min(2 * done);
        cuda.copy_bytes(buffer.slice(dtype).part(0..next - done), part(done, next))?;
        done = next;
    }
    Ok(buffer)
}

/// Milliseconds of each copy; see [`time_copy`].
#[derive(Clone, Debug, PartialEq)]
pub struct CopyTimes {
    /// By the driver's copy on one device.
    pub driver: Vec<f64>,
    /// By the kernel of relu, which reads and writes as many bytes and computes next to nothing.
    pub kernel: Vec<f64>,
}

/// How long the device takes to copy `bytes` of its memory in each way; twice as many bytes are moved.
pub fn time_copy(cuda: &Cuda, bytes: usize, iterations: usize) -> Result<CopyTimes> {
    let numel = bytes / DType::F32.size();
    let (source, target) = (random_buffer(cuda, numel, DType::F32)?, random_buffer(cuda, numel, DType::F32)?);
    let from = || -> CudaSlice<'_> { source.slice(DType::F32) };
    let driver = time(cuda, iterations, || cuda.copy_bytes(from(), target.slice_mut(DType::F32)))?;
    let kernel = time(cuda, iterations, || cuda.relu(from(), target.slice_mut(DType::F32)))?;
    Ok(CopyTimes { driver, kernel })
}
