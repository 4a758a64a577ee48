//! Launchers of conv2d.cu: patches of samples, and samples from patches.

use super::family::{FLOATS, Family, walk};
use super::space::WideDivider;
use crate::Cuda;
use crate::kernel_table::Entry;
use crate::launch::Params;
use crate::module::Module;
use syncbn_core::ops::Conv2d;
use syncbn_core::{DType, Result};

/// The part of a convolution whose patches are in memory at once: some samples whole, or some positions of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    /// First sample.
    pub(super) sample: usize,
    /// Number of samples.
    pub(super) samples: usize,
    /// First output position of each sample.
    pub(super) position: usize,
    /// Number of output positions of each sample.
    pub(super) positions: usize,
}

/// Mirror of `PatchParams` in kernels/conv2d.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct PatchParams {
    input: u64,
    output: u64,
    samples: u64,
    first_position: u64,
    height: u64,
    width: u64,
    kernel_height: u64,
    kernel_width: u64,
    stride_height: u64,
    stride_width: u64,
    padding_height: u64,
    padding_width: u64,
    accumulate: u64,
    channels: WideDivider,
    group_channels: WideDivider,
    positions: WideDivider,
    output_width: WideDivider,
    input_height: WideDivider,
    input_width: WideDivider,
    stride_rows: WideDivider,
    stride_columns: WideDivider,
    output_height: u64,
}
// SAFETY: repr(C), as the struct of kernels/conv2d.cu.
unsafe impl Params for PatchParams {}

const IM2COL_CONTIGUOUS: Family<PatchParams> = Family::new(Module::Conv2d, "im2col_contiguous", FLOATS);
const IM2COL_CHANNELS_LAST: Family<PatchParams> = Family::new(Module::Conv2d, "im2col_channels_last", FLOATS);
const COL2IM_CONTIGUOUS: Family<PatchParams> = Family::new(Module::Conv2d, "col2im_contiguous", FLOATS);
const COL2IM_CHANNELS_LAST: Family<PatchParams> = Family::new(Module::Conv2d, "col2im_channels_last", FLOATS);

pub(super) fn table() -> Vec<Entry> {
    [IM2COL_CONTIGUOUS, IM2COL_CHANNELS_LAST, COL2IM_CONTIGUOUS, COL2IM_CHANNELS_LAST]
        .iter()
        .flat_map(Family::entries)
        .collect()
}

/// Elements of one sample.
pub(super) fn sample_len(geometry: &Conv2d) -> usize {
    geometry.in_channels * geometry.input[0] * geometry.input[1]
}

fn params(geometry: &Conv2d, chunk: Chunk, input: u64, output: u64) -> PatchParams {
    let Conv2d { in_channels, kernel, stride, padding, .. } = *geometry;
    PatchParams {
        input,
        output,
        samples: chunk.samples as u64,
        first_position: chunk.position as u64,
        height: geometry.input[0] as u64,
        width: geometry.input[1] as u64,
        kernel_height: kernel[0] as u64,
        kernel_width: kernel[1] as u64,
        stride_height: stride[0] as u64,
        stride_width: stride[1] as u64,
        padding_height: padding[0] as u64,
        padding_width: padding[1] as u64,
        accumulate: u64::from(chunk.position > 0),
        channels: WideDivider::new(in_channels),
        group_channels: WideDivider::new(in_channels / geometry.groups),
        positions: WideDivider::new(chunk.positions),
        output_width: WideDivider::new(geometry.output[1]),
        input_height: WideDivider::new(geometry.input[0]),
        input_width: WideDivider::new(geometry.input[1]),
        stride_rows: WideDivider::new(stride[0]),
        stride_columns: WideDivider::new(stride[1]),
        output_height: geometry.output[0] as u64,
    }
}

fn offset(geometry: &Conv2d, chunk: Chunk, dtype: DType) -> u64 {
    (chunk.sample * sample_len(geometry) * dtype.size()) as u64
}

/// The patches of a chunk of `samples`.
pub(super) fn unfold(
    cuda: &Cuda,
    dtype: DType,
    geometry: &Conv2d,
    chunk: Chunk,
    samples: u64,
    patches: u64,
) -> Result<()> {
    let params = params(geometry, chunk, samples + offset(geometry, chunk, dtype), patches);
    let kernels = if geometry.channels_last { IM2COL_CHANNELS_LAST } else { IM2COL_CONTIGUOUS };
    let threads = chunk.samples * chunk.positions * geometry.in_channels;
    kernels.launch(cuda, "conv2d", dtype, walk(threads), &params)
}

/// The chunk's `samples` from the sum of their patches; chunks of further positions of a sample add to it.
pub(super) fn fold(
    cuda: &Cuda,
    dtype: DType,
    geometry: &Conv2d,
    chunk: Chunk,
    patches: u64,
    samples: u64,
) -> Result<()> {
    let params = params(geometry, chunk, patches, samples + offset(geometry, chunk, dtype));
    let kernels = if geometry.channels_last { COL2IM_CHANNELS_LAST } else { COL2IM_CONTIGUOUS };
    kernels.launch(cuda, "conv2d", dtype, walk(chunk.samples * sample_len(geometry)), &params)
}
