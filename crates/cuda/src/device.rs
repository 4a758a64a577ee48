//! One GPU: its context, its compute stream and its memory.

use crate::allocator::{Allocator, Block, ForeignOwner, MemoryStats, POISON, give_to_driver, poisons_freed, relaxed};
use crate::buffer::CudaBuffer;
use crate::counts::{AtomicCounts, Counts};
use crate::cublas::Cublas;
use crate::driver::{device_count, require};
use crate::error::check;
use crate::gate::{Gate, Pass};
use crate::module::Modules;
use crate::parked::Parked;
use crate::pinned::PinnedBuffer;
use crate::recording::Parties;
use crate::slice::{CudaSlice, CudaSliceMut};
use crate::stream::{Event, Stream};
use cudarc::driver::{result, sys};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use syncbn_core::{Code, DType, Device, Error, Result};

/// Device-side counters made at first; more are made when a layer has more channels.
const FIRST_COUNTERS: usize = 1 << 14;

/// What a GPU is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its index in this process.
    pub ordinal: usize,
    /// Its product name.
    pub name: String,
    /// The same for every process that uses the same GPU.
    pub uuid: [u8; 16],
    /// (major, minor).
    pub compute_capability: (i32, i32),
    /// Streaming multiprocessors.
    pub multiprocessors: i32,
    /// Its memory in bytes.
    pub total_memory: usize,
}

pub(crate) struct Inner {
    info: DeviceInfo,
    context: sys::CUcontext,
    pub(crate) stream: Stream,
    /// For the little that must not wait for the compute stream, nor be recorded with it.
    pub(crate) side_stream: Stream,
    allocator: Mutex<Allocator>,
    pub(crate) modules: Modules,
    pub(crate) counts: AtomicCounts,
    pub(crate) cublas: OnceLock<Option<Cublas>>,
    /// Address and number of the counters kernels use to find their last block.
    counters: Mutex<(u64, usize)>,
    /// Address of the status word; set when the device is opened.
    pub(crate) status: OnceLock<u64>,
    /// Words the status was copied to, for the next time.
    pub(crate) status_copies: Mutex<Vec<PinnedBuffer>>,
    /// Why results on this device cannot be trusted any more, by the one who said so.
    pub(crate) faults: Mutex<Vec<(u64, Error)>>,
    pub(crate) gate: Gate,
    /// Who takes part in the recording under way.
    pub(crate) parties: Parties,
    pub(crate) parked: Parked,
}

// SAFETY: the context is a handle the driver allows on every thread; everything else is Send and Sync by itself.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

/// A GPU. Clones are the same device; a process opens each once and keeps it open.
#[derive(Clone)]
pub struct Cuda(pub(crate) Arc<Inner>);

impl fmt::Debug for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cuda({})", self.ordinal())
    }
}

impl fmt::Display for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cuda:{}", self.ordinal())
    }
}

impl PartialEq for Cuda {
    fn eq(&self, other: &Self) -> bool {
        self.ordinal() == other.ordinal()
    }
}

impl Device for Cuda {
    type In<'a> = CudaSlice<'a>;
    type Out<'a> = CudaSliceMut<'a>;
    type Buffer = CudaBuffer;
}

static DEVICES: Mutex<Vec<Cuda>> = Mutex::new(Vec::new());

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The devices this process has opened.
pub(crate) fn open_devices() -> Vec<Cuda> {
    lock(&DEVICES).clone()
}

impl Cuda {
    /// The device of index `ordinal`, opened by the first call.
    ///
    /// # Errors
    /// [`Code::BackendUnavailable`] as [`require`]; [`Code::Device`] for an index out of range.
    pub fn new(ordinal: usize) -> Result<Self> {
        require()?;
        let mut devices = lock(&DEVICES);
        if let Some(device) = devices.iter().find(|device| device.ordinal() == ordinal) {
            return Ok(device.clone());
        }
        let count = device_count()?;
        if ordinal >= count {
            let (expected, got) = (format!("a device index below {count}"), format!("cuda:{ordinal}"));
            return Err(Error::expected(Code::Device, "cuda", expected, got));
        }
        let device = Self::open(ordinal)?;
        device.make_status()?;
        devices.push(device.clone());
        Ok(device)
    }

    fn open(ordinal: usize) -> Result<Self> {
        let handle = device_handle(ordinal)?;
        let info = read_info(ordinal, handle)?;
        // SAFETY: the handle is a device's; the context is retained for the life of the process.
        let context = check("cuDevicePrimaryCtxRetain", unsafe { result::primary_ctx::retain(handle) })?;
        // SAFETY: the context was just retained.
        check("cuCtxSetCurrent", unsafe { result::ctx::set_current(context) })?;
        Ok(Self(Arc::new(Inner {
            info,
            context,
            stream: Stream::new()?,
            side_stream: Stream::new_urgent()?,
            allocator: Mutex::default(),
            modules: Modules::default(),
            counts: AtomicCounts::default(),
            cublas: OnceLock::new(),
            counters: Mutex::default(),
            status: OnceLock::new(),
            status_copies: Mutex::default(),
            faults: Mutex::default(),
            gate: Gate::default(),
            parties: Parties::default(),
            parked: Parked::default(),
        })))
    }

    /// Its index in this process.
    pub fn ordinal(&self) -> usize {
        self.0.info.ordinal
    }

    /// What it is.
    pub fn info(&self) -> &DeviceInfo {
        &self.0.info
    }

    /// Its compute stream: everything that is not a collective runs there.
    pub fn stream(&self) -> &Stream {
        &self.0.stream
    }

    /// What it was asked to do so far.
    pub fn counts(&self) -> Counts {
        self.0.counts.read()
    }

    pub(crate) fn context(&self) -> sys::CUcontext {
        self.0.context
    }

    /// Makes the device's context this thread's.
    pub fn bind(&self) -> Result<()> {
        let current = check("cuCtxGetCurrent", result::ctx::get_current())?;
        if current == Some(self.0.context) {
            return Ok(());
        }
        // SAFETY: the primary context stays retained for the life of the process.
        check("cuCtxSetCurrent", unsafe { result::ctx::set_current(self.0.context) })
    }

    /// Makes the device's context this thread's, and keeps other threads from beginning to record for as long as the
    /// result lives; waits while one does. See [`Gate`].
    pub(crate) fn enter(&self) -> Result<Pass<'_>> {
        self.bind()?;
        self.0.gate.enter()
    }

    /// The graph this thread records on this device.
    pub(crate) fn recording(&self) -> Option<u64> {
        self.0.gate.recording()
    }

    /// A stream for communication, of high priority.
    pub fn new_stream(&self) -> Result<Stream> {
        self.bind()?;
        Stream::new_urgent()
    }

    /// An event; `timing` for [`Event::milliseconds_to`].
    pub fn new_event(&self, timing: bool) -> Result<Event> {
        Event::new(self, timing)
    }

    /// An event recorded on `stream` now.
    pub fn record(&self, stream: &Stream) -> Result<Event> {
        let event = self.new_event(false)?;
        let _pass = self.enter()?;
        event.record(stream)?;
        Ok(event)
    }

    /// `after` waits for what is enqueued on `before` so far.
    pub fn order(&self, before: &Stream, after: &Stream) -> Result<()> {
        let event = self.new_event(false)?;
        let _pass = self.enter()?;
        event.record(before)?;
        after.wait(&event)
    }

    /// Later work of the compute stream waits for what `event` marks.
    pub fn wait_in_stream(&self, event: &Event) -> Result<()> {
        let _pass = self.enter()?;
        self.stream().wait(event)
    }

    /// Uninitialised memory of `bytes` bytes: for messages, statistics and scratch.
    pub fn buffer(&self, bytes: usize) -> Result<CudaBuffer> {
        // What the bytes are is not known here; half-precision numbers are named for nobody.
        CudaBuffer::for_tensor(self, DType::I32, &[bytes.div_ceil(4)])
    }

    /// Uninitialised memory for a tensor.
    pub fn tensor_buffer(&self, dtype: DType, shape: &[usize]) -> Result<CudaBuffer> {
        CudaBuffer::for_tensor(self, dtype, shape)
    }

    pub(crate) fn allocate(&self, bytes: usize, dtype: DType, shape: &[usize]) -> Result<Block> {
        let taken = self.take_memory(bytes, dtype, shape);
        match taken {
            Err(error) if error.code() == Code::OutOfMemory && !self.is_capturing() => {
                if self.release_kept()? {
                    self.take_memory(bytes, dtype, shape)
                } else {
                    Err(error)
                }
            }
            taken => taken,
        }
    }

    fn take_memory(&self, bytes: usize, dtype: DType, shape: &[usize]) -> Result<Block> {
        let _pass = self.enter()?;
        let (name, recording) = (self.to_string(), self.recording());
        lock(&self.0.allocator).allocate(&name, bytes, (dtype, shape), recording)
    }

    pub(crate) fn release(&self, block: Block) {
        // Where the context cannot be made current, the process is ending and its memory with it; where another thread
        // has been recording all the time, the block is lost for good.
        let Ok(_pass) = self.enter() else { return };
        let recording = self.recording();
        let mut allocator = lock(&self.0.allocator);
        if poisons_freed() && recording.is_none() && !allocator.is_used_by_graphs(block) {
            self.poison(block);
        }
        allocator.release(block, recording, || self.0.stream.synchronize());
    }

    /// Fills memory that is about to be free, in stream order. The caller holds a pass.
    fn poison(&self, block: Block) {
        // SAFETY: the block is this device's and nothing uses it after what is enqueued so far. Where the driver fails,
        // it fails the next call too.
        let _ = unsafe { result::memset_d8_async(block.pointer, POISON, block.capacity(), self.0.stream.raw()) };
    }

    /// If this thread records, the graph will use the block at `pointer` at every replay.
    pub(crate) fn note_use(&self, pointer: u64) {
        if let Some(graph) = self.recording() {
            lock(&self.0.allocator).note_use(graph, pointer);
        }
    }

    /// The same for memory that `owner` keeps alive.
    pub(crate) fn note_foreign_use(&self, owner: &ForeignOwner) {
        if let Some(graph) = self.recording() {
            lock(&self.0.allocator).note_foreign_use(graph, owner);
        }
    }

    pub(crate) fn allocator(&self) -> MutexGuard<'_, Allocator> {
        lock(&self.0.allocator)
    }

    /// Its memory.
    pub fn memory_stats(&self) -> MemoryStats {
        lock(&self.0.allocator).stats()
    }

    /// Free and total bytes of the GPU, other processes included.
    pub fn memory_info(&self) -> Result<(usize, usize)> {
        self.bind()?;
        check("cuMemGetInfo", result::mem_get_info())
    }

    /// Gives freed memory back to the driver; whether there was any. Waits for the device, with nothing locked: what the
    /// device waits for may need other threads, and they memory.
    pub(crate) fn release_kept(&self) -> Result<bool> {
        let blocks = lock(&self.0.allocator).take_kept();
        if blocks.is_empty() {
            return Ok(false);
        }
        let waited = self.record(self.stream()).and_then(|event| self.wait_for(&event, &|| Ok(())));
        if let Err(error) = waited {
            lock(&self.0.allocator).keep(blocks);
            return Err(error);
        }
        for block in blocks {
            if give_to_driver(block) {
                lock(&self.0.allocator).gave_back(block);
            }
        }
        Ok(true)
    }

    /// Whether this device reads the memory of `other` directly.
    pub fn can_access_peer(&self, other: &Cuda) -> Result<bool> {
        let (mut can, a, b) = (0, device_handle(self.ordinal())?, device_handle(other.ordinal())?);
        // SAFETY: both are device handles and the pointer is to a live integer.
        crate::error::call("cuDeviceCanAccessPeer", unsafe { sys::cuDeviceCanAccessPeer(&mut can, a, b) })?;
        Ok(can != 0)
    }

    /// Device address of at least `n` u32 counters that are 0 between kernels: a kernel that counts on them leaves them
    /// at 0. Kernels of one stream share them, since they run one after the other.
    pub(crate) fn counters(&self, n: usize) -> Result<u64> {
        let _pass = self.enter()?;
        let mut counters = lock(&self.0.counters);
        if counters.1 < n {
            let n = n.max(FIRST_COUNTERS).next_power_of_two();
            // The old ones stay: recorded graphs may use them.
            *counters = (self.permanent_zeros(n * size_of::<u32>())?, n);
        }
        Ok(counters.0)
    }

    /// Sets the counters back to 0, in stream order, after work on the device was cut short.
    pub(crate) fn reset_counters(&self) -> Result<()> {
        let _pass = self.enter()?;
        let (address, n) = *lock(&self.0.counters);
        if n == 0 {
            return Ok(());
        }
        // SAFETY: the counters are this device's, that many, and never freed.
        check("cuMemsetD8Async", unsafe {
            result::memset_d8_async(address, 0, n * size_of::<u32>(), self.0.stream.raw())
        })
    }

    /// Zeroed memory that is never freed. It is zero at once, in a recording too, which does not take part. The caller
    /// holds a pass, or is the first to use the device.
    pub(crate) fn permanent_zeros(&self, bytes: usize) -> Result<u64> {
        let address = lock(&self.0.allocator).take_permanent(&self.to_string(), bytes)?;
        relaxed(|| {
            // SAFETY: the memory is fresh and `bytes` bytes long.
            check("cuMemsetD8Async", unsafe { result::memset_d8_async(address, 0, bytes, self.0.side_stream.raw()) })?;
            self.0.side_stream.synchronize()
        })?;
        Ok(address)
    }
}

fn device_handle(ordinal: usize) -> Result<sys::CUdevice> {
    check("cuDeviceGet", result::device::get(i32::try_from(ordinal).unwrap_or(i32::MAX)))
}

fn read_info(ordinal: usize, handle: sys::CUdevice) -> Result<DeviceInfo> {
    use sys::CUdevice_attribute as Attribute;
    let attribute = |which: Attribute| {
        // SAFETY: the handle is a device's.
        check("cuDeviceGetAttribute", unsafe { result::device::get_attribute(handle, which) })
    };
    let uuid = check("cuDeviceGetUuid", result::device::get_uuid(handle))?;
    Ok(DeviceInfo {
        ordinal,
        name: check("cuDeviceGetName", result::device::get_name(handle))?,
        uuid: uuid.bytes.map(|byte| byte as u8),
        compute_capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        // SAFETY: the handle is a device's.
        total_memory: check("cuDeviceTotalMem", unsafe { result::device::total_mem(handle) })?,
    })
}
