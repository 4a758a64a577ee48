//! NCCL's functions with `Result`s: one function for each of [`sys::Functions`], with its safety contract.
//!
//! An error has NCCL's code, its words for it, and what NCCL last logged. Calls on a non-blocking communicator that go
//! on in the background are no errors: [`Status::InProgress`].

use crate::error::{ErrorCode, NcclError, Result};
use crate::sys::{self, Functions, ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclResult_t};
use crate::version::Version;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null_mut;

/// Whether a call is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It is.
    Done,
    /// NCCL works on it in the background; the communicator takes no other call until that is done.
    InProgress,
}

/// Success or in progress; everything else as an error of `function`.
fn check(functions: &Functions, function: &'static str, code: ncclResult_t) -> Result<Status> {
    match code {
        sys::NCCL_SUCCESS => Ok(Status::Done),
        sys::NCCL_IN_PROGRESS => Ok(Status::InProgress),
        code => Err(failed(functions, function, code)),
    }
}

#[cold]
fn failed(functions: &Functions, function: &'static str, code: ncclResult_t) -> NcclError {
    // SAFETY: takes any number; returns a static text.
    let message = text(unsafe { (functions.get_error_string)(code) });
    // SAFETY: the communicator is not looked at and may be null; the text is NCCL's own buffer, which lives for ever.
    let last_error = text(unsafe { (functions.get_last_error)(null_mut()) });
    NcclError::Call { function, code: ErrorCode::new(code), message, last_error }
}

fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: not null, and NCCL's texts end with a zero byte.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().trim().to_owned()
}

/// The library's version.
pub fn get_version(functions: &Functions) -> Result<Version> {
    let mut code = 0;
    // SAFETY: the pointer is good for a number.
    check(functions, "ncclGetVersion", unsafe { (functions.get_version)(&raw mut code) })?;
    Ok(Version::from_code(code.unsigned_abs()))
}

/// A new id, for one communicator.
pub fn get_unique_id(functions: &Functions) -> Result<sys::ncclUniqueId> {
    let mut id = sys::ncclUniqueId { internal: [0; sys::NCCL_UNIQUE_ID_BYTES] };
    // SAFETY: the pointer is good for an id.
    check(functions, "ncclGetUniqueId", unsafe { (functions.get_unique_id)(&raw mut id) })?;
    Ok(id)
}

/// Makes the communicator of `rank`, one of `ranks`, on the current device.
///
/// # Safety
/// `communicator` is good for writes until the communicator is ready or aborted: NCCL may write to it from another
/// thread.
pub unsafe fn comm_init_rank_config(
    functions: &Functions,
    communicator: *mut ncclComm_t,
    ranks: c_int,
    id: sys::ncclUniqueId,
    rank: c_int,
    mut config: sys::ncclConfig_t,
) -> Result<Status> {
    // SAFETY: the caller vouches for `communicator`; NCCL copies the configuration before it returns.
    let code = unsafe { (functions.comm_init_rank_config)(communicator, ranks, id, rank, &raw mut config) };
    check(functions, "ncclCommInitRankConfig", code)
}

/// Whether the communicator's last call is done; its error if it failed in the background, named after `function`.
///
/// # Safety
/// `communicator` is neither aborted nor destroyed, and no other thread is inside a call on it.
pub unsafe fn comm_get_async_error(
    functions: &Functions,
    communicator: ncclComm_t,
    function: &'static str,
) -> Result<Status> {
    let mut state = sys::NCCL_SUCCESS;
    // SAFETY: the caller vouches for `communicator`; the pointer is good for a result.
    let code = unsafe { (functions.comm_get_async_error)(communicator, &raw mut state) };
    check(functions, "ncclCommGetAsyncError", code)?;
    check(functions, function, state)
}

/// Declares the functions that take a communicator and nothing else.
macro_rules! on_communicator {
    ($($(#[$doc:meta])* $name:ident: $symbol:literal,)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// `communicator` is neither aborted nor destroyed, and no other thread is inside a call on it.
        pub unsafe fn $name(functions: &Functions, communicator: ncclComm_t) -> Result<Status> {
            // SAFETY: the caller vouches for `communicator`.
            check(functions, $symbol, unsafe { (functions.$name)(communicator) })
        }
    )*};
}

on_communicator! {
    /// Stops the communicator's kernels and background work and frees it; it may not be used again.
    comm_abort: "ncclCommAbort",
    /// Ends the communicator's work in agreement with the other ranks; only the status and `comm_destroy` may follow.
    comm_finalize: "ncclCommFinalize",
    /// Frees a finalized communicator; it may not be used again.
    comm_destroy: "ncclCommDestroy",
}

/// The number of ranks.
///
/// # Safety
/// `communicator` is neither aborted nor destroyed, and no other thread is inside a call on it.
pub unsafe fn comm_count(functions: &Functions, communicator: ncclComm_t) -> Result<c_int> {
    let mut count = 0;
    // SAFETY: the caller vouches for `communicator`; the pointer is good for a number.
    check(functions, "ncclCommCount", unsafe { (functions.comm_count)(communicator, &raw mut count) })?;
    Ok(count)
}

/// The rank of this communicator.
///
/// # Safety
/// `communicator` is neither aborted nor destroyed, and no other thread is inside a call on it.
pub unsafe fn comm_user_rank(functions: &Functions, communicator: ncclComm_t) -> Result<c_int> {
    let mut rank = 0;
    // SAFETY: the caller vouches for `communicator`; the pointer is good for a number.
    check(functions, "ncclCommUserRank", unsafe { (functions.comm_user_rank)(communicator, &raw mut rank) })?;
    Ok(rank)
}

/// Makes a communicator of the ranks with this rank's `color`, ordered by `key`; it inherits the parent's options.
///
/// # Safety
/// `communicator` is neither aborted nor destroyed, and no other thread is inside a call on it. `child` is good for
/// writes until `communicator` is no longer in progress: NCCL may write to it from another thread.
pub unsafe fn comm_split(
    functions: &Functions,
    communicator: ncclComm_t,
    color: c_int,
    key: c_int,
    child: *mut ncclComm_t,
) -> Result<Status> {
    // SAFETY: the caller vouches for both pointers; no configuration means the parent's.
    let code = unsafe { (functions.comm_split)(communicator, color, key, child, null_mut()) };
    check(functions, "ncclCommSplit", code)
}

/// Where a collective reads and writes, and on which communicator and stream it runs.
#[derive(Clone, Copy, Debug)]
pub struct Operands {
    /// What this rank gives.
    pub send: *const c_void,
    /// Where the result goes.
    pub receive: *mut c_void,
    /// The number of elements this rank gives.
    pub count: usize,
    /// Their type.
    pub data_type: ncclDataType_t,
    /// The communicator.
    pub communicator: ncclComm_t,
    /// The stream.
    pub stream: sys::cudaStream_t,
}

/// Enqueues: every rank's `count` elements, in rank order, into every rank's `receive`.
///
/// # Safety
/// `communicator` is neither aborted nor destroyed, and no other thread is inside a call on it. `send` is good for
/// `count` elements and `receive` for `count` times the number of ranks on the communicator's device, until the work is
/// done on `stream`, which is a stream of that device.
pub unsafe fn all_gather(functions: &Functions, operands: Operands) -> Result<Status> {
    let Operands { send, receive, count, data_type, communicator, stream } = operands;
    // SAFETY: the caller vouches for all operands.
    let code = unsafe { (functions.all_gather)(send, receive, count, data_type, communicator, stream) };
    check(functions, "ncclAllGather", code)
}

/// Enqueues: `count` elements, combined over all ranks by `op`, into every rank's `receive`.
///
/// # Safety
/// `communicator` is neither aborted nor destroyed, and no other thread is inside a call on it. `send` and `receive` are
/// good for `count` elements on the communicator's device, until the work is done on `stream`, which is a stream of that
/// device.
pub unsafe fn all_reduce(functions: &Functions, operands: Operands, op: ncclRedOp_t) -> Result<Status> {
    let Operands { send, receive, count, data_type, communicator, stream } = operands;
    // SAFETY: the caller vouches for all operands.
    let code = unsafe { (functions.all_reduce)(send, receive, count, data_type, op, communicator, stream) };
    check(functions, "ncclAllReduce", code)
}

/// Enqueues: `count` elements of `root`'s `send` into every rank's `receive`.
///
/// # Safety
/// As for [`all_reduce`]; `send` is looked at on `root` alone.
pub unsafe fn broadcast(functions: &Functions, operands: Operands, root: c_int) -> Result<Status> {
    let Operands { send, receive, count, data_type, communicator, stream } = operands;
    // SAFETY: the caller vouches for all operands.
    let code = unsafe { (functions.broadcast)(send, receive, count, data_type, root, communicator, stream) };
    check(functions, "ncclBroadcast", code)
}

/// Enqueues: `count` elements, combined over all ranks by `op`, into `root`'s `receive`.
///
/// # Safety
/// As for [`all_reduce`]; `receive` is looked at on `root` alone.
pub unsafe fn reduce(functions: &Functions, operands: Operands, op: ncclRedOp_t, root: c_int) -> Result<Status> {
    let Operands { send, receive, count, data_type, communicator, stream } = operands;
    // SAFETY: the caller vouches for all operands.
    let code = unsafe { (functions.reduce)(send, receive, count, data_type, op, root, communicator, stream) };
    check(functions, "ncclReduce", code)
}

/// Opens a group on this thread: calls up to [`group_end`] are started together.
pub fn group_start(functions: &Functions) -> Result<()> {
    // SAFETY: takes nothing; counts the groups of this thread.
    check(functions, "ncclGroupStart", unsafe { (functions.group_start)() }).map(drop)
}

/// Ends this thread's group and starts its calls, unless one of them failed.
///
/// # Safety
/// The communicators used in the group are neither aborted nor destroyed, and no other thread is inside a call on them.
pub unsafe fn group_end(functions: &Functions) -> Result<Status> {
    // SAFETY: the caller vouches for the communicators of the group.
    check(functions, "ncclGroupEnd", unsafe { (functions.group_end)() })
}
