//! [`syncbn_core::Ops`] on host memory: each operation's element types are resolved here, its work is in its own file.

mod conv2d;
mod elementwise;
mod float;
mod layout;
mod matmul;
mod optimizer;
mod pool2d;
mod reduce;
mod softmax;
mod split;

use crate::Cpu;
use crate::slice::{Element, HostSlice, HostSliceMut};
use syncbn_core::ops::{
    AdamWStep, Along, BinaryOp, Broadcast, Conv2d, CrossEntropy, Matmul, Pool2d, Reduction, Restride, SgdStep,
};
use syncbn_core::{Code, DType, Error, Ops, Result};

/// Runs `$body` with `$T` standing for the float type of `$like`.
macro_rules! with_float {
    ($op:literal, $like:expr, $T:ident => $body:expr) => {
        match $like.dtype() {
            DType::F32 => {
                type $T = f32;
                $body
            }
            DType::F64 => {
                type $T = f64;
                $body
            }
            other => Err(not_a_float($op, other)),
        }
    };
}

/// Runs `$body` with `$T` standing for the element type of `$like`.
macro_rules! with_element {
    ($like:expr, $T:ident => $body:expr) => {
        match $like.dtype() {
            DType::F32 => {
                type $T = f32;
                $body
            }
            DType::F64 => {
                type $T = f64;
                $body
            }
            DType::F16 => {
                type $T = half::f16;
                $body
            }
            DType::BF16 => {
                type $T = half::bf16;
                $body
            }
            DType::I32 => {
                type $T = i32;
                $body
            }
            DType::I64 => {
                type $T = i64;
                $body
            }
        }
    };
}

#[cold]
fn not_a_float(op: &str, got: DType) -> Error {
    Error::expected(Code::DType, op, "float32 or float64", got)
}

impl Ops for Cpu {
    fn fill(&self, output: HostSliceMut<'_>, value: f64) -> Result<()> {
        match output {
            HostSliceMut::F32(output) => output.fill(value as f32),
            HostSliceMut::F64(output) => output.fill(value),
            HostSliceMut::F16(output) => output.fill(half::f16::from_f64(value)),
            HostSliceMut::BF16(output) => output.fill(half::bf16::from_f64(value)),
            HostSliceMut::I32(output) => output.fill(value as i32),
            HostSliceMut::I64(output) => output.fill(value as i64),
        }
        Ok(())
    }

    fn copy(&self, input: HostSlice<'_>, output: HostSliceMut<'_>) -> Result<()> {
        layout::cast(input, output);
        Ok(())
    }

    fn restride(&self, input: HostSlice<'_>, layout: &Restride, output: HostSliceMut<'_>) -> Result<()> {
        with_element!(input, T => {
            layout::restride(T::slice("copy", input)?, layout, T::slice_mut("copy", output)?);
            Ok(())
        })
    }

    fn binary(
        &self,
        op: BinaryOp,
        a: HostSlice<'_>,
        b: HostSlice<'_>,
        layout: &Broadcast,
        output: HostSliceMut<'_>,
    ) -> Result<()> {
        with_float!("arithmetic", a, T => {
            let (a, b) = (T::slice("arithmetic", a)?, T::slice("arithmetic", b)?);
            elementwise::binary(op, a, b, layout, T::slice_mut("arithmetic", output)?);
            Ok(())
        })
    }

    fn binary_scalar(&self, op: BinaryOp, a: HostSlice<'_>, scalar: f64, output: HostSliceMut<'_>) -> Result<()> {
        with_float!("arithmetic", a, T => {
            elementwise::binary_scalar(op, T::slice("arithmetic", a)?, scalar, T::slice_mut("arithmetic", output)?);
            Ok(())
        })
    }

    fn add_in_place(&self, accumulator: HostSliceMut<'_>, addend: HostSlice<'_>) -> Result<()> {
        with_float!("add", addend, T => {
            elementwise::add_in_place(T::slice_mut("add", accumulator)?, T::slice("add", addend)?);
            Ok(())
        })
    }

    fn scale_in_place(&self, data: HostSliceMut<'_>, factor: f64) -> Result<()> {
        with_float!("scale", data, T => {
            elementwise::scale_in_place(T::slice_mut("scale", data)?, factor);
            Ok(())
        })
    }

    fn sum(&self, input: HostSlice<'_>, layout: &Reduction, output: HostSliceMut<'_>) -> Result<()> {
        with_float!("sum", input, T => {
            reduce::sum(T::slice("sum", input)?, layout, T::slice_mut("sum", output)?);
            Ok(())
        })
    }

    fn argmax(&self, input: HostSlice<'_>, along: Along, output: HostSliceMut<'_>) -> Result<()> {
        with_float!("argmax", input, T => {
            reduce::argmax(T::slice("argmax", input)?, along, i64::slice_mut("argmax", output)?);
            Ok(())
        })
    }

    fn relu(&self, input: HostSlice<'_>, output: HostSliceMut<'_>) -> Result<()> {
        with_float!("relu", input, T => {
            elementwise::relu(T::slice("relu", input)?, T::slice_mut("relu", output)?);
            Ok(())
        })
    }

    fn relu_backward(
        &self,
        grad_output: HostSlice<'_>,
        output: HostSlice<'_>,
        grad_input: HostSliceMut<'_>,
    ) -> Result<()> {
        with_float!("relu", output, T => {
            let grad_output = T::slice("relu", grad_output)?;
            elementwise::relu_backward(grad_output, T::slice("relu", output)?, T::slice_mut("relu", grad_input)?);
            Ok(())
        })
    }

    fn matmul(&self, a: HostSlice<'_>, b: HostSlice<'_>, geometry: Matmul, output: HostSliceMut<'_>) -> Result<()> {
        with_float!("matmul", a, T => {
            let (a, b) = (T::slice("matmul", a)?, T::slice("matmul", b)?);
            matmul::matmul(a, b, geometry, T::slice_mut("matmul", output)?);
            Ok(())
        })
    }

    fn add_bias(&self, data: HostSliceMut<'_>, bias: HostSlice<'_>, along: Along) -> Result<()> {
        with_float!("bias", data, T => {
            elementwise::add_bias(T::slice_mut("bias", data)?, T::slice("bias", bias)?, along);
            Ok(())
        })
    }

    fn conv2d(
        &self,
        input: HostSlice<'_>,
        weight: HostSlice<'_>,
        geometry: &Conv2d,
        output: HostSliceMut<'_>,
    ) -> Result<()> {
        with_float!("conv2d", input, T => {
            let (input, weight) = (T::slice("conv2d", input)?, T::slice("conv2d", weight)?);
            conv2d::forward(input, weight, geometry, T::slice_mut("conv2d", output)?)
        })
    }

    fn conv2d_backward_input(
        &self,
        grad_output: HostSlice<'_>,
        weight: HostSlice<'_>,
        geometry: &Conv2d,
        grad_input: HostSliceMut<'_>,
    ) -> Result<()> {
        with_float!("conv2d", weight, T => {
            let (grad_output, weight) = (T::slice("conv2d", grad_output)?, T::slice("conv2d", weight)?);
            conv2d::backward_input(grad_output, weight, geometry, T::slice_mut("conv2d", grad_input)?)
        })
    }

    fn conv2d_backward_weight(
        &self,
        grad_output: HostSlice<'_>,
        input: HostSlice<'_>,
        geometry: &Conv2d,
        grad_weight: HostSliceMut<'_>,
    ) -> Result<()> {
        with_float!("conv2d", input, T => {
            let (grad_output, input) = (T::slice("conv2d", grad_output)?, T::slice("conv2d", input)?);
            conv2d::backward_weight(grad_output, input, geometry, T::slice_mut("conv2d", grad_weight)?)
        })
    }

    fn max_pool2d(
        &self,
        input: HostSlice<'_>,
        geometry: &Pool2d,
        output: HostSliceMut<'_>,
        indices: HostSliceMut<'_>,
    ) -> Result<()> {
        with_float!("maxPool2d", input, T => {
            let (input, indices) = (T::slice("maxPool2d", input)?, i64::slice_mut("maxPool2d", indices)?);
            pool2d::max(input, geometry, T::slice_mut("maxPool2d", output)?, indices);
            Ok(())
        })
    }

    fn max_pool2d_backward(
        &self,
        grad_output: HostSlice<'_>,
        indices: HostSlice<'_>,
        geometry: &Pool2d,
        grad_input: HostSliceMut<'_>,
    ) -> Result<()> {
        with_float!("maxPool2d", grad_output, T => {
            let (grads, indices) = (T::slice("maxPool2d", grad_output)?, i64::slice("maxPool2d", indices)?);
            pool2d::max_backward(grads, indices, geometry, T::slice_mut("maxPool2d", grad_input)?);
            Ok(())
        })
    }

    fn avg_pool2d(&self, input: HostSlice<'_>, geometry: &Pool2d, output: HostSliceMut<'_>) -> Result<()> {
        average(input, geometry, false, output)
    }

    fn avg_pool2d_backward(
        &self,
        grad_output: HostSlice<'_>,
        geometry: &Pool2d,
        grad_input: HostSliceMut<'_>,
    ) -> Result<()> {
        average_backward(grad_output, geometry, false, grad_input)
    }

    fn adaptive_avg_pool2d(&self, input: HostSlice<'_>, geometry: &Pool2d, output: HostSliceMut<'_>) -> Result<()> {
        average(input, geometry, true, output)
    }

    fn adaptive_avg_pool2d_backward(
        &self,
        grad_output: HostSlice<'_>,
        geometry: &Pool2d,
        grad_input: HostSliceMut<'_>,
    ) -> Result<()> {
        average_backward(grad_output, geometry, true, grad_input)
    }

    fn softmax(&self, input: HostSlice<'_>, along: Along, log: bool, output: HostSliceMut<'_>) -> Result<()> {
        with_float!("softmax", input, T => {
            softmax::forward(T::slice("softmax", input)?, along, log, T::slice_mut("softmax", output)?);
            Ok(())
        })
    }

    fn softmax_backward(
        &self,
        grad_output: HostSlice<'_>,
        output: HostSlice<'_>,
        along: Along,
        log: bool,
        grad_input: HostSliceMut<'_>,
    ) -> Result<()> {
        with_float!("softmax", output, T => {
            let (grads, output) = (T::slice("softmax", grad_output)?, T::slice("softmax", output)?);
            softmax::backward(grads, output, along, log, T::slice_mut("softmax", grad_input)?);
            Ok(())
        })
    }

    fn nll_loss(
        &self,
        log_probs: HostSlice<'_>,
        targets: HostSlice<'_>,
        options: CrossEntropy,
        losses: HostSliceMut<'_>,
        counted: HostSliceMut<'_>,
    ) -> Result<()> {
        with_float!("crossEntropy", log_probs, T => {
            let (log_probs, targets) = (T::slice("crossEntropy", log_probs)?, i64::slice("crossEntropy", targets)?);
            let (losses, counted) = (T::slice_mut("crossEntropy", losses)?, T::slice_mut("crossEntropy", counted)?);
            softmax::nll_loss(log_probs, targets, &options, losses, counted)
        })
    }

    fn cross_entropy_backward(
        &self,
        grad_losses: HostSlice<'_>,
        log_probs: HostSlice<'_>,
        targets: HostSlice<'_>,
        options: CrossEntropy,
        counted: HostSlice<'_>,
        grad_logits: HostSliceMut<'_>,
    ) -> Result<()> {
        with_float!("crossEntropy", log_probs, T => {
            let (grads, log_probs) = (T::slice("crossEntropy", grad_losses)?, T::slice("crossEntropy", log_probs)?);
            let (targets, counted) = (i64::slice("crossEntropy", targets)?, T::slice("crossEntropy", counted)?);
            let grad_logits = T::slice_mut("crossEntropy", grad_logits)?;
            softmax::cross_entropy_backward(grads, log_probs, targets, &options, counted, grad_logits)
        })
    }

    fn sgd_step(
        &self,
        parameter: HostSliceMut<'_>,
        gradient: HostSlice<'_>,
        momentum_buffer: Option<HostSliceMut<'_>>,
        step: SgdStep,
    ) -> Result<()> {
        with_float!("sgd", parameter, T => {
            let buffer = momentum_buffer.map(|buffer| T::slice_mut("sgd", buffer)).transpose()?;
            optimizer::sgd(T::slice_mut("sgd", parameter)?, T::slice("sgd", gradient)?, buffer, step);
            Ok(())
        })
    }

    fn adamw_step(
        &self,
        parameter: HostSliceMut<'_>,
        gradient: HostSlice<'_>,
        first_moment: HostSliceMut<'_>,
        second_moment: HostSliceMut<'_>,
        step: AdamWStep,
    ) -> Result<()> {
        with_float!("adamw", parameter, T => {
            let (first, second) = (T::slice_mut("adamw", first_moment)?, T::slice_mut("adamw", second_moment)?);
            optimizer::adamw(T::slice_mut("adamw", parameter)?, T::slice("adamw", gradient)?, first, second, step);
            Ok(())
        })
    }
}

fn average(input: HostSlice<'_>, geometry: &Pool2d, adaptive: bool, output: HostSliceMut<'_>) -> Result<()> {
    with_float!("avgPool2d", input, T => {
        pool2d::average(T::slice("avgPool2d", input)?, geometry, adaptive, T::slice_mut("avgPool2d", output)?);
        Ok(())
    })
}

fn average_backward(
    grad_output: HostSlice<'_>,
    geometry: &Pool2d,
    adaptive: bool,
    grad_input: HostSliceMut<'_>,
) -> Result<()> {
    with_float!("avgPool2d", grad_output, T => {
        let grads = T::slice("avgPool2d", grad_output)?;
        pool2d::average_backward(grads, geometry, adaptive, T::slice_mut("avgPool2d", grad_input)?);
        Ok(())
    })
}
