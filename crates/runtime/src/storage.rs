//! Memory that tensors share, and the version that tells whether it was written since.

use crate::device::Device;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicUsize, Ordering};
use syncbn_core::{Code, DType, Error, Result};
use syncbn_cpu::HostBuffer;
use syncbn_cpu::buffer::{OwnedWriteGuard, ReadGuard, WriteGuard};
use syncbn_cuda::{Cuda, CudaBuffer, CudaSlice, CudaSliceMut, Foreign};

static LIVE: AtomicUsize = AtomicUsize::new(0);

/// The memory of one or more tensors. In-place operations that autograd must notice bump the version.
#[derive(Debug)]
pub struct Storage {
    memory: Memory,
    version: AtomicU32,
}

#[derive(Debug)]
enum Memory {
    Host(Arc<HostBuffer>),
    Cuda(Arc<CudaMemory>),
}

impl Storage {
    /// Memory on `device` with unspecified contents, for a tensor of `shape`.
    pub fn new(device: &Device, dtype: DType, shape: &[usize]) -> Result<Self> {
        let memory = match device {
            Device::Cpu => {
                let memory = HostBuffer::new(dtype, shape.iter().product())?;
                LIVE.fetch_add(1, Ordering::Relaxed);
                Memory::Host(Arc::new(memory))
            }
            Device::Cuda(cuda) => {
                let buffer = cuda.tensor_buffer(dtype, shape)?;
                Memory::Cuda(Arc::new(CudaMemory::new(Kind::Owned(buffer), dtype, shape.iter().product())))
            }
        };
        Ok(Self { memory, version: AtomicU32::new(0) })
    }

    /// Memory of another CUDA library.
    pub fn foreign(memory: Foreign) -> Self {
        let (dtype, len) = (memory.dtype(), memory.len());
        let memory = Memory::Cuda(Arc::new(CudaMemory::new(Kind::Foreign(memory), dtype, len)));
        Self { memory, version: AtomicU32::new(0) }
    }

    /// Where it is.
    pub fn device(&self) -> Device {
        match &self.memory {
            Memory::Host(_) => Device::Cpu,
            Memory::Cuda(memory) => Device::Cuda(memory.device().clone()),
        }
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        match &self.memory {
            Memory::Host(memory) => memory.dtype(),
            Memory::Cuda(memory) => memory.dtype,
        }
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        match &self.memory {
            Memory::Host(memory) => memory.bytes(),
            Memory::Cuda(memory) => memory.len * memory.dtype.size(),
        }
    }

    /// The host memory.
    ///
    /// # Errors
    /// [`Code::Device`] if it is on a GPU.
    pub fn host(&self) -> Result<&Arc<HostBuffer>> {
        match &self.memory {
            Memory::Host(memory) => Ok(memory),
            Memory::Cuda(memory) => Err(on_the_wrong_device("cpu", memory.device())),
        }
    }

    /// The device memory.
    ///
    /// # Errors
    /// [`Code::Device`] if it is on the host.
    pub fn cuda(&self) -> Result<&Arc<CudaMemory>> {
        match &self.memory {
            Memory::Cuda(memory) => Ok(memory),
            Memory::Host(_) => Err(on_the_wrong_device("cuda", "cpu")),
        }
    }

    /// Opens host memory for reading.
    pub fn read(&self) -> Result<ReadGuard<'_>> {
        self.host()?.read()
    }

    /// Opens host memory for writing.
    pub fn write(&self) -> Result<WriteGuard<'_>> {
        self.host()?.write()
    }

    /// Opens host memory for writing on whichever thread, until the guard is dropped.
    pub fn write_owned(&self) -> Result<OwnedWriteGuard> {
        self.host()?.clone().write_owned()
    }

    /// Times the memory was written in place.
    pub fn version(&self) -> u32 {
        self.version.load(Ordering::Relaxed)
    }

    /// Notes an in-place write.
    pub fn bump_version(&self) {
        self.version.fetch_add(1, Ordering::Relaxed);
    }
}

#[cold]
fn on_the_wrong_device(expected: &str, got: impl std::fmt::Display) -> Error {
    Error::expected(Code::Device, "tensor", format!("a tensor on {expected}"), format!("one on {got}"))
}

impl Drop for Storage {
    fn drop(&mut self) {
        if let Memory::Host(_) = self.memory {
            LIVE.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[derive(Debug)]
enum Kind {
    Owned(CudaBuffer),
    Foreign(Foreign),
}

/// Memory of one GPU. The device's streams order its uses; what is checked here is that nothing touches it while a
/// collective that was not waited for does.
#[derive(Debug)]
pub struct CudaMemory {
    kind: Kind,
    dtype: DType,
    len: usize,
    /// Number of readers, or −1 for a writer.
    uses: AtomicI32,
}

impl CudaMemory {
    fn new(kind: Kind, dtype: DType, len: usize) -> Self {
        Self { kind, dtype, len, uses: AtomicI32::new(0) }
    }

    /// The GPU it is on.
    pub fn device(&self) -> &Cuda {
        match &self.kind {
            Kind::Owned(buffer) => buffer.device(),
            Kind::Foreign(memory) => memory.device(),
        }
    }

    /// Device address.
    pub fn pointer(&self) -> u64 {
        match &self.kind {
            Kind::Owned(buffer) => buffer.pointer(),
            Kind::Foreign(memory) => memory.pointer(),
        }
    }

    fn view(&self) -> CudaSlice<'_> {
        match &self.kind {
            Kind::Owned(buffer) => buffer.slice(self.dtype),
            Kind::Foreign(memory) => memory.slice(),
        }
    }

    fn view_mut(&self) -> CudaSliceMut<'_> {
        match &self.kind {
            Kind::Owned(buffer) => buffer.slice_mut(self.dtype),
            Kind::Foreign(memory) => memory.slice_mut(),
        }
    }

    /// Opens for reading while an operation is enqueued.
    ///
    /// # Errors
    /// [`Code::InUse`] while it is open for writing.
    pub fn read(&self) -> Result<CudaReading<'_>> {
        self.enter(|uses| (uses >= 0).then_some(uses + 1), "written")?;
        Ok(CudaReading(self))
    }

    /// Opens for writing while an operation is enqueued.
    ///
    /// # Errors
    /// [`Code::InUse`] while it is open for reading or writing.
    pub fn write(&self) -> Result<CudaWriting<'_>> {
        self.enter(|uses| (uses == 0).then_some(-1), "used")?;
        Ok(CudaWriting(self))
    }

    /// Opens for writing for as long as the guard lives.
    ///
    /// # Errors
    /// [`Code::InUse`] while it is open for reading or writing.
    pub fn write_owned(self: &Arc<Self>) -> Result<OwnedCudaWriting> {
        std::mem::forget(self.write()?);
        Ok(OwnedCudaWriting(self.clone()))
    }

    fn enter(&self, next: impl Fn(i32) -> Option<i32>, how: &str) -> Result<()> {
        self.uses.fetch_update(Ordering::Acquire, Ordering::Relaxed, next).map(|_| ()).map_err(|_| {
            let (len, dtype) = (self.len, self.dtype);
            Error::new(
                Code::InUse,
                format!(
                    "a tensor of {len} {dtype} values is still being {how} by an operation that has not finished; wait \
                     for it, or pass distinct tensors for input and output"
                ),
            )
        })
    }
}

/// Device memory open for reading.
#[derive(Debug)]
pub struct CudaReading<'t>(&'t CudaMemory);

impl CudaReading<'_> {
    /// The elements.
    pub fn slice(&self) -> CudaSlice<'_> {
        self.0.view()
    }
}

impl Drop for CudaReading<'_> {
    fn drop(&mut self) {
        self.0.uses.fetch_sub(1, Ordering::Release);
    }
}

/// Device memory open for writing.
#[derive(Debug)]
pub struct CudaWriting<'t>(&'t CudaMemory);

impl CudaWriting<'_> {
    /// The elements.
    pub fn slice(&mut self) -> CudaSliceMut<'_> {
        self.0.view_mut()
    }
}

impl Drop for CudaWriting<'_> {
    fn drop(&mut self) {
        self.0.uses.store(0, Ordering::Release);
    }
}

/// Device memory open for writing for as long as a collective uses it.
#[derive(Debug)]
pub struct OwnedCudaWriting(Arc<CudaMemory>);

impl OwnedCudaWriting {
    /// The elements, to be read.
    pub fn input(&self) -> CudaSlice<'_> {
        self.0.view()
    }

    /// The elements.
    pub fn slice(&mut self) -> CudaSliceMut<'_> {
        self.0.view_mut()
    }

    /// The GPU they are on.
    pub fn device(&self) -> &Cuda {
        self.0.device()
    }
}

impl Drop for OwnedCudaWriting {
    fn drop(&mut self) {
        self.0.uses.store(0, Ordering::Release);
    }
}

/// What lives on one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryStats {
    /// Storages alive; on a GPU also messages and saved statistics.
    pub tensors: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Bytes taken from the system or the driver, kept ones included.
    pub reserved_bytes: usize,
    /// The most `bytes` has been; on the CPU not counted, and equal to `bytes`.
    pub peak_bytes: usize,
}

/// Counts of this process for `device`.
pub fn memory_stats(device: &Device) -> MemoryStats {
    match device {
        Device::Cpu => {
            let (bytes, reserved_bytes) = syncbn_cpu::buffer::memory_bytes();
            MemoryStats { tensors: LIVE.load(Ordering::Relaxed), bytes, reserved_bytes, peak_bytes: bytes }
        }
        Device::Cuda(cuda) => {
            let stats = cuda.memory_stats();
            MemoryStats {
                tensors: stats.buffers,
                bytes: stats.allocated_bytes,
                reserved_bytes: stats.reserved_bytes,
                peak_bytes: stats.peak_bytes,
            }
        }
    }
}
