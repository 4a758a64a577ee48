//! Batch norm on tensors: checks before any side effect, then [`syncbn_core::sync_batch_norm`] on the tensors' device.

use crate::array::Options;
use crate::check::{self, Operand, Training, expect_channels};
use crate::device::{Backend, Device, expect_one_device};
use crate::process_group::ProcessGroup;
use crate::saved::{Saved, Statistics};
use crate::tensor::Tensor;
use std::sync::Arc;
use syncbn_core::kernels::{Backward, Elemt, Forward, RunningStats};
use syncbn_core::message::slot_bytes;
use syncbn_core::sync_batch_norm::{self, DoubleBackward, Group};
use syncbn_core::{BatchNormShape, Collective, DType, MemoryFormat, Result};
use syncbn_cpu::Cpu;
use syncbn_cuda::CudaBuffer;

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

impl<'a> Parameters<'a> {
    fn all(&self) -> impl Iterator<Item = &'a Tensor> {
        [self.weight, self.bias, self.running_mean, self.running_var, self.num_batches_tracked].into_iter().flatten()
    }
}

pub(crate) fn describe(tensor: &Tensor) -> Operand {
    (tensor.numel(), tensor.dtype())
}

/// Opens optional tensors. Guards come before all views, which must not outlive any of them.
macro_rules! open {
    ($D:ty; $how:ident: $($guard:ident = $tensor:expr),* $(,)?) => {
        $(#[allow(unused_mut)] let mut $guard = $tensor.map(<$D as Backend>::$how).transpose()?;)*
    };
}

/// What kernels take of tensors that [`open!`] opened.
macro_rules! views {
    ($D:ty; read: $($guard:ident),*; write: $($written:ident),*) => {
        $(let $guard = $guard.as_ref().map(<$D as Backend>::input);)*
        $(let $written = $written.as_mut().map(<$D as Backend>::output);)*
    };
}

/// y and what backward needs. In training the statistics are those of the input, over `group`; else the running ones.
pub fn forward(
    input: &Tensor,
    parameters: Parameters<'_>,
    options: Options,
    group: Option<&ProcessGroup>,
) -> Result<(Tensor, Saved)> {
    const OP: &str = "batchNorm";
    let shape = BatchNormShape::new(OP, input.shape(), input.format())?;
    input.expect_float(OP)?;
    expect_one_device(OP, &[input].into_iter().chain(parameters.all()).collect::<Vec<_>>())?;
    check_call(input, shape, parameters, options, group)?;
    let output = input.empty_like(OP)?;
    let group = group.filter(|group| options.training && group.size() > 1);
    let call = Call { input, shape, parameters, options, output: &output };
    let statistics = match input.device() {
        Device::Cpu => {
            let others = group.map(|group| group as &dyn Collective<Vec<u8>>);
            Statistics::Host(call.run(&Cpu, others)?)
        }
        Device::Cuda(cuda) => {
            group.map_or(Ok(()), |group| group.expect_device("syncBatchNorm", &cuda))?;
            let others = group.map(|group| group as &dyn Collective<CudaBuffer>);
            Statistics::Cuda(Arc::new(call.run(&cuda, others)?))
        }
    };
    if options.training {
        let written = [parameters.running_mean, parameters.running_var, parameters.num_batches_tracked];
        written.into_iter().flatten().for_each(|tensor| tensor.storage().bump_version());
    }
    let saved =
        Saved { statistics, shape, dtype: input.dtype(), batch_statistics: options.training, group: group.cloned() };
    Ok((output, saved))
}

fn check_call(
    input: &Tensor,
    shape: BatchNormShape,
    parameters: Parameters<'_>,
    options: Options,
    group: Option<&ProcessGroup>,
) -> Result<()> {
    let Parameters { weight, bias, running_mean, running_var, num_batches_tracked } = parameters;
    let (weight, bias) = (weight.map(describe), bias.map(describe));
    if !options.training {
        let running = running_mean.zip(running_var);
        let checked = check::eval(shape, describe(input), (weight, bias), running, |row| describe(row), options.eps);
        return checked.map(|_| ());
    }
    let operands = Training {
        input: describe(input),
        output: describe(input),
        weight,
        bias,
        running_mean: running_mean.map(describe),
        running_var: running_var.map(describe),
        num_batches_tracked: num_batches_tracked.map(describe),
    };
    check::training(shape, &operands, options, group)
}

/// A forward call whose operands have been checked.
#[derive(Clone, Copy)]
struct Call<'a> {
    input: &'a Tensor,
    shape: BatchNormShape,
    parameters: Parameters<'a>,
    options: Options,
    output: &'a Tensor,
}

impl Call<'_> {
    /// Runs it on the device the tensors are on; the slot (count, mean, invstd).
    fn run<K: Backend>(self, kernels: &K, group: Group<'_, K>) -> Result<K::Buffer> {
        let Call { input, shape, parameters, options, output } = self;
        let rows = kernels.statistics_dtype(input.dtype());
        let mut statistics = kernels.new_buffer(slot_bytes(shape.channels, rows))?;
        if !options.training {
            self.eval(kernels, &mut statistics)?;
            return Ok(statistics);
        }
        open!(K; read: weight = parameters.weight, bias = parameters.bias);
        open!(K; write: mean = parameters.running_mean, var = parameters.running_var, tracked = parameters.num_batches_tracked);
        let (input, mut output) = (K::read(input)?, K::write(output)?);
        views!(K; read: weight, bias; write: mean, var, tracked);
        let (input, output) = (K::input(&input), K::output(&mut output));
        let running = mean.zip(var).map(|(mean, var)| RunningStats {
            mean,
            var,
            momentum: options.momentum,
            num_batches_tracked: tracked,
        });
        let call =
            Forward { input, shape, weight, bias, eps: options.eps, running, output, statistics: &mut statistics };
        sync_batch_norm::forward(kernels, group, call)?;
        Ok(statistics)
    }

    /// Normalises with the running statistics.
    fn eval<K: Backend>(self, kernels: &K, statistics: &mut K::Buffer) -> Result<()> {
        let Call { input, shape, parameters, options, output } = self;
        open!(K; read: weight = parameters.weight, bias = parameters.bias);
        open!(K; read: mean = parameters.running_mean, var = parameters.running_var);
        let (input, mut output) = (K::read(input)?, K::write(output)?);
        views!(K; read: weight, bias, mean, var; write:);
        if let Some((mean, var)) = mean.zip(var) {
            kernels.constant_statistics(mean, var, options.eps, statistics)?;
        }
        let (input, output) = (K::input(&input), K::output(&mut output));
        kernels.elemt(Elemt { input, shape, weight, bias, statistics, output })
    }
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

fn per_channel(needed: bool, like: &Tensor, channels: usize, dtype: DType) -> Result<Option<Tensor>> {
    needed.then(|| like.new_empty("batchNorm", &[channels], dtype, MemoryFormat::Contiguous)).transpose()
}

/// The gradients asked for. `weight` is that of the forward call; its gradient has its type.
pub fn backward(
    grad_output: &Tensor,
    input: &Tensor,
    weight: Option<&Tensor>,
    saved: &Saved,
    needs: Needs,
) -> Result<Gradients> {
    const OP: &str = "batchNorm backward";
    let shape = BatchNormShape::new(OP, input.shape(), input.format())?;
    saved.expect(OP, shape, input.dtype())?;
    expect_one_device(OP, &[input, grad_output].into_iter().chain(weight).collect::<Vec<_>>())?;
    let grad_output = &like_input(OP, input, grad_output)?;
    expect_channels(OP, "weight", weight.map(describe), shape, input.dtype())?;
    let parameter = weight.map_or(input.dtype(), Tensor::dtype);
    let grads = Gradients {
        input: needs.input.then(|| input.empty_like(OP)).transpose()?,
        weight: per_channel(needs.weight, input, shape.channels, parameter)?,
        bias: per_channel(needs.bias, input, shape.channels, parameter)?,
    };
    let operands = Operands { input, grad_output, weight, shape, batch_statistics: saved.batch_statistics() };
    match input.device() {
        Device::Cpu => operands.backward(&Cpu, saved.host_group(), saved.host_statistics()?, &grads)?,
        Device::Cuda(cuda) => {
            operands.backward(&cuda, saved.cuda_group(), saved.cuda_statistics(&cuda)?, &grads)?;
        }
    }
    Ok(grads)
}

/// What both backward calls read, checked.
#[derive(Clone, Copy)]
struct Operands<'a> {
    input: &'a Tensor,
    grad_output: &'a Tensor,
    weight: Option<&'a Tensor>,
    shape: BatchNormShape,
    batch_statistics: bool,
}

impl Operands<'_> {
    fn backward<K: Backend>(
        self,
        kernels: &K,
        group: Group<'_, K>,
        statistics: &K::Buffer,
        grads: &Gradients,
    ) -> Result<()> {
        let Operands { input, grad_output, weight, shape, batch_statistics } = self;
        open!(K; read: weight = weight);
        open!(K; write: grad_input = grads.input.as_ref(), grad_weight = grads.weight.as_ref(), grad_bias = grads.bias.as_ref());
        let (input, grad_output) = (K::read(input)?, K::read(grad_output)?);
        views!(K; read: weight; write: grad_input, grad_weight, grad_bias);
        let (input, grad_output) = (K::input(&input), K::input(&grad_output));
        let call = Backward {
            input,
            grad_output,
            shape,
            weight,
            statistics,
            batch_statistics,
            grad_input,
            grad_weight,
            grad_bias,
        };
        sync_batch_norm::backward(kernels, group, call)
    }

    fn double_backward<K: Backend>(
        self,
        kernels: &K,
        group: Group<'_, K>,
        statistics: &K::Buffer,
        (grad_grad_input, grads): (&Tensor, GradGradients<'_>),
        result: &DoubleGradients,
    ) -> Result<()> {
        let Operands { input, grad_output, weight, shape, batch_statistics } = self;
        open!(K; read: weight = weight, grad_grad_weight = grads.weight, grad_grad_bias = grads.bias);
        open!(K; write: grad_weight = result.weight.as_ref());
        let (input, grad_output, ggi) = (K::read(input)?, K::read(grad_output)?, K::read(grad_grad_input)?);
        let (mut grad_input, mut grad_grad_output) = (K::write(&result.input)?, K::write(&result.grad_output)?);
        views!(K; read: weight, grad_grad_weight, grad_grad_bias; write: grad_weight);
        let call = DoubleBackward {
            input: K::input(&input),
            grad_output: K::input(&grad_output),
            grad_grad_input: K::input(&ggi),
            grad_grad_weight,
            grad_grad_bias,
            weight,
            shape,
            statistics,
            batch_statistics,
            grad_input: K::output(&mut grad_input),
            grad_grad_output: K::output(&mut grad_grad_output),
            grad_weight,
        };
        sync_batch_norm::double_backward(kernels, group, call)
    }
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
    let mut tensors = vec![input, grad_output];
    tensors.extend([weight, grads.input, grads.weight, grads.bias].into_iter().flatten());
    expect_one_device(OP, &tensors)?;
    let grad_output = &like_input(OP, input, grad_output)?;
    let grad_grad_input = match grads.input {
        Some(gradient) => like_input(OP, input, gradient)?,
        None => Tensor::full(&input.device(), input.shape(), 0.0, input.dtype(), input.format())?,
    };
    for (what, tensor) in [("weight", weight), ("gradGradWeight", grads.weight), ("gradGradBias", grads.bias)] {
        expect_channels(OP, what, tensor.map(describe), shape, input.dtype())?;
    }
    let parameter = weight.map_or(input.dtype(), Tensor::dtype);
    let result = DoubleGradients {
        input: input.empty_like(OP)?,
        grad_output: input.empty_like(OP)?,
        weight: per_channel(weight.is_some(), input, shape.channels, parameter)?,
    };
    let operands = Operands { input, grad_output, weight, shape, batch_statistics: saved.batch_statistics() };
    let arriving = (&grad_grad_input, grads);
    match input.device() {
        Device::Cpu => {
            operands.double_backward(&Cpu, saved.host_group(), saved.host_statistics()?, arriving, &result)?;
        }
        Device::Cuda(cuda) => {
            let statistics = saved.cuda_statistics(&cuda)?;
            operands.double_backward(&cuda, saved.cuda_group(), statistics, arriving, &result)?;
        }
    }
    Ok(result)
}
