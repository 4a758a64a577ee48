//! What a communicator's threads share: its handle, who is inside NCCL, and how it ended.

use crate::error::{NcclError, Result};
use crate::nccl::Nccl;
use crate::result::{self, Status};
use crate::sys::{Functions, ncclComm_t};
use crate::wait::Clock;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, TryLockError};
use std::time::{Duration, Instant};

/// How long a thread whose call was aborted waits for the end of the abort.
const ABORT_PATIENCE: Duration = Duration::from_secs(4);

const READY: u8 = 0;
/// Somebody aborts it, and is not back yet.
const ABORTING: u8 = 1;
const ABORTED: u8 = 2;
const CLOSED: u8 = 3;

/// The communicator itself, which outlives its owner where a thread is left behind inside NCCL.
///
/// Every call of NCCL is made with `inside` locked and the life checked after that. Whoever ends the communicator
/// changes the life first, so that none begins a call afterwards.
pub(crate) struct Core {
    pub(crate) nccl: Nccl,
    handle: Handle,
    life: AtomicU8,
    inside: Mutex<()>,
    /// Odd while a thread is inside a call that the end of the communicator would end; counts up with every entry.
    calls: AtomicU64,
    /// The first failure in words; with one, nothing but an abort is left to do.
    failure: OnceLock<String>,
}

/// The right to make calls, one after the other.
pub(crate) type Inside<'a> = MutexGuard<'a, ()>;

impl Core {
    pub(crate) fn new(nccl: &Nccl, handle: Handle) -> Self {
        let (life, inside, calls) = (AtomicU8::new(READY), Mutex::default(), AtomicU64::new(0));
        Self { nccl: nccl.clone(), handle, life, inside, calls, failure: OnceLock::new() }
    }

    pub(crate) fn functions(&self) -> &Functions {
        self.nccl.functions()
    }

    /// Waits for the right to make calls.
    pub(crate) fn enter(&self, function: &'static str, clock: &mut Clock<'_>) -> Result<Inside<'_>> {
        clock.lock(&self.inside, function)
    }

    /// As [`enter`](Self::enter) without a wait; none while another thread is inside.
    pub(crate) fn try_enter(&self) -> Option<Inside<'_>> {
        match self.inside.try_lock() {
            Ok(inside) => Some(inside),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The handle, if calls may be made with it.
    pub(crate) fn ready(&self, _inside: &Inside<'_>, function: &'static str) -> Result<Handle> {
        match (self.life.load(Ordering::SeqCst), self.failure.get()) {
            (ABORTING | ABORTED, _) => Err(NcclError::Aborted { function }),
            (CLOSED, _) => Err(NcclError::Closed { function }),
            (_, Some(reason)) => Err(NcclError::Failed { function, reason: reason.clone() }),
            (_, None) => Ok(self.handle),
        }
    }

    /// Calls, if the communicator is ready. An error of NCCL is the communicator's failure.
    pub(crate) fn call(
        &self,
        inside: &Inside<'_>,
        function: &'static str,
        call: impl FnOnce(ncclComm_t) -> Result<Status>,
    ) -> Result<Status> {
        let handle = self.ready(inside, function)?;
        self.inside_a_call(|| call(handle.0)).inspect_err(|error| self.fail(error))
    }

    /// Runs one call of NCCL that an abort may find this thread in; nothing of the communicator is touched after it.
    pub(crate) fn inside_a_call<T>(&self, call: impl FnOnce() -> T) -> T {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let returned = call();
        self.calls.fetch_add(1, Ordering::SeqCst);
        returned
    }

    /// Remembers the first failure.
    pub(crate) fn fail(&self, error: &NcclError) {
        self.failure.get_or_init(|| error.to_string());
    }

    /// Waits until nothing is in progress. Giving up is a failure: what goes on cannot be waited for again.
    ///
    /// Ends with a call that looks at the communicator. Up to NCCL 2.22 what goes on in the background is kept in
    /// memory of the thread that began it, and is put away by the next call that needs the communicator to be ready,
    /// which the look at its status is not. Made by another thread, after the first has ended, that call would use
    /// memory that is gone.
    pub(crate) fn settle(&self, function: &'static str, clock: &mut Clock<'_>) -> Result<()> {
        self.settle_and(function, clock, |handle| {
            // SAFETY: the handle is ready, and nobody else is inside a call.
            unsafe { result::comm_count(self.functions(), handle) }.map(|_| Status::Done)
        })
    }

    /// As [`settle`](Self::settle), of a communicator that is being finalized: the look is left to who destroys it.
    pub(crate) fn settle_finalized(&self, function: &'static str, clock: &mut Clock<'_>) -> Result<()> {
        self.settle_and(function, clock, |_| Ok(Status::Done))
    }

    fn settle_and(
        &self,
        function: &'static str,
        clock: &mut Clock<'_>,
        look: impl FnOnce(ncclComm_t) -> Result<Status>,
    ) -> Result<()> {
        let waited = self.wait_until_done(function, clock, look);
        if let Err(NcclError::Aborted { .. }) = &waited {
            // For the same reason: an abort puts away what this thread began, so the thread is not to end before it.
            // Where that takes long the thread goes on: the abort may be waiting for it, if it records a graph.
            let start = Instant::now();
            let waits = || self.life.load(Ordering::SeqCst) == ABORTING && start.elapsed() < ABORT_PATIENCE;
            while waits() && clock.pause(function).is_ok() {}
        }
        waited.inspect_err(|error| self.fail(error))
    }

    fn wait_until_done(
        &self,
        function: &'static str,
        clock: &mut Clock<'_>,
        look: impl FnOnce(ncclComm_t) -> Result<Status>,
    ) -> Result<()> {
        loop {
            let inside = self.enter(function, clock)?;
            // SAFETY: the handle is ready, and nobody else is inside a call.
            let status = self.call(&inside, function, |handle| unsafe {
                result::comm_get_async_error(self.functions(), handle, function)
            })?;
            if status == Status::Done {
                return self.call(&inside, function, look).map(drop);
            }
            drop(inside);
            clock.pause(function)?;
        }
    }

    /// From ready to closed; the handle to destroy.
    pub(crate) fn take_to_close(&self, function: &'static str, clock: &mut Clock<'_>) -> Result<Handle> {
        let inside = self.enter(function, clock)?;
        let handle = self.ready(&inside, function)?;
        // Fails only against an abort that did not wait for this lock.
        if self.change(READY, CLOSED) { Ok(handle) } else { Err(NcclError::Aborted { function }) }
    }

    /// The handle to abort, once nobody is inside a call; none if the communicator has ended.
    ///
    /// A thread that has been inside one and the same call from the beginning to the end of `clock` does not come back
    /// by itself: it waits inside NCCL for other ranks. Then the handle is taken from under it. To abort is what ends
    /// such a call: NCCL sets the flag that the call looks at before it frees anything, as programs with blocking
    /// communicators rely on. The thread makes no call after it.
    pub(crate) fn take_to_abort(&self, function: &'static str, clock: &mut Clock<'_>) -> Result<Option<Handle>> {
        let before = self.calls.load(Ordering::SeqCst);
        let entered = self.enter(function, clock);
        let stuck = || before % 2 == 1 && self.calls.load(Ordering::SeqCst) == before;
        if let Err(error) = &entered
            && !stuck()
        {
            return Err(error.clone());
        }
        Ok(self.take_at_once())
    }

    /// The handle to abort, for who knows that nobody is inside a call.
    pub(crate) fn take_at_once(&self) -> Option<Handle> {
        self.change(READY, ABORTING).then_some(self.handle)
    }

    /// The handle to abort, of a communicator that has failed; as [`take_at_once`](Self::take_at_once).
    pub(crate) fn take_failed(&self) -> Option<Handle> {
        self.failure.get().and_then(|_| self.take_at_once())
    }

    /// The abort is over.
    pub(crate) fn aborted(&self) {
        self.change(ABORTING, ABORTED);
    }

    /// Whether the communicator was closed in agreement with the others.
    pub(crate) fn is_closed(&self) -> bool {
        self.life.load(Ordering::SeqCst) == CLOSED
    }

    /// Waits for the end of an abort that another thread began.
    pub(crate) fn wait_for_abort(&self, function: &'static str, clock: &mut Clock<'_>) -> Result<()> {
        while self.life.load(Ordering::SeqCst) == ABORTING {
            clock.pause(function)?;
        }
        Ok(())
    }

    fn change(&self, from: u8, to: u8) -> bool {
        self.life.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

/// NCCL's handle, while the communicator exists.
#[derive(Clone, Copy)]
pub(crate) struct Handle(pub(crate) ncclComm_t);

// SAFETY: NCCL's communicators belong to no thread; that calls come one at a time is kept by `Core`.
unsafe impl Send for Handle {}
// SAFETY: as above; the handle itself never changes.
unsafe impl Sync for Handle {}

impl Handle {
    /// The handle as NCCL takes it.
    pub(crate) fn as_raw(self) -> ncclComm_t {
        self.0
    }
}

/// Where NCCL writes a new handle, from another thread if it likes. Given up on early, the place is left to NCCL.
pub(crate) struct NewHandle(*mut ncclComm_t);

impl NewHandle {
    pub(crate) fn new() -> Self {
        Self(Box::into_raw(Box::new(null_mut())))
    }

    /// Where NCCL is to write.
    pub(crate) fn place(&self) -> *mut ncclComm_t {
        self.0
    }

    /// The handle, once NCCL has set it. It may still be set again, to the same value, until the communicator is ready.
    pub(crate) fn get(&self) -> Option<Handle> {
        // SAFETY: points to what `new` made; volatile because it is not this thread that wrote it.
        let handle = unsafe { self.0.read_volatile() };
        (!handle.is_null()).then_some(Handle(handle))
    }

    /// Frees the place, once NCCL has no more use for it.
    pub(crate) fn free(self) {
        // SAFETY: made by `Box::into_raw` in `new`, and given up here, once.
        drop(unsafe { Box::from_raw(self.0) });
    }
}
