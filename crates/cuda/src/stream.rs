//! Streams and events of one device.

use crate::allocator::relaxed;
use crate::device::Cuda;
use crate::error::check;
use cudarc::driver::{result, sys};
use syncbn_core::Result;

/// A queue of work on one device. Work of one stream runs in the order in which it was enqueued.
pub struct Stream {
    raw: sys::CUstream,
    owned: bool,
}

// SAFETY: the driver allows every stream call from every thread of the process, with the stream's context current.
unsafe impl Send for Stream {}
// SAFETY: as above; enqueuing from several threads is serialised by the driver.
unsafe impl Sync for Stream {}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stream({:?})", self.raw)
    }
}

impl Stream {
    /// A stream of its own, without implicit ordering against the legacy default stream. The context is current.
    pub(crate) fn new() -> Result<Self> {
        let raw = check("cuStreamCreate", result::stream::create(result::stream::StreamKind::NonBlocking))?;
        Ok(Self { raw, owned: true })
    }

    /// A stream whose kernels go first where both have some to run: what other ranks wait for.
    pub(crate) fn new_urgent() -> Result<Self> {
        let kind = result::stream::StreamKind::NonBlocking;
        let (_, greatest) = check("cuCtxGetStreamPriorityRange", result::stream::get_priority_range())?;
        let raw = check("cuStreamCreateWithPriority", result::stream::create_with_priority(kind, greatest))?;
        Ok(Self { raw, owned: true })
    }

    /// Another library's stream.
    ///
    /// # Safety
    /// `handle` is a CUstream of the device it is used with, or 0, 1, 2 for CUDA's default streams, and outlives this.
    pub(crate) unsafe fn foreign(handle: u64) -> Self {
        Self { raw: handle as sys::CUstream, owned: false }
    }

    /// The CUstream, for other CUDA libraries.
    pub fn handle(&self) -> u64 {
        self.raw as u64
    }

    pub(crate) fn raw(&self) -> sys::CUstream {
        self.raw
    }

    /// Later work of this stream waits for what `event` recorded.
    pub fn wait(&self, event: &Event) -> Result<()> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both are alive: they destroy themselves when dropped, and an event outlives its use in the driver.
        check("cuStreamWaitEvent", unsafe { result::stream::wait_event(self.raw, event.raw, flags) })
    }

    /// Blocks until everything enqueued so far is done.
    pub(crate) fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream is alive.
        check("cuStreamSynchronize", unsafe { result::stream::synchronize(self.raw) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.owned {
            // SAFETY: made by this type and destroyed once; the driver finishes what is enqueued. An error here (the
            // process is ending and the driver with it) has nobody to go to.
            let _ = relaxed(|| unsafe { result::stream::destroy(self.raw) });
        }
    }
}

/// A point in a stream's work.
pub struct Event {
    raw: sys::CUevent,
    device: Cuda,
}

// SAFETY: the driver allows event calls from every thread of the process.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl std::fmt::Debug for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Event({:?} on {})", self.raw, self.device)
    }
}

impl Event {
    /// An event that was never recorded: done, for whoever asks.
    pub(crate) fn new(device: &Cuda, timing: bool) -> Result<Self> {
        device.bind()?;
        let flags =
            if timing { sys::CUevent_flags::CU_EVENT_DEFAULT } else { sys::CUevent_flags::CU_EVENT_DISABLE_TIMING };
        let raw = check("cuEventCreate", result::event::create(flags))?;
        Ok(Self { raw, device: device.clone() })
    }

    /// Marks what is enqueued on `stream` so far.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        self.device.bind()?;
        // SAFETY: both are alive and of one context.
        check("cuEventRecord", unsafe { result::event::record(self.raw, stream.raw) })
    }

    /// Whether the marked work is done.
    ///
    /// # Errors
    /// [`syncbn_core::Code::Cuda`] if the device has failed.
    pub fn is_done(&self) -> Result<bool> {
        self.device.bind()?;
        // SAFETY: the event is alive.
        match unsafe { result::event::query(self.raw) } {
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            other => check("cuEventQuery", other).map(|()| true),
        }
    }

    /// Milliseconds from this event to `end`; both were made for timing and are done.
    pub fn milliseconds_to(&self, end: &Event) -> Result<f64> {
        self.device.bind()?;
        // SAFETY: both are alive and of one context.
        check("cuEventElapsedTime", unsafe { result::event::elapsed(self.raw, end.raw) }).map(f64::from)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: made by this type and destroyed once; the driver keeps what waits for it. An error here (the
            // process is ending and the driver with it) has nobody to go to.
            let _ = relaxed(|| unsafe { result::event::destroy(self.raw) });
        }
    }
}
