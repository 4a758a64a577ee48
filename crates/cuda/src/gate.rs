//! Who may enqueue on a device while a thread records.
//!
//! A device has one compute stream, and while it records, whatever reaches it goes into the graph, from whichever
//! thread. So other threads wait until the recording is over. A [`Pass`] is held for the driver's calls only, never
//! across another `enter`: a recording that waits to begin would come between the two.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};
use syncbn_core::{Code, Error, Result};

/// How long a thread waits for another's recording. One takes as long as its step takes to enqueue.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// How long it sleeps between looks.
const LOOK: Duration = Duration::from_micros(200);

/// Recordings under way in this process.
static RECORDINGS: AtomicUsize = AtomicUsize::new(0);

/// Fails while this thread records on any device: `what` is done by the host and would be missing at a replay.
///
/// # Errors
/// [`Code::Capture`].
pub fn refuse_while_recording(what: &str) -> Result<()> {
    if RECORDINGS.load(Ordering::Relaxed) == 0 {
        return Ok(());
    }
    crate::device::open_devices().iter().try_for_each(|device| device.refuse_in_capture(what))
}

/// See the [module documentation](self).
#[derive(Default)]
pub(crate) struct Gate {
    /// The graph that is recorded; 0 for none. Lets the calls of most steps by without the lock.
    graph: AtomicU64,
    recorder: RwLock<Option<ThreadId>>,
}

/// No other thread begins to record while this lives.
pub(crate) struct Pass<'a>(#[expect(dead_code, reason = "held, not read")] RwLockReadGuard<'a, Option<ThreadId>>);

impl Gate {
    /// Waits while another thread records.
    ///
    /// # Errors
    /// [`Code::Capture`] if that takes unreasonably long.
    pub(crate) fn enter(&self) -> Result<Pass<'_>> {
        let start = Instant::now();
        loop {
            let recorder = self.recorder.read().unwrap_or_else(PoisonError::into_inner);
            if recorder.is_none_or(|recorder| recorder == thread::current().id()) {
                return Ok(Pass(recorder));
            }
            drop(recorder);
            if start.elapsed() >= LONGEST_WAIT {
                let text = format!("another thread has been recording on this device for {LONGEST_WAIT:?}");
                return Err(Error::new(Code::Capture, text));
            }
            thread::sleep(LOOK);
        }
    }

    /// Runs `begin`, after which this thread records `graph`.
    ///
    /// # Errors
    /// [`Code::Capture`] while any thread records; that of `begin`.
    pub(crate) fn begin(&self, graph: u64, begin: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut recorder = self.recorder.write().unwrap_or_else(PoisonError::into_inner);
        if recorder.is_some() {
            return Err(Error::new(Code::Capture, "the device is being captured already"));
        }
        begin()?;
        *recorder = Some(thread::current().id());
        self.graph.store(graph, Ordering::Relaxed);
        RECORDINGS.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// This thread has stopped recording.
    pub(crate) fn end(&self) {
        self.graph.store(0, Ordering::Relaxed);
        RECORDINGS.fetch_sub(1, Ordering::Relaxed);
        *self.recorder.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The graph this thread records.
    pub(crate) fn recording(&self) -> Option<u64> {
        let graph = self.graph.load(Ordering::Relaxed);
        if graph == 0 {
            return None;
        }
        let recorder = *self.recorder.read().unwrap_or_else(PoisonError::into_inner);
        (recorder == Some(thread::current().id())).then_some(graph)
    }
}
