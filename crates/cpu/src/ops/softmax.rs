//! softmax and log-softmax along one dimension, and cross entropy on top of it.
//!
//! The maximum is subtracted first, so nothing overflows; sums are made in float64.

use super::float::Float;
use super::split::for_each_part;
use syncbn_core::ops::{Along, CrossEntropy, LossReduction};
use syncbn_core::{Code, Error, Result};

/// Calls `visit(start, step)` for each line along the dimension inside one outer block.
fn lines(along: Along) -> impl Iterator<Item = usize> {
    0..along.inner
}

pub fn forward<T: Float>(input: &[T], along: Along, log: bool, output: &mut [T]) {
    let block = along.size * along.inner;
    for_each_part(output, block, |index, output| {
        let input = &input[index * block..][..block];
        for line in lines(along) {
            let at = |k: usize| input[k * along.inner + line].wide();
            let max = (0..along.size).map(at).fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = (0..along.size).map(|k| (at(k) - max).exp()).sum();
            for k in 0..along.size {
                let value = if log { at(k) - max - total.ln() } else { (at(k) - max).exp() / total };
                output[k * along.inner + line] = T::of(value);
            }
        }
    });
}

/// dx = y·(dy − Σ dy·y), or dy − eʸ·Σ dy for the logarithm.
pub fn backward<T: Float>(grad_output: &[T], output: &[T], along: Along, log: bool, grad_input: &mut [T]) {
    let block = along.size * along.inner;
    for_each_part(grad_input, block, |index, grad_input| {
        let (grads, output) = (&grad_output[index * block..][..block], &output[index * block..][..block]);
        for line in lines(along) {
            let at = |k: usize| k * along.inner + line;
            let (dy, y) = (|k: usize| grads[at(k)].wide(), |k: usize| output[at(k)].wide());
            let total: f64 = (0..along.size).map(|k| if log { dy(k) } else { dy(k) * y(k) }).sum();
            for k in 0..along.size {
                let value = if log { dy(k) - y(k).exp() * total } else { y(k) * (dy(k) - total) };
                grad_input[at(k)] = T::of(value);
            }
        }
    });
}

/// The class of target `i`, or none if it is ignored.
fn class(target: i64, options: &CrossEntropy) -> Result<Option<usize>> {
    if target == options.ignore_index {
        return Ok(None);
    }
    usize::try_from(target).ok().filter(|&class| class < options.along.size).map(Some).ok_or_else(|| {
        let classes = format!("a target in [0, {}) or {}", options.along.size, options.ignore_index);
        Error::expected(Code::Argument, "crossEntropy", classes, target)
    })
}

pub fn nll_loss<T: Float>(
    log_probs: &[T],
    targets: &[i64],
    options: &CrossEntropy,
    losses: &mut [T],
    counted: &mut [T],
) -> Result<()> {
    let Along { size, inner, .. } = options.along;
    let classes = targets.iter().map(|&target| class(target, options)).collect::<Result<Vec<_>>>()?;
    let loss =
        |i: usize| classes[i].map_or(0.0, |class| -log_probs[((i / inner) * size + class) * inner + i % inner].wide());
    let count = classes.iter().flatten().count() as f64;
    counted[0] = T::of(count);
    match options.reduction {
        LossReduction::None => losses.iter_mut().enumerate().for_each(|(i, out)| *out = T::of(loss(i))),
        LossReduction::Sum => losses[0] = T::of((0..targets.len()).map(loss).sum()),
        LossReduction::Mean => losses[0] = T::of((0..targets.len()).map(loss).sum::<f64>() / count),
    }
    Ok(())
}

/// dlogits = (softmax − one-hot)·dloss, over the number of targets that count for the mean; 0 for ignored targets.
pub fn cross_entropy_backward<T: Float>(
    grad_losses: &[T],
    log_probs: &[T],
    targets: &[i64],
    options: &CrossEntropy,
    counted: &[T],
    grad_logits: &mut [T],
) -> Result<()> {
    let Along { size, inner, .. } = options.along;
    let classes = targets.iter().map(|&target| class(target, options)).collect::<Result<Vec<_>>>()?;
    let scale = |i: usize| match options.reduction {
        LossReduction::None => grad_losses[i].wide(),
        LossReduction::Sum => grad_losses[0].wide(),
        LossReduction::Mean => grad_losses[0].wide() / counted[0].wide(),
    };
    for_each_part(grad_logits, size * inner, |outer, grads| {
        for (line, (k, at)) in (0..inner).flat_map(|line| (0..size).map(move |k| (line, (k, k * inner + line)))) {
            let target = outer * inner + line;
            let one_hot = |class: usize| if class == k { 1.0 } else { 0.0 };
            let probability = log_probs[outer * size * inner + at].wide().exp();
            let value = classes[target].map_or(0.0, |class| (probability - one_hot(class)) * scale(target));
            grads[at] = T::of(value);
        }
    });
    Ok(())
}
