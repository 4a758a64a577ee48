//! One rank's communicator: its life from init to close or abort, and who may call what meanwhile.
//!
//! NCCL's rules, and how they are kept:
//!
//! - Calls on a communicator come one at a time. `turn` is held for a whole operation, waiting included, and the right
//!   to be inside (see [`Core`]) for one call of NCCL.
//! - No thread is inside a call when `ncclCommAbort` begins, and none begins one after; the exception is a call that
//!   only an abort can end. An operation that waits lets others inside between two looks, so that it can be aborted.
//! - While the last call is in progress no other may be made. An operation ends its turn when it is done; one that gives
//!   up leaves the communicator failed.
//! - What goes on in the background belongs to the thread that began it, which also sees to its end.
//! - After any error NCCL refuses a non-blocking communicator. So it is failed from then on: only an abort leads on.
//! - What ends a communicator may never return. It runs on threads of its own (see [`ending`]).

use crate::ending;
use crate::error::{ErrorCode, NcclError, Result};
use crate::group;
use crate::nccl::Nccl;
use crate::result::{self, Status};
use crate::state::{Core, Handle, NewHandle};
use crate::sys::{self, Functions, ncclComm_t};
use crate::unique_id::UniqueId;
use crate::wait::{Clock, Wait};
use std::ffi::c_int;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long dropping a communicator waits for its abort. NCCL takes milliseconds where nothing is in the way.
const DROP_TIMEOUT: Duration = Duration::from_secs(10);

/// Options of a communicator; what is absent is NCCL's choice.
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
/// The communicator's device is current (`cudaSetDevice`, or its primary context by `cuCtxSetCurrent`) on every thread
/// that makes or splits it or enqueues on it: that is up to the caller. Ending it needs no device.
///
/// End it with [`close`](Self::close). Dropping it aborts: what is still enqueued is lost. Both are bounded; where NCCL
/// does not come back, the thread inside it and what it works on are left behind.
pub struct Communicator {
    rank: usize,
    world_size: usize,
    pub(crate) turn: Mutex<()>,
    pub(crate) core: Arc<Core>,
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
        // From here on a failure drops it, which aborts while this thread is there: see `Core::settle`.
        let communicator = Self::new(nccl, new.get().ok_or_else(|| no_handle(function))?, rank, world_size);
        communicator.core.settle(function, &mut clock)?;
        new.free();
        Ok(communicator)
    }

    fn new(nccl: &Nccl, handle: Handle, rank: usize, world_size: usize) -> Self {
        Self { rank, world_size, turn: Mutex::default(), core: Arc::new(Core::new(nccl, handle)) }
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
        &self.core.nccl
    }

    /// Whether background work goes on, or how it failed: what a watchdog asks. Never waits; while another thread is
    /// inside a call the answer is [`Status::InProgress`].
    ///
    /// A peer that dies is seen here only if data went through sockets or InfiniBand; ranks of one machine share memory,
    /// and there nothing but a sign from outside tells. After an error the communicator must be aborted.
    pub fn async_error(&self) -> Result<Status> {
        let function = "ncclCommGetAsyncError";
        let Some(inside) = self.core.try_enter() else { return Ok(Status::InProgress) };
        // SAFETY: the handle is ready, and nobody else is inside a call.
        self.core.call(&inside, function, |handle| unsafe {
            result::comm_get_async_error(self.functions(), handle, function)
        })
    }

    /// A communicator of the ranks that give the same `color`, ordered by `key`, then by rank; none for a rank that
    /// gives no colour. Every rank of this communicator must call it. The options are inherited.
    ///
    /// A split that fails ends this communicator too: it is aborted.
    pub fn split(&self, color: Option<u32>, key: i32, wait: Wait<'_>) -> Result<Option<Self>> {
        let function = "ncclCommSplit";
        group::refuse_inside(function)?;
        let color = color.map_or(Ok(sys::NCCL_SPLIT_NOCOLOR), |color| {
            c_int::try_from(color).map_err(|_| argument(function, "a colour up to 2147483647", color))
        })?;
        let mut clock = Clock::start(wait);
        let _turn = clock.lock(&self.turn, function)?;
        let split = self.split_in_turn(color, key, function, &mut clock);
        // What refused the call changed nothing. Anything else may have left work of this thread, which the abort is to
        // find alive: see `Core::settle`.
        if split.is_err()
            && let Some(handle) = self.core.take_failed()
        {
            let _ = ending::abort(&self.core, handle, &mut Clock::start(Wait::at_most(DROP_TIMEOUT)));
        }
        split
    }

    fn split_in_turn(
        &self,
        color: c_int,
        key: i32,
        function: &'static str,
        clock: &mut Clock<'_>,
    ) -> Result<Option<Self>> {
        let new = NewHandle::new();
        let inside = self.core.enter(function, clock)?;
        // SAFETY: the handle is ready and nobody else is inside. The new handle's place is freed only when this
        // communicator is no longer in progress.
        let status = self.core.call(&inside, function, |handle| unsafe {
            result::comm_split(self.functions(), handle, color, key, new.place())
        })?;
        drop(inside);
        self.finish(status, function, clock)?;
        let handle = new.get();
        new.free();
        match handle {
            Some(handle) => self.child(handle, function, clock).map(Some).inspect_err(|error| self.core.fail(error)),
            None if color == sys::NCCL_SPLIT_NOCOLOR => Ok(None),
            None => Err(no_handle(function)),
        }
    }

    /// The communicator that `split` made, once it is ready.
    fn child(&self, handle: Handle, function: &'static str, clock: &mut Clock<'_>) -> Result<Self> {
        let mut child = Self::new(self.nccl(), handle, 0, 0);
        child.core.settle(function, clock)?;
        // SAFETY: the handle is ready, and no other thread has it yet.
        child.rank = unsafe { result::comm_user_rank(self.functions(), handle.0) }? as usize;
        // SAFETY: as above.
        child.world_size = unsafe { result::comm_count(self.functions(), handle.0) }? as usize;
        Ok(child)
    }

    /// Ends the communicator in agreement with the other ranks: waits for what is enqueued, then frees it. Every rank
    /// must call it. Closing it again does nothing. One that cannot be closed, or not in time, is aborted.
    pub fn close(&self, wait: Wait<'_>) -> Result<()> {
        let function = "ncclCommFinalize";
        group::refuse_inside(function)?;
        let mut clock = Clock::start(wait);
        let _turn = clock.lock(&self.turn, function)?;
        if self.core.is_closed() {
            return Ok(());
        }
        self.core.ready(&self.core.enter(function, &mut clock)?, function)?;
        ending::close(&self.core, &mut clock).inspect_err(|error| self.core.fail(error))
    }

    /// Ends the communicator at once: its kernels stop, whatever they wait for, calls that wait on other threads fail
    /// with [`NcclError::Aborted`], and what was enqueued is lost. Every rank that is still there should do so. Aborting
    /// again, or what is closed, does nothing; an abort that another thread has begun is waited for.
    ///
    /// Waits, for up to half of its time, for a call of NCCL that another thread is inside, and for a group to end. A
    /// call that has not moved on by then waits inside NCCL for other ranks, and is aborted from under its thread, as
    /// is usual with blocking communicators. [`NcclError::Timeout`] if it was no one call that took the time; the
    /// communicator is as before then. Also if NCCL does not come back: it waits until the device has let go of its
    /// kernels. Then the communicator is lost, and its buffers may still be written to.
    pub fn abort(&self, wait: Wait<'_>) -> Result<()> {
        let function = "ncclCommAbort";
        group::refuse_inside(function)?;
        let mut clock = Clock::start(wait);
        let whole = |error| match error {
            NcclError::Timeout { .. } => NcclError::Timeout { function, timeout: wait.timeout() },
            other => other,
        };
        match self.core.take_to_abort(function, &mut clock.half()).map_err(whole)? {
            Some(handle) => ending::abort(&self.core, handle, &mut clock),
            None => self.core.wait_for_abort(function, &mut clock),
        }
    }
}

/// One call, its turn, and the wait for its end.
impl Communicator {
    pub(crate) fn functions(&self) -> &Functions {
        self.core.functions()
    }

    /// Takes the turn, calls, and waits until the call is done.
    pub(crate) fn operation(
        &self,
        function: &'static str,
        clock: &mut Clock<'_>,
        call: impl FnOnce(ncclComm_t) -> Result<Status>,
    ) -> Result<()> {
        let _turn = clock.lock(&self.turn, function)?;
        let inside = self.core.enter(function, clock)?;
        let status = self.core.call(&inside, function, call)?;
        drop(inside);
        self.finish(status, function, clock)
    }

    /// Waits for a call that returned `status`.
    pub(crate) fn finish(&self, status: Status, function: &'static str, clock: &mut Clock<'_>) -> Result<()> {
        if status == Status::InProgress { self.core.settle(function, clock) } else { Ok(()) }
    }
}

impl Drop for Communicator {
    /// Aborts what was not closed, and waits for it, but not for ever.
    fn drop(&mut self) {
        // Nobody else has the communicator any more, so nobody is inside a call. What is being ended on another thread
        // was waited for before.
        if let Some(handle) = self.core.take_at_once() {
            // There is no one to tell if it fails.
            let _ = ending::abort(&self.core, handle, &mut Clock::start(Wait::at_most(DROP_TIMEOUT)));
        }
    }
}

impl fmt::Debug for Communicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Communicator(rank {} of {}, {:?})", self.rank, self.world_size, self.nccl())
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
