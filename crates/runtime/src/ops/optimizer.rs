//! Updates of parameters in place.

use crate::tensor::Tensor;
use syncbn_core::ops::{AdamWStep, SgdStep};
use syncbn_core::{Ops, Result};
use syncbn_cpu::Cpu;

/// `other` in the parameter's format, checked to be of its shape and type.
fn like(op: &str, what: &str, parameter: &Tensor, other: &Tensor) -> Result<()> {
    parameter.expect_float(op)?;
    other.expect_dtype(op, what, parameter.dtype())?;
    other.expect_shape(op, parameter.shape())
}

/// One step of SGD.
pub fn sgd_step(parameter: &Tensor, gradient: &Tensor, momentum_buffer: Option<&Tensor>, step: SgdStep) -> Result<()> {
    like("sgd", "a gradient", parameter, gradient)?;
    if let Some(buffer) = momentum_buffer {
        like("sgd", "a momentum buffer", parameter, buffer)?;
    }
    let gradient = gradient.to_format(parameter.format())?;
    {
        let mut buffer = momentum_buffer.map(Tensor::write).transpose()?;
        let buffer = buffer.as_mut().map(|buffer| buffer.slice());
        Cpu.sgd_step(parameter.write()?.slice(), gradient.read()?.slice(), buffer, step)?;
    }
    parameter.storage().bump_version();
    momentum_buffer.inspect(|buffer| buffer.storage().bump_version());
    Ok(())
}

/// One step of AdamW.
pub fn adamw_step(
    parameter: &Tensor,
    gradient: &Tensor,
    first_moment: &Tensor,
    second_moment: &Tensor,
    step: AdamWStep,
) -> Result<()> {
    like("adamw", "a gradient", parameter, gradient)?;
    like("adamw", "a first moment", parameter, first_moment)?;
    like("adamw", "a second moment", parameter, second_moment)?;
    let gradient = gradient.to_format(parameter.format())?;
    Cpu.adamw_step(
        parameter.write()?.slice(),
        gradient.read()?.slice(),
        first_moment.write()?.slice(),
        second_moment.write()?.slice(),
        step,
    )?;
    [parameter, first_moment, second_moment].iter().for_each(|written| written.storage().bump_version());
    Ok(())
}
