//! Two-dimensional convolution as matrix products over patches (im2col).
//!
//! Of each group, contiguous samples have K × P patches, K = C/groups·KH·KW, P = H'·W'; the patches of channels-last
//! samples are one P·N × K matrix, in which a patch has the order (row, column, channel). A 1×1 kernel that steps by
//! one without padding needs no patches. Patches of so many samples are made at a time as the workspace holds, and of a
//! part of one where that is too much; the order of all sums depends on the sizes alone.

use super::family::{FLOATS, expect_dtype, expect_len, expect_one_of};
use super::gemm::{Gemm, gemm};
use super::patches::{Chunk, fold, sample_len, unfold};
use super::{elementwise, reduce, restride};
use crate::{Cuda, CudaBuffer, CudaSlice, CudaSliceMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use syncbn_core::ops::{Conv2d, Reduction, Restride};
use syncbn_core::{DType, Result};

/// Bytes for patches and partial sums of one call; see [`set_convolution_workspace`].
static WORKSPACE: AtomicUsize = AtomicUsize::new(256 << 20);

/// Sets how much memory a convolution may use beside its operands, in bytes; 256 MiB at first. With less, it works on
/// fewer samples at a time. What one output position needs is used in any case.
pub fn set_convolution_workspace(bytes: usize) {
    WORKSPACE.store(bytes, Ordering::Relaxed);
}

/// A matrix of each sample and group.
#[derive(Clone, Copy, Debug)]
struct Matrices {
    /// Address of the first.
    address: u64,
    /// Elements from one to the next sample's, and group's.
    sample: usize,
    group: usize,
    leading: usize,
}

/// Sizes derived from the geometry.
#[derive(Clone, Copy)]
struct Plan<'a> {
    cuda: &'a Cuda,
    dtype: DType,
    geometry: &'a Conv2d,
    /// Input and output channels of a group.
    in_group: usize,
    out_group: usize,
    /// KH·KW.
    taps: usize,
    /// K, elements of a patch.
    patch: usize,
    /// P, output positions of a sample.
    positions: usize,
    /// The patches are the input itself.
    direct: bool,
    workspace: usize,
}

impl<'a> Plan<'a> {
    fn new(cuda: &'a Cuda, dtype: DType, geometry: &'a Conv2d) -> Result<Self> {
        expect_one_of("conv2d", FLOATS, dtype)?;
        let Conv2d { in_channels, out_channels, groups, output, kernel, stride, padding, .. } = *geometry;
        let taps = kernel[0] * kernel[1];
        Ok(Self {
            cuda,
            dtype,
            geometry,
            in_group: in_channels / groups,
            out_group: out_channels / groups,
            taps,
            patch: in_channels / groups * taps,
            positions: output[0] * output[1],
            direct: taps == 1 && stride == [1, 1] && padding == [0, 0],
            workspace: WORKSPACE.load(Ordering::Relaxed),
        })
    }

    fn weight_len(&self) -> usize {
        self.geometry.out_channels * self.patch
    }

    fn output_len(&self) -> usize {
        self.geometry.out_channels * self.positions
    }

    /// Elements of all groups' patches at one position.
    fn patch_row(&self) -> usize {
        self.patch * self.geometry.groups
    }

    /// The parts whose patches the workspace holds, in order.
    fn chunks(&self) -> Vec<Chunk> {
        let Conv2d { batch, .. } = *self.geometry;
        let whole = |sample: usize, samples: usize| Chunk { sample, samples, position: 0, positions: self.positions };
        if self.direct {
            return vec![whole(0, batch)];
        }
        // The rest is for partial sums of weights.
        let fitting = (self.workspace / 4 * 3 / (self.patch_row() * self.dtype.size())).max(1);
        if let samples @ 1.. = fitting / self.positions {
            return (0..batch).step_by(samples).map(|sample| whole(sample, samples.min(batch - sample))).collect();
        }
        let part = |sample: usize, position: usize| Chunk {
            sample,
            samples: 1,
            position,
            positions: fitting.min(self.positions - position),
        };
        let parts = |sample| (0..self.positions).step_by(fitting).map(move |position| part(sample, position));
        (0..batch).flat_map(parts).collect()
    }

    /// Memory for the patches of the largest chunk.
    fn patches(&self, chunks: &[Chunk]) -> Result<CudaBuffer> {
        let most = chunks.iter().map(|chunk| chunk.samples * chunk.positions).max().unwrap_or(0);
        self.cuda.buffer(if self.direct { 0 } else { most * self.patch_row() * self.dtype.size() })
    }

    fn offset(&self, elements: usize) -> u64 {
        (elements * self.dtype.size()) as u64
    }

    fn weight_matrices(&self, address: u64) -> Matrices {
        Matrices { address, sample: 0, group: self.out_group * self.patch, leading: self.patch }
    }

    /// Of a chunk's patches at `address`: K × P, or P × K if channels are last.
    fn patch_matrices(&self, address: u64, chunk: Chunk) -> Matrices {
        if self.geometry.channels_last {
            return Matrices { address, sample: 0, group: self.patch, leading: self.patch_row() };
        }
        let leading = chunk.positions;
        Matrices { address, sample: self.patch_row() * leading, group: self.patch * leading, leading }
    }

    /// Of a chunk of the output at `address`: O/groups × P, or P × O/groups if channels are last.
    fn output_matrices(&self, address: u64, chunk: Chunk) -> Matrices {
        let channels = self.geometry.out_channels;
        let first = chunk.sample * self.output_len();
        if self.geometry.channels_last {
            let address = address + self.offset(first + chunk.position * channels);
            return Matrices { address, sample: 0, group: self.out_group, leading: channels };
        }
        let address = address + self.offset(first + chunk.position);
        Matrices { address, sample: self.output_len(), group: self.out_group * self.positions, leading: self.positions }
    }

    /// C = op(A)·op(B) for every group and, if channels are not last, every sample of a chunk.
    fn multiply(&self, chunk: Chunk, shape: Shape, [a, b, c]: [Matrices; 3]) -> Result<()> {
        let samples = if self.geometry.channels_last { 1 } else { chunk.samples };
        let groups = self.geometry.groups;
        // One of the two is the batch of a product; the other, the smaller, is walked over.
        let over_groups = samples >= groups;
        let (walked, batch) = if over_groups { (groups, samples) } else { (samples, groups) };
        let steps = |matrices: Matrices| {
            if over_groups { (matrices.group, matrices.sample) } else { (matrices.sample, matrices.group) }
        };
        let product = Gemm {
            m: shape.m,
            n: shape.n,
            k: shape.k,
            lda: a.leading,
            ldb: b.leading,
            ldc: c.leading,
            transpose_a: shape.transpose_a,
            transpose_b: shape.transpose_b,
            batch,
            stride_a: steps(a).1,
            stride_b: steps(b).1,
            stride_c: steps(c).1,
            accumulate: shape.accumulate,
        };
        (0..walked).try_for_each(|i| {
            let at = |matrices: Matrices| matrices.address + self.offset(i * steps(matrices).0);
            gemm(self.cuda, "conv2d", self.dtype, [at(a), at(b), at(c)], &product)
        })
    }

    /// Whether this layout's patches are in another order than the weights (O, C/groups, KH, KW).
    fn reorders(&self) -> bool {
        self.geometry.channels_last && self.taps > 1
    }

    /// Copies weights between their order and that of channels-last patches, (O, KH, KW, C/groups).
    fn reorder(&self, from: CudaSlice<'_>, to: CudaSliceMut<'_>, into_patches: bool) -> Result<()> {
        let (channels, taps) = (self.in_group, self.taps);
        let (weights, patches) = (vec![self.patch, taps, 1], vec![self.patch, 1, channels]);
        let (input, output) = if into_patches { (weights, patches) } else { (patches, weights) };
        let layout = Restride { shape: vec![self.geometry.out_channels, channels, taps], input, output };
        restride::restride(self.cuda, from, &layout, to)
    }

    /// The weights in the order of this layout's patches, where that is another.
    fn reordered(&self, weight: CudaSlice<'_>) -> Result<Option<CudaBuffer>> {
        if !self.reorders() {
            return Ok(None);
        }
        let buffer = self.cuda.tensor_buffer(self.dtype, &[self.weight_len()])?;
        self.reorder(weight, buffer.slice_mut(self.dtype), true)?;
        Ok(Some(buffer))
    }

    fn expect(&self, operands: [(&str, DType, usize, usize); 3]) -> Result<()> {
        for (what, dtype, expected, len) in operands {
            expect_dtype("conv2d", self.dtype, dtype)?;
            expect_len("conv2d", what, expected, len)?;
        }
        Ok(())
    }
}

/// What is multiplied: op(A) is m × k, op(B) is k × n.
#[derive(Clone, Copy)]
struct Shape {
    m: usize,
    n: usize,
    k: usize,
    transpose_a: bool,
    transpose_b: bool,
    accumulate: bool,
}

pub(super) fn forward(
    cuda: &Cuda,
    input: CudaSlice<'_>,
    weight: CudaSlice<'_>,
    geometry: &Conv2d,
    output: &CudaSliceMut<'_>,
) -> Result<()> {
    let plan = Plan::new(cuda, input.dtype(), geometry)?;
    plan.expect([
        ("the input", input.dtype(), geometry.batch * sample_len(geometry), input.len()),
        ("the weight", weight.dtype(), plan.weight_len(), weight.len()),
        ("the output", output.dtype(), geometry.batch * plan.output_len(), output.len()),
    ])?;
    if geometry.batch == 0 {
        return Ok(());
    }
    let (reordered, chunks) = (plan.reordered(weight)?, plan.chunks());
    let weights = plan.weight_matrices(reordered.as_ref().map_or(weight.pointer(), CudaBuffer::pointer));
    let patches = plan.patches(&chunks)?;
    for chunk in chunks {
        let columns = if plan.direct { input.pointer() } else { patches.pointer() };
        if !plan.direct {
            unfold(cuda, plan.dtype, geometry, chunk, input.pointer(), columns)?;
        }
        let (columns, outputs) = (plan.patch_matrices(columns, chunk), plan.output_matrices(output.pointer(), chunk));
        let (out, patch, positions) = (plan.out_group, plan.patch, chunk.positions);
        let shape = Shape { m: out, n: positions, k: patch, transpose_a: false, transpose_b: false, accumulate: false };
        if geometry.channels_last {
            let shape = Shape { m: chunk.samples * positions, n: out, transpose_b: true, ..shape };
            plan.multiply(chunk, shape, [columns, weights, outputs])?;
        } else {
            plan.multiply(chunk, shape, [weights, columns, outputs])?;
        }
    }
    Ok(())
}

pub(super) fn backward_input(
    cuda: &Cuda,
    grad_output: CudaSlice<'_>,
    weight: CudaSlice<'_>,
    geometry: &Conv2d,
    grad_input: &CudaSliceMut<'_>,
) -> Result<()> {
    let plan = Plan::new(cuda, weight.dtype(), geometry)?;
    plan.expect([
        ("gradOutput", grad_output.dtype(), geometry.batch * plan.output_len(), grad_output.len()),
        ("the weight", weight.dtype(), plan.weight_len(), weight.len()),
        ("gradInput", grad_input.dtype(), geometry.batch * sample_len(geometry), grad_input.len()),
    ])?;
    if geometry.batch == 0 {
        return Ok(());
    }
    let (reordered, chunks) = (plan.reordered(weight)?, plan.chunks());
    let weights = plan.weight_matrices(reordered.as_ref().map_or(weight.pointer(), CudaBuffer::pointer));
    let patches = plan.patches(&chunks)?;
    for chunk in chunks {
        let address = if plan.direct { grad_input.pointer() } else { patches.pointer() };
        let columns = plan.patch_matrices(address, chunk);
        let grads = plan.output_matrices(grad_output.pointer(), chunk);
        let (out, patch, positions) = (plan.out_group, plan.patch, chunk.positions);
        let shape = Shape { m: patch, n: positions, k: out, transpose_a: true, transpose_b: false, accumulate: false };
        if geometry.channels_last {
            let shape = Shape { m: chunk.samples * positions, n: patch, transpose_a: false, ..shape };
            plan.multiply(chunk, shape, [grads, weights, columns])?;
        } else {
            plan.multiply(chunk, shape, [weights, grads, columns])?;
        }
        if !plan.direct {
            fold(cuda, plan.dtype, geometry, chunk, address, grad_input.pointer())?;
        }
    }
    Ok(())
}

pub(super) fn backward_weight(
    cuda: &Cuda,
    grad_output: CudaSlice<'_>,
    input: CudaSlice<'_>,
    geometry: &Conv2d,
    grad_weight: &mut CudaSliceMut<'_>,
) -> Result<()> {
    let plan = Plan::new(cuda, input.dtype(), geometry)?;
    plan.expect([
        ("gradOutput", grad_output.dtype(), geometry.batch * plan.output_len(), grad_output.len()),
        ("the input", input.dtype(), geometry.batch * sample_len(geometry), input.len()),
        ("gradWeight", grad_weight.dtype(), plan.weight_len(), grad_weight.len()),
    ])?;
    if geometry.batch == 0 {
        return elementwise::fill(cuda, grad_weight, 0.0);
    }
    let mut sums = WeightSums::new(&plan, grad_weight)?;
    let chunks = plan.chunks();
    let patches = plan.patches(&chunks)?;
    for chunk in chunks {
        let columns = if plan.direct { input.pointer() } else { patches.pointer() };
        if !plan.direct {
            unfold(cuda, plan.dtype, geometry, chunk, input.pointer(), columns)?;
        }
        sums.add(&plan, chunk, grad_output.pointer(), columns)?;
    }
    sums.finish(&plan, grad_weight)
}

/// The gradient of the weights as it grows. Contiguous samples are multiplied one by one: several at once, each into a
/// sum of its own.
struct WeightSums {
    /// Where they are, if not in the gradient itself.
    buffer: Option<CudaBuffer>,
    address: u64,
    count: usize,
    /// Whether there is something to add to.
    started: bool,
}

impl WeightSums {
    fn new(plan: &Plan<'_>, grad_weight: &CudaSliceMut<'_>) -> Result<Self> {
        let fitting = plan.workspace / 4 / (plan.weight_len() * plan.dtype.size());
        let Conv2d { batch, groups, channels_last, .. } = *plan.geometry;
        let samples = plan.chunks().first().map_or(1, |chunk| chunk.samples);
        // Where there are more groups than samples, groups are the batch of a product and samples follow each other.
        let count = if channels_last || groups > samples { 1 } else { fitting.clamp(1, samples.min(batch)) };
        let separate = count > 1 || plan.reorders();
        let bytes = count * plan.weight_len() * plan.dtype.size();
        let buffer = separate.then(|| plan.cuda.buffer(bytes)).transpose()?;
        let address = buffer.as_ref().map_or(grad_weight.pointer(), CudaBuffer::pointer);
        Ok(Self { buffer, address, count, started: false })
    }

    /// Adds the products of a chunk, so many samples at a time as there are sums.
    fn add(&mut self, plan: &Plan<'_>, chunk: Chunk, grad_output: u64, columns: u64) -> Result<()> {
        let at_once = if plan.geometry.channels_last { chunk.samples } else { self.count };
        for done in (0..chunk.samples).step_by(at_once) {
            let (sample, samples) = (chunk.sample + done, at_once.min(chunk.samples - done));
            let part = Chunk { sample, samples, ..chunk };
            let mut patches = plan.patch_matrices(columns, part);
            patches.address += plan.offset(done * patches.sample);
            self.add_part(plan, part, plan.output_matrices(grad_output, part), patches)?;
            self.started = true;
        }
        Ok(())
    }

    fn add_part(&self, plan: &Plan<'_>, part: Chunk, grads: Matrices, patches: Matrices) -> Result<()> {
        let sums = Matrices { sample: plan.weight_len(), ..plan.weight_matrices(self.address) };
        let (m, n) = (plan.out_group, plan.patch);
        let last = plan.geometry.channels_last;
        let k = if last { part.samples * part.positions } else { part.positions };
        let shape = Shape { m, n, k, transpose_a: last, transpose_b: !last, accumulate: self.started };
        plan.multiply(part, shape, [grads, patches, sums])
    }

    /// Adds up the sums and brings them into the order of the weights.
    fn finish(self, plan: &Plan<'_>, grad_weight: &mut CudaSliceMut<'_>) -> Result<()> {
        let Some(buffer) = self.buffer else { return Ok(()) };
        if self.count == 1 {
            // SAFETY: the same memory; this view's borrow is the only one in use meanwhile.
            let target = unsafe { CudaSliceMut::new(grad_weight.pointer(), grad_weight.len(), plan.dtype) };
            return plan.reorder(buffer.slice(plan.dtype), target, false);
        }
        let layout = Reduction {
            kept: vec![plan.weight_len()],
            kept_strides: vec![1],
            reduced: vec![self.count],
            reduced_strides: vec![plan.weight_len()],
            scale: 1.0,
        };
        reduce::sum(plan.cuda, buffer.slice(plan.dtype), &layout, grad_weight)
    }
}
