//! Several collectives started as one.

use crate::collective::Collective;
use crate::communicator::Communicator;
use crate::error::{NcclError, Result};
use crate::result;
use crate::state::Handle;
use crate::types::{Buffers, ReduceOp, Stream};
use crate::wait::{Clock, Wait};
use std::cell::Cell;
use std::marker::PhantomData;

thread_local! {
    /// Whether this thread has a group open. NCCL counts every call of the thread to it, on whichever communicator.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// An error for a call that must not become part of this thread's open group.
pub(crate) fn refuse_inside(function: &'static str) -> Result<()> {
    if INSIDE.get() { Err(NcclError::InsideGroup { function }) } else { Ok(()) }
}

/// An open group of one communicator: what [`Communicator::group`] hands to its closure. It stays on its thread.
///
/// The collectives are those of [`Communicator`], with the same contracts; they start when the closure returns.
pub struct Group<'a> {
    communicator: &'a Communicator,
    handle: Handle,
    _of_this_thread: PhantomData<*const ()>,
}

impl Communicator {
    /// Starts what `body` enqueues as one: fewer kernels, and no order between the collectives of the group.
    ///
    /// If `body` returns an error of its own, what it enqueued before is started all the same, since the other ranks
    /// start it too; if the error is NCCL's, nothing is. Other calls of this thread on communicators fail with
    /// [`NcclError::InsideGroup`] while `body` runs, and an abort by another thread waits for its end.
    pub fn group<T>(&self, wait: Wait<'_>, body: impl FnOnce(&Group<'_>) -> Result<T>) -> Result<T> {
        refuse_inside("ncclGroupStart")?;
        let mut clock = Clock::start(wait);
        let _turn = clock.lock(&self.turn, "ncclGroupStart")?;
        // Held throughout: an abort between start and end would free what the end is about to use.
        let inside = self.core.enter("ncclGroupStart", &mut clock)?;
        let handle = self.core.ready(&inside, "ncclGroupStart")?;
        let open = Open::start(self)?;
        let returned = body(&Group { communicator: self, handle, _of_this_thread: PhantomData });
        let ended = open.end();
        drop(inside);
        let ended = ended.and_then(|status| self.finish(status, "ncclGroupEnd", &mut clock));
        returned.and_then(|value| ended.map(|()| value))
    }
}

impl Group<'_> {
    /// [`Communicator::all_gather`] in this group.
    ///
    /// # Safety
    /// As for [`Communicator::all_gather`].
    pub unsafe fn all_gather(&self, buffers: Buffers, stream: Stream) -> Result<()> {
        // SAFETY: the caller vouches for the buffers and the stream.
        unsafe { self.enqueue(Collective::AllGather, buffers, stream) }
    }

    /// [`Communicator::all_reduce`] in this group.
    ///
    /// # Safety
    /// As for [`Communicator::all_reduce`].
    pub unsafe fn all_reduce(&self, buffers: Buffers, op: ReduceOp, stream: Stream) -> Result<()> {
        // SAFETY: the caller vouches for the buffers and the stream.
        unsafe { self.enqueue(Collective::AllReduce(op), buffers, stream) }
    }

    /// [`Communicator::broadcast`] in this group.
    ///
    /// # Safety
    /// As for [`Communicator::broadcast`].
    pub unsafe fn broadcast(&self, buffers: Buffers, root: usize, stream: Stream) -> Result<()> {
        // SAFETY: the caller vouches for the buffers and the stream.
        unsafe { self.enqueue(Collective::Broadcast { root }, buffers, stream) }
    }

    /// [`Communicator::reduce`] in this group.
    ///
    /// # Safety
    /// As for [`Communicator::reduce`].
    pub unsafe fn reduce(&self, buffers: Buffers, op: ReduceOp, root: usize, stream: Stream) -> Result<()> {
        // SAFETY: the caller vouches for the buffers and the stream.
        unsafe { self.enqueue(Collective::Reduce { op, root }, buffers, stream) }
    }

    /// # Safety
    /// As for the collective's own function.
    unsafe fn enqueue(&self, collective: Collective, buffers: Buffers, stream: Stream) -> Result<()> {
        collective.check(self.communicator.world_size())?;
        // SAFETY: the caller vouches for the buffers and the stream; the handle is ready, and whoever made this group
        // keeps others out. Whether the group is in progress is known at its end.
        unsafe { collective.enqueue(self.communicator.functions(), buffers, self.handle.0, stream) }
            .map(drop)
            .inspect_err(|error| self.communicator.core.fail(error))
    }
}

/// The time between `ncclGroupStart` and `ncclGroupEnd`, which ends also when the closure panics.
struct Open<'a> {
    communicator: &'a Communicator,
    ended: bool,
}

impl<'a> Open<'a> {
    fn start(communicator: &'a Communicator) -> Result<Self> {
        result::group_start(communicator.functions()).inspect_err(|error| communicator.core.fail(error))?;
        INSIDE.set(true);
        Ok(Self { communicator, ended: false })
    }

    fn end(mut self) -> Result<result::Status> {
        self.ended = true;
        end(self.communicator).inspect_err(|error| self.communicator.core.fail(error))
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let _ = end(self.communicator);
            let reason = "the closure of a group panicked".into();
            self.communicator.core.fail(&NcclError::Failed { function: "ncclGroupEnd", reason });
        }
    }
}

fn end(communicator: &Communicator) -> Result<result::Status> {
    INSIDE.set(false);
    // SAFETY: only the communicator that this thread is inside was used in the group, since every other call is refused.
    communicator.core.inside_a_call(|| unsafe { result::group_end(communicator.functions()) })
}
