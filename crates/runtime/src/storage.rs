//! Memory that tensors share, and the version that tells whether it was written since.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use syncbn_core::{DType, Result};
use syncbn_cpu::HostBuffer;
use syncbn_cpu::buffer::{OwnedWriteGuard, ReadGuard, WriteGuard};

static LIVE: AtomicUsize = AtomicUsize::new(0);

/// The memory of one or more tensors. In-place operations that autograd must notice bump the version.
#[derive(Debug)]
pub struct Storage {
    memory: Arc<HostBuffer>,
    version: AtomicU32,
}

impl Storage {
    /// Memory with unspecified contents.
    pub fn new(dtype: DType, numel: usize) -> Result<Self> {
        let memory = Arc::new(HostBuffer::new(dtype, numel)?);
        LIVE.fetch_add(1, Ordering::Relaxed);
        Ok(Self { memory, version: AtomicU32::new(0) })
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.memory.dtype()
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.memory.bytes()
    }

    /// Opens for reading.
    pub fn read(&self) -> Result<ReadGuard<'_>> {
        self.memory.read()
    }

    /// Opens for writing.
    pub fn write(&self) -> Result<WriteGuard<'_>> {
        self.memory.write()
    }

    /// Opens for writing on whichever thread, until the guard is dropped.
    pub fn write_owned(&self) -> Result<OwnedWriteGuard> {
        self.memory.clone().write_owned()
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

impl Drop for Storage {
    fn drop(&mut self) {
        LIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What lives on the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryStats {
    /// Storages alive.
    pub tensors: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Bytes taken from the system, kept ones included.
    pub reserved_bytes: usize,
}

/// Counts of this process.
pub fn memory_stats() -> MemoryStats {
    let (bytes, reserved_bytes) = syncbn_cpu::buffer::memory_bytes();
    MemoryStats { tensors: LIVE.load(Ordering::Relaxed), bytes, reserved_bytes }
}
