//! Enqueuing a kernel.

use crate::counts::AtomicCounts;
use crate::device::Cuda;
use crate::error::check;
use crate::module::Kernel;
use cudarc::driver::result;
use std::ffi::c_void;
use syncbn_core::Result;

/// How many blocks of how many threads run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchConfig {
    /// Blocks: at most 2³¹ − 1 × 65535 × 65535, at least one.
    pub grid: (u32, u32, u32),
    /// Threads of a block, at most 1024 in all.
    pub block: (u32, u32, u32),
    /// Dynamic shared memory.
    pub shared_bytes: u32,
}

impl LaunchConfig {
    /// `blocks` blocks of `threads` threads in a row, without dynamic shared memory.
    pub const fn linear(blocks: u32, threads: u32) -> Self {
        Self { grid: (blocks, 1, 1), block: (threads, 1, 1), shared_bytes: 0 }
    }
}

/// The one parameter of some kernels.
///
/// # Safety
/// The type is `repr(C)`, laid out as the struct of the kernels it is launched with, and the addresses in it are of
/// memory that is alive in stream order.
pub(crate) unsafe trait Params: Copy {}

impl Cuda {
    /// Enqueues `kernel` on the compute stream. The parameters are copied.
    pub(crate) fn launch<P: Params>(&self, kernel: Kernel<'_>, config: LaunchConfig, params: &P) -> Result<()> {
        self.bind()?;
        let function = self.function(kernel)?;
        let _pass = self.enter()?;
        let mut arguments = [std::ptr::from_ref(params).cast_mut().cast::<c_void>()];
        let LaunchConfig { grid, block, shared_bytes } = config;
        AtomicCounts::count(&self.0.counts.launches);
        // SAFETY: the function takes one parameter of type P, as `Params` promises and the check of the committed PTX
        // against the kernel table confirms; the driver copies it before it returns and does not write to it.
        let launched =
            unsafe { result::launch_kernel(function, grid, block, shared_bytes, self.stream().raw(), &mut arguments) };
        check(kernel.name, launched)
    }
}
