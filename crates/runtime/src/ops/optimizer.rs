//! Updates of parameters in place.

use crate::device::{Device, expect_one_device, run};
use crate::tensor::Tensor;
use syncbn_core::ops::{AdamWStep, SgdStep};
use syncbn_core::{Code, DType, Error, Ops, Result};

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
    match momentum_buffer {
        Some(buffer) => {
            run!("sgd"; read(gradient = &gradient); write(parameter = parameter, buffer = buffer); device =>
            device.sgd_step(parameter, gradient, Some(buffer), step))
        }
        None => run!("sgd"; read(gradient = &gradient); write(parameter = parameter); device =>
            device.sgd_step(parameter, gradient, None, step)),
    }?;
    parameter.storage().bump_version();
    momentum_buffer.inspect(|buffer| buffer.storage().bump_version());
    Ok(())
}

/// One step of AdamW.
pub fn adamw_step(
    parameter: &Tensor,
    gradient: &Tensor,
    [first_moment, second_moment]: [&Tensor; 2],
    step: AdamWStep,
) -> Result<()> {
    like("adamw", "a gradient", parameter, gradient)?;
    like("adamw", "a first moment", parameter, first_moment)?;
    like("adamw", "a second moment", parameter, second_moment)?;
    let gradient = gradient.to_format(parameter.format())?;
    run!("adamw";
        read(gradient = &gradient); write(parameter = parameter, first = first_moment, second = second_moment); device =>
        device.adamw_step(parameter, gradient, first, second, step))?;
    [parameter, first_moment, second_moment].iter().for_each(|written| written.storage().bump_version());
    Ok(())
}

/// [`adamw_step`] on a GPU, with the number of the step kept there: adds one to `counter` (int64, one element) and takes
/// the result for `step.step`, so that a recorded step can be replayed.
///
/// # Errors
/// [`Code::Device`] for tensors on the CPU.
pub fn adamw_step_from(
    parameter: &Tensor,
    gradient: &Tensor,
    [first_moment, second_moment]: [&Tensor; 2],
    step: AdamWStep,
    counter: &Tensor,
) -> Result<()> {
    const OP: &str = "adamw";
    like(OP, "a gradient", parameter, gradient)?;
    like(OP, "a first moment", parameter, first_moment)?;
    like(OP, "a second moment", parameter, second_moment)?;
    counter.expect_dtype(OP, "a step counter", DType::I64)?;
    counter.expect_shape(OP, &[1])?;
    expect_one_device(OP, &[parameter, gradient, first_moment, second_moment, counter])?;
    let Device::Cuda(cuda) = parameter.device() else {
        return Err(Error::expected(Code::Device, OP, "tensors on a GPU with a step counter", "tensors on the CPU"));
    };
    let gradient = gradient.to_format(parameter.format())?;
    {
        let write = |tensor: &'_ Tensor| tensor.storage().cuda()?.write_owned();
        let (mut parameter, mut first, mut second) = (write(parameter)?, write(first_moment)?, write(second_moment)?);
        let (gradient, mut count) = (gradient.storage().cuda()?.read()?, write(counter)?);
        cuda.increment(count.slice())?;
        let (gradient, count) = (gradient.slice(), count.input());
        cuda.adamw_step_from(parameter.slice(), gradient, first.slice(), second.slice(), step, count)?;
    }
    [parameter, first_moment, second_moment, counter].iter().for_each(|written| written.storage().bump_version());
    Ok(())
}
