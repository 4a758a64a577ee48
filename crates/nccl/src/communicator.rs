//! One rank's communicator: its life from init to close or abort, and who may call what meanwhile.
//!
//! NCCL's rules, and how they are kept:
//!
//! - Calls on a communicator come one at a time. `turn` is held for a whole operation, waiting included, and `state` for
//!   one call of NCCL.
//! - No thread is inside a call when `ncclCommAbort` begins, and none begins one after. Whoever takes the handle out of
//!   `state` to end the communicator knows both, since every call is made with `state` locked. An operation that waits
//!   lets go of `state` between two looks, so that it can be aborted.
//! - While the last call is in progress no other may be made. An operation ends its turn when it is done; one that gives
//!   up leaves the communicator failed.
//! - After any error NCCL refuses a non-blocking communicator. So it is failed from then on: only an abort leads on.

use crate::error::{ErrorCode, NcclError, Result};
use crate::group;
use crate::nccl::Nccl;
use crate::result::{self, Status};
use crate::state::{Handle, NewHandle, State};
use crate::sys::{self, Functions, ncclComm_t};
use crate::unique_id::UniqueId;
use crate::wait::{Clock, Wait, unlocked};
use std::ffi::c_int;
use std::fmt;
use std::sync::{Mutex, OnceLock, TryLockError};

/// Options of a communicator; what is absent is NCCL's choice. NCCL before 2.17 ignores them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The least number of thread blocks a collective runs on.
    pub min_ctas: Option<u16>,
    /// The greatest number of thread blocks a collective runs on: what it takes from other kernels. Several ranks on one
    /// device need a small number.
    pub max_ctas: Option<u16>,
    /// The number of thread blocks in a cluster, on devices that have clusters.
    pub cga_cluster_size: Option<u16>,
}

impl Options {
    fn to_config(self) -> sys::ncclConfig_t {
        let number = |option: Option<u16>| option.map_or(sys::NCCL_CONFIG_UNDEF_INT, c_int::from);
        sys::ncclConfig_t {
            blocking: 0,
            minCTAs: number(self.min_ctas),
            maxCTAs: number(self.max_ctas),
            cgaClusterSize: number(self.cga_cluster_size),
            ..sys::ncclConfig_t::new()
        }
    }
}

/// One rank's end of a communicator, non-blocking; made by [`Nccl::communicator`].
///
/// Any thread may use it. Operations run one after the other; that all ranks make them in the same order is up to the
/// caller. Work is enqueued on the given stream: a call that returns has not moved data yet.
///
/// End it with [`close`](Self::close). Dropping it aborts: what is still enqueued is lost.
pub struct Communicator {
    nccl: Nccl,
    rank: usize,
    world_size: usize,
    pub(crate) turn: Mutex<()>,
    pub(crate) state: Mutex<State>,
    /// The first failure in words; with one, nothing but an abort is left to do.
    failure: OnceLock<String>,
}

impl Communicator {
    pub(crate) fn init(
        nccl: &Nccl,
        id: &UniqueId,
        rank: usize,
        world_size: usize,
        options: &Options,
        wait: Wait<'_>,
    ) -> Result<Self> {
        let function = "ncclCommInitRankConfig";
        group::refuse_inside(function)?;
        let ranks = c_int::try_from(world_size)
            .ok()
            .filter(|ranks| *ranks > 0)
            .ok_or_else(|| argument(function, "a world size from 1 to 2147483647", world_size))?;
        let own = rank_number(function, "rank", rank, world_size)?;
        let mut clock = Clock::start(wait);
        let new = NewHandle::new();
        // SAFETY: the place of the handle is freed only when the communicator is ready.
        unsafe {
            result::comm_init_rank_config(nccl.functions(), new.place(), ranks, id.into(), own, options.to_config())
        }?;
        let communicator = Self::new(nccl, new.get().ok_or_else(|| no_handle(function))?, rank, world_size);
        communicator.settle(function, &mut clock)?;
        new.free();
        Ok(communicator)
    }

    fn new(nccl: &Nccl, handle: Handle, rank: usize, world_size: usize) -> Self {
        let state = Mutex::new(State::Ready(handle));
        Self { nccl: nccl.clone(), rank, world_size, turn: Mutex::new(()), state, failure: OnceLock::new() }
    }

    /// This process's place among the ranks.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The number of ranks.
    pub fn world_size(&self) -> usize {
        self.world_size
    }

    /// The library it belongs to.
    pub fn nccl(&self) -> &Nccl {
        &self.nccl
    }

    /// Whether background work goes on, or how it failed: what a watchdog asks. Never waits; while another thread is
    /// inside a call the answer is [`Status::InProgress`].
    ///
    /// A peer that dies is seen here only if data went through sockets or InfiniBand; ranks of one machine share memory,
    /// and there nothing but a sign from outside tells. After an error the communicator must be aborted.
    pub fn async_error(&self) -> Result<Status> {
        let function = "ncclCommGetAsyncError";
        let state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(Status::InProgress),
        };
        // SAFETY: the handle is ready, and the state locked.
        self.call_locked(&state, function, |handle| unsafe {
            result::comm_get_async_error(self.functions(), handle, function)
        })
    }

    /// A communicator of the ranks that give the same `color`, ordered by `key`, then by rank; none for a rank that
    /// gives no colour. Every rank of this communicator must call it. The options are inherited.
    ///
    /// [`NcclError::Unsupported`] before NCCL 2.18.1; this communicator stays usable then.
    pub fn split(&self, color: Option<u32>, key: i32, wait: Wait<'_>) -> Result<Option<Self>> {
        let function = "ncclCommSplit";
        group::refuse_inside(function)?;
        if !self.nccl.supports_split() {
            let (found, needed) = (self.nccl.version(), crate::Version::SPLIT);
            return Err(NcclError::Unsupported { function, found, needed });
        }
        let color = color.map_or(Ok(sys::NCCL_SPLIT_NOCOLOR), |color| {
            c_int::try_from(color).map_err(|_| argument(function, "a colour up to 2147483647", color))
        })?;
        let mut clock = Clock::start(wait);
        let new = NewHandle::new();
        // SAFETY: the handle is ready and the state locked. The new handle's place is freed only when this communicator
        // is no longer in progress.
        self.operation(function, &mut clock, |handle| unsafe {
            result::comm_split(self.functions(), handle, color, key, new.place())
        })?;
        let handle = new.get();
        new.free();
        match handle {
            Some(handle) => self.child(handle, function, &mut clock).map(Some),
            None if color == sys::NCCL_SPLIT_NOCOLOR => Ok(None),
            None => Err(no_handle(function)),
        }
    }

    /// The communicator that `split` made, once it is ready.
    fn child(&self, handle: Handle, function: &'static str, clock: &mut Clock<'_>) -> Result<Self> {
        let mut child = Self::new(&self.nccl, handle, 0, 0);
        child.settle(function, clock)?;
        // SAFETY: the handle is ready, and no other thread has it yet.
        child.rank = unsafe { result::comm_user_rank(self.functions(), handle.0) }? as usize;
        // SAFETY: as above.
        child.world_size = unsafe { result::comm_count(self.functions(), handle.0) }? as usize;
        Ok(child)
    }

    /// Ends the communicator in agreement with the other ranks: waits for what is enqueued, then frees it. Every rank
    /// must call it. Closing it again does nothing.
    pub fn close(&self, wait: Wait<'_>) -> Result<()> {
        let function = "ncclCommFinalize";
        group::refuse_inside(function)?;
        let mut clock = Clock::start(wait);
        let _turn = clock.lock(&self.turn, function)?;
        if matches!(*clock.lock(&self.state, function)?, State::Closed) {
            return Ok(());
        }
        // SAFETY: the handle is ready, and the state locked.
        let status =
            self.call(function, &mut clock, |handle| unsafe { result::comm_finalize(self.functions(), handle) })?;
        self.finish(status, function, &mut clock)?;
        let mut state = clock.lock(&self.state, function)?;
        let handle = self.ready(&state, function)?;
        *state = State::Closed;
        drop(state);
        // SAFETY: finalized; and the handle was taken out of the state, so that no call is or will be made with it.
        unsafe { result::comm_destroy(self.functions(), handle.0) }.map(drop)
    }

    /// Ends the communicator at once: its kernels stop, whatever they wait for, calls that wait on other threads fail
    /// with [`NcclError::Aborted`], and what was enqueued is lost. Every rank that is still there should do so. Aborting
    /// again, or what is closed, does nothing.
    ///
    /// Waits for a call of NCCL that another thread is inside, and for a group to end. [`NcclError::Timeout`] if it does
    /// not come back; the communicator is as before then. NCCL itself may wait until the device has let go of its
    /// kernels.
    pub fn abort(&self, wait: Wait<'_>) -> Result<()> {
        let function = "ncclCommAbort";
        group::refuse_inside(function)?;
        let mut state = Clock::start(wait).lock(&self.state, function)?;
        let Some(handle) = state.abort() else { return Ok(()) };
        drop(state);
        // SAFETY: the handle was taken out of the state, so that no call is or will be made with it.
        unsafe { result::comm_abort(self.functions(), handle.0) }.map(drop)
    }
}

/// One call, its turn, and the wait for its end.
impl Communicator {
    pub(crate) fn functions(&self) -> &Functions {
        self.nccl.functions()
    }

    /// Takes the turn, calls, and waits until the call is done.
    pub(crate) fn operation(
        &self,
        function: &'static str,
        clock: &mut Clock<'_>,
        call: impl FnOnce(ncclComm_t) -> Result<Status>,
    ) -> Result<()> {
        let _turn = clock.lock(&self.turn, function)?;
        let status = self.call(function, clock, call)?;
        self.finish(status, function, clock)
    }

    /// Locks the state and calls.
    fn call(
        &self,
        function: &'static str,
        clock: &mut Clock<'_>,
        call: impl FnOnce(ncclComm_t) -> Result<Status>,
    ) -> Result<Status> {
        let state = clock.lock(&self.state, function)?;
        self.call_locked(&state, function, call)
    }

    /// Calls while the caller keeps the state locked. An error of NCCL is the communicator's failure.
    fn call_locked(
        &self,
        state: &State,
        function: &'static str,
        call: impl FnOnce(ncclComm_t) -> Result<Status>,
    ) -> Result<Status> {
        call(self.ready(state, function)?.0).inspect_err(|error| self.fail(error))
    }

    /// The handle, if calls may be made with it.
    pub(crate) fn ready(&self, state: &State, function: &'static str) -> Result<Handle> {
        match (state, self.failure.get()) {
            (State::Aborted, _) => Err(NcclError::Aborted { function }),
            (State::Closed, _) => Err(NcclError::Closed { function }),
            (State::Ready(_), Some(reason)) => Err(NcclError::Failed { function, reason: reason.clone() }),
            (State::Ready(handle), None) => Ok(*handle),
        }
    }

    /// Remembers the first failure.
    pub(crate) fn fail(&self, error: &NcclError) {
        self.failure.get_or_init(|| error.to_string());
    }

    /// Waits for a call that returned `status`.
    pub(crate) fn finish(&self, status: Status, function: &'static str, clock: &mut Clock<'_>) -> Result<()> {
        if status == Status::InProgress { self.settle(function, clock) } else { Ok(()) }
    }

    /// Waits until nothing is in progress. Giving up is a failure: what goes on cannot be waited for again.
    fn settle(&self, function: &'static str, clock: &mut Clock<'_>) -> Result<()> {
        let look = |clock: &mut Clock<'_>| {
            // SAFETY: the handle is ready, and the state locked.
            self.call(function, clock, |handle| unsafe {
                result::comm_get_async_error(self.functions(), handle, function)
            })
        };
        while look(clock).inspect_err(|error| self.fail(error))? == Status::InProgress {
            clock.pause(function).inspect_err(|error| self.fail(error))?;
        }
        Ok(())
    }
}

impl Drop for Communicator {
    /// Aborts what was not closed.
    fn drop(&mut self) {
        if let Some(handle) = unlocked(&mut self.state).abort() {
            // SAFETY: nobody else has the communicator any more. There is no one to tell if it fails.
            let _ = unsafe { result::comm_abort(self.functions(), handle.0) };
        }
    }
}

impl fmt::Debug for Communicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Communicator(rank {} of {}, {:?})", self.rank, self.world_size, self.nccl)
    }
}

#[cold]
pub(crate) fn argument(function: &'static str, expected: impl Into<String>, got: impl fmt::Display) -> NcclError {
    NcclError::Argument { function, expected: expected.into(), got: got.to_string() }
}

/// `rank` as NCCL takes it, if there are more ranks than that.
pub(crate) fn rank_number(function: &'static str, name: &str, rank: usize, world_size: usize) -> Result<c_int> {
    let fits = c_int::try_from(rank).ok().filter(|_| rank < world_size);
    fits.ok_or_else(|| argument(function, format!("a {name} below the world size {world_size}"), rank))
}

#[cold]
fn no_handle(function: &'static str) -> NcclError {
    let (code, message) = (ErrorCode::InternalError, "NCCL made no communicator".into());
    NcclError::Call { function, code, message, last_error: String::new() }
}
