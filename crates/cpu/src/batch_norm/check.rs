//! Checks of arguments, before any side effect, and the small rows that are not tensors.

use crate::simd::Scalar;
use crate::slice::{HostSlice, HostSliceMut};
use half::{bf16, f16};
use syncbn_core::message::{read_slot, slot_bytes, sums_bytes};
use syncbn_core::{BatchNormShape, Code, DType, Error, Result};

/// `len` elements of `S`.
pub(super) fn tensor<'a, S: Scalar>(op: &str, name: &str, slice: HostSlice<'a>, len: usize) -> Result<&'a [S]> {
    let slice = S::slice(&format!("{op}: {name}"), slice)?;
    length(op, name, len, slice.len()).map(|()| slice)
}

/// `len` elements of `S`, to be written.
pub(super) fn tensor_mut<'a, S: Scalar>(
    op: &str,
    name: &str,
    slice: HostSliceMut<'a>,
    len: usize,
) -> Result<&'a mut [S]> {
    let slice = S::slice_mut(&format!("{op}: {name}"), slice)?;
    length(op, name, len, slice.len()).map(|()| slice)
}

/// One number a channel, of `S` or float32; `default` everywhere if absent.
pub(super) fn row<S: Scalar>(
    op: &str,
    name: &str,
    slice: Option<HostSlice<'_>>,
    channels: usize,
    default: f64,
) -> Result<Vec<f64>> {
    let Some(slice) = slice else { return Ok(vec![default; channels]) };
    if slice.dtype() != S::DTYPE && slice.dtype() != DType::F32 {
        let expected = format!("{name} of {} or float32", S::DTYPE);
        return Err(Error::expected(Code::DType, op, expected, slice.dtype()));
    }
    length(op, name, channels, slice.len())?;
    read_row(op, name, slice)
}

/// The numbers of a row of any floating-point type.
pub(super) fn read_row(op: &str, name: &str, slice: HostSlice<'_>) -> Result<Vec<f64>> {
    Ok(match slice {
        HostSlice::F32(row) => row.iter().map(|&value| value.into()).collect(),
        HostSlice::F64(row) => row.to_vec(),
        HostSlice::F16(row) => row.iter().map(|value| value.to_f64()).collect(),
        HostSlice::BF16(row) => row.iter().map(|value| value.to_f64()).collect(),
        other => return Err(not_float(op, name, other.dtype())),
    })
}

/// Checks a row that [`write_row`] will write: a floating-point number a channel.
pub(super) fn output_row(op: &str, name: &str, slice: Option<&HostSliceMut<'_>>, channels: usize) -> Result<()> {
    match slice {
        Some(slice) if !slice.dtype().is_float() => Err(not_float(op, name, slice.dtype())),
        Some(slice) => length(op, name, channels, slice.len()),
        None => Ok(()),
    }
}

/// Rounds `values` into a row [`output_row`] has checked.
pub(super) fn write_row(slice: HostSliceMut<'_>, values: impl Iterator<Item = f64>) {
    match slice {
        HostSliceMut::F32(row) => row.iter_mut().zip(values).for_each(|(to, value)| *to = value as f32),
        HostSliceMut::F64(row) => row.iter_mut().zip(values).for_each(|(to, value)| *to = value),
        HostSliceMut::F16(row) => row.iter_mut().zip(values).for_each(|(to, value)| *to = f16::from_f64(value)),
        HostSliceMut::BF16(row) => row.iter_mut().zip(values).for_each(|(to, value)| *to = bf16::from_f64(value)),
        HostSliceMut::I32(_) | HostSliceMut::I64(_) => unreachable!("checked before"),
    }
}

/// Checks the number of elements.
pub(super) fn length(op: &str, name: &str, expected: usize, got: usize) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(Error::expected(Code::Shape, op, format!("{name} of {expected} elements"), got))
}

/// Checks the bytes of `slots` slots.
pub(super) fn slots(op: &str, shape: BatchNormShape, slots: usize, got: usize) -> Result<()> {
    buffer(op, "statistics", slots * slot_bytes(shape.channels, DType::F64), got)
}

/// Checks the bytes of `rows` rows of sums.
pub(super) fn sums(op: &str, shape: BatchNormShape, rows: usize, got: usize) -> Result<()> {
    buffer(op, "sums", sums_bytes(shape.channels, rows, DType::F64), got)
}

fn buffer(op: &str, name: &str, expected: usize, got: usize) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(Error::expected(Code::Argument, op, format!("{name} of {expected} bytes"), got))
}

/// Kept statistics: count, mean and invstd.
pub(super) struct Statistics {
    pub(super) count: u64,
    pub(super) mean: Vec<f64>,
    pub(super) invstd: Vec<f64>,
}

impl Statistics {
    pub(super) fn read(op: &str, shape: BatchNormShape, slot: &[u8]) -> Result<Self> {
        slots(op, shape, 1, slot.len())?;
        let (count, mean, invstd) = read_slot(slot);
        Ok(Self { count, mean, invstd })
    }
}

#[cold]
pub(super) fn not_float(op: &str, name: &str, got: DType) -> Error {
    Error::expected(Code::DType, op, format!("{name} of a floating-point type"), got)
}
