//! Whether a communicator exists, and its handle while it does.

use crate::sys::ncclComm_t;
use std::ptr::null_mut;

/// Whether there is a handle to call with.
pub(crate) enum State {
    Ready(Handle),
    Aborted,
    Closed,
}

impl State {
    /// From ready to aborted; the handle to abort, if there is one.
    pub(crate) fn abort(&mut self) -> Option<Handle> {
        let State::Ready(handle) = *self else { return None };
        *self = State::Aborted;
        Some(handle)
    }
}

/// NCCL's handle, while the communicator exists.
#[derive(Clone, Copy)]
pub(crate) struct Handle(pub(crate) ncclComm_t);

// SAFETY: NCCL's communicators belong to no thread; that calls come one at a time is kept by the lock around the state.
unsafe impl Send for Handle {}

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
