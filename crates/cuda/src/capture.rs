//! Recording a step's work once and replaying it: CUDA graphs.
//!
//! While a thread records, its calls enqueue into the graph instead of running; those of other threads wait, see
//! `gate.rs`. What would need the host at a replay, a wait or a copy, is refused with [`Code::Capture`]. Work on other
//! streams joins the graph through events. The graph keeps every block of memory that was used.

use crate::allocator::{ForeignOwner, relaxed};
use crate::device::{Cuda, lock};
use crate::error::check;
use crate::recording::{GraphHandle, Party};
use crate::stream::Event;
use cudarc::driver::{result, sys};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use syncbn_core::{Code, Error, Result};

static GRAPHS: AtomicU64 = AtomicU64::new(0);

/// What is launched; none once the graph was retired.
pub(crate) struct Executable(Option<sys::CUgraphExec>);

// SAFETY: the driver allows graph calls from every thread, one at a time, which the mutex around this gives.
unsafe impl Send for Executable {}

/// Ends the recordings of this thread, on every device: it is ending itself.
pub fn abandon_captures_of_this_thread() {
    crate::device::open_devices().iter().filter(|device| device.is_capturing()).for_each(Cuda::abandon_capture);
}

/// Recorded work with the memory it uses. Dropping it gives the memory back.
pub struct Graph {
    device: Cuda,
    pub(crate) executable: Mutex<Executable>,
    /// Why it is not launched any more.
    pub(crate) retired: OnceLock<Error>,
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
                let (executable, retired) = (Mutex::new(Executable(Some(executable))), OnceLock::new());
                let graph = Arc::new(Graph { device: self.clone(), executable, retired, parties, id });
                let handle = GraphHandle(Arc::downgrade(&graph));
                graph.parties.iter().for_each(|(party, _)| party.recorded(handle.clone()));
                Ok(graph)
            }
            Err(error) => {
                let owners = self.allocator().drop_graph(id);
                self.let_go_later(owners);
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

    /// Lets go of what keeps other libraries' memory alive when the device has done what is enqueued so far.
    fn let_go_later(&self, owners: Vec<ForeignOwner>) {
        if owners.is_empty() {
            return;
        }
        // An event in a recording says nothing of what runs before it: so the graph being recorded holds them.
        if self.is_capturing() {
            return owners.iter().for_each(|owner| self.note_foreign_use(owner));
        }
        // Where no event can be recorded, the device has failed, or the process is ending.
        if let Ok(event) = self.record(self.stream()) {
            self.park(event, Box::new(owners));
        }
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
        let mut numbers = Vec::with_capacity(self.parties.len());
        let enqueued = self.enqueue(&mut numbers);
        if let Err(error) = &enqueued {
            self.parties.iter().take(numbers.len()).for_each(|(party, _)| party.replay_failed(error));
        }
        if let Some(done) = enqueued? {
            for ((party, calls), number) in self.parties.iter().zip(numbers) {
                party.replayed(number, *calls, &done);
            }
        }
        Ok(())
    }

    /// Announces the replay to the participants, which adds their `numbers`, and launches it; its end, for them.
    fn enqueue(&self, numbers: &mut Vec<u64>) -> Result<Option<Arc<Event>>> {
        for (party, calls) in &self.parties {
            numbers.push(party.begin_replay(*calls)?);
        }
        let done = if self.parties.is_empty() { None } else { Some(Arc::new(self.device.new_event(false)?)) };
        let _pass = self.device.enter()?;
        let executable = lock(&self.executable);
        let retired =
            || self.retired.get().cloned().unwrap_or_else(|| Error::internal("a graph without its executable"));
        let raw = executable.0.filter(|_| self.retired.get().is_none()).ok_or_else(retired)?;
        // SAFETY: both are alive and of one context.
        let launched = check("cuGraphLaunch", unsafe { result::graph::launch(raw, self.device.stream().raw()) });
        // Whoever retired it meanwhile may not have waited for this.
        self.settle(executable);
        launched?;
        done.iter().try_for_each(|event| event.record(self.device.stream()))?;
        Ok(done)
    }

    /// Destroys the executable of a graph that was retired.
    pub(crate) fn settle(&self, mut executable: MutexGuard<'_, Executable>) {
        if self.retired.get().is_some()
            && let Some(raw) = executable.0.take()
        {
            self.destroy(raw);
        }
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
        if let Some(raw) = lock(&self.executable).0.take() {
            self.destroy(raw);
        }
        let owners = self.device.allocator().drop_graph(self.id);
        self.device.let_go_later(owners);
    }
}
