//! Batch norm on typed arrays, borrowed for the call. Arrays are in the order of their memory format; results are
//! written to arrays that the caller made.

use crate::array::{Floats, expect_apart, floats, floats_mut};
use crate::batch_norm::{BindingBatchNormOptions, BindingSaved};
use crate::convert::{format, sizes};
use crate::error::{Result, checked};
use crate::process_group::BindingGroup;
use napi::bindgen_prelude::{Either, Float32Array, Float64Array};
use napi_derive::napi;
use syncbn_core::kernels::Backward;
use syncbn_core::{BatchNormShape, Code, Error, sync_batch_norm};
use syncbn_cpu::{Cpu, HostSlice};
use syncbn_runtime::Saved;
use syncbn_runtime::array::{self, Arguments};
use syncbn_runtime::check::expect_channels;

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

/// Fails unless `written` can take a result of `like`'s type with `len` values, apart from everything that is read.
pub fn expect_output(
    op: &str,
    written: &Floats<'_>,
    like: HostSlice<'_>,
    len: usize,
    read: &[HostSlice<'_>],
) -> Result<()> {
    let slice = floats(written);
    if slice.dtype() != like.dtype() {
        return checked(Err(Error::expected(Code::DType, op, format!("a result of {}", like.dtype()), slice.dtype())));
    }
    if slice.len() != len {
        return checked(Err(Error::expected(Code::Shape, op, format!("a result of {len} values"), slice.len())));
    }
    expect_apart(op, written, read)
}

/// Fails if two arrays that are both written overlap each other or one that is read.
fn expect_all_apart(op: &str, written: &[Option<&Floats<'_>>], read: &[HostSlice<'_>]) -> Result<()> {
    for (index, array) in written.iter().enumerate() {
        let Some(array) = array else { continue };
        let others = written[index + 1..].iter().flatten().map(|other| floats(other));
        expect_apart(op, array, &read.iter().copied().chain(others).collect::<Vec<_>>())?;
    }
    Ok(())
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
    output: Floats<'_>,
) -> Result<BindingSaved> {
    const OP: &str = "syncBatchNorm";
    let (shape, x) = (input.batch_norm_shape(OP)?, input.slice());
    let (mut running_mean, mut running_var, mut output) = (running_mean, running_var, output);
    let (weight, bias) = (weight.as_ref().map(floats), bias.as_ref().map(floats));
    let read: Vec<_> = [Some(x), weight, bias].into_iter().flatten().collect();
    expect_output(OP, &output, x, x.len(), &read)?;
    expect_all_apart(OP, &[Some(&output), running_mean.as_ref(), running_var.as_ref()], &read)?;
    let saved = if options.training {
        let arguments = Arguments {
            weight,
            bias,
            running_mean: running_mean.as_mut().map(floats_mut),
            running_var: running_var.as_mut().map(floats_mut),
            num_batches_tracked: None,
        };
        let group = group.map(BindingGroup::get);
        array::forward_training(x, shape, arguments, options.into(), group, floats_mut(&mut output))
    } else {
        let running = running_mean.as_ref().map(floats).zip(running_var.as_ref().map(floats));
        array::forward_eval(x, shape, (weight, bias), running, options.eps, floats_mut(&mut output))
    };
    Ok(checked(saved)?.into())
}

/// Where [`batch_norm_backward_array`] writes.
#[napi(object, object_to_js = false)]
pub struct BindingGradientArrays<'a> {
    pub grad_input: Floats<'a>,
    /// C values, of the weight's type; of the input's without a weight.
    pub grad_weight: Floats<'a>,
    /// Likewise.
    pub grad_bias: Floats<'a>,
}

#[napi(catch_unwind)]
pub fn batch_norm_backward_array(
    grad_output: BindingArray,
    input: BindingArray,
    weight: Option<Floats<'_>>,
    saved: &BindingSaved,
    gradients: BindingGradientArrays<'_>,
) -> Result<()> {
    const OP: &str = "syncBatchNormBackward";
    let (shape, x, weight) = (input.batch_norm_shape(OP)?, input.slice(), weight.as_ref().map(floats));
    grad_output.batch_norm_shape(OP)?;
    input.expect_like(OP, "gradOutput", &grad_output)?;
    let saved = saved.with(Saved::clone)?;
    checked(saved.expect(OP, shape, x.dtype()))?;
    checked(expect_channels(OP, "weight", weight.map(|w| (w.len(), w.dtype())), shape, x.dtype()))?;
    let BindingGradientArrays { mut grad_input, mut grad_weight, mut grad_bias } = gradients;
    let read: Vec<_> = [Some(x), Some(grad_output.slice()), weight].into_iter().flatten().collect();
    let parameter = weight.unwrap_or(x);
    for (written, like, len) in
        [(&grad_input, x, x.len()), (&grad_weight, parameter, shape.channels), (&grad_bias, parameter, shape.channels)]
    {
        expect_output(OP, written, like, len, &read)?;
    }
    expect_all_apart(OP, &[Some(&grad_input), Some(&grad_weight), Some(&grad_bias)], &[])?;
    let call = Backward {
        input: x,
        grad_output: grad_output.slice(),
        shape,
        weight,
        statistics: checked(saved.host_statistics())?,
        batch_statistics: saved.batch_statistics(),
        grad_input: Some(floats_mut(&mut grad_input)),
        grad_weight: Some(floats_mut(&mut grad_weight)),
        grad_bias: Some(floats_mut(&mut grad_bias)),
    };
    checked(sync_batch_norm::backward(&Cpu, saved.host_group(), call))
}
