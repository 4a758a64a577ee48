//! What only the device can see, and how the host learns of it.
//!
//! A kernel that finds something wrong writes a code to the device's status word, unless one is there already. Every
//! call that waits for the device reads the word. So nothing waits to look for errors, and none is lost.

use crate::allocator::relaxed;
use crate::counts::AtomicCounts;
use crate::device::{Cuda, lock};
use crate::error::check;
use crate::pinned::PinnedBuffer;
use crate::stream::{Event, Stream};
use cudarc::driver::result;
use std::time::{Duration, Instant};
use syncbn_core::{Code, Error, Result};

/// How long a wait only yields before it sleeps between looks.
const SPIN: Duration = Duration::from_micros(100);
/// The longest sleep between looks.
const LONGEST_SLEEP: Duration = Duration::from_micros(500);
/// How long a report of a fault waits until the device's word is written.
const REPORT_TIMEOUT: Duration = Duration::from_millis(100);
/// How long a wait goes on while a fault is reported: longer than it takes to end kernels that hang.
const PATIENCE: Duration = Duration::from_secs(15);
/// Size of the status word.
const WORD: usize = size_of::<u32>();

/// The code of a fault on the host's side.
const FAULT: u8 = 3;

/// Codes of the kernels, `kernels/common.cuh`.
fn status_error(word: u32) -> Error {
    match word {
        1 => Error::new(
            Code::TooFewValues,
            "Expected more than 1 value per channel when training, got 1 over all ranks of the group",
        ),
        2 => Error::expected(Code::Argument, "crossEntropy", "targets in [0, classes) or ignoreIndex", "another"),
        other => Error::internal(format!("a kernel reported status {other}")),
    }
}

impl Cuda {
    /// Makes the status word, when the device is opened: later it would be in the way of a fault or of a recording.
    pub(crate) fn make_status(&self) -> Result<()> {
        let address = self.permanent_zeros(WORD)?;
        self.0.status.set(address).map_err(|_| Error::internal("a device is opened once"))?;
        self.counters(1).map(drop)
    }

    /// Device address of the status word.
    pub(crate) fn status(&self) -> Result<u64> {
        self.0.status.get().copied().ok_or_else(|| Error::internal("the device has no status word"))
    }

    /// Fails while this thread records a graph: `what` waits for the device or moves data to or from the host.
    pub fn refuse_in_capture(&self, what: &str) -> Result<()> {
        if !self.is_capturing() {
            return Ok(());
        }
        let message = format!(
            "{what}: expected no host synchronization inside cuda.capture, since a replay could not repeat it; do it \
             before or after"
        );
        Err(Error::new(Code::Capture, message))
    }

    /// Waits until everything enqueued on the compute stream is done. `keep_waiting` is asked again and again and ends
    /// the wait with its error.
    ///
    /// # Errors
    /// What a kernel reported since the last wait, once; what was reported with [`report_fault`](Self::report_fault),
    /// until it is cleared; [`Code::Capture`] inside a capture.
    pub fn synchronize(&self, keep_waiting: &dyn Fn() -> Result<()>) -> Result<()> {
        self.refuse_in_capture("synchronize")?;
        let address = self.status()?;
        let copy = lock(&self.0.status_copies).pop();
        let mut copy = copy.map_or_else(|| PinnedBuffer::new(self, WORD), Ok)?;
        let event = self.new_event(false)?;
        {
            let _pass = self.enter()?;
            // SAFETY: the word is on this device and as long as the copy, which is not touched before the event is done.
            let copied = unsafe { result::memcpy_dtoh_async(copy.as_mut_slice(), address, self.stream().raw()) };
            check("cuMemcpyDtoHAsync", copied)?;
            event.record(self.stream())?;
        }
        if let Err(error) = self.wait_for(&event, keep_waiting) {
            // The device may still write to the copy.
            self.park(event, Box::new(copy));
            return Err(error);
        }
        let word = copy.as_slice().first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes));
        lock(&self.0.status_copies).push(copy);
        if let Some((_, error)) = lock(&self.0.faults).first() {
            return Err(error.clone());
        }
        if word != 0 {
            self.write_status(0, self.stream())?;
            return Err(status_error(word));
        }
        Ok(())
    }

    /// Enqueues the write of a code of at most one byte.
    fn write_status(&self, code: u8, stream: &Stream) -> Result<()> {
        let address = self.status()?;
        let _pass = self.enter()?;
        // SAFETY: the word is on this device; its first byte is the least significant one.
        check("cuMemsetD8Async", unsafe { result::memset_d8_async(address, code, 1, stream.raw()) })
    }

    /// Waits for `event`; see [`synchronize`](Self::synchronize) for `keep_waiting`.
    ///
    /// # Errors
    /// Those of `keep_waiting`; what was reported with [`report_fault`](Self::report_fault), where the device does not come
    /// to the event.
    pub fn wait_for(&self, event: &Event, keep_waiting: &dyn Fn() -> Result<()>) -> Result<()> {
        AtomicCounts::count(&self.0.counts.host_waits);
        let start = Instant::now();
        let mut sleep = Duration::from_micros(20);
        while !event.is_done()? {
            keep_waiting()?;
            // Whoever reported it ends what hangs, if that can be ended; all that comes of the wait is the error.
            if start.elapsed() >= PATIENCE
                && let Some((_, error)) = lock(&self.0.faults).first()
            {
                return Err(error.clone());
            }
            if start.elapsed() < SPIN {
                std::thread::yield_now();
            } else {
                std::thread::sleep(sleep);
                sleep = (sleep * 2).min(LONGEST_SLEEP);
            }
        }
        Ok(())
    }

    /// Results on this device cannot be trusted from now on: every wait fails with `error`, and kernels that would commit
    /// running statistics do not, until [`clear_fault`](Self::clear_fault) is called with the same `reporter`.
    pub fn report_fault(&self, reporter: u64, error: Error) {
        lock(&self.0.faults).push((reporter, error));
        // Not on the compute stream, where what hangs may be in the way, nor in a recording, which this is no part of.
        // Where the word cannot be written the device is lost, which every later call will say; and where that takes
        // long, what hangs must be ended first, which only the caller can do.
        let _ = relaxed(|| self.write_fault());
    }

    fn write_fault(&self) -> Result<()> {
        let (address, stream) = (self.status()?, &self.0.side_stream);
        let event = self.new_event(false)?;
        // SAFETY: as in `write_status`.
        check("cuMemsetD8Async", unsafe { result::memset_d8_async(address, FAULT, 1, stream.raw()) })?;
        event.record(stream)?;
        let start = Instant::now();
        while !event.is_done()? && start.elapsed() < REPORT_TIMEOUT {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Forgets what `reporter` reported.
    pub fn clear_fault(&self, reporter: u64) {
        let last = {
            let mut faults = lock(&self.0.faults);
            let known = faults.len();
            faults.retain(|(other, _)| *other != reporter);
            faults.is_empty() && known > 0
        };
        if last {
            // A device that fails now says so to whoever uses it next.
            let _ = self.write_status(0, self.stream()).and_then(|()| self.reset_counters());
        }
    }
}
