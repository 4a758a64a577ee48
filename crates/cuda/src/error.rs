//! The driver's errors in the library's words.

use cudarc::driver::result::DriverError;
use cudarc::driver::sys::CUresult;
use std::borrow::Cow;
use std::ffi::CStr;
use syncbn_core::{Code, Error, Result};

/// The driver's own name and sentence of an error.
pub(crate) fn describe(error: DriverError) -> String {
    format!("{} ({}, {})", text(error.error_name()), error.0 as u32, text(error.error_string()))
}

fn text(text: Result<&CStr, DriverError>) -> Cow<'_, str> {
    text.map_or("unknown".into(), CStr::to_string_lossy)
}

/// `result` of the driver call `call`, as [`Code::Cuda`], [`Code::OutOfMemory`], or [`Code::Capture`] where it is
/// the capture that forbids it.
pub(crate) fn check<T>(call: &str, result: Result<T, DriverError>) -> Result<T> {
    result.map_err(|error| {
        let code = match error.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Code::OutOfMemory,
            _ if is_capture(error) => Code::Capture,
            _ => Code::Cuda,
        };
        Error::new(code, format!("{call}: {}", describe(error)))
    })
}

fn is_capture(error: DriverError) -> bool {
    (CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED as u32..=CUresult::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD as u32)
        .contains(&(error.0 as u32))
}

/// [`check`] for a raw result code.
pub(crate) fn call(name: &str, result: CUresult) -> Result<()> {
    check(name, result.result())
}
