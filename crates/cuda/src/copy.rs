//! Copies to, from and between devices.

use crate::buffer::CudaBuffer;
use crate::counts::AtomicCounts;
use crate::device::Cuda;
use crate::error::{call, check};
use crate::pinned::PinnedBuffer;
use crate::slice::{CudaSlice, CudaSliceMut};
use crate::stream::Stream;
use cudarc::driver::{result, sys};
use syncbn_core::{Code, Error, Result};

impl Cuda {
    /// Copies `bytes` to `target`; returns when `bytes` may change again.
    ///
    /// # Errors
    /// [`Code::Capture`] inside a capture.
    pub fn upload(&self, bytes: &[u8], target: CudaSliceMut<'_>) -> Result<()> {
        self.refuse_in_capture("a copy from the host")?;
        same_size(bytes.len(), target.bytes())?;
        if bytes.is_empty() {
            return Ok(());
        }
        let _pass = self.enter()?;
        AtomicCounts::count(&self.0.counts.uploads);
        // SAFETY: the target has as many bytes on this device; the driver has read pageable memory when it returns.
        let copied = unsafe { result::memcpy_htod_async(target.pointer(), bytes, self.stream().raw()) };
        check("cuMemcpyHtoDAsync", copied)
    }

    /// Enqueues a copy of the first bytes of `source` to `target` on `stream`; `source` must not change before it is
    /// done.
    pub fn upload_pinned(&self, source: &PinnedBuffer, target: CudaSliceMut<'_>, stream: &Stream) -> Result<()> {
        let bytes = source.as_slice().get(..target.bytes()).ok_or_else(too_small)?;
        if bytes.is_empty() {
            return Ok(());
        }
        let _pass = self.enter()?;
        AtomicCounts::count(&self.0.counts.uploads);
        // SAFETY: the target has as many bytes on this device; the caller keeps the source until the copy is done.
        let copied = unsafe { result::memcpy_htod_async(target.pointer(), bytes, stream.raw()) };
        check("cuMemcpyHtoDAsync", copied)
    }

    /// Waits for the device and copies `source` to `target`; see [`synchronize`](Self::synchronize).
    pub fn download(
        &self,
        source: CudaSlice<'_>,
        target: &mut [u8],
        keep_waiting: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        same_size(target.len(), source.bytes())?;
        self.synchronize(keep_waiting)?;
        if target.is_empty() {
            return Ok(());
        }
        let _pass = self.enter()?;
        AtomicCounts::count(&self.0.counts.downloads);
        // SAFETY: the source has as many bytes on this device; the stream is waited for before `target` is given back.
        let copied = unsafe { result::memcpy_dtoh_async(target, source.pointer(), self.stream().raw()) };
        check("cuMemcpyDtoHAsync", copied)?;
        self.stream().synchronize()
    }

    /// Enqueues a copy of `source` to the first bytes of `target` on `stream`; `target` must not be read before it is
    /// done.
    pub fn download_pinned(&self, source: CudaSlice<'_>, target: &mut PinnedBuffer, stream: &Stream) -> Result<()> {
        let bytes = target.as_mut_slice().get_mut(..source.bytes()).ok_or_else(too_small)?;
        if bytes.is_empty() {
            return Ok(());
        }
        let _pass = self.enter()?;
        AtomicCounts::count(&self.0.counts.downloads);
        // SAFETY: the source has as many bytes on this device; the caller waits before it reads the target.
        let copied = unsafe { result::memcpy_dtoh_async(bytes, source.pointer(), stream.raw()) };
        check("cuMemcpyDtoHAsync", copied)
    }

    /// Enqueues a copy on this device.
    pub fn copy_bytes(&self, source: CudaSlice<'_>, target: CudaSliceMut<'_>) -> Result<()> {
        same_size(target.bytes(), source.bytes())?;
        if source.is_empty() {
            return Ok(());
        }
        let _pass = self.enter()?;
        // SAFETY: both are on this device and of one size.
        let copied = unsafe {
            result::memcpy_dtod_async(target.pointer(), source.pointer(), source.bytes(), self.stream().raw())
        };
        check("cuMemcpyDtoDAsync", copied)
    }

    /// Enqueues a copy of `source` on this device to `target` on `other`, in the order of both devices' streams.
    pub fn copy_to_device(&self, source: CudaSlice<'_>, other: &Cuda, target: CudaSliceMut<'_>) -> Result<()> {
        if self == other {
            return self.copy_bytes(source, target);
        }
        self.refuse_in_capture("a copy between devices")?;
        other.refuse_in_capture("a copy between devices")?;
        same_size(target.bytes(), source.bytes())?;
        let written = self.record(self.stream())?;
        let copied = other.new_event(false)?;
        {
            let _pass = other.enter()?;
            other.stream().wait(&written)?;
            let (to, from) = (other.context(), self.context());
            // SAFETY: source and target are of one size, each on the device whose context is passed.
            call("cuMemcpyPeerAsync", unsafe {
                let (target, source, bytes) = (target.pointer(), source.pointer(), source.bytes());
                sys::cuMemcpyPeerAsync(target, to, source, from, bytes, other.stream().raw())
            })?;
            copied.record(other.stream())?;
        }
        self.wait_in_stream(&copied)
    }
}

impl CudaBuffer {
    /// A copy of these bytes on the host; see [`Cuda::download`].
    pub fn to_host(&self, keep_waiting: &dyn Fn() -> Result<()>) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.bytes()];
        let source = self.raw_bytes();
        self.device().download(source, &mut bytes, keep_waiting)?;
        Ok(bytes)
    }
}

fn same_size(host: usize, device: usize) -> Result<()> {
    if host == device {
        return Ok(());
    }
    Err(Error::expected(Code::Argument, "copy", format!("{device} bytes"), host))
}

#[cold]
fn too_small() -> Error {
    Error::internal("a pinned buffer is smaller than what is copied")
}
