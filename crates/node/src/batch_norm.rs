//! Batch norm on tensors.

use crate::array::{Floats, to_floats};
use crate::error::{Result, checked, to_js};
use crate::process_group::BindingGroup;
use crate::tensor::{BindingTensor, optional};
use napi::Env;
use napi_derive::napi;
use std::cell::RefCell;
use syncbn_core::{Code, Error};
use syncbn_runtime::Saved;
use syncbn_runtime::array::Options;
use syncbn_runtime::batch_norm::{self, GradGradients, Needs, Parameters};

/// What backward needs of a forward call. Opaque to JavaScript.
#[napi]
pub struct BindingSaved(RefCell<Option<Saved>>);

impl BindingSaved {
    /// The statistics, unless disposed.
    pub fn with<T>(&self, read: impl FnOnce(&Saved) -> T) -> Result<T> {
        let disposed = || to_js(Error::new(Code::Disposed, "this saved batch norm was disposed"));
        self.0.borrow().as_ref().map(read).ok_or_else(disposed)
    }
}

impl From<Saved> for BindingSaved {
    fn from(saved: Saved) -> Self {
        Self(RefCell::new(Some(saved)))
    }
}

/// How a forward call normalises.
#[napi(object)]
pub struct BindingBatchNormOptions {
    /// Statistics of the input instead of the running ones.
    pub training: bool,
    /// Absent for the cumulative average.
    pub momentum: Option<f64>,
    pub eps: f64,
}

impl From<BindingBatchNormOptions> for Options {
    fn from(options: BindingBatchNormOptions) -> Self {
        Self { training: options.training, momentum: options.momentum, eps: options.eps }
    }
}

/// Result of [`batch_norm_forward`].
#[napi(object, object_from_js = false)]
pub struct BindingBatchNormForward {
    pub output: BindingTensor,
    pub saved: BindingSaved,
}

#[allow(clippy::too_many_arguments, reason = "the tensors of a batch norm; an object would cost a look-up for each")]
#[napi(catch_unwind)]
pub fn batch_norm_forward(
    input: &BindingTensor,
    weight: Option<&BindingTensor>,
    bias: Option<&BindingTensor>,
    running_mean: Option<&BindingTensor>,
    running_var: Option<&BindingTensor>,
    num_batches_tracked: Option<&BindingTensor>,
    options: BindingBatchNormOptions,
    group: Option<&BindingGroup>,
) -> Result<BindingBatchNormForward> {
    let (weight, bias, tracked) = (optional(weight)?, optional(bias)?, optional(num_batches_tracked)?);
    let (running_mean, running_var) = (optional(running_mean)?, optional(running_var)?);
    let parameters = Parameters {
        weight: weight.as_ref(),
        bias: bias.as_ref(),
        running_mean: running_mean.as_ref(),
        running_var: running_var.as_ref(),
        num_batches_tracked: tracked.as_ref(),
    };
    let group = group.map(BindingGroup::get);
    let (output, saved) = checked(batch_norm::forward(&input.get()?, parameters, options.into(), group))?;
    Ok(BindingBatchNormForward { output: output.into(), saved: saved.into() })
}

/// Which gradients to make.
#[napi(object)]
pub struct BindingNeeds {
    pub input: bool,
    pub weight: bool,
    pub bias: bool,
}

/// Result of [`batch_norm_backward`].
#[napi(object, object_from_js = false, use_nullable = true)]
pub struct BindingBatchNormGradients {
    pub grad_input: Option<BindingTensor>,
    pub grad_weight: Option<BindingTensor>,
    pub grad_bias: Option<BindingTensor>,
}

#[napi(catch_unwind)]
pub fn batch_norm_backward(
    grad_output: &BindingTensor,
    input: &BindingTensor,
    weight: Option<&BindingTensor>,
    saved: &BindingSaved,
    needs: BindingNeeds,
) -> Result<BindingBatchNormGradients> {
    let BindingNeeds { input: need_input, weight: need_weight, bias } = needs;
    let needs = Needs { input: need_input, weight: need_weight, bias };
    let (grad_output, input, weight) = (grad_output.get()?, input.get()?, optional(weight)?);
    let saved = saved.with(Saved::clone)?;
    let gradients = checked(batch_norm::backward(&grad_output, &input, weight.as_ref(), &saved, needs))?;
    Ok(BindingBatchNormGradients {
        grad_input: gradients.input.map(BindingTensor::from),
        grad_weight: gradients.weight.map(BindingTensor::from),
        grad_bias: gradients.bias.map(BindingTensor::from),
    })
}

/// Result of [`batch_norm_double_backward`].
#[napi(object, object_from_js = false, use_nullable = true)]
pub struct BindingBatchNormDoubleGradients {
    pub grad_input: BindingTensor,
    pub grad_grad_output: BindingTensor,
    pub grad_weight: Option<BindingTensor>,
}

#[napi(catch_unwind)]
pub fn batch_norm_double_backward(
    input: &BindingTensor,
    grad_output: &BindingTensor,
    weight: Option<&BindingTensor>,
    saved: &BindingSaved,
    grad_grad_input: Option<&BindingTensor>,
    grad_grad_weight: Option<&BindingTensor>,
    grad_grad_bias: Option<&BindingTensor>,
) -> Result<BindingBatchNormDoubleGradients> {
    let (input, grad_output, weight) = (input.get()?, grad_output.get()?, optional(weight)?);
    let (ggi, ggw, ggb) = (optional(grad_grad_input)?, optional(grad_grad_weight)?, optional(grad_grad_bias)?);
    let grads = GradGradients { input: ggi.as_ref(), weight: ggw.as_ref(), bias: ggb.as_ref() };
    let saved = saved.with(Saved::clone)?;
    let result = checked(batch_norm::double_backward(&input, &grad_output, weight.as_ref(), &saved, grads))?;
    Ok(BindingBatchNormDoubleGradients {
        grad_input: result.input.into(),
        grad_grad_output: result.grad_output.into(),
        grad_weight: result.weight.map(BindingTensor::from),
    })
}

/// What JavaScript shows of saved statistics.
#[napi(object, object_from_js = false)]
pub struct BindingSavedInfo<'env> {
    pub mean: Floats<'env>,
    pub invstd: Floats<'env>,
    pub count: f64,
}

#[napi(catch_unwind)]
pub fn saved_info<'env>(env: &'env Env, saved: &BindingSaved) -> Result<BindingSavedInfo<'env>> {
    let (dtype, values) = saved.with(|saved| (saved.dtype(), saved.values()))?;
    let (count, mean, invstd) = checked(values)?;
    let (mean, invstd) = (to_floats(env, dtype, &mean)?, to_floats(env, dtype, &invstd)?);
    Ok(BindingSavedInfo { mean, invstd, count: count as f64 })
}

#[napi(catch_unwind)]
pub fn saved_dispose(saved: &BindingSaved) {
    saved.0.take();
}
