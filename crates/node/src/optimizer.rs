//! Updates of parameters in place.

use crate::convert::count;
use crate::error::{Result, checked};
use crate::tensor::{BindingTensor, optional};
use napi_derive::napi;
use syncbn_core::ops::{AdamWStep, SgdStep};
use syncbn_runtime::ops;

/// Options of [`sgd_step`].
#[napi(object)]
pub struct BindingSgdStep {
    pub lr: f64,
    pub momentum: f64,
    pub dampening: f64,
    pub weight_decay: f64,
    pub nesterov: bool,
    pub first: bool,
}

#[napi(catch_unwind)]
pub fn sgd_step(
    parameter: &BindingTensor,
    gradient: &BindingTensor,
    momentum_buffer: Option<&BindingTensor>,
    step: BindingSgdStep,
) -> Result<()> {
    let BindingSgdStep { lr, momentum, dampening, weight_decay, nesterov, first } = step;
    let step = SgdStep { lr, momentum, dampening, weight_decay, nesterov, first };
    checked(ops::sgd_step(&parameter.get()?, &gradient.get()?, optional(momentum_buffer)?.as_ref(), step))
}

/// Options of [`adamw_step`].
#[napi(object)]
pub struct BindingAdamWStep {
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    pub step: f64,
}

#[napi(catch_unwind)]
pub fn adamw_step(
    parameter: &BindingTensor,
    gradient: &BindingTensor,
    first_moment: &BindingTensor,
    second_moment: &BindingTensor,
    step: BindingAdamWStep,
    step_counter: Option<&BindingTensor>,
) -> Result<()> {
    let BindingAdamWStep { lr, beta1, beta2, eps, weight_decay, step } = step;
    let step = AdamWStep { lr, beta1, beta2, eps, weight_decay, step: count("adamw", "step", step)? as u64 };
    let moments = [&first_moment.get()?, &second_moment.get()?];
    checked(match optional(step_counter)? {
        None => ops::adamw_step(&parameter.get()?, &gradient.get()?, moments, step),
        Some(counter) => ops::adamw_step_from(&parameter.get()?, &gradient.get()?, moments, step, &counter),
    })
}
