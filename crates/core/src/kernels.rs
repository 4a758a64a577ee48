//! The seam for batch norm itself: what a device must be able to do.
//!
//! Work is enqueued in call order and may run later; nothing here waits for it. Buffers follow [`crate::message`].
//! Views live for 'a and buffers for 'b, because a generic view's lifetime cannot shrink.
//! Names are those of PyTorch's native functions (`batch_norm_stats`, `batch_norm_gather_stats_with_counts`,
//! `batch_norm_elemt`, `batch_norm_backward_reduce`, `batch_norm_backward_elemt`); here the gather of statistics is the
//! prologue of [`Kernels::normalize`].

use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::message::{slot_bytes, sums_bytes};
use crate::shape::BatchNormShape;

/// The buffers a training step updates, float32 or float64, C elements each.
pub struct RunningStats<'a, D: Device + ?Sized> {
    /// Running mean.
    pub mean: D::Out<'a>,
    /// Running unbiased variance.
    pub var: D::Out<'a>,
    /// Weight of the new batch; `None` is the cumulative average, which needs `num_batches_tracked`.
    pub momentum: Option<f64>,
    /// One int64, counted up with each committed batch.
    pub num_batches_tracked: Option<D::Out<'a>>,
}

/// Arguments of [`Kernels::normalize`].
pub struct Normalize<'a, 'b, D: Device + ?Sized> {
    /// x, (N, C, *).
    pub input: D::In<'a>,
    /// Shape of `input` and `output`.
    pub shape: BatchNormShape,
    /// Scale, C elements; 1 if absent.
    pub weight: Option<D::In<'a>>,
    /// Shift, C elements; 0 if absent.
    pub bias: Option<D::In<'a>>,
    /// Added to the biased variance; positive.
    pub eps: f64,
    /// One slot a rank, in rank order.
    pub messages: &'b D::Buffer,
    /// Slots in `messages`.
    pub world_size: usize,
    /// Updated last, and only if the merged count is above 1.
    pub running: Option<RunningStats<'a, D>>,
    /// y, like `input`.
    pub output: D::Out<'a>,
    /// Receives the slot (count, mean, invstd) that backward needs.
    pub statistics: &'b mut D::Buffer,
}

/// Arguments of [`Kernels::forward`]: those of [`Normalize`] without messages.
pub struct Forward<'a, 'b, D: Device + ?Sized> {
    /// x, (N, C, *).
    pub input: D::In<'a>,
    /// Shape of `input` and `output`.
    pub shape: BatchNormShape,
    /// Scale, C elements; 1 if absent.
    pub weight: Option<D::In<'a>>,
    /// Shift, C elements; 0 if absent.
    pub bias: Option<D::In<'a>>,
    /// Added to the biased variance; positive.
    pub eps: f64,
    /// Updated last, and only if there is more than one value per channel.
    pub running: Option<RunningStats<'a, D>>,
    /// y, like `input`.
    pub output: D::Out<'a>,
    /// Receives the slot (count, mean, invstd) that backward needs.
    pub statistics: &'b mut D::Buffer,
}

/// Arguments of [`Kernels::backward`].
pub struct Backward<'a, 'b, D: Device + ?Sized> {
    /// x of the forward call.
    pub input: D::In<'a>,
    /// dL/dy, like `input`.
    pub grad_output: D::In<'a>,
    /// Shape of the tensors.
    pub shape: BatchNormShape,
    /// Scale, C elements; 1 if absent.
    pub weight: Option<D::In<'a>>,
    /// The slot (count, mean, invstd) of the forward call.
    pub statistics: &'b D::Buffer,
    /// Whether the statistics are those of the input (training) or constants (eval mode).
    pub batch_statistics: bool,
    /// Receives dL/dx, like `input`.
    pub grad_input: Option<D::Out<'a>>,
    /// Receives Σ dy·(x − mean)·invstd.
    pub grad_weight: Option<D::Out<'a>>,
    /// Receives Σ dy.
    pub grad_bias: Option<D::Out<'a>>,
}

/// Arguments of [`Kernels::elemt`]: normalisation with statistics that are known.
pub struct Elemt<'a, 'b, D: Device + ?Sized> {
    /// x, (N, C, *).
    pub input: D::In<'a>,
    /// Shape of `input` and `output`.
    pub shape: BatchNormShape,
    /// Scale, C elements; 1 if absent.
    pub weight: Option<D::In<'a>>,
    /// Shift, C elements; 0 if absent.
    pub bias: Option<D::In<'a>>,
    /// The slot (count, mean, invstd).
    pub statistics: &'b D::Buffer,
    /// y, like `input`.
    pub output: D::Out<'a>,
}

/// Arguments of [`Kernels::backward_reduce`].
pub struct BackwardReduce<'a, 'b, D: Device + ?Sized> {
    /// x of the forward call.
    pub input: D::In<'a>,
    /// dL/dy, like `input`.
    pub grad_output: D::In<'a>,
    /// Shape of both.
    pub shape: BatchNormShape,
    /// The slot (count, mean, invstd) of the forward call.
    pub statistics: &'b D::Buffer,
    /// Receives this rank's Σ dy and Σ dy·(x − mean): two rows.
    pub sums: &'b mut D::Buffer,
    /// Receives Σ dy·(x − mean)·invstd over this rank's elements.
    pub grad_weight: Option<D::Out<'a>>,
    /// Receives Σ dy over this rank's elements.
    pub grad_bias: Option<D::Out<'a>>,
}

/// Arguments of [`Kernels::backward_apply`].
pub struct BackwardApply<'a, 'b, D: Device + ?Sized> {
    /// x of the forward call.
    pub input: D::In<'a>,
    /// dL/dy, like `input`.
    pub grad_output: D::In<'a>,
    /// Shape of all three tensors.
    pub shape: BatchNormShape,
    /// Scale, C elements; 1 if absent.
    pub weight: Option<D::In<'a>>,
    /// The slot (count, mean, invstd) of the forward call; count is that of the whole group.
    pub statistics: &'b D::Buffer,
    /// The group's Σ dy and Σ dy·(x − mean); absent where the statistics were constants (eval mode).
    pub sums: Option<&'b D::Buffer>,
    /// dL/dx, like `input`.
    pub grad_input: D::Out<'a>,
}

/// Arguments of [`Kernels::double_backward_reduce`]; formulas in docs/numerics.md.
pub struct DoubleBackwardReduce<'a, 'b, D: Device + ?Sized> {
    /// x of the forward call.
    pub input: D::In<'a>,
    /// dy of the first backward.
    pub grad_output: D::In<'a>,
    /// G, the gradient that arrives at dx.
    pub grad_grad_input: D::In<'a>,
    /// The gradient that arrives at grad_weight, C elements; 0 if absent.
    pub grad_grad_weight: Option<D::In<'a>>,
    /// Scale w, C elements; 1 if absent.
    pub weight: Option<D::In<'a>>,
    /// Shape of the tensors.
    pub shape: BatchNormShape,
    /// The slot (count, mean, invstd) of the forward call.
    pub statistics: &'b D::Buffer,
    /// Receives seven rows to be summed over the group: Σdy, Σdy·xmu, w·ΣG, w·ΣG·xmu, w·ΣG·dy, ggw·Σdy, ggw·Σdy·xmu.
    pub sums: &'b mut D::Buffer,
    /// Receives three rows that stay local: ΣG, ΣG·xmu, ΣG·dy.
    pub local_sums: &'b mut D::Buffer,
}

/// Arguments of [`Kernels::double_backward_apply`].
pub struct DoubleBackwardApply<'a, 'b, D: Device + ?Sized> {
    /// x of the forward call.
    pub input: D::In<'a>,
    /// dy of the first backward.
    pub grad_output: D::In<'a>,
    /// G, the gradient that arrives at dx.
    pub grad_grad_input: D::In<'a>,
    /// The gradient that arrives at grad_weight, C elements; 0 if absent.
    pub grad_grad_weight: Option<D::In<'a>>,
    /// The gradient that arrives at grad_bias, C elements; 0 if absent.
    pub grad_grad_bias: Option<D::In<'a>>,
    /// Scale w, C elements; 1 if absent.
    pub weight: Option<D::In<'a>>,
    /// Shape of the tensors.
    pub shape: BatchNormShape,
    /// The slot (count, mean, invstd) of the forward call.
    pub statistics: &'b D::Buffer,
    /// The group's seven rows; absent where the statistics were constants (eval mode).
    pub sums: Option<&'b D::Buffer>,
    /// This rank's three rows.
    pub local_sums: &'b D::Buffer,
    /// dL/dx, like `input`.
    pub grad_input: D::Out<'a>,
    /// dL/d(dy), like `input`.
    pub grad_grad_output: D::Out<'a>,
    /// dL/dw over this rank's elements.
    pub grad_weight: Option<D::Out<'a>>,
}

/// Batch norm on one device.
pub trait Kernels: Device {
    /// The type statistics are merged, exchanged and kept in, for input of type `input`: at least its
    /// [`DType::accumulate`].
    fn statistics_dtype(&self, input: DType) -> DType;

    /// The element type of a view.
    fn dtype(&self, input: Self::In<'_>) -> DType;

    /// Uninitialised memory for messages, statistics or sums.
    fn new_buffer(&self, bytes: usize) -> Result<Self::Buffer>;

    /// Writes this rank's (count, mean, M2) into slot `slot` of `messages`; zeros for an empty input.
    fn stats(&self, input: Self::In<'_>, shape: BatchNormShape, messages: &mut Self::Buffer, slot: usize)
    -> Result<()>;

    /// Merges the slots in rank order, y = w·(x − mean)·invstd + b, then the running statistics.
    ///
    /// # Errors
    /// [`crate::Code::TooFewValues`] if the merged count is 1, with no side effect; devices that cannot know it yet
    /// report at the next wait.
    fn normalize(&self, call: Normalize<'_, '_, Self>) -> Result<()>;

    /// Writes the slot (0, mean, 1/√(var + eps)) of constant statistics.
    fn constant_statistics(
        &self,
        mean: Self::In<'_>,
        var: Self::In<'_>,
        eps: f64,
        statistics: &mut Self::Buffer,
    ) -> Result<()>;

    /// y = w·(x − mean)·invstd + b.
    fn elemt(&self, call: Elemt<'_, '_, Self>) -> Result<()>;

    /// This rank's sums and parameter gradients.
    fn backward_reduce(&self, call: BackwardReduce<'_, '_, Self>) -> Result<()>;

    /// dx = w·invstd·(dy − Σdy/n − (x − mean)·invstd²·Σdy·(x − mean)/n), or w·invstd·dy without sums.
    fn backward_apply(&self, call: BackwardApply<'_, '_, Self>) -> Result<()>;

    /// This rank's sums for the gradient of the gradient.
    fn double_backward_reduce(&self, call: DoubleBackwardReduce<'_, '_, Self>) -> Result<()>;

    /// The gradients of the gradient.
    fn double_backward_apply(&self, call: DoubleBackwardApply<'_, '_, Self>) -> Result<()>;

    /// Forward without an exchange. Devices that can keep a channel in cache between the two phases override it.
    fn forward(&self, call: Forward<'_, '_, Self>) -> Result<()> {
        let statistics = self.statistics_dtype(self.dtype(call.input));
        let mut messages = self.new_buffer(slot_bytes(call.shape.channels, statistics))?;
        self.stats(call.input, call.shape, &mut messages, 0)?;
        self.normalize(Normalize {
            input: call.input,
            shape: call.shape,
            weight: call.weight,
            bias: call.bias,
            eps: call.eps,
            messages: &messages,
            world_size: 1,
            running: call.running,
            output: call.output,
            statistics: call.statistics,
        })
    }

    /// Backward without an exchange.
    fn backward(&self, call: Backward<'_, '_, Self>) -> Result<()> {
        let statistics = self.statistics_dtype(self.dtype(call.input));
        let mut sums = self.new_buffer(sums_bytes(call.shape.channels, 2, statistics))?;
        self.backward_reduce(BackwardReduce {
            input: call.input,
            grad_output: call.grad_output,
            shape: call.shape,
            statistics: call.statistics,
            sums: &mut sums,
            grad_weight: call.grad_weight,
            grad_bias: call.grad_bias,
        })?;
        let Some(grad_input) = call.grad_input else { return Ok(()) };
        self.backward_apply(BackwardApply {
            input: call.input,
            grad_output: call.grad_output,
            shape: call.shape,
            weight: call.weight,
            statistics: call.statistics,
            sums: call.batch_statistics.then_some(&sums),
            grad_input,
        })
    }
}
