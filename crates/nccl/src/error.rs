//! The one error type of the crate.

use crate::sys;
use crate::version::Version;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// `Result` with [`NcclError`].
pub type Result<T, E = NcclError> = std::result::Result<T, E>;

/// What went wrong, and in which function of NCCL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NcclError {
    /// No NCCL could be loaded.
    #[error("NCCL was not found. Tried:{}", lines(tried))]
    NotFound {
        /// Every path, in the order in which they were tried.
        tried: Vec<Attempt>,
    },
    /// The NCCL that was found lacks what this crate needs.
    #[error("NCCL {needed} or newer expected, got {found} ({})", path.display())]
    TooOld {
        /// Its version.
        found: Version,
        /// The oldest version that would do.
        needed: Version,
        /// Where it was found.
        path: PathBuf,
    },
    /// A library was found that does not have NCCL's functions.
    #[error("{} has no function {symbol}: is it NCCL?", path.display())]
    MissingSymbol {
        /// The function.
        symbol: &'static str,
        /// The library.
        path: PathBuf,
    },
    /// NCCL reported an error.
    #[error("{function}: {message} ({code}){}", details(last_error))]
    Call {
        /// The function that returned it, or whose background work ended with it.
        function: &'static str,
        /// The error.
        code: ErrorCode,
        /// NCCL's words for the code.
        message: String,
        /// What NCCL last logged in this process, on whichever thread; may be empty.
        last_error: String,
    },
    /// The deadline passed. The communicator is out of step with the other ranks; abort it.
    #[error("{function}: not done after {} s", timeout.as_secs_f64())]
    Timeout {
        /// The function that was waited for.
        function: &'static str,
        /// How long the call might have taken.
        timeout: Duration,
    },
    /// The caller ended the wait. The communicator is out of step with the other ranks; abort it.
    #[error("{function}: the wait was cancelled")]
    Cancelled {
        /// The function that was waited for.
        function: &'static str,
    },
    /// The communicator was aborted, perhaps while the call waited.
    #[error("{function}: the communicator was aborted")]
    Aborted {
        /// The function that was called.
        function: &'static str,
    },
    /// The communicator was closed.
    #[error("{function}: the communicator is closed")]
    Closed {
        /// The function that was called.
        function: &'static str,
    },
    /// An earlier call left the communicator in a state from which only an abort leads on.
    #[error("{function}: the communicator failed before and must be made anew ({reason})")]
    Failed {
        /// The function that was called.
        function: &'static str,
        /// The first failure.
        reason: String,
    },
    /// A call that may not be made between the start and the end of a group of the same thread.
    #[error("{function}: cannot be called inside a group; use what the group offers")]
    InsideGroup {
        /// The function that was called.
        function: &'static str,
    },
    /// An argument is wrong; NCCL was not called.
    #[error("{function}: expected {expected}, got {got}")]
    Argument {
        /// The function that was called.
        function: &'static str,
        /// What it takes.
        expected: String,
        /// What it got.
        got: String,
    },
}

/// A path at which NCCL was looked for, and why it is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The path, or a bare name for the loader's own search.
    pub path: PathBuf,
    /// The loader's words, or what is wrong with the library.
    pub reason: String,
}

/// An error of NCCL: a result that is neither success nor in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorCode {
    /// `ncclUnhandledCudaError`
    UnhandledCudaError,
    /// `ncclSystemError`
    SystemError,
    /// `ncclInternalError`
    InternalError,
    /// `ncclInvalidArgument`
    InvalidArgument,
    /// `ncclInvalidUsage`
    InvalidUsage,
    /// `ncclRemoteError`
    RemoteError,
    /// A result this crate does not know.
    Other(i32),
}

impl ErrorCode {
    /// The error that `code` stands for.
    pub(crate) fn new(code: sys::ncclResult_t) -> Self {
        match code {
            sys::NCCL_UNHANDLED_CUDA_ERROR => Self::UnhandledCudaError,
            sys::NCCL_SYSTEM_ERROR => Self::SystemError,
            sys::NCCL_INTERNAL_ERROR => Self::InternalError,
            sys::NCCL_INVALID_ARGUMENT => Self::InvalidArgument,
            sys::NCCL_INVALID_USAGE => Self::InvalidUsage,
            sys::NCCL_REMOTE_ERROR => Self::RemoteError,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Other(code) => write!(f, "result {code}"),
            known => write!(f, "nccl{known:?}"),
        }
    }
}

fn lines(tried: &[Attempt]) -> String {
    tried.iter().map(|Attempt { path, reason }| format!("\n  {}: {reason}", path.display())).collect()
}

fn details(last_error: &str) -> String {
    if last_error.is_empty() { String::new() } else { format!(": {last_error}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_function_and_what_was_expected() {
        let call = |last_error: &str| NcclError::Call {
            function: "ncclAllReduce",
            code: ErrorCode::new(sys::NCCL_REMOTE_ERROR),
            message: "remote process exited".into(),
            last_error: last_error.into(),
        };
        assert_eq!(call("").to_string(), "ncclAllReduce: remote process exited (ncclRemoteError)");
        assert_eq!(
            call("rank 1 left").to_string(),
            "ncclAllReduce: remote process exited (ncclRemoteError): rank 1 left"
        );
        let timeout = NcclError::Timeout { function: "ncclCommFinalize", timeout: Duration::from_millis(1500) };
        assert_eq!(timeout.to_string(), "ncclCommFinalize: not done after 1.5 s");
    }

    #[test]
    fn not_found_lists_every_path_with_its_reason() {
        let attempt = |path: &str, reason: &str| Attempt { path: path.into(), reason: reason.into() };
        let error =
            NcclError::NotFound { tried: vec![attempt("libnccl.so.2", "no such file"), attempt("/a", "not NCCL")] };
        assert_eq!(error.to_string(), "NCCL was not found. Tried:\n  libnccl.so.2: no such file\n  /a: not NCCL");
    }

    #[test]
    fn unknown_results_keep_their_number() {
        assert_eq!(ErrorCode::new(42).to_string(), "result 42");
    }
}
