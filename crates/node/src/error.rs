//! Errors as data: the message of a native error is JSON, which src/errors.ts makes into a class.

use napi_derive::napi;
use serde_json::json;
use syncbn_core::{Code, ErrorKind};

/// A result JavaScript understands.
pub type Result<T> = napi::Result<T>;

/// The JSON form of an error.
pub fn to_js(error: syncbn_core::Error) -> napi::Error {
    let data = json!({
        "code": error.code().as_str(),
        "message": error.message(),
        "group": error.group(),
        "rank": error.rank(),
        "peer": error.peer(),
        "operation": error.operation(),
    });
    napi::Error::from_reason(data.to_string())
}

/// `result` with its error in JavaScript's form.
pub fn checked<T>(result: syncbn_core::Result<T>) -> Result<T> {
    result.map_err(to_js)
}

/// One row of [`error_codes`].
#[napi(object)]
pub struct BindingErrorCode {
    /// The stable code, `ERR_…`.
    pub code: String,
    /// The class of errors it belongs to.
    pub kind: String,
}

/// Every error code of the library, in the order of docs/errors.md.
#[napi(catch_unwind)]
pub fn error_codes() -> Vec<BindingErrorCode> {
    Code::ALL.iter().map(|code| BindingErrorCode { code: code.as_str().into(), kind: kind_name(code.kind()) }).collect()
}

fn kind_name(kind: ErrorKind) -> String {
    format!("{kind:?}")
}
