//! Batch norm on a GPU: its kernels one by one, and a step of SyncBatchNorm with the exchange replaced by work on the
//! device itself.

use super::cuda::{random_buffer, time};
use syncbn_core::kernels::{Backward, BackwardApply, BackwardReduce, Forward, Normalize, RunningStats};
use syncbn_core::message::{slot_bytes, sums_bytes};
use syncbn_core::{BatchNormShape, Code, DType, Error, Kernels, MemoryFormat, Ops, Result};
use syncbn_cuda::{Cuda, CudaBuffer};

const EPS: f64 = 1e-5;
const MOMENTUM: f64 = 0.1;

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem<'a> {
    /// One rank's (N, C, *).
    pub shape: &'a [usize],
    /// Order of x, dy, y and dx in memory.
    pub format: MemoryFormat,
    /// Their type: one of floating point.
    pub dtype: DType,
    /// Ranks of the step of SyncBatchNorm, at least 1.
    pub ranks: usize,
}

/// Milliseconds, one number for each replay.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchNormTimes {
    /// Statistics alone.
    pub stats: Vec<f64>,
    /// Merge of the ranks' statistics, normalisation and running statistics.
    pub normalize: Vec<f64>,
    /// Backward's sums and parameter gradients.
    pub backward_reduce: Vec<f64>,
    /// dx.
    pub backward_apply: Vec<f64>,
    /// SyncBatchNorm's forward: statistics, a stand-in for the all_gather, normalisation. The stand-in copies this
    /// rank's slot to the place of each other rank: as many bytes as arrive, by the memory's speed and not a network's.
    pub sync_forward: Vec<f64>,
    /// SyncBatchNorm's backward: sums, a stand-in for the all_reduce, dx. The stand-in multiplies the sums by the number
    /// of ranks, as if all had the same.
    pub sync_backward: Vec<f64>,
    /// Forward of one rank by itself.
    pub forward: Vec<f64>,
    /// Backward of one rank by itself.
    pub backward: Vec<f64>,
}

/// How long each part of `problem` takes on the device; `iterations` numbers each.
///
/// # Errors
/// [`Code::Shape`] as [`BatchNormShape::new`], [`Code::DType`] for integers, [`Code::Argument`] for no ranks.
pub fn time_batch_norm(cuda: &Cuda, problem: Problem<'_>, iterations: usize) -> Result<BatchNormTimes> {
    let mut step = Step::new(cuda, problem)?;
    let mut timed = |part: fn(&mut Step) -> Result<()>| time(cuda, iterations, || part(&mut step));
    // In the order in which each part has what it reads.
    Ok(BatchNormTimes {
        sync_forward: timed(Step::sync_forward)?,
        stats: timed(Step::stats)?,
        normalize: timed(Step::normalize)?,
        sync_backward: timed(Step::sync_backward)?,
        backward_reduce: timed(Step::backward_reduce)?,
        backward_apply: timed(Step::backward_apply)?,
        forward: timed(Step::forward)?,
        backward: timed(Step::backward)?,
    })
}

/// The operands of one rank's step, made once.
struct Step {
    cuda: Cuda,
    shape: BatchNormShape,
    dtype: DType,
    ranks: usize,
    input: CudaBuffer,
    grad_output: CudaBuffer,
    /// y, then dx.
    output: CudaBuffer,
    channels: Channels,
    /// A slot for each rank; this one's is the first.
    messages: CudaBuffer,
    statistics: CudaBuffer,
    sums: CudaBuffer,
}

/// What has C elements, in the type half-precision layers keep it in too.
struct Channels {
    dtype: DType,
    weight: CudaBuffer,
    bias: CudaBuffer,
    mean: CudaBuffer,
    var: CudaBuffer,
    grad_weight: CudaBuffer,
    grad_bias: CudaBuffer,
    num_batches_tracked: CudaBuffer,
}

impl Channels {
    fn new(cuda: &Cuda, channels: usize, dtype: DType) -> Result<Self> {
        let filled = |value: f64| {
            let buffer = cuda.tensor_buffer(dtype, &[channels])?;
            cuda.fill(buffer.slice_mut(dtype), value).map(|()| buffer)
        };
        let tracked = cuda.tensor_buffer(DType::I64, &[1])?;
        cuda.fill(tracked.slice_mut(DType::I64), 0.0)?;
        Ok(Self {
            dtype,
            weight: filled(1.0)?,
            bias: filled(0.0)?,
            mean: filled(0.0)?,
            var: filled(1.0)?,
            grad_weight: filled(0.0)?,
            grad_bias: filled(0.0)?,
            num_batches_tracked: tracked,
        })
    }

    fn running(&self) -> Option<RunningStats<'_, Cuda>> {
        Some(RunningStats {
            mean: self.mean.slice_mut(self.dtype),
            var: self.var.slice_mut(self.dtype),
            momentum: Some(MOMENTUM),
            num_batches_tracked: Some(self.num_batches_tracked.slice_mut(DType::I64)),
        })
    }
}

impl Step {
    fn new(cuda: &Cuda, problem: Problem<'_>) -> Result<Self> {
        const OP: &str = "timeCudaBatchNorm";
        let Problem { shape, format, dtype, ranks } = problem;
        let parsed = BatchNormShape::new(OP, shape, format)?;
        if !dtype.is_float() {
            return Err(Error::expected(Code::DType, OP, "a floating-point dtype", dtype));
        }
        if ranks == 0 {
            return Err(Error::expected(Code::Argument, OP, "at least 1 rank", ranks));
        }
        let (numel, rows) = (parsed.numel(), cuda.statistics_dtype(dtype));
        let slot = slot_bytes(parsed.channels, rows);
        Ok(Self {
            cuda: cuda.clone(),
            shape: parsed,
            dtype,
            ranks,
            input: random_buffer(cuda, numel, dtype)?,
            grad_output: random_buffer(cuda, numel, dtype)?,
            output: cuda.tensor_buffer(dtype, &[numel])?,
            channels: Channels::new(cuda, parsed.channels, dtype.accumulate())?,
            messages: cuda.buffer(ranks * slot)?,
            statistics: cuda.buffer(slot)?,
            sums: cuda.buffer(sums_bytes(parsed.channels, 2, rows))?,
        })
    }

    fn stats(&mut self) -> Result<()> {
        self.cuda.stats(self.input.slice(self.dtype), self.shape, &mut self.messages, 0)
    }

    /// This rank's slot in the place of every other's.
    fn gather(&mut self) -> Result<()> {
        // Slots are whole words of the counts' and the rows' types.
        let words = slot_bytes(self.shape.channels, self.cuda.statistics_dtype(self.dtype)) / DType::F32.size();
        (1..self.ranks).try_for_each(|rank| {
            let slots = self.messages.slice_mut(DType::F32);
            let own = self.messages.slice(DType::F32).part(0..words);
            self.cuda.copy_bytes(own, slots.part(rank * words..(rank + 1) * words))
        })
    }

    fn normalize(&mut self) -> Result<()> {
        let Self { cuda, shape, dtype, ranks, input, output, channels, messages, statistics, .. } = self;
        cuda.normalize(Normalize {
            input: input.slice(*dtype),
            shape: *shape,
            weight: Some(channels.weight.slice(channels.dtype)),
            bias: Some(channels.bias.slice(channels.dtype)),
            eps: EPS,
            messages,
            world_size: *ranks,
            running: channels.running(),
            output: output.slice_mut(*dtype),
            statistics,
        })
    }

    fn sync_forward(&mut self) -> Result<()> {
        self.stats()?;
        self.gather()?;
        self.normalize()
    }

    fn backward_reduce(&mut self) -> Result<()> {
        let Self { cuda, shape, dtype, input, grad_output, channels, statistics, sums, .. } = self;
        cuda.backward_reduce(BackwardReduce {
            input: input.slice(*dtype),
            grad_output: grad_output.slice(*dtype),
            shape: *shape,
            statistics,
            sums,
            grad_weight: Some(channels.grad_weight.slice_mut(channels.dtype)),
            grad_bias: Some(channels.grad_bias.slice_mut(channels.dtype)),
        })
    }

    fn backward_apply(&mut self) -> Result<()> {
        let Self { cuda, shape, dtype, input, grad_output, output, channels, statistics, sums, .. } = self;
        cuda.backward_apply(BackwardApply {
            input: input.slice(*dtype),
            grad_output: grad_output.slice(*dtype),
            shape: *shape,
            weight: Some(channels.weight.slice(channels.dtype)),
            statistics,
            sums: Some(sums),
            grad_input: output.slice_mut(*dtype),
        })
    }

    fn sync_backward(&mut self) -> Result<()> {
        self.backward_reduce()?;
        if self.ranks > 1 {
            let sums = self.sums.slice_mut(self.cuda.statistics_dtype(self.dtype));
            self.cuda.scale_in_place(sums, self.ranks as f64)?;
        }
        self.backward_apply()
    }

    fn forward(&mut self) -> Result<()> {
        let Self { cuda, shape, dtype, input, output, channels, statistics, .. } = self;
        cuda.forward(Forward {
            input: input.slice(*dtype),
            shape: *shape,
            weight: Some(channels.weight.slice(channels.dtype)),
            bias: Some(channels.bias.slice(channels.dtype)),
            eps: EPS,
            running: channels.running(),
            output: output.slice_mut(*dtype),
            statistics,
        })
    }

    fn backward(&mut self) -> Result<()> {
        let Self { cuda, shape, dtype, input, grad_output, output, channels, statistics, .. } = self;
        cuda.backward(Backward {
            input: input.slice(*dtype),
            grad_output: grad_output.slice(*dtype),
            shape: *shape,
            weight: Some(channels.weight.slice(channels.dtype)),
            statistics,
            batch_statistics: true,
            grad_input: Some(output.slice_mut(*dtype)),
            grad_weight: Some(channels.grad_weight.slice_mut(channels.dtype)),
            grad_bias: Some(channels.grad_bias.slice_mut(channels.dtype)),
        })
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::device::keep_waiting;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    const FORMATS: [MemoryFormat; 2] = [MemoryFormat::Contiguous, MemoryFormat::ChannelsLast];

    /// The device, for one test at a time: one graph is recorded at a time.
    fn cuda() -> (Cuda, MutexGuard<'static, ()>) {
        static ONE_TEST: Mutex<()> = Mutex::new(());
        let guard = ONE_TEST.lock().unwrap_or_else(PoisonError::into_inner);
        syncbn_fake_cuda::install();
        (Cuda::new(0).unwrap(), guard)
    }

    fn problem(format: MemoryFormat, dtype: DType) -> Problem<'static> {
        Problem { shape: &[3, 5, 7, 2], format, dtype, ranks: 3 }
    }

    fn bytes(buffer: &CudaBuffer) -> Vec<u8> {
        buffer.to_host(&keep_waiting).unwrap()
    }

    /// Equal ranks have the statistics of one of them, and with the stand-ins a step has its result: what is timed is a
    /// batch norm.
    #[test]
    fn what_is_timed_as_a_step_of_several_ranks_has_the_result_of_one() {
        let (cuda, _guard) = cuda();
        for format in FORMATS {
            let mut step = Step::new(&cuda, problem(format, DType::F64)).unwrap();
            let numbers = |buffer: &CudaBuffer| -> Vec<f64> { syncbn_core::message::read_row(&bytes(buffer)) };
            let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-12);
            step.forward().unwrap();
            let plain = numbers(&step.output);
            step.sync_forward().unwrap();
            let synced = numbers(&step.output);
            assert!(close(&plain, &synced), "{plain:?} {synced:?}");
            assert!(plain.iter().any(|y| y.abs() > 0.1), "{plain:?}");
            step.sync_backward().unwrap();
            let synced = numbers(&step.output);
            step.forward().unwrap();
            step.backward().unwrap();
            let plain = numbers(&step.output);
            assert!(close(&plain, &synced), "{plain:?} {synced:?}");
            assert!(plain.iter().any(|dx| dx.abs() > 0.01), "{plain:?}");
        }
    }

    #[test]
    fn every_part_is_timed_in_every_type_and_format() {
        let (cuda, _guard) = cuda();
        for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
            for format in FORMATS {
                let times = time_batch_norm(&cuda, problem(format, dtype), 2).unwrap();
                let BatchNormTimes { stats, normalize, backward_reduce, backward_apply, .. } = times;
                let BatchNormTimes { sync_forward, sync_backward, forward, backward, .. } =
                    time_batch_norm(&cuda, Problem { ranks: 1, ..problem(format, dtype) }, 2).unwrap();
                let kernels = [stats, normalize, backward_reduce, backward_apply];
                for part in kernels.into_iter().chain([sync_forward, sync_backward, forward, backward]) {
                    assert!(part.len() == 2 && part.iter().all(|ms| *ms >= 0.0), "{part:?}");
                }
            }
        }
    }

    #[test]
    fn a_copy_is_timed_in_both_ways() {
        let (cuda, _guard) = cuda();
        let times = super::super::cuda::time_copy(&cuda, 300_000, 2).unwrap();
        assert_eq!((times.driver.len(), times.kernel.len()), (2, 2));
    }

    #[test]
    fn long_tensors_repeat_what_was_drawn() {
        let (cuda, _guard) = cuda();
        let buffer = random_buffer(&cuda, 150_001, DType::F32).unwrap();
        let bytes = bytes(&buffer);
        assert_eq!(bytes.len(), 4 * 150_001);
        assert!(bytes[..4 << 16] == bytes[4 << 16..8 << 16] && bytes[..4 * 18_929] == bytes[8 << 16..]);
        assert!(bytes.chunks_exact(4).any(|value| value != [0; 4]));
    }

    #[test]
    fn what_cannot_be_timed_is_refused() {
        let (cuda, _guard) = cuda();
        let code = |problem| time_batch_norm(&cuda, problem, 1).unwrap_err().code();
        let good = problem(MemoryFormat::Contiguous, DType::F32);
        assert_eq!(code(Problem { dtype: DType::I32, ..good }), Code::DType);
        assert_eq!(code(Problem { ranks: 0, ..good }), Code::Argument);
        assert_eq!(code(Problem { shape: &[3], ..good }), Code::Shape);
        assert_eq!(code(Problem { format: MemoryFormat::ChannelsLast3d, ..good }), Code::Shape);
    }
}
