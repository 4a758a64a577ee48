//! Which device memory is in use, and what is kept for the next use.
//!
//! All tensors of a device are used on its compute stream, or on streams joined to it by events, so a freed block can
//! be handed out again at once: the next user's work is enqueued after the last one's. Taking memory from the driver
//! and giving it back would wait for the device each time.
//!
//! A recorded graph goes on using, each time it is replayed, every block that was allocated or used while it was
//! recorded. None of them is handed out again before the graph is dropped.

use crate::error::describe;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUresult};
use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use syncbn_core::{Code, DType, Error, Result};

/// Every block starts at a multiple of this, as the driver's own memory does.
const ALIGNMENT: usize = 512;
/// Live tensors an out-of-memory error names.
const NAMED: usize = 5;

/// What freed memory is filled with if that is asked for: NaN in every floating-point type.
pub(crate) const POISON: u8 = 0xFF;

static KEEP_FREED: AtomicBool = AtomicBool::new(true);
static POISON_FREED: AtomicBool = AtomicBool::new(false);

/// Whether freed memory is kept for the next tensor (the default). Without it every tensor is an allocation of its own
/// and of its exact size, so that compute-sanitizer sees an access past its end; and every free waits for the device.
pub fn set_keep_freed(keep: bool) {
    KEEP_FREED.store(keep, Ordering::Relaxed);
}

/// Whether freed memory is filled with NaN, in stream order (by default not): what reads memory that it has not written,
/// or still reads memory that was freed, then shows in the results. For tests.
pub fn set_poison_freed(poison: bool) {
    POISON_FREED.store(poison, Ordering::Relaxed);
}

pub(crate) fn poisons_freed() -> bool {
    POISON_FREED.load(Ordering::Relaxed)
}

/// Memory of one device, or of all of it that is in no live tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// Buffers alive.
    pub buffers: usize,
    /// Their bytes.
    pub allocated_bytes: usize,
    /// Bytes taken from the driver, kept ones included.
    pub reserved_bytes: usize,
    /// The most `allocated_bytes` has been.
    pub peak_bytes: usize,
}

/// Gives the freed memory of every open device back to the driver.
pub fn release_kept() -> Result<()> {
    crate::device::open_devices().iter().try_for_each(|device| device.release_kept().map(drop))
}

/// A piece of device memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    pub(crate) pointer: u64,
    capacity: usize,
}

impl Block {
    /// Its bytes, of which a tensor may use fewer.
    pub(crate) fn capacity(self) -> usize {
        self.capacity
    }
}

/// What is known of a live block.
struct Live {
    bytes: usize,
    dtype: DType,
    shape: Box<[usize]>,
}

/// Freed blocks by capacity.
#[derive(Default)]
struct Free(BTreeMap<usize, Vec<u64>>);

impl Free {
    fn take(&mut self, capacity: usize) -> Option<Block> {
        let pointer = self.0.get_mut(&capacity)?.pop()?;
        Some(Block { pointer, capacity })
    }

    fn put(&mut self, block: Block) {
        self.0.entry(block.capacity).or_default().push(block.pointer);
    }

    fn drain(&mut self) -> impl Iterator<Item = Block> {
        std::mem::take(&mut self.0)
            .into_iter()
            .flat_map(|(capacity, pointers)| pointers.into_iter().map(move |pointer| Block { pointer, capacity }))
    }
}

/// What one graph needs beside blocks that live or are kept.
#[derive(Default)]
struct GraphMemory {
    /// Allocated and freed while recording, for the next tensor of the same recording.
    free: Free,
    /// What keeps memory of other libraries alive.
    owners: Vec<ForeignOwner>,
}

/// What keeps memory of another library alive.
pub(crate) type ForeignOwner = Arc<dyn Any + Send + Sync>;

/// The graphs that use a block.
#[derive(Default)]
struct Users {
    /// The one in whose recording it was allocated: nothing before that recording was in it.
    born: Option<u64>,
    graphs: Vec<u64>,
}

/// The memory of one device. The caller has made its context current.
#[derive(Default)]
pub(crate) struct Allocator {
    free: Free,
    live: HashMap<u64, Live>,
    graphs: HashMap<u64, GraphMemory>,
    /// The graphs that use a block, live or not.
    users: HashMap<u64, Users>,
    /// Blocks that only graphs still use.
    kept: HashMap<u64, Block>,
    stats: MemoryStats,
}

/// Sizes are rounded up to eight classes for each power of two, so that at most an eighth is unused.
fn size_class(bytes: usize) -> Option<usize> {
    let bytes = bytes.max(1);
    if !KEEP_FREED.load(Ordering::Relaxed) {
        return Some(bytes);
    }
    let step = (bytes.checked_next_power_of_two()? / 16).max(ALIGNMENT);
    bytes.checked_next_multiple_of(step)
}

impl Allocator {
    pub(crate) fn stats(&self) -> MemoryStats {
        MemoryStats { buffers: self.live.len(), ..self.stats }
    }

    /// Memory for `bytes` bytes, in the recording of graph `recording` if there is one.
    pub(crate) fn allocate(
        &mut self,
        device: &str,
        bytes: usize,
        (dtype, shape): (DType, &[usize]),
        recording: Option<u64>,
    ) -> Result<Block> {
        let block = match size_class(bytes) {
            Some(capacity) => match self.take_free(capacity, recording) {
                Some(block) => block,
                None => self.reserve(device, capacity)?,
            },
            None => return Err(self.out_of_memory(device, bytes, "more than any memory holds")),
        };
        if let Some(graph) = recording {
            self.users.entry(block.pointer).or_insert_with(|| Users { born: Some(graph), graphs: vec![graph] });
        }
        self.live.insert(block.pointer, Live { bytes, dtype, shape: shape.into() });
        self.stats.allocated_bytes += bytes;
        self.stats.peak_bytes = self.stats.peak_bytes.max(self.stats.allocated_bytes);
        Ok(block)
    }

    /// Memory that nothing has used and that is never given back.
    pub(crate) fn take_permanent(&mut self, device: &str, bytes: usize) -> Result<u64> {
        self.reserve(device, bytes.next_multiple_of(ALIGNMENT)).map(|block| block.pointer)
    }

    fn take_free(&mut self, capacity: usize, recording: Option<u64>) -> Option<Block> {
        let graph = recording.and_then(|graph| self.graphs.get_mut(&graph));
        graph.and_then(|graph| graph.free.take(capacity)).or_else(|| self.free.take(capacity))
    }

    fn reserve(&mut self, device: &str, capacity: usize) -> Result<Block> {
        let pointer = take_from_driver(capacity).map_err(|error| match error.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => self.out_of_memory(device, capacity, "the device has no more"),
            _ => Error::new(Code::Cuda, format!("cuMemAlloc: {}", describe(error))),
        })?;
        self.stats.reserved_bytes += capacity;
        Ok(Block { pointer, capacity })
    }

    #[cold]
    fn out_of_memory(&self, device: &str, bytes: usize, why: &str) -> Error {
        let mut live: Vec<&Live> = self.live.values().collect();
        live.sort_by_key(|live| std::cmp::Reverse(live.bytes));
        let largest: Vec<String> = live
            .iter()
            .take(NAMED)
            .map(|live| format!("{} {:?} of {} bytes", live.dtype, live.shape, live.bytes))
            .collect();
        let largest = if largest.is_empty() { "none".into() } else { largest.join(", ") };
        Error::new(
            Code::OutOfMemory,
            format!(
                "{device}: cannot allocate {bytes} bytes: {why}; {} bytes in {} live tensors, {} bytes reserved; the \
                 largest live tensors: {largest}",
                self.stats.allocated_bytes,
                self.live.len(),
                self.stats.reserved_bytes
            ),
        )
    }

    /// Takes a block back, in the recording of graph `recording` if there is one. `wait` waits for the device, where
    /// memory goes back to the driver.
    pub(crate) fn release(&mut self, block: Block, recording: Option<u64>, wait: impl Fn() -> Result<()>) {
        if let Some(live) = self.live.remove(&block.pointer) {
            self.stats.allocated_bytes -= live.bytes;
        }
        if let Some(users) = self.users.get(&block.pointer) {
            // What was in a block before the recording must be found there at every replay; what was made in it will be.
            let alone = users.graphs.len() == 1 && users.born.is_some() && users.born == recording;
            match recording.filter(|_| alone).and_then(|graph| self.graphs.get_mut(&graph)) {
                Some(graph) => graph.free.put(block),
                None => drop(self.kept.insert(block.pointer, block)),
            }
        } else if KEEP_FREED.load(Ordering::Relaxed) || recording.is_some() || wait().is_err() || !give_to_driver(block)
        {
            // After a failed wait the device is lost, and so is its memory.
            self.free.put(block);
        } else {
            self.gave_back(block);
        }
    }

    /// Takes the freed blocks out, for the driver or to be put back.
    pub(crate) fn take_kept(&mut self) -> Vec<Block> {
        self.free.drain().collect()
    }

    /// Puts freed blocks back.
    pub(crate) fn keep(&mut self, blocks: Vec<Block>) {
        blocks.into_iter().for_each(|block| self.free.put(block));
    }

    /// The driver has this block again.
    pub(crate) fn gave_back(&mut self, block: Block) {
        self.stats.reserved_bytes -= block.capacity;
    }

    /// Whether a graph goes on using the block after it was freed.
    pub(crate) fn is_used_by_graphs(&self, block: Block) -> bool {
        self.users.contains_key(&block.pointer)
    }

    /// A recording begins.
    pub(crate) fn start_recording(&mut self, graph: u64) {
        self.graphs.insert(graph, GraphMemory::default());
    }

    /// The work that graph `graph` records uses the block at `pointer`.
    pub(crate) fn note_use(&mut self, graph: u64, pointer: u64) {
        let users = self.users.entry(pointer).or_default();
        if !users.graphs.contains(&graph) {
            users.graphs.push(graph);
        }
    }

    /// The work that graph `graph` records uses memory that `owner` keeps alive.
    pub(crate) fn note_foreign_use(&mut self, graph: u64, owner: &ForeignOwner) {
        if let Some(GraphMemory { owners, .. }) = self.graphs.get_mut(&graph)
            && !owners.iter().any(|known| Arc::ptr_eq(known, owner))
        {
            owners.push(owner.clone());
        }
    }

    /// The graph will not be replayed again. Returns what kept other libraries' memory alive for it, to be let go of
    /// when its last replay is done.
    pub(crate) fn drop_graph(&mut self, graph: u64) -> Vec<ForeignOwner> {
        let Self { users, kept, free, .. } = self;
        users.retain(|pointer, users| {
            users.graphs.retain(|user| *user != graph);
            if users.graphs.is_empty() {
                kept.remove(pointer).into_iter().for_each(|block| free.put(block));
            }
            !users.graphs.is_empty()
        });
        let Some(mut memory) = self.graphs.remove(&graph) else { return Vec::new() };
        memory.free.drain().for_each(|block| self.free.put(block));
        memory.owners
    }
}

/// cuMemFree of a block that the device has finished with; whether the driver took it.
pub(crate) fn give_to_driver(block: Block) -> bool {
    // SAFETY: the block came from cuMemAlloc, is not live, and the device has finished all work with it.
    unsafe { result::free_sync(block.pointer) }.is_ok()
}

/// cuMemAlloc, which a thread that is recording may only call after saying that it knows what it does: memory taken
/// meanwhile is not part of the recording.
fn take_from_driver(bytes: usize) -> Result<u64, DriverError> {
    relaxed(|| {
        // SAFETY: the caller has made the device's context current; the memory is freed by give_to_driver.
        unsafe { result::malloc_sync(bytes) }
    })
}

/// Runs `call`, which is no part of a recording, in a thread that may be recording.
pub(crate) fn relaxed<T>(call: impl FnOnce() -> T) -> T {
    let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
    // SAFETY: the pointer is to a live mode, which the call exchanges for this thread's.
    let exchanged = unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) } == CUresult::CUDA_SUCCESS;
    let outcome = call();
    if exchanged {
        // SAFETY: as above; puts the thread's own mode back. It cannot fail where the first exchange did not.
        let _ = unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) };
    }
    outcome
}
