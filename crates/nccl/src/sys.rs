//! NCCL's C interface: the types and functions of `nccl.h` that this crate uses, and the table of function pointers.
//!
//! Names and values are the header's. Nothing is linked: [`Functions`] is filled from a library opened at run time.
//!
//! Source: <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api.html>.

#![allow(non_camel_case_types, non_snake_case, reason = "the names of the C header")]

use libloading::Library;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::ptr::null;

/// What a call returns: [`NCCL_SUCCESS`], [`NCCL_IN_PROGRESS`], or an error.
pub type ncclResult_t = c_int;
/// The call did what it was asked to do.
pub const NCCL_SUCCESS: ncclResult_t = 0;
/// A call of CUDA failed.
pub const NCCL_UNHANDLED_CUDA_ERROR: ncclResult_t = 1;
/// A call of the operating system failed.
pub const NCCL_SYSTEM_ERROR: ncclResult_t = 2;
/// A defect of NCCL, or memory that something overwrote.
pub const NCCL_INTERNAL_ERROR: ncclResult_t = 3;
/// An argument is wrong.
pub const NCCL_INVALID_ARGUMENT: ncclResult_t = 4;
/// The call does not fit those made before it, or those of the other ranks.
pub const NCCL_INVALID_USAGE: ncclResult_t = 5;
/// Another rank, or the way to it, failed.
pub const NCCL_REMOTE_ERROR: ncclResult_t = 6;
/// A non-blocking call goes on in the background.
pub const NCCL_IN_PROGRESS: ncclResult_t = 7;

/// The type of the elements of a buffer.
pub type ncclDataType_t = c_int;
/// How values are combined.
pub type ncclRedOp_t = c_int;
/// A `cudaStream_t` or `CUstream`: one type under two names.
pub type cudaStream_t = *mut c_void;

/// What a communicator points to.
#[repr(C)]
pub struct ncclComm {
    _private: [u8; 0],
}

/// A handle of a communicator.
pub type ncclComm_t = *mut ncclComm;

/// What the ranks of a communicator find each other by.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ncclUniqueId {
    /// Opaque bytes: an address, a port and a random number.
    pub internal: [c_char; NCCL_UNIQUE_ID_BYTES],
}

/// The size of a [`ncclUniqueId`].
pub const NCCL_UNIQUE_ID_BYTES: usize = 128;

/// The colour of a rank that gets no communicator from `ncclCommSplit`.
pub const NCCL_SPLIT_NOCOLOR: c_int = -1;

/// An option of [`ncclConfig_t`] that NCCL is to choose.
pub const NCCL_CONFIG_UNDEF_INT: c_int = c_int::MIN;

/// Options of a communicator, in the layout of NCCL 2.18.
///
/// Every NCCL that this crate works with takes it: it copies the smaller of this size and its own, and fills options that are younger
/// than `version` with its defaults.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ncclConfig_t {
    /// The size of this structure.
    pub size: usize,
    /// `0xcafebeef`.
    pub magic: c_uint,
    /// The version whose header this structure is from.
    pub version: c_uint,
    /// 0: calls return at once, and `ncclCommGetAsyncError` says when they are done.
    pub blocking: c_int,
    /// Thread blocks in a cluster.
    pub cgaClusterSize: c_int,
    /// The least number of thread blocks a collective runs on.
    pub minCTAs: c_int,
    /// The greatest number of thread blocks a collective runs on.
    pub maxCTAs: c_int,
    /// The network to use; null: NCCL's choice.
    pub netName: *const c_char,
    /// Whether communicators made by `ncclCommSplit` share their parent's resources.
    pub splitShare: c_int,
}

impl ncclConfig_t {
    /// Every option left to NCCL: `NCCL_CONFIG_INITIALIZER` of the header.
    pub const fn new() -> Self {
        Self {
            size: size_of::<Self>(),
            magic: 0xcafe_beef,
            version: 21801,
            blocking: NCCL_CONFIG_UNDEF_INT,
            cgaClusterSize: NCCL_CONFIG_UNDEF_INT,
            minCTAs: NCCL_CONFIG_UNDEF_INT,
            maxCTAs: NCCL_CONFIG_UNDEF_INT,
            netName: null(),
            splitShare: NCCL_CONFIG_UNDEF_INT,
        }
    }
}

impl Default for ncclConfig_t {
    fn default() -> Self {
        Self::new()
    }
}

/// Makes the table of functions: `field: "symbol" = fn type`.
macro_rules! functions {
    ($($(#[$doc:meta])* $field:ident: $symbol:literal = fn($($argument:ty),*) -> $returned:ty,)*) => {
        /// Pointers to the functions of one loaded library, named as in C without `nccl`.
        ///
        /// They are as unsafe to call as in C; [`result`](crate::result) and the safe types do so.
        #[derive(Clone, Copy, Debug)]
        pub struct Functions {
            $($(#[$doc])* pub $field: unsafe extern "C" fn($($argument),*) -> $returned,)*
        }

        impl Functions {
            /// Looks every function up; the name of the first one that is missing if one is.
            ///
            /// # Safety
            /// `library` is NCCL, or offers functions of NCCL's types under these names, and stays loaded for as long
            /// as the table is used.
            pub unsafe fn load(library: &Library) -> Result<Self, &'static str> {
                Ok(Self {
                    // SAFETY: the caller vouches for the types of the functions and for the library staying loaded.
                    $($field: *unsafe { library.get($symbol) }.map_err(|_| $symbol)?,)*
                })
            }
        }
    };
}

functions! {
    /// The version as one number, 22809 for 2.28.9.
    get_version: "ncclGetVersion" = fn(*mut c_int) -> ncclResult_t,
    /// Makes an id; the thread that serves it lives in the calling process.
    get_unique_id: "ncclGetUniqueId" = fn(*mut ncclUniqueId) -> ncclResult_t,
    /// Makes this rank's communicator on the current device.
    comm_init_rank_config: "ncclCommInitRankConfig"
        = fn(*mut ncclComm_t, c_int, ncclUniqueId, c_int, *mut ncclConfig_t) -> ncclResult_t,
    /// Whether work goes on in the background, or how it failed.
    comm_get_async_error: "ncclCommGetAsyncError" = fn(ncclComm_t, *mut ncclResult_t) -> ncclResult_t,
    /// Stops what runs and frees the communicator.
    comm_abort: "ncclCommAbort" = fn(ncclComm_t) -> ncclResult_t,
    /// Ends the communicator's work in agreement with the other ranks.
    comm_finalize: "ncclCommFinalize" = fn(ncclComm_t) -> ncclResult_t,
    /// Frees a finalized communicator.
    comm_destroy: "ncclCommDestroy" = fn(ncclComm_t) -> ncclResult_t,
    /// The number of ranks.
    comm_count: "ncclCommCount" = fn(ncclComm_t, *mut c_int) -> ncclResult_t,
    /// This rank.
    comm_user_rank: "ncclCommUserRank" = fn(ncclComm_t, *mut c_int) -> ncclResult_t,
    /// Every rank's buffer to every rank, in rank order.
    all_gather: "ncclAllGather"
        = fn(*const c_void, *mut c_void, usize, ncclDataType_t, ncclComm_t, cudaStream_t) -> ncclResult_t,
    /// The combined buffers to every rank.
    all_reduce: "ncclAllReduce"
        = fn(*const c_void, *mut c_void, usize, ncclDataType_t, ncclRedOp_t, ncclComm_t, cudaStream_t) -> ncclResult_t,
    /// One rank's buffer to every rank.
    broadcast: "ncclBroadcast"
        = fn(*const c_void, *mut c_void, usize, ncclDataType_t, c_int, ncclComm_t, cudaStream_t) -> ncclResult_t,
    /// The combined buffers to one rank.
    reduce: "ncclReduce" = fn(
        *const c_void,
        *mut c_void,
        usize,
        ncclDataType_t,
        ncclRedOp_t,
        c_int,
        ncclComm_t,
        cudaStream_t
    ) -> ncclResult_t,
    /// Opens a group of calls on this thread.
    group_start: "ncclGroupStart" = fn() -> ncclResult_t,
    /// Starts the calls of this thread's group.
    group_end: "ncclGroupEnd" = fn() -> ncclResult_t,
    /// A result in words; the text is static.
    get_error_string: "ncclGetErrorString" = fn(ncclResult_t) -> *const c_char,
    /// What NCCL last logged as a warning or an error in this process; the communicator is not looked at.
    get_last_error: "ncclGetLastError" = fn(ncclComm_t) -> *const c_char,
    /// Makes communicators of parts of one.
    comm_split: "ncclCommSplit" = fn(ncclComm_t, c_int, c_int, *mut ncclComm_t, *mut ncclConfig_t) -> ncclResult_t,
}
