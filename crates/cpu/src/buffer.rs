//! Owned host memory: aligned, pooled, and checked at run time against writes that overlap other uses.
//!
//! A fresh 100 MB output costs more in page faults than batch norm itself, so freed memory is kept and handed out
//! again. A [`HostBuffer`] is shared between threads (a gradient bucket is reduced while backward goes on), so reading
//! and writing go through guards: many readers or one writer, and a conflict is [`Code::InUse`] instead of a race.

use crate::slice::{HostSlice, HostSliceMut};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use syncbn_core::{Code, DType, Error, Result};

/// Every allocation starts at a multiple of this, enough for any vector and a cache line.
pub const ALIGNMENT: usize = 64;
/// Freed memory kept for reuse, at most this many bytes in all.
const KEPT_BYTES: usize = 1 << 30;

/// Freed blocks by size class.
#[derive(Default)]
struct FreeBlocks {
    by_size: HashMap<usize, FreeClass>,
    bytes: usize,
    /// Counts uses, to tell which class was used last.
    clock: u64,
}

/// Freed blocks of one size.
#[derive(Default)]
struct FreeClass {
    blocks: Vec<Block>,
    used: u64,
}

impl FreeBlocks {
    /// The blocks of `capacity` bytes, which are in use from now on.
    fn class(&mut self, capacity: usize) -> &mut FreeClass {
        self.clock += 1;
        let class = self.by_size.entry(capacity).or_default();
        class.used = self.clock;
        class
    }

    fn take(&mut self, capacity: usize) -> Option<Block> {
        let block = self.class(capacity).blocks.pop()?;
        self.bytes -= capacity;
        Some(block)
    }

    /// Keeps `block`, and at most `limit` bytes in all: blocks of the sizes that were used least recently go.
    fn keep(&mut self, block: Block, limit: usize) {
        let capacity = block.capacity;
        self.bytes += capacity;
        self.class(capacity).blocks.push(block);
        while self.bytes > limit {
            let (&oldest, _) = self.by_size.iter().min_by_key(|(_, class)| class.used).expect("there is a block");
            match self.by_size.get_mut(&oldest).and_then(|class| class.blocks.pop()) {
                Some(_) => self.bytes -= oldest,
                None => drop(self.by_size.remove(&oldest)),
            }
        }
    }
}

static FREE: LazyLock<Mutex<FreeBlocks>> = LazyLock::new(Mutex::default);
static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
static RESERVED: AtomicUsize = AtomicUsize::new(0);

/// One allocation of the system's, initialised (zeros, or what its last owner left).
struct Block {
    pointer: NonNull<u8>,
    capacity: usize,
}

// SAFETY: a Block is plain memory with one owner; nothing in it depends on a thread.
unsafe impl Send for Block {}

impl Block {
    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, ALIGNMENT).expect("capacity was checked when the block was made")
    }

    fn new(capacity: usize) -> Option<Self> {
        Layout::from_size_align(capacity, ALIGNMENT).ok()?;
        // SAFETY: size classes are never zero, so neither is the layout's size.
        let pointer = NonNull::new(unsafe { alloc_zeroed(Self::layout(capacity)) })?;
        RESERVED.fetch_add(capacity, Ordering::Relaxed);
        Some(Self { pointer, capacity })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        RESERVED.fetch_sub(self.capacity, Ordering::Relaxed);
        // SAFETY: the pointer came from alloc_zeroed with this very layout, and a Block is dropped once.
        unsafe { dealloc(self.pointer.as_ptr(), Self::layout(self.capacity)) }
    }
}

/// The size a request is rounded up to: four classes for each power of two, so at most a quarter is unused.
fn size_class(bytes: usize) -> usize {
    let bytes = bytes.max(256);
    let step = (bytes.next_power_of_two() / 8).max(64);
    bytes.div_ceil(step) * step
}

fn take_block(bytes: usize) -> Result<Block> {
    let capacity = size_class(bytes);
    let kept = FREE.lock().unwrap_or_else(PoisonError::into_inner).take(capacity);
    kept.or_else(|| Block::new(capacity))
        .or_else(|| {
            release_kept();
            Block::new(capacity)
        })
        .ok_or_else(|| {
            Error::new(
                Code::OutOfMemory,
                format!(
                    "cpu: cannot allocate {bytes} bytes; {} bytes in live tensors, {} bytes reserved",
                    ALLOCATED.load(Ordering::Relaxed),
                    RESERVED.load(Ordering::Relaxed)
                ),
            )
        })
}

fn give_block(block: Block) {
    FREE.lock().unwrap_or_else(PoisonError::into_inner).keep(block, KEPT_BYTES);
}

/// Gives the freed memory kept for reuse back to the system.
pub fn release_kept() {
    *FREE.lock().unwrap_or_else(PoisonError::into_inner) = FreeBlocks::default();
}

/// (bytes in live buffers, bytes taken from the system) of this process.
pub fn memory_bytes() -> (usize, usize) {
    (ALLOCATED.load(Ordering::Relaxed), RESERVED.load(Ordering::Relaxed))
}

/// Memory for `len` elements of one type.
pub struct HostBuffer {
    block: Option<Block>,
    dtype: DType,
    len: usize,
    /// Number of readers, or −1 for a writer.
    uses: AtomicI32,
}

// SAFETY: the memory is reached only through guards, which admit many readers or one writer over all threads.
unsafe impl Sync for HostBuffer {}

impl std::fmt::Debug for HostBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HostBuffer({} × {})", self.len, self.dtype)
    }
}

impl HostBuffer {
    /// Memory with unspecified, but valid, contents.
    ///
    /// # Errors
    /// [`Code::OutOfMemory`] if the system has none.
    pub fn new(dtype: DType, len: usize) -> Result<Self> {
        let bytes =
            len.checked_mul(dtype.size()).filter(|&bytes| bytes <= isize::MAX as usize / 2).ok_or_else(|| {
                Error::new(Code::OutOfMemory, format!("cpu: {len} elements of {dtype} exceed the address space"))
            })?;
        let block = take_block(bytes)?;
        ALLOCATED.fetch_add(bytes, Ordering::Relaxed);
        Ok(Self { block: Some(block), dtype, len, uses: AtomicI32::new(0) })
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.len * self.dtype.size()
    }

    /// Opens the memory for reading.
    ///
    /// # Errors
    /// [`Code::InUse`] while it is open for writing.
    pub fn read(&self) -> Result<ReadGuard<'_>> {
        self.enter(|uses| (uses >= 0).then_some(uses + 1), "written")?;
        Ok(ReadGuard(self))
    }

    /// Opens the memory for writing.
    ///
    /// # Errors
    /// [`Code::InUse`] while it is open for reading or writing.
    pub fn write(&self) -> Result<WriteGuard<'_>> {
        self.enter(|uses| (uses == 0).then_some(-1), "used")?;
        Ok(WriteGuard(self))
    }

    /// Opens the memory for writing for as long as the guard lives, on whichever thread.
    ///
    /// # Errors
    /// [`Code::InUse`] while it is open for reading or writing.
    pub fn write_owned(self: Arc<Self>) -> Result<OwnedWriteGuard> {
        std::mem::forget(self.write()?);
        Ok(OwnedWriteGuard(self))
    }

    fn enter(&self, next: impl Fn(i32) -> Option<i32>, how: &str) -> Result<()> {
        self.uses.fetch_update(Ordering::Acquire, Ordering::Relaxed, next).map(|_| ()).map_err(|_| {
            Error::new(
                Code::InUse,
                format!(
                    "a tensor of {} {} values is still being {how} by an operation that has not finished; \
                     wait for it, or pass distinct tensors for input and output",
                    self.len, self.dtype
                ),
            )
        })
    }

    fn pointer(&self) -> *mut u8 {
        self.block.as_ref().expect("present until drop").pointer.as_ptr()
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        ALLOCATED.fetch_sub(self.bytes(), Ordering::Relaxed);
        if let Some(block) = self.block.take() {
            give_block(block);
        }
    }
}

/// Read access to a [`HostBuffer`].
#[derive(Debug)]
pub struct ReadGuard<'a>(&'a HostBuffer);

/// Write access to a [`HostBuffer`].
#[derive(Debug)]
pub struct WriteGuard<'a>(&'a HostBuffer);

macro_rules! by_dtype {
    ($dtype:expr, $pointer:expr, $len:expr, $from:path, $slice:ident) => {
        match $dtype {
            DType::F32 => $slice::F32($from($pointer.cast(), $len)),
            DType::F64 => $slice::F64($from($pointer.cast(), $len)),
            DType::F16 => $slice::F16($from($pointer.cast(), $len)),
            DType::BF16 => $slice::BF16($from($pointer.cast(), $len)),
            DType::I32 => $slice::I32($from($pointer.cast(), $len)),
            DType::I64 => $slice::I64($from($pointer.cast(), $len)),
        }
    };
}

impl ReadGuard<'_> {
    /// The elements.
    pub fn slice(&self) -> HostSlice<'_> {
        // SAFETY: the block holds `len` initialised, aligned elements, every bit pattern of which is valid, and the guard
        // keeps writers out.
        unsafe { by_dtype!(self.0.dtype, self.0.pointer(), self.0.len, std::slice::from_raw_parts, HostSlice) }
    }

    /// The elements as bytes, native order.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: as in `slice`; any memory may be read as bytes.
        unsafe { std::slice::from_raw_parts(self.0.pointer(), self.0.bytes()) }
    }
}

impl WriteGuard<'_> {
    /// The elements.
    pub fn slice(&mut self) -> HostSliceMut<'_> {
        // SAFETY: the block holds `len` initialised, aligned elements, every bit pattern of which is valid, and the guard
        // keeps everybody else out.
        unsafe { by_dtype!(self.0.dtype, self.0.pointer(), self.0.len, std::slice::from_raw_parts_mut, HostSliceMut) }
    }

    /// The elements as bytes, native order; every bit pattern is a valid element.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: as in `slice`.
        unsafe { std::slice::from_raw_parts_mut(self.0.pointer(), self.0.bytes()) }
    }
}

impl Drop for ReadGuard<'_> {
    fn drop(&mut self) {
        self.0.uses.fetch_sub(1, Ordering::Release);
    }
}

impl Drop for WriteGuard<'_> {
    fn drop(&mut self) {
        self.0.uses.store(0, Ordering::Release);
    }
}

/// Write access to a [`HostBuffer`] that keeps it alive.
#[derive(Debug)]
pub struct OwnedWriteGuard(Arc<HostBuffer>);

impl OwnedWriteGuard {
    /// The elements as bytes, native order; every bit pattern is a valid element.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: as in `WriteGuard::slice`: this guard is the only use.
        unsafe { std::slice::from_raw_parts_mut(self.0.pointer(), self.0.bytes()) }
    }
}

impl Drop for OwnedWriteGuard {
    fn drop(&mut self) {
        self.0.uses.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_classes_waste_at_most_a_quarter() {
        for bytes in (1..5000).chain([123_457, 99_999_999]) {
            let class = size_class(bytes);
            assert!(class >= bytes && class <= bytes.max(256) + bytes / 4 + 64, "{bytes} -> {class}");
            assert_eq!(size_class(class), class);
        }
    }

    #[test]
    fn what_was_used_least_recently_makes_room() {
        let (mut free, limit) = (FreeBlocks::default(), 4096);
        let mut keep = |capacity: usize| {
            free.keep(Block::new(capacity).unwrap(), limit);
            let mut kept: Vec<_> = free.by_size.iter().map(|(&size, class)| (size, class.blocks.len())).collect();
            kept.sort_unstable();
            (kept.into_iter().filter(|&(_, blocks)| blocks > 0).collect::<Vec<_>>(), free.bytes)
        };
        assert_eq!(keep(2048), (vec![(2048, 1)], 2048));
        assert_eq!(keep(1024), (vec![(1024, 1), (2048, 1)], 3072));
        assert_eq!(keep(3072), (vec![(1024, 1), (3072, 1)], 4096));
        assert_eq!(keep(1024), (vec![(1024, 2)], 2048));
        assert_eq!(keep(8192), (vec![], 0));
        assert!(free.take(1024).is_none());
    }

    #[test]
    fn many_readers_or_one_writer() {
        let buffer = HostBuffer::new(DType::F32, 3).unwrap();
        {
            let (_a, _b) = (buffer.read().unwrap(), buffer.read().unwrap());
            assert_eq!(buffer.write().unwrap_err().code(), Code::InUse);
        }
        {
            let _writer = buffer.write().unwrap();
            assert_eq!(buffer.read().unwrap_err().code(), Code::InUse);
        }
        assert!(buffer.write().is_ok());
        let buffer = Arc::new(buffer);
        let owned = buffer.clone().write_owned().unwrap();
        assert_eq!(buffer.read().unwrap_err().code(), Code::InUse);
        drop(owned);
        assert!(buffer.read().is_ok());
    }

    #[test]
    fn an_absurd_size_is_a_typed_error() {
        assert_eq!(HostBuffer::new(DType::F64, usize::MAX / 4).unwrap_err().code(), Code::OutOfMemory);
    }

    #[test]
    fn memory_is_aligned_and_empty_buffers_exist() {
        for len in [0, 1, 1000] {
            let buffer = HostBuffer::new(DType::F64, len).unwrap();
            let guard = buffer.read().unwrap();
            assert_eq!(guard.bytes().as_ptr() as usize % ALIGNMENT, 0);
            assert_eq!(guard.slice().len(), len);
        }
    }
}
