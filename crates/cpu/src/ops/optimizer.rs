//! The updates of `torch.optim.SGD` and `torch.optim.AdamW`, in the element type of the parameters.

use super::float::Float;
use syncbn_core::ops::{AdamWStep, SgdStep};

pub fn sgd<T: Float>(parameter: &mut [T], gradient: &[T], momentum_buffer: Option<&mut [T]>, step: SgdStep) {
    let [lr, momentum, kept, decay] = [step.lr, step.momentum, 1.0 - step.dampening, step.weight_decay].map(T::of);
    let decayed =
        |gradient: T, parameter: T| if step.weight_decay == 0.0 { gradient } else { gradient + decay * parameter };
    let Some(buffer) = momentum_buffer else {
        parameter.iter_mut().zip(gradient).for_each(|(p, &g)| *p -= lr * decayed(g, *p));
        return;
    };
    for ((p, &g), velocity) in parameter.iter_mut().zip(gradient).zip(buffer) {
        let g = decayed(g, *p);
        *velocity = if step.first { g } else { momentum * *velocity + kept * g };
        let direction = if step.nesterov { g + momentum * *velocity } else { *velocity };
        *p -= lr * direction;
    }
}

/// Loshchilov & Hutter, "Decoupled Weight Decay Regularization" (2019), algorithm 2, with PyTorch's order of operations.
pub fn adamw<T: Float>(
    parameter: &mut [T],
    gradient: &[T],
    first_moment: &mut [T],
    second_moment: &mut [T],
    step: AdamWStep,
) {
    let correction = |beta: f64| 1.0 - beta.powf(step.step as f64);
    let step_size = T::of(step.lr / correction(step.beta1));
    let root_correction = T::of(correction(step.beta2).sqrt());
    let shrink = T::of(1.0 - step.lr * step.weight_decay);
    let [new1, beta2, new2, eps] = [1.0 - step.beta1, step.beta2, 1.0 - step.beta2, step.eps].map(T::of);
    let moments = first_moment.iter_mut().zip(second_moment);
    for ((p, &g), (m, v)) in parameter.iter_mut().zip(gradient).zip(moments) {
        *m = *m + new1 * (g - *m);
        *v = beta2 * *v + new2 * g * g;
        *p = shrink * *p - step_size * (*m / (v.root() / root_correction + eps));
    }
}
