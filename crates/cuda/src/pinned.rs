//! Host memory that the device reads and writes by itself, so that copies need no other staging and do not block.

use crate::allocator::relaxed;
use crate::device::Cuda;
use crate::error::check;
use cudarc::driver::result;
use std::ptr::NonNull;
use syncbn_core::Result;

/// Page-locked host memory, readable at full speed by the processor (not write-combined).
pub struct PinnedBuffer {
    pointer: NonNull<u8>,
    bytes: usize,
    device: Cuda,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for PinnedBuffer {}
// SAFETY: reached through `&self` only to be read.
unsafe impl Sync for PinnedBuffer {}

impl std::fmt::Debug for PinnedBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PinnedBuffer({} bytes)", self.bytes)
    }
}

impl PinnedBuffer {
    /// `bytes` zeros.
    pub fn new(device: &Cuda, bytes: usize) -> Result<Self> {
        device.bind()?;
        let size = bytes.max(1);
        // SAFETY: the context is current; the memory is freed by Drop.
        let pointer = check("cuMemHostAlloc", relaxed(|| unsafe { result::malloc_host(size, 0) }))?;
        let pointer = NonNull::new(pointer.cast::<u8>())
            .ok_or_else(|| syncbn_core::Error::internal("cuMemHostAlloc gave no memory"))?;
        // SAFETY: the memory is fresh and `size` bytes long.
        unsafe { pointer.as_ptr().write_bytes(0, size) };
        Ok(Self { pointer, bytes, device: device.clone() })
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the memory is initialised and lives as long as this.
        unsafe { std::slice::from_raw_parts(self.pointer.as_ptr(), self.bytes) }
    }

    /// The bytes, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.bytes) }
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: made by malloc_host and freed once. An error here (the process is ending and the driver with it)
            // has nobody to go to.
            let _ = relaxed(|| unsafe { result::free_host(self.pointer.as_ptr().cast()) });
        }
    }
}
