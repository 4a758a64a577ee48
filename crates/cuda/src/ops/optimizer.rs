//! Launchers of optimizer.cu.

use super::family::{FLOATS, Family, expect_dtype, expect_len, walk};
use crate::kernel_table::Entry;
use crate::launch::Params;
use crate::module::Module;
use crate::{Cuda, CudaSlice, CudaSliceMut};
use syncbn_core::ops::{AdamWStep, SgdStep};
use syncbn_core::{DType, Result};

#[repr(C)]
#[derive(Clone, Copy)]
struct SgdStepParams {
    parameter: u64,
    gradient: u64,
    momentum_buffer: u64,
    len: u64,
    lr: f64,
    momentum: f64,
    kept: f64,
    weight_decay: f64,
    nesterov: u32,
    first: u32,
}
// SAFETY: repr(C), as the struct of kernels/optimizer.cu.
unsafe impl Params for SgdStepParams {}

/// The part of AdamW's parameters that every step has in common.
#[repr(C)]
#[derive(Clone, Copy)]
struct AdamWParams {
    parameter: u64,
    gradient: u64,
    first_moment: u64,
    second_moment: u64,
    len: u64,
    shrink: f64,
    beta1: f64,
    beta2: f64,
    eps: f64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct AdamWStepParams {
    update: AdamWParams,
    step_size: f64,
    root_correction: f64,
}
// SAFETY: repr(C), as the struct of kernels/optimizer.cu.
unsafe impl Params for AdamWStepParams {}

#[repr(C)]
#[derive(Clone, Copy)]
struct AdamWStepCountedParams {
    update: AdamWParams,
    step: u64,
    lr: f64,
}
// SAFETY: repr(C), as the struct of kernels/optimizer.cu.
unsafe impl Params for AdamWStepCountedParams {}

const SGD_STEP: Family<SgdStepParams> = Family::new(Module::Optimizer, "sgd_step", FLOATS);
const ADAMW_STEP: Family<AdamWStepParams> = Family::new(Module::Optimizer, "adamw_step", FLOATS);
const ADAMW_STEP_COUNTED: Family<AdamWStepCountedParams> = Family::new(Module::Optimizer, "adamw_step_counted", FLOATS);

pub(super) fn table() -> Vec<Entry> {
    [SGD_STEP.entries(), ADAMW_STEP.entries(), ADAMW_STEP_COUNTED.entries()].concat()
}

pub(super) fn sgd_step(
    cuda: &Cuda,
    parameter: &CudaSliceMut<'_>,
    gradient: CudaSlice<'_>,
    momentum_buffer: Option<&CudaSliceMut<'_>>,
    step: SgdStep,
) -> Result<()> {
    let (dtype, len) = (parameter.dtype(), parameter.len());
    let buffer = momentum_buffer.map(CudaSliceMut::as_slice);
    for (what, operand) in [("the gradient", Some(gradient)), ("the momentum buffer", buffer)] {
        let Some(operand) = operand else { continue };
        expect_dtype("sgd", dtype, operand.dtype())?;
        expect_len("sgd", what, len, operand.len())?;
    }
    if len == 0 {
        return Ok(());
    }
    let params = SgdStepParams {
        parameter: parameter.pointer(),
        gradient: gradient.pointer(),
        momentum_buffer: buffer.map_or(0, |buffer| buffer.pointer()),
        len: len as u64,
        lr: step.lr,
        momentum: step.momentum,
        kept: 1.0 - step.dampening,
        weight_decay: step.weight_decay,
        nesterov: u32::from(step.nesterov),
        first: u32::from(step.first),
    };
    SGD_STEP.launch(cuda, "sgd", dtype, walk(len), &params)
}

/// A parameter with everything AdamW updates and reads.
pub(super) struct AdamWOperands<'a> {
    pub(super) parameter: &'a CudaSliceMut<'a>,
    pub(super) gradient: CudaSlice<'a>,
    pub(super) first_moment: &'a CudaSliceMut<'a>,
    pub(super) second_moment: &'a CudaSliceMut<'a>,
}

impl AdamWOperands<'_> {
    fn params(&self, step: &AdamWStep) -> Result<AdamWParams> {
        let (dtype, len) = (self.parameter.dtype(), self.parameter.len());
        let moments = [("the first moment", self.first_moment), ("the second moment", self.second_moment)];
        let moments = moments.map(|(what, moment)| (what, moment.as_slice()));
        for (what, operand) in [("the gradient", self.gradient)].into_iter().chain(moments) {
            expect_dtype("adamw", dtype, operand.dtype())?;
            expect_len("adamw", what, len, operand.len())?;
        }
        Ok(AdamWParams {
            parameter: self.parameter.pointer(),
            gradient: self.gradient.pointer(),
            first_moment: self.first_moment.pointer(),
            second_moment: self.second_moment.pointer(),
            len: len as u64,
            shrink: 1.0 - step.lr * step.weight_decay,
            beta1: step.beta1,
            beta2: step.beta2,
            eps: step.eps,
        })
    }
}

pub(super) fn adamw_step(cuda: &Cuda, operands: &AdamWOperands<'_>, step: AdamWStep) -> Result<()> {
    let (dtype, len) = (operands.parameter.dtype(), operands.parameter.len());
    let correction = |beta: f64| 1.0 - beta.powf(step.step as f64);
    let params = AdamWStepParams {
        update: operands.params(&step)?,
        step_size: step.lr / correction(step.beta1),
        root_correction: correction(step.beta2).sqrt(),
    };
    if len == 0 { Ok(()) } else { ADAMW_STEP.launch(cuda, "adamw", dtype, walk(len), &params) }
}

pub(super) fn adamw_step_from(
    cuda: &Cuda,
    operands: &AdamWOperands<'_>,
    step: AdamWStep,
    counter: CudaSlice<'_>,
) -> Result<()> {
    let (dtype, len) = (operands.parameter.dtype(), operands.parameter.len());
    expect_dtype("adamw", DType::I64, counter.dtype())?;
    expect_len("adamw", "the step", 1, counter.len())?;
    let params = AdamWStepCountedParams { update: operands.params(&step)?, step: counter.pointer(), lr: step.lr };
    if len == 0 { Ok(()) } else { ADAMW_STEP_COUNTED.launch(cuda, "adamw", dtype, walk(len), &params) }
}
