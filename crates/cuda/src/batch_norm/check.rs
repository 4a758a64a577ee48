//! Checks of arguments, before anything is enqueued, and what the kernels are told of small rows.

use super::STATISTICS;
use crate::buffer::CudaBuffer;
use crate::slice::{CudaSlice, CudaSliceMut};
use syncbn_core::kernels::RunningStats;
use syncbn_core::message::{slot_bytes, sums_bytes};
use syncbn_core::{Code, DType, Error, Result};

/// A row of one number a channel whose element type the kernels learn at run time; address 0 for none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Row {
    pub(super) address: u64,
    /// Position in [`DType::ALL`], `DTypeCode` of kernels/common.cuh.
    pub(super) dtype: u32,
}

impl Row {
    fn new(address: u64, dtype: DType) -> Self {
        let code = match dtype {
            DType::F32 => 0,
            DType::F64 => 1,
            DType::F16 => 2,
            DType::BF16 => 3,
            DType::I32 => 4,
            DType::I64 => 5,
        };
        Self { address, dtype: code }
    }
}

/// The element type of batch norm's input.
pub(super) fn input_dtype(op: &str, input: CudaSlice<'_>) -> Result<DType> {
    if input.dtype().is_float() { Ok(input.dtype()) } else { Err(not_float(op, "input", input.dtype())) }
}

/// Address of `len` elements of `dtype`.
pub(super) fn tensor(op: &str, name: &str, slice: CudaSlice<'_>, dtype: DType, len: usize) -> Result<u64> {
    if slice.dtype() != dtype {
        return Err(Error::expected(Code::DType, op, format!("{name} of {dtype}"), slice.dtype()));
    }
    length(op, name, len, slice.len())?;
    Ok(slice.pointer())
}

/// A row that is read: one number a channel, of `dtype` or float32.
pub(super) fn row(op: &str, name: &str, slice: Option<CudaSlice<'_>>, dtype: DType, channels: usize) -> Result<Row> {
    let Some(slice) = slice else { return Ok(Row::default()) };
    if slice.dtype() != dtype && slice.dtype() != DType::F32 {
        let expected =
            if dtype == DType::F32 { format!("{name} of {dtype}") } else { format!("{name} of {dtype} or float32") };
        return Err(Error::expected(Code::DType, op, expected, slice.dtype()));
    }
    any_row(op, name, slice, channels)
}

/// A row that is read: one number a channel, of any floating-point type.
pub(super) fn any_row(op: &str, name: &str, slice: CudaSlice<'_>, channels: usize) -> Result<Row> {
    if !slice.dtype().is_float() {
        return Err(not_float(op, name, slice.dtype()));
    }
    length(op, name, channels, slice.len())?;
    Ok(Row::new(slice.pointer(), slice.dtype()))
}

/// A row that is written: one number a channel, of any floating-point type.
pub(super) fn output_row(op: &str, name: &str, slice: Option<&CudaSliceMut<'_>>, channels: usize) -> Result<Row> {
    slice.map_or(Ok(Row::default()), |slice| any_row(op, name, slice.as_slice(), channels))
}

/// Running statistics, all of them 0 where there are none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Running {
    pub(super) mean: Row,
    pub(super) var: Row,
    /// Address of one int64.
    pub(super) batches_tracked: u64,
    pub(super) momentum: Option<f64>,
}

/// Types and lengths of the running statistics, and that a cumulative average has its counter.
pub(super) fn running(op: &str, running: Option<&RunningStats<'_, crate::Cuda>>, channels: usize) -> Result<Running> {
    let Some(running) = running else { return Ok(Running::default()) };
    let row = |name: &str, slice: &CudaSliceMut<'_>| {
        if !matches!(slice.dtype(), DType::F32 | DType::F64) {
            return Err(Error::expected(Code::DType, op, format!("{name} of float32 or float64"), slice.dtype()));
        }
        any_row(op, name, slice.as_slice(), channels)
    };
    let (mean, var) = (row("running_mean", &running.mean)?, row("running_var", &running.var)?);
    let batches_tracked = match &running.num_batches_tracked {
        Some(counter) if counter.dtype() != DType::I64 => {
            return Err(Error::expected(Code::DType, op, "num_batches_tracked of int64", counter.dtype()));
        }
        Some(counter) => {
            length(op, "num_batches_tracked", 1, counter.len())?;
            counter.pointer()
        }
        None if running.momentum.is_none() => {
            let (expected, got) = ("num_batches_tracked with a momentum of none", "no num_batches_tracked");
            return Err(Error::expected(Code::Argument, op, expected, got));
        }
        None => 0,
    };
    Ok(Running { mean, var, batches_tracked, momentum: running.momentum })
}

/// Checks the number of elements.
pub(super) fn length(op: &str, name: &str, expected: usize, got: usize) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(Error::expected(Code::Shape, op, format!("{name} of {expected} elements"), got))
}

/// Address of `slots` slots.
pub(super) fn slots(op: &str, channels: usize, slots: usize, buffer: &CudaBuffer) -> Result<u64> {
    bytes(op, "statistics", slots * slot_bytes(channels, STATISTICS), buffer)
}

/// Address of `rows` rows of sums.
pub(super) fn sums(op: &str, channels: usize, rows: usize, buffer: &CudaBuffer) -> Result<u64> {
    bytes(op, "sums", sums_bytes(channels, rows, STATISTICS), buffer)
}

fn bytes(op: &str, name: &str, expected: usize, buffer: &CudaBuffer) -> Result<u64> {
    if expected == buffer.bytes() {
        return Ok(buffer.pointer());
    }
    Err(Error::expected(Code::Argument, op, format!("{name} of {expected} bytes"), buffer.bytes()))
}

#[cold]
pub(super) fn not_float(op: &str, name: &str, got: DType) -> Error {
    Error::expected(Code::DType, op, format!("{name} of a floating-point type"), got)
}
