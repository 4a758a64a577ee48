//! softmax and cross entropy.

use crate::device::run;
use crate::layout::{along, dimension};
use crate::tensor::Tensor;
use syncbn_core::ops::{CrossEntropy, LossReduction};
use syncbn_core::{Code, DType, Error, MemoryFormat, Ops, Result};

/// softmax along `dim`, or its logarithm; contiguous.
pub fn softmax(x: &Tensor, dim: i64, log: bool) -> Result<Tensor> {
    x.expect_float("softmax")?;
    let along = along(x.shape(), dimension("softmax", dim, x.shape().len())?);
    let x = x.contiguous()?;
    let output = x.empty_like("softmax")?;
    run!("softmax"; read(x = &x); write(y = &output); device => device.softmax(x, along, log, y))?;
    Ok(output)
}

/// dL/dx of [`softmax`] from its output.
pub fn softmax_backward(grad_output: &Tensor, output: &Tensor, dim: i64, log: bool) -> Result<Tensor> {
    output.expect_float("softmax")?;
    grad_output.expect_dtype("softmax", "gradOutput", output.dtype())?;
    grad_output.expect_shape("softmax gradOutput", output.shape())?;
    let along = along(output.shape(), dimension("softmax", dim, output.shape().len())?);
    let (grad_output, output) = (grad_output.contiguous()?, output.contiguous()?);
    let grad_input = output.empty_like("softmax")?;
    run!("softmax"; read(dy = &grad_output, y = &output); write(dx = &grad_input); device =>
        device.softmax_backward(dy, y, along, log, dx))?;
    Ok(grad_input)
}

/// What cross entropy gives, and what its backward needs.
#[derive(Clone, Debug)]
pub struct CrossEntropyForward {
    /// One element, or one per target.
    pub loss: Tensor,
    /// log-softmax of the logits.
    pub log_probs: Tensor,
    /// Number of targets that count, one element.
    pub counted: Tensor,
}

fn options(logits: &Tensor, targets: &Tensor, ignore_index: i64, reduction: LossReduction) -> Result<CrossEntropy> {
    targets.expect_dtype("crossEntropy", "targets (class indices)", DType::I64)?;
    let shape = logits.shape();
    if shape.len() < 2 {
        let got = format!("shape {shape:?}");
        return Err(Error::expected(Code::Shape, "crossEntropy", "logits (N, C) or (N, C, d…)", got));
    }
    targets.expect_shape("crossEntropy targets", &[&shape[..1], &shape[2..]].concat())?;
    Ok(CrossEntropy { along: along(shape, 1), ignore_index, reduction })
}

/// −log softmax(logits)[target] for logits (N, C, …) and int64 targets (N, …).
pub fn cross_entropy(
    logits: &Tensor,
    targets: &Tensor,
    ignore_index: i64,
    reduction: LossReduction,
) -> Result<CrossEntropyForward> {
    logits.expect_float("crossEntropy")?;
    let options = options(logits, targets, ignore_index, reduction)?;
    let (log_probs, targets) = (softmax(logits, 1, true)?, targets.contiguous()?);
    let scalar = |shape: &[usize]| logits.new_empty("crossEntropy", shape, logits.dtype(), MemoryFormat::Contiguous);
    let loss = scalar(if reduction == LossReduction::None { targets.shape() } else { &[] })?;
    let counted = scalar(&[])?;
    run!("crossEntropy"; read(p = &log_probs, targets = &targets); write(loss = &loss, counted = &counted); device =>
        device.nll_loss(p, targets, options, loss, counted))?;
    Ok(CrossEntropyForward { loss, log_probs, counted })
}

/// dL/dlogits of [`cross_entropy`].
pub fn cross_entropy_backward(
    grad_loss: &Tensor,
    log_probs: &Tensor,
    targets: &Tensor,
    counted: &Tensor,
    ignore_index: i64,
    reduction: LossReduction,
) -> Result<Tensor> {
    let options = options(log_probs, targets, ignore_index, reduction)?;
    let targets = targets.contiguous()?;
    grad_loss.expect_dtype("crossEntropy", "gradOutput", log_probs.dtype())?;
    grad_loss.expect_shape(
        "crossEntropy gradOutput",
        if reduction == LossReduction::None { targets.shape() } else { &[] },
    )?;
    let grad_loss = grad_loss.contiguous()?;
    let grad_logits = log_probs.empty_like("crossEntropy")?;
    run!("crossEntropy";
        read(dy = &grad_loss, p = log_probs, targets = &targets, counted = counted); write(dx = &grad_logits); device =>
        device.cross_entropy_backward(dy, p, targets, options, counted, dx))?;
    Ok(grad_logits)
}
