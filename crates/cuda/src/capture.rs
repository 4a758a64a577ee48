//! Recording a step's work once and replaying it: CUDA graphs.
//!
//! While a device records, calls enqueue into the graph instead of running. What would need the host at a replay, a
//! wait or a copy, is refused with [`Code::Capture`]. Work on other streams joins the graph through events.

use crate::allocator::relaxed;
use crate::device::Cuda;
use crate::error::check;
use cudarc::driver::{result, sys};
use std::sync::atomic::{AtomicU64, Ordering};
use syncbn_core::{Code, Error, Result};

static GRAPHS: AtomicU64 = AtomicU64::new(0);

/// Recorded work with the memory it uses. Dropping it gives the memory back.
pub struct Graph {
    device: Cuda,
    executable: sys::CUgraphExec,
    id: u64,
}

// SAFETY: the driver allows graph calls from every thread, one at a time, which `&self` methods on one stream give.
unsafe impl Send for Graph {}
// SAFETY: launches of one graph are serialised by the driver.
unsafe impl Sync for Graph {}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Graph({} on {})", self.id, self.device)
    }
}

impl Cuda {
    /// Starts recording what this thread enqueues on the device's compute stream.
    ///
    /// # Errors
    /// [`Code::Capture`] if the device records already.
    pub fn start_capture(&self) -> Result<()> {
        // What capture must not be the first to need: memory that is set to zero once, a handle of cuBLAS.
        self.status()?;
        self.counters(1)?;
        self.gemm_backend();
        let id = GRAPHS.fetch_add(1, Ordering::Relaxed) + 1;
        self.bind()?;
        if self.0.recording.compare_exchange(0, id, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return Err(Error::new(Code::Capture, format!("capture: {self} is being captured already")));
        }
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is this device's and alive.
        let begun = check("cuStreamBeginCapture", unsafe { result::stream::begin_capture(self.stream().raw(), mode) });
        match begun {
            Ok(()) => self.allocator().start_recording(id),
            Err(_) => self.0.recording.store(0, Ordering::Relaxed),
        }
        begun
    }

    /// Ends recording.
    ///
    /// # Errors
    /// [`Code::Capture`] if something was enqueued that cannot be recorded; the recording is lost.
    pub fn finish_capture(&self) -> Result<Graph> {
        let id = self.0.recording.load(Ordering::Relaxed);
        if id == 0 {
            return Err(Error::new(Code::Capture, format!("capture: {self} is not being captured")));
        }
        self.bind()?;
        // SAFETY: the stream is this device's, alive, and in capture.
        let graph = check("cuStreamEndCapture", unsafe { result::stream::end_capture(self.stream().raw()) });
        self.allocator().stop_recording();
        self.0.recording.store(0, Ordering::Relaxed);
        let executable = graph.and_then(|graph| {
            // SAFETY: the graph was just made and not destroyed.
            let executable = relaxed(|| unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) });
            // SAFETY: as above; the executable form does not need it.
            let destroyed = unsafe { result::graph::destroy(graph) };
            let executable = check("cuGraphInstantiate", executable)?;
            check("cuGraphDestroy", destroyed).map(|()| executable)
        });
        match executable {
            Ok(executable) => Ok(Graph { device: self.clone(), executable, id }),
            Err(error) => {
                self.allocator().drop_graph(id);
                Err(error)
            }
        }
    }

    /// Ends recording and forgets it.
    pub fn abandon_capture(&self) {
        // An invalid recording ends with an error that says so, which is what was known.
        drop(self.finish_capture());
    }

    /// Whether a graph is being recorded.
    pub fn is_capturing(&self) -> bool {
        self.0.recording.load(Ordering::Relaxed) != 0
    }
}

impl Graph {
    /// Enqueues the recorded work on the compute stream.
    pub fn replay(&self) -> Result<()> {
        self.device.refuse_in_capture("a replay")?;
        self.device.bind()?;
        // SAFETY: both are alive and of one context.
        check("cuGraphLaunch", unsafe { result::graph::launch(self.executable, self.device.stream().raw()) })
    }

    /// The device it runs on.
    pub fn device(&self) -> &Cuda {
        &self.device
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: made by instantiate and destroyed once; the driver finishes a replay under way. An error here (the
            // process is ending and the driver with it) has nobody to go to.
            let _ = unsafe { result::graph::exec_destroy(self.executable) };
        }
        self.device.allocator().drop_graph(self.id);
    }
}
