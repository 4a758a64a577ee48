//! Who may enqueue on a device while a thread records.
//!
//! A device has one compute stream, and while it records, whatever reaches it goes into the graph, from whichever
//! thread. So other threads wait until the recording is over. A [`Pass`] is held for the driver's calls only, never
//! across another `enter` (a recording that waits to begin would come between the two), and it is taken before any lock
//! that a recording thread needs.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};
use syncbn_core::{Code, Error, Result};

/// How long a thread waits for another's recording. One takes as long as its step takes to enqueue.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// How long it sleeps between looks.
const LOOK: Duration = Duration::from_micros(200);

/// Recordings under way in this process.
static RECORDINGS: AtomicUsize = AtomicUsize::new(0);
static THREADS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static THREAD: Cell<u64> = const { Cell::new(0) };
}

/// A number for this thread that no other has; not 0.
fn this_thread() -> u64 {
    THREAD.with(|number| {
        if number.get() == 0 {
            number.set(THREADS.fetch_add(1, Ordering::Relaxed) + 1);
        }
        number.get()
    })
}

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
    /// The thread that records; 0 for none.
    recorder: AtomicU64,
    /// The graph it records.
    graph: AtomicU64,
    /// Held for reading while something is enqueued, for writing when a recording begins.
    passes: RwLock<()>,
}

/// No other thread begins to record while this lives.
pub(crate) struct Pass<'a>(#[expect(dead_code, reason = "held, not read")] RwLockReadGuard<'a, ()>);

impl Gate {
    /// Waits while another thread records.
    ///
    /// # Errors
    /// [`Code::Capture`] if that takes unreasonably long.
    pub(crate) fn enter(&self) -> Result<Pass<'_>> {
        let start = Instant::now();
        loop {
            let pass = self.passes.read().unwrap_or_else(PoisonError::into_inner);
            let recorder = self.recorder.load(Ordering::Acquire);
            if recorder == 0 || recorder == this_thread() {
                return Ok(Pass(pass));
            }
            drop(pass);
            if start.elapsed() >= LONGEST_WAIT {
                let text = format!("another thread has been recording on this device for {LONGEST_WAIT:?}");
                return Err(Error::new(Code::Capture, text));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Runs `begin`, after which this thread records `graph`.
    ///
    /// # Errors
    /// [`Code::Capture`] while any thread records; that of `begin`.
    pub(crate) fn begin(&self, graph: u64, begin: impl FnOnce() -> Result<()>) -> Result<()> {
        let _alone = self.passes.write().unwrap_or_else(PoisonError::into_inner);
        if self.recorder.load(Ordering::Acquire) != 0 {
            return Err(Error::new(Code::Capture, "the device is being captured already"));
        }
        begin()?;
        self.graph.store(graph, Ordering::Relaxed);
        self.recorder.store(this_thread(), Ordering::Release);
        RECORDINGS.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// This thread has stopped recording.
    pub(crate) fn end(&self) {
        RECORDINGS.fetch_sub(1, Ordering::Relaxed);
        self.recorder.store(0, Ordering::Release);
    }

    /// The graph this thread records.
    pub(crate) fn recording(&self) -> Option<u64> {
        let recorder = self.recorder.load(Ordering::Acquire);
        (recorder != 0 && recorder == this_thread()).then(|| self.graph.load(Ordering::Relaxed))
    }
}
