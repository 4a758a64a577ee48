//! Sizes, names and options as JavaScript passes them.

use crate::error::{Result, to_js};
use std::time::Duration;
use syncbn_core::{Code, DType, Error, MemoryFormat};
use syncbn_runtime::Device;

/// Non-negative sizes.
pub fn sizes(op: &str, values: &[i64]) -> Result<Vec<usize>> {
    let convert = |&value: &i64| {
        usize::try_from(value)
            .map_err(|_| to_js(Error::expected(Code::Shape, op, "sizes of at least 0", format!("{values:?}"))))
    };
    values.iter().map(convert).collect()
}

/// Two non-negative sizes.
pub fn pair(op: &str, values: &[i64]) -> Result<[usize; 2]> {
    sizes(op, values)?
        .try_into()
        .map_err(|_| to_js(Error::expected(Code::Argument, op, "two sizes", format!("{values:?}"))))
}

/// A non-negative whole number.
pub fn count(op: &str, what: &str, value: f64) -> Result<usize> {
    if value >= 0.0 && value.fract() == 0.0 && value <= (1u64 << 53) as f64 {
        return Ok(value as usize);
    }
    Err(to_js(Error::expected(Code::Argument, op, format!("{what} as a whole number of at least 0"), value)))
}

/// Milliseconds as a duration.
pub fn milliseconds(op: &str, value: f64) -> Result<Duration> {
    let limit = Duration::from_secs(365 * 24 * 3600).as_millis() as f64;
    if value > 0.0 && value.is_finite() {
        return Ok(Duration::from_micros((value.min(limit) * 1e3) as u64));
    }
    Err(to_js(Error::expected(Code::Argument, op, "a timeout above 0 ms", value)))
}

/// An element type by name.
pub fn dtype(name: &str) -> Result<DType> {
    DType::parse(name).map_err(to_js)
}

/// A device by name.
pub fn device(op: &str, name: &str) -> Result<Device> {
    Device::parse(op, name).map_err(to_js)
}

/// A memory format by name.
pub fn format(name: &str) -> Result<MemoryFormat> {
    MemoryFormat::parse(name).map_err(to_js)
}

/// A shape as JavaScript reads it.
pub fn shape(shape: &[usize]) -> Vec<i64> {
    shape.iter().map(|&size| size as i64).collect()
}
