//! Batch norm and the operations around it on the CPU.
//!
//! [`Cpu`] implements [`syncbn_core::Kernels`] (in `batch_norm/`) and [`syncbn_core::Ops`] (in `ops/`) on slices of host
//! memory. Work runs on the calling thread and the threads of [`pool`]; every call returns when its work is done.

pub mod batch_norm;
pub mod buffer;
pub mod ops;
pub mod pool;
#[doc(hidden)]
pub mod simd;
pub mod slice;

pub use buffer::HostBuffer;
pub use slice::{HostSlice, HostSliceMut};

use syncbn_core::Device;

/// The CPU of this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu;

impl Device for Cpu {
    type In<'a> = HostSlice<'a>;
    type Out<'a> = HostSliceMut<'a>;
    type Buffer = Vec<u8>;
}
