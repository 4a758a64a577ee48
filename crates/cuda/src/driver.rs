//! Finding and loading libcuda.
//!
//! cudarc panics on a missing library and on a missing symbol, so both are looked for before its first call.

use crate::error::{check, describe};
use cudarc::driver::{result, sys};
use std::panic::catch_unwind;
use std::sync::OnceLock;
use syncbn_core::{Code, Error, Result};

/// The oldest driver interface that loads the committed PTX (ISA 7.4), as cuDriverGetVersion counts: CUDA 11.4.
pub const OLDEST_VERSION: i32 = 11_040;

/// Every function this crate calls.
const SYMBOLS: [&str; 48] = [
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuCtxGetStreamPriorityRange",
    "cuDeviceCanAccessPeer",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDeviceGetUuid",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime",
    "cuEventQuery",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphUpload",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyPeerAsync",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuPointerGetAttribute",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamCreateWithPriority",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuThreadExchangeStreamCaptureMode",
];

/// Loads and initialises the driver; every later call gives the first one's outcome.
///
/// # Errors
/// [`Code::BackendUnavailable`]: no driver, one that is too old, or no GPU; the message says which and what to do.
pub fn require() -> Result<()> {
    static LOADED: OnceLock<Result<()>> = OnceLock::new();
    LOADED.get_or_init(load).clone()
}

#[cold]
fn unavailable(message: String) -> Error {
    Error::new(Code::BackendUnavailable, message)
}

fn load() -> Result<()> {
    // SAFETY: loads the library and calls nothing in it; libcuda has no other requirement on its loading.
    if !catch_unwind(|| unsafe { sys::is_culib_present() }).unwrap_or(false) {
        return Err(unavailable(
            "cuda: the NVIDIA driver (libcuda.so.1) was not found by the dynamic loader: install the driver, or add its \
             folder to LD_LIBRARY_PATH; without a GPU use device 'cpu'"
                .into(),
        ));
    }
    // SAFETY: the library is there, as was just found.
    let library = unsafe { sys::culib() };
    // SAFETY: the symbol is only looked up, under a type that is never used.
    let missing = |name: &&&str| unsafe { library.get::<*const ()>(name.as_bytes()) }.is_err();
    let version =
        if SYMBOLS.iter().any(|name| *name == "cuDriverGetVersion" && missing(&name)) { 0 } else { version()? };
    if let Some(symbol) = SYMBOLS.iter().find(missing).filter(|_| version >= OLDEST_VERSION) {
        return Err(unavailable(format!("cuda: the NVIDIA driver lacks {symbol}: update the driver")));
    }
    if version < OLDEST_VERSION {
        return Err(unavailable(format!(
            "cuda: the NVIDIA driver is too old: it supports CUDA {}, expected at least {} (driver 470): update the driver",
            format_version(version),
            format_version(OLDEST_VERSION)
        )));
    }
    result::init().map_err(|error| {
        unavailable(format!(
            "cuda: the driver found no usable GPU: {}; without a GPU use device 'cpu'",
            describe(error)
        ))
    })
}

fn version() -> Result<i32> {
    let mut version = 0;
    // SAFETY: the pointer is to a live integer; the function may be called before cuInit.
    check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&mut version) }.result())?;
    Ok(version)
}

fn format_version(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// The newest CUDA version the driver supports, such as "12.4".
///
/// # Errors
/// As [`require`].
pub fn cuda_version() -> Result<String> {
    require()?;
    version().map(format_version)
}

/// Number of GPUs the driver shows.
///
/// # Errors
/// As [`require`].
pub fn device_count() -> Result<usize> {
    require()?;
    check("cuDeviceGetCount", result::device::get_count()).map(|count| usize::try_from(count).unwrap_or(0))
}
