//! Recording a step's work once and replaying it: CUDA graphs.
//!
//! While a thread records, its calls enqueue into the graph instead of running; those of other threads wait, see
//! `gate.rs`. What would need the host at a replay, a wait or a copy, is refused with [`Code::Capture`]. Work on other
//! streams joins the graph through events. The graph keeps every block of memory that was used.

use crate::allocator::relaxed;
use crate::device::{Cuda, lock};
use crate::error::check;
use crate::recording::{GraphHandle, Party};
use cudarc::driver::{result, sys};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use syncbn_core::{Code, Error, Result};

static GRAPHS: AtomicU64 = AtomicU64::new(0);

/// What is launched.
pub(crate) enum Executable {
    Ready(sys::CUgraphExec),
    /// Why it is not launched any more.
    Retired(Error),
}

// SAFETY: the driver allows graph calls from every thread, one at a time, which the mutex around this gives.
unsafe impl Send for Executable {}

/// Recorded work with the memory it uses. Dropping it gives the memory back.
pub struct Graph {
    device: Cuda,
    pub(crate) executable: Mutex<Executable>,
    parties: Vec<Party>,
    id: u64,
}

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
        // What capture must not be the first to need: a handle of cuBLAS.
        self.gemm_backend();
        let id = GRAPHS.fetch_add(1, Ordering::Relaxed) + 1;
        self.bind()?;
        self.0.gate.begin(id, || {
            let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            // SAFETY: the stream is this device's and alive.
            check("cuStreamBeginCapture", unsafe { result::stream::begin_capture(self.stream().raw(), mode) })
        })?;
        self.allocator().start_recording(id);
        Ok(())
    }

    /// Ends recording.
    ///
    /// # Errors
    /// [`Code::Capture`] if something was enqueued that cannot be recorded, or if this thread does not record; the
    /// recording is lost.
    pub fn finish_capture(&self) -> Result<Arc<Graph>> {
        let Some(id) = self.recording() else {
            return Err(Error::new(Code::Capture, format!("capture: {self} is not being captured by this thread")));
        };
        let parties = self.0.parties.take();
        let executable = self.bind().and_then(|()| self.end_recording());
        self.0.gate.end();
        match executable {
            Ok(executable) => {
                let executable = Mutex::new(Executable::Ready(executable));
                let graph = Arc::new(Graph { device: self.clone(), executable, parties, id });
                let handle = GraphHandle(Arc::downgrade(&graph));
                graph.parties.iter().for_each(|(party, _)| party.recorded(handle.clone()));
                Ok(graph)
            }
            Err(error) => {
                // Nothing of it was ever launched, so nothing of another library is in use.
                drop(self.allocator().drop_graph(id));
                Err(error)
            }
        }
    }

    fn end_recording(&self) -> Result<sys::CUgraphExec> {
        // SAFETY: the stream is this device's, alive, and in capture.
        let graph = check("cuStreamEndCapture", unsafe { result::stream::end_capture(self.stream().raw()) })?;
        // SAFETY: the graph was just made and not destroyed.
        let executable = relaxed(|| unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) });
        // SAFETY: as above; the executable form does not need it.
        let destroyed = unsafe { result::graph::destroy(graph) };
        let executable = check("cuGraphInstantiate", executable)?;
        check("cuGraphDestroy", destroyed).map(|()| executable)
    }

    /// Ends recording and forgets it.
    pub fn abandon_capture(&self) {
        // An invalid recording ends with an error that says so, which is what was known.
        drop(self.finish_capture());
    }

    /// Whether this thread records a graph.
    pub fn is_capturing(&self) -> bool {
        self.recording().is_some()
    }
}

impl Graph {
    /// Enqueues the recorded work on the compute stream.
    ///
    /// # Errors
    /// [`Code::Capture`] in a recording; what a participant says, before anything is enqueued: a communicator that has
    /// failed or was closed.
    pub fn replay(&self) -> Result<()> {
        let device = &self.device;
        device.refuse_in_capture("a replay")?;
        self.parties.iter().try_for_each(|(party, _)| party.check())?;
        let executable = lock(&self.executable);
        let raw = match &*executable {
            Executable::Ready(raw) => *raw,
            Executable::Retired(error) => return Err(error.clone()),
        };
        let begin = |(party, calls): &Party| party.begin_replay(*calls);
        let numbers = self.parties.iter().map(begin).collect::<Result<Vec<u64>>>()?;
        self.launch(raw)?;
        drop(executable);
        if self.parties.is_empty() {
            return Ok(());
        }
        let done = Arc::new(device.record(device.stream())?);
        for ((party, calls), number) in self.parties.iter().zip(numbers) {
            party.replayed(number, *calls, &done);
        }
        Ok(())
    }

    fn launch(&self, executable: sys::CUgraphExec) -> Result<()> {
        let _pass = self.device.enter()?;
        // SAFETY: both are alive and of one context.
        check("cuGraphLaunch", unsafe { result::graph::launch(executable, self.device.stream().raw()) })
    }

    /// The device it runs on.
    pub fn device(&self) -> &Cuda {
        &self.device
    }

    pub(crate) fn destroy(&self, executable: sys::CUgraphExec) {
        if self.device.bind().is_ok() {
            // SAFETY: made by instantiate and destroyed once, by whoever takes it out of its place; the driver finishes a
            // replay under way. An error here (the process is ending and the driver with it) has nobody to go to.
            let _ = relaxed(|| unsafe { result::graph::exec_destroy(executable) });
        }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Executable::Ready(raw) = *lock(&self.executable) {
            self.destroy(raw);
        }
        let owners = self.device.allocator().drop_graph(self.id);
        if owners.is_empty() {
            return;
        }
        // The last replay may still run. Where that cannot be known, the device has failed.
        if let Ok(event) = self.device.record(self.device.stream()) {
            self.device.park(event, Box::new(owners));
        }
    }
}
