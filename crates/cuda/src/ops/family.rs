//! Kernels that differ in the element type alone, and the checks every launcher makes.

use crate::Cuda;
use crate::kernel_table::Entry;
use crate::launch::{LaunchConfig, Params};
use crate::module::{Kernel, Module};
use std::marker::PhantomData;
use syncbn_core::{Code, DType, Error, Result};

/// Threads of a block, unless a launcher has reasons for others.
pub(super) const THREADS: usize = 256;
/// Blocks of kernels that walk over their work: enough to fill any GPU many times over.
const MAX_BLOCKS: usize = 1 << 14;

/// The types arithmetic has kernels for.
pub(super) const FLOATS: &[DType] = &[DType::F32, DType::F64];
/// The same with those that are computed in float32.
pub(super) const FLOATS_AND_HALVES: &[DType] = &[DType::F32, DType::F64, DType::F16, DType::BF16];

/// How kernels' names spell an element type.
pub(super) fn suffix(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "f32",
        DType::F64 => "f64",
        DType::F16 => "f16",
        DType::BF16 => "bf16",
        DType::I32 => "i32",
        DType::I64 => "i64",
    }
}

/// The kernels `STEM_TYPE`, which take a `P`.
pub(super) struct Family<P> {
    module: Module,
    stem: &'static str,
    dtypes: &'static [DType],
    params: PhantomData<fn(P)>,
}

impl<P: Params> Family<P> {
    pub(super) const fn new(module: Module, stem: &'static str, dtypes: &'static [DType]) -> Self {
        Self { module, stem, dtypes, params: PhantomData }
    }

    fn name(&self, dtype: DType) -> String {
        format!("{}_{}", self.stem, suffix(dtype))
    }

    /// All of them.
    pub(super) fn entries(&self) -> Vec<Entry> {
        self.dtypes.iter().map(|&dtype| Entry::of::<P>(self.module, self.name(dtype))).collect()
    }

    /// Enqueues the one for `dtype`.
    ///
    /// # Errors
    /// [`Code::DType`] if there is none.
    pub(super) fn launch(&self, cuda: &Cuda, op: &str, dtype: DType, config: LaunchConfig, params: &P) -> Result<()> {
        expect_one_of(op, self.dtypes, dtype)?;
        cuda.launch(Kernel { module: self.module, name: &self.name(dtype) }, config, params)
    }
}

/// The kernels `STEM_bBITS` for elements of 2, 4 and 8 bytes, which take a `P`.
pub(super) struct SizeFamily<P> {
    module: Module,
    stem: &'static str,
    params: PhantomData<fn(P)>,
}

impl<P: Params> SizeFamily<P> {
    pub(super) const fn new(module: Module, stem: &'static str) -> Self {
        Self { module, stem, params: PhantomData }
    }

    fn name(&self, bytes: usize) -> String {
        format!("{}_b{}", self.stem, bytes * 8)
    }

    /// All of them.
    pub(super) fn entries(&self) -> Vec<Entry> {
        [2, 4, 8].map(|bytes| Entry::of::<P>(self.module, self.name(bytes))).into()
    }

    /// Enqueues the one for elements of `bytes` bytes.
    pub(super) fn launch(&self, cuda: &Cuda, bytes: usize, config: LaunchConfig, params: &P) -> Result<()> {
        cuda.launch(Kernel { module: self.module, name: &self.name(bytes) }, config, params)
    }
}

/// Blocks for `items` items of work, one a thread where they are few.
pub(super) fn walk(items: usize) -> LaunchConfig {
    LaunchConfig::linear(items.div_ceil(THREADS).clamp(1, MAX_BLOCKS) as u32, THREADS as u32)
}

/// The same for elements of `dtype` that are moved 16 bytes at a time.
pub(super) fn walk_vectors(len: usize, dtype: DType) -> LaunchConfig {
    walk((len * dtype.size()).div_ceil(16))
}

/// An error unless the element type is in `dtypes`.
pub(super) fn expect_one_of(op: &str, dtypes: &[DType], got: DType) -> Result<()> {
    if dtypes.contains(&got) {
        return Ok(());
    }
    let (last, others) = dtypes.split_last().expect("a family has types");
    let others = others.iter().map(|dtype| dtype.as_str()).collect::<Vec<_>>().join(", ");
    Err(Error::expected(Code::DType, op, format!("{others} or {last}"), got))
}

/// An error unless the element type is `expected`.
pub(super) fn expect_dtype(op: &str, expected: DType, got: DType) -> Result<()> {
    if got == expected { Ok(()) } else { Err(Error::expected(Code::DType, op, expected, got)) }
}

/// An error unless `what` has at least `expected` elements: kernels would reach beyond its memory.
pub(super) fn expect_len(op: &str, what: &str, expected: usize, got: usize) -> Result<()> {
    if got >= expected {
        return Ok(());
    }
    Err(Error::expected(Code::Shape, op, format!("{expected} elements in {what}"), got))
}
