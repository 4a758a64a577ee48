//! Batch norm on typed arrays, borrowed for the call. Arrays are in the order of their memory format.

use crate::array::{FloatOutput, Floats, NewFloats, expect_apart, floats, floats_mut};
use crate::batch_norm::{BindingBatchNormOptions, BindingSaved};
use crate::convert::{format, sizes};
use crate::error::{Result, checked};
use crate::process_group::BindingGroup;
use napi::bindgen_prelude::{Either, Float32Array, Float64Array};
use napi_derive::napi;
use syncbn_core::kernels::Backward;
use syncbn_core::{BatchNormShape, Code, DType, Error, sync_batch_norm};
use syncbn_cpu::{Cpu, HostSlice};
use syncbn_runtime::array::{self, Arguments, Saved, expect_channels};

/// A dense tensor in a typed array.
#[napi(object)]
pub struct BindingArray {
    pub data: Either<Float32Array, Float64Array>,
    pub shape: Vec<i64>,
    pub memory_format: String,
}

impl BindingArray {
    /// The numbers.
    pub fn slice(&self) -> HostSlice<'_> {
        match &self.data {
            Either::A(values) => HostSlice::F32(values),
            Either::B(values) => HostSlice::F64(values),
        }
    }

    /// The shape as batch norm sees it, checked against the number of values.
    pub fn batch_norm_shape(&self, op: &str) -> Result<BatchNormShape> {
        let shape = checked(BatchNormShape::new(op, &sizes(op, &self.shape)?, format(&self.memory_format)?))?;
        if shape.numel() == self.slice().len() {
            return Ok(shape);
        }
        let expected = format!("{} values for shape {:?}", shape.numel(), self.shape);
        checked(Err(Error::expected(Code::Shape, op, expected, self.slice().len())))
    }

    /// Fails unless `other` is of this array's type, shape and format.
    pub fn expect_like(&self, op: &str, what: &str, other: &BindingArray) -> Result<()> {
        if other.slice().dtype() != self.slice().dtype() {
            let expected = format!("{what} of {}", self.slice().dtype());
            return checked(Err(Error::expected(Code::DType, op, expected, other.slice().dtype())));
        }
        if other.shape != self.shape || other.memory_format != self.memory_format {
            let expected = format!("{what} of shape {:?}, {}", self.shape, self.memory_format);
            let got = format!("{:?}, {}", other.shape, other.memory_format);
            return checked(Err(Error::expected(Code::Shape, op, expected, got)));
        }
        Ok(())
    }
}

/// Result of [`batch_norm_forward_array`].
#[napi(object, object_from_js = false)]
pub struct BindingBatchNormForwardArray {
    pub output: NewFloats,
    pub saved: BindingSaved,
}

#[allow(clippy::too_many_arguments, reason = "the arrays of a batch norm")]
#[napi(catch_unwind)]
pub fn batch_norm_forward_array(
    input: BindingArray,
    weight: Option<Floats<'_>>,
    bias: Option<Floats<'_>>,
    running_mean: Option<Floats<'_>>,
    running_var: Option<Floats<'_>>,
    options: BindingBatchNormOptions,
    group: Option<&BindingGroup>,
) -> Result<BindingBatchNormForwardArray> {
    const OP: &str = "syncBatchNorm";
    let (shape, x, mut running_mean, mut running_var) =
        (input.batch_norm_shape(OP)?, input.slice(), running_mean, running_var);
    let (weight, bias) = (weight.as_ref().map(floats), bias.as_ref().map(floats));
    let mut output = FloatOutput::new(x.dtype(), x.len());
    let saved = if options.training {
        let read: Vec<_> = [Some(x), weight, bias].into_iter().flatten().collect();
        for (written, other) in [(&running_mean, &running_var), (&running_var, &running_mean)] {
            let Some(written) = written else { continue };
            let others: Vec<_> = read.iter().copied().chain(other.as_ref().map(floats)).collect();
            expect_apart(OP, written, &others)?;
        }
        let arguments = Arguments {
            weight,
            bias,
            running_mean: running_mean.as_mut().map(floats_mut),
            running_var: running_var.as_mut().map(floats_mut),
            num_batches_tracked: None,
        };
        array::forward_training(x, shape, arguments, options.into(), group.map(BindingGroup::get), output.slice())
    } else {
        let running = running_mean.as_ref().map(floats).zip(running_var.as_ref().map(floats));
        array::forward_eval(x, shape, (weight, bias), running, options.eps, output.slice())
    };
    Ok(BindingBatchNormForwardArray { saved: checked(saved)?.into(), output: output.finish() })
}

/// Result of [`batch_norm_backward_array`].
#[napi(object, object_from_js = false)]
pub struct BindingBatchNormGradientArrays {
    pub grad_input: NewFloats,
    pub grad_weight: NewFloats,
    pub grad_bias: NewFloats,
}

#[napi(catch_unwind)]
pub fn batch_norm_backward_array(
    grad_output: BindingArray,
    input: BindingArray,
    weight: Option<Floats<'_>>,
    saved: &BindingSaved,
) -> Result<BindingBatchNormGradientArrays> {
    const OP: &str = "syncBatchNormBackward";
    let (shape, x, weight) = (input.batch_norm_shape(OP)?, input.slice(), weight.as_ref().map(floats));
    grad_output.batch_norm_shape(OP)?;
    input.expect_like(OP, "gradOutput", &grad_output)?;
    let saved = saved.with(Saved::clone)?;
    checked(saved.expect(OP, shape, x.dtype()))?;
    checked(expect_channels(OP, "weight", weight.map(|w| (w.len(), w.dtype())), shape, x.dtype()))?;
    let parameter_dtype = weight.map_or(x.dtype(), |weight: HostSlice<'_>| weight.dtype());
    let per_channel = |dtype: DType| FloatOutput::new(dtype, shape.channels);
    let mut grad_input = FloatOutput::new(x.dtype(), x.len());
    let (mut grad_weight, mut grad_bias) = (per_channel(parameter_dtype), per_channel(parameter_dtype));
    let call = Backward {
        input: x,
        grad_output: grad_output.slice(),
        shape,
        weight,
        statistics: saved.statistics(),
        batch_statistics: saved.batch_statistics(),
        grad_input: Some(grad_input.slice()),
        grad_weight: Some(grad_weight.slice()),
        grad_bias: Some(grad_bias.slice()),
    };
    checked(sync_batch_norm::backward(&Cpu, saved.group(), call))?;
    Ok(BindingBatchNormGradientArrays {
        grad_input: grad_input.finish(),
        grad_weight: grad_weight.finish(),
        grad_bias: grad_bias.finish(),
    })
}
