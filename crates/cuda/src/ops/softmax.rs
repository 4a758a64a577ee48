//! Launchers of softmax.cu.

use super::family::{FLOATS, Family, expect_dtype, expect_len};
use super::lanes::Lanes;
use super::space;
use crate::kernel_table::Entry;
use crate::launch::Params;
use crate::module::Module;
use crate::{Cuda, CudaSlice, CudaSliceMut};
use syncbn_core::Result;
use syncbn_core::ops::Along;

#[repr(C)]
#[derive(Clone, Copy)]
struct SoftmaxParams {
    input: u64,
    output: u64,
    along: space::Along,
    lanes: u32,
    adjacent: u32,
    logarithm: u32,
    unused: u32,
}
// SAFETY: repr(C), as the struct of kernels/softmax.cu.
unsafe impl Params for SoftmaxParams {}

#[repr(C)]
#[derive(Clone, Copy)]
struct SoftmaxBackwardParams {
    grad_output: u64,
    output: u64,
    grad_input: u64,
    along: space::Along,
    lanes: u32,
    adjacent: u32,
    logarithm: u32,
    unused: u32,
}
// SAFETY: repr(C), as the struct of kernels/softmax.cu.
unsafe impl Params for SoftmaxBackwardParams {}

const SOFTMAX: Family<SoftmaxParams> = Family::new(Module::Softmax, "softmax", FLOATS);
const SOFTMAX_BACKWARD: Family<SoftmaxBackwardParams> = Family::new(Module::Softmax, "softmax_backward", FLOATS);

pub(super) fn table() -> Vec<Entry> {
    [SOFTMAX.entries(), SOFTMAX_BACKWARD.entries()].concat()
}

pub(super) fn softmax(
    cuda: &Cuda,
    input: CudaSlice<'_>,
    along: Along,
    log: bool,
    output: &CudaSliceMut<'_>,
) -> Result<()> {
    let lines = along.outer * along.inner;
    expect_dtype("softmax", output.dtype(), input.dtype())?;
    expect_len("softmax", "the input", lines * along.size, input.len())?;
    expect_len("softmax", "the output", lines * along.size, output.len())?;
    if lines * along.size == 0 {
        return Ok(());
    }
    let lanes = Lanes::new(lines, along.size, along.inner == 1);
    let params = SoftmaxParams {
        input: input.pointer(),
        output: output.pointer(),
        along: along.into(),
        lanes: lanes.lanes,
        adjacent: lanes.adjacent,
        logarithm: u32::from(log),
        unused: 0,
    };
    SOFTMAX.launch(cuda, "softmax", input.dtype(), lanes.config(lines), &params)
}

pub(super) fn softmax_backward(
    cuda: &Cuda,
    grad_output: CudaSlice<'_>,
    output: CudaSlice<'_>,
    along: Along,
    log: bool,
    grad_input: &CudaSliceMut<'_>,
) -> Result<()> {
    let (lines, dtype) = (along.outer * along.inner, grad_input.dtype());
    for (what, operand) in [("gradOutput", grad_output), ("the output", output)] {
        expect_dtype("softmax", dtype, operand.dtype())?;
        expect_len("softmax", what, lines * along.size, operand.len())?;
    }
    expect_len("softmax", "gradInput", lines * along.size, grad_input.len())?;
    if lines * along.size == 0 {
        return Ok(());
    }
    let lanes = Lanes::new(lines, along.size, along.inner == 1);
    let params = SoftmaxBackwardParams {
        grad_output: grad_output.pointer(),
        output: output.pointer(),
        grad_input: grad_input.pointer(),
        along: along.into(),
        lanes: lanes.lanes,
        adjacent: lanes.adjacent,
        logarithm: u32::from(log),
        unused: 0,
    };
    SOFTMAX_BACKWARD.launch(cuda, "softmax", dtype, lanes.config(lines), &params)
}
