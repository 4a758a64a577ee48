//! Batch norm on tensors: checks before any side effect, then [`syncbn_core::sync_batch_norm`].

use crate::array::{self, Arguments, Options, Saved};
use crate::process_group::ProcessGroup;
use crate::tensor::Tensor;
use syncbn_core::kernels::Backward;
use syncbn_core::sync_batch_norm::{self, DoubleBackward};
use syncbn_core::{BatchNormShape, DType, MemoryFormat, Result};
use syncbn_cpu::Cpu;

/// The per-channel tensors of a batch norm, C elements each.
#[derive(Clone, Copy, Default)]
pub struct Parameters<'a> {
    /// Scale; 1 if absent.
    pub weight: Option<&'a Tensor>,
    /// Shift; 0 if absent.
    pub bias: Option<&'a Tensor>,
    /// Running mean: updated in training, used in eval mode.
    pub running_mean: Option<&'a Tensor>,
    /// Running variance, likewise.
    pub running_var: Option<&'a Tensor>,
    /// One int64, counted up in training.
    pub num_batches_tracked: Option<&'a Tensor>,
}

/// Opens some optional tensors: `$guard` keeps them open, `$view` is what the kernels take.
macro_rules! open {
    ($how:ident: $($guard:ident = $tensor:expr),* $(,)?) => {
        $(#[allow(unused_mut)] let mut $guard = $tensor.map(Tensor::$how).transpose()?;)*
    };
}

/// y and what backward needs. In training the statistics are those of the input, over `group`; else the running ones.
pub fn forward(
    input: &Tensor,
    parameters: Parameters<'_>,
    options: Options,
    group: Option<&ProcessGroup>,
) -> Result<(Tensor, Saved)> {
    let shape = BatchNormShape::new("batchNorm", input.shape(), input.format())?;
    input.expect_float("batchNorm")?;
    let output = input.empty_like("batchNorm")?;
    let saved = {
        open!(read: weight = parameters.weight, bias = parameters.bias);
        let (input, mut output) = (input.read()?, output.write()?);
        if options.training {
            open!(write: mean = parameters.running_mean, var = parameters.running_var, tracked = parameters.num_batches_tracked);
            let arguments = Arguments {
                weight: weight.as_ref().map(|guard| guard.slice()),
                bias: bias.as_ref().map(|guard| guard.slice()),
                running_mean: mean.as_mut().map(|guard| guard.slice()),
                running_var: var.as_mut().map(|guard| guard.slice()),
                num_batches_tracked: tracked.as_mut().map(|guard| guard.slice()),
            };
            array::forward_training(input.slice(), shape, arguments, options, group, output.slice())?
        } else {
            open!(read: mean = parameters.running_mean, var = parameters.running_var);
            let running = mean.as_ref().zip(var.as_ref()).map(|(mean, var)| (mean.slice(), var.slice()));
            let affine = (weight.as_ref().map(|guard| guard.slice()), bias.as_ref().map(|guard| guard.slice()));
            array::forward_eval(input.slice(), shape, affine, running, options.eps, output.slice())?
        }
    };
    if options.training {
        let written = [parameters.running_mean, parameters.running_var, parameters.num_batches_tracked];
        written.into_iter().flatten().for_each(|tensor| tensor.storage().bump_version());
    }
    Ok((output, saved))
}

/// Which gradients to make.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// dL/dx; without it nothing is exchanged.
    pub input: bool,
    /// dL/dweight.
    pub weight: bool,
    /// dL/dbias.
    pub bias: bool,
}

/// Gradients of a batch norm; absent where not asked for.
#[derive(Clone, Debug, Default)]
pub struct Gradients {
    /// Like the input.
    pub input: Option<Tensor>,
    /// C elements, over this rank's values.
    pub weight: Option<Tensor>,
    /// C elements, over this rank's values.
    pub bias: Option<Tensor>,
}

/// `gradient` as a tensor like `input`.
fn like_input(op: &str, input: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    gradient.expect_dtype(op, "gradOutput", input.dtype())?;
    gradient.expect_shape(op, input.shape())?;
    gradient.to_format(input.format())
}

fn per_channel(needed: bool, channels: usize, dtype: DType) -> Result<Option<Tensor>> {
    needed.then(|| Tensor::empty("batchNorm", &[channels], dtype, MemoryFormat::Contiguous)).transpose()
}

/// The gradients asked for. `weight` is that of the forward call; its gradient has its type.
pub fn backward(
    grad_output: &Tensor,
    input: &Tensor,
    weight: Option<&Tensor>,
    saved: &Saved,
    needs: Needs,
) -> Result<Gradients> {
    let shape = BatchNormShape::new("batchNorm backward", input.shape(), input.format())?;
    saved.expect("batchNorm backward", shape, input.dtype())?;
    let grad_output = like_input("batchNorm backward", input, grad_output)?;
    array::expect_channels(
        "batchNorm backward",
        "weight",
        weight.map(|w| (w.numel(), w.dtype())),
        shape,
        input.dtype(),
    )?;
    let parameter_dtype = weight.map_or(input.dtype(), Tensor::dtype);
    let grads = Gradients {
        input: needs.input.then(|| input.empty_like("batchNorm backward")).transpose()?,
        weight: per_channel(needs.weight, shape.channels, parameter_dtype)?,
        bias: per_channel(needs.bias, shape.channels, parameter_dtype)?,
    };
    open!(read: weight = weight);
    open!(write: grad_input = grads.input.as_ref(), grad_weight = grads.weight.as_ref(), grad_bias = grads.bias.as_ref());
    let (input, grad_output) = (input.read()?, grad_output.read()?);
    let call = Backward {
        input: input.slice(),
        grad_output: grad_output.slice(),
        shape,
        weight: weight.as_ref().map(|guard| guard.slice()),
        statistics: saved.statistics(),
        batch_statistics: saved.batch_statistics(),
        grad_input: grad_input.as_mut().map(|guard| guard.slice()),
        grad_weight: grad_weight.as_mut().map(|guard| guard.slice()),
        grad_bias: grad_bias.as_mut().map(|guard| guard.slice()),
    };
    sync_batch_norm::backward(&Cpu, saved.group(), call)?;
    drop((grad_input, grad_weight, grad_bias));
    Ok(grads)
}

/// Gradients that arrive at the results of [`backward`]; absent ones are 0.
#[derive(Clone, Copy, Default)]
pub struct GradGradients<'a> {
    /// At dL/dx.
    pub input: Option<&'a Tensor>,
    /// At dL/dweight.
    pub weight: Option<&'a Tensor>,
    /// At dL/dbias.
    pub bias: Option<&'a Tensor>,
}

/// Results of [`double_backward`].
#[derive(Clone, Debug)]
pub struct DoubleGradients {
    /// With respect to x.
    pub input: Tensor,
    /// With respect to dL/dy.
    pub grad_output: Tensor,
    /// With respect to the weight, if there is one.
    pub weight: Option<Tensor>,
}

/// The gradient of [`backward`]: for losses that contain a gradient.
pub fn double_backward(
    input: &Tensor,
    grad_output: &Tensor,
    weight: Option<&Tensor>,
    saved: &Saved,
    grads: GradGradients<'_>,
) -> Result<DoubleGradients> {
    const OP: &str = "batchNorm double backward";
    let shape = BatchNormShape::new(OP, input.shape(), input.format())?;
    saved.expect(OP, shape, input.dtype())?;
    let grad_output = like_input(OP, input, grad_output)?;
    let grad_grad_input = match grads.input {
        Some(gradient) => like_input(OP, input, gradient)?,
        None => Tensor::full(input.shape(), 0.0, input.dtype(), input.format())?,
    };
    for (what, tensor) in [("weight", weight), ("gradGradWeight", grads.weight), ("gradGradBias", grads.bias)] {
        array::expect_channels(OP, what, tensor.map(|t| (t.numel(), t.dtype())), shape, input.dtype())?;
    }
    let result = DoubleGradients {
        input: input.empty_like(OP)?,
        grad_output: input.empty_like(OP)?,
        weight: per_channel(weight.is_some(), shape.channels, weight.map_or(input.dtype(), Tensor::dtype))?,
    };
    {
        open!(read: weight = weight, ggw = grads.weight, ggb = grads.bias);
        open!(write: grad_weight = result.weight.as_ref());
        let (input, grad_output, ggi) = (input.read()?, grad_output.read()?, grad_grad_input.read()?);
        let (mut grad_input, mut grad_grad_output) = (result.input.write()?, result.grad_output.write()?);
        let call = DoubleBackward {
            input: input.slice(),
            grad_output: grad_output.slice(),
            grad_grad_input: ggi.slice(),
            grad_grad_weight: ggw.as_ref().map(|guard| guard.slice()),
            grad_grad_bias: ggb.as_ref().map(|guard| guard.slice()),
            weight: weight.as_ref().map(|guard| guard.slice()),
            shape,
            statistics: saved.statistics(),
            batch_statistics: saved.batch_statistics(),
            grad_input: grad_input.slice(),
            grad_grad_output: grad_grad_output.slice(),
            grad_weight: grad_weight.as_mut().map(|guard| guard.slice()),
        };
        sync_batch_norm::double_backward(&Cpu, saved.group(), call)?;
    }
    Ok(result)
}
