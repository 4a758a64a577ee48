//! Owned device memory.

use crate::allocator::Block;
use crate::device::Cuda;
use crate::slice::{CudaSlice, CudaSliceMut};
use syncbn_core::{DType, Result};

/// Bytes on one device, with unspecified contents at first. Dropping gives them back in stream order: work enqueued
/// before the drop may still use them, work enqueued later may get them again.
pub struct CudaBuffer {
    device: Cuda,
    block: Block,
    bytes: usize,
}

impl std::fmt::Debug for CudaBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CudaBuffer({} bytes on {})", self.bytes, self.device)
    }
}

impl CudaBuffer {
    /// Memory for a tensor; `shape` and `dtype` name it where memory runs out.
    pub(crate) fn for_tensor(device: &Cuda, dtype: DType, shape: &[usize]) -> Result<Self> {
        let bytes = shape.iter().try_fold(dtype.size(), |bytes, &size| bytes.checked_mul(size)).unwrap_or(usize::MAX);
        let block = device.allocate(bytes, dtype, shape)?;
        Ok(Self { device: device.clone(), block, bytes })
    }

    /// The device the memory is on.
    pub fn device(&self) -> &Cuda {
        &self.device
    }

    /// Device address. Whoever asks is about to enqueue work with it.
    pub fn pointer(&self) -> u64 {
        self.device.note_use(self.block.pointer);
        self.block.pointer
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The bytes, as a view whose elements mean nothing.
    pub(crate) fn raw_bytes(&self) -> CudaSlice<'_> {
        // SAFETY: as in `slice`. Two-byte elements are the smallest there are, and every buffer has an even size.
        unsafe { CudaSlice::new(self.pointer(), self.bytes / 2, DType::F16) }
    }

    /// As many elements of `dtype` as there is room for, to be read.
    pub fn slice(&self, dtype: DType) -> CudaSlice<'_> {
        // SAFETY: the memory is this buffer's, has that many elements and outlives the view.
        unsafe { CudaSlice::new(self.pointer(), self.bytes / dtype.size(), dtype) }
    }

    /// As many elements of `dtype` as there is room for, to be written. The stream orders uses, not the borrow.
    pub fn slice_mut(&self, dtype: DType) -> CudaSliceMut<'_> {
        // SAFETY: as above; the device writes in stream order, and the host holds no view of its own.
        unsafe { CudaSliceMut::new(self.pointer(), self.bytes / dtype.size(), dtype) }
    }
}

impl Drop for CudaBuffer {
    fn drop(&mut self) {
        self.device.release(self.block);
    }
}
