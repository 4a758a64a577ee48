//! Launchers of loss.cu.

use super::family::{FLOATS, Family, THREADS, expect_dtype, expect_len, walk};
use super::space::{self, WideDivider};
use crate::kernel_table::Entry;
use crate::launch::{LaunchConfig, Params};
use crate::module::Module;
use crate::{Cuda, CudaSlice, CudaSliceMut};
use syncbn_core::ops::{CrossEntropy, LossReduction};
use syncbn_core::{DType, Result};

/// Targets a thread works on at least, before there are more blocks.
const TARGETS_A_THREAD: usize = 4;
/// Blocks that add up losses; the last of them adds up what they found.
const MAX_BLOCKS: usize = 512;

#[repr(C)]
#[derive(Clone, Copy)]
struct NllLossParams {
    log_probs: u64,
    targets: u64,
    losses: u64,
    counted: u64,
    partial: u64,
    status: u64,
    counter: u64,
    ignore_index: i64,
    reduction: u32,
    unused: u32,
    along: space::Along,
}
// SAFETY: repr(C), as the struct of kernels/loss.cu.
unsafe impl Params for NllLossParams {}

#[repr(C)]
#[derive(Clone, Copy)]
struct CrossEntropyBackwardParams {
    grad_losses: u64,
    log_probs: u64,
    targets: u64,
    counted: u64,
    grad_logits: u64,
    status: u64,
    ignore_index: i64,
    reduction: u32,
    unused: u32,
    along: space::Along,
    size: WideDivider,
}
// SAFETY: repr(C), as the struct of kernels/loss.cu.
unsafe impl Params for CrossEntropyBackwardParams {}

const NLL_LOSS: Family<NllLossParams> = Family::new(Module::Loss, "nll_loss", FLOATS);
const BACKWARD: Family<CrossEntropyBackwardParams> = Family::new(Module::Loss, "cross_entropy_backward", FLOATS);
const OP: &str = "crossEntropy";

pub(super) fn table() -> Vec<Entry> {
    [NLL_LOSS.entries(), BACKWARD.entries()].concat()
}

/// The codes of kernels/loss.cu.
fn code(reduction: LossReduction) -> u32 {
    match reduction {
        LossReduction::None => 0,
        LossReduction::Sum => 1,
        LossReduction::Mean => 2,
    }
}

/// Number of targets, and of losses.
fn sizes(options: &CrossEntropy) -> (usize, usize) {
    let lines = options.along.outer * options.along.inner;
    (lines, if options.reduction == LossReduction::None { lines } else { 1 })
}

pub(super) fn nll_loss(
    cuda: &Cuda,
    log_probs: CudaSlice<'_>,
    targets: CudaSlice<'_>,
    options: CrossEntropy,
    losses: &CudaSliceMut<'_>,
    counted: &CudaSliceMut<'_>,
) -> Result<()> {
    let ((lines, outputs), dtype) = (sizes(&options), log_probs.dtype());
    expect_dtype(OP, DType::I64, targets.dtype())?;
    expect_dtype(OP, dtype, losses.dtype())?;
    expect_dtype(OP, dtype, counted.dtype())?;
    expect_len(OP, "the log-probabilities", lines * options.along.size, log_probs.len())?;
    expect_len(OP, "the targets", lines, targets.len())?;
    expect_len(OP, "the losses", outputs, losses.len())?;
    expect_len(OP, "the count", 1, counted.len())?;
    let blocks = lines.div_ceil(THREADS * TARGETS_A_THREAD).clamp(1, MAX_BLOCKS);
    let partial = cuda.buffer(blocks * 2 * DType::F64.size())?;
    let params = NllLossParams {
        log_probs: log_probs.pointer(),
        targets: targets.pointer(),
        losses: losses.pointer(),
        counted: counted.pointer(),
        partial: partial.pointer(),
        status: cuda.status()?,
        counter: cuda.counters(1)?,
        ignore_index: options.ignore_index,
        reduction: code(options.reduction),
        unused: 0,
        along: options.along.into(),
    };
    NLL_LOSS.launch(cuda, OP, dtype, LaunchConfig::linear(blocks as u32, THREADS as u32), &params)
}

pub(super) fn cross_entropy_backward(
    cuda: &Cuda,
    grad_losses: CudaSlice<'_>,
    log_probs: CudaSlice<'_>,
    targets: CudaSlice<'_>,
    options: CrossEntropy,
    counted: CudaSlice<'_>,
    grad_logits: &CudaSliceMut<'_>,
) -> Result<()> {
    let ((lines, outputs), dtype) = (sizes(&options), log_probs.dtype());
    let len = lines * options.along.size;
    expect_dtype(OP, DType::I64, targets.dtype())?;
    for other in [grad_losses.dtype(), counted.dtype(), grad_logits.dtype()] {
        expect_dtype(OP, dtype, other)?;
    }
    expect_len(OP, "gradOutput", outputs, grad_losses.len())?;
    expect_len(OP, "the log-probabilities", len, log_probs.len())?;
    expect_len(OP, "the targets", lines, targets.len())?;
    expect_len(OP, "the count", 1, counted.len())?;
    expect_len(OP, "the gradient", len, grad_logits.len())?;
    if len == 0 {
        return Ok(());
    }
    let params = CrossEntropyBackwardParams {
        grad_losses: grad_losses.pointer(),
        log_probs: log_probs.pointer(),
        targets: targets.pointer(),
        counted: counted.pointer(),
        grad_logits: grad_logits.pointer(),
        status: cuda.status()?,
        ignore_index: options.ignore_index,
        reduction: code(options.reduction),
        unused: 0,
        along: options.along.into(),
        size: WideDivider::new(options.along.size),
    };
    BACKWARD.launch(cuda, OP, dtype, walk(len), &params)
}
