//! Batch norm over a group of ranks: which work, in which order, and where the one exchange lies.
//!
//! Forward: statistics → all_gather of (count, mean, M2) → merge, normalise, running statistics. Backward: sums →
//! all_reduce of (Σdy, Σdy·(x − mean)) → gradient. A rank without elements takes part with zeros. Source: PyTorch
//! `torch/nn/modules/_functions.py`, whose exchange of 1/std this replaces by M2, which loses nothing when var ≪ eps.
//!
//! Without a group, or with a group of one, both are plain batch norm and nothing is exchanged.

use crate::collective::{Collective, ReduceOp};
use crate::error::Result;
use crate::kernels::{
    Backward, BackwardApply, BackwardReduce, DoubleBackwardApply, DoubleBackwardReduce, Forward, Kernels, Normalize,
};
use crate::message::{slot_bytes, sums_bytes};

/// Rows of sums the first backward exchanges.
const BACKWARD_ROWS: usize = 2;
/// Rows of sums the gradient of the gradient exchanges, and rows that stay local.
const DOUBLE_BACKWARD_ROWS: (usize, usize) = (7, 3);

/// A group to exchange with, or none.
pub type Group<'a, K> = Option<&'a dyn Collective<<K as crate::Device>::Buffer>>;

/// The group if there is anybody to exchange with.
fn others<'a, K: Kernels + ?Sized>(group: Group<'a, K>) -> Group<'a, K> {
    group.filter(|group| group.world_size() > 1)
}

/// Training forward over `group`.
pub fn forward<K: Kernels + ?Sized>(kernels: &K, group: Group<'_, K>, call: Forward<'_, '_, K>) -> Result<()> {
    let Some(group) = others::<K>(group) else { return kernels.forward(call) };
    let statistics = kernels.statistics_dtype(kernels.dtype(call.input));
    let mut messages = kernels.new_buffer(group.world_size() * slot_bytes(call.shape.channels, statistics))?;
    kernels.stats(call.input, call.shape, &mut messages, group.rank())?;
    group.all_gather(&mut messages)?;
    kernels.normalize(Normalize {
        input: call.input,
        shape: call.shape,
        weight: call.weight,
        bias: call.bias,
        eps: call.eps,
        messages: &messages,
        world_size: group.world_size(),
        running: call.running,
        output: call.output,
        statistics: call.statistics,
    })
}

/// Backward of [`forward`] over the same `group`. Parameter gradients stay local; without `grad_input` nothing is
/// exchanged.
pub fn backward<K: Kernels + ?Sized>(kernels: &K, group: Group<'_, K>, call: Backward<'_, '_, K>) -> Result<()> {
    let group = others::<K>(group).filter(|_| call.batch_statistics);
    let Some(group) = group else { return kernels.backward(call) };
    let statistics = kernels.statistics_dtype(kernels.dtype(call.input));
    let mut sums = kernels.new_buffer(sums_bytes(call.shape.channels, BACKWARD_ROWS, statistics))?;
    kernels.backward_reduce(BackwardReduce {
        input: call.input,
        grad_output: call.grad_output,
        shape: call.shape,
        statistics: call.statistics,
        sums: &mut sums,
        grad_weight: call.grad_weight,
        grad_bias: call.grad_bias,
    })?;
    let Some(grad_input) = call.grad_input else { return Ok(()) };
    group.all_reduce(&mut sums, statistics, ReduceOp::Sum)?;
    kernels.backward_apply(BackwardApply {
        input: call.input,
        grad_output: call.grad_output,
        shape: call.shape,
        weight: call.weight,
        statistics: call.statistics,
        sums: Some(&sums),
        grad_input,
    })
}

/// Arguments of [`double_backward`]: those of both of its kernels.
pub struct DoubleBackward<'a, 'b, K: Kernels + ?Sized> {
    /// x of the forward call.
    pub input: K::In<'a>,
    /// dy of the first backward.
    pub grad_output: K::In<'a>,
    /// The gradient that arrives at dx.
    pub grad_grad_input: K::In<'a>,
    /// The gradient that arrives at grad_weight; 0 if absent.
    pub grad_grad_weight: Option<K::In<'a>>,
    /// The gradient that arrives at grad_bias; 0 if absent.
    pub grad_grad_bias: Option<K::In<'a>>,
    /// Scale; 1 if absent.
    pub weight: Option<K::In<'a>>,
    /// Shape of the tensors.
    pub shape: crate::BatchNormShape,
    /// The slot (count, mean, invstd) of the forward call.
    pub statistics: &'b K::Buffer,
    /// Whether the statistics are those of the input (training) or constants (eval mode).
    pub batch_statistics: bool,
    /// dL/dx, like `input`.
    pub grad_input: K::Out<'a>,
    /// dL/d(dy), like `input`.
    pub grad_grad_output: K::Out<'a>,
    /// dL/dw over this rank's elements.
    pub grad_weight: Option<K::Out<'a>>,
}

/// The gradient of [`backward`], for losses that contain a gradient.
pub fn double_backward<K: Kernels + ?Sized>(
    kernels: &K,
    group: Group<'_, K>,
    call: DoubleBackward<'_, '_, K>,
) -> Result<()> {
    let statistics = kernels.statistics_dtype(kernels.dtype(call.input));
    let rows = |count| kernels.new_buffer(sums_bytes(call.shape.channels, count, statistics));
    let (mut sums, mut local_sums) = (rows(DOUBLE_BACKWARD_ROWS.0)?, rows(DOUBLE_BACKWARD_ROWS.1)?);
    kernels.double_backward_reduce(DoubleBackwardReduce {
        input: call.input,
        grad_output: call.grad_output,
        grad_grad_input: call.grad_grad_input,
        grad_grad_weight: call.grad_grad_weight,
        weight: call.weight,
        shape: call.shape,
        statistics: call.statistics,
        sums: &mut sums,
        local_sums: &mut local_sums,
    })?;
    if let Some(group) = others::<K>(group).filter(|_| call.batch_statistics) {
        group.all_reduce(&mut sums, statistics, ReduceOp::Sum)?;
    }
    kernels.double_backward_apply(DoubleBackwardApply {
        input: call.input,
        grad_output: call.grad_output,
        grad_grad_input: call.grad_grad_input,
        grad_grad_weight: call.grad_grad_weight,
        grad_grad_bias: call.grad_grad_bias,
        weight: call.weight,
        shape: call.shape,
        statistics: call.statistics,
        sums: call.batch_statistics.then_some(&sums),
        local_sums: &local_sums,
        grad_input: call.grad_input,
        grad_grad_output: call.grad_grad_output,
        grad_weight: call.grad_weight,
    })
}
