//! The seam for what a network around batch norm needs: the smallest honest set that trains a real one.
//!
//! Tensors are dense. Shapes are in the order (N, C, …); strides count elements. Callers have checked every shape, so
//! implementations may rely on them; work is enqueued in call order and may run later.

use crate::device::Device;
use crate::error::Result;

/// Elementwise arithmetic on two tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BinaryOp {
    /// a + b
    Add,
    /// a − b
    Sub,
    /// a · b
    Mul,
    /// a / b
    Div,
}

/// Elements of `shape` in row-major order are read from `input` by `input_strides` and written by `output_strides`.
#[derive(Clone, Debug)]
pub struct Restride {
    /// Sizes of the index space.
    pub shape: Vec<usize>,
    /// Elements between neighbours in the input; 0 repeats it along that dimension.
    pub input: Vec<usize>,
    /// Elements between neighbours in the output.
    pub output: Vec<usize>,
}

/// The index space of a broadcast operation on two tensors; the output is dense in row-major order of `shape`.
#[derive(Clone, Debug)]
pub struct Broadcast {
    /// Sizes of the output.
    pub shape: Vec<usize>,
    /// Strides of the first operand; 0 where it is repeated.
    pub a: Vec<usize>,
    /// Strides of the second operand; 0 where it is repeated.
    pub b: Vec<usize>,
}

/// A sum over some dimensions; the output is dense in row-major order of the kept dimensions.
#[derive(Clone, Debug)]
pub struct Reduction {
    /// Sizes of the dimensions that stay.
    pub kept: Vec<usize>,
    /// Strides of the dimensions that stay, in the input.
    pub kept_strides: Vec<usize>,
    /// Sizes of the dimensions that are summed.
    pub reduced: Vec<usize>,
    /// Strides of the dimensions that are summed, in the input.
    pub reduced_strides: Vec<usize>,
    /// The sums are multiplied by this (1/n for a mean).
    pub scale: f64,
}

/// `batch` products C = A·B (+ C), each matrix dense; A is m × k, B is k × n, each possibly stored transposed.
#[derive(Clone, Copy, Debug)]
pub struct Matmul {
    /// Number of products.
    pub batch: usize,
    /// Rows of A and C.
    pub m: usize,
    /// Columns of B and C.
    pub n: usize,
    /// Columns of A, rows of B.
    pub k: usize,
    /// A is stored as k × m.
    pub transpose_a: bool,
    /// B is stored as n × k.
    pub transpose_b: bool,
    /// Elements from one B to the next; 0 uses the same B for each product.
    pub b_batch_stride: usize,
    /// Adds to C instead of replacing it.
    pub accumulate: bool,
}

/// Geometry of a two-dimensional convolution. Input (N, C, H, W), weight (O, C/groups, KH, KW), output (N, O, H', W').
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2d {
    /// N.
    pub batch: usize,
    /// C.
    pub in_channels: usize,
    /// O.
    pub out_channels: usize,
    /// (H, W).
    pub input: [usize; 2],
    /// (H', W').
    pub output: [usize; 2],
    /// (KH, KW).
    pub kernel: [usize; 2],
    /// Steps of the kernel.
    pub stride: [usize; 2],
    /// Zeros added on each side.
    pub padding: [usize; 2],
    /// Blocks of channels that do not see each other.
    pub groups: usize,
    /// Whether input and output are (N, H, W, C) in memory; the weight is always contiguous.
    pub channels_last: bool,
}

/// Geometry of a two-dimensional pooling. Input (N, C, H, W), output (N, C, H', W').
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool2d {
    /// N.
    pub batch: usize,
    /// C.
    pub channels: usize,
    /// (H, W).
    pub input: [usize; 2],
    /// (H', W').
    pub output: [usize; 2],
    /// Size of the window; ignored by adaptive pooling.
    pub kernel: [usize; 2],
    /// Steps of the window; ignored by adaptive pooling.
    pub stride: [usize; 2],
    /// Padding on each side; ignored by adaptive pooling.
    pub padding: [usize; 2],
    /// Whether the tensors are (N, H, W, C) in memory.
    pub channels_last: bool,
}

/// A tensor seen as outer × size × inner around one dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Along {
    /// Product of the sizes before the dimension.
    pub outer: usize,
    /// Size of the dimension.
    pub size: usize,
    /// Product of the sizes after the dimension.
    pub inner: usize,
}

/// What becomes of the losses of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossReduction {
    /// One loss per target.
    None,
    /// Their sum.
    Sum,
    /// Their sum over the number of targets that count.
    Mean,
}

/// Geometry and options of cross entropy over int64 class indices.
#[derive(Clone, Copy, Debug)]
pub struct CrossEntropy {
    /// The logits around the class dimension; one target for each (outer, inner).
    pub along: Along,
    /// Targets of this value give no loss and do not count.
    pub ignore_index: i64,
    /// What becomes of the losses.
    pub reduction: LossReduction,
}

/// One step of stochastic gradient descent, as `torch.optim.SGD`.
#[derive(Clone, Copy, Debug)]
pub struct SgdStep {
    /// Learning rate.
    pub lr: f64,
    /// Weight of the momentum buffer.
    pub momentum: f64,
    /// Share of the gradient kept out of the momentum buffer.
    pub dampening: f64,
    /// L2 penalty.
    pub weight_decay: f64,
    /// Nesterov's form.
    pub nesterov: bool,
    /// Whether the momentum buffer starts with this gradient.
    pub first: bool,
}

/// One step of AdamW, as `torch.optim.AdamW`.
#[derive(Clone, Copy, Debug)]
pub struct AdamWStep {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Number of this step, from 1.
    pub step: u64,
}

/// Tensor operations on one device. Float operations take float32 and float64, all operands of one type.
pub trait Ops: Device {
    /// Every element becomes `value`.
    fn fill(&self, output: Self::Out<'_>, value: f64) -> Result<()>;

    /// Elementwise copy between any two element types.
    fn copy(&self, input: Self::In<'_>, output: Self::Out<'_>) -> Result<()>;

    /// Copies with other strides: changes of memory format, broadcasts, transpositions. Any element type.
    fn restride(&self, input: Self::In<'_>, layout: &Restride, output: Self::Out<'_>) -> Result<()>;

    /// out = a ∘ b with broadcasting.
    fn binary(
        &self,
        op: BinaryOp,
        a: Self::In<'_>,
        b: Self::In<'_>,
        layout: &Broadcast,
        output: Self::Out<'_>,
    ) -> Result<()>;

    /// out = a ∘ scalar.
    fn binary_scalar(&self, op: BinaryOp, a: Self::In<'_>, scalar: f64, output: Self::Out<'_>) -> Result<()>;

    /// accumulator += addend, equal sizes.
    fn add_in_place(&self, accumulator: Self::Out<'_>, addend: Self::In<'_>) -> Result<()>;

    /// data *= factor.
    fn scale_in_place(&self, data: Self::Out<'_>, factor: f64) -> Result<()>;

    /// Sum over dimensions.
    fn sum(&self, input: Self::In<'_>, layout: &Reduction, output: Self::Out<'_>) -> Result<()>;

    /// Index (int64) of the first maximum along a dimension; NaN counts as largest.
    fn argmax(&self, input: Self::In<'_>, along: Along, output: Self::Out<'_>) -> Result<()>;

    /// max(x, 0); NaN stays.
    fn relu(&self, input: Self::In<'_>, output: Self::Out<'_>) -> Result<()>;

    /// dy where the forward output is above 0 (or NaN), else 0.
    fn relu_backward(&self, grad_output: Self::In<'_>, output: Self::In<'_>, grad_input: Self::Out<'_>) -> Result<()>;

    /// Matrix products.
    fn matmul(&self, a: Self::In<'_>, b: Self::In<'_>, geometry: Matmul, output: Self::Out<'_>) -> Result<()>;

    /// data[…, c, …] += bias[c], with data seen as outer × C × inner.
    fn add_bias(&self, data: Self::Out<'_>, bias: Self::In<'_>, along: Along) -> Result<()>;

    /// Cross-correlation of input and weight.
    fn conv2d(&self, input: Self::In<'_>, weight: Self::In<'_>, geometry: &Conv2d, output: Self::Out<'_>)
    -> Result<()>;

    /// Gradient of [`conv2d`](Self::conv2d) with respect to its input.
    fn conv2d_backward_input(
        &self,
        grad_output: Self::In<'_>,
        weight: Self::In<'_>,
        geometry: &Conv2d,
        grad_input: Self::Out<'_>,
    ) -> Result<()>;

    /// Gradient of [`conv2d`](Self::conv2d) with respect to its weight.
    fn conv2d_backward_weight(
        &self,
        grad_output: Self::In<'_>,
        input: Self::In<'_>,
        geometry: &Conv2d,
        grad_weight: Self::Out<'_>,
    ) -> Result<()>;

    /// Largest value of each window and its position h·W + w (int64); the first of equals; NaN counts as largest.
    fn max_pool2d(
        &self,
        input: Self::In<'_>,
        geometry: &Pool2d,
        output: Self::Out<'_>,
        indices: Self::Out<'_>,
    ) -> Result<()>;

    /// Adds each gradient to the position its window's maximum came from.
    fn max_pool2d_backward(
        &self,
        grad_output: Self::In<'_>,
        indices: Self::In<'_>,
        geometry: &Pool2d,
        grad_input: Self::Out<'_>,
    ) -> Result<()>;

    /// Mean of each window, padding counted as zeros.
    fn avg_pool2d(&self, input: Self::In<'_>, geometry: &Pool2d, output: Self::Out<'_>) -> Result<()>;

    /// Gradient of [`avg_pool2d`](Self::avg_pool2d).
    fn avg_pool2d_backward(
        &self,
        grad_output: Self::In<'_>,
        geometry: &Pool2d,
        grad_input: Self::Out<'_>,
    ) -> Result<()>;

    /// Mean of windows that tile the input: window i is ⌊i·H/H'⌋ .. ⌈(i+1)·H/H'⌉.
    fn adaptive_avg_pool2d(&self, input: Self::In<'_>, geometry: &Pool2d, output: Self::Out<'_>) -> Result<()>;

    /// Gradient of [`adaptive_avg_pool2d`](Self::adaptive_avg_pool2d).
    fn adaptive_avg_pool2d_backward(
        &self,
        grad_output: Self::In<'_>,
        geometry: &Pool2d,
        grad_input: Self::Out<'_>,
    ) -> Result<()>;

    /// softmax, or its logarithm, along a dimension.
    fn softmax(&self, input: Self::In<'_>, along: Along, log: bool, output: Self::Out<'_>) -> Result<()>;

    /// Gradient of [`softmax`](Self::softmax) from its output.
    fn softmax_backward(
        &self,
        grad_output: Self::In<'_>,
        output: Self::In<'_>,
        along: Along,
        log: bool,
        grad_input: Self::Out<'_>,
    ) -> Result<()>;

    /// −log_probs[target] for int64 targets; ignored targets give 0 and do not count. `losses` is
    /// one element (sum, mean) or one per target; `counted` receives the number of targets that count.
    fn nll_loss(
        &self,
        log_probs: Self::In<'_>,
        targets: Self::In<'_>,
        options: CrossEntropy,
        losses: Self::Out<'_>,
        counted: Self::Out<'_>,
    ) -> Result<()>;

    /// Gradient of cross entropy = nll_loss ∘ log_softmax with respect to the logits.
    fn cross_entropy_backward(
        &self,
        grad_losses: Self::In<'_>,
        log_probs: Self::In<'_>,
        targets: Self::In<'_>,
        options: CrossEntropy,
        counted: Self::In<'_>,
        grad_logits: Self::Out<'_>,
    ) -> Result<()>;

    /// Updates `parameter`, and `momentum_buffer` if momentum is not 0.
    fn sgd_step(
        &self,
        parameter: Self::Out<'_>,
        gradient: Self::In<'_>,
        momentum_buffer: Option<Self::Out<'_>>,
        step: SgdStep,
    ) -> Result<()>;

    /// Updates `parameter` and both moments.
    fn adamw_step(
        &self,
        parameter: Self::Out<'_>,
        gradient: Self::In<'_>,
        first_moment: Self::Out<'_>,
        second_moment: Self::Out<'_>,
        step: AdamWStep,
    ) -> Result<()>;
}
