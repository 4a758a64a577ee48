//! Random tensors and permutations from this thread's generator.

use crate::tensor::Tensor;
use std::cell::RefCell;
use syncbn_core::generator::Generator;
use syncbn_core::{Code, DType, Error, MemoryFormat, Result};
use syncbn_cpu::HostSlice;

thread_local! {
    static GENERATOR: RefCell<Generator> = RefCell::new(Generator::default());
}

/// Restarts this thread's generator.
pub fn manual_seed(seed: u64) {
    GENERATOR.set(Generator::new(seed));
}

/// A permutation of 0..n.
pub fn randperm(n: usize) -> Result<Vec<u32>> {
    if u32::try_from(n).is_err() {
        return Err(Error::expected(Code::Argument, "randperm", "fewer than 2^32 elements", n));
    }
    Ok(GENERATOR.with_borrow_mut(|generator| generator.randperm(n)))
}

/// The distributions a tensor can be drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distribution {
    /// Uniform on [0, 1).
    Uniform,
    /// Normal with mean 0 and variance 1.
    Normal,
}

/// A tensor drawn in row-major order, whatever its format. Half types are drawn as float32 and rounded.
///
/// # Errors
/// [`Code::DType`] for integers.
pub fn random(distribution: Distribution, shape: &[usize], dtype: DType, format: MemoryFormat) -> Result<Tensor> {
    if !dtype.is_float() {
        return Err(Error::expected(Code::DType, "rand", "a floating-point dtype", dtype));
    }
    format.check_rank("rand", shape.len())?;
    let numel = crate::layout::numel("rand", shape)?;
    if dtype == DType::F64 {
        let values = GENERATOR.with_borrow_mut(|generator| match distribution {
            Distribution::Uniform => generator.rand_f64(numel),
            Distribution::Normal => generator.randn_f64(numel),
        });
        return Tensor::from_slice("rand", HostSlice::F64(&values), shape, dtype, format);
    }
    let values = GENERATOR.with_borrow_mut(|generator| match distribution {
        Distribution::Uniform => generator.rand_f32(numel),
        Distribution::Normal => generator.randn_f32(numel),
    });
    Tensor::from_slice("rand", HostSlice::F32(&values), shape, dtype, format)
}
