//! Batch norm on the test device: the formulas of the contract, each kernel one job.

use super::{Device, Memory};
use std::sync::atomic::Ordering::SeqCst;
use syncbn_core::kernels::{
    BackwardApply, BackwardReduce, DoubleBackwardApply, DoubleBackwardReduce, Elemt, Kernels, Normalize,
};
use syncbn_core::message::{COUNT_BYTES, slot_bytes, sums_bytes};
use syncbn_core::{BatchNormShape, ChannelStats, DType, Result, running_stats};

/// Calls `visit(channel, index)` for every element.
fn each(shape: BatchNormShape, mut visit: impl FnMut(usize, usize)) {
    for (sample, channel) in (0..shape.batch).flat_map(|n| (0..shape.channels).map(move |c| (n, c))) {
        let (start, step) = shape.run(sample, channel);
        (0..shape.spatial).for_each(|i| visit(channel, start + i * step));
    }
}

/// A slot: the count and two rows.
struct Slot {
    count: u64,
    first: Vec<f64>,
    second: Vec<f64>,
}

fn write_slot(memory: &Memory, index: usize, dtype: DType, slot: &Slot) {
    let start = index * slot_bytes(slot.first.len(), dtype);
    memory.bytes.lock().unwrap()[start..start + COUNT_BYTES].copy_from_slice(&slot.count.to_le_bytes());
    memory.write(start + COUNT_BYTES, dtype, &slot.first);
    memory.write(start + COUNT_BYTES + slot.first.len() * dtype.size(), dtype, &slot.second);
}

fn read_slot(memory: &Memory, index: usize, dtype: DType, channels: usize) -> Slot {
    let bytes = memory.bytes.lock().unwrap();
    let slot = &bytes[index * slot_bytes(channels, dtype)..][..slot_bytes(channels, dtype)];
    let mut first = memory.read(&slot[COUNT_BYTES..], dtype);
    let second = first.split_off(channels);
    Slot { count: u64::from_le_bytes(slot[..COUNT_BYTES].try_into().unwrap()), first, second }
}

/// Rows of C numbers.
fn read_rows(memory: &Memory, dtype: DType, channels: usize) -> Vec<Vec<f64>> {
    let numbers = memory.read(&memory.bytes.lock().unwrap(), dtype);
    numbers.chunks_exact(channels).map(<[f64]>::to_vec).collect()
}

/// The numbers of an optional row, or `default` for each channel.
fn row(memory: Option<&Memory>, channels: usize, default: f64) -> Vec<f64> {
    memory.map_or_else(|| vec![default; channels], Memory::numbers)
}

fn put(memory: &Memory, numbers: &[f64]) {
    memory.write(0, memory.dtype, numbers);
}

fn local_stats(shape: BatchNormShape, x: &[f64]) -> ChannelStats {
    let mut stats = ChannelStats::empty(shape.channels);
    stats.count = shape.count() as u64;
    each(shape, |c, i| stats.mean[c] += x[i]);
    stats.mean.iter_mut().for_each(|sum| *sum /= stats.count.max(1) as f64);
    each(shape, |c, i| stats.m2[c] += (x[i] - stats.mean[c]).powi(2));
    stats
}

fn normalized(shape: BatchNormShape, x: &[f64], slot: &Slot, weight: &[f64], bias: &[f64]) -> Vec<f64> {
    let mut y = vec![0.0; x.len()];
    each(shape, |c, i| y[i] = weight[c] * ((x[i] - slot.first[c]) * slot.second[c]) + bias[c]);
    y
}

impl Kernels for Device {
    fn statistics_dtype(&self, _input: DType) -> DType {
        self.statistics
    }

    fn dtype(&self, input: &Memory) -> DType {
        input.dtype
    }

    fn new_buffer(&self, bytes: usize) -> Result<Memory> {
        Ok(Memory::uninitialised(bytes, self.statistics))
    }

    fn stats(&self, input: &Memory, shape: BatchNormShape, messages: &mut Memory, slot: usize) -> Result<()> {
        let (input, messages, dtype) = (input.clone(), messages.clone(), self.statistics);
        self.enqueue_kernel(move || {
            let ChannelStats { count, mean, m2 } = local_stats(shape, &input.numbers());
            write_slot(&messages, slot, dtype, &Slot { count, first: mean, second: m2 });
        })
    }

    fn normalize(&self, call: Normalize<'_, '_, Self>) -> Result<()> {
        let Normalize { input, shape, weight, bias, eps, messages, world_size, running, output, statistics } = call;
        let (input, weight, bias) = (input.clone(), weight.cloned(), bias.cloned());
        let (messages, output, statistics) = (messages.clone(), output.clone(), statistics.clone());
        let momentum = running.as_ref().and_then(|running| running.momentum);
        let running = running.map(|r| (r.mean.clone(), r.var.clone(), r.num_batches_tracked.cloned()));
        let (dtype, channels, status) = (self.statistics, shape.channels, self.too_few_values.clone());
        self.enqueue_kernel(move || {
            let slots: Vec<ChannelStats> = (0..world_size)
                .map(|rank| read_slot(&messages, rank, dtype, channels))
                .map(|Slot { count, first, second }| ChannelStats { count, mean: first, m2: second })
                .collect();
            let merged = ChannelStats::merge_all(&slots).unwrap();
            let invstd = (0..channels).map(|channel| 1.0 / (merged.var(channel) + eps).sqrt()).collect();
            let slot = Slot { count: merged.count, first: merged.mean.clone(), second: invstd };
            let (weight, bias) = (row(weight.as_ref(), channels, 1.0), row(bias.as_ref(), channels, 0.0));
            put(&output, &normalized(shape, &input.numbers(), &slot, &weight, &bias));
            write_slot(&statistics, 0, dtype, &slot);
            if merged.count == 1 {
                status.store(true, SeqCst);
            }
            if let Some((mean, var, tracked)) = running.filter(|_| merged.count > 1) {
                commit(&merged, momentum, &mean, &var, tracked.as_ref());
            }
        })
    }

    fn constant_statistics(&self, mean: &Memory, var: &Memory, eps: f64, statistics: &mut Memory) -> Result<()> {
        let (mean, var, statistics, dtype) = (mean.clone(), var.clone(), statistics.clone(), self.statistics);
        self.enqueue_kernel(move || {
            let invstd = var.numbers().iter().map(|var| 1.0 / (var + eps).sqrt()).collect();
            write_slot(&statistics, 0, dtype, &Slot { count: 0, first: mean.numbers(), second: invstd });
        })
    }

    fn elemt(&self, call: Elemt<'_, '_, Self>) -> Result<()> {
        let Elemt { input, shape, weight, bias, statistics, output } = call;
        let (input, weight, bias) = (input.clone(), weight.cloned(), bias.cloned());
        let (statistics, output, dtype) = (statistics.clone(), output.clone(), self.statistics);
        self.enqueue_kernel(move || {
            let slot = read_slot(&statistics, 0, dtype, shape.channels);
            let (weight, bias) = (row(weight.as_ref(), shape.channels, 1.0), row(bias.as_ref(), shape.channels, 0.0));
            put(&output, &normalized(shape, &input.numbers(), &slot, &weight, &bias));
        })
    }

    fn backward_reduce(&self, call: BackwardReduce<'_, '_, Self>) -> Result<()> {
        let BackwardReduce { input, grad_output, shape, statistics, sums, grad_weight, grad_bias } = call;
        let (input, grad_output, statistics) = (input.clone(), grad_output.clone(), statistics.clone());
        let (sums, grad_weight, grad_bias) = (sums.clone(), grad_weight.cloned(), grad_bias.cloned());
        let (dtype, channels) = (self.statistics, shape.channels);
        self.enqueue_kernel(move || {
            let (x, dy) = (input.numbers(), grad_output.numbers());
            let slot = read_slot(&statistics, 0, dtype, channels);
            let mut rows = vec![0.0; 2 * channels];
            each(shape, |c, i| {
                rows[c] += dy[i];
                rows[channels + c] += dy[i] * (x[i] - slot.first[c]);
            });
            assert_eq!(sums.bytes.lock().unwrap().len(), sums_bytes(channels, 2, dtype));
            sums.write(0, dtype, &rows);
            if let Some(grad_weight) = grad_weight {
                let scaled: Vec<f64> = (0..channels).map(|c| rows[channels + c] * slot.second[c]).collect();
                put(&grad_weight, &scaled);
            }
            if let Some(grad_bias) = grad_bias {
                put(&grad_bias, &rows[..channels]);
            }
        })
    }

    fn backward_apply(&self, call: BackwardApply<'_, '_, Self>) -> Result<()> {
        let BackwardApply { input, grad_output, shape, weight, statistics, sums, grad_input } = call;
        let (input, grad_output, weight) = (input.clone(), grad_output.clone(), weight.cloned());
        let (statistics, sums, grad_input) = (statistics.clone(), sums.cloned(), grad_input.clone());
        let (dtype, channels) = (self.statistics, shape.channels);
        self.enqueue_kernel(move || {
            let (x, dy, w) = (input.numbers(), grad_output.numbers(), row(weight.as_ref(), channels, 1.0));
            let Slot { count, first: mean, second: invstd } = read_slot(&statistics, 0, dtype, channels);
            let n = count.max(1) as f64;
            let rows = sums.map_or_else(|| vec![vec![0.0; channels]; 2], |sums| read_rows(&sums, dtype, channels));
            let mut dx = vec![0.0; x.len()];
            each(shape, |c, i| {
                let centred = dy[i] - rows[0][c] / n - (x[i] - mean[c]) * invstd[c].powi(2) * rows[1][c] / n;
                dx[i] = w[c] * invstd[c] * centred;
            });
            put(&grad_input, &dx);
        })
    }

    fn double_backward_reduce(&self, call: DoubleBackwardReduce<'_, '_, Self>) -> Result<()> {
        let (input, grad_output, g) = (call.input.clone(), call.grad_output.clone(), call.grad_grad_input.clone());
        let (ggw, weight) = (call.grad_grad_weight.cloned(), call.weight.cloned());
        let (statistics, sums, local) = (call.statistics.clone(), call.sums.clone(), call.local_sums.clone());
        let (shape, dtype, channels) = (call.shape, self.statistics, call.shape.channels);
        self.enqueue_kernel(move || {
            let (x, dy, g) = (input.numbers(), grad_output.numbers(), g.numbers());
            let (ggw, w) = (row(ggw.as_ref(), channels, 0.0), row(weight.as_ref(), channels, 1.0));
            let slot = read_slot(&statistics, 0, dtype, channels);
            let mut rows = vec![vec![0.0; channels]; 5];
            each(shape, |c, i| {
                let xmu = x[i] - slot.first[c];
                let terms = [dy[i], dy[i] * xmu, g[i], g[i] * xmu, g[i] * dy[i]];
                rows.iter_mut().zip(terms).for_each(|(row, term)| row[c] += term);
            });
            let by = |factor: &[f64], row: &[f64]| row.iter().zip(factor).map(|(a, b)| a * b).collect::<Vec<f64>>();
            let [dy, dy_xmu, g, g_xmu, g_dy] = &rows[..] else { unreachable!() };
            let group = [&dy[..], dy_xmu, &by(&w, g), &by(&w, g_xmu), &by(&w, g_dy), &by(&ggw, dy), &by(&ggw, dy_xmu)];
            sums.write(0, dtype, &group.concat());
            local.write(0, dtype, &rows[2..].concat());
        })
    }

    fn double_backward_apply(&self, call: DoubleBackwardApply<'_, '_, Self>) -> Result<()> {
        let (input, grad_output, g) = (call.input.clone(), call.grad_output.clone(), call.grad_grad_input.clone());
        let (ggw, ggb, weight) = (call.grad_grad_weight.cloned(), call.grad_grad_bias.cloned(), call.weight.cloned());
        let (statistics, sums, local) = (call.statistics.clone(), call.sums.cloned(), call.local_sums.clone());
        let (to_x, to_dy, to_w) = (call.grad_input.clone(), call.grad_grad_output.clone(), call.grad_weight.cloned());
        let (shape, dtype, channels) = (call.shape, self.statistics, call.shape.channels);
        self.enqueue_kernel(move || {
            let (x, dy, g) = (input.numbers(), grad_output.numbers(), g.numbers());
            let rows = |memory: Option<&Memory>, default| row(memory, channels, default);
            let (ggw, ggb, w) = (rows(ggw.as_ref(), 0.0), rows(ggb.as_ref(), 0.0), rows(weight.as_ref(), 1.0));
            let slot = read_slot(&statistics, 0, dtype, channels);
            let group = sums.map_or_else(|| vec![vec![0.0; channels]; 7], |sums| read_rows(&sums, dtype, channels));
            let local = read_rows(&local, dtype, channels);
            let terms: Vec<Terms> = (0..channels).map(|c| Terms::new(&slot, &group, c)).collect();
            let (mut x_grad, mut dy_grad) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            each(shape, |c, i| {
                let (t, xh) = (&terms[c], (x[i] - slot.first[c]) * slot.second[c]);
                dy_grad[i] = t.s * (w[c] * g[i] - t.g - xh * t.d) + ggw[c] * xh + ggb[c];
                let h = ggw[c] * dy[i] - t.s * (t.d * dy[i] + t.b * w[c] * g[i]);
                x_grad[i] = t.s * (h - t.h - xh * t.h_xh) - t.t * t.s.powi(2) * xh / t.n;
            });
            put(&to_x, &x_grad);
            put(&to_dy, &dy_grad);
            if let Some(to_w) = to_w {
                let gradient = |c: usize| {
                    let t = &terms[c];
                    t.s * (local[2][c] - t.a * local[0][c] - t.b * t.s * local[1][c])
                };
                put(&to_w, &(0..channels).map(gradient).collect::<Vec<f64>>());
            }
        })
    }
}

/// Moves the running statistics; the batch has at least two values per channel.
fn commit(merged: &ChannelStats, momentum: Option<f64>, mean: &Memory, var: &Memory, tracked: Option<&Memory>) {
    let count = tracked.map_or(0.0, |tracked| tracked.numbers()[0] + 1.0);
    if let Some(tracked) = tracked {
        put(tracked, &[count]);
    }
    let factor = running_stats::exponential_average_factor(momentum, count as u64);
    let unbiased: Vec<f64> = merged.m2.iter().map(|&m2| running_stats::unbiased_var(m2, merged.count)).collect();
    for (running, new) in [(mean, &merged.mean), (var, &unbiased)] {
        let old = running.numbers();
        let moved = old.iter().zip(new).map(|(&old, &new)| running_stats::update(old, new, factor));
        put(running, &moved.collect::<Vec<f64>>());
    }
}

/// The means one channel's double backward is made of, named as in docs/numerics.md.
struct Terms {
    n: f64,
    s: f64,
    a: f64,
    b: f64,
    g: f64,
    d: f64,
    t: f64,
    h: f64,
    h_xh: f64,
}

impl Terms {
    fn new(slot: &Slot, group: &[Vec<f64>], c: usize) -> Self {
        let (n, s) = (slot.count.max(1) as f64, slot.second[c]);
        let mean = |row: usize| group[row][c] / n;
        let (a, b, g, d) = (mean(0), s * mean(1), mean(2), s * mean(3));
        let t = group[4][c] - n * (g * a + b * d);
        let h = mean(5) - s * (d * a + b * g);
        let h_xh = s * mean(6) - 2.0 * s * b * d;
        Self { n, s, a, b, g, d, t, h, h_xh }
    }
}
