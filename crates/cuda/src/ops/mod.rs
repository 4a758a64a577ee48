//! [`syncbn_core::Ops`] on the GPU: each operation's launcher is in its own file.
//!
//! Launchers check that the memory they are given is as long as the kernels will reach, then enqueue and return.

mod conv2d;
mod elementwise;
mod family;
mod gemm;
mod lanes;
mod loss;
mod optimizer;
mod patches;
mod pool2d;
mod reduce;
mod restride;
mod softmax;
mod space;

pub use conv2d::set_convolution_workspace;
pub(crate) use gemm::Gemm;

use crate::kernel_table::Entry;
use crate::{Cuda, CudaSlice, CudaSliceMut};
use optimizer::AdamWOperands;
use syncbn_core::ops::{
    AdamWStep, Along, BinaryOp, Broadcast, Conv2d, CrossEntropy, Matmul, Pool2d, Reduction, Restride, SgdStep,
};
use syncbn_core::{Ops, Result};

/// Every kernel of these operations.
pub(crate) fn table() -> Vec<Entry> {
    [
        elementwise::table(),
        gemm::table(),
        loss::table(),
        optimizer::table(),
        patches::table(),
        pool2d::table(),
        reduce::table(),
        restride::table(),
        softmax::table(),
    ]
    .concat()
}

impl Cuda {
    /// Adds one to the int64 in `counter`. What changes from step to step must live on the device, so that a recorded
    /// graph can be replayed.
    ///
    /// # Errors
    /// [`syncbn_core::Code::DType`] for another type, [`syncbn_core::Code::Shape`] for no element.
    pub fn increment(&self, counter: CudaSliceMut<'_>) -> Result<()> {
        elementwise::increment(self, &counter)
    }

    /// [`adamw_step`](Ops::adamw_step) with the number of the step, from 1, read from `counter` (int64, one element)
    /// when the kernel runs; `step.step` is not used.
    ///
    /// # Errors
    /// As [`adamw_step`](Ops::adamw_step).
    pub fn adamw_step_from(
        &self,
        parameter: CudaSliceMut<'_>,
        gradient: CudaSlice<'_>,
        first_moment: CudaSliceMut<'_>,
        second_moment: CudaSliceMut<'_>,
        step: AdamWStep,
        counter: CudaSlice<'_>,
    ) -> Result<()> {
        let (parameter, first_moment, second_moment) = (&parameter, &first_moment, &second_moment);
        let operands = AdamWOperands { parameter, gradient, first_moment, second_moment };
        optimizer::adamw_step_from(self, &operands, step, counter)
    }
}

impl Ops for Cuda {
    fn fill(&self, output: CudaSliceMut<'_>, value: f64) -> Result<()> {
        elementwise::fill(self, &output, value)
    }

    fn copy(&self, input: CudaSlice<'_>, output: CudaSliceMut<'_>) -> Result<()> {
        elementwise::copy(self, input, output)
    }

    fn restride(&self, input: CudaSlice<'_>, layout: &Restride, output: CudaSliceMut<'_>) -> Result<()> {
        restride::restride(self, input, layout, output)
    }

    fn binary(
        &self,
        op: BinaryOp,
        a: CudaSlice<'_>,
        b: CudaSlice<'_>,
        layout: &Broadcast,
        output: CudaSliceMut<'_>,
    ) -> Result<()> {
        elementwise::binary(self, op, a, b, layout, &output)
    }

    fn binary_scalar(&self, op: BinaryOp, a: CudaSlice<'_>, scalar: f64, output: CudaSliceMut<'_>) -> Result<()> {
        elementwise::binary_scalar(self, "arithmetic", op, a, scalar, &output)
    }

    fn add_in_place(&self, accumulator: CudaSliceMut<'_>, addend: CudaSlice<'_>) -> Result<()> {
        elementwise::binary_dense(self, "add", BinaryOp::Add, accumulator.as_slice(), addend, &accumulator)
    }

    fn scale_in_place(&self, data: CudaSliceMut<'_>, factor: f64) -> Result<()> {
        elementwise::binary_scalar(self, "scale", BinaryOp::Mul, data.as_slice(), factor, &data)
    }

    fn sum(&self, input: CudaSlice<'_>, layout: &Reduction, output: CudaSliceMut<'_>) -> Result<()> {
        reduce::sum(self, input, layout, &output)
    }

    fn argmax(&self, input: CudaSlice<'_>, along: Along, output: CudaSliceMut<'_>) -> Result<()> {
        reduce::argmax(self, input, along, &output)
    }

    fn relu(&self, input: CudaSlice<'_>, output: CudaSliceMut<'_>) -> Result<()> {
        elementwise::relu(self, input, &output)
    }

    fn relu_backward(
        &self,
        grad_output: CudaSlice<'_>,
        output: CudaSlice<'_>,
        grad_input: CudaSliceMut<'_>,
    ) -> Result<()> {
        elementwise::relu_backward(self, grad_output, output, &grad_input)
    }

    fn matmul(&self, a: CudaSlice<'_>, b: CudaSlice<'_>, geometry: Matmul, output: CudaSliceMut<'_>) -> Result<()> {
        gemm::matmul(self, a, b, geometry, &output)
    }

    fn add_bias(&self, data: CudaSliceMut<'_>, bias: CudaSlice<'_>, along: Along) -> Result<()> {
        elementwise::add_bias(self, &data, bias, along)
    }

    fn conv2d(
        &self,
        input: CudaSlice<'_>,
        weight: CudaSlice<'_>,
        geometry: &Conv2d,
        output: CudaSliceMut<'_>,
    ) -> Result<()> {
        conv2d::forward(self, input, weight, geometry, &output)
    }

    fn conv2d_backward_input(
        &self,
        grad_output: CudaSlice<'_>,
        weight: CudaSlice<'_>,
        geometry: &Conv2d,
        grad_input: CudaSliceMut<'_>,
    ) -> Result<()> {
        conv2d::backward_input(self, grad_output, weight, geometry, &grad_input)
    }

    fn conv2d_backward_weight(
        &self,
        grad_output: CudaSlice<'_>,
        input: CudaSlice<'_>,
        geometry: &Conv2d,
        mut grad_weight: CudaSliceMut<'_>,
    ) -> Result<()> {
        conv2d::backward_weight(self, grad_output, input, geometry, &mut grad_weight)
    }

    fn max_pool2d(
        &self,
        input: CudaSlice<'_>,
        geometry: &Pool2d,
        output: CudaSliceMut<'_>,
        indices: CudaSliceMut<'_>,
    ) -> Result<()> {
        pool2d::max_pool2d(self, input, geometry, &output, &indices)
    }

    fn max_pool2d_backward(
        &self,
        grad_output: CudaSlice<'_>,
        indices: CudaSlice<'_>,
        geometry: &Pool2d,
        grad_input: CudaSliceMut<'_>,
    ) -> Result<()> {
        pool2d::max_pool2d_backward(self, grad_output, indices, geometry, &grad_input)
    }

    fn avg_pool2d(&self, input: CudaSlice<'_>, geometry: &Pool2d, output: CudaSliceMut<'_>) -> Result<()> {
        pool2d::average(self, input, geometry, false, &output)
    }

    fn avg_pool2d_backward(
        &self,
        grad_output: CudaSlice<'_>,
        geometry: &Pool2d,
        grad_input: CudaSliceMut<'_>,
    ) -> Result<()> {
        pool2d::average_backward(self, grad_output, geometry, false, &grad_input)
    }

    fn adaptive_avg_pool2d(&self, input: CudaSlice<'_>, geometry: &Pool2d, output: CudaSliceMut<'_>) -> Result<()> {
        pool2d::average(self, input, geometry, true, &output)
    }

    fn adaptive_avg_pool2d_backward(
        &self,
        grad_output: CudaSlice<'_>,
        geometry: &Pool2d,
        grad_input: CudaSliceMut<'_>,
    ) -> Result<()> {
        pool2d::average_backward(self, grad_output, geometry, true, &grad_input)
    }

    fn softmax(&self, input: CudaSlice<'_>, along: Along, log: bool, output: CudaSliceMut<'_>) -> Result<()> {
        softmax::softmax(self, input, along, log, &output)
    }

    fn softmax_backward(
        &self,
        grad_output: CudaSlice<'_>,
        output: CudaSlice<'_>,
        along: Along,
        log: bool,
        grad_input: CudaSliceMut<'_>,
    ) -> Result<()> {
        softmax::softmax_backward(self, grad_output, output, along, log, &grad_input)
    }

    fn nll_loss(
        &self,
        log_probs: CudaSlice<'_>,
        targets: CudaSlice<'_>,
        options: CrossEntropy,
        losses: CudaSliceMut<'_>,
        counted: CudaSliceMut<'_>,
    ) -> Result<()> {
        loss::nll_loss(self, log_probs, targets, options, &losses, &counted)
    }

    fn cross_entropy_backward(
        &self,
        grad_losses: CudaSlice<'_>,
        log_probs: CudaSlice<'_>,
        targets: CudaSlice<'_>,
        options: CrossEntropy,
        counted: CudaSlice<'_>,
        grad_logits: CudaSliceMut<'_>,
    ) -> Result<()> {
        loss::cross_entropy_backward(self, grad_losses, log_probs, targets, options, counted, &grad_logits)
    }

    fn sgd_step(
        &self,
        parameter: CudaSliceMut<'_>,
        gradient: CudaSlice<'_>,
        momentum_buffer: Option<CudaSliceMut<'_>>,
        step: SgdStep,
    ) -> Result<()> {
        optimizer::sgd_step(self, &parameter, gradient, momentum_buffer.as_ref(), step)
    }

    fn adamw_step(
        &self,
        parameter: CudaSliceMut<'_>,
        gradient: CudaSlice<'_>,
        first_moment: CudaSliceMut<'_>,
        second_moment: CudaSliceMut<'_>,
        step: AdamWStep,
    ) -> Result<()> {
        let (parameter, first_moment, second_moment) = (&parameter, &first_moment, &second_moment);
        optimizer::adamw_step(self, &AdamWOperands { parameter, gradient, first_moment, second_moment }, step)
    }
}
